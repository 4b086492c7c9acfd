"""Sums and counts per class, and which class an entry is of."""

from __future__ import annotations

from dataclasses import replace

from tokdsl.ops.axes import (
    BATCH,
    Reduced,
    arrange,
    dim_text,
    free_name,
    masked_axes,
    names,
    need_integer,
    reduced,
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
    op,
    tensor,
)
from tokdsl.ops.tile import Tile
from tokdsl.types.tensors import TensorType
from tokdsl.types.time import Flow


@op("one_hot")
class OneHot(Op):
    """1 at the index along a new axis, else 0; an index out of range gives zeros.

    Shape: i64[*] -> i64[*, axis].   Gradient: none.
    """

    index: Operand
    axis: NewAxis

    def type(self) -> TensorType:
        """Return the index's type with the new axis last."""
        index = need_integer(self.index, "index", "one_hot")
        new = free_name(index, self.axis)
        return TensorType((*index.axes, new), "i64", index.batched)

    def gradient(self) -> dict[str, bool]:
        """None through an index."""
        return {"index": False}

    def tiled(self, tile: Tile) -> str | None:
        """Compare with the numbers along the new axis."""
        hit = f"({tile['index']} == {tile.index(self.axis.name)})"
        return f"{tile.full(hit, self.type())}.to(tl.int64)"

    def torch(self, code: Code) -> str:
        """Return a call of the package's form, which takes indices out of range."""
        return f"{code.use('one_hot')}({code['index']}, {code.size(self.axis.size)})"


@op("histogram")
class Histogram(Op):
    """How often each class occurs; negative indices and padding do not count.

    Without ``over`` everything is counted together, the batch included.

    Shape: i64[*, over] -> i64[*, axis].   Gradient: none.
    """

    index: Operand
    axis: NewAxis
    over: tuple[AxisRef, ...] | None = None
    valid: Companion | None = None

    def reduction(self) -> Reduced:
        """Return the axes that are counted together."""
        return reduced(need_integer(self.index, "index", "histogram"), self.over)

    def type(self) -> TensorType:
        """Return the kept axes with the classes last."""
        index, over = tensor(self.index, "index"), self.reduction()
        kept = TensorType(over.kept(index), "i64", index.batched and not over.batch)
        return kept.with_axes((*kept.axes, free_name(kept, self.axis)))

    def flows(self) -> dict[str, list[Flow]]:
        """Counts read every position that they count."""
        return {name: flows for name, flows in super().flows().items() if name != "valid"}

    def gradient(self) -> dict[str, bool]:
        """None through counts."""
        return {name: False for name, _ in self.operand_types()}

    def cost(self) -> Cost:
        """One addition per index."""
        return Cost(self.index.size)

    def tiled(self, tile: Tile) -> str | None:
        """How often each class occurs along small axes of a row."""
        over = self.reduction()
        if over.batch or self.valid is not None:
            return None
        index, axis = tensor(self.index, "index"), self.type().axes[-1]
        both = TensorType((*index.axes, axis), "i64", index.batched)
        hits = tile.full(f"({tile['index']} == {tile.index(axis.name)}).to(tl.int64)", both)
        gone = [a.name for a in over.axes]
        return tile.reduced("tl.sum", tile.bind(hits, "hits"), gone, "0")

    def accumulated(self, tile: Tile) -> str | None:
        """How often each class occurs in a row."""
        if not self.reduction().batch:
            return None
        index, axis = tensor(self.index, "index"), self.type().axes[-1]
        small = [a.name for a in self.reduction().axes if tile.dim(a.name) != 0]
        both = TensorType((*index.axes, axis), "i64")
        hits = tile.full(f"({tile['index']} == {tile.index(axis.name)}).to(tl.int32)", both)
        return tile.reduced("tl.sum", tile.bind(hits, "hits"), small, "0")

    def torch(self, code: Code) -> str:
        """Return a call of the package's counting form."""
        index, over = tensor(self.index, "index"), self.reduction()
        mask = token_mask(code, index, masked_axes(index, over, self.valid))
        dims = f"dim={dim_text(over.positions(index))}"
        classes = code.size(self.axis.size)
        extra = f", mask={mask}" if mask else ""
        return f"{code.use('histogram')}({code['index']}, {classes}, {dims}{extra})"


