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
    def latest(self) -> float:
        """A number that is the greater the later the tokens are that may be read."""
        if not self.levels or self.hi == INFINITY:
            return self.hi
        ahead = sum(x.offset - (x.lag if x.kind == "expand" else 0) for x in self.levels)
        return self.hi + ahead + (1000.0 if self.levels[-1].kind == "inside" else 0.0)

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
        return _across(first, second, first.sure == first.hi and second.sure == second.hi)
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
    way = second.levels[0] if second.levels else None
    ahead = second.hi if way is None else way.offset if way.kind == "expand" else 0
    if ahead > 0 and _raised(levels, hi) > hi:
        certain = False  # no later token is read: that it is there is known
    for level in second.levels:
        hi = _enter(levels, hi, level)
    if second.levels and second.levels[-1].kind != "expand":
        hi += second.hi  # no move: chunks ahead, as `lag` of the level has it
    else:
        hi = _moved(levels, hi, second.hi)
    return _leveled(tuple(levels), hi, certain)


def _leveled(levels: tuple[Level, ...], hi: float, certain: bool) -> Reach:
    if hi == INFINITY or any(level.offset == INFINITY for level in levels):
        return Reach(-INFINITY, INFINITY, INFINITY if certain else -INFINITY)
    return Reach(-INFINITY, hi, hi if certain else -INFINITY, 1.0, levels)


def _moved(levels: list[Level], hi: float, offset: float) -> float:
    """Return the last position after a move along the result's own axis."""
    last = levels[-1] if levels else None
    if last is not None and last.kind == "inside":
        # an earlier token is in the same chunk or in one before; of a later one nothing is known
        return hi if offset <= 0 else INFINITY
    if last is not None and last.kind == "reduce" and offset > 0:
        hi = _raised(levels, hi)
    return hi + offset


def _raised(levels: list[Level], hi: float) -> float:
    """Return where a way among chunks ends if it says that the chunk it ends at is there.

    That there is a later chunk is known when it is, whatever it holds of earlier tokens.
    """
    last = levels[-1] if levels else None
    if last is None or last.kind == "expand":
        return max(hi, 0)
    return max(hi, last.lag) if last.kind == "reduce" else hi


def _enter(levels: list[Level], hi: float, level: Level) -> float:
    """Add one change to a way that ends at ``hi``; return where it ends then."""
    last = levels[-1] if levels else None
    if level.kind == "expand":
        if level.offset > 0:
            hi = _raised(levels, hi)
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
        return _either_level(a, b, max(a, b, key=lambda x: x.latest).sure > -INFINITY)
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
        # what is certainly late stays so; how far it goes cannot be said in one way for both
        late = any(x.sure > -INFINITY and _is_past(x) for x in (a, b))
        return Reach(-INFINITY, INFINITY, 1.0 if late else -INFINITY)
    return _leveled(*_later(levels, a.hi, other, hi), certain)


def _is_past(reach: Reach) -> bool:
    """Whether tokens after the own one are read, on the clock of tokens."""
    return reach.is_late and (not reach.levels or reach.levels[-1].kind == "inside")


def _later(
    a: list[Level], hi_a: float, b: list[Level], hi_b: float
) -> tuple[tuple[Level, ...], float]:
    """Return a way that ends no earlier than two ways through the same levels.

    From the result back to the source, each way is known to lie some ticks before the merged
    one. A chunk begins at least as many tokens before another one as it lies chunks before it,
    so that ``start(m) + 0`` is no later than ``start(m + 1) - 1``.
    """
    hi = max(hi_a, hi_b)
    before_a, before_b = hi - hi_a, hi - hi_b
    merged: list[Level] = []
    for x, y in zip(reversed(a), reversed(b), strict=True):
        if x.kind == "expand":
            # tokens of one chunk read the same chunk: nothing is known of its distance
            at_a, at_b = x.offset - x.lag, y.offset - y.lag
            lag = min(x.lag, y.lag)
            offset = max(at_a, at_b) + lag
            before_a, before_b = offset - lag - at_a, offset - lag - at_b
        else:
            at_a, at_b = x.offset - before_a, y.offset - before_b
            lag, offset = max(x.lag, y.lag), max(at_a, at_b)
            before_a, before_b = offset - at_a, offset - at_b
        merged.append(Level(x.kind, x.clock, offset, lag, x.closed and y.closed))
    return tuple(reversed(merged)), hi


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
