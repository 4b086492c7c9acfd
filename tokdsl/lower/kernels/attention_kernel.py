"""What the template of attention is filled with: scores and conditions as lines over a tile.

A tile has two dimensions: rows, which are pairs of a query and a head, and keys. What is given is
loaded by the template; a table comes as pointers to its first entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokdsl.graph.program import Module, Node, OpNode, Value
from tokdsl.lower.kernels.bounds import ENDS, TritonScalars, reach
from tokdsl.lower.kernels.write import Dims, Writer, operands
from tokdsl.ops.ambient import Constant
from tokdsl.ops.elementwise import FloorDivide, Remainder
from tokdsl.ops.pairs import Pairwise
from tokdsl.ops.select import LookUp
from tokdsl.ops.tile import Grid, NotTiled
from tokdsl.ops.tokens import At
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, TensorType

if TYPE_CHECKING:
    from tokdsl.lower.kernels.attention import AttentionNode

#: names that the template uses where the names of given values stand
TAKEN = (
    "s", "i", "j", "head", "q", "k", "v", "scale", "lo", "hi", "sinks", "positions", "valid",
    "key_positions", "key_valid", "documents", "key_documents", "shared_values", "upstream", "tl",
    "triton", "torch", "gradient", "batch", "query", "key",
)  # fmt: skip
#: the dimension of each kind of axis: heads and queries are rows
DIMENSIONS = {"h": 0, "t": 0, "s": 1}
SIDES = {"b": "batch", "h": "head", "t": "query", "s": "key"}
#: a table with more entries gets no gradient in a kernel
MOST_ENTRIES = 256
#: name of the axis of heads where queries have none
ONE_HEAD = "one"
#: positions are smaller
LARGE = 2**30


def pieces(node: AttentionNode) -> dict[str, object]:
    """Return what the template is filled with.

    Raises:
        NotTiled: if an equation has no form over a tile.
    """
    names = _names(node)
    found: dict[str, object] = {"given": [], "score": None, "mask": None}
    smooth: set[str] = set()
    if node.score is not None:
        side = _Side(node, node.score, names)
        score = side.score()
        found["score"] = score
        smooth = set(score["gradients"])
        tables = side.tables
    else:
        tables = {}
    if node.visible is not None:
        side = _Side(node, node.visible, names)
        result = side.result()
        known = reach(node.visible, TritonScalars(("tl", "triton", "torch", *ENDS)))
        found["mask"] = {
            "forward": side.grid.lines,
            "result": result,
            "reach": known
            and {
                "forward": [f"{name} = {text}" for name, text in known.lines],
                "every": known.every,
                "some": known.some,
            },
        }
        tables = tables | side.tables
    found["given"] = [
        {
            "name": name,
            "dims": [side for letter, side in SIDES.items() if letter in along],
            "dtype": _dtype(kind),
            "table": name in tables,
            "gradient": name in smooth,
        }
        for name, along, kind in zip(names, node.along, _kinds(node), strict=True)
    ]
    return found


def _kinds(node: AttentionNode) -> list[TensorType]:
    kinds = [value.type for name, value in zip(node.operands, node.inputs, strict=True)
             if name.startswith("given_")]  # fmt: skip
    return [kind for kind in kinds if isinstance(kind, TensorType)]


def _dtype(kind: TensorType) -> str:
    if kind.is_float:
        return "float"
    return "bool" if kind.dtype == "bool" else "int"


def _names(node: AttentionNode) -> list[str]:
    """Return a name per given value, the same in all lines."""
    grid = _grid(())
    function = node.score or node.visible
    if function is None or not node.along:
        return []
    return [grid.name(value.name or "given") for value in function.inputs[-len(node.along) :]]


def _grid(names: Sequence[str]) -> Grid:
    grid = Grid(["s.shape[0]", "s.shape[1]"], [0, 0], ["", ""])
    for name in (*TAKEN, *names):
        grid.name(name)
    return grid


class _Pairs(Writer):
    """Lines over pairs; gradients are summed by the template, which knows what is hidden."""

    def _narrowed(self, text: str, *given: Any) -> str:
        return self.grid.bind(text, "part")


class _Side:
    """The lines of one function."""

    def __init__(self, node: AttentionNode, module: Module, names: list[str]) -> None:
        self.grid = _grid(names)
        self.writer = _Pairs(self.grid, _nowhere)
        self.module = module
        #: tables that were read: the value that was loaded, its index and its entries
        self.tables: dict[str, tuple[Value, str, int]] = {}
        #: what was only moved: where it came from
        self._moved: dict[int, Value] = {}
        fixed = module.inputs[: len(module.inputs) - len(names)]
        for value in fixed:
            letters = {"s": "hts", "i": "t", "j": "s"}[value.name]
            self._take(value, value.name, letters)
        self.given = dict(zip(names, module.inputs[len(fixed) :], strict=True))
        for (name, value), along in zip(self.given.items(), node.along, strict=True):
            self._take(value, name, along.removeprefix("b"))
        self.nodes: list[OpNode] = []
        for inner in module.nodes:
            self._write(inner)

    def _take(self, value: Value, name: str, letters: str) -> None:
        kind = value.type
        assert isinstance(kind, TensorType)
        letters = letters[-len(kind.axes) :] if kind.axes else ""
        self.writer.text[id(value)] = name
        self.writer.dims[id(value)] = tuple(DIMENSIONS.get(letter, -1) for letter in letters)

    # ----------------------------------------------------------------- forward

    def _write(self, node: Node) -> None:
        assert isinstance(node, OpNode)
        op = node.op
        if isinstance(op, Pairwise) or (isinstance(op, At) and op.over == ONE_HEAD):
            self._same(node)
        elif isinstance(op, LookUp):
            self._look_up(node)
        elif isinstance(op, FloorDivide | Remainder) and not op.type().is_float:
            self._divide(node)
        else:
            if any(-1 in self.writer.dims[id(v)] for v in node.inputs):
                raise NotTiled(f"`{op.op_name}` reads values that are no table and vary further")
            self.writer.lay([], [node])
            if len(self.grid.shape) > 2:
                raise NotTiled(f"`{op.op_name}` has more axes than heads, queries and keys")
            self.writer.forward([node])
            self.nodes.append(node)

    def _same(self, node: OpNode) -> None:
        source, value = node.inputs[0], node.outputs[0]
        self._set(value, self.writer.text[id(source)], (0, 1))
        self._moved[id(value)] = source

    def _set(self, value: Value, text: str, dims: Dims) -> None:
        self.writer.text[id(value)] = text
        self.writer.dims[id(value)] = dims

    def _look_up(self, node: OpNode) -> None:
        """Load the entries of a table at an index."""
        table, ids = node.inputs
        name = self.writer.text[id(table)]
        if name not in self.given or -1 not in self.writer.dims[id(table)]:
            raise NotTiled("it looks up in what is no table")
        if name in self.tables:
            raise NotTiled("it looks up in a table twice")
        first, *rest = self.writer.dims[id(table)]
        if first != -1 or -1 in rest:
            raise NotTiled("the entries of a table are not one axis")
        kind = table.type
        assert isinstance(kind, TensorType)
        entries = kind.axes[0].size.number
        if entries is None:
            raise NotTiled("the number of entries of a table is not fixed")
        index = f"tl.minimum(tl.maximum({self.writer.text[id(ids)]}, 0), {entries - 1})"
        at = self.grid.bind(index, "entry")
        text = f"tl.load({name} + {at})"
        text = f"{text}.to(tl.float32)" if kind.is_float else text
        value = node.outputs[0]
        dims = (*self.writer.dims[id(ids)], *rest)
        if kind.is_float and not {0, 1} <= set(dims):
            raise NotTiled("it looks up along queries or keys alone")
        self._set(value, self.grid.bind(text, value.name or "looked_up"), dims)
        self.tables[name] = (value, at, entries)

    def _divide(self, node: OpNode) -> None:
        """Divide whole numbers, made positive: below 0 compilers do not agree on rounding."""
        (_, _, x), (_, _, y) = operands(node)
        constant = y.node.op if isinstance(y.node, OpNode) else None
        number = constant.value if isinstance(constant, Constant) else None
        number = number.number if isinstance(number, Dim) else number
        if not isinstance(number, int) or number <= 0:
            raise NotTiled(f"`{node.op.op_name}` by what is no positive number")
        many = LARGE // number
        raised = f"({self.writer.text[id(x)]} + {many * number})"
        whole = isinstance(node.op, FloorDivide)
        text = f"{raised} // {number} - {many}" if whole else f"{raised} % {number}"
        value = node.outputs[0]
        self._set(value, self.grid.bind(text, value.name or "part"), self.writer.dims[id(x)])

    def result(self) -> str:
        """Return the name of the result."""
        return self.grid.bind(self.writer.text[id(self.module.results[0])], "result")

    # ----------------------------------------------------------------- reverse

    def score(self) -> dict[str, Any]:
        """Return the lines of scores, forward and in reverse."""
        value = self.module.results[0]
        result = self.result()
        forward = list(self.grid.lines)
        while id(value) in self._moved:
            value = self._moved[id(value)]
        found = self.writer.reverse(self.nodes, {id(value): "upstream"})
        scores = self.module.inputs[0]
        d_s = self._named(found.get(id(scores), "upstream * 0.0"), "d_s")
        gradients: dict[str, Any] = {}
        for name, given in self.given.items():
            if not isinstance(given.type, TensorType) or not given.type.is_float:
                continue
            if name in self.tables:
                loaded, index, entries = self.tables[name]
                if id(loaded) in found:
                    if entries > MOST_ENTRIES:
                        raise NotTiled(f"a table of {entries} entries is too long for a gradient")
                    text = self._named(found[id(loaded)], f"d_{name}")
                    gradients[name] = {"value": text, "index": index, "entries": entries}
            elif id(given) in found:
                gradients[name] = self._named(found[id(given)], f"d_{name}")
        return {
            "forward": forward,
            "result": result,
            "backward": self.grid.lines[len(forward) :],
            "upstream": "upstream",
            "d_s": d_s,
            "gradients": gradients,
        }

    def _named(self, text: str, hint: str) -> str:
        """Return the name of a gradient; a number becomes a tile."""
        if text.isidentifier():
            return text
        name = self.grid.name(hint)
        self.grid.line(f"{name} = {text} + 0.0 * upstream")
        return name


def _nowhere(axis: Axis) -> int:
    raise NotTiled(f"it makes an axis `{axis.name}`")


__all__ = ["pieces"]
