"""Operations that know tokens: shifts, targets, the first or last token, patches of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from tokdsl.ops.axes import (
    arrange,
    free_name,
    is_token,
    names,
    need_integer,
    product,
    starts_argument,
    state_argument,
    valid_argument,
)
from tokdsl.ops.base import (
    AxisRef,
    Code,
    Companion,
    Fault,
    NewAxis,
    Op,
    Operand,
    StateSpec,
    find_axis,
    op,
    tensor,
)
from tokdsl.ops.elementwise import number
from tokdsl.ops.precedence import primary
from tokdsl.ops.shape import ONE, plain_axis
from tokdsl.ops.tile import Tile
from tokdsl.types.dims import Dim, combine
from tokdsl.types.tensors import Axis, Clock, TensorType, promote
from tokdsl.types.time import EVERYTHING, INFINITY, POINTWISE, Flow, Interval


def offset(by: Dim) -> Interval:
    """Return the interval of a shift: a single offset, or anywhere while the size is a symbol."""
    if by.number is None:
        return Interval(-INFINITY, INFINITY, exact=False)
    return Interval(-by.number, -by.number)


@op("at")
class At(Op):
    """One entry along an axis, which is gone; along tokens the first (0) or last (-1) one.

    Padding is skipped: the first entry is the first token.

    Shape: [*, over] -> [*].   Gradient: smooth.
    """

    x: Operand
    over: AxisRef
    index: int
    valid: Companion | None = None

    def type(self) -> TensorType:
        """Return the type without the axis."""
        kind = tensor(self.x, "x")
        axis = find_axis(kind, self.over, "over")
        size = axis.size.number
        if axis.clock is not None and self.index not in (0, -1):
            raise Fault(
                "argument-type",
                f"along tokens only 0 and -1 are known, found {self.index}",
                "index",
            )
        if size is not None and not -size <= self.index < size:
            raise Fault(
                "size-mismatch",
                f"no entry {self.index} along `{self.over}` of size {size}",
                "index",
            )
        return kind.with_axes(tuple(a for a in kind.axes if a.name != self.over))

    def wants_valid(self) -> list[Axis]:
        """Return the token axis, if that is the one that goes."""
        axis = find_axis(self.x, self.over, "over")
        return [axis] if axis.clock is not None else []

    def flows(self) -> dict[str, list[Flow]]:
        """The first token is later than none, the last one earlier than none."""
        flows = super().flows().get("x", [])
        if self.index == 0:
            flows = [
                replace(f, interval=POINTWISE, reads="first") if f.target is None else f
                for f in flows
            ]
        return {"x": flows}

    def repair(self) -> str:
        """How to read no later token."""
        return "the last token is later than the others; take the first: `index = 0`"

    def tiled(self, tile: Tile) -> str | None:
        """The sum of the one entry."""
        kind = tensor(self.x, "x")
        if self.valid is not None or kind.dtype == "bool":
            return None
        zero = "0.0" if kind.is_float else "0"
        x = tile.bind(tile.full(tile["x"], kind), "x")
        return tile.entry(x, self.over, str(self.index % tile.size(self.over)), zero)

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient at the place of the entry."""
        at = f"{tile.index(self.over)} == {self.index % tile.size(self.over)}"
        return {"x": f"tl.where({at}, {gradients[0]}, 0.0)"}

    def torch(self, code: Code) -> str:
        """Return ``select``, or a form that skips padding."""
        dim = code.dim("x", self.over)
        if "valid" in code.operands and find_axis(self.x, self.over, "over").clock is not None:
            function = code.use("edge_token")
            last = "True" if self.index else "False"
            return f"{function}({code['x']}, {code['valid']}, dim={dim}, last={last})"
        if dim == -1:
            return f"{primary(code['x'])}[..., {self.index}]"
        return f"{primary(code['x'])}.select({dim}, {self.index})"


