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

    def along(self) -> list[str]:
        """The names of the axes."""
        return [axis.name for axis in self.reduction().axes]

    def entries(self, tile: Tile) -> int:
        """Return how many entries one row has."""
        count = 1
        for name in self.along():
            count *= tile.size(name)
        return count

    def total(self, tile: Tile, text: str) -> str:
        """Return the sum of a block along the axes, under a name."""
        return tile.summed(tile.full(text, self.type()), self.along())

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

    def tiled(self, tile: Tile) -> str | None:
        """What counts less the logarithm of the sum of the exponentials."""
        found = self.masked(tile)
        if found is None:
            return None
        counted, axes = found
        top = tile.bind(tile.reduced("tl.max", counted, axes, LOWEST), "top")
        base = tile.bind(f"tl.where({top} > {LOWEST}, {top}, 0.0)", "base")
        total = tile.summed(f"tl.exp({counted} - {base})", axes)
        # a row where nothing counts is -inf throughout
        return f"({counted} - {base}) - tl.log(tl.where({total} > 0.0, {total}, 1.0))"

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """``g - exp(y) * sum(g)`` where something counts."""
        y, g = tile.outputs[0], gradients[0] or "0.0"
        if self.where is not None:
            g = tile.bind(f"tl.where({tile['where']}, {g}, 0.0)", "g")
        return {"x": f"{g} - tl.exp({y}) * {self.total(tile, g)}"}


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

    def tiled(self, tile: Tile) -> str | None:
        """Without sorting: an entry counts if the larger ones exceed it by less than 1 in all."""
        x = tile.bind(tile.full(tile["x"], self.type()), "scores")
        (axis,) = self.along()
        above, place = tile.constant(self.type()), tile.name("place")
        tile.loop(place, axis)
        tile.line(f"    {above} = {above} + tl.maximum({tile.entry(x, axis, place)} - {x}, 0.0)")
        support = tile.filled(f"tl.where({above} < 1.0, 1.0, 0.0)", [axis], "0.0")
        support = tile.bind(support, "support")
        size = tile.summed(support, [axis])
        total = tile.summed(f"tl.where({support} > 0.0, {x}, 0.0)", [axis])
        level = tile.bind(f"({total} - 1.0) / {size}", "level")
        return f"tl.where({support} > 0.0, tl.maximum({x} - {level}, 0.0), 0.0)"

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient less its mean, on the entries that are not 0."""
        y, g = tile.outputs[0], gradients[0] or "0.0"
        (axis,) = self.along()
        inside = tile.filled(f"tl.where({y} > 0.0, 1.0, 0.0)", [axis], "0.0")
        inside = tile.bind(tile.full(inside, self.type()), "inside")
        part = f"tl.where({inside} > 0.0, {g}, 0.0)"
        mean = f"{self.total(tile, part)} / {tile.summed(inside, [axis])}"
        return {"x": f"tl.where({inside} > 0.0, {g} - {mean}, 0.0)"}


@op("entmax15")
class Entmax15(_Projection):
    """Probabilities with exact zeros, between `softmax` and `sparsemax`.

    Shape: [*, over] -> [*, over].   Gradient: smooth on the entries that are not 0.
    Source: Peters, Niculae, Martins 2019, arXiv:1905.05702.
    """

    def tiled(self, tile: Tile) -> str | None:
        """Without sorting: the threshold that an entry and the larger ones have is compared."""
        (axis,) = self.along()
        x = tile.bind(tile.full(tile["x"], self.type()), "scores")
        top = tile.bind(tile.reduced("tl.max", x, [axis], LOWEST), "top")
        x = tile.bind(f"({x} - {top}) * 0.5", "scores")
        count, one, two = (tile.constant(self.type()) for _ in range(3))
        place, other = tile.name("place"), tile.name("other")
        tile.loop(place, axis)
        tile.line(f"    {other} = {tile.entry(x, axis, place)}")
        tile.line(f"    {count} = {count} + tl.where({other} >= {x}, 1.0, 0.0)")
        tile.line(f"    {one} = {one} + tl.where({other} >= {x}, {other}, 0.0)")
        tile.line(f"    {two} = {two} + tl.where({other} >= {x}, {other} * {other}, 0.0)")
        level = _threshold(tile, count, one, two)
        support = tile.filled(f"tl.where({level} <= {x}, 1.0, 0.0)", [axis], "0.0")
        support = tile.bind(support, "support")
        inside = tile.bind(f"tl.where({support} > 0.0, {x}, 0.0)", "inside")
        sums = [tile.summed(text, [axis]) for text in (support, inside, f"{inside} * {inside}")]
        root = tile.bind(f"tl.maximum({x} - {_threshold(tile, *sums)}, 0.0)", "root")
        return f"tl.where({support} > 0.0, {root} * {root}, 0.0)"

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient less its mean, both in the measure of the square roots."""
        y, g = tile.outputs[0], gradients[0] or "0.0"
        (axis,) = self.along()
        root = tile.full(tile.filled(f"tl.sqrt({y})", [axis], "0.0"), self.type())
        root = tile.bind(root, "root")
        part = f"tl.where({root} > 0.0, {root} * {g}, 0.0)"
        mean = f"{self.total(tile, part)} / {tile.summed(root, [axis])}"
        return {"x": f"tl.where({root} > 0.0, {root} * ({g} - {mean}), 0.0)"}