@op("scatter_add")
class ScatterAdd(Op):
    """The sum of the entries of ``x`` per class; an index out of range counts nowhere.

    ``over`` names axes of the index whose entries are summed, by default all that it has and,
    if it is given as such, ``batch``. The new axis comes first after the axes that stay.

    Shape: [*s, over, *r], i64[*s, over] -> [*s, axis, *r].   Gradient: smooth in ``x``, none
    through the index.
    """

    x: Operand
    index: Operand
    axis: NewAxis
    over: tuple[AxisRef, ...] | None = None
    valid: Companion | None = None

    def summed(self) -> Reduced:
        """Return the axes whose entries are summed."""
        index = need_integer(self.index, "index", "scatter_add")
        return Reduced(index.axes, False) if self.over is None else reduced(index, self.over)

    def type(self) -> TensorType:
        """Return shared axes, the classes, and the rest."""
        x, index, over = tensor(self.x, "x"), tensor(self.index, "index"), self.summed()
        wide = broadcast(x, index, what="`x` and `index`")
        if len(wide.axes) != len(x.axes) or x.batched != index.batched:
            raise Fault("operand-shape", f"`index` {index} has axes that `x` {x} has not", "index")
        shared = [a for a in index.axes if a.name not in over.names]
        rest = [a for a in x.axes if index.axis(a.name) is None]
        kept = TensorType((*shared, *rest), x.dtype, x.batched and not over.batch)
        new = free_name(kept, self.axis)
        return kept.with_axes((*shared, new, *rest))

    def flows(self) -> dict[str, list[Flow]]:
        """Sums read every position that they sum."""
        return {name: flows for name, flows in super().flows().items() if name != "valid"}

    def gradient(self) -> dict[str, bool]:
        """None through an index."""
        return {name: name == "x" and self.x.is_float for name, _ in self.operand_types()}

    def cost(self) -> Cost:
        """A product with the one-hot index."""
        return Cost(self.x.size * self.axis.size * 2)

    def torch(self, code: Code) -> str:
        """Return a call of the package's form; padding goes to no class."""
        x, index, over = tensor(self.x, "x"), tensor(self.index, "index"), self.summed()
        gone = [*([BATCH] if over.batch and x.batched else []), *over.names_in(index)]
        shared = [name for name in names(index) if name not in gone]
        rest = [name for name in names(x) if name not in names(index)]
        which = code["index"]
        mask = token_mask(code, index, masked_axes(index, over, self.valid))
        if mask:
            which = f"{code.use('fill_masked')}({which}, {mask}, -1)"
        which = arrange(which, names(index), [*shared, *gone])
        rows = arrange(code["x"], names(x), [*shared, *gone, *rest])
        classes = code.size(self.axis.size)
        return f"{code.use('scatter_sum')}({rows}, {which}, {classes}, {len(shared)})"


@op("bucketize")
class Bucketize(Op):
    """How many of the rising ``boundaries`` are below each entry.

    Args:
        right: count boundaries that are equal too.

    Shape: [*], [boundaries] -> i64[*].   Gradient: none.
    """

    x: Operand
    boundaries: Operand
    right: bool = False

    def type(self) -> TensorType:
        """Return indices from 0 to the number of boundaries."""
        x, boundaries = tensor(self.x, "x"), tensor(self.boundaries, "boundaries")
        if len(boundaries.axes) != 1 or boundaries.batched:
            raise Fault(
                "operand-shape",
                f"`boundaries` must have one axis and no batch, found {boundaries}",
                "boundaries",
            )
        return replace(x, dtype="i64", classes=boundaries.axes[0].size + 1)

    def gradient(self) -> dict[str, bool]:
        """None through a comparison."""
        return {"x": False, "boundaries": False}

    def torch(self, code: Code) -> str:
        """Return torch's own form."""
        right = ", right=True" if self.right else ""
        return f"torch.bucketize({code['x']}, {code['boundaries']}{right})"
