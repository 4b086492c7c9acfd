"""Choice and look-up along an axis: top-k, gathering, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from tokdsl.ops.axes import (
    Reduced,
    aligned,
    arrange,
    free_name,
    is_token,
    masked_axes,
    names,
    need_bool,
    need_float,
    need_integer,
    token_mask,
)
from tokdsl.ops.base import (
    AxisRef,
    Code,
    Companion,
    Cost,
    Fault,
    NewAxis,
    Op,
    Operand,
    broadcast,
    find_axis,
    op,
    tensor,
)
from tokdsl.ops.precedence import primary
from tokdsl.ops.reduce import Max, Min, Reduction
from tokdsl.ops.selected import check_among
from tokdsl.ops.sorting import ranks, scattered
from tokdsl.ops.tile import Tile
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import EVERYTHING, Flow, Interval

#: somewhere in the sequence: which position is read depends on the data
#: below every entry, as a whole number
NOTHING = -(2**62)
ANYWHERE = Interval(EVERYTHING.lo, EVERYTHING.hi, exact=False)


@op("topk")
class TopK(Op):
    """The ``k`` largest entries along one axis in falling order, ties to the lowest index.

    Only entries where the condition holds are chosen; if there are fewer than ``k``, the rest of
    the values is -inf and the rest of the indices -1.

    Over an index of an equation over pairs of tokens the indices are an index set, which
    `attend` takes as ``select``: -1 where nothing is chosen. Nothing is kept of all pairs then.
    With ``among``, an index set of blocks of ``block`` tokens, only their tokens are looked at.

    Shape: [*, over] -> values [*, k], indices i64[*, k].   Gradient: smooth in the values, none
    through the indices.
    """

    decision: ClassVar[bool] = True

    x: Operand
    k: NewAxis
    over: AxisRef
    where: Operand | None = None
    among: Operand | None = None
    block: int = 1
    valid: Companion | None = None

    def full(self) -> TensorType:
        """Return the type that is chosen from: the operand, widened by the condition's axes."""
        kind = need_float(self.x, "x", "topk")
        if self.where is None:
            return kind
        return broadcast(kind, need_bool(self.where, "where", "topk")).with_dtype(kind.dtype)

    def type(self) -> tuple[TensorType, TensorType]:
        """Return values and indices, with the new axis in place of the old one."""
        full = self.full()
        axis = find_axis(full, self.over, "over")
        if self.among is not None:
            check_among(self.among, self.block, full, axis, self.k.size)
        new = free_name(full, self.k, without=(self.over,))
        count, k = axis.size.number, self.k.size.number
        if count is not None and k is not None and k > count:
            raise Fault("size-mismatch", f"cannot choose {k} of {count} along `{self.over}`", "k")
        axes = tuple(new if a.name == self.over else a for a in full.axes)
        values = TensorType(axes, full.dtype, full.batched)
        return values, TensorType(axes, "i64", full.batched, classes=axis.size)

    def flows(self) -> dict[str, list[Flow]]:
        """All positions along the axis are compared; validity reads no token."""
        return {name: flows for name, flows in super().flows().items() if name != "valid"}

    def repair(self) -> str:
        """How to read no later token."""
        return (
            "let every token choose (`over = experts`), or choose among earlier tokens: "
            "`over = j, where = j <= i`"
        )

    def gradient(self) -> dict[str, bool]:
        """Through the values only."""
        return {name: name == "x" for name, _ in self.operand_types()}

    def cost(self) -> Cost:
        """A comparison per entry and a little more."""
        return Cost(self.full().size * 4)

    def choice(self) -> TensorType:
        """The indices."""
        return self.type()[1]

    def wants_valid(self) -> list[Axis]:
        """Return the token axis if tokens are chosen."""
        axis = find_axis(self.full(), self.over, "over")
        return [axis] if axis.clock is not None and not axis.memory else []

    def tiled(self, tile: Tile) -> tuple[str, str] | None:
        """Take the largest entry ``k`` times, in the order of whole numbers: exact, with ties."""
        if self.among is not None or self.valid is not None:
            return None
        full, (kind, _) = self.full(), self.type()
        new = next(a for a in kind.axes if full.axis(a.name) is None).name
        x = tile.bind(tile.full(tile["x"], full), "scores")
        at, seat, order = tile.index(self.over), tile.index(new), tile.name("order")
        bits = tile.bind(f"({x} + 0.0).to(tl.int32, bitcast=True)", "bits")
        tile.line(f"{order} = tl.where({bits} < 0, {bits} ^ 0x7FFFFFFF, {bits}).to(tl.int64)")
        there = [tile.there(self.over)] if tile.there(self.over) else []
        there += [tile["where"]] if self.where is not None else []
        if there:
            tile.line(f"{order} = tl.where({' & '.join(there)}, {order}, {NOTHING})")
        values, index = tile.name("values"), tile.name("index")
        tile.line(f'{values} = tl.full({tile.shape(kind)}, float("-inf"), tl.float32)')
        tile.line(f"{index} = tl.full({tile.shape(kind)}, -1, tl.int64)")
        best, first, here = tile.name("best"), tile.name("first"), tile.name("here")
        dim, place = tile.dim(self.over), tile.name("place")
        last = tile.padded(self.over)
        tile.line(f"for {place} in range({self.k.size}):")
        tile.line(f"    {best} = tl.max({order}, axis={dim}, keep_dims=True)")
        hit = f"tl.where({order} == {best}, {at}, {last})"
        tile.line(f"    {first} = tl.min({hit}, axis={dim}, keep_dims=True)")
        value = f"tl.where({at} == {first}, {x}, 0.0)"
        tile.line(f"    {here} = ({seat} == {place}) & ({best} > {NOTHING})")
        tile.line(
            f"    {values} = tl.where({here}, "
            f"tl.sum({value}, axis={dim}, keep_dims=True), {values})"
        )
        tile.line(f"    {index} = tl.where({here}, {first}.to(tl.int64), {index})")
        tile.line(f"    {order} = tl.where({at} == {first}, {NOTHING}, {order})")
        return values, index

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient of a value goes to the entry that was chosen."""
        if gradients[0] is None:
            return {}
        chosen = f"{tile.outputs[1]} == {tile.index(self.over)}"
        return {"x": f"tl.where({chosen}, {gradients[0]}, 0.0)"}

    def torch(self, code: Code) -> str:
        """Return a call of the package's exact form; ``torch.topk`` leaves ties open."""
        full = self.full()
        dim = full.position(self.over) - len(full.axes)
        arguments = [aligned(code, "x", full), code.size(self.k.size), f"dim={dim}"]
        over = Reduced((find_axis(full, self.over, "over"),), False)
        tokens = token_mask(code, full, masked_axes(full, over, self.valid))
        masks = [aligned(code, "where", full)] if self.where is not None else []
        masks += [tokens] if tokens is not None else []
        if masks:
            joined = ", ".join(masks)
            mask = masks[0] if len(masks) == 1 else f"{code.use('all_masks')}({joined})"
            arguments.append(f"mask={mask}")
        if code.decision:
            arguments.append(f"decision={code.decision}")
        return f"{code.use('topk_stable')}({', '.join(arguments)})"


