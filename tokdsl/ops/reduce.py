"""Reductions over axes, the batch and tokens, and running totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from tokdsl.ops.axes import (
    Reduced,
    Rowwise,
    aligned,
    dim_text,
    is_token,
    masked_axes,
    need_bool,
    need_float,
    product,
    reduced,
    single_row,
    starts_argument,
    state_argument,
    token_mask,
    valid_argument,
)
from tokdsl.ops.base import (
    AxisRef,
    Code,
    Companion,
    Cost,
    Fault,
    Op,
    Operand,
    StateSpec,
    broadcast,
    find_axis,
    op,
    tensor,
)
from tokdsl.ops.cast import cast_text
from tokdsl.ops.precedence import primary
from tokdsl.ops.tile import Tile
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import PAST, Flow


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

    def row(self) -> Axis | None:
        """The one axis of fixed size that is reduced."""
        return single_row(self.full(), self.reduction())

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
    kernel: ClassVar[str] = ""


@op("mean")
class Mean(Reduction):
    """The mean over axes; 0 where nothing counts.

    Shape: [*, over] -> [*].   Gradient: smooth.
    """

    takes: ClassVar[str] = "any"
    method: ClassVar[str] = "mean"
    averages: ClassVar[bool] = True
    kernel: ClassVar[str] = "tl.sum({x}, axis=1, keep_dims=True) / {n}"
    pullback: ClassVar[dict[str, str]] = {"x": "{g} / {n}"}

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
    neutral: ClassVar[float] = float("-inf")
    kernel: ClassVar[str] = "tl.max({x}, axis=1, keep_dims=True)"
    pullback: ClassVar[dict[str, str]] = {
        "x": "tl.where({x} == {result}, {g}, 0.0)"
        " / tl.sum(tl.where({x} == {result}, 1.0, 0.0), axis=1, keep_dims=True)"
    }


@op("min")
class Min(Reduction):
    """The smallest entry over axes.

    Shape: [*, over] -> [*].   Gradient: to the smallest entries, shared if several are equal.
    """

    method: ClassVar[str] = "amin"
    filler: ClassVar[tuple[str, str]] = ('float("inf")', "torch.iinfo(torch.int64).max")
    neutral: ClassVar[float] = float("inf")
    kernel: ClassVar[str] = "tl.min({x}, axis=1, keep_dims=True)"
    pullback: ClassVar[dict[str, str]] = Max.pullback


@op("prod")
class Prod(Reduction):
    """The product over axes.

    Shape: [*, over] -> [*].   Gradient: smooth.
    """

    filler: ClassVar[tuple[str, str]] = ("1.0", "1")

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


@op("all")
class All(Reduction):
    """Whether all entries are true.

    Shape: bool[*, over] -> bool[*].   Gradient: none.
    """

    takes: ClassVar[str] = "bool"
    method: ClassVar[str] = "all"
    filler: ClassVar[tuple[str, str]] = ("True", "True")


@op("logsumexp")
class LogSumExp(Reduction):
    """``log(sum(exp(x)))`` without overflow.

    Shape: [*, over] -> [*].   Gradient: smooth.
    """

    takes: ClassVar[str] = "float"
    filler: ClassVar[tuple[str, str]] = ('float("-inf")', "")
    neutral: ClassVar[float] = float("-inf")
    kernel: ClassVar[str] = (
        "tl.max({x}, axis=1, keep_dims=True) + tl.log(tl.sum("
        "tl.exp({x} - tl.max({x}, axis=1, keep_dims=True)), axis=1, keep_dims=True))"
    )
    pullback: ClassVar[dict[str, str]] = {"x": "{g} * tl.exp({x} - {result})"}

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
    kernel: ClassVar[str] = "tl.sqrt(tl.sum({x} * {x}, axis=1, keep_dims=True))"
    pullback: ClassVar[dict[str, str]] = {"x": "tl.where({result} > 0, {g} * {x} / {result}, 0.0)"}

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


class ArgReduction(Reduction):
    """Base of `ArgMax` and `ArgMin`: a discrete choice along one axis."""

    decision: ClassVar[bool] = True

    def reduction(self) -> Reduced:
        """Return the one axis."""
        over = super().reduction()
        if len(over.axes) != 1 or over.batch:
            raise Fault("argument-type", f"`{self.op_name}` goes over exactly one axis", "over")
        return over

    def type(self) -> TensorType:
        """Return indices into the axis that goes."""
        full, over = self.full(), self.reduction()
        return TensorType(over.kept(full), "i64", full.batched, classes=over.axes[0].size)

    def choice(self) -> TensorType:
        """The indices."""
        return self.type()

    def torch(self, code: Code) -> str:
        """Return the method call on the operand, in a call that keeps the choice."""
        text = super().torch(code)
        return f"{code.use('decided')}({text}, {code.decision})" if code.decision else text


@op("argmax")
class ArgMax(ArgReduction):
    """The index of the largest entry along one axis, the lowest index if several are equal.

    Shape: [*, over] -> i64[*].   Gradient: none.
    """

    method: ClassVar[str] = "argmax"
    filler: ClassVar[tuple[str, str]] = Max.filler


@op("argmin")
class ArgMin(ArgReduction):
    """The index of the smallest entry along one axis, the lowest index if several are equal.

    Shape: [*, over] -> i64[*].   Gradient: none.
    """

    method: ClassVar[str] = "argmin"
    filler: ClassVar[tuple[str, str]] = Min.filler


# ------------------------------------------------------------------ running totals


class Running(Op):
    """Base of the running totals along one axis.

    Over tokens they read the past only, and begin anew with every document.
    """

    x: Operand
    over: AxisRef
    valid: Companion | None = None
    starts: Companion | None = None

    #: torch expression over the operand along a plain axis
    suffix: ClassVar[str] = ""
    #: the package's function along tokens
    function: ClassVar[str] = ""

    def type(self) -> TensorType:
        """Return the operand's type."""
        kind = tensor(self.x, "x")
        find_axis(kind, self.over, "over")
        if kind.dtype == "bool":
            raise Fault(
                "operand-kind",
                f"`{self.op_name}` needs numbers, found {kind}",
                "x",
                help="convert first: `int(x)`",
            )
        return kind

    def axis(self) -> Axis:
        """Return the axis along which the total runs."""
        return find_axis(self.x, self.over, "over")

    def flows(self) -> dict[str, list[Flow]]:
        """All positions up to the own one."""
        flows = super().flows().get("x", [])
        return {
            "x": [Flow(f.source, f.target, PAST) if f.source == self.over else f for f in flows]
        }

    def cost(self) -> Cost:
        """One FLOP per entry."""
        return Cost(self.x.size)

    def state(self) -> StateSpec | None:
        """The total so far, for totals along tokens."""
        if not is_token(self.axis()):
            return None
        sizes = tuple(a.size for a in self.x.axes if a.name != self.over)
        return StateSpec("RecurrentState", elements=product(sizes))

    def torch(self, code: Code) -> str:
        """Return torch's own form, or a function that knows padding and state along tokens."""
        dim = code.dim("x", self.over)
        if not is_token(self.axis()):
            return f"{primary(code['x'])}.{self.suffix.format(dim=dim)}"
        rest = valid_argument(code) + starts_argument(code) + state_argument(code)
        return f"{code.use(self.function)}({code['x']}, dim={dim}{rest})"


@op("cumsum")
class CumulativeSum(Running):
    """The running sum along an axis, the own entry included.

    Shape: [*, over] -> [*, over].   Gradient: smooth.
    """

    suffix: ClassVar[str] = "cumsum(dim={dim})"
    function: ClassVar[str] = "cumulative_sum"


@op("cumulative_product")
class CumulativeProduct(Running):
    """The running product along an axis, the own entry included.

    Shape: [*, over] -> [*, over].   Gradient: smooth.
    """

    suffix: ClassVar[str] = "cumprod(dim={dim})"
    function: ClassVar[str] = "cumulative_product"


@op("cumulative_max")
class CumulativeMax(Running):
    """The largest entry so far along an axis, the own entry included.

    Shape: [*, over] -> [*, over].   Gradient: to the largest entry so far.
    """

    suffix: ClassVar[str] = "cummax(dim={dim}).values"
    function: ClassVar[str] = "cumulative_max"