def _threshold(tile: Tile, count: str, one: str, two: str) -> str:
    """Return the threshold for so many entries with these sums of themselves and squares."""
    mean = tile.bind(f"{one} / {count}", "mean")
    rest = f"(1.0 - ({two} - {count} * {mean} * {mean})) / {count}"
    return tile.bind(f"{mean} - tl.sqrt(tl.maximum({rest}, 0.0))", "level")


@op("normalize")
class Normalize(AlongRow):
    """``x`` divided by its Euclidean norm along axes.

    Args:
        eps: the least norm to divide by.

    Shape: [*, over] -> [*, over].   Gradient: smooth.
    """

    eps: float = 1e-12

    def tiled(self, tile: Tile) -> str | None:
        """The quotient by the norm."""
        return f"{tile['x']} / tl.maximum({self._norm(tile)}, {self.eps!r})"

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """What is at a right angle to the result, over the norm."""
        y, g = tile.outputs[0], gradients[0] or "0.0"
        norm = self._norm(tile)
        along = f"tl.where({norm} >= {self.eps!r}, {y} * {self.total(tile, f'{g} * {y}')}, 0.0)"
        return {"x": f"({g} - {along}) / tl.maximum({norm}, {self.eps!r})"}

    def _norm(self, tile: Tile) -> str:
        x = tile["x"]
        return tile.bind(f"tl.sqrt({self.total(tile, f'{x} * {x}')})", "norm")

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

    def tiled(self, tile: Tile) -> str | None:
        """The quotient by the root mean square, times the scale."""
        scale = f" * {tile['scale']}" if self.scale is not None else ""
        return f"{tile['x']} * {self._inverse(tile)}{scale}"

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """What is at a right angle to the direction, over the root mean square."""
        inverse, g = self._inverse(tile), gradients[0] or "0.0"
        unit = tile.bind(f"{tile['x']} * {inverse}", "unit")
        found = {}
        if self.scale is not None:
            found["scale"] = f"{g} * {unit}"
            g = tile.bind(f"{g} * {tile['scale']}", "inner")
        mean = f"{self.total(tile, f'{g} * {unit}')} / {self.entries(tile)}"
        return found | {"x": f"({g} - {unit} * ({mean})) * {inverse}"}

    def _inverse(self, tile: Tile) -> str:
        x = tile["x"]
        mean = f"{self.total(tile, f'{x} * {x}')} / {self.entries(tile)}"
        return tile.bind(f"tl.rsqrt({mean} + {self.eps!r})", "inverse")

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

    def tiled(self, tile: Tile) -> str | None:
        """The distance from the mean over the standard deviation."""
        text = self._unit(tile)[0]
        text += f" * {tile['scale']}" if self.scale is not None else ""
        return text + (f" + {tile['bias']}" if self.bias is not None else "")

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """What is at a right angle to the direction and to the mean."""
        (unit, inverse), g = self._unit(tile), gradients[0] or "0.0"
        found = {"bias": g} if self.bias is not None else {}
        if self.scale is not None:
            found["scale"] = f"{g} * {unit}"
            g = tile.bind(f"{g} * {tile['scale']}", "inner")
        count = self.entries(tile)
        mean = tile.bind(f"{self.total(tile, g)} / {count}", "mean")
        along = tile.bind(f"{self.total(tile, f'{g} * {unit}')} / {count}", "along")
        return found | {"x": f"({g} - {mean} - {unit} * {along}) * {inverse}"}

    def _unit(self, tile: Tile) -> tuple[str, str]:
        count, x = self.entries(tile), tile["x"]
        far = tile.bind(f"{x} - {self.total(tile, x)} / {count}", "far")
        mean = f"{self.total(tile, f'{far} * {far}')} / {count}"
        inverse = tile.bind(f"tl.rsqrt({mean} + {self.eps!r})", "inverse")
        return tile.bind(f"{far} * {inverse}", "unit"), inverse

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
