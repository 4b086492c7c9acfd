"""Which positions a value reads, composed through operations: the arithmetic of the analysis."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokdsl.types.time import INFINITY, Crossing, Flow, Interval

#: key of what is read whatever the position of the result is
EVERYWHERE = None
#: key of what reads the first position only
FIRST = "<first>"


@dataclass(frozen=True, slots=True)
class Level:
    """One change between a stream and its ragged chunks on the way from a source to a result.

    Args:
        kind: ``"reduce"``: position ``m`` of what follows stands for the token
            ``start(m) + offset``; ``"inside"``: the same, ``m`` counted from the chunk of the
            token; ``"expand"``: chunk ``m`` of the source is read ``lag`` chunks late.
        clock: name of the clock of the chunks.
        offset: tokens to add below the change.
        lag: for ``expand``, chunks between the token's own and the one that is read; else the
            chunks that the end of what is read lies ahead by itself: 1 for a whole chunk.
        closed: for ``expand``, whether the newest closed chunk is meant, not the token's own.
    """

    kind: str
    clock: str
    offset: float = 0.0
    lag: int = 0
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Reach:
    """Positions ``rate * t + lo .. rate * t + hi`` in ticks of the source, ``t`` of the result.

    Between ragged clocks positions have no fixed rate. There ``levels`` says through which
    chunks the way goes, the source's side first, and ``hi`` counts ticks after the last change.

    Args:
        lo: the smallest offset that may be read.
        hi: the largest offset that may be read.
        sure: the largest offset that is certainly read; minus infinity if none is known.
        rate: ticks of the source per tick of the result.
        levels: changes between streams and ragged chunks.
    """

    lo: float
    hi: float
    sure: float
    rate: float = 1.0
    levels: tuple[Level, ...] = ()

    @property
    def is_own(self) -> bool:
        """Whether only the own position is read."""
        return self.lo == 0 and self.hi == 0 and self.rate == 1 and not self.levels

    @property
    def is_late(self) -> bool:
        """Whether a later token than the result's own may be read."""
        if not self.levels:
            return self.hi > max(self.rate - 1, 0)
        if self.hi == INFINITY or self.levels[-1].kind == "inside":
            return True
        return self.levels[-1].kind == "reduce" and self.levels[-1].offset + self.hi > 0

    def __str__(self) -> str:
        return str(Interval(self.lo, self.hi))


OWN = Reach(0, 0, 0)
ALL = Reach(-INFINITY, INFINITY, INFINITY)
PERHAPS = Reach(-INFINITY, INFINITY, -INFINITY)


def join(first: Reach, second: Reach, counted: bool = False) -> Reach:
    """Return what a result reads of a source through a value between them.

    Args:
        first: what the value reads of the source.
        second: what the result reads of the value.
        counted: whether data decide how many entries the value has. Whether there is a later
            entry says something of later tokens, even if it holds nothing but earlier ones.
    """
    certain = first.sure > -INFINITY and second.sure > -INFINITY
    if first.levels or second.levels:
        return _across(first, second, certain)
    lo = first.rate * second.lo + first.lo
    hi = first.rate * second.hi + first.hi
    if counted and second.hi > 0:
        hi = max(hi, first.rate * second.hi)
    sure = first.rate * second.sure + first.sure if certain else -INFINITY
    return _normal(lo, hi, sure, first.rate * second.rate)


def _across(first: Reach, second: Reach, certain: bool) -> Reach:
    """Return the way through both, where one changes between a stream and its chunks."""
    if first.rate != 1 or second.rate != 1:
        return ALL if certain and INFINITY in (first.sure, second.sure) else PERHAPS
    levels, hi = list(first.levels), first.hi
    for level in second.levels:
        hi = _enter(levels, hi, level)
    if second.levels and second.levels[-1].kind == "inside":
        hi += second.hi  # no move: chunks ahead, as `lag` of the level has it
    else:
        hi = _moved(levels, hi, second.hi)
    return _leveled(tuple(levels), hi, certain)


def _leveled(levels: tuple[Level, ...], hi: float, certain: bool) -> Reach:
    if hi == INFINITY:
        return Reach(-INFINITY, INFINITY, INFINITY if certain else -INFINITY)
    return Reach(-INFINITY, hi, hi if certain else -INFINITY, 1.0, levels)


