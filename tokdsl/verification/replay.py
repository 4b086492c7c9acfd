"""Discrete choices: a replay gives the same again, and its choices are those that are made."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokdsl.verification.result import CheckResult, attempt, bounded, failed, passed, skipped
from tokdsl.verification.streaming import advance, final, not_streamed
from tokdsl.verification.subject import Inputs, Subject, gap

BATCH = 3
GROUP = "replay"


def check_replay(subject: Subject) -> list[CheckResult]:
    """Record the choices of one input; make them again, make another input's, and in pieces."""
    if not hasattr(subject.package, "Decisions"):
        return [skipped(GROUP, "all", "the model makes no discrete choice")]
    inputs = subject.inputs(BATCH, subject.length)
    own, foreign = (_recorded(subject, i) for i in (inputs, subject.inputs(BATCH, subject.length)))
    checks = {
        "own choices": partial(_own, subject, inputs, own),
        "other choices": partial(_other, subject, inputs, own, foreign),
        "choices in pieces": partial(_pieces, subject, inputs, foreign),
    }
    return [attempt(GROUP, name, partial(check, name)) for name, check in checks.items()]


def _recorded(subject: Subject, inputs: Inputs) -> Any:
    decisions = subject.package.Decisions()
    with torch.no_grad():
        _run(subject, inputs, decisions)
    return decisions


def _run(subject: Subject, inputs: Inputs, decisions: Any) -> Inputs:
    torch.manual_seed(subject.seed)  # choices may be drawn
    return subject.run(inputs, decisions=decisions)


def _gradients(subject: Subject, inputs: Inputs, decisions: Any) -> dict[str, Tensor]:
    """Return the gradient of every parameter, zeros where there is none."""
    named = dict(subject.model.named_parameters())
    torch.manual_seed(subject.seed)
    if subject.has_objective:
        total = subject.loss(inputs, decisions=decisions)
    else:
        results = subject.run(inputs, decisions=decisions).values()
        total = torch.stack([r.square().sum() for r in results if r.is_floating_point()]).sum()
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(named[name]) if gradient is None else gradient
        for name, gradient in zip(named, found, strict=True)
    }


def _own(subject: Subject, inputs: Inputs, own: Any, name: str) -> CheckResult:
    """What is recorded changes nothing when it is replayed, neither results nor gradients."""
    with torch.no_grad():
        plain, again = (_run(subject, inputs, decisions) for decisions in (None, own.replay()))
    first, second = (_gradients(subject, inputs, d) for d in (None, own.replay()))
    changed = [f"the result of `{n}`" for n in plain if not torch.equal(plain[n], again[n])]
    changed += [f"the gradient of `{n}`" for n in first if not torch.equal(first[n], second[n])]
    if changed:
        return failed(GROUP, name, f"a replay changes {changed[0]}", len(changed))
    text = f"{len(own.names())} choices replayed: results and gradients are the same bits"
    return passed(GROUP, name, text, len(own.names()))


def _other(subject: Subject, inputs: Inputs, own: Any, foreign: Any, name: str) -> CheckResult:
    """Another input's choices are really made, and gradients reach what would have chosen."""
    same = own.names() == foreign.names()
    if same and all(_alike(own[key], foreign[key]) for key in own.names()):
        return skipped(GROUP, name, "two inputs lead to the same choices")
    with torch.no_grad():
        plain, forced = (_run(subject, inputs, decisions) for decisions in (None, foreign.replay()))
    if all(torch.equal(plain[n], forced[n]) for n in plain):
        return failed(GROUP, name, "other choices change no result")
    before, after = (_gradients(subject, inputs, d) for d in (None, foreign.replay()))
    for key in own.names():
        path = key.rpartition(".")[0] + "."
        mine = [n for n in before if n.startswith(path) and bool(before[n].any())]
        if mine and not any(bool(after[n].any()) for n in mine):
            return failed(GROUP, name, f"no gradient reaches `{mine[0]}` in a replay")
    return passed(GROUP, name, "results follow the replayed choices, gradients flow")


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether the same is chosen, in whatever order."""
    if first.shape != second.shape:
        return False
    return torch.equal(*(t.sort(dim=-1).values if t.dim() else t for t in (first, second)))


def _pieces(subject: Subject, inputs: Inputs, foreign: Any, name: str) -> CheckResult:
    """What a whole pass recorded is replayed by a prefill and steps."""
    why = not_streamed(subject)
    if why:
        return skipped(GROUP, name, why)
    with torch.no_grad():
        whole = _run(subject, inputs, foreign.replay())
    state, at, worst = subject.model.new_state(BATCH), 0, 0.0
    for size in (subject.length // 2, 1, subject.length - subject.length // 2 - 1):
        more = {"decisions": foreign.replay()}
        found = advance(subject, state, inputs, at, at + size, **more)
        for stage in final(subject):
            wanted = whole[stage.name][:, at : at + size]
            worst = max(worst, gap(found[stage.name], wanted))
        at += size
    return bounded(GROUP, name, worst, subject.limit)