@op("top_mask")
class TopMask(Op):
    """Which entries along one axis are among the ``count`` largest, ties to the lowest index.

    Unlike in `topk` the number may be a value: it may follow from the length of a text, or differ
    from token to token. Only entries where the condition holds are chosen.

    Shape: [*, over], i64[*] -> bool[*, over].   Gradient: none.
    """

    decision: ClassVar[bool] = True

    x: Operand
    count: Operand
    over: AxisRef
    where: Operand | None = None
    valid: Companion | None = None

    def type(self) -> TensorType:
        """Return one truth value per entry."""
        kind = need_float(self.x, "x", "top_mask")
        count = need_integer(self.count, "count", "top_mask")
        find_axis(kind, self.over, "over")
        have = {axis.name for axis in kind.axes} - {self.over}
        apart = [axis.name for axis in count.axes if axis.name not in have]
        if apart:
            raise Fault(
                "operand-shape", f"`count` {count} has `{apart[0]}`, which {kind} has not", "count"
            )
        if self.where is not None:
            kind = broadcast(kind, need_bool(self.where, "where", "top_mask"))
        return TensorType(kind.axes, "bool", kind.batched or count.batched)

    def flows(self) -> dict[str, list[Flow]]:
        """All positions along the axis are compared; validity reads no token."""
        return {
            name: [replace(f, interval=EVERYTHING) if f.source == self.over else f for f in flows]
            for name, flows in super().flows().items()
            if name != "valid"
        }

    def repair(self) -> str:
        """How to read no later token."""
        return (
            "let every token choose (`over = experts`), or choose so in training alone: "
            "`in_training(chosen, otherwise)`"
        )

    def gradient(self) -> dict[str, bool]:
        """None through a choice."""
        return {name: False for name, _ in self.operand_types()}

    def cost(self) -> Cost:
        """A few comparisons per entry."""
        return Cost(self.x.size * 8)

    def choice(self) -> TensorType:
        """The truth values."""
        return self.type()

    def wants_valid(self) -> list[Axis]:
        """Return the token axis if tokens are chosen."""
        axis = find_axis(self.x, self.over, "over")
        return [axis] if axis.clock is not None and not axis.memory else []

    def tiled(self, tile: Tile) -> str | None:
        """An entry is chosen if fewer than so many are before it."""
        if self.valid is not None:
            return None
        x = tile["x"]
        if self.where is not None:
            x = f'tl.where({tile["where"]}, {x}, float("-inf"))'
        kind = self.type()
        rank = ranks(tile, tile.bind(tile.full(x, kind), "keys"), kind, self.over, True, "0.0")
        chosen = f"({rank} < {tile['count']})"
        return chosen if self.where is None else f"{chosen} & {tile['where']}"

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        full = self.type()
        dim = full.position(self.over) - len(full.axes)
        arguments = [aligned(code, "x", full), aligned(code, "count", full), f"dim={dim}"]
        over = Reduced((find_axis(full, self.over, "over"),), False)
        tokens = token_mask(code, full, masked_axes(full, over, self.valid))
        masks = [aligned(code, "where", full)] if self.where is not None else []
        masks += [tokens] if tokens is not None else []
        if masks:
            joined = ", ".join(masks)
            mask = masks[0] if len(masks) == 1 else f"{code.use('all_masks')}({joined})"
            arguments.append(f"mask={mask}")
        if code.decision:
            arguments.append(f"decision={code.decision}")
        return f"{code.use('top_mask')}({', '.join(arguments)})"


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

    def tiled(self, tile: Tile) -> str | None:
        """The lowest number of the entries that are equal to the best one."""
        best, worst = ("max", Max) if self.method == "argmax" else ("min", Min)
        lowest = worst(x=self.x, over=self.over).lowest()
        found = self.counted(tile, lowest)
        if found is None:
            return None
        counted, axes = found
        top = tile.bind(tile.reduced(f"tl.{best}", counted, axes, lowest), "top")
        beyond = tile.size(axes[0]) - 1
        hit = f"tl.where({counted} == {top}, {tile.index(axes[0])}, {beyond})"
        return tile.reduced("tl.min", hit, axes, str(beyond))

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


