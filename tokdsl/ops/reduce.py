"""Reductions over axes, the batch and tokens."""

from __future__ import annotations

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
from tokdsl.ops.cast import cast_text
from tokdsl.ops.precedence import primary
from tokdsl.ops.tile import NotTiled, Tile
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import Flow


class Reduction(Rowwise):
    """Base of the reductions.

    ``over`` names axes; ``*`` is the batch and all outer axes, ``batch`` the batch; without it
    everything is reduced to a scalar. Padding never counts: ``valid`` is filled in by the compiler
    where tokens or examples are reduced. ``where`` says which entries count.
    """

    x: Operand
    over: tuple[AxisRef, ...] | None = None
    where: Operand | None = None
    valid: Companion | None = None

    #: torch method
    method: ClassVar[str] = ""
    #: what an entry that does not count is replaced by, for floats and for integers
    filler: ClassVar[tuple[str, str]] = ("0.0", "0")
    #: "float", "bool" or "number": what it takes
    takes: ClassVar[str] = "number"

    def full(self) -> TensorType:
        """Return the type that is reduced: the operand, widened by the condition's axes."""
        kind = tensor(self.x, "x")
        if self.takes == "float":
            need_float(kind, "x", self.op_name)
        elif self.takes == "bool":
            need_bool(kind, "x", self.op_name)
        elif kind.dtype == "bool" and self.takes == "number":
            raise Fault("operand-kind", f"`{self.op_name}` needs numbers, found {kind}", "x")
        if self.where is None:
            return kind
        other = {"max": "maximum", "min": "minimum"}.get(self.op_name)
        help = f"the {self.op_name} of two values is `{other}(x, y)`" if other else None
        need_bool(self.where, "where", self.op_name, help)
        return broadcast(kind, self.where).with_dtype(kind.dtype)

    def reduction(self) -> Reduced:
        """Return the axes that go."""
        return reduced(self.full(), self.over)

    def result_dtype(self) -> str:
        """Return the dtype of the result."""
        return self.x.dtype

    def type(self) -> TensorType:
        """Return the operand's type without the reduced axes."""
        full, over = self.full(), self.reduction()
        return TensorType(over.kept(full), self.result_dtype(), full.batched and not over.batch)

    def wants_valid(self) -> list[Axis]:
        """Return the token axes whose padding changes the result."""
        full = self.full()
        over = self.reduction()
        tokens = [axis for axis in full.axes if axis.clock is not None and not axis.memory]
        return [axis for axis in tokens if axis.name in over.names] or (
            tokens[:1] if over.batch and full.batched else []
        )

    def flows(self) -> dict[str, list[Flow]]:
        """A token axis that goes is read everywhere; validity reads no token."""
        return {name: flows for name, flows in super().flows().items() if name != "valid"}

    def repair(self) -> str:
        """How to read no later token."""
        return (
            "take a running total over the past, such as `cumsum` or `ema`, or reduce an index of "
            "earlier tokens: `where = j <= i`"
        )

    def gradient(self) -> dict[str, bool]:
        """Smooth in ``x`` unless the result is discrete."""
        smooth = self.x.is_float and self.type().is_float
        return {name: name == "x" and smooth for name, _ in self.operand_types()}

    def cost(self) -> Cost:
        """One FLOP per entry."""
        return Cost(self.full().size)

    def along(self) -> list[str]:
        """The names of the axes that are reduced."""
        return [axis.name for axis in self.reduction().axes]

    def mask(self, code: Code) -> tuple[str | None, bool]:
        """Return the text of the mask, if any, and whether it may be None at run time."""
        full = self.full()
        tokens = token_mask(code, full, masked_axes(full, self.reduction(), self.valid))
        if self.where is None:
            return tokens, True
        condition = aligned(code, "where", full)
        if tokens is None:
            return condition, False
        return f"{code.use('all_masks')}({condition}, {tokens})", False

    def source(self, code: Code) -> str:
        """Return the text of what is reduced: the operand, entries that do not count replaced."""
        mask, optional = self.mask(code)
        text = aligned(code, "x", self.full()) if self.where is not None else code["x"]
        if mask is None:
            return text
        other = self.filler[0] if self.x.is_float else self.filler[1]
        if optional:
            return f"{code.use('fill_masked')}({text}, {mask}, {other})"
        return f"torch.where({mask}, {text}, {other})"

    def counted(self, tile: Tile, neutral: str) -> tuple[str, list[str]] | None:
        """Return the block of what counts, ``neutral`` elsewhere, and the names of its axes.

        None if the batch or padding takes part.
        """
        full, over = self.full(), self.reduction()
        if over.batch or self.valid is not None or not over.axes:
            return None
        text = tile["x"]
        if self.x.dtype == "bool":
            text = f"{primary(text)}.to(tl.int32)"
        if self.where is not None:
            text = f"tl.where({tile['where']}, {text}, {neutral})"
        axes = [axis.name for axis in over.axes]
        return tile.bind(tile.filled(tile.full(text, full), axes, neutral), "counted"), axes

    def in_row(self, tile: Tile) -> str | None:
        """Return the sum within a row, for a reduction over all rows; None if some do not count."""
        if self.where is not None or not self.reduction().batch:
            return None
        full, axes = self.full(), [axis.name for axis in self.reduction().axes]
        small = [name for name in axes if tile.dim(name) != 0]
        text = f"{primary(tile['x'])}.to(tl.int32)" if self.x.dtype == "bool" else tile["x"]
        if not small:
            return text
        text = tile.bind(tile.full(text, full), "counts")
        return tile.reduced("tl.sum", text, small, "0.0" if self.x.is_float else "0")

    def number(self, tile: Tile) -> str:
        """Return how many entries count, at least one."""
        if self.where is None:
            count = 1
            for name in self.along():
                count *= tile.size(name)
            return str(count)
        ones = tile.full(f"tl.where({tile['where']}, 1.0, 0.0)", self.full())
        return f"tl.maximum({tile.summed(ones, self.along())}, 1.0)"

    def spread(self, tile: Tile, text: str) -> str:
        """Return a gradient of the result over the entries that count."""
        return f"tl.where({tile['where']}, {text}, 0.0)" if self.where is not None else text

    def torch(self, code: Code) -> str:
        """Return the method call on the operand."""
        return self.call(f"{primary(self.source(code))}.{self.method}", "")

    def call(self, function: str, first: str) -> str:
        """Return a call with the reduced dimensions; none if everything goes."""
        full, over = self.full(), self.reduction()
        arguments = [first] if first else []
        if not over.everything(full):
            arguments.append(f"dim={dim_text(over.positions(full))}")
        return f"{function}({', '.join(arguments)})"


