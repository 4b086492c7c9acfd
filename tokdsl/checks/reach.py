"""Which positions a value reads, composed through operations: the arithmetic of the analysis."""

from __future__ import annotations

from dataclasses import dataclass

from tokdsl.types.time import INFINITY, Flow, Interval

#: key of what is read whatever the position of the result is
EVERYWHERE = None
#: key of what reads the first position only
FIRST = "<first>"


@dataclass(frozen=True, slots=True)
class Reach:
    """Positions ``rate * t + lo .. rate * t + hi`` in ticks of the source, ``t`` of the result.

    Args:
        lo: the smallest offset that may be read.
        hi: the largest offset that may be read.
        sure: the largest offset that is certainly read; minus infinity if none is known.
        rate: ticks of the source per tick of the result.
    """

    lo: float
    hi: float
    sure: float
    rate: float = 1.0

    @property
    def is_own(self) -> bool:
        """Whether only the own position is read."""
        return self.lo == 0 and self.hi == 0 and self.rate == 1

    def __str__(self) -> str:
        return str(Interval(self.lo, self.hi))


OWN = Reach(0, 0, 0)
ALL = Reach(-INFINITY, INFINITY, INFINITY)
PERHAPS = Reach(-INFINITY, INFINITY, -INFINITY)


def join(first: Reach, second: Reach) -> Reach:
    """Return what a result reads of a source through a value between them.

    Args:
        first: what the value reads of the source.
        second: what the result reads of the value.
    """
    lo = first.rate * second.lo + first.lo
    hi = first.rate * second.hi + first.hi
    certain = first.sure > -INFINITY and second.sure > -INFINITY
    sure = first.rate * second.sure + first.sure if certain else -INFINITY
    return _normal(lo, hi, sure, first.rate * second.rate)


def either(a: Reach, b: Reach) -> Reach:
    """Return what is read on one way or another."""
    if a == b:
        return a
    sure = max(a.sure, b.sure)
    if a.rate != b.rate and not (a.hi == INFINITY or b.hi == INFINITY):
        return Reach(-INFINITY, INFINITY, sure if sure == INFINITY else -INFINITY)
    return _normal(min(a.lo, b.lo), max(a.hi, b.hi), sure, a.rate)


def _normal(lo: float, hi: float, sure: float, rate: float) -> Reach:
    """Unbounded reaches look alike at every rate."""
    if lo == -INFINITY and hi == INFINITY:
        return Reach(lo, hi, sure)
    return Reach(lo, hi, sure, rate)


def along(interval: Interval) -> Reach:
    """Return a reach on one clock."""
    return Reach(interval.lo, interval.hi, interval.hi if interval.exact else -INFINITY)


def of_flow(flow: Flow) -> Reach:
    """Return what one flow of an operation reads."""
    interval = flow.interval
    lo, hi, sure = interval.lo, interval.hi, interval.hi if interval.exact else -INFINITY
    if flow.factor > 1:
        first = flow.factor - 1 if flow.reads == "last" else 0
        last = 0 if flow.reads == "first" else flow.factor - 1
        return Reach(lo + first, hi + last, sure + last, float(flow.factor))
    if flow.factor < -1:
        stride = -flow.factor
        return Reach(lo - (stride - 1) / stride, hi, sure, 1 / stride)
    return Reach(lo, hi, sure)


#: What a value depends on: per source (number of an input, its axis; "" for the input as a whole)
#: and per axis of the value (or `EVERYWHERE`, or `FIRST`) the positions that are read.
Source = tuple[int, str]
Dependence = dict[Source, dict["str | None", Reach]]


def add(into: Dependence, source: Source, key: str | None, reach: Reach) -> None:
    """Add one way from a source to a dependence."""
    keys = into.setdefault(source, {})
    old = keys.get(key)
    keys[key] = reach if old is None else either(old, reach)