def _moved(levels: list[Level], hi: float, offset: float) -> float:
    """Return the last position after a move along the result's own axis."""
    last = levels[-1] if levels else None
    if last is not None and last.kind == "inside":
        # an earlier token is in the same chunk or in one before; of a later one nothing is known
        return hi if offset <= 0 else INFINITY
    if last is not None and last.kind == "reduce" and offset > 0:
        # that there is a later chunk is known when it is there, whatever it holds
        return max(hi, last.lag) + offset
    return hi + offset


def _enter(levels: list[Level], hi: float, level: Level) -> float:
    """Add one change to a way that ends at ``hi``; return where it ends then."""
    last = levels[-1] if levels else None
    if level.kind == "expand":
        if level.offset > 0 and (last is None or last.kind == "expand"):
            hi = max(hi, 0)  # as in `_moved`
        hi = _moved(levels, hi, level.offset)
        if last is None or last.kind == "expand":
            levels.append(replace(level, offset=hi))
            return 0.0
        if last.kind != "reduce" or last.clock != level.clock:
            return INFINITY
        levels.pop()
        hi -= level.lag
        # the first token of the own chunk, and the last one of a closed chunk, are not later
        if hi <= (1 if level.closed else 0):
            return last.offset + hi
        if level.closed:
            return INFINITY
        levels.append(replace(last, kind="inside"))
        return hi
    if last is not None and last.kind == "inside":
        if last.clock != level.clock:
            return INFINITY
        levels[-1] = replace(last, kind=level.kind, lag=level.lag)
        return hi - level.lag
    levels.append(replace(level, offset=hi + level.offset))
    return 0.0


def either(a: Reach, b: Reach) -> Reach:
    """Return what is read on one way or another."""
    if a == b:
        return a
    sure = max(a.sure, b.sure)
    if a.levels or b.levels:
        return _either_level(a, b, sure > -INFINITY)
    if a.rate != b.rate and not (a.hi == INFINITY or b.hi == INFINITY):
        return Reach(-INFINITY, INFINITY, sure if sure == INFINITY else -INFINITY)
    return _normal(min(a.lo, b.lo), max(a.hi, b.hi), sure, a.rate)


def _either_level(a: Reach, b: Reach, certain: bool) -> Reach:
    if INFINITY in (a.hi, b.hi):
        return ALL if INFINITY in (a.sure, b.sure) else PERHAPS
    if len(a.levels) < len(b.levels):
        a, b = b, a
    levels, other = list(a.levels), list(b.levels)
    hi = b.hi
    if len(other) == len(levels) - 1 and levels[-1].kind == "inside" and hi <= 0:
        # the own token lies before the end of its chunk
        other.append(Level("inside", levels[-1].clock, hi - 1, 1))
        hi = 1.0
    if [(x.kind, x.clock) for x in levels] != [(x.kind, x.clock) for x in other]:
        return PERHAPS
    merged = tuple(
        Level(x.kind, x.clock, max(x.offset, y.offset), min(x.lag, y.lag), x.closed and y.closed)
        for x, y in zip(levels, other, strict=True)
    )
    return _leveled(merged, max(a.hi, hi), certain)


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
    if flow.crossing is not None:
        return _crossed(flow.crossing, hi, interval.exact)
    if flow.factor > 1:
        first = flow.factor - 1 if flow.reads == "last" else 0
        last = 0 if flow.reads == "first" else flow.factor - 1
        return Reach(lo + first, hi + last, sure + last, float(flow.factor))
    if flow.factor < -1:
        stride = -flow.factor
        return Reach(lo - (stride - 1) / stride, hi, sure, 1 / stride)
    return Reach(lo, hi, sure)


def _crossed(crossing: Crossing, hi: float, certain: bool) -> Reach:
    """Return the reach of one change; ``hi`` counts on the side that it comes from."""
    if crossing.kind == "expand":
        level = Level("expand", crossing.clock, hi, crossing.lag, crossing.closed)
        return _leveled((level,), 0.0, certain)
    # the last token of chunk m is the one before chunk m + 1
    whole = 1 if crossing.whole else 0
    offset = hi - whole + crossing.late
    level = Level(crossing.kind, crossing.clock, offset, whole)
    return _leveled((level,), float(whole), certain)


#: What a value depends on: per source (number of an input, its axis; "" for the input as a whole)
#: and per axis of the value (or `EVERYWHERE`, or `FIRST`) the positions that are read.
Source = tuple[int, str]
Dependence = dict[Source, dict["str | None", Reach]]


def add(into: Dependence, source: Source, key: str | None, reach: Reach) -> None:
    """Add one way from a source to a dependence."""
    keys = into.setdefault(source, {})
    old = keys.get(key)
    keys[key] = reach if old is None else either(old, reach)
