"""The arithmetic of what is read: against positions that are followed one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokdsl.checks.reach import ALL, OWN, PERHAPS, Reach, along, either, join, of_flow
from tokdsl.types.time import INFINITY, PAST, Crossing, Flow, Interval

offsets = st.integers(-5, 5)
intervals = st.builds(lambda a, b: Interval(min(a, b), max(a, b)), offsets, offsets)
LENGTH = 60


def positions(flow: Flow, at: int) -> set[int]:
    """Return the positions of the operand that a result's position reads."""
    lo, hi = int(flow.interval.lo), int(flow.interval.hi)
    if flow.factor > 1:
        first = at * flow.factor
        last = first + flow.factor - 1
        own = {"first": [first], "last": [last]}.get(flow.reads, range(first, last + 1))
        return {p + offset for p in own for offset in range(lo, hi + 1)}
    own = [at // -flow.factor if flow.factor < -1 else at]
    return {p + offset for p in own for offset in range(lo, hi + 1)}


def furthest(flows: list[Flow]) -> tuple[int, int]:
    """Return the smallest and largest offset that is read through flows, the last one first."""
    lo, hi = 0, 0
    rate = 1.0
    for flow in flows:
        rate = rate * flow.factor if flow.factor > 0 else rate / -flow.factor
    for at in range(12, LENGTH):
        read = {at}
        for flow in reversed(flows):
            read = set().union(*(positions(flow, p) for p in read))
        lo = min(lo, *(p - at for p in read))
        hi = max(hi, *(p - at for p in read))
    return lo, hi


@given(intervals, intervals)
def test_one_after_the_other_on_one_clock(a: Interval, b: Interval) -> None:
    reach = join(along(a), along(b))
    assert (reach.lo, reach.hi, reach.sure) == (a.lo + b.lo, a.hi + b.hi, a.hi + b.hi)


@given(st.integers(2, 5), st.sampled_from(["whole", "first", "last"]), st.integers(0, 3), intervals)
def test_chunks_and_back(stride: int, reads: str, lag: int, between: Interval) -> None:
    down = Flow("T", "T", factor=stride, reads=reads)
    middle = Flow("T", "T", between)
    up = Flow("T", "T", Interval(-lag, -lag), factor=-stride)
    reach = join(join(of_flow(down), of_flow(middle)), of_flow(up))
    lo, hi = furthest([down, middle, up])
    assert reach.rate == pytest.approx(1)
    assert max(reach.hi, 0) == pytest.approx(hi)  # exact: a leak is neither missed nor made up
    assert max(reach.sure, 0) == pytest.approx(hi)
    assert min(reach.lo, 0) <= lo + 1e-9


def test_what_is_sure_needs_every_part_to_be_sure() -> None:
    assert join(along(PAST), ALL).sure == INFINITY
    assert join(ALL, PERHAPS).sure == -INFINITY
    assert either(PERHAPS, Reach(0, 2, 2)).sure == 2


def test_own_token_changes_nothing() -> None:
    window = Reach(-3, 0, 0)
    assert join(OWN, window) == join(window, OWN) == window
    assert either(OWN, window) == window


def test_streams_of_different_rates_cannot_be_compared() -> None:
    assert either(Reach(0, 0, 0, 2.0), OWN) == PERHAPS


# ----------------------------------------------------------------------------- ragged chunks

#: last tokens of the chunks of some rows
CUTS = ((0, 1, 2, 3, 4, 5, 6, 7, 8, 9), (2, 3, 7, 8, 9), (4, 9), (0, 4, 5, 9))


def furthest_of_chunks(whole: bool, move: int, lag: int, closed: bool) -> int:
    """Return how far ahead some token of some row reads through its chunks."""
    ahead = -LENGTH
    for ends in CUTS:
        starts = [0, *(end + 1 for end in ends[:-1])]
        for at in range(ends[-1] + 1):
            own = next(m for m, end in enumerate(ends) if end >= at)
            own -= 1 if closed and ends[own] > at else 0
            chunk = own - lag + move
            if 0 <= chunk < len(ends):
                ahead = max(ahead, (ends if whole else starts)[chunk] - at)
    return ahead


@given(st.booleans(), st.integers(-2, 2), st.integers(0, 3), st.booleans())
def test_through_ragged_chunks(whole: bool, move: int, lag: int, closed: bool) -> None:
    down = of_flow(Flow("T", "C", crossing=Crossing("c", "reduce", whole)))
    up = of_flow(Flow("C", "T", crossing=Crossing("c", "expand", closed=closed, lag=lag)))
    reach = join(join(down, along(Interval(move, move))), up)
    assert reach.is_late == (furthest_of_chunks(whole, move, lag, closed) > 0)


@given(st.integers(-2, 0), st.integers(-2, 0), st.integers(0, 2), st.booleans())
def test_two_ways_through_the_same_chunks(a: int, b: int, lag: int, closed: bool) -> None:
    kinds = [Flow("T", "C", crossing=Crossing("c", "reduce", whole)) for whole in (False, True)]
    moves = [along(Interval(move, move)) for move in (a, b)]
    ways = [join(of_flow(k), m) for k, m in zip(kinds, moves, strict=True)]
    up = of_flow(Flow("C", "T", crossing=Crossing("c", "expand", closed=closed, lag=lag)))
    both = join(either(*ways), up)
    assert both.is_late == any(join(way, up).is_late for way in ways)


def test_that_a_chunk_follows_is_not_known_before_it_does() -> None:
    down = of_flow(Flow("T", "C", crossing=Crossing("c", "reduce", False)))
    back, ahead = along(Interval(-2, -2)), along(Interval(1, 1))
    up = of_flow(Flow("C", "T", crossing=Crossing("c", "expand")))
    reach = join(join(join(down, back), ahead), up)
    assert reach.is_late and reach.sure == -INFINITY
    assert not join(join(back, ahead), OWN).is_late
    assert join(back, ahead, counted=True).hi == 1
