"""Sorting along an axis, and how a kernel finds an order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokdsl.ops.base import (
    AxisRef,
    Code,
    Cost,
    Op,
    Operand,
    find_axis,
    op,
    tensor,
)
from tokdsl.ops.precedence import primary
from tokdsl.ops.tile import NotTiled, Tile
from tokdsl.types.tensors import TensorType
from tokdsl.types.time import EVERYTHING, Flow


def ranks(tile: Tile, x: str, kind: TensorType, axis: str, descending: bool, zero: str) -> str:
    """Return a name of how many entries are before each in a stable sort."""
    found, place, other = (
        tile.constant(TensorType(kind.axes, "i64", kind.batched), "0"),
        tile.name("place"),
        tile.name("other"),
    )
    sign = ">" if descending else "<"
    tile.loop(place, axis)
    tile.line(f"    {other} = {tile.entry(x, axis, place, zero)}")
    tie = f"(({other} == {x}) & ({place} < {tile.index(axis)}))"
    tile.line(f"    {found} = {found} + tl.where(({other} {sign} {x}) | {tie}, 1, 0)")
    return found


def scattered(tile: Tile, g: str, index: str, kind: TensorType, axis: str) -> str:
    """Return the sum, for every entry along an axis, of the gradients whose index it is."""
    found, place = tile.constant(kind.with_dtype("float")), tile.name("place")
    here = tile.entry(index, axis, place, "0")
    tile.loop(place, axis)
    part = f"tl.where({here} == {tile.index(axis)}, {tile.entry(g, axis, place)}, 0.0)"
    tile.line(f"    {found} = {found} + {part}")
    return found


class _Sorting(Op):
    """Base of `Sort` and `ArgSort`."""

    x: Operand
    over: AxisRef
    descending: bool

    def indices(self) -> TensorType:
        """Return the type of the order."""
        kind = tensor(self.x, "x")
        axis = find_axis(kind, self.over, "over")
        return replace(kind, dtype="i64", classes=axis.size)

    def flows(self) -> dict[str, list[Flow]]:
        """Along a token axis every position is read."""
        return {
            name: [replace(f, interval=EVERYTHING) if f.source == self.over else f for f in flows]
            for name, flows in super().flows().items()
        }

    def cost(self) -> Cost:
        """A few comparisons per entry."""
        return Cost(self.x.size * 8)

    def sorted(self, tile: Tile, texts: Sequence[tuple[str, TensorType]]) -> list[str]:
        """Return blocks with their entries in the order of ``x``."""
        kind = tensor(self.x, "x")
        if kind.dtype == "bool":
            raise NotTiled("it sorts truth values")
        zero = "0.0" if kind.is_float else "0"
        x = tile.bind(tile.full(tile["x"], kind), "keys")
        rank = ranks(tile, x, kind, self.over, self.descending, zero)
        rank = tile.bind(tile.filled(rank, [self.over], "-1"), "rank")
        found = [tile.constant(k, "0.0" if k.is_float else "0") for _, k in texts]
        place, dim, at = tile.name("place"), tile.dim(self.over), tile.index(self.over)
        tile.loop(place, self.over)
        for name, (text, k) in zip(found, texts, strict=True):
            part = f"tl.where({rank} == {place}, {text}, {'0.0' if k.is_float else '0'})"
            entry = f"tl.sum({part}, axis={dim}, keep_dims=True)"
            tile.line(f"    {name} = tl.where({at} == {place}, {entry}, {name})")
        return found

    def call(self, code: Code) -> str:
        """Return the stable sort of torch."""
        options = f"dim={code.dim('x', self.over)}, descending={self.descending}, stable=True"
        return f"{primary(code['x'])}.sort({options})"


@op("sort")
class Sort(_Sorting):
    """The entries along an axis in rising order and where they came from; equal ones keep order.

    Shape: [*, over] -> values [*, over], indices i64[*, over].   Gradient: smooth in the values.
    """

    x: Operand
    over: AxisRef
    descending: bool = False

    def type(self) -> tuple[TensorType, TensorType]:
        """Return values and indices."""
        return tensor(self.x, "x"), self.indices()

    def tiled(self, tile: Tile) -> tuple[str, str] | None:
        """Every entry at the number of entries that are before it."""
        kind = tensor(self.x, "x")
        texts = [(tile["x"], kind), (tile.index(self.over), self.indices())]
        values, index = self.sorted(tile, texts)
        return values, index

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """Every gradient goes back to where its entry came from."""
        if gradients[0] is None:
            return {}
        kind = tensor(self.x, "x")
        g = tile.bind(tile.full(gradients[0], kind), "g")
        return {"x": scattered(tile, g, tile.outputs[1], kind, self.over)}

    def torch(self, code: Code) -> str:
        """Return the stable sort of torch."""
        return self.call(code)


@op("argsort")
class ArgSort(_Sorting):
    """Where the entries along an axis are in rising order; equal ones keep their order.

    Shape: [*, over] -> i64[*, over].   Gradient: none.
    """

    x: Operand
    over: AxisRef
    descending: bool = False

    def type(self) -> TensorType:
        """Return indices."""
        return self.indices()

    def gradient(self) -> dict[str, bool]:
        """None through an order."""
        return {"x": False}

    def tiled(self, tile: Tile) -> str | None:
        """The number of every entry, at the number of entries that are before it."""
        (index,) = self.sorted(tile, [(tile.index(self.over), self.indices())])
        return index

    def torch(self, code: Code) -> str:
        """Return the indices of the stable sort of torch."""
        return f"{self.call(code)}.indices"