@op("flip")
class Flip(Op):
    """The entries along an axis in reverse order; padding stays where it is.

    Shape: [*, over] -> [*, over].   Gradient: smooth.
    """

    x: Operand
    over: AxisRef
    valid: Companion | None = None

    def type(self) -> TensorType:
        """Return the operand's type."""
        kind = tensor(self.x, "x")
        find_axis(kind, self.over, "over")
        return kind

    def flows(self) -> dict[str, list[Flow]]:
        """Reversed along tokens, the first reads the last."""
        flows = super().flows().get("x", [])
        return {
            "x": [replace(f, interval=EVERYTHING) if f.source == self.over else f for f in flows]
        }

    def repair(self) -> str:
        """How to read no later token."""
        return "a reversed sequence begins with the last token; leave the order as it is"

    def torch(self, code: Code) -> str:
        """Return ``flip``, or a form that leaves padding alone."""
        dim = code.dim("x", self.over)
        if "valid" in code.operands and find_axis(self.x, self.over, "over").clock is not None:
            return f"{code.use('flip_tokens')}({code['x']}, {code['valid']}, dim={dim})"
        return f"{primary(code['x'])}.flip({dim})"


@op("shift")
class Shift(Op):
    """The entries of the token ``by`` places earlier: ``result[t] = x[t - by]``.

    A positive ``by`` reads the past, a negative one the future. Where there is no such token, or
    it belongs to another document, the result is ``fill``. Without ``over`` it goes along the token
    axis.

    Shape: [T, *] -> [T, *].   Gradient: smooth.
    """

    x: Operand
    by: Dim = ONE
    over: AxisRef | None = None
    fill: float = 0.0
    valid: Companion | None = None
    starts: Companion | None = None

    def axis(self) -> Axis:
        """Return the axis along which entries move.

        Raises:
            Fault: if it does not exist.
        """
        kind = tensor(self.x, "x")
        if self.over is not None:
            return find_axis(kind, self.over, "over")
        found = next((axis for axis in kind.axes if axis.clock is not None), None)
        if found is None:
            raise Fault(
                "operand-shape",
                f"`shift` needs a token axis, found {kind}",
                "x",
                help="name the axis: `shift(x; 1, over = d)`",
            )
        return found

    def type(self) -> TensorType:
        """Return the operand's type."""
        self.axis()
        if self.x.dtype == "bool" and self.fill:
            raise Fault("argument-type", "truth values are filled with false (0) only", "fill")
        return replace(tensor(self.x, "x"), classes=None)

    def flows(self) -> dict[str, list[Flow]]:
        """One position is read."""
        own, flows = self.axis().name, super().flows().get("x", [])
        return {
            "x": [replace(f, interval=offset(self.by)) if f.source == own else f for f in flows]
        }

    def repair(self) -> str:
        """How to read no later token."""
        return "a positive `by` reads earlier tokens: `shift(x; by = 1)`"

    def state(self) -> StateSpec | None:
        """The last ``by`` tokens, where the past is read."""
        axis = self.axis()
        if not is_token(axis) or (self.by.number is not None and self.by.number <= 0):
            return None
        sizes = tuple(a.size for a in self.x.axes if a.name != axis.name)
        return StateSpec("ConvolutionState", (self.by,), elements=self.by * product(sizes))

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        dim = code.dim("x", self.axis().name)
        dtype = tensor(self.x, "x").dtype
        value = {"bool": str(bool(self.fill)), "i64": str(int(self.fill))}.get(
            dtype, number(self.fill)
        )
        options = f", fill={value}" if self.fill else ""
        if is_token(self.axis()):
            options += valid_argument(code) + starts_argument(code) + state_argument(code)
        return f"{code.use('shift')}({code['x']}, {code.size(self.by)}, dim={dim}{options})"


