"""Operations along an axis that keep it: softmax and its relatives, normalisations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from tokdsl.ops.axes import (
    Reduced,
    Rowwise,
    aligned,
    dim_text,
    masked_axes,
    need_bool,
    need_float,
    reduced,
    single_row,
    token_mask,
)
from tokdsl.ops.base import (
    AxisRef,
    Code,
    Companion,
    Cost,
    Fault,
    Operand,
    broadcast,
    op,
    tensor,
)
from tokdsl.ops.precedence import primary
from tokdsl.ops.tile import Tile
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import EVERYTHING, Flow

#: what an entry that does not count holds in a kernel
LOWEST = 'float("-inf")'


class AlongRow(Rowwise):
    """Base of the operations that go along axes and keep them."""

    x: Operand
    over: tuple[AxisRef, ...]

    def type(self) -> TensorType:
        """Return the operand's type."""
        kind = need_float(self.x, "x", self.op_name)
        if self.reduction().batch:
            raise Fault(
                "argument-type",
                f"`{self.op_name}` goes over axes of one example, not over the batch",
                "over",
            )
        return kind

    def reduction(self) -> Reduced:
        """Return the axes that are gone along."""
        return reduced(tensor(self.x, "x"), self.over)

    def flows(self) -> dict[str, list[Flow]]:
        """Along a token axis every position is read."""
        gone = self.reduction().names
        return {
            name: [Flow(f.source, f.target, EVERYTHING) if f.source in gone else f for f in flows]
            for name, flows in super().flows().items()
            if name != "valid"
        }

    def repair(self) -> str:
        """How to read no later token."""
        return (
            "go over channels instead of tokens, or over an index of earlier tokens: "
            "`where = j <= i`"
        )

    def constant(self) -> bool:
        """Whether the axes have a single entry, so that the result does not depend on it."""
        over = self.reduction()
        return bool(over.axes) and all(axis.size.number == 1 for axis in over.axes)

    def cost(self) -> Cost:
        """An exponential or a few products per entry."""
        return Cost(self.type().size * 5)

    def row(self) -> Axis | None:
        """The one axis of fixed size."""
        return single_row(self.type(), self.reduction())

    def dims(self) -> str:
        """Return the text of the ``dim`` argument."""
        return dim_text(self.reduction().positions(self.type()))

    def one_axis(self) -> None:
        """Check that there is exactly one axis.

        Raises:
            Fault: if there are more.
        """
        if len(self.reduction().axes) != 1:
            raise Fault("argument-type", f"`{self.op_name}` goes over exactly one axis", "over")


class Masked(AlongRow):
    """Base of the softmax family, whose entries can be masked."""

    where: Operand | None = None
    valid: Companion | None = None

    #: torch method without a mask, over one axis
    method: ClassVar[str] = ""
    #: the package's function with a mask
    function: ClassVar[str] = ""

    def type(self) -> TensorType:
        """Return the operand's type, widened by the condition's axes."""
        kind = super().type()
        if self.where is None:
            return kind
        return broadcast(kind, need_bool(self.where, "where", self.op_name)).with_dtype(kind.dtype)

    def wants_valid(self) -> list[Axis]:
        """Return the token axes whose padding changes the result."""
        return [a for a in self.reduction().axes if a.clock is not None and not a.memory]

    def gradient(self) -> dict[str, bool]:
        """Smooth, but over an axis of size one the result is a constant."""
        return {name: name == "x" and not self.constant() for name, _ in self.operand_types()}

    def masked(self, tile: Tile) -> tuple[str, list[str]] | None:
        """Return the block of what counts, -inf elsewhere, and the names of its axes."""
        if self.valid is not None:
            return None
        full, over = self.type(), self.reduction()
        text = tile["x"]
        if self.where is not None:
            text = f"tl.where({tile['where']}, {text}, {LOWEST})"
        axes = [axis.name for axis in over.axes]
        text = tile.filled(tile.full(text, full), axes, LOWEST)
        return tile.bind(text, "counted"), axes

    def torch(self, code: Code) -> str:
        """Return the method, or the masked form where entries do not count."""
        full = self.type()
        tokens = token_mask(code, full, masked_axes(full, self.reduction(), self.valid))
        masks = [aligned(code, "where", full)] if self.where is not None else []
        masks += [tokens] if tokens is not None else []
        if not masks and len(self.reduction().axes) == 1:
            return f"{primary(code['x'])}.{self.method}(dim={self.dims()})"
        mask = masks[0] if len(masks) == 1 else "None"
        if len(masks) > 1:
            mask = f"{code.use('all_masks')}({', '.join(masks)})"
        x = aligned(code, "x", full)
        return f"{code.use(self.function)}({x}, {mask}, dim={self.dims()})"


