"""Operations of a region as statements of a kernel, forward and in reverse.

The forms come from the classes of the operations (`Op.tiled`, `Op.tiled_gradient`); here is only
where the axes of values lie, and how gradients add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from tokdsl.graph.program import OpNode, Value
from tokdsl.ops.tile import Grid, NotTiled, Place, Tile, is_literal, padded, sum_of
from tokdsl.types.tensors import Axis, TensorType, ValueType

#: the companion that says which tokens are not padding
PADDING = "valid"
#: dimension of each axis of a value; None for an axis of which a program holds one entry
Dims = tuple[int | None, ...]


@dataclass
class Writer:
    """The statements of a region.

    Args:
        grid: the dimensions; those that `place` knows are there, others are added.
        place: the dimension of an axis that the template walks; raises `KeyError` for others.
    """

    grid: Grid
    place: Place
    dims: dict[int, Dims] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    _known: dict[tuple[str, int], int] = field(default_factory=dict)

    # ----------------------------------------------------------------- where axes lie

    def lay(self, inputs: Iterable[Value], nodes: Iterable[OpNode]) -> None:
        """Give every axis of every value its dimension.

        Raises:
            NotTiled: if an axis has no fixed size, or an operation joins axes that differ.
        """
        for value in inputs:
            self.dims[id(value)] = self._new(_tensor(value).axes, {})
        for node in nodes:
            names = self._names(node)
            kinds = result_types(node)
            if any(kind.dtype == "f64" for kind in kinds):
                raise NotTiled("it is computed in f64")
            for value, kind in zip(node.outputs, kinds, strict=True):
                self.dims[id(value)] = self._new(kind.axes, names)

    def _new(self, axes: Sequence[Axis], names: Mapping[str, int | None]) -> Dims:
        found: list[int | None] = []
        for axis in axes:
            if axis.name in names:
                found.append(self._same(names[axis.name], axis))
                continue
            try:
                found.append(self.place(axis))
            except KeyError:
                found.append(self._small(axis, found))
        return tuple(found)

    def _same(self, dim: int | None, axis: Axis) -> int | None:
        if dim is not None and self.grid.sizes[dim] not in (0, axis.size.number):
            raise NotTiled(f"the length of `{axis.name}` changes")
        return dim

    def volume(self, nodes: Iterable[OpNode]) -> int:
        """Return how many entries a row has in the largest block."""
        largest = 1
        for node in nodes:
            read = [v for v in node.inputs if id(v) in self.dims]
            groups = [[v] for v in (*read, *node.outputs)]
            if not node.op.moves or not self._is_even(node):
                groups = [[*read, *node.outputs]]
            for group in groups:
                dims = {d for v in group for d in self.dims[id(v)] if d}
                largest = max(largest, prod(padded(self.grid.sizes[d]) for d in dims))
        return largest

    def _is_even(self, node: OpNode) -> bool:
        """Whether entries are moved without padding between them."""
        both = (node.inputs[0], node.outputs[0])
        before, after = ({d for d in self.dims[id(v)] if d} for v in both)
        sizes = [[self.grid.sizes[d] for d in dims] for dims in (before - after, after - before)]
        return sizes[0] == sizes[1] or all(padded(n) == n for part in sizes for n in part)

    def _small(self, axis: Axis, used: Sequence[int | None]) -> int:
        size = axis.size.number
        if size is None or axis.at_most or axis.clock is not None or axis.group is not None:
            raise NotTiled(f"the length of `{axis.name}` is not fixed")
        key = (axis.name.strip("^"), size)
        if key not in self._known or self._known[key] in used:
            self._known[key] = self.grid.add(size)
        return self._known[key]

    def _names(self, node: OpNode) -> dict[str, int | None]:
        names: dict[str, int | None] = {}
        for _, kind, value in operands(node):
            if id(value) not in self.dims:
                continue  # read for its type alone
            for axis, dim in zip(kind.axes, self.dims[id(value)], strict=True):
                names.setdefault(axis.name, dim)
        return names

    # ----------------------------------------------------------------- forward

    def forward(self, nodes: Iterable[OpNode]) -> None:
        """Write the operations.

        Raises:
            NotTiled: if one has no form over blocks.
        """
        for node in nodes:
            tile = self._tile(node)
            over_rows = is_over_rows(node)
            written = node.op.accumulated(tile) if over_rows else node.op.tiled(tile)
            if written is None:
                raise NotTiled(f"`{node.op.op_name}` has no form in a kernel")
            texts = (written,) if isinstance(written, str) else written
            for value, text in zip(node.outputs, texts, strict=True):
                self.text[id(value)] = self.grid.bind(text, value.name or node.op.op_name)

    def _tile(self, node: OpNode) -> Tile:
        names = self._names(node)
        for value, kind in zip(node.outputs, result_types(node), strict=True):
            for axis, dim in zip(kind.axes, self.dims[id(value)], strict=True):
                names.setdefault(axis.name, dim)
        types: dict[str, ValueType] = {}
        texts: dict[str, str] = {}
        for name, kind, value in operands(node):
            types[name] = kind
            if id(value) not in self.text:
                continue
            texts[name] = self._aligned(value, tuple(names[axis.name] for axis in kind.axes))
        outputs = [self.text[id(v)] for v in node.outputs if id(v) in self.text]
        return Tile(self.grid, texts, types, result_types(node), names, outputs)

    def _aligned(self, value: Value, wanted: Dims) -> str:
        text, have = self.text[id(value)], self.dims[id(value)]
        if have == wanted:
            return text
        order = [d for d in wanted if d is not None]
        if order != sorted(order) or [d for d in have if d is not None] != sorted(
            d for d in have if d is not None
        ):
            raise NotTiled("axes stand in another order")
        lead = self._spans(value) - set(have)
        sizes = [s if i in {*wanted, *lead} else "1" for i, s in enumerate(self.grid.shape)]
        full = [s if i in {*have, *lead} else "1" for i, s in enumerate(self.grid.shape)]
        source = f"tl.broadcast_to({text}, ({', '.join(full)}))"
        return self.grid.bind(f"tl.reshape({source}, ({', '.join(sizes)}))", "moved")

    # ----------------------------------------------------------------- reverse

    def reverse(self, nodes: Sequence[OpNode], gradients: Mapping[int, str]) -> dict[int, str]:
        """Write the gradients of all values that have one; return them by value.

        Args:
            nodes: what `forward` wrote.
            gradients: the gradients of results, by the identity of the value.

        Raises:
            NotTiled: if an operation has no gradient in a kernel.
        """
        parts: dict[int, list[str]] = {key: [text] for key, text in gradients.items()}
        done: dict[int, str] = {}
        for node in reversed(nodes):
            given = [self._total(value, parts, done) for value in node.outputs]
            flows = node.op.gradient()
            if all(text is None for text in given) or not any(flows.values()):
                continue
            tile = self._tile(node)
            if is_over_rows(node):
                found = node.op.accumulated_gradient(tile, given[0] or "0.0")
                found = found and {n: f"tl.where(counted, {t}, 0.0)" for n, t in found.items()}
            else:
                found = node.op.tiled_gradient(tile, given)
            if found is None:
                raise NotTiled(f"`{node.op.op_name}` has no gradient in a kernel")
            for name, kind, value in operands(node):
                if flows.get(name) and name in found and not is_literal(self.text[id(value)]):
                    text = self._narrowed(found[name], node, value, kind, tile)
                    parts.setdefault(id(value), []).append(text)
        for key, texts in parts.items():
            if key not in done:
                done[key] = self.grid.bind(sum_of(texts), "gradient")
        return done

    def _total(self, value: Value, parts: dict[int, list[str]], done: dict[int, str]) -> str | None:
        if id(value) not in parts:
            return None
        name = f"{value.name or 'x'}_gradient"
        done[id(value)] = self.grid.bind(sum_of(parts[id(value)]), name)
        return done[id(value)]

    def _spans(self, value: Value) -> set[int | None]:
        """Return the dimensions along which a value varies."""
        if id(value) not in self.dims:
            return set()
        batched = isinstance(value.type, TensorType) and value.type.batched
        return {*self.dims[id(value)], *({self.grid.batch} if batched else ())}

    def _narrowed(self, text: str, node: OpNode, value: Value, kind: TensorType, tile: Tile) -> str:
        """Sum a gradient over the dimensions that the operand has not."""
        have = self._spans(value)
        wide: set[int | None] = set()
        for output in node.outputs if not node.op.moves else ():
            wide |= self._spans(output)
        for other in node.inputs:
            wide |= self._spans(other)
        gone = sorted(d for d in wide if d is not None and d not in have)
        lead = have - set(self.dims[id(value)])
        wanted = {*(tile.dims[axis.name] for axis in kind.axes), *lead}
        if wanted != have:  # the operand was moved: so is its gradient
            sizes = [s if i in have else "1" for i, s in enumerate(self.grid.shape)]
            full = [s if i in wanted else "1" for i, s in enumerate(self.grid.shape)]
            text = f"tl.reshape(tl.broadcast_to({text}, ({', '.join(full)})), ({', '.join(sizes)}))"
            gone = [d for d in gone if d not in wanted]
        if not gone:
            return self.grid.bind(text, "part")
        sizes = [s if i in have or i in gone else "1" for i, s in enumerate(self.grid.shape)]
        text = f"tl.broadcast_to({text}, ({', '.join(sizes)}))"
        masks = [mask for dim in gone if (mask := self.grid.there(dim))]
        if masks:
            text = f"tl.where({' & '.join(masks)}, {text}, 0.0)"
        for dim in gone:
            text = f"tl.sum({text}, axis={dim}, keep_dims=True)"
        return self.grid.bind(text, "part")


def is_over_rows(node: OpNode) -> bool:
    """Whether an operation goes over all rows."""
    read = any(v.type.batched for _, _, v in operands(node) if isinstance(v.type, TensorType))
    made = [v.type for v in node.outputs]
    return read and not any(isinstance(kind, TensorType) and kind.batched for kind in made)


def is_row(axis: Axis) -> bool:
    """Whether an axis counts tokens or rows of a dispatch."""
    return axis.clock is not None or axis.group is not None


def result_types(node: OpNode) -> tuple[TensorType, ...]:
    """Return the types of the results under the operation's own names of axes.

    Raises:
        NotTiled: if one is not a tensor.
    """
    kind = node.op.type()
    kinds = kind if isinstance(kind, tuple) else (kind,)
    for found in kinds:
        if not isinstance(found, TensorType):
            raise NotTiled(f"`{node.op.op_name}` gives {found}")
    return tuple(k for k in kinds if isinstance(k, TensorType))


def operands(node: OpNode) -> list[tuple[str, TensorType, Value]]:
    """Return name, type under the operation's own names of axes, and value of each operand.

    What says which tokens are padding is left out: a template reads it by itself.

    Raises:
        NotTiled: if one is not a tensor.
    """
    types = dict(node.op.operand_types())
    found: list[tuple[str, TensorType, Value]] = []
    for name, value in zip(node.operands, node.inputs, strict=True):
        kind = types[name]
        if name == PADDING:
            continue
        if not isinstance(kind, TensorType) or value.python != "Tensor":
            raise NotTiled(f"`{node.op.op_name}` reads {kind}")
        found.append((name, kind, value))
    return found


def _tensor(value: Value) -> TensorType:
    if not isinstance(value.type, TensorType):
        raise NotTiled(f"it reads {value.type}")
    return value.type