@op("recent")
class Recent(Op):
    """The last entries along the token axis, the own one among them, on a new axis: oldest first.

    Where there is no such token, or it belongs to another document, they are 0. A stack of
    `shift`, but of as many as a size says.

    Args:
        place: name and size of the new axis.

    Shape: [T, *] -> [T, place, *].   Gradient: smooth.
    """

    x: Operand
    place: NewAxis
    valid: Companion | None = None
    starts: Companion | None = None

    def tokens(self) -> Axis:
        """Return the token axis.

        Raises:
            Fault: if there is none.
        """
        kind = tensor(self.x, "x")
        found = next((axis for axis in kind.axes if is_token(axis)), None)
        if found is None:
            raise Fault("operand-shape", f"`recent` needs a token axis, found {kind}", "x")
        return found

    def type(self) -> TensorType:
        """Return the operand's type with the new axis behind the tokens."""
        kind, own = tensor(self.x, "x"), self.tokens()
        new, at = free_name(kind, self.place), kind.axes.index(own) + 1
        return replace(kind, axes=(*kind.axes[:at], new, *kind.axes[at:]), classes=None)

    def flows(self) -> dict[str, list[Flow]]:
        """The last tokens are read."""
        own, size = self.tokens().name, self.place.size.number
        interval = Interval(-INFINITY if size is None else 1 - size, 0, exact=size is not None)
        flows = super().flows().get("x", [])
        return {"x": [replace(f, interval=interval) if f.source == own else f for f in flows]}

    def state(self) -> StateSpec | None:
        """The tokens that the next ones still read."""
        kept = self.place.size - 1
        if kept.number == 0:
            return None
        sizes = tuple(a.size for a in self.x.axes if not is_token(a))
        return StateSpec("ConvolutionState", (kept,), elements=kept * product(sizes))

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        options = f"dim={code.dim('x', self.tokens().name)}"
        options += valid_argument(code) + starts_argument(code) + state_argument(code)
        return f"{code.use('recent')}({code['x']}, {code.size(self.place.size)}, {options})"


@op("targets")
class Targets(Op):
    """The ids ``ahead`` positions later: what is to be predicted; -100 where there is none.

    The last token of a document has none.

    Shape: i64[T] -> i64[T].   Gradient: none.
    """

    ids: Operand
    ahead: Dim = ONE
    valid: Companion | None = None
    starts: Companion | None = None

    def type(self) -> TensorType:
        """Return the ids' type."""
        ids = need_integer(self.ids, "ids", "targets")
        if not any(axis.clock is not None for axis in ids.axes):
            raise Fault("operand-shape", f"`targets` needs a token axis, found {ids}", "ids")
        return ids

    def flows(self) -> dict[str, list[Flow]]:
        """One later position is read."""
        flows = super().flows().get("ids", [])
        return {"ids": [replace(f, interval=offset(-self.ahead)) for f in flows]}

    def gradient(self) -> dict[str, bool]:
        """None through ids."""
        return {name: False for name, _ in self.operand_types()}

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        axis = next(axis for axis in self.ids.axes if axis.clock is not None)
        options = f"ahead={code.size(self.ahead)}, dim={code.dim('ids', axis.name)}"
        options += valid_argument(code) + starts_argument(code)
        return f"{code.use('targets_ahead')}({code['ids']}, {options})"


