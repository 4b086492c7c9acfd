"""Which positions of an operand a result may read: the algebra of the time analysis."""

from __future__ import annotations

from dataclasses import dataclass

INFINITY = float("inf")


@dataclass(frozen=True, slots=True)
class Interval:
    """Offsets ``lo .. hi`` in tokens relative to the position of the result.

    ``exact`` says that every offset in the interval is really read; otherwise the interval is
    only an upper bound (some condition could not be decided).
    """

    lo: float
    hi: float
    exact: bool = True

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.lo + other.lo, self.hi + other.hi, self.exact and other.exact)

    def union(self, other: Interval) -> Interval:
        """Return the smallest interval that holds both."""
        return Interval(min(self.lo, other.lo), max(self.hi, other.hi), self.exact and other.exact)

    def times(self, count: float) -> Interval:
        """Return the interval of ``count`` applications one after the other."""
        if count == 0:
            return POINTWISE
        # zero times infinity is not a number
        lo, hi = (end * count if end else 0.0 for end in (self.lo, self.hi))
        return Interval(lo, hi, self.exact)

    @property
    def is_causal(self) -> bool:
        """Whether nothing later than the result's own position is read."""
        return self.hi <= 0

    def __str__(self) -> str:
        if self == POINTWISE:
            return "own token"
        if self.lo == -INFINITY and self.hi == INFINITY:
            return "everything"
        if self.lo == -INFINITY:
            return "past" if self.hi == 0 else f"past up to {self.hi:+g}"
        if self.hi == INFINITY:
            return f"from {self.lo:+g} on"
        return f"window {self.lo:+g}..{self.hi:+g}"


POINTWISE = Interval(0, 0)
PAST = Interval(-INFINITY, 0)
EVERYTHING = Interval(-INFINITY, INFINITY)


@dataclass(frozen=True, slots=True)
class Crossing:
    """How a flow goes between a stream and its chunks.

    Args:
        clock: name of the clock of the chunks.
        kind: ``"reduce"`` (tokens become a chunk), ``"expand"`` (a chunk is read by tokens) or
            ``"inside"`` (tokens read the tokens of their own chunk).
        whole: for ``reduce``, whether the last token of the chunk counts, or the first alone.
        late: for ``reduce`` and ``inside``, how many tokens after its last one a chunk's extent
            is known.
        closed: for ``expand``, whether the newest chunk that is closed is read, or the own one.
        lag: for ``expand``, how many chunks before that.
    """

    clock: str
    kind: str
    whole: bool = True
    late: int = 0
    closed: bool = False
    lag: int = 0


@dataclass(frozen=True, slots=True)
class Flow:
    """How positions along an operand's token axis reach positions along a result's token axis.

    Args:
        source: the operand's token axis, by name.
        target: the result's token axis, by name; None when the axis is gone (a reduction), so
            that the result depends on every position that the interval allows.
        interval: offsets read, in ticks of the operand's clock.
        factor: for a change of clock: operand ticks per result tick (reduce) or its inverse
            given as a negative number (expand by ``-factor``).
        reads: for a reduction, what part of a segment a token is made of: ``"whole"``,
            ``"first"`` or ``"last"``; where the axis is gone, the segment is the sequence.
        crossing: between a stream and its ragged chunks, how; the interval comes before it.
    """

    source: str
    target: str | None
    interval: Interval = POINTWISE
    factor: int = 1
    reads: str = "whole"
    crossing: Crossing | None = None

    @property
    def is_own(self) -> bool:
        """Whether a result reads the token at its own position alone."""
        kept = self.target is not None and self.interval == POINTWISE
        return kept and self.factor == 1 and self.crossing is None