@op("softmax")
class Softmax(Masked):
    """``exp(x) / sum(exp(x))`` along axes; 0 where the condition does not hold.

    A row in which nothing holds is 0.

    Shape: [*, over] -> [*, over].   Gradient: smooth; none over an axis of size 1, where the
    result is 1 whatever ``x`` is.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {
        "x": {-math.inf: 0.0},
        "where": {0.0: 0.0},
    }
    method: ClassVar[str] = "softmax"
    function: ClassVar[str] = "masked_softmax"

    def tiled(self, tile: Tile) -> str | None:
        """The exponentials over their sum; 0 in a row where nothing counts."""
        found = self.masked(tile)
        if found is None:
            return None
        counted, axes = found
        top = tile.bind(tile.reduced("tl.max", counted, axes, LOWEST), "top")
        base = tile.bind(f"tl.where({top} > {LOWEST}, {top}, 0.0)", "base")
        part = tile.bind(f"tl.exp({counted} - {base})", "part")
        total = tile.bind(tile.reduced("tl.sum", part, axes, "0.0"), "total")
        return f"{part} / tl.where({total} > 0.0, {total}, 1.0)"

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """``y * (g - sum(g * y))``."""
        y, g = tile.outputs[0], gradients[0]
        axes = [axis.name for axis in self.reduction().axes]
        product = tile.full(f"{g} * {y}", self.type())
        mean = tile.bind(tile.reduced("tl.sum", product, axes, "0.0"), "mean")
        return {"x": f"{y} * ({g} - {mean})"}


@op("log_softmax")
class LogSoftmax(Masked):
    """``x - log(sum(exp(x)))`` along axes; -inf where the condition does not hold.

    Shape: [*, over] -> [*, over].   Gradient: smooth; none over an axis of size 1.
    """

    method: ClassVar[str] = "log_softmax"
    function: ClassVar[str] = "masked_log_softmax"
    neutral: ClassVar[float] = float("-inf")
    kernel: ClassVar[str] = (
        "{x} - tl.max({x}, axis=1, keep_dims=True) - tl.log(tl.sum("
        "tl.exp({x} - tl.max({x}, axis=1, keep_dims=True)), axis=1, keep_dims=True))"
    )
    pullback: ClassVar[dict[str, str]] = {
        "x": "{g} - tl.exp({result}) * tl.sum({g}, axis=1, keep_dims=True)"
    }


class _Projection(AlongRow):
    """Base of the sparse relatives of softmax, along one axis."""

    def type(self) -> TensorType:
        """Return the operand's type."""
        self.one_axis()
        return super().type()

    def gradient(self) -> dict[str, bool]:
        """Smooth, but over an axis of size one the result is a constant."""
        return {"x": not self.constant()}

    def torch(self, code: Code) -> str:
        """Return a call of the package's function of the same name."""
        return f"{code.use(self.op_name)}({code['x']}, dim={self.dims()})"


@op("sparsemax")
class Sparsemax(_Projection):
    """The projection onto the probability simplex: probabilities with exact zeros.

    Shape: [*, over] -> [*, over].   Gradient: smooth on the entries that are not 0.
    Source: Martins, Astudillo 2016, arXiv:1602.02068.
    """


@op("entmax15")
class Entmax15(_Projection):
    """Probabilities with exact zeros, between `softmax` and `sparsemax`.

    Shape: [*, over] -> [*, over].   Gradient: smooth on the entries that are not 0.
    Source: Peters, Niculae, Martins 2019, arXiv:1905.05702.
    """


@op("normalize")
class Normalize(AlongRow):
    """``x`` divided by its Euclidean norm along axes.

    Args:
        eps: the least norm to divide by.

    Shape: [*, over] -> [*, over].   Gradient: smooth.
    """

    eps: float = 1e-12
    kernel: ClassVar[str] = (
        "{x} / tl.maximum(tl.sqrt(tl.sum({x} * {x}, axis=1, keep_dims=True)), {eps})"
    )
    pullback: ClassVar[dict[str, str]] = {
        "x": "({g} - {result} * tl.sum({g} * {result}, axis=1, keep_dims=True))"
        " / tl.maximum(tl.sqrt(tl.sum({x} * {x}, axis=1, keep_dims=True)), {eps})"
    }

    def torch(self, code: Code) -> str:
        """Return ``F.normalize``, or the same quotient over several axes."""
        x, dims = code["x"], self.dims()
        if len(self.reduction().axes) == 1:
            return f"F.normalize({x}, dim={dims}, eps={self.eps!r})"
        norm = f"torch.linalg.vector_norm({x}, dim={dims}, keepdim=True)"
        return f"{primary(x)} / {norm}.clamp(min={self.eps!r})"