@op("sum")
class Sum(Reduction):
    """The sum over axes; of truth values, how many are true.

    Shape: [*, over] -> [*].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}
    method: ClassVar[str] = "sum"
    takes: ClassVar[str] = "any"

    def tiled(self, tile: Tile) -> str | None:
        """The sum over the dimensions."""
        zero = "0.0" if self.x.is_float else "0"
        found = self.counted(tile, zero)
        return None if found is None else tile.reduced("tl.sum", *found, zero)

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient of the sum, for every entry that counts."""
        return {"x": tile.full(self.spread(tile, gradients[0] or "0.0"), self.full())}

    def accumulated(self, tile: Tile) -> str | None:
        """The sum of each row."""
        return self.in_row(tile)

    def accumulated_gradient(self, tile: Tile, gradient: str) -> Mapping[str, str]:
        """The gradient of the sum."""
        return {"x": tile.full(gradient, self.full())}

    def result_dtype(self) -> str:
        """Truth values are counted."""
        return "i64" if self.x.dtype == "bool" else self.x.dtype


@op("count")
class Count(Sum):
    """How many entries are true.

    Shape: bool[*, over] -> i64[*].   Gradient: none.
    """

    takes: ClassVar[str] = "bool"


@op("mean")
class Mean(Reduction):
    """The mean over axes; 0 where nothing counts.

    Shape: [*, over] -> [*].   Gradient: smooth.
    """

    takes: ClassVar[str] = "any"
    method: ClassVar[str] = "mean"
    averages: ClassVar[bool] = True

    def tiled(self, tile: Tile) -> str | None:
        """The sum over the number of entries that count."""
        found = self.counted(tile, "0.0" if self.x.is_float else "0")
        if found is None:
            return None
        total = tile.reduced("tl.sum", *found, "0.0" if self.x.is_float else "0")
        return f"{total}.to(tl.float32) / {self.number(tile)}"

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient of the mean over the number of entries, for every entry that counts."""
        share = self.spread(tile, f"{gradients[0]} / {self.number(tile)}")
        return {"x": tile.full(share, self.full())}

    def result_dtype(self) -> str:
        """Integers give floats."""
        return self.x.dtype if self.x.is_float else "float"

    def accumulated(self, tile: Tile) -> str | None:
        """The sum of each row."""
        text = self.in_row(tile)
        return text if text is None or self.x.is_float else f"{primary(text)}.to(tl.float32)"

    def accumulated_gradient(self, tile: Tile, gradient: str) -> Mapping[str, str]:
        """The gradient of the mean, divided already."""
        return {"x": tile.full(gradient, self.full())}

    def torch(self, code: Code) -> str:
        """Return the mean, or the masked mean where some entries do not count."""
        mask, _ = self.mask(code)
        text = aligned(code, "x", self.full()) if self.where is not None else code["x"]
        if not self.x.is_float:
            text = cast_text(code, text, "float")
        if mask is None:
            return self.call(f"{primary(text)}.mean", "")
        return self.call(code.use("masked_mean"), f"{text}, {mask}")


@op("max")
class Max(Reduction):
    """The largest entry over axes.

    Shape: [*, over] -> [*].   Gradient: to the largest entries, shared if several are equal.
    """

    method: ClassVar[str] = "amax"
    filler: ClassVar[tuple[str, str]] = ('float("-inf")', "torch.iinfo(torch.int64).min")

    def tiled(self, tile: Tile) -> str | None:
        """The largest entry over the dimensions."""
        found = self.counted(tile, self.lowest())
        return None if found is None else tile.reduced("tl.max", *found, self.lowest())

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """An equal share of the gradient for each of the largest entries."""
        return _shared(self, tile, gradients[0] or "0.0")

    def lowest(self) -> str:
        """Return what no entry is beyond."""
        return 'float("-inf")' if self.x.is_float else "-9223372036854775808"


@op("min")
class Min(Reduction):
    """The smallest entry over axes.

    Shape: [*, over] -> [*].   Gradient: to the smallest entries, shared if several are equal.
    """

    method: ClassVar[str] = "amin"
    filler: ClassVar[tuple[str, str]] = ('float("inf")', "torch.iinfo(torch.int64).max")

    def tiled(self, tile: Tile) -> str | None:
        """The smallest entry over the dimensions."""
        found = self.counted(tile, self.lowest())
        return None if found is None else tile.reduced("tl.min", *found, self.lowest())

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """An equal share of the gradient for each of the smallest entries."""
        return _shared(self, tile, gradients[0] or "0.0")

    def lowest(self) -> str:
        """Return what no entry is beyond."""
        return 'float("inf")' if self.x.is_float else "9223372036854775807"


def _shared(op: Max | Min, tile: Tile, g: str) -> dict[str, str] | None:
    found = op.counted(tile, op.lowest())
    if found is None:
        return None
    counted, axes = found
    hit = tile.filled(f"tl.where({counted} == {tile.outputs[0]}, 1.0, 0.0)", axes, "0.0")
    hit = tile.bind(hit, "hit")
    return {"x": op.spread(tile, f"{g} * {hit} / {tile.summed(hit, axes)}")}


@op("prod")
class Prod(Reduction):
    """The product over axes.

    Shape: [*, over] -> [*].   Gradient: smooth.
    """

    filler: ClassVar[tuple[str, str]] = ("1.0", "1")

    def tiled(self, tile: Tile) -> str | None:
        """One factor after the other."""
        one, zero = ("1.0", "0.0") if self.x.is_float else ("1", "0")
        found = self.counted(tile, one)
        if found is None or len(found[1]) != 1:
            return None
        counted, (axis,) = found
        total, place = tile.constant(self.type(), one), tile.name("place")
        tile.loop(place, axis)
        tile.line(f"    {total} = {total} * {tile.entry(counted, axis, place, zero)}")
        return total

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The product of all other entries: right where some are 0."""
        found = self.counted(tile, "1.0")
        if found is None or len(found[1]) != 1:
            return None
        counted, (axis,) = found
        others, place = tile.constant(self.full(), "1.0"), tile.name("place")
        tile.loop(place, axis)
        factor = f"tl.where({tile.index(axis)} == {place}, 1.0, "
        tile.line(f"    {others} = {others} * {factor}{tile.entry(counted, axis, place)})")
        return {"x": self.spread(tile, f"{gradients[0]} * {others}")}

    def torch(self, code: Code) -> str:
        """Return one product per axis, the last axis first: torch takes one at a time."""
        full, over = self.full(), self.reduction()
        text = primary(self.source(code))
        if over.everything(full):
            return f"{text}.prod()"
        rank = len(full.axes) + full.batched
        for dim in sorted((d % rank for d in over.positions(full)), reverse=True):
            text += f".prod(dim={dim})"
        return text


