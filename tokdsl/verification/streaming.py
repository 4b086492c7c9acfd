"""Contract 5 and 6: steps give what the full forward gives; the verbs of the decode state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokdsl.graph.program import StageUse
from tokdsl.verification.result import CheckResult, attempt, bounded, skipped
from tokdsl.verification.subject import Inputs, Subject, gap, rows

BATCH = 3


def check_steps(subject: Subject) -> list[CheckResult]:
    """Prefill and steps of every size give the full forward."""
    why = not_streamed(subject)
    if why:
        return [skipped("step", "all", why)]
    length = subject.length
    inputs = subject.inputs(BATCH, length)
    with torch.no_grad():
        full = subject.run(inputs)
    cuts: dict[str, list[int]] = {f"pieces of {n}": _even(length, n) for n in (1, 2, 3, 7)}
    cuts["one piece"] = [length]
    draw = random.Random(subject.seed)
    for number in (1, 2):
        cuts[f"random pieces {number}"] = _uneven(length, draw)

    def compare(name: str, pieces: list[int]) -> CheckResult:
        return bounded("step", name, _largest(subject, inputs, full, pieces), subject.limit)

    return [attempt("step", name, partial(compare, name, cut)) for name, cut in cuts.items()]


def not_streamed(subject: Subject) -> str:
    """Return why a model is not decoded step by step, or ""."""
    if not subject.takes_state:
        return "not streaming" if subject.facts.streaming else "the analysis derives no decoder"
    return "" if final(subject) else "the results are not on the clock of the input"


def _even(length: int, size: int) -> list[int]:
    return [size] * (length // size) + ([length % size] if length % size else [])


def _uneven(length: int, draw: random.Random) -> list[int]:
    pieces: list[int] = []
    while sum(pieces) < length:
        pieces.append(min(draw.randint(1, 6), length - sum(pieces)))
    return pieces


def _largest(subject: Subject, inputs: Inputs, full: Inputs, pieces: Iterable[int]) -> float:
    state = subject.model.new_state(BATCH)
    at, worst = 0, 0.0
    for size in pieces:
        found = advance(subject, state, inputs, at, at + size)
        for stage in final(subject):
            wanted = full[stage.name][:, at : at + size]
            worst = max(worst, gap(found[stage.name], wanted))
        at += size
    return worst


def final(subject: Subject) -> list[StageUse]:
    """Return the stages whose results a decoder gives."""
    return subject.stages(causal=True)


def advance(
    subject: Subject, state: Any, inputs: Inputs, start: int, stop: int, **more: Tensor
) -> Inputs:
    """Read the tokens from ``start`` to ``stop``: a prefill at the start, then steps."""
    piece = subject.taken(subject.piece(inputs, start, stop))
    model = subject.model
    if len(final(subject)) > 1:
        with torch.no_grad():
            return subject.run(piece, state=state, **more)
    last = final(subject)[0].name
    # the tokens come first; what stands beside them goes by name
    first = next(
        (i.name for i in subject.main_inputs() if i.classes is not None), next(iter(piece))
    )
    tokens = piece.pop(first)
    if start == 0:
        return {last: model.prefill(tokens, state, **piece, **more)}
    ticking = {name: tensor for name, tensor in piece.items() if name not in subject.read_once()}
    return {last: model.step(tokens, state, **ticking, **more)}


# --------------------------------------------------------------------------- verbs


def check_state(subject: Subject) -> list[CheckResult]:
    """Reorder, crop, snapshot, and the prompts that often go wrong."""
    why = not_streamed(subject)
    if why:
        return [skipped("state", "all", why)]
    verbs: dict[str, Callable[[Subject], CheckResult]] = {
        "reorder": _reorder,
        "crop": _crop,
        "snapshot, restore": _snapshot,
        "empty prompt": _empty,
        "prompt of one token": _short,
        "left-padded prompt": _padded_left,
    }
    return [attempt("state", name, partial(verb, subject)) for name, verb in verbs.items()]


def _reorder(subject: Subject) -> CheckResult:
    """Beams change places between two steps."""
    length, half = subject.length, subject.length // 2
    inputs, index = subject.inputs(BATCH, length), torch.tensor([2, 0, 0])
    state = subject.model.new_state(BATCH)
    advance(subject, state, inputs, 0, half)
    state.reorder(index)
    joined = _joined(subject, rows(inputs, index), subject.inputs(BATCH, length), half)
    found = advance(subject, state, joined, half, length)
    return _compare(subject, "reorder", found, joined, half, length)


def _joined(subject: Subject, first: Inputs, second: Inputs, at: int) -> Inputs:
    """Return inputs that are the first ones up to a position and the second ones from there."""
    joined = dict(first)
    for given in subject.main_inputs():
        axis, length = subject.axis(given), subject.length
        a = first[given.name].narrow(axis, 0, at)
        b = second[given.name].narrow(axis, at, length - at)
        joined[given.name] = torch.cat((a, b), dim=axis)
    return joined


def _compare(
    subject: Subject, name: str, found: Inputs, inputs: Inputs, start: int, stop: int
) -> CheckResult:
    with torch.no_grad():
        full = subject.run(subject.piece(inputs, 0, stop))
    worst = max(gap(found[s.name], full[s.name][:, start:stop]) for s in final(subject))
    return bounded("state", name, worst, subject.limit)


def _crop(subject: Subject) -> CheckResult:
    """Some tokens are taken back and others read instead."""
    length, half = subject.length, subject.length // 2
    inputs = subject.inputs(BATCH, length)
    state = subject.model.new_state(BATCH)
    advance(subject, state, inputs, 0, half + 3)
    try:
        state.crop(half)
    except ValueError as error:
        return skipped("state", "crop", str(error))
    joined = _joined(subject, inputs, subject.inputs(BATCH, length), half)
    found = advance(subject, state, joined, half, length)
    return _compare(subject, "crop", found, joined, half, length)


def _snapshot(subject: Subject) -> CheckResult:
    """A snapshot is not touched by later steps, and can be restored twice."""
    length, half = subject.length, subject.length // 2
    inputs = subject.inputs(BATCH, length)
    state = subject.model.new_state(BATCH)
    advance(subject, state, inputs, 0, half)
    saved = state.snapshot()
    results: list[CheckResult] = []
    for _ in range(2):
        joined = _joined(subject, inputs, subject.inputs(BATCH, length), half)
        found = advance(subject, state, joined, half, length)
        results.append(_compare(subject, "snapshot, restore", found, joined, half, length))
        state.restore(saved)
    return max(results, key=lambda r: r.value or 0.0)


def _empty(subject: Subject) -> CheckResult:
    """A prompt without tokens, then steps."""
    inputs = subject.inputs(BATCH, 4)
    state = subject.model.new_state(BATCH)
    advance(subject, state, inputs, 0, 0)
    found = [advance(subject, state, inputs, t, t + 1) for t in range(4)]
    joined = {s.name: torch.cat([f[s.name] for f in found], dim=1) for s in final(subject)}
    return _compare(subject, "empty prompt", joined, inputs, 0, 4)


def _short(subject: Subject) -> CheckResult:
    """A prompt of one token, shorter than any window or chunk, then all others at once."""
    length = subject.length
    inputs = subject.inputs(BATCH, length)
    state = subject.model.new_state(BATCH)
    first = advance(subject, state, inputs, 0, 1)
    rest = advance(subject, state, inputs, 1, length)
    found = {s.name: torch.cat((first[s.name], rest[s.name]), dim=1) for s in final(subject)}
    return _compare(subject, "prompt of one token", found, inputs, 0, length)


def _padded_left(subject: Subject) -> CheckResult:
    """Prompts of different lengths, padded on the left, give what each gives alone."""
    mask = subject.valid_name()
    if mask is None:
        return skipped("state", "left-padded prompt", "the model takes no validity mask")
    prompt, more = 6, 4
    lengths = (6, 3, 1)
    inputs = subject.inputs(len(lengths), prompt + more)
    valid = torch.arange(prompt) >= prompt - torch.tensor(lengths)[:, None]
    state = subject.model.new_state(len(lengths))
    found = [advance(subject, state, inputs, 0, prompt, **{mask: valid})]
    found += [advance(subject, state, inputs, t, t + 1) for t in range(prompt, prompt + more)]
    worst = 0.0
    for row, length in enumerate(lengths):
        one = {name: t[row : row + 1] for name, t in inputs.items()}
        alone = subject.piece(one, prompt - length, prompt + more)
        with torch.no_grad():
            wanted = subject.run(alone)
        for stage in final(subject):
            mine = torch.cat([f[stage.name][row : row + 1] for f in found], dim=1)
            worst = max(worst, gap(mine[:, prompt - length :], wanted[stage.name]))
    return bounded("state", "left-padded prompt", worst, subject.limit)