class Standardised(AlongRow):
    """Base of the normalisations with a learned scale, which has some of the operand's axes."""

    def type(self) -> TensorType:
        """Return the operand's type; scale and bias may not widen it."""
        kind = super().type()
        for name, other in self.operand_types():
            if name != "x":
                wide = broadcast(kind, other, what=f"`x` and `{name}`")
                if len(wide.axes) != len(kind.axes):
                    raise Fault(
                        "operand-shape", f"`{name}` {other} has axes that {kind} has not", name
                    )
                kind = kind.with_dtype(wide.dtype)
        return kind

    def options(self, code: Code) -> str:
        """Return scale, bias, eps and dim as arguments."""
        given = [aligned(code, "x", self.type())]
        for name, _ in self.operand_types():
            if name != "x":
                given.append(f"{name}={aligned(code, name, self.type())}")
        if len(given) > 1 and given[1].startswith("scale="):
            given[1] = given[1].removeprefix("scale=")
        given.append(f"eps={vars(self)['eps']!r}")
        if self.dims() != "-1":
            given.append(f"dim={self.dims()}")
        return ", ".join(given)


@op("rms_normalize")
class RmsNormalize(Standardised):
    """``x / sqrt(mean(x * x) + eps)`` along axes, times ``scale``.

    Computed in float32 and cast back before the scale is applied.

    Shape: [*, over] -> [*, over].   Gradient: smooth.
    Source: Zhang, Sennrich 2019, arXiv:1910.07467.
    """

    scale: Operand | None = None
    eps: float = 1e-6
    kernel: ClassVar[str] = (
        "{x} * tl.rsqrt(tl.sum({x} * {x}, axis=1, keep_dims=True) / {n} + {eps})"
    )
    pullback: ClassVar[dict[str, str]] = {
        "x": "({g} - {result} * tl.sum({g} * {result}, axis=1, keep_dims=True) / {n})"
        " * tl.rsqrt(tl.sum({x} * {x}, axis=1, keep_dims=True) / {n} + {eps})"
    }

    def row(self) -> Axis | None:
        """The row, where there is no scale: a product of its own in a kernel."""
        return super().row() if self.scale is None else None

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        return f"{code.use('rms_normalize')}({self.options(code)})"


@op("layer_normalize")
class LayerNormalize(Standardised):
    """``(x - mean(x)) / sqrt(variance(x) + eps)`` along axes, times ``scale``, plus ``bias``.

    Shape: [*, over] -> [*, over].   Gradient: smooth; none to ``x`` over an axis of size 1.
    Source: Ba, Kiros, Hinton 2016, arXiv:1607.06450.
    """

    scale: Operand | None = None
    bias: Operand | None = None
    eps: float = 1e-5

    def gradient(self) -> dict[str, bool]:
        """Smooth; the mean of one entry is the entry, so nothing is left of it."""
        return super().gradient() | {"x": not self.constant()}

    def torch(self, code: Code) -> str:
        """Return ``F.layer_norm`` over the last axes, else a call of the package's function."""
        kind, over = self.type(), self.reduction()
        last = kind.axes[len(kind.axes) - len(over.axes) :]
        own = [a.name for a in last]
        fits = over.axes == last and all(
            name == "x"
            or (
                ([a.name for a in other.axes], other.batched) == (own, False)
                and other.dtype == self.x.dtype
            )
            for name, other in self.operand_types()
        )
        if not fits or any(axis.clock is not None for axis in last):
            return f"{code.use('layer_normalize')}({self.options(code)})"
        sizes = ", ".join(code.size(axis.size) for axis in last) + "," * (len(last) == 1)
        extra = "".join(
            f", {code[name] if name in code.operands else None}"
            for name in ("scale", "bias")
            if name in code.operands or "bias" in code.operands
        )
        return f"F.layer_norm({code['x']}, ({sizes}){extra}, eps={self.eps!r})"
