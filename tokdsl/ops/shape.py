"""Operations that move, split, join and rename axes, and shifts along tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from tokdsl.ops.axes import (
    aligned,
    arrange,
    free_name,
    is_token,
    names,
    product,
)
from tokdsl.ops.base import (
    AxisRef,
    Code,
    Fault,
    NewAxis,
    Op,
    Operand,
    broadcast,
    find_axis,
    op,
    tensor,
)
from tokdsl.ops.elementwise import number
from tokdsl.ops.precedence import primary
from tokdsl.ops.tile import Tile
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, TensorType, promote
from tokdsl.types.time import EVERYTHING, Flow

ZERO = Dim.of(0)
ONE = Dim.of(1)


def plain_axis(kind: TensorType, name: str, operation: str) -> Axis:
    """Return an axis that holds no tokens.

    Raises:
        Fault: if it does not exist or its length is not fixed.
    """
    axis = find_axis(kind, name, "over")
    if is_token(axis) or axis.pack:
        raise Fault(
            "operand-shape", f"`{operation}` cannot go along the token axis `{name}`", "over"
        )
    return axis


def _moved(
    tile: Tile, text: str, old: TensorType, new: TensorType, gone: Sequence[str], hit: str
) -> str:
    """Return a block with some dimensions for others, of one number of entries.

    Where a plain reshape would not do, each entry is the sum of those for which ``hit`` holds.
    """
    moved = tile.moved(text, old, new)
    if moved is not None:
        return moved
    axes = (*new.axes, *(a for a in old.axes if a.name in gone))
    both = TensorType(axes, old.dtype, old.batched or new.batched)
    zero = "0.0" if old.is_float else "0"
    if old.dtype == "bool":
        text = f"{primary(text)}.to(tl.int32)"
    picked = tile.full(f"tl.where({hit}, {text}, {zero})", both)
    total = tile.reduced("tl.sum", tile.bind(picked, "picked"), gone, zero)
    return f"{total} != 0" if old.dtype == "bool" else total


def _flat(tile: Tile, axes: Sequence[tuple[str, int]]) -> str:
    """Return the place of an entry along several axes as one, the last one running fastest."""
    text = tile.index(axes[0][0])
    for name, size in axes[1:]:
        text = f"({text}) * {size} + {tile.index(name)}"
    return text


@op("split")
class Split(Op):
    """One axis as several, the last one running fastest.

    Shape: [*, over] -> [*, into], over = product of into.   Gradient: smooth.
    """

    moves: ClassVar[bool] = True

    x: Operand
    over: AxisRef
    into: tuple[NewAxis, ...]

    def type(self) -> TensorType:
        """Return the type with the axis replaced."""
        kind = tensor(self.x, "x")
        axis = plain_axis(kind, self.over, "split")
        total = product([new.size for new in self.into])
        if total != axis.size and total.is_number and axis.size.is_number:
            raise Fault(
                "not-divisible",
                f"`{self.over}` has size {axis.size}, but the new axes hold {total} = "
                + " * ".join(str(new.size) for new in self.into),
                "into",
            )
        new = tuple(free_name(kind, n, without=(self.over,)) for n in self.into)
        _distinct(self.into)
        at = kind.position(self.over)
        return replace(kind, axes=(*kind.axes[:at], *new, *kind.axes[at + 1 :]))

    def tiled(self, tile: Tile) -> str | None:
        """The same entries in other dimensions."""
        kind = tensor(self.x, "x")
        return _moved(tile, tile["x"], kind, self.type(), [self.over], self._hit(tile))

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient back in the dimension that was split."""
        gone = [new.name for new in self.into]
        text = gradients[0] or "0.0"
        kind = tensor(self.x, "x")
        return {"x": _moved(tile, text, self.type(), kind, gone, self._hit(tile))}

    def _hit(self, tile: Tile) -> str:
        own = [(new.name, tile.size(new.name)) for new in self.into]
        return f"({tile.index(self.over)} == {_flat(tile, own)})"

    def torch(self, code: Code) -> str:
        """Return ``unflatten``."""
        sizes = ", ".join(code.size(new.size) for new in self.into) + "," * (len(self.into) == 1)
        return f"{primary(code['x'])}.unflatten({code.dim('x', self.over)}, ({sizes}))"


def _distinct(axes: tuple[NewAxis, ...]) -> None:
    for i, axis in enumerate(axes):
        if any(axis.name == other.name for other in axes[:i]):
            raise Fault("axis-taken", f"two new axes are named `{axis.name}`", "into")