@op("gather")
class Gather(Op):
    """The entries of ``x`` along one axis that an index names.

    Axes that both have go together; the index's other axes take the place of ``over``. An index
    with an axis named ``over`` itself reorders ``x``. Indices must be in range.

    Shape: [*s, over, *r], i64[*s, *own] -> [*s, *own, *r].   Gradient: smooth in ``x``, none
    through the index.
    """

    x: Operand
    index: Operand
    over: AxisRef

    def own(self) -> list[Axis]:
        """Return the index's axes that take the place of ``over``."""
        have = {axis.name for axis in self.x.axes if axis.name != self.over}
        return [axis for axis in self.index.axes if axis.name not in have]

    def type(self) -> TensorType:
        """Return the operand's type with ``over`` replaced."""
        x = tensor(self.x, "x")
        index = need_integer(self.index, "index", "gather")
        find_axis(x, self.over, "over")
        kept = x.with_axes(tuple(a for a in x.axes if a.name != self.over))
        own = self.own()
        shared = tuple(a for a in index.axes if a not in own)
        broadcast(kept, index.with_axes(shared), what="`x` and `index`")
        at = x.position(self.over)
        axes = (*x.axes[:at], *own, *x.axes[at + 1 :])
        return TensorType(axes, x.dtype, x.batched or index.batched, x.classes)

    def flows(self) -> dict[str, list[Flow]]:
        """Which position along ``over`` is read depends on the data."""
        result = {axis.name for axis in self.type().axes}
        own: list[str | None] = [a.name for a in self.own() if a.clock is not None]
        found: dict[str, list[Flow]] = {"x": [], "index": []}
        for axis in self.x.axes:
            if axis.name == self.over and (axis.clock is not None or axis.pack):
                found["x"] += [Flow(axis.name, name, ANYWHERE) for name in own or [None]]
            elif axis.clock is not None or axis.pack:
                found["x"].append(Flow(axis.name, axis.name))
        found["index"] = [
            Flow(axis.name, axis.name)
            for axis in self.index.axes
            if (axis.clock is not None or axis.pack) and axis.name in result
        ]
        return found

    def repair(self) -> str:
        """How to read no later token."""
        return "look up positions that were chosen among earlier ones: `where = j <= i`"

    def gradient(self) -> dict[str, bool]:
        """None through an index."""
        return {"x": self.x.is_float, "index": False}

    def tiled(self, tile: Tile) -> str | None:
        """The sum of the entries whose number the index is."""
        x, zero = self._entries(tile)
        if tensor(self.index, "index").axis(self.over) is None:
            tile.size(self.over)
            hit = f"tl.where({tile['index']} == {tile.index(self.over)}, {x}, {zero})"
            both = TensorType((*self.x.axes, *self.own()), self.x.dtype, self.type().batched)
            hit = tile.bind(tile.full(hit, both), "hit")
            text = tile.reduced("tl.sum", hit, [self.over], zero)
        elif self._reorders():
            text, place = tile.constant(self.type(), zero), tile.name("place")
            tile.loop(place, self.over)
            entry = tile.entry(x, self.over, place, zero)
            tile.line(f"    {text} = tl.where({tile['index']} == {place}, {entry}, {text})")
        else:
            return None
        return f"{text} != 0" if self.x.dtype == "bool" else text

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """A gradient goes to the entry that was read."""
        if tensor(self.index, "index").axis(self.over) is None:
            hit = f"{tile['index']} == {tile.index(self.over)}"
            return {"x": f"tl.where({hit}, {gradients[0]}, 0.0)"}
        if not self._reorders():
            return None
        kind = self.type()
        g = tile.bind(tile.full(gradients[0] or "0.0", kind), "g")
        index = tile.bind(tile.full(tile["index"], kind), "index")
        return {"x": scattered(tile, g, index, kind, self.over)}

    def _entries(self, tile: Tile) -> tuple[str, str]:
        if self.x.dtype == "bool":
            return f"{primary(tile['x'])}.to(tl.int32)", "0"
        return tile["x"], "0.0" if self.x.is_float else "0"

    def _reorders(self) -> bool:
        """Whether the index has as many entries along the axis as there are."""
        own = tensor(self.index, "index").axis(self.over)
        return (
            own is not None
            and len(self.own()) == 1
            and own.size == (find_axis(self.x, self.over, "over").size)
            and self.x.dtype != "bool"
        )

    def torch(self, code: Code) -> str:
        """Return ``gather`` or plain indexing where they fit, else a batched look-up."""
        x, index = tensor(self.x, "x"), tensor(self.index, "index")
        have, own = names(x), [axis.name for axis in self.own()]
        if len(own) == 1 and set(names(index)) - set(own) == set(have) - {self.over}:
            want = [own[0] if name == self.over else name for name in have]
            text = arrange(code["index"], names(index), want)
            if own[0] in {axis.name for axis in self.own() if axis.clock is not None}:
                # positions are the same for all rows where nothing is padded
                return f"torch.take_along_dim({code['x']}, {text}, dim={code.dim('x', self.over)})"
            return f"{primary(code['x'])}.gather({code.dim('x', self.over)}, {text})"
        if not x.batched and have[0] == self.over and own == [a.name for a in index.axes]:
            return f"{primary(code['x'])}[{code['index']}]"
        shared = [name for name in have if name in names(index) and name != self.over]
        rest = [name for name in have if name not in shared and name != self.over]
        mine = [name for name in names(index) if name not in shared]
        rows = arrange(code["x"], have, [*shared, self.over, *rest])
        which = arrange(code["index"], names(index), [*shared, *mine])
        text = f"{code.use('take_rows')}({rows}, {which}, {len(shared)})"
        return arrange(text, [*shared, *mine, *rest], names(self.type()))


