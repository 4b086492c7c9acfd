"""Choices among tokens: run on some queries at a time, or looked for in chosen blocks alone.

A module of kind `SELECTION` says what is chosen as if every pair of tokens were looked at. Where
its `topk` looks `among` chosen blocks, what it reads of the keys is gathered first, for each query:
the same operations then go over the tokens of these blocks instead of all tokens. Only what goes
over all keys itself, such as a softmax, is computed of all and then gathered.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import prod
from typing import Any

from tokdsl.graph.program import CallNode, Module, Node, OpNode, Value
from tokdsl.graph.selection import retyped
from tokdsl.ops.ambient import Constant, Reading
from tokdsl.ops.base import AxisRef, Op
from tokdsl.ops.logic import GreaterEqual, LogicalAnd
from tokdsl.ops.select import TopK
from tokdsl.ops.selected import AtColumns, Candidates, OfColumns, Seen
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, TensorType


def choice_of(module: Module) -> OpNode:
    """Return the choice that a module makes."""
    return next(n for n in module.nodes if isinstance(n, OpNode) and isinstance(n.op, TopK))


def axis_of(module: Module, which: str) -> Axis:
    """Return the axis of ``"query"`` or ``"key"`` of a module that chooses."""
    axis = module.statics[which]
    assert isinstance(axis, Axis)
    return axis


def goes_over(node: OpNode, key: str) -> bool:
    """Whether an operation reads all keys for one."""
    over = getattr(node.op, "over", None)
    names = (over,) if isinstance(over, str) else tuple(over or ())
    return key in names and not isinstance(node.op, AtColumns | TopK)


def search_among(module: Module) -> None:
    """Let a module whose choice is limited to blocks gather their tokens first."""
    node = choice_of(module)
    if "among" in node.operands:
        _Search(module, node).run()


class _Search:
    """The nodes of a module over gathered keys."""

    def __init__(self, module: Module, choice: OpNode) -> None:
        self.module = module
        self.choice = choice
        self.key = axis_of(module, "key")
        self.nodes: list[Node] = []
        self.made: dict[int, Value] = {}
        operands = dict(zip(choice.operands, choice.inputs, strict=True))
        self.among = operands["among"]
        seen = next(n for n in module.nodes if isinstance(n, OpNode) and isinstance(n.op, Seen))
        self.clock = dict(zip(seen.operands, seen.inputs, strict=True))["clock"]

    def run(self) -> None:
        """Replace the nodes."""
        op = self.choice.op
        assert isinstance(op, TopK)
        if isinstance(self.clock.node, OpNode):
            self.nodes.append(self.clock.node)
            self.made[id(self.clock)] = self.clock
        inputs = {"among": self.among, "clock": self.clock}
        op_among = Candidates(**_types(inputs), key=self.key.name, block=op.block)
        self.columns = self._add(op_among, inputs)[0]
        self.columns.name = "columns"
        whole = self._leads_to(
            v for n in self.module.nodes if isinstance(n, OpNode) and goes_over(n, self.key.name)
            for v in n.outputs
        )  # fmt: skip
        given = dict(zip(self.choice.operands, self.choice.inputs, strict=True))
        gathered = self._leads_to((given["x"], given["where"]), up_to=whole)
        for node in self.module.nodes:
            if not isinstance(node, OpNode) or node in (self.choice, self.clock.node):
                continue
            if id(node) in whole:
                self.nodes.append(node)
            if id(node) in gathered and not isinstance(node.op, Reading):
                self._copy(node)
            elif id(node) in gathered and id(node) not in whole:
                self.nodes.append(node)
        self._choose(op)
        self.module.nodes = self.nodes

    def _leads_to(self, values: Iterable[Value], up_to: Collection[int] = ()) -> set[int]:
        """Return the nodes that lead to values, by identity.

        Args:
            values: the values.
            up_to: where these are, what goes over all keys is left out with all before it.
        """
        found: set[int] = set()
        waiting = list(values)
        while waiting:
            node = waiting.pop().node
            if not isinstance(node, OpNode) or id(node) in found:
                continue
            if id(node) in up_to and goes_over(node, self.key.name):
                continue
            found.add(id(node))
            waiting += node.inputs
        return found

    def _choose(self, op: TopK) -> None:
        operands = dict(zip(self.choice.operands, self.choice.inputs, strict=True))
        inputs = {name: self._value(operands[name]) for name in ("x", "where")}
        made = TopK(**_types(inputs), k=op.k, over=op.over)
        values, pick = self._add(made, inputs)
        picked = {"columns": self.columns, "pick": pick}
        index = self._add(OfColumns(**_types(picked)), picked)[0]
        values.name = self.module.results[0].name
        index.name = self.module.results[1].name
        self.module.results = (values, index)

    def _copy(self, node: OpNode) -> None:
        operands = dict(zip(node.operands, node.inputs, strict=True))
        if isinstance(node.op, Seen):
            self.made[id(node.outputs[0])] = self._seen(operands.get("where"))
            return
        inputs = {name: self._value(value) for name, value in operands.items()}
        outputs = self._add(retyped(node.op, _types(inputs)), inputs)
        for old, new in zip(node.outputs, outputs, strict=True):
            new.name = old.name
            self.made[id(old)] = new

    def _seen(self, where: Value | None) -> Value:
        """Candidates are seen already: what is left is the condition, and where there are none."""
        zero = self._add(Constant(value=Dim.of(0)), {})[0]
        given = {"x": self.columns, "y": zero}
        there = self._add(GreaterEqual(**_types(given)), given)[0]
        if where is None:
            return there
        both = {"x": self._value(where), "y": there}
        return self._add(LogicalAnd(**_types(both)), both)[0]

    def _value(self, value: Value) -> Value:
        """Return a value over candidates in the place of one over keys."""
        if id(value) in self.made:
            return self.made[id(value)]
        if value.type.axes and any(a.name == self.key.name for a in value.type.axes):
            assert isinstance(value.type, TensorType)
            inputs = {"x": value, "columns": self.columns}
            op = AtColumns(**_types(inputs), over=AxisRef(self.key.name))
            found = self._add(op, inputs)[0]
        else:
            found = value
        self.made[id(value)] = found
        return found

    def _add(self, op: Op, inputs: dict[str, Value]) -> tuple[Value, ...]:
        kind = op.type()
        kinds = kind if isinstance(kind, tuple) else (kind,)
        span = self.choice.span
        outputs = tuple(Value(k, span, owner=self.module) for k in kinds)
        node = OpNode(tuple(inputs.values()), outputs, span, op=op, operands=tuple(inputs))
        for index, value in enumerate(outputs):
            value.node, value.index = node, index
        self.nodes.append(node)
        return outputs


def call(node: CallNode, texts: list[str], decision: str, kernel: Sequence[str] = ()) -> str:
    """Return the call of a module that chooses, on some queries at a time.

    Args:
        node: the call.
        texts: of what it is given.
        decision: the text of the record of the choice, or "".
        kernel: arguments that name its kernel.
    """
    module = node.module
    query, key = axis_of(module, "query"), axis_of(module, "key")
    dims = [_dimension(value, query) for value in module.inputs]
    clock = next(t for t, v in zip(texts, module.inputs, strict=True) if v.python == "TokenClock")
    each, keys = _width(module)
    given = ", ".join(texts)
    found = [f"self.{node.attribute}", f"({given})", f"({', '.join(dims)})", clock, f"each={each}"]
    if keys:
        found.append(f"keys={keys}")
    names = [axis.name for axis in module.results[1].type.axes]
    into = names.index(query.name) + 1
    if into != 1:
        found.append(f"into={into}")
    if key.block:
        found.append("tokens=False")
    if decision:
        found.append(f"decision={decision}")
    found += kernel
    return f"query_blocks({', '.join(found)})"


def _dimension(value: Value, query: Axis) -> str:
    kind = value.type
    names = [axis.name for axis in kind.axes]
    if value.python == "TokenClock" or query.name not in names or not isinstance(kind, TensorType):
        return "None"
    return str(names.index(query.name) + kind.batched)


def _width(module: Module) -> tuple[int, int]:
    """Return the numbers per query and key, and how many keys a query looks at; 0 for all."""
    query, key = axis_of(module, "query"), axis_of(module, "key")
    each = 1
    counts: list[int] = []
    for node in module.nodes:
        for value in node.outputs:
            axes = {axis.name: axis for axis in value.type.axes}
            if not {query.name, key.name} <= axes.keys():
                continue
            sizes = [a.size.number or 1 for n, a in axes.items() if n not in (query.name, key.name)]
            each = max(each, prod(sizes))
            counts.append(axes[key.name].size.number or 0)
    # where some of it goes over all keys, that is most
    return each, min(counts, default=0)


def _types(inputs: dict[str, Value]) -> dict[str, Any]:
    return {name: value.type for name, value in inputs.items()}
