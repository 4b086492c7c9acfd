"""The scores of what a query chose, as a function that has a gradient.

A kernel finds which keys score best and keeps nothing of their scores; where these are read they
are computed again from gathered keys.
"""

from __future__ import annotations

from typing import Any

from tokdsl.graph.program import Module, OpNode, Value
from tokdsl.graph.selection import retyped
from tokdsl.lower.kernels.nodes import REGION
from tokdsl.ops.base import AxisRef, Op
from tokdsl.ops.selected import AtColumns, Seen
from tokdsl.ops.tile import NotTiled
from tokdsl.types.tensors import TensorType


def scores_at(
    module: Module, choice: OpNode, candidates: OpNode | None
) -> tuple[Module, tuple[int, ...]]:
    """Return the scores at columns as a module, and which inputs of the choice it reads.

    Raises:
        NotTiled: if the scores of one key need other keys.
    """
    made = _Scores(module, choice, candidates)
    result = made.value(dict(zip(choice.operands, choice.inputs, strict=True))["x"])
    kind, wanted = result.type, made.columns.type
    assert isinstance(kind, TensorType) and isinstance(wanted, TensorType)
    if [a.name for a in kind.axes] != [a.name for a in wanted.axes]:
        raise NotTiled("who chooses is not an axis of the scores")
    read = tuple(i for i, v in enumerate(module.inputs) if id(v) in made.read)
    made.module.inputs = [*(module.inputs[i] for i in read), made.columns]
    made.module.results = (result,)
    return made.module, read


class _Scores:
    """The nodes of the scores over gathered keys."""

    def __init__(self, module: Module, choice: OpNode, candidates: OpNode | None) -> None:
        self.outer = module
        self.candidates = candidates
        self.key: str = choice.op.over  # type: ignore[attr-defined]
        self.module = Module(f"{module.name}_scores", REGION, choice.span)
        self.module.doc = f"The scores in `{module.name}` of what was chosen"
        index = module.results[1].type
        assert isinstance(index, TensorType)
        axes = tuple(
            a.renamed(self.key) if a.name == _last(module, choice) else a for a in index.axes
        )
        self.columns = Value(TensorType(axes, "i64"), choice.span, "columns", owner=self.module)
        self.read: set[int] = set()
        self._made: dict[int, Value] = {}

    def value(self, value: Value) -> Value:
        """Return the copy of a value.

        Raises:
            NotTiled: if it needs keys that are not chosen.
        """
        if id(value) not in self._made:
            self._made[id(value)] = self._copy(value)
        return self._made[id(value)]

    def _copy(self, value: Value) -> Value:
        node = value.node
        if node is self.candidates and node is not None:
            return self.columns
        if value in self.outer.inputs:
            self.read.add(id(value))
            names = [a.name for a in value.type.axes]
            if self.key not in names or value.python != "Tensor":
                return value
            return self._gather(value)
        if not isinstance(node, OpNode) or isinstance(node.op, Seen):
            raise NotTiled("the scores need a condition of their own")
        if isinstance(node.op, AtColumns):
            made = node.inputs[0].node
            if isinstance(made, OpNode) and node.inputs[0] not in self.outer.inputs:
                raise NotTiled(f"`{made.op.op_name}` goes over all keys")
            self.read.add(id(node.inputs[0]))
            return self._gather(node.inputs[0])
        over = getattr(node.op, "over", ())
        if self.key in ((over,) if isinstance(over, str) else tuple(over or ())):
            raise NotTiled(f"`{node.op.op_name}` goes over all keys")
        inputs = {n: self.value(v) for n, v in zip(node.operands, node.inputs, strict=True)}
        op = retyped(node.op, {n: v.type for n, v in inputs.items()})
        outputs = self._add(op, inputs, node)
        for old, new in zip(node.outputs, outputs, strict=True):
            new.name = old.name
            self._made[id(old)] = new
        return outputs[value.index]

    def _gather(self, value: Value) -> Value:
        inputs: dict[str, Value] = {"x": value, "columns": self.columns}
        kinds: dict[str, Any] = {n: v.type for n, v in inputs.items()}
        return self._add(AtColumns(**kinds, over=AxisRef(self.key)), inputs, None)[0]

    def _add(self, op: Op, inputs: dict[str, Value], like: OpNode | None) -> tuple[Value, ...]:
        kind = op.type()
        kinds = kind if isinstance(kind, tuple) else (kind,)
        span = like.span if like is not None else self.module.span
        outputs = tuple(Value(k, span, owner=self.module) for k in kinds)
        node = OpNode(tuple(inputs.values()), outputs, span, op=op, operands=tuple(inputs))
        for at, value in enumerate(outputs):
            value.node, value.index = node, at
        self.module.nodes.append(node)
        return outputs


def _last(module: Module, choice: OpNode) -> str:
    """Return the name of the axis of what is chosen."""
    x = dict(zip(choice.operands, choice.inputs, strict=True))["x"].type
    have = {axis.name for axis in getattr(x, "axes", ())}
    found = [a.name for a in module.results[1].type.axes if a.name not in have]
    if len(found) != 1:
        raise NotTiled("who chooses is not an axis of the scores")
    return found[0]