@op("lookup")
class LookUp(Op):
    """The row of a table for every id; the table is a value, such as a weight or a codebook.

    Shape: table [classes, *r], i64[*] -> [*, *r].   Gradient: smooth in the table, none in ids.
    """

    table: Operand
    ids: Operand

    def type(self) -> TensorType:
        """Return the ids' axes followed by those of a row."""
        table = tensor(self.table, "table")
        ids = need_integer(self.ids, "ids", "lookup")
        if table.batched or not table.axes or is_token(table.axes[0]):
            raise Fault(
                "operand-shape",
                f"`table` must be a table of rows without batch or tokens, found {table}",
                "table",
                help="`gather` looks up along any axis",
            )
        self._check_classes(table, ids)
        for axis in table.axes[1:]:
            free_name(ids, NewAxis(axis.name, axis.size))
        return TensorType((*ids.axes, *table.axes[1:]), table.dtype, ids.batched)

    def _check_classes(self, table: TensorType, ids: TensorType) -> None:
        rows = table.axes[0].size.number
        classes = ids.classes.number if ids.classes is not None else None
        if rows is not None and classes is not None and rows < classes:
            raise Fault(
                "size-mismatch", f"the table has {rows} rows for ids of {classes} classes", "table"
            )

    def gradient(self) -> dict[str, bool]:
        """None through ids."""
        return {"table": self.table.is_float, "ids": False}

    def tiled(self, tile: Tile) -> str | None:
        """The sum of the rows whose number the id is."""
        axis = self.table.axes[0].name
        zero = "0.0" if self.table.is_float else "0"
        if tensor(self.ids, "ids").axis(axis) is not None or self.table.dtype == "bool":
            return None
        tile.size(axis)
        both = TensorType((*self.table.axes, *self.ids.axes), self.table.dtype, self.ids.batched)
        hit = f"tl.where({tile['ids']} == {tile.index(axis)}, {tile['table']}, {zero})"
        return tile.reduced("tl.sum", tile.bind(tile.full(hit, both), "hit"), [axis], zero)

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """A gradient goes to the row that was read."""
        hit = f"{tile['ids']} == {tile.index(self.table.axes[0].name)}"
        return {"table": f"tl.where({hit}, {gradients[0]}, 0.0)"}

    def torch(self, code: Code) -> str:
        """Return an embedding of the ids, or indexing for other tables than matrices."""
        if len(self.table.axes) == 2 and self.table.is_float:
            return f"F.embedding({code['ids']}, {code['table']})"
        return f"{primary(code['table'])}[{code['ids']}]"
