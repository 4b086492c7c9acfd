"""What a published tensor is made of: views of parameters, joined or given another shape.

Every verb of a ``weights`` clause gives one of three pieces, so that a tensor can be copied both
ways: into the parameters when a checkpoint is read, out of them when one is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod

from tokdsl.syntax import tree


class PieceFault(Exception):
    """A verb does not fit what it is applied to.

    Args:
        text: expected, then found.
        help: how to repair it.
    """

    def __init__(self, text: str, help: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.help = help


@dataclass(frozen=True, slots=True)
class Step:
    """One view of a tensor: ``select transpose permute view narrow``.

    Args:
        verb: what the step is called in torch.
        numbers: its arguments.
        index: of a selection along the first axis, the expression over index variables.
    """

    verb: str
    numbers: tuple[int, ...] = ()
    index: tree.Expression | None = None


@dataclass(frozen=True, slots=True)
class View:
    """A parameter, or a view of it.

    Args:
        path: its name in the state dict, with expressions for numbers.
        steps: views, applied in order.
        shape: of the result.
        name: its name in the state dict at the binding at hand.
        selection: the rows selected along its first axes; None stands for every one in turn.
        contiguous: whether the result can be given another shape without a copy.
    """

    path: tuple[str | tree.Expression, ...]
    steps: tuple[Step, ...]
    shape: tuple[int, ...] = field(compare=False)
    name: str = field(compare=False)
    selection: tuple[int | None, ...] = field(default=(), compare=False)
    contiguous: bool = field(default=True, compare=False)

    def then(self, step: Step, shape: tuple[int, ...], contiguous: bool) -> View:
        """Return the view after one more step."""
        return replace(
            self,
            steps=(*self.steps, step),
            shape=shape,
            contiguous=self.contiguous and contiguous,
        )


@dataclass(frozen=True, slots=True)
class Fused:
    """Several pieces one after the other along a dimension."""

    dim: int
    parts: tuple[Piece, ...]
    shape: tuple[int, ...] = field(compare=False)


@dataclass(frozen=True, slots=True)
class Reshaped:
    """A piece under another shape that no view can have."""

    part: Piece
    shape: tuple[int, ...]


Piece = View | Fused | Reshaped


def views(piece: Piece) -> Iterator[View]:
    """Yield the views of a piece; of several narrow ones of one view only the first."""
    if isinstance(piece, Fused):
        for part in piece.parts:
            yield from views(part)
    elif isinstance(piece, Reshaped):
        yield from views(piece.part)
    elif all(step.verb != "narrow" or step.numbers[1] == 0 for step in piece.steps):
        yield piece


def select(piece: Piece, index: tree.Expression, number: int | None) -> Piece:
    """Return one row along the first axis; ``number`` None stands for every one in turn.

    Raises:
        PieceFault: the piece has no such row, or its rows are no views.
    """
    if isinstance(piece, Reshaped) or (isinstance(piece, Fused) and piece.dim == 0):
        raise PieceFault(
            "only a parameter can be indexed here", "put the index on the parameter itself"
        )
    if isinstance(piece, Fused):
        parts = tuple(select(part, index, number) for part in piece.parts)
        return Fused(piece.dim - 1, parts, piece.shape[1:])
    if not piece.shape:
        raise PieceFault("a single number has no axis to index")
    if number is not None and not 0 <= number < piece.shape[0]:
        raise PieceFault(f"index {number} is outside of 0 to {piece.shape[0] - 1}")
    made = piece.then(Step("select", (), index), piece.shape[1:], True)
    if any(step.verb != "select" for step in piece.steps):
        raise PieceFault(
            "only a parameter can be indexed here", "put the index on the parameter itself"
        )
    return replace(made, selection=(*piece.selection, number))


def permute(piece: Piece, dims: tuple[int, ...]) -> Piece:
    """Return a piece with its axes in another order.

    Raises:
        PieceFault: ``dims`` is no order of its axes.
    """
    rank = len(piece.shape)
    order = tuple(_dim(d, rank) for d in dims)
    if sorted(order) != list(range(rank)):
        raise PieceFault(f"{dims} is no order of {rank} axes")
    shape = tuple(piece.shape[d] for d in order)
    if isinstance(piece, Reshaped):
        raise PieceFault("a tensor that was reshaped cannot be reordered")
    if isinstance(piece, Fused):
        parts = tuple(permute(part, order) for part in piece.parts)
        return Fused(order.index(piece.dim), parts, shape)
    swapped = [i for i, d in enumerate(order) if i != d]
    if not swapped:
        return piece
    if len(swapped) == 2:
        return piece.then(Step("transpose", tuple(swapped)), shape, False)
    return piece.then(Step("permute", order), shape, False)


def transpose(piece: Piece, first: int = -2, second: int = -1) -> Piece:
    """Return a piece with two axes swapped, by default the last two.

    Raises:
        PieceFault: it has fewer axes.
    """
    rank = len(piece.shape)
    if rank < 2:
        raise PieceFault(f"a tensor of shape {show(piece.shape)} has no two axes to transpose")
    order = list(range(rank))
    a, b = _dim(first, rank), _dim(second, rank)
    order[a], order[b] = order[b], order[a]
    return permute(piece, tuple(order))


def reshape(piece: Piece, sizes: tuple[int, ...]) -> Piece:
    """Return a piece under another shape; one size may be -1.

    Raises:
        PieceFault: the number of entries differs.
    """
    total = prod(piece.shape)
    if sizes.count(-1) == 1:
        rest = -prod(sizes)
        sizes = tuple(total // rest if s == -1 and rest else s for s in sizes)
    if any(size < 1 for size in sizes) or prod(sizes) != total:
        raise PieceFault(f"{show(piece.shape)} cannot have the shape {show(sizes)}")
    if sizes == piece.shape:
        return piece
    if isinstance(piece, View) and piece.contiguous:
        return piece.then(Step("view", sizes), sizes, True)
    return Reshaped(piece.part if isinstance(piece, Reshaped) else piece, sizes)


def fuse(parts: tuple[Piece, ...], dim: int) -> Piece:
    """Return several pieces one after the other.

    Raises:
        PieceFault: their other sizes differ.
    """
    first = parts[0].shape
    dim = _dim(dim, len(first))
    others = first[:dim] + first[dim + 1 :]
    for part in parts[1:]:
        mine = part.shape
        if len(mine) != len(first) or mine[:dim] + mine[dim + 1 :] != others:
            raise PieceFault(
                f"{show(first)} and {show(mine)} cannot be fused along dimension {dim}: "
                "all other sizes must be equal"
            )
    if len(parts) == 1:
        return parts[0]
    total = sum(part.shape[dim] for part in parts)
    return Fused(dim, parts, (*first[:dim], total, *first[dim + 1 :]))


def narrow(piece: Piece, dim: int, start: int, size: int) -> Piece:
    """Return a range of a piece along a dimension.

    Raises:
        PieceFault: the piece is no view.
    """
    if not isinstance(piece, View):
        raise PieceFault("only a parameter or a view of it can be split")
    shape = (*piece.shape[:dim], size, *piece.shape[dim + 1 :])
    return piece.then(Step("narrow", (dim, start, size)), shape, dim == 0)


def split(piece: Piece, count: int, dim: int, sizes: tuple[int, ...] | None) -> tuple[Piece, ...]:
    """Return the parts of a piece along a dimension, of equal size if no sizes are given.

    Raises:
        PieceFault: the sizes do not fit.
    """
    dim = _dim(dim, len(piece.shape))
    total = piece.shape[dim]
    if sizes is None:
        if total % count:
            raise PieceFault(
                f"{total} entries along dimension {dim} cannot be split in {count} equal parts",
                "give their sizes: `split(...; sizes = [a, b])`",
            )
        sizes = (total // count,) * count
    if len(sizes) != count:
        raise PieceFault(f"{len(sizes)} sizes for {count} published names")
    if sum(sizes) != total or any(size < 1 for size in sizes):
        raise PieceFault(
            f"the sizes {show(sizes)} give {sum(sizes)} entries along dimension {dim}, "
            f"the parameter has {total}"
        )
    starts = [sum(sizes[:i]) for i in range(count)]
    return tuple(narrow(piece, dim, start, n) for start, n in zip(starts, sizes, strict=True))


def interleave(piece: Piece, heads: int, dim: int, skip: int, inverse: bool) -> Piece:
    """Return a piece whose halves along each head alternate; ``inverse`` undoes that.

    Channel pairs ``(i, i + half)`` of ours are published as ``(2 i, 2 i + 1)``; the first ``skip``
    channels of each head stay where they are.

    Raises:
        PieceFault: the heads are no halves.
    """
    if not isinstance(piece, View):
        raise PieceFault("only a parameter or a view of it can be interleaved")
    dim = _dim(dim, len(piece.shape))
    size = piece.shape[dim]
    width = size // heads - skip if heads > 0 else 0
    if heads < 1 or skip < 0 or size % heads or width < 2 or width % 2:
        raise PieceFault(
            f"{size} channels in {heads} heads without {skip} each cannot be interleaved: "
            "an even number must be left"
        )
    pair = (width // 2, 2) if inverse else (2, width // 2)
    if not skip:
        turned = transpose(_unflatten(piece, dim, (heads, *pair)), dim + 1, dim + 2)
        return Reshaped(turned, piece.shape)
    split_heads = _unflatten(piece, dim, (heads, skip + width))
    rest = narrow(split_heads, dim + 1, skip, width)
    turned = transpose(_unflatten(rest, dim + 1, pair), dim + 1, dim + 2)
    whole = (narrow(split_heads, dim + 1, 0, skip), Reshaped(turned, rest.shape))
    return Reshaped(fuse(whole, dim + 1), piece.shape)


def _unflatten(piece: Piece, dim: int, sizes: tuple[int, ...]) -> View:
    assert isinstance(piece, View)
    shape = (*piece.shape[:dim], *sizes, *piece.shape[dim + 1 :])
    return piece.then(Step("view", shape), shape, True)


def _dim(dim: int, rank: int) -> int:
    if not -rank <= dim < rank:
        raise PieceFault(f"there is no dimension {dim} in {rank}")
    return dim % rank


def show(shape: tuple[int, ...]) -> str:
    """Return a shape as it is written: ``(48, 96)``."""
    return f"({', '.join(str(size) for size in shape)})"