@op("patches")
class Patches(Op):
    """An image as a stream of square patches, row by row; a patch's pixels are one axis.

    The pixels are in the order of a convolution kernel: the other axes first (channels), then
    rows, then columns.

    Args:
        size: pixels along a side of a patch.
        into: name and size of the pixel axis.
        over: the image's height and width, by default its last two axes.

    Shape: [channels, height, width] -> [patches, into].   Gradient: smooth.
    """

    x: Operand
    size: Dim
    into: NewAxis
    over: tuple[AxisRef, ...] = ()

    clock: ClassVar[Clock] = Clock("patches", ordered=False)

    def sides(self) -> tuple[Axis, Axis]:
        """Return height and width.

        Raises:
            Fault: if there are not exactly two, or a patch does not fit.
        """
        x = tensor(self.x, "x")
        named = self.over or tuple(AxisRef(axis.name) for axis in x.axes[-2:])
        if len(named) != 2:
            raise Fault("operand-shape", f"`patches` needs height and width, found {x}", "x")
        sides = tuple(plain_axis(x, name, "patches") for name in named)
        for side in sides:
            length, size = side.size.number, self.size.number
            if length is not None and size is not None and length % size:
                raise Fault(
                    "not-divisible",
                    f"`{side.name}` of {length} pixels is no whole number of patches of {size}",
                    "size",
                )
        return sides[0], sides[1]

    def type(self) -> TensorType:
        """Return patches on a clock of their own, and their pixels."""
        x = tensor(self.x, "x")
        sides = self.sides()
        others = [axis.size for axis in x.axes if axis not in sides]
        pixels = product([*others, self.size, self.size])
        if pixels != self.into.size and pixels.is_number and self.into.size.is_number:
            raise Fault(
                "size-mismatch",
                f"`{self.into.name}` has size {self.into.size}, but a patch has {pixels} entries",
                "into",
            )
        count = self.count()
        length = count if count.is_number else self.clock.length
        patches = Axis("patches", length, self.clock)
        return TensorType((patches, Axis(self.into.name, self.into.size)), x.dtype, x.batched)

    def count(self) -> Dim:
        """Return the number of patches."""
        height, width = self.sides()
        return combine("/", height.size, self.size) * combine("/", width.size, self.size)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function on [channels, height, width]."""
        x, sides = tensor(self.x, "x"), [side.name for side in self.sides()]
        others = [name for name in names(x) if name not in sides]
        text = arrange(code["x"], names(x), [*others, *sides])
        channels = len(others) - x.batched
        if channels != 1:
            first = -2 - channels
            text = (
                f"{primary(text)}.flatten({first}, -3)"
                if channels
                else f"{primary(text)}.unsqueeze(-3)"
            )
        return f"{code.use('patches')}({text}, {code.size(self.size)})"


@op("stream")
class Stream(Op):
    """The entries along an axis as a stream of tokens without order, such as chosen patches.

    Attention reads tokens; this says that entries that stand in no order are some. The tokens come
    first.

    Shape: [*, over] -> [over, *] on a clock of its own.   Gradient: smooth.
    """

    x: Operand
    over: AxisRef

    def type(self) -> TensorType:
        """Return the type with the axis in front and on an unordered clock."""
        x = tensor(self.x, "x")
        axis = plain_axis(x, self.over, "stream")
        if not x.batched:
            raise Fault(
                "operand-shape", f"`stream` needs one stream per example, {x} has no batch", "x"
            )
        tokens = replace(axis, clock=Clock(axis.name, ordered=False))
        return x.with_axes((tokens, *(a for a in x.axes if a is not axis)))

    def torch(self, code: Code) -> str:
        """Return the operand with the axis in front."""
        return arrange(code["x"], names(tensor(self.x, "x")), names(self.type()))


@op("prepend")
class Prepend(Op):
    """A stream with one or several tokens before its own, such as a learned class token.

    ``first`` is one token or has an axis of tokens in front; it is the same for all rows where it
    has no batch. The longer stream has a clock of its own.

    Shape: [T, *], [n, *] -> [n + T, *].   Gradient: smooth.
    """

    x: Operand
    first: Operand

    def axis(self) -> Axis:
        """Return the token axis.

        Raises:
            Fault: if it does not come first.
        """
        x = tensor(self.x, "x")
        if not x.axes or x.axes[0].clock is None or x.axes[0].memory:
            raise Fault("operand-shape", f"`prepend` needs a stream [T, *], found {x}", "x")
        return x.axes[0]

    def count(self) -> Dim:
        """Return how many tokens come first.

        Raises:
            Fault: if they are not like those of the stream.
        """
        x, first = tensor(self.x, "x"), tensor(self.first, "first")
        rest = [(a.name, a.size) for a in x.axes[1:]]
        mine = [(a.name, a.size) for a in first.axes]
        if mine == rest:
            return ONE
        if mine[1:] != rest or is_token(first.axes[0]):
            raise Fault(
                "operand-shape", f"`first` {first} are no tokens like those of {x}", "first"
            )
        return first.axes[0].size

    def type(self) -> TensorType:
        """Return the stream's type on a clock of its own."""
        x, axis, count = tensor(self.x, "x"), self.axis(), self.count()
        assert axis.clock is not None
        clock = Clock(f"{axis.clock.name}_after_{count}", ordered=axis.clock.ordered)
        longer = replace(axis, size=axis.size + count, clock=clock)
        dtype = promote(x.dtype, self.first.dtype)
        return TensorType((longer, *x.axes[1:]), dtype, x.batched or self.first.batched)

    def flows(self) -> dict[str, list[Flow]]:
        """Tokens move back by the number of those that come first."""
        own = self.axis().name
        return {"x": [Flow(own, own, offset(self.count()))]}

    def torch(self, code: Code) -> str:
        """Return ``torch.cat``; tokens without batch are repeated over that of the stream."""
        x, first = code["x"], code["first"]
        if not self.first.batched:
            count, rest = code.size(self.count()), ", -1" * (len(self.x.axes) - 1)
            first = f"{primary(first)}.expand({primary(x)}.shape[0], {count}{rest})"
        elif len(self.first.axes) < len(self.x.axes):
            first = f"{primary(first)}.unsqueeze(1)"
        return f"torch.cat(({first}, {x}), dim=1)"