@op("merge")
class Merge(Op):
    """Several axes as one, the last one running fastest.

    Shape: [*, over] -> [*, into], into = product of over.   Gradient: smooth.
    """

    moves: ClassVar[bool] = True

    x: Operand
    over: tuple[AxisRef, ...]
    into: NewAxis

    def type(self) -> TensorType:
        """Return the type with the new axis where the first one was."""
        kind = tensor(self.x, "x")
        axes = [plain_axis(kind, name, "merge") for name in self.over]
        total = product([axis.size for axis in axes])
        if total != self.into.size and total.is_number and self.into.size.is_number:
            raise Fault(
                "size-mismatch",
                f"`{self.into.name}` has size {self.into.size}, but the axes hold {total}",
                "into",
            )
        new = free_name(kind, self.into, without=self.over)
        at = min(kind.position(name) for name in self.over)
        rest = [axis for axis in kind.axes if axis.name not in self.over]
        return replace(kind, axes=(*rest[:at], new, *rest[at:]), classes=None)

    def tiled(self, tile: Tile) -> str | None:
        """The same entries in one dimension."""
        kind = tensor(self.x, "x")
        return _moved(tile, tile["x"], kind, self.type(), self.over, self._hit(tile))

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient back in the dimensions that were merged."""
        text, kind = gradients[0] or "0.0", tensor(self.x, "x")
        return {"x": _moved(tile, text, self.type(), kind, [self.into.name], self._hit(tile))}

    def _hit(self, tile: Tile) -> str:
        own = [(name, tile.size(name)) for name in self.over]
        return f"({tile.index(self.into.name)} == {_flat(tile, own)})"

    def torch(self, code: Code) -> str:
        """Return ``flatten``, after the axes were put side by side."""
        kind = tensor(self.x, "x")
        rest = [name for name in names(kind) if name not in self.over]
        at = min(names(kind).index(name) for name in self.over)
        want = [*rest[:at], *self.over, *rest[at:]]
        text = arrange(code["x"], names(kind), want)
        first = at - len(want)
        return f"{primary(text)}.flatten({first}, {first + len(self.over) - 1})"


@op("rename")
class RenameAxis(Op):
    """The same value with an axis under another name; costs nothing.

    Shape: [*, old] -> [*, new].   Gradient: smooth.
    """

    moves: ClassVar[bool] = True

    x: Operand
    old: AxisRef
    new: AxisRef

    def type(self) -> TensorType:
        """Return the type with the new name."""
        kind = tensor(self.x, "x")
        axis = find_axis(kind, self.old, "old")
        free_name(kind, NewAxis(self.new, axis.size), without=(self.old,))
        return kind.with_axes(
            tuple(a.renamed(self.new) if a.name == self.old else a for a in kind.axes)
        )

    def flows(self) -> dict[str, list[Flow]]:
        """Positions keep their place under the new name."""
        return {
            "x": [
                Flow(a.name, self.new if a.name == self.old else a.name)
                for a in self.x.axes
                if a.clock is not None or a.pack
            ]
        }

    def tiled(self, tile: Tile) -> str | None:
        """The same entries in another dimension; none is moved where rows have a new name."""
        if tile.dims[self.old] == tile.dims[self.new]:
            return tile["x"]
        hit = f"({tile.index(self.old)} == {tile.index(self.new)})"
        return _moved(tile, tile["x"], tensor(self.x, "x"), self.type(), [self.old], hit)

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient under the old name."""
        text = gradients[0] or "0.0"
        if tile.dims[self.old] == tile.dims[self.new]:
            return {"x": text}
        hit = f"({tile.index(self.old)} == {tile.index(self.new)})"
        return {"x": _moved(tile, text, self.type(), tensor(self.x, "x"), [self.new], hit)}

    def torch(self, code: Code) -> str:
        """Return the operand: names cost nothing."""
        return code["x"]


@op("order")
class Order(Op):
    """The same value with its axes in another memory order.

    The axes that are named come last, in that order; the others keep theirs.

    Shape: [*, a, b] -> [*, b, a].   Gradient: smooth.
    """

    x: Operand
    axes: tuple[AxisRef, ...]

    def type(self) -> TensorType:
        """Return the type with its axes reordered."""
        kind = tensor(self.x, "x")
        last = tuple(find_axis(kind, name, "axes") for name in self.axes)
        return kind.with_axes((*(a for a in kind.axes if a.name not in self.axes), *last))

    def torch(self, code: Code) -> str:
        """Return a transpose or permutation."""
        return arrange(code["x"], names(tensor(self.x, "x")), names(self.type()))


