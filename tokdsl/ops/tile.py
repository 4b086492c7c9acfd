"""How an operation is written in a kernel: over blocks that a program holds in registers.

A kernel works on blocks with a fixed number of dimensions, one per axis of its region. Every block
has all of them: where a value does not have an axis the block has size one, so that blocks meet by
broadcasting. A size is padded to a power of two; what padded entries hold is unspecified, and an
operation that reads across them fills them first (`Tile.filled`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from tokdsl.ops.precedence import primary
from tokdsl.types.tensors import Axis, TensorType, ValueType

_ASSIGNED = re.compile(r"^\s*(\w+) = ")
_NAME = re.compile(r"[A-Za-z_]\w*")


class NotTiled(Exception):
    """An operation has no form over blocks; the text says why."""


@dataclass
class Grid:
    """The dimensions of the blocks of one kernel, and the statements written so far.

    Args:
        shape: text of the size of each dimension: a name of a constexpr, or a number.
        sizes: how many entries of each dimension count; 0 where the template masks by itself.
        inside: text of a mask over a dimension that the template masks, or "".
        batch: the dimension that counts the batch too, or None if a program holds one example.
    """

    shape: list[str]
    sizes: list[int]
    inside: list[str]
    batch: int | None = None
    lines: list[str] = field(default_factory=list)
    _indices: dict[int, str] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def add(self, size: int) -> int:
        """Add a dimension of fixed size; return its number. Only before lines are written."""
        self.shape.append(str(padded(size)))
        self.sizes.append(size)
        self.inside.append("")
        return self.rank - 1

    def name(self, hint: str) -> str:
        """Return a new variable name."""
        base = "".join(c if c.isalnum() else "_" for c in hint).strip("_") or "x"
        name, number = base, 1
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name

    def line(self, text: str) -> None:
        """Write a statement."""
        self.lines.append(text)

    def bind(self, text: str, hint: str = "x") -> str:
        """Write ``name = text`` and return the name; names and literals stay as they are."""
        if text.isidentifier() or is_literal(text):
            return text
        name = self.name(hint)
        self.line(f"{name} = {text}")
        return name

    def needed(self) -> list[str]:
        """Return the statements without those that only make what nothing reads."""
        blocks: list[list[str]] = []
        for line in self.lines:
            if blocks and line.startswith(" "):
                blocks[-1].append(line)
            else:
                blocks.append([line])
        kept: list[list[str]] = []
        read: set[str] = set()
        for block in reversed(blocks):
            made = [found[1] for line in block if (found := _ASSIGNED.match(line))]
            stores = any("tl.store(" in line for line in block)
            if made and not stores and not read & set(made):
                continue
            kept.append(block)
            for line in block:
                found = _ASSIGNED.match(line)
                read |= set(_NAME.findall(line[found.end() :] if found else line))
        return [line for block in reversed(kept) for line in block]

    def index(self, dim: int) -> str:
        """Return the name of the numbers 0, 1, ... along a dimension, shaped to broadcast."""
        if dim not in self._indices:
            where = ", ".join(":" if i == dim else "None" for i in range(self.rank))
            text = f"tl.arange(0, {self.shape[dim]})"
            name = self.name(f"at_{dim}")
            self.line(f"{name} = {text}" + (f"[{where}]" if self.rank > 1 else ""))
            self._indices[dim] = name
        return self._indices[dim]

    def there(self, dim: int) -> str:
        """Return the mask of the entries of a dimension that count, or "" if all do."""
        if self.inside[dim]:
            return self.inside[dim]
        size = self.sizes[dim]
        return f"({self.index(dim)} < {size})" if size and padded(size) != size else ""


class Tile(dict[str, str]):
    """One use of an operation in a kernel: the texts of its operands, and where their axes are.

    Args:
        grid: the dimensions.
        operands: text of each operand.
        types: type of each operand, under the names of axes of the operation.
        results: type of each result.
        dims: dimension of each axis name; None for one that is a single entry in this program.
        outputs: text of each result, once it is written (for gradients).
    """

    def __init__(
        self,
        grid: Grid,
        operands: Mapping[str, str],
        types: Mapping[str, ValueType],
        results: Sequence[TensorType],
        dims: Mapping[str, int | None],
        outputs: Sequence[str] = (),
    ) -> None:
        super().__init__(operands)
        self.grid = grid
        self.types = types
        self.results = tuple(results)
        self.dims = dict(dims)
        self.outputs = tuple(outputs)

    def dim(self, axis: str) -> int:
        """Return the dimension of an axis.

        Raises:
            NotTiled: if a program sees only one entry of it.
        """
        found = self.dims.get(axis)
        if found is None:
            raise NotTiled(f"it goes along `{axis}`, of which a program holds one entry")
        return found

    def size(self, axis: str) -> int:
        """Return how many entries an axis has.

        Raises:
            NotTiled: if that is not fixed.
        """
        size = self.grid.sizes[self.dim(axis)]
        if not size:
            raise NotTiled(f"it goes along `{axis}`, whose length is not fixed")
        return size

    def padded(self, axis: str) -> int:
        """Return the size of an axis in the block."""
        return padded(self.size(axis))

    def index(self, axis: str) -> str:
        """Return the numbers 0, 1, ... along an axis, shaped to broadcast."""
        return self.grid.index(self.dim(axis))

    def there(self, axis: str) -> str:
        """Return the mask of the entries of an axis that count, or "" if all do."""
        return self.grid.there(self.dim(axis))

    def filled(self, text: str, axes: Sequence[str], neutral: str) -> str:
        """Return a block with a neutral value in the padded entries of some axes."""
        masks = [mask for axis in axes if (mask := self.there(axis))]
        return f"tl.where({' & '.join(masks)}, {text}, {neutral})" if masks else text

    def reduced(self, function: str, text: str, axes: Sequence[str], neutral: str) -> str:
        """Return a reduction (``tl.sum``, ``tl.max``) over some axes; they keep size one.

        ``text`` must have the axes in full; see `full`.

        Raises:
            NotTiled: if a program does not hold all entries of one.
        """
        for axis in axes:
            self.size(axis)
        text = self.filled(text, axes, neutral)
        for axis in axes:
            text = f"{function}({text}, axis={self.dim(axis)}, keep_dims=True)"
        return text

    def shape(self, kind: TensorType) -> str:
        """Return the shape of a block of a type, as text."""
        have = self._dims_of(kind)
        sizes = [s if i in have else "1" for i, s in enumerate(self.grid.shape)]
        return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"

    def full(self, text: str, kind: TensorType) -> str:
        """Return a block of a type in full: with no size one where the type has an axis."""
        if not self._dims_of(kind):
            return text
        return f"tl.broadcast_to({text}, {self.shape(kind)})"

    def constant(self, kind: TensorType, value: str = "0.0") -> str:
        """Return a name of a block of a type with one value everywhere."""
        dtype = {"bool": "tl.int1", "i64": "tl.int64"}.get(kind.dtype, "tl.float32")
        name = self.grid.name("found")
        self.grid.line(f"{name} = tl.full({self.shape(kind)}, {value}, {dtype})")
        return name

    def bind(self, text: str, hint: str = "x") -> str:
        """Give an expression a name; return it."""
        return self.grid.bind(text, hint)

    def line(self, text: str) -> None:
        """Write a statement (with its own indentation)."""
        self.grid.line(text)

    def name(self, hint: str) -> str:
        """Return a new variable name."""
        return self.grid.name(hint)

    def summed(self, text: str, axes: Sequence[str], is_float: bool = True) -> str:
        """Return the sum over some axes of a block that has them in full, under a name."""
        text = self.bind(text, "terms")
        return self.bind(self.reduced("tl.sum", text, axes, "0.0" if is_float else "0"), "total")

    def loop(self, place: str, axis: str) -> None:
        """Begin a loop over the places along an axis; what it does follows, indented."""
        self.index(axis)  # written before the loop
        self.line(f"for {place} in range({self.size(axis)}):")

    def entry(self, text: str, axis: str, place: str, zero: str = "0.0") -> str:
        """Return the one entry of a block at a place along an axis."""
        found = f"tl.where({self.index(axis)} == {place}, {text}, {zero})"
        return f"tl.sum({found}, axis={self.dim(axis)}, keep_dims=True)"

    def moved(self, text: str, old: TensorType, new: TensorType) -> str | None:
        """Return a block of one type with the dimensions of another one that has as many entries.

        None if the order of the entries would not be the same, or padding would get between them.
        """
        before, after = self._ordered(old), self._ordered(new)
        gone = [d for d in before if d not in after]
        made = [d for d in after if d not in before]
        sizes = [[self.grid.sizes[d] for d in dims] for dims in (gone, made)]
        if any(n == 0 for part in sizes for n in part):
            raise NotTiled("it moves the rows")
        if prod(sizes[0]) != prod(sizes[1]):
            return None
        if sizes[0] != sizes[1] and any(padded(n) != n for part in sizes for n in part):
            return None
        if gone != made:
            at = min((before.index(d) for d in gone), default=0)
            if before[at : at + len(gone)] != gone:
                return None
            if before[:at] + made + before[at + len(gone) :] != after or after != sorted(after):
                return None
        if before != sorted(before):
            return None
        return f"tl.reshape({self.full(text, old)}, {self.shape(new)})"

    def _ordered(self, kind: TensorType) -> list[int]:
        dims = [self.dims.get(axis.name) for axis in kind.axes]
        found = [d for d in dims if d is not None]
        batch = self.grid.batch
        lead = [batch] if kind.batched and batch is not None and batch not in found else []
        return lead + found

    def _dims_of(self, kind: TensorType) -> set[int]:
        found = {self.dims.get(axis.name) for axis in kind.axes}
        found |= {self.grid.batch} if kind.batched else set()
        return {dim for dim in found if dim is not None}


def padded(size: int) -> int:
    """Return the smallest power of two that is not smaller."""
    return 1 << max(size - 1, 0).bit_length()


def is_literal(text: str) -> bool:
    """Whether a text is a number or truth value."""
    if text.startswith("float("):
        return True
    try:
        float(text)
    except ValueError:
        return text in ("True", "False")
    return True


def sum_of(parts: Sequence[str]) -> str:
    """Return the sum of some expressions."""
    return " + ".join(primary(part) if len(parts) > 1 else part for part in parts)


#: what an operation gives of itself: one expression per result
Written = str | tuple[str, ...] | None
#: decides where an axis lies
Place = Callable[[Axis], int | None]