@op("any")
class Any(Reduction):
    """Whether any entry is true.

    Shape: bool[*, over] -> bool[*].   Gradient: none.
    """

    takes: ClassVar[str] = "bool"
    method: ClassVar[str] = "any"
    filler: ClassVar[tuple[str, str]] = ("False", "False")

    def tiled(self, tile: Tile) -> str | None:
        """The largest truth value."""
        found = self.counted(tile, "0")
        return None if found is None else f"{tile.reduced('tl.max', *found, '0')} > 0"


@op("all")
class All(Reduction):
    """Whether all entries are true.

    Shape: bool[*, over] -> bool[*].   Gradient: none.
    """

    takes: ClassVar[str] = "bool"
    method: ClassVar[str] = "all"
    filler: ClassVar[tuple[str, str]] = ("True", "True")

    def tiled(self, tile: Tile) -> str | None:
        """The smallest truth value."""
        found = self.counted(tile, "1")
        return None if found is None else f"{tile.reduced('tl.min', *found, '1')} > 0"


@op("logsumexp")
class LogSumExp(Reduction):
    """``log(sum(exp(x)))`` without overflow.

    Shape: [*, over] -> [*].   Gradient: smooth.
    """

    takes: ClassVar[str] = "float"
    filler: ClassVar[tuple[str, str]] = ('float("-inf")', "")

    def tiled(self, tile: Tile) -> str | None:
        """The largest entry plus the logarithm of the sum of what the others are beside it."""
        found = self.counted(tile, self.filler[0])
        if found is None:
            return None
        counted, axes = found
        top = tile.bind(tile.reduced("tl.max", counted, axes, self.filler[0]), "top")
        base = tile.bind(f"tl.where({top} > {self.filler[0]}, {top}, 0.0)", "base")
        total = tile.summed(f"tl.exp({counted} - {base})", axes)
        return f"{base} + tl.log({total})"

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The softmax."""
        y = tile.outputs[0]
        base = tile.bind(f"tl.where({y} > {self.filler[0]}, {y}, 0.0)", "base")
        return {"x": self.spread(tile, f"{gradients[0]} * tl.exp({tile['x']} - {base})")}

    def cost(self) -> Cost:
        """An exponential per entry."""
        return Cost(self.full().size * 4)

    def torch(self, code: Code) -> str:
        """Return the method with its dimensions, which torch wants always."""
        full = self.full()
        dims = self.reduction().positions(full)
        return f"{primary(self.source(code))}.logsumexp(dim={dim_text(dims)})"


@op("norm")
class Norm(Reduction):
    """The Euclidean norm over axes.

    Shape: [*, over] -> [*].   Gradient: smooth but at 0, where it is 0.
    """

    takes: ClassVar[str] = "float"

    def tiled(self, tile: Tile) -> str | None:
        """The root of the sum of squares."""
        found = self.counted(tile, "0.0")
        if found is None:
            return None
        counted, axes = found
        return f"tl.sqrt({tile.summed(f'{counted} * {counted}', axes)})"

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The direction; nothing at 0."""
        y = tile.outputs[0]
        safe = f"tl.where({y} > 0.0, {y}, 1.0)"
        slope = f"tl.where({y} > 0.0, {gradients[0]} * {tile['x']} / {safe}, 0.0)"
        return {"x": self.spread(tile, slope)}

    def torch(self, code: Code) -> str:
        """Return the vector norm."""
        return self.call("torch.linalg.vector_norm", self.source(code))