@op("concat")
class Concat(Op):
    """Values joined along one axis; an operand without one of the other axes is repeated over it.

    Shape: [*, over], [*, over], ... -> [*, over], over the sum.   Gradient: smooth.
    """

    x: tuple[Operand, ...]
    over: AxisRef

    def type(self) -> TensorType:
        """Return the widest operand's type with the sizes along the axis added."""
        kinds = [tensor(kind, f"x_{i}") for i, kind in enumerate(self.x)]
        total, rest = ZERO, []
        for kind in kinds:
            axis = plain_axis(kind, self.over, "concat")
            total = total + axis.size
            rest.append(kind.with_axes(tuple(a for a in kind.axes if a is not axis)))
        wide = broadcast(*rest)
        widest = next((k for k in kinds if len(k.axes) == len(wide.axes) + 1), None)
        if widest is None:
            raise Fault(
                "operand-shape",
                f"no operand of `concat` has all of the axes of {wide}",
                "x",
                help="give the others those axes with `expand`",
            )
        axes = tuple(replace(a, size=total) if a.name == self.over else a for a in widest.axes)
        return TensorType(axes, promote(*(k.dtype for k in kinds)), wide.batched)

    def torch(self, code: Code) -> str:
        """Return ``torch.cat``; what lacks an axis is repeated over that of another operand."""
        result = self.type()
        parts = [self._part(code, name, tensor(kind, name)) for name, kind in self.operand_types()]
        dim = result.position(self.over) - len(result.axes)
        return f"torch.cat(({', '.join(parts)}), dim={dim})"

    def _part(self, code: Code, name: str, kind: TensorType) -> str:
        result = self.type()
        lacking = [a.name for a in result.axes if kind.axis(a.name) is None]
        if not lacking and kind.batched == result.batched:
            return arrange(code[name], names(kind), names(result))
        text = aligned(code, name, result)
        sizes = [code.size(a.size) if a.name in lacking else "-1" for a in result.axes]
        if result.batched and not kind.batched:
            other = next(n for n, k in self.operand_types() if k.batched)
            sizes.insert(0, f"{primary(code[other])}.shape[0]")
        elif result.batched:
            sizes.insert(0, "-1")
        return f"{primary(text)}.expand({', '.join(sizes)})"


@op("stack")
class Stack(Op):
    """Values side by side on a new axis, which comes last; axes are matched by name.

    Shape: [*], [*], ... -> [*, axis].   Gradient: smooth.
    """

    x: tuple[Operand, ...]
    axis: NewAxis

    def type(self) -> TensorType:
        """Return the broadcast with the new axis."""
        for i, kind in enumerate(self.x):
            tensor(kind, f"x_{i}")
        wide = broadcast(*self.x)
        if self.axis.size.is_number and self.axis.size.number != len(self.x):
            raise Fault(
                "size-mismatch",
                f"`{self.axis.name}` has size {self.axis.size}, but {len(self.x)} values are given",
                "axis",
            )
        return wide.with_axes((*wide.axes, free_name(wide, self.axis)))

    def tiled(self, tile: Tile) -> str | None:
        """Each value at its place along the new axis."""
        at, kind = tile.index(self.axis.name), self.type()
        named = [name for name, _ in self.operand_types()]
        text = tile.full(tile[named[-1]], kind)
        for i, name in reversed(list(enumerate(named[:-1]))):
            text = f"tl.where({at} == {i}, {tile[name]}, {text})"
        return text

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient at the place of each value."""
        at = tile.index(self.axis.name)
        return {
            name: f"tl.where({at} == {i}, {gradients[0]}, 0.0)"
            for i, (name, _) in enumerate(self.operand_types())
        }

    def torch(self, code: Code) -> str:
        """Return ``torch.stack``."""
        wide = broadcast(*self.x)
        inner = Code(code.operands, code.types, wide)
        parts = ", ".join(inner.aligned(name) for name, _ in self.operand_types())
        same = all(names(tensor(kind, "x")) == names(wide) for kind in self.x)
        comma = "," if len(self.x) == 1 else ""
        joined = f"({parts}{comma})" if same else f"torch.broadcast_tensors({parts})"
        return f"torch.stack({joined}, dim=-1)"


def _is_set(axis: Axis) -> bool:
    """Whether an axis holds a fixed number of tokens without order, such as patches."""
    return axis.clock is not None and not axis.clock.ordered and axis.size.is_number


@op("slice")
class Slice(Op):
    """The entries ``start .. stop - 1`` along an axis; without ``stop`` to the end.

    The axis may be a fixed number of tokens without order, which are plain entries then.

    Args:
        into: another name for the shorter axis.

    Shape: [*, over] -> [*, into].   Gradient: smooth.
    """

    x: Operand
    over: AxisRef
    start: Dim = ZERO
    stop: Dim | None = None
    into: AxisRef | None = None

    def type(self) -> TensorType:
        """Return the type with the axis shortened."""
        kind = tensor(self.x, "x")
        axis = find_axis(kind, self.over, "over")
        if not _is_set(axis):
            axis = plain_axis(kind, self.over, "slice")
        stop = self.stop if self.stop is not None else axis.size
        size = stop - self.start
        bounds = (self.start.number, stop.number, axis.size.number)
        if None not in bounds and not 0 <= bounds[0] < bounds[1] <= bounds[2]:  # type: ignore[operator]
            raise Fault(
                "size-mismatch",
                f"no entries {self.start} to {stop} along `{self.over}` of size {axis.size}",
                "stop" if self.stop is not None else "start",
            )
        name = self.into or self.over
        free_name(kind, NewAxis(name, size), without=(self.over,))
        axes = tuple(Axis(name, size) if a.name == self.over else a for a in kind.axes)
        return kind.with_axes(axes)

    def flows(self) -> dict[str, list[Flow]]:
        """Tokens without order are entries like others in the result."""
        return {
            name: [
                replace(flow, target=None, interval=EVERYTHING)
                if flow.source == self.over
                else flow
                for flow in flows
            ]
            for name, flows in super().flows().items()
        }

    def tiled(self, tile: Tile) -> str | None:
        """The entries at their new places, where the axis has a new name."""
        hit = self._hit(tile)
        if hit is None:
            return None
        kind = tensor(self.x, "x")
        return _moved(tile, tile["x"], kind, self.type(), [self.over], hit)

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient at the old places."""
        hit = self._hit(tile)
        return None if hit is None else {"x": f"tl.where({hit}, {gradients[0]}, 0.0)"}

    def _hit(self, tile: Tile) -> str | None:
        if self.into is None or self.into == self.over or not self.start.is_number:
            return None
        return f"({tile.index(self.over)} == {tile.index(self.into)} + {self.start.number})"

    def torch(self, code: Code) -> str:
        """Return an index expression."""
        start = "" if self.start == ZERO else code.size(self.start)
        stop = "" if self.stop is None else code.size(self.stop)
        after = ", :" * (-code.dim("x", self.over) - 1)
        return f"{primary(code['x'])}[..., {start}:{stop}{after}]"


