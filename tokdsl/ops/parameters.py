"""Operations that own parameters: linear maps, embeddings, weights and buffers."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from tokdsl.ops.base import (
    AxisRef,
    Code,
    Companion,
    Cost,
    Fault,
    Init,
    NewAxis,
    Op,
    Operand,
    ParameterSpec,
    find_axis,
    op,
    tensor,
)
from tokdsl.ops.precedence import primary
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, TensorType


def product(sizes: list[Dim]) -> Dim:
    """Return the product of sizes."""
    total = Dim.of(1)
    for size in sizes:
        total = total * size
    return total


@op("linear")
class Linear(Op):
    """A linear map of one axis (or several trailing ones) to new axes, by default the last one.

    ``linear(x; hidden)`` makes an axis named ``hidden``; ``linear(x; heads, head_dim)`` two. It
    owns ``weight`` (outputs, inputs) and, with ``bias = true``, ``bias``.

    Shape: [*, over] -> [*, out].   Gradient: smooth.
    """

    x: Operand
    out: tuple[NewAxis, ...]
    over: tuple[AxisRef, ...] = ()
    bias: bool = False
    init: Init | None = None
    groups: Companion | None = None

    def contracted(self) -> tuple[Axis, ...]:
        """Return the input axes.

        Raises:
            Fault: if they do not exist or are not the last ones.
        """
        x = tensor(self.x, "x")
        if not self.over:
            if not x.axes or x.axes[-1].pack:
                raise Fault("operand-shape", f"`linear` needs an axis to map, found {x}", "x")
            return (x.axes[-1],)
        axes = tuple(find_axis(x, name, "over") for name in self.over)
        if [a.name for a in x.axes[-len(axes) :]] != [a.name for a in axes]:
            raise Fault(
                "operand-shape",
                f"`over` must name the last axes of {x} in order",
                "over",
                help="reorder with `order(x; ...)` first",
            )
        return axes

    def type(self) -> TensorType:
        """The operand with its input axes replaced by the new ones."""
        x = tensor(self.x, "x")
        axes = self.contracted()
        if any(a.clock is not None for a in axes):
            raise Fault(
                "operand-shape",
                f"`linear` cannot map the token axis `{axes[0].name}`: its length is not fixed",
                "over",
            )
        new = tuple(Axis(a.name, a.size) for a in self.out)
        return replace(x.with_axes(x.axes[: -len(axes)] + new), classes=None)

    def sizes(self) -> tuple[Dim, Dim]:
        """Return (outputs, inputs)."""
        outputs = product([a.size for a in self.out])
        return outputs, product([a.size for a in self.contracted()])

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """A matrix and perhaps a bias."""
        outputs, inputs = self.sizes()
        weight = ParameterSpec("weight", (outputs, inputs), self.init or "fan_in_uniform()")
        if not self.bias:
            return (weight,)
        return (weight, ParameterSpec("bias", (outputs,), "zeros()"))

    def cost(self) -> Cost:
        """Two FLOPs per weight and token."""
        outputs, _ = self.sizes()
        return Cost(tensor(self.x, "x").size * outputs * 2)

    def module(self) -> str:
        """``nn.Linear``, or the package's ``GroupedLinear`` for stacked experts."""
        return "GroupedLinear" if self.groups is not None else "nn.Linear"

    def torch(self, code: Code) -> str:
        """A call of the owned layer, with axes flattened before and split after."""
        text = code["x"]
        inputs = self.contracted()
        if len(inputs) > 1:
            text = f"{primary(text)}.flatten({-len(inputs)})"
        rows = f", {code['groups']}" if self.groups is not None else ""
        text = f"{code.attribute}({text}{rows})"
        if len(self.out) > 1:
            sizes = ", ".join(code.size(a.size) for a in self.out)
            text += f".unflatten(-1, ({sizes}))"
        return text


@op("embedding")
class Embedding(Op):
    """A vector per token id.

    Shape: tokens [T] -> [T, out].   Gradient: smooth in the table, none in the ids.
    """

    ids: Operand
    out: NewAxis
    classes: Dim | None = None
    init: Init | None = None

    def rows(self) -> Dim:
        """Return the number of rows of the table.

        Raises:
            Fault: if neither the ids nor ``classes`` say how many.
        """
        ids = tensor(self.ids, "ids")
        if ids.dtype != "i64":
            raise Fault("operand-kind", f"`embedding` needs token ids, found {ids}", "ids")
        if self.classes is not None and ids.classes is not None:
            have, want = self.classes.number, ids.classes.number
            if have is not None and want is not None and have < want:
                raise Fault(
                    "vocabulary-mismatch",
                    f"the table has {have} rows for ids of {want} classes",
                    "classes",
                )
        found = self.classes if self.classes is not None else ids.classes
        if found is None:
            raise Fault("missing-argument", "`embedding` needs `classes`, the number of ids", "ids")
        return found

    def type(self) -> TensorType:
        """The ids with a new axis."""
        ids = tensor(self.ids, "ids")
        self.rows()
        return TensorType((*ids.axes, Axis(self.out.name, self.out.size)), "float", ids.batched)

    def gradient(self) -> dict[str, bool]:
        """Ids have none."""
        return {"ids": False}

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """One row per class."""
        init = self.init or "normal(std=0.02)"
        return (ParameterSpec("weight", (self.rows(), self.out.size), init),)

    def module(self) -> str:
        """``nn.Embedding``."""
        return "nn.Embedding"

    def torch(self, code: Code) -> str:
        """A call of the owned table."""
        return f"{code.attribute}({code['ids']})"


@op("weight")
class Weight(Op):
    """A parameter as a value: ``scale = weight(d; init = ones)``; without axes a single number.

    Shape: -> [axes].   Gradient: smooth.
    """

    per_row: ClassVar[bool] = True

    axes: tuple[NewAxis, ...] = ()
    init: Init | None = None
    dtype: str = "float"
    groups: Companion | None = None

    def type(self) -> TensorType:
        """The named axes, without batch."""
        own = tuple(Axis(a.name, a.size) for a in self.axes)
        return TensorType(own, self.dtype, batched=False)

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """The parameter itself, under the equation's name."""
        sizes = tuple(a.size for a in self.axes)
        return (ParameterSpec("", sizes, self.init or "normal(std=0.02)", dtype=self.dtype),)

    def torch(self, code: Code) -> str:
        """The attribute."""
        return code.attribute


@op("buffer")
class Buffer(Op):
    """A tensor that is saved with the model and gets no gradient, such as a selection bias.

    Shape: -> [axes].   Gradient: none.
    """

    per_row: ClassVar[bool] = True

    axes: tuple[NewAxis, ...] = ()
    init: Init | None = None
    saved: bool = True
    dtype: str = "float"

    def type(self) -> TensorType:
        """The named axes, without batch."""
        own = tuple(Axis(a.name, a.size) for a in self.axes)
        return TensorType(own, self.dtype, batched=False)

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """The buffer itself, under the equation's name."""
        sizes = tuple(a.size for a in self.axes)
        return (
            ParameterSpec(
                "",
                sizes,
                self.init or "zeros()",
                trainable=False,
                saved=self.saved,
                dtype=self.dtype,
            ),
        )

    def torch(self, code: Code) -> str:
        """The attribute."""
        return code.attribute
