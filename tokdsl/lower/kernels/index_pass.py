"""Statements of a kernel that goes over pairs of a query and a key, block by block.

Products of a vector of the query with one of the key are made by tiles; all else goes element by
element, or over axes of fixed size. An axis that keys have and over which is summed is walked: one
entry at a time, so that a product is of one query's rows with one key's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

from tokdsl.graph.program import Module, OpNode, Value
from tokdsl.lower.kernels.write import Writer, operands
from tokdsl.lower.selection import goes_over
from tokdsl.ops.contract import Dot
from tokdsl.ops.reduce import Max, Mean, Min, Sum
from tokdsl.ops.row import LOWEST, LogSoftmax, Softmax
from tokdsl.ops.selected import AtColumns, Seen
from tokdsl.ops.shape import Order
from tokdsl.ops.tile import Grid, NotTiled, padded
from tokdsl.types.tensors import Axis, TensorType

#: rows of queries and heads that one product of tiles has at least
ROWS = 16
#: what goes over all keys and follows from the logarithm of a sum of exponentials
OVER_KEYS = (Softmax, LogSoftmax)
#: sums over entries that are walked: where they begin, how an entry joins them, over a block
_JOINED: dict[type, tuple[str, str, str]] = {
    Sum: ("0.0", "{} + {}", "tl.sum"),
    Mean: ("0.0", "{} + {}", "tl.sum"),
    Max: ('float("-inf")', "tl.maximum({}, {})", "tl.max"),
    Min: ('float("inf")', "tl.minimum({}, {})", "tl.min"),
}


@dataclass(frozen=True)
class Given:
    """How a program addresses a tensor that it is given.

    Attributes:
        name: of the argument of the launcher.
        strides: names of the strides of its dimensions, in order.
        batched: whether its first dimension is the batch.
    """

    name: str
    strides: tuple[str, ...]
    batched: bool


@dataclass
class Pairs:
    """The axes of a choice, and what it needs to know of all keys first.

    Attributes:
        module: what chooses.
        query: the name of the axis of queries.
        key: the name of the axis of keys.
        units: who chooses apart; a program has one entry of each.
        candidates: what gathers the keys among which is chosen, if not all are.
        walked: axes of keys over which is summed.
        sums: what goes over all keys, in order.
        entries: the axes of each of these besides queries, units and those that are walked.
    """

    module: Module
    query: str
    key: str
    units: tuple[Axis, ...]
    candidates: OpNode | None = None
    walked: tuple[Axis, ...] = ()
    sums: list[OpNode] = field(default_factory=list)
    entries: list[tuple[Axis, ...]] = field(default_factory=list)

    @property
    def tensors(self) -> list[Value]:
        """The inputs that are tensors."""
        return [v for v in self.module.inputs if v.python == "Tensor"]

    @property
    def known(self) -> set[str]:
        """The names of axes that are no axes of a block besides queries and keys."""
        return {self.query, self.key, *(a.name for a in (*self.units, *self.walked))}

    def is_walked(self, node: OpNode) -> bool:
        """Whether a sum over all keys is of each entry that is walked."""
        names = {a.name for a in node.outputs[0].type.axes}
        return any(a.name in names for a in self.walked)


class Pass:
    """The statements of one kernel.

    Args:
        pairs: the axes.
        small: the axes of a block besides queries and keys.
        loops: whether what is walked is walked in this kernel; else a program has one entry.
        gathers: whether its keys are candidates.
    """

    def __init__(self, pairs: Pairs, small: Sequence[Axis], *, loops: bool, gathers: bool) -> None:
        self.pairs = pairs
        self.small = list(small)
        self.loops = loops
        self.gathers = gathers
        self.used: dict[str, Given] = {}
        self.least = 1
        self.width = 1
        self._open()

    # ----------------------------------------------------------------- dimensions

    def _open(self) -> None:
        """Lay the dimensions: queries, axes that are summed, keys."""
        shape = [str(padded(a.size.number or 1)) for a in self.small]
        total = prod(int(s) for s in shape)
        if self.gathers and shape and total < ROWS:
            shape[-1] = str(int(shape[-1]) * ROWS // total)
        sizes = [a.size.number or 1 for a in self.small]
        self.grid = Grid(
            ["BLOCK_Q", *shape, "BLOCK_K"],
            [0, *sizes, 0],
            ["real_query", *[""] * len(sizes), "there"],
        )
        for name in (*_TAKEN, *(_SUMS if self.pairs.sums or self.pairs.walked else ())):
            self.grid.name(name)
        for axis in (*self.pairs.units, *self.pairs.walked):
            self.grid.name(f"at_{axis.name}")
        for dim, size in enumerate(sizes, 1):
            name = self.grid.index(dim)  # written here, where every statement sees it
            if int(shape[dim - 1]) != size:
                self.grid.inside[dim] = f"({name} < {size})"
        self.grid.lines += _places("unit", self.pairs.units)
        if not self.loops:
            self.grid.lines += _places("walk", self.pairs.walked)
        self.writer = Writer(self.grid, self._place)

    def _place(self, axis: Axis) -> int | None:
        names = [self.pairs.query, *(a.name for a in self.small), self.pairs.key]
        if any(a.name == axis.name for a in (*self.pairs.units, *self.pairs.walked)):
            return None
        if axis.name in names:
            return names.index(axis.name)
        raise NotTiled(f"it has an axis `{axis.name}` that is not its own")

    @property
    def rows(self) -> int:
        """How many entries of a block there are for one query and one key."""
        return prod(int(s) for s in self.grid.shape[1:-1])

    def shape(self, dims: Iterable[int], has_keys: bool = True) -> str:
        """Return the shape of a block over queries, keys and some dimensions."""
        full = {*dims, 0, *([self.grid.rank - 1] if has_keys else ())}
        sizes = [s if i in full else "1" for i, s in enumerate(self.grid.shape)]
        return f"({', '.join(sizes)})"

    def address(self, number: int) -> str:
        """Return where the program finds what it knows of all keys: a block without keys."""
        axes, grid = self.pairs.entries[number], self.grid
        walks = 1
        at = f"(batch * {prod(a.size.number or 1 for a in self.pairs.units)} + unit)"
        if self.pairs.is_walked(self.pairs.sums[number]):
            walks = prod(a.size.number or 1 for a in self.pairs.walked)
            at = f"({at} * {walks} + walk)"
        text, stride = "", 1
        for axis in reversed(axes):
            dim = self._place(axis)
            assert dim is not None
            text = f" + {grid.index(dim)} * {stride}" + text
            stride *= axis.size.number or 1
        return f"sums_{number} + ({at} * (end - begin) + query - begin) * {stride}{text}"

    def inside(self, number: int) -> str:
        """Return the mask of such a block."""
        dims = [self._place(axis) for axis in self.pairs.entries[number]]
        found = [self.grid.there(dim) for dim in dims if dim is not None]
        return " & ".join(["real_query", *(mask for mask in found if mask)])

    # ----------------------------------------------------------------- statements

    def written(self, nodes: Sequence[OpNode]) -> list[str]:
        """Return the statements of some operations.

        Raises:
            NotTiled: if one has no form in a kernel.
        """
        at = len(self.grid.lines)
        inner = [n for n in nodes if any(map(self._is_walked, (*n.inputs, *n.outputs)))]
        after = self._after(nodes, inner)
        for node in nodes:
            if node not in inner and node not in after:
                self._write(node)
        if inner:
            self._walk(inner)
        for node in after:
            self._write(node)
        lines = self.grid.lines[at:]
        del self.grid.lines[at:]
        return lines

    def _is_walked(self, value: Value) -> bool:
        walked = {a.name for a in self.pairs.walked}
        return self.loops and any(a.name in walked for a in getattr(value.type, "axes", ()))

    def _after(self, nodes: Sequence[OpNode], inner: list[OpNode]) -> list[OpNode]:
        """Return what needs the sums of what is walked."""
        made = {id(v) for n in inner for v in n.outputs}
        joined = {id(v) for n in inner for v in n.outputs if not self._is_walked(v)}
        later: list[OpNode] = []
        for node in nodes:
            if node in inner:
                if any(id(v) in joined for v in node.inputs):
                    raise NotTiled("what is summed over axes of keys is summed again")
            elif any(id(v) in made for v in node.inputs):
                later.append(node)
                made |= {id(v) for v in node.outputs}
                joined |= {id(v) for v in node.outputs}
        return later

    def _walk(self, nodes: list[OpNode]) -> None:
        """Write a loop over the entries that are walked."""
        grid = self.grid
        for node in nodes:
            for value in node.inputs:
                plain = value in self.pairs.tensors and not isinstance(node.op, Dot | AtColumns)
                if plain and not self._is_walked(value):
                    self._give(value)  # read once, before the loop
        at = len(grid.lines)
        begins: list[str] = []
        ends: list[tuple[Value, str]] = []
        for node in nodes:
            if any(map(self._is_walked, node.outputs)):
                self._write(node)
            else:
                begin, end = self._join(node)
                begins.append(begin)
                ends.append((node.outputs[0], end))
        body = grid.lines[at:]
        del grid.lines[at:]
        count = prod(a.size.number or 1 for a in self.pairs.walked)
        grid.lines += [*begins, f"for walk in range({count}):"]
        grid.lines += [f"    {line}" for line in (*_places("walk", self.pairs.walked), *body)]
        for value, text in ends:
            self.writer.text[id(value)] = grid.bind(text, value.name or "joined")

    def _join(self, node: OpNode) -> tuple[str, str]:
        """Write how an entry that is walked joins a sum; return where this begins and its value."""
        value, made = node.inputs[0], node.outputs[0]
        have = {a.name for a in value.type.axes}
        form = _JOINED.get(type(node.op))
        is_all = all(a.name in have for a in self.pairs.walked)
        if form is None or len(node.inputs) > 1 or not made.type.is_float or not is_all:
            names = ", ".join(f"`{a.name}`" for a in self.pairs.walked)
            raise NotTiled(f"`{node.op.op_name}` goes over {names}, which keys have")
        begin, join, function = form
        self._lay(made)
        grid, kept = self.grid, set(self.writer.dims[id(made)])
        dims = [d for d in self.writer.dims[id(value)] if d is not None]
        sizes = [s if i in dims else "1" for i, s in enumerate(grid.shape)]
        text = f"tl.broadcast_to({self.writer.text[id(value)]}, ({', '.join(sizes)}))"
        gone = [d for d in dims if d not in kept]
        masks = [grid.there(d) for d in gone if grid.there(d)]
        if masks:
            text = f"tl.where({' & '.join(masks)}, {text}, {begin})"
        for dim in gone:
            text = f"{function}({text}, axis={dim}, keep_dims=True)"
        name = grid.name("joined")
        grid.line(f"{name} = {join.format(name, text)}")
        full = ", ".join("1" if i in gone else s for i, s in enumerate(sizes))
        result = name
        if isinstance(node.op, Mean):
            own = {a.name for a in made.type.axes}
            result += f" / {prod(a.size.number or 1 for a in value.type.axes if a.name not in own)}"
        return f"{name} = tl.full(({full}), {begin}, tl.float32)", result

    def _write(self, node: OpNode) -> None:
        writer = self.writer
        made = node.outputs[0]
        if isinstance(node.op, Dot):
            self._product(node)
        elif isinstance(node.op, AtColumns):
            self._lay(made)
            source = node.inputs[0]
            if source not in self.pairs.module.inputs:  # computed at the candidates already
                writer.text[id(made)] = writer.text[id(source)]
            else:
                writer.text[id(made)] = self._load(source)
        elif isinstance(node.op, Seen | Order):
            self._lay(made)
            inner = dict(zip(node.operands, node.inputs, strict=True)).get(
                "x" if isinstance(node.op, Order) else "where"
            )
            text = "there"
            if inner is not None:
                self._give(inner)
                text = writer.text[id(inner)]
            writer.text[id(made)] = text
        elif goes_over(node, self.pairs.key):
            self._weigh(node)
        else:
            for _, _, value in operands(node):
                self._give(value)
            writer.lay([], [node])
            writer.forward([node])

    def _weigh(self, node: OpNode) -> None:
        """Write what follows from the logarithm of the sum of exponentials of all keys."""
        number, made = self.pairs.sums.index(node), node.outputs[0]
        self._lay(made)
        text = f"tl.load({self.address(number)}, mask={self.inside(number)}, other=0.0)"
        size = self.grid.bind(text, "size")
        found = dict(zip(node.operands, node.inputs, strict=True))
        for value in found.values():
            self._give(value)
        texts = {name: self.writer.text[id(value)] for name, value in found.items()}
        # of a query that sees no key
        base = self.grid.bind(f"tl.where({size} > {LOWEST}, {size}, 0.0)", "base")
        text, none = f"{texts['x']} - {base}", LOWEST
        if isinstance(node.op, Softmax):
            text, none = f"tl.exp({text})", "0.0"
        text = f"tl.where({texts['where']}, {text}, {none})"
        self.writer.text[id(made)] = self.grid.bind(text, made.name or node.op.op_name)

    def _lay(self, value: Value) -> None:
        self.writer.dims[id(value)] = tuple(self._place(axis) for axis in value.type.axes)

    def _give(self, value: Value) -> None:
        """Load what stands outside of the equations."""
        if id(value) in self.writer.text:
            return
        self._lay(value)
        if self.gathers and value.node is self.pairs.candidates and value.node is not None:
            self.writer.text[id(value)] = "columns"
        elif value in self.pairs.module.inputs:
            self.writer.text[id(value)] = self._load(value)
        else:
            raise NotTiled("it reads what is made elsewhere")

    def _load(self, value: Value) -> str:
        """Write the load of numbers of a query, a key, or neither; return the name."""
        kind, given = self._given(value)
        terms, masks = [], []
        for axis, stride in zip(kind.axes, given.strides, strict=True):
            dim = self._place(axis)
            at = f"at_{axis.name}"
            if dim is not None:
                ends = {0: "query", self.grid.rank - 1: "key"}
                at = ends.get(dim) or self.grid.index(dim)
                masks += [self.grid.there(dim)] if self.grid.there(dim) else []
            terms.append(f"{at} * {stride}")
        mask = f", mask={' & '.join(dict.fromkeys(masks))}, other=0" if masks else ""
        text = f"tl.load({given.name}_at + {' + '.join(terms) or '0'}{mask})"
        if kind.is_float:
            text += ".to(tl.float32)"
        elif kind.dtype == "bool":
            text += " != 0"
        return self.grid.bind(text, f"{given.name}_here")

    def _given(self, value: Value) -> tuple[TensorType, Given]:
        """Return type and addresses of an input."""
        kind = value.type
        if value not in self.pairs.module.inputs or not isinstance(kind, TensorType):
            raise NotTiled("it reads what is made elsewhere")
        place = self.pairs.tensors.index(value)
        name = f"given_{place}"
        if name not in self.used:
            strides = tuple(f"{name}_{at}" for at in range(len(kind.axes)))
            self.used[name] = Given(name, strides, kind.batched)
        return kind, self.used[name]

    # ----------------------------------------------------------------- products

    def _product(self, node: OpNode) -> None:
        """Write the product of a vector of queries with one of keys, by tiles."""
        (query, wide), (key, width_name) = sides(node, self.pairs)
        width = next(a.size.number for a in query.type.axes if a.name == wide)
        if width is None:
            raise NotTiled(f"the length of `{wide}` is not fixed")
        self.width = max(self.width, width)
        value, grid = node.outputs[0], self.grid
        self._lay(value)
        rows, dims, lone = self._query_rows(query, wide, width)
        keys = self._key_rows(key, width_name, width)
        found = grid.name(value.name or "product")
        count = prod(int(grid.shape[d]) for d in dims)
        shape = "(BLOCK_K,)" if lone else f"(BLOCK_Q * {count}, BLOCK_K)"
        grid.line(f"{found} = tl.zeros({shape}, tl.float32)")
        grid.line(f"for start in range(0, {width}, CHUNK):")
        grid.line("    width = start + tl.arange(0, CHUNK)[None, :]")
        grid.line(f"    own = {rows}")
        grid.line(f"    other = {keys}")
        if lone:
            grid.line(f"    {found} += tl.sum(own.to(tl.float32) * other.to(tl.float32), axis=1)")
        else:
            grid.line("    other = tl.trans(other.to(own.dtype))")
            grid.line(f"    {found} = tl.dot(own, other, {found}, input_precision=PRECISION)")
        text = f"tl.reshape({found}, {self.shape(dims)})"
        self.writer.text[id(value)] = grid.bind(text, value.name or "product")

    def _query_rows(self, value: Value, wide: str, width: int) -> tuple[str, list[int], bool]:
        """Return the load of vectors of queries, a row for each entry of the axes it has.

        Returns:
            the text, the dimensions of these axes, and whether there is but one row.
        """
        kind, given = self._given(value)
        grid, name = self.grid, given.name
        dims = {self._place(a) for a in kind.axes if a.name != wide}
        own = sorted(d for d in dims if d)
        count = prod(int(grid.shape[d]) for d in own)
        lone = self.gathers and count < ROWS
        if lone and count > 1:
            raise NotTiled("a product has fewer heads than others")
        if not self.gathers:
            self.least = max(self.least, ROWS // count)
        grid.line(f"{name}_row = tl.arange(0, BLOCK_Q * {count})[:, None]")
        grid.line(f"{name}_query = (first_query + {name}_row // {count}).to(tl.int64)")
        terms, masks = [f"{name}_at"], [f"({name}_query < end)", f"(width < {width})"]
        for axis, step in zip(kind.axes, given.strides, strict=True):
            if axis.name == wide:
                last = f"width * {step}"
                continue
            dim = self._place(axis)
            at = f"{name}_query" if dim == 0 else f"at_{axis.name}"
            if dim:
                stride = prod(int(grid.shape[d]) for d in own if d > dim)
                at = grid.bind(f"{name}_row // {stride} % {grid.shape[dim]}", f"{name}_at_{dim}")
                masks += [f"({at} < {grid.sizes[dim]})"] if grid.there(dim) else []
            terms.append(f"{at} * {step}")
        grid.line(f"{name}_base = {' + '.join(terms)}")
        text = f"tl.load({name}_base + {last}, mask={' & '.join(masks)}, other=0.0)"
        return text, own, lone

    def _key_rows(self, value: Value, wide: str, width: int) -> str:
        """Return the load of vectors of keys."""
        kind, given = self._given(value)
        terms = [f"{given.name}_at"]
        for axis, step in zip(kind.axes, given.strides, strict=True):
            if axis.name == wide:
                last = f"width * {step}"
            elif axis.name == self.pairs.key:
                terms.append(f"key_row[:, None] * {step}")
            else:
                terms.append(f"at_{axis.name} * {step}")
        mask = f"key_there[:, None] & (width < {width})"
        self.grid.line(f"{given.name}_rows = {' + '.join(terms)}")
        return f"tl.load({given.name}_rows + {last}, mask={mask}, other=0.0)"


def sides(node: OpNode, pairs: Pairs) -> tuple[tuple[Value, str], tuple[Value, str]]:
    """Return the vectors of queries and of keys that are multiplied, and the axes of each.

    Raises:
        NotTiled: if a product is not of a query with a key.
    """
    found: dict[bool, tuple[Value, str]] = {}
    assert isinstance(node.op, Dot)
    for _, kind, value in operands(node):
        source, is_key = value, True
        if isinstance(value.node, OpNode) and isinstance(value.node.op, AtColumns):
            source = value.node.inputs[0]
        else:
            names = [a.name for a in value.type.axes]
            is_key = pairs.key in names
            if is_key == (pairs.query in names):
                raise NotTiled("a product is not of a query with a key")
        over = [a.name for a in kind.axes].index(node.op.over[0])
        found[is_key] = source, value.type.axes[over].name
    if len(found) != 2 or len(node.op.over) != 1:
        raise NotTiled("a product is not of a query with a key")
    return found[False], found[True]


def _places(number: str, axes: Sequence[Axis]) -> list[str]:
    """Return the statements that take a number of an entry apart."""
    lines, stride = [], 1
    for axis in reversed(axes):
        size = axis.size.number or 1
        over = number if stride == 1 else f"{number} // {stride}"
        lines.append(f"at_{axis.name} = {over} % {size}")
        stride *= size
    return lines


_TAKEN = (
    "program", "tile", "unit", "batch", "first_query", "query", "end", "key", "key_row",
    "key_there", "there", "seen", "columns", "column", "order", "score", "bits", "row", "numbers",
    "begin", "count", "keys", "tl", "triton", "real_query", "BLOCK_Q", "BLOCK_K", "CHUNK",
    "PRECISION", "start", "width", "own", "other", "place", "document",
)  # fmt: skip
#: names of the kernel of the sums
_SUMS = (
    "walk", "span", "split", "first", "first_key", "highest", "higher", "total", "number", "base",
    "parts", "tiles",
)  # fmt: skip