@op("variance")
class Variance(Reduction):
    """The mean squared distance from the mean.

    Args:
        correction: subtracted from the count (1 for the unbiased estimate).

    Shape: [*, over] -> [*].   Gradient: smooth.
    """

    correction: int = 0
    takes: ClassVar[str] = "float"

    def cost(self) -> Cost:
        """Difference, square and sum."""
        return Cost(self.full().size * 4)

    def tiled(self, tile: Tile) -> str | None:
        """The sum of squared distances over the number of entries less the correction."""
        far = self._far(tile)
        if far is None:
            return None
        return f"{tile.summed(f'{far} * {far}', self.along())} / {self._divisor(tile)}"

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """Twice the distance from the mean, over the same."""
        far = self._far(tile)
        if far is None:
            return None
        return {"x": f"2.0 * {gradients[0]} * {far} / {self._divisor(tile)}"}

    def _far(self, tile: Tile) -> str | None:
        found = self.counted(tile, "0.0")
        if found is None:
            return None
        counted, axes = found
        far = f"{counted} - {tile.summed(counted, axes)} / {self.number(tile)}"
        if self.where is not None:
            far = f"tl.where({tile['where']}, {far}, 0.0)"
        return tile.bind(tile.filled(far, axes, "0.0"), "far")

    def _divisor(self, tile: Tile) -> str:
        number = self.number(tile)
        if self.where is not None:
            return f"tl.maximum({number} - {self.correction}, 1.0)" if self.correction else number
        if int(number) <= self.correction:
            raise NotTiled("there is no variance of so few entries")
        return str(int(number) - self.correction)

    def torch(self, code: Code) -> str:
        """Return ``var``, or the masked variance where some entries do not count."""
        mask, _ = self.mask(code)
        if mask is None:
            text = self.call(f"{primary(self.source(code))}.var", "")
            joint = "" if text.endswith("()") else ", "
            return f"{text[:-1]}{joint}correction={self.correction})"
        x = aligned(code, "x", self.full()) if self.where is not None else code["x"]
        text = self.call(code.use("masked_variance"), f"{x}, {mask}")
        return f"{text[:-1]}, correction={self.correction})" if self.correction else text
