"""What a condition over two positions allows: the offsets of the key relative to the query."""

from __future__ import annotations

from dataclasses import dataclass

from tokdsl.graph.program import CallNode, OpNode, Value
from tokdsl.ops.ambient import Constant, Position, Rename
from tokdsl.types.dims import Dim
from tokdsl.types.time import EVERYTHING, INFINITY, Interval


@dataclass(frozen=True)
class Affine:
    """``query * i + key * j + constant``."""

    query: float
    key: float
    constant: float


class PredicateReader:
    """Reads a condition's graph for one pair of axes.

    Args:
        query: name of the query axis.
        key: name of the key axis.
        stride: query tokens per key token, where keys are chunks of queries: offsets are then
            of the key relative to ``query / stride``.
    """

    def __init__(self, query: str, key: str, stride: int = 1) -> None:
        self.query = query
        self.key = key
        self.stride = stride

    def interval(self, value: Value, inputs: dict[int, Value] | None = None) -> Interval:
        """Return the offsets ``key - query`` at which the condition can hold."""
        inputs = inputs or {}
        value, inputs = self._source(value, inputs)
        node = value.node
        if not isinstance(node, OpNode):
            return Interval(EVERYTHING.lo, EVERYTHING.hi, exact=False)
        name = type(node.op).op_name
        if name == "logical_and":
            a, b = (self.interval(v, inputs) for v in node.inputs)
            exact = a.exact and b.exact
            return Interval(max(a.lo, b.lo), min(a.hi, b.hi), exact)
        if name == "logical_or":
            a, b = (self.interval(v, inputs) for v in node.inputs)
            touching = a.hi + 1 >= b.lo and b.hi + 1 >= a.lo
            union = a.union(b)
            return Interval(union.lo, union.hi, union.exact and touching)
        if name == "seen":  # padding and other documents aside, the condition that it is given
            return self.interval(node.inputs[0], inputs) if "where" in node.operands else EVERYTHING
        if name == "logical_not":
            return self._negated(node.inputs[0], inputs)
        if name in ("less", "less_equal", "greater", "greater_equal", "equal"):
            return self._comparison(name, node, inputs)
        if isinstance(node.op, Constant) and node.op.value is True:
            return EVERYTHING
        return Interval(EVERYTHING.lo, EVERYTHING.hi, exact=False)

    def _source(self, value: Value, inputs: dict[int, Value]) -> tuple[Value, dict[int, Value]]:
        """Follow a value through renames and calls of definitions to the operation that made it."""
        while True:
            node = value.node
            if node is None and id(value) in inputs:
                value = inputs[id(value)]
            elif isinstance(node, OpNode) and isinstance(node.op, Rename):
                value = node.inputs[0]
            elif isinstance(node, CallNode) and len(node.module.results) == 1:
                outer = {id(v): inputs.get(id(v), v) for v in node.inputs}
                inputs = {
                    **inputs,
                    **{
                        id(formal): outer[id(actual)]
                        for formal, actual in zip(node.module.inputs, node.inputs, strict=False)
                    },
                }
                value = node.module.results[0]
            else:
                return value, inputs

    def _negated(self, value: Value, inputs: dict[int, Value]) -> Interval:
        inner = self.interval(value, inputs)
        if inner.exact and inner.lo == -INFINITY and inner.hi < INFINITY:
            return Interval(inner.hi + 1 / self.stride, INFINITY)
        if inner.exact and inner.hi == INFINITY and inner.lo > -INFINITY:
            return Interval(-INFINITY, inner.lo - 1 / self.stride)
        return Interval(-INFINITY, INFINITY, exact=False)

    def _comparison(self, name: str, node: OpNode, inputs: dict[int, Value]) -> Interval:
        unknown = Interval(-INFINITY, INFINITY, exact=False)
        left = self._affine(node.inputs[0], inputs)
        right = self._affine(node.inputs[1], inputs)
        if left is None or right is None:
            return unknown
        # left - right <op> 0, with left - right = a*i + b*j + c
        a, b = left.query - right.query, left.key - right.key
        c = left.constant - right.constant
        if b == 0 or a * self.stride != -b:
            return unknown
        if name == "equal":
            return Interval(-c / b, -c / b) if (c / b).is_integer() else unknown
        upper = name in ("less", "less_equal")
        if name in ("less", "greater"):
            c += 1 if upper else -1  # of whole numbers, less is at most one less
        offset = -c / b  # j - i / stride compared with this
        if upper == (b > 0):
            return Interval(-INFINITY, offset)
        return Interval(offset, INFINITY)

    def _affine(self, value: Value, inputs: dict[int, Value]) -> Affine | None:
        value, inputs = self._source(value, inputs)
        node = value.node
        if not isinstance(node, OpNode):
            return None
        op = node.op
        if isinstance(op, Position):
            name = getattr(op.axis, "name", "")
            if name == self.query:
                return Affine(1, 0, 0)
            return Affine(0, 1, 0) if name == self.key else None
        if isinstance(op, Constant):
            number = op.value.number if isinstance(op.value, Dim) else op.value
            return Affine(0, 0, float(number)) if isinstance(number, (int, float)) else None
        name = type(op).op_name
        if name not in ("add", "subtract", "negate", "multiply"):
            return None
        parts = [self._affine(v, inputs) for v in node.inputs]
        if any(p is None for p in parts):
            return None
        return _combine(name, [p for p in parts if p is not None])


def _combine(name: str, parts: list[Affine]) -> Affine | None:
    first = parts[0]
    if name == "negate":
        return Affine(-first.query, -first.key, -first.constant)
    second = parts[1]
    if name == "multiply":
        if first.query or first.key:
            first, second = second, first
        if first.query or first.key:
            return None
        k = first.constant
        return Affine(second.query * k, second.key * k, second.constant * k)
    sign = 1 if name == "add" else -1
    return Affine(
        first.query + sign * second.query,
        first.key + sign * second.key,
        first.constant + sign * second.constant,
    )