@op("pad")
class Pad(Op):
    """The value with ``before`` and ``after`` more entries along an axis.

    Shape: [*, over] -> [*, over].   Gradient: smooth.
    """

    x: Operand
    over: AxisRef
    before: Dim = ZERO
    after: Dim = ZERO
    value: float = 0.0

    def type(self) -> TensorType:
        """Return the type with the axis lengthened."""
        kind = tensor(self.x, "x")
        axis = plain_axis(kind, self.over, "pad")
        longer = replace(axis, size=axis.size + self.before + self.after)
        return kind.with_axes(tuple(longer if a is axis else a for a in kind.axes))

    def torch(self, code: Code) -> str:
        """Return ``F.pad``, which counts axes from the last."""
        widths = "0, 0, " * (-code.dim("x", self.over) - 1)
        widths += f"{code.size(self.before)}, {code.size(self.after)}"
        value = f", value={number(self.value)}" if self.value else ""
        return f"F.pad({code['x']}, ({widths}){value})"


@op("expand")
class Expand(Op):
    """The value repeated along a new last axis, without copying it.

    Shape: [*] -> [*, axis].   Gradient: smooth.
    """

    x: Operand
    axis: NewAxis

    def type(self) -> TensorType:
        """Return the type with the new axis."""
        kind = tensor(self.x, "x")
        return kind.with_axes((*kind.axes, free_name(kind, self.axis)))

    def tiled(self, tile: Tile) -> str | None:
        """The same block along one more dimension."""
        return tile.full(tile["x"], self.type())

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient, which is summed over the new axis."""
        return {"x": tile.full(gradients[0] or "0.0", self.type())}

    def torch(self, code: Code) -> str:
        """Return ``expand``."""
        kind = self.type()
        sizes = ["-1"] * (len(kind.axes) - 1 + kind.batched) + [code.size(self.axis.size)]
        return f"{primary(code['x'])}.unsqueeze(-1).expand({', '.join(sizes)})"


@op("roll")
class Roll(Op):
    """The entries along an axis moved by ``by`` places; what leaves one end enters the other.

    Shape: [*, over] -> [*, over].   Gradient: smooth.
    """

    x: Operand
    over: AxisRef
    by: Dim

    def type(self) -> TensorType:
        """Return the operand's type."""
        kind = tensor(self.x, "x")
        plain_axis(kind, self.over, "roll")
        return kind

    def torch(self, code: Code) -> str:
        """Return ``roll``."""
        dim = code.dim("x", self.over)
        return f"{primary(code['x'])}.roll({code.size(self.by)}, dims={dim})"
