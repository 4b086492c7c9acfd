"""Choices among tokens as kernels: scores of some queries at a time, and exactly the largest.

Requires hoisted modules of kind `SELECTION`; ensures that one whose scores and condition can be
computed for a pair of tokens alone knows its kernel. Products of a vector of the query with one of
the key are made by tiles; all else goes element by element, or over axes of fixed size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from tokdsl.graph.program import SELECTION, Module, OpNode, Value
from tokdsl.lower.kernels.index_scores import scores_at
from tokdsl.lower.kernels.report import RegionReport
from tokdsl.lower.kernels.write import Writer, operands
from tokdsl.lower.plan import FunctionPlan, KernelPlan, Statement
from tokdsl.lower.selection import axis_of, choice_of
from tokdsl.ops.contract import Dot
from tokdsl.ops.select import TopK
from tokdsl.ops.selected import AtColumns, Candidates, Seen
from tokdsl.ops.shape import Order
from tokdsl.ops.tile import Grid, NotTiled, padded
from tokdsl.types.tensors import Axis, TensorType, annotation

if TYPE_CHECKING:
    from tokdsl.lower.texts import Texts

#: rows of queries and heads that one product of tiles has at least
ROWS = 16
#: pairs of the axes that are summed, for one query and one key
MOST = 256


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
class Index:
    """The kernel of a choice.

    Attributes:
        plan: the template and its pieces; the name is a wish.
        scores: the scores at given columns, as a function of `read` and the columns.
        read: which inputs of the module that function reads.
        gathered: numbers that it gathers for each query and column.
        block: tokens of a candidate block; 0 if every key is a candidate.
    """

    plan: KernelPlan
    scores: Module
    read: tuple[int, ...]
    gathered: int
    block: int
    report: RegionReport


def fuse_index(module: Module) -> list[RegionReport]:
    """Find the kernel of a module that chooses; return what was decided about it."""
    if module.kind != SELECTION:
        return []
    choice = choice_of(module)
    what = tuple(type(n.op).op_name for n in module.nodes if isinstance(n, OpNode) and n.inputs)
    report = RegionReport("index", module.name, what, choice.span, name=f"{module.name}_index")
    try:
        module.statics["index"] = _Region(module, choice).build(report)
    except NotTiled as fault:
        return [RegionReport("index", module.name, what, choice.span, reason=str(fault))]
    return [report]


def index_arguments(outer: Texts, module: Module, is_read: bool) -> list[str]:
    """Write the kernel of a choice and its scores; return what the call says of them.

    Args:
        outer: the body that calls.
        module: what chooses.
        is_read: whether the scores of what is chosen are read.
    """
    index = module.statics.get("index")
    if not isinstance(index, Index):
        return []
    fused = outer.shared.fused
    known = [k for k in fused.kernels if k.pieces == index.plan.pieces and k.template == "index"]
    if known:
        name = known[0].name
    else:
        name = _free(index.plan.name, {k.name for k in fused.kernels})
        fused.kernels.append(KernelPlan("index", name, index.plan.pieces))
    index.report.name = name
    outer.shared.functions.add("on_kernels")
    found = [f'kernel="{name}"']
    if index.block:
        found.append(f"block={index.block}")
    if is_read:
        read = ", ".join(str(at) for at in index.read)
        found.append(f"scores={_function(outer, index.scores)}")
        found.append(f"read=({read}{',' if len(index.read) == 1 else ''})")
        found.append(f"gathered={index.gathered}")
    return found


def _function(outer: Texts, module: Module) -> str:
    """Write the function of the scores at columns; return its name."""
    from tokdsl.lower.body import Body
    from tokdsl.lower.build import size_names
    from tokdsl.lower.texts import shape_comment

    body = Body(module, outer.shared, size_names(module))
    inputs = []
    for value in module.inputs:
        name = body.input(value, value.name or "x")
        inputs.append((name, annotation(value.type, value.python), shape_comment(value.type)))
    result = body.run()
    statements = [item for item in body.statements if isinstance(item, Statement)]
    functions = outer.shared.fused.functions
    text = [(s.targets, s.text) for s in statements], inputs, result
    for known in functions:
        own = [(s.targets, s.text) for s in known.body if isinstance(s, Statement)]
        if known.definition == module.name and (own, known.inputs, known.result) == text:
            return known.name
    name = _free(module.name, {known.name for known in functions})
    functions.append(
        FunctionPlan(
            name, module.name, module.span, inputs, list(statements), result, "Tensor", module.doc
        )
    )
    return name


def _free(wish: str, taken: set[str]) -> str:
    name, number = wish, 1
    while name in taken:
        number += 1
        name = f"{wish}_{number}"
    return name


# ------------------------------------------------------------------------------- the kernel


@dataclass
class _Side:
    """What was found about the axes of a choice: who chooses apart, what is summed."""

    query: str
    key: str
    units: tuple[Axis, ...]
    small: list[Axis] = field(default_factory=list)


class _Region:
    """The equations over pairs that lead to one choice."""

    def __init__(self, module: Module, choice: OpNode) -> None:
        self.module = module
        self.choice = choice
        assert isinstance(choice.op, TopK)
        self.op = choice.op
        operands_of = dict(zip(choice.operands, choice.inputs, strict=True))
        self.x, self.where = operands_of["x"], operands_of.get("where")
        found = (n for n in module.nodes if isinstance(n, OpNode) and isinstance(n.op, Candidates))
        self.candidates = next(found, None)
        query, key = axis_of(module, "query").name, axis_of(module, "key").name
        result = module.results[1].type
        assert isinstance(result, TensorType)
        self.result = [axis.name for axis in result.axes]
        new = _new_axis(result, self.x.type, query)
        units = tuple(a for a in result.axes if a.name not in (query, new))
        self.new = new
        self.axes = _Side(query, key, units)
        if key != self.op.over or query not in self.result:
            raise NotTiled("its axes have other names here")
        for axis in units:
            if axis.size.number is None:
                raise NotTiled(f"the length of `{axis.name}` is not fixed")
        if self.op.k.size.number is None:
            raise NotTiled("how many are chosen is not fixed")

    def build(self, report: RegionReport) -> Index:
        """Return the kernel.

        Raises:
            NotTiled: if the equations do not have its form.
        """
        scores, read = scores_at(self.module, self.choice, self.candidates)
        conditions = self._slice(self.where)
        products = self._slice(self.x, without=conditions)
        self.axes.small = self._small([*conditions, *products])
        self._open()
        self.used: dict[str, Given] = {}
        self.least = 1
        self.width = 1
        lines: list[list[str]] = []
        for nodes in (conditions, products):
            at = len(self.grid.lines)
            self._write(nodes)
            lines.append(self.grid.lines[at:])
            del self.grid.lines[at:]
        seen = self.writer.text[id(self.where)] if self.where is not None else ""
        pieces: dict[str, object] = {
            "tensors": [v.name for v in self._tensors()],
            "given": list(self.used.values()),
            "head": self.grid.lines,
            "conditions": lines[0],
            "seen": seen,
            "products": lines[1],
            "score": self.writer.text[id(self.x)],
            **self._sizes(),
            **self._shapes(),
        }
        block = self.candidates.op.block if self.candidates is not None else 0  # type: ignore[attr-defined]
        plan = KernelPlan("index", f"{self.module.name}_index", pieces)
        return Index(plan, scores, read, _gathered(scores), block, report)

    # ----------------------------------------------------------------- what is in it

    def _slice(self, value: Value | None, without: list[OpNode] | None = None) -> list[OpNode]:
        """Return the nodes that lead to a value, in order; products are not followed further."""
        wanted: set[int] = set()
        waiting = [] if value is None else [value]
        while waiting:
            node = waiting.pop().node
            if not isinstance(node, OpNode) or id(node) in wanted or self._is_given(node):
                continue
            wanted.add(id(node))
            if isinstance(node.op, Seen):
                waiting += [
                    v for n, v in zip(node.operands, node.inputs, strict=True) if n == "where"
                ]
            elif not isinstance(node.op, Dot | AtColumns):
                waiting += node.inputs
        done = {id(n) for n in without or ()}
        return [
            n for n in self.module.nodes
            if isinstance(n, OpNode) and id(n) in wanted and id(n) not in done
        ]  # fmt: skip

    def _is_given(self, node: OpNode) -> bool:
        return node is self.candidates or node not in self.module.nodes

    def _tensors(self) -> list[Value]:
        return [v for v in self.module.inputs if v.python == "Tensor"]

    def _small(self, nodes: list[OpNode]) -> list[Axis]:
        """Return the axes besides queries, keys and units, in the order of the first use."""
        known = {self.axes.query, self.axes.key, *(a.name for a in self.axes.units)}
        found: dict[str, Axis] = {}
        for node in nodes:
            for value in node.outputs:
                if isinstance(node.op, AtColumns):
                    continue
                for axis in getattr(value.type, "axes", ()):
                    if axis.name in known:
                        continue
                    if axis.size.number is None or axis.clock is not None:
                        raise NotTiled(f"the length of `{axis.name}` is not fixed")
                    found[axis.name] = axis
        if prod(padded(a.size.number or 1) for a in found.values()) > MOST:
            raise NotTiled("what is summed for a pair is too much for a block")
        return list(found.values())

    # ----------------------------------------------------------------- statements

    def _open(self) -> None:
        """Lay the dimensions: queries, axes that are summed, keys."""
        small = self.axes.small
        shape = [str(padded(a.size.number or 1)) for a in small]
        total = prod(int(s) for s in shape)
        if self.candidates is not None and small and total < ROWS:
            shape[-1] = str(int(shape[-1]) * ROWS // total)
        sizes = [a.size.number or 1 for a in small]
        self.grid = Grid(
            ["BLOCK_Q", *shape, "BLOCK_K"],
            [0, *sizes, 0],
            ["real_query", *[""] * len(small), "there"],
        )
        for name in _TAKEN:
            self.grid.name(name)
        for axis in self.axes.units:
            self.grid.name(f"at_{axis.name}")
        for dim, size in enumerate(sizes, 1):
            name = self.grid.index(dim)
            if int(shape[dim - 1]) != size:
                self.grid.inside[dim] = f"({name} < {size})"
        stride = 1
        for axis in reversed(self.axes.units):
            size = axis.size.number or 1
            over = "unit" if stride == 1 else f"unit // {stride}"
            self.grid.line(f"at_{axis.name} = {over} % {size}")
            stride *= size
        self.writer = Writer(self.grid, self._place)

    def _place(self, axis: Axis) -> int | None:
        names = [self.axes.query, *(a.name for a in self.axes.small), self.axes.key]
        if any(a.name == axis.name for a in self.axes.units):
            return None
        if axis.name in names:
            return names.index(axis.name)
        raise NotTiled(f"it has an axis `{axis.name}` that is not its own")

    def _write(self, nodes: list[OpNode]) -> None:
        writer = self.writer
        for node in nodes:
            if isinstance(node.op, Dot):
                self._product(node)
            elif isinstance(node.op, AtColumns):
                self._lay(node.outputs[0])
                writer.text[id(node.outputs[0])] = self._load(node.inputs[0])
            elif isinstance(node.op, Seen | Order):
                self._lay(node.outputs[0])
                inner = dict(zip(node.operands, node.inputs, strict=True)).get(
                    "x" if isinstance(node.op, Order) else "where"
                )
                text = "there"
                if inner is not None:
                    self._give(inner)
                    text = writer.text[id(inner)]
                writer.text[id(node.outputs[0])] = text
            else:
                for _, _, value in operands(node):
                    self._give(value)
                writer.lay([], [node])
                writer.forward([node])

    def _lay(self, value: Value) -> None:
        self.writer.dims[id(value)] = tuple(self._place(axis) for axis in value.type.axes)

    def _give(self, value: Value) -> None:
        """Load what stands outside of the equations."""
        if id(value) in self.writer.text:
            return
        self._lay(value)
        if value.node is self.candidates and value.node is not None:
            self.writer.text[id(value)] = "columns"
        elif value in self.module.inputs:
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
        if value not in self.module.inputs or not isinstance(kind, TensorType):
            raise NotTiled("it reads what is made elsewhere")
        place = self._tensors().index(value)
        name = f"given_{place}"
        if name not in self.used:
            strides = tuple(f"{name}_{at}" for at in range(len(kind.axes)))
            self.used[name] = Given(name, strides, kind.batched)
        return kind, self.used[name]

    def _product(self, node: OpNode) -> None:
        """Write the product of a vector of queries with one of keys, by tiles."""
        sides: dict[bool, tuple[Value, str]] = {}
        assert isinstance(node.op, Dot)
        for _, kind, value in operands(node):
            if isinstance(value.node, OpNode) and isinstance(value.node.op, AtColumns):
                source = value.node.inputs[0]
                is_key = True
            else:
                source, names = value, [a.name for a in value.type.axes]
                is_key = self.axes.key in names
                if is_key == (self.axes.query in names):
                    raise NotTiled("a product is not of a query with a key")
            over = [a.name for a in kind.axes].index(node.op.over[0])
            sides[is_key] = source, value.type.axes[over].name
        if len(sides) != 2 or len(node.op.over) != 1:
            raise NotTiled("a product is not of a query with a key")
        (query, wide), (key, width_name) = sides[False], sides[True]
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
        text = f"tl.reshape({found}, {self._shape(set(dims))})"
        self.writer.text[id(value)] = grid.bind(text, value.name or "product")

    def _shape(self, dims: set[int]) -> str:
        sizes = [s if i in dims or i in (0, self.grid.rank - 1) else "1"
                 for i, s in enumerate(self.grid.shape)]  # fmt: skip
        return f"({', '.join(sizes)})"

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
        lone = self.candidates is not None and count < ROWS
        if lone and count > 1:
            raise NotTiled("a product has fewer heads than others")
        if self.candidates is None:
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
            elif axis.name == self.axes.key:
                terms.append(f"key_row[:, None] * {step}")
            elif self._place(axis) is None:
                terms.append(f"at_{axis.name} * {step}")
            else:
                raise NotTiled(f"keys have an axis `{axis.name}` over which scores are summed")
        mask = f"key_there[:, None] & (width < {width})"
        self.grid.line(f"{given.name}_rows = {' + '.join(terms)}")
        return f"tl.load({given.name}_rows + {last}, mask={mask}, other=0.0)"

    # ----------------------------------------------------------------- the launcher

    def _sizes(self) -> dict[str, object]:
        units = [a.size.number or 1 for a in self.axes.units]
        return {
            "units": units,
            "count": prod(units),
            "chosen": self.op.k.size.number,
            "rows": prod(int(s) for s in self.grid.shape[1:-1]),
            "least": self.least,
            "width": _block(self.width),
            "shape": self._shape(set()),
            "query_at": ", ".join([":", *["None"] * (self.grid.rank - 1)]),
            "key_at": ", ".join([*["None"] * (self.grid.rank - 1), ":"]),
        }

    def _shapes(self) -> dict[str, object]:
        """Return from which tensors the launcher reads lengths and dtype, and orders of axes."""
        tensors = self._tensors()

        def at(axis: str) -> tuple[int, int]:
            for number, value in enumerate(tensors):
                kind = value.type
                assert isinstance(kind, TensorType)
                names = [a.name for a in kind.axes]
                if axis in names and f"given_{number}" in self.used and kind.batched:
                    return number, names.index(axis) + 1
            raise NotTiled(f"nothing is given along `{axis}`")

        kinds = [v.type for v in tensors]
        floats = [i for i, t in enumerate(kinds) if _is_stream(t)]
        if not floats:
            raise NotTiled("it reads no numbers of tokens")
        made = [a.name for a in self.axes.units] + [self.axes.query, self.new]
        kind = self.module.results[0].type
        assert isinstance(kind, TensorType)
        found: dict[str, object] = {
            "queries": at(self.axes.query),
            "keys": at(self.axes.key) if self.candidates is None else (0, 0),
            "batched": floats[0],
            "dtype": f"x_{floats[0]}.dtype" if kind.dtype == "float" else "torch.float32",
            "floats": floats,
            "order": [0, *(1 + made.index(name) for name in self.result)],
            "candidates": None,
        }
        if self.candidates is not None:
            among = self.candidates.inputs[0]
            names = [a.name for a in among.type.axes]
            number = tensors.index(among) if among in tensors else -1
            if (
                number < 0
                or names[-2] != self.axes.query
                or any(n not in [a.name for a in self.axes.units] for n in names[:-2])
            ):
                raise NotTiled("candidates are made elsewhere")
            block = self.candidates.op.block  # type: ignore[attr-defined]
            found["candidates"] = {"number": number, "units": names[:-2], "block": block}
        return found


_TAKEN = (
    "program", "tile", "unit", "batch", "first_query", "query", "end", "key", "key_row",
    "key_there", "there", "seen", "columns", "column", "order", "score", "bits", "row", "numbers",
    "begin", "count", "keys", "tl", "triton", "real_query", "BLOCK_Q", "BLOCK_K", "CHUNK",
    "PRECISION", "start", "width", "own", "other",
)  # fmt: skip


def _new_axis(result: TensorType, scores: object, query: str) -> str:
    """Return the name of the axis of what is chosen: the one that scores do not have."""
    have = {axis.name for axis in getattr(scores, "axes", ())}
    found = [a.name for a in result.axes if a.name not in have and a.name != query]
    if len(found) != 1:
        raise NotTiled("who chooses is not an axis of the scores")
    return found[0]


def _is_stream(kind: object) -> bool:
    return isinstance(kind, TensorType) and kind.is_float and kind.batched


def _block(width: int) -> int:
    return max(16, padded(width))


def _gathered(scores: Module) -> int:
    """Return the most numbers that the scores need for a query and a column."""
    columns = scores.inputs[-1].type
    assert isinstance(columns, TensorType)
    pair = {axis.name for axis in columns.axes}
    most = 1
    for node in scores.nodes:
        for value in node.outputs:
            axes = getattr(value.type, "axes", ())
            most = max(most, prod(a.size.number or 1 for a in axes if a.name not in pair))
    return most
