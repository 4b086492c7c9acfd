"""Where a value over two token axes does not depend on the input: what masks leave.

A value such as ``where(j <= i, score, -inf)`` is the same whatever the input is wherever the
condition is false. An operation that goes over all ``j`` then reads only what is inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokdsl.graph.predicates import PredicateReader
from tokdsl.graph.program import OpNode, Value
from tokdsl.ops.ambient import Constant
from tokdsl.ops.base import Op
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, ValueType
from tokdsl.types.time import INFINITY, Interval

UNDECIDED = Interval(-INFINITY, INFINITY, exact=False)


@dataclass(frozen=True)
class Support:
    """Offsets ``key - query`` outside which a value does not depend on the input.

    Args:
        pairs: (key axis, query axis, offsets).
        value: what the value is outside, if that is one known number.
    """

    pairs: tuple[tuple[str, str, Interval], ...]
    value: float | None = None

    def interval(self, key: str, query: str) -> Interval | None:
        """Return the offsets for a pair of axes, in either order."""
        for first, second, found in self.pairs:
            if (first, second) == (key, query):
                return found
            if (first, second) == (query, key):
                return Interval(-found.hi, -found.lo, found.exact)
        return None

    def renamed(self, names: Mapping[str, str]) -> Support | None:
        """Return the support with axes renamed; pairs with an axis that is gone are dropped."""
        pairs = tuple(
            (names[a], names[b], interval)
            for a, b, interval in self.pairs
            if a in names and b in names
        )
        return Support(pairs, self.value) if pairs else None


@dataclass(frozen=True)
class Points:
    """That a value holds positions near the own one: (axis, offsets) of the positions."""

    near: tuple[tuple[str, Interval], ...]

    def renamed(self, names: Mapping[str, str]) -> Points | None:
        """Return the fact with axes renamed."""
        near = tuple((names[a], interval) for a, interval in self.near if a in names)
        return Points(near) if near else None


def both(a: Interval, b: Interval) -> Interval:
    """Return the offsets that are in both intervals."""
    lo, hi = max(a.lo, b.lo), min(a.hi, b.hi)
    bounded_by_exact = all(i.exact for i in (a, b))
    return Interval(lo, hi, bounded_by_exact)


def intersect(supports: Iterable[Support], value: float | None) -> Support | None:
    """Return the support of a value that is fixed outside any of several supports."""
    found: dict[tuple[str, str], Interval] = {}
    for support in supports:
        for key, query, interval in support.pairs:
            if (query, key) in found:
                key, query = query, key
                interval = Interval(-interval.hi, -interval.lo, interval.exact)
            old = found.get((key, query))
            found[key, query] = interval if old is None else both(old, interval)
    pairs = tuple((key, query, interval) for (key, query), interval in found.items())
    return Support(pairs, value) if pairs else None


def unite(supports: list[Support]) -> Support | None:
    """Return the support of a value that is fixed only outside all of several supports."""
    first, *rest = supports
    pairs = []
    for key, query, interval in first.pairs:
        others = [s.interval(key, query) for s in rest]
        if all(other is not None for other in others):
            for other in others:
                assert other is not None
                interval = interval.union(other)
            pairs.append((key, query, interval))
    return Support(tuple(pairs)) if pairs else None


def token_axes(kind: ValueType) -> list[Axis]:
    """Return the axes that hold tokens, dispatched rows included."""
    return [a for a in kind.axes if a.clock is not None or a.group is not None]


def literal(value: Value) -> float | None:
    """Return the number that a value is, if it is written in the program."""
    node = value.node
    sign = 1.0
    while isinstance(node, OpNode):
        op = node.op
        if isinstance(op, Constant):
            number = op.value.number if isinstance(op.value, Dim) else op.value
            return sign * float(number) if isinstance(number, (bool, int, float)) else None
        if type(op).op_name == "negate":
            sign = -sign
        elif len(node.inputs) != 1 or not type(op).op_name.startswith(("f", "bf", "to")):
            return None
        node = node.inputs[0].node
    return None


class Reader(PredicateReader):
    """Reads conditions of one body; what it cannot follow is looked up among known supports."""

    def __init__(self, query: str, key: str, known: Mapping[int, Support], home: object) -> None:
        super().__init__(query, key)
        self.known = known
        self.home = home

    def interval(self, value: Value, inputs: dict[int, Value] | None = None) -> Interval:
        """Return the offsets at which the condition can hold."""
        read = super().interval(value, inputs)
        support = self.known.get(id(value)) if not inputs else None
        found = support.interval(self.key, self.query) if support is not None else None
        return read if found is None else _tighter(read, found)

    def _affine(self, value: Value, inputs: dict[int, Value]) -> object:  # type: ignore[override]
        source, _ = self._source(value, inputs)
        # a position read inside another definition has that definition's axis names
        if source.owner is not self.home and isinstance(source.node, OpNode):
            from tokdsl.ops.ambient import Position

            if isinstance(source.node.op, Position):
                return None
        return super()._affine(value, inputs)


def _tighter(a: Interval, b: Interval) -> Interval:
    """Return the common part; exact if one of them is exact and lies inside the other."""
    common = both(a, b)
    exact = any(i.exact and (i.lo, i.hi) == (common.lo, common.hi) for i in (a, b))
    return Interval(common.lo, common.hi, exact)


def truth(value: Value, known: Mapping[int, Support]) -> Support | None:
    """Return where a condition over token axes can hold."""
    axes = [a for a in token_axes(value.type) if a.clock is not None]
    pairs = []
    for n, query in enumerate(axes):
        for key in axes[n + 1 :]:
            if key.clock == query.clock:
                interval = Reader(query.name, key.name, known, value.owner).interval(value)
                if not (interval.exact and interval.lo == -INFINITY and interval.hi == INFINITY):
                    pairs.append((key.name, query.name, interval))
    return Support(tuple(pairs), 0.0) if pairs else None


def absorbed(op: Op, name: str, value: float | None) -> float | None:
    """Return what the result is where one operand has a value, whatever the others are."""
    if value is None:
        return None
    table = op.absorbing.get(name) or op.absorbing.get("*")
    if table is None:
        return None
    if value <= -1e4:
        value = -INFINITY  # a large negative score does what minus infinity does
    return table.get(value)
