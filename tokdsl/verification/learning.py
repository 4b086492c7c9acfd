"""Contract 7: gradients reach exactly the parameters that the analysis says."""

from __future__ import annotations

import torch
from torch import Tensor

from tokdsl.checks.cost import clocks
from tokdsl.verification.result import CheckResult, failed, passed, skipped
from tokdsl.verification.subject import Subject

#: batches over which gradients are added, so that every expert gets a token
ROUNDS = 3
BATCH = 8


def check_gradients(subject: Subject) -> list[CheckResult]:
    """Compare parameters with a gradient to the parameters that the analysis calls reached."""
    if not subject.has_objective:
        return [skipped("gradients", "reach", "the model has no objective")]
    totals = _gradients(subject)
    unreached = subject.facts.tables.get("gradients", ())
    assert isinstance(unreached, tuple)
    names = list(totals)
    called_dead = {name for name in names if _is_called_unreached(name, unreached)}
    dead = {name for name, gradient in totals.items() if not bool(gradient.any())}
    wrong = [f"`{n}` gets no gradient" for n in names if n in dead - called_dead]
    wrong += [f"`{n}` gets one" for n in names if n in called_dead - dead]
    broken = [n for n, gradient in totals.items() if not bool(gradient.isfinite().all())]
    wrong += [f"`{n}` gets one that is not finite" for n in broken]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        return [failed("gradients", "reach", ", ".join(wrong[:3]) + more, len(wrong))]
    text = f"{len(names) - len(dead)} of {len(names)} tensors reached, as the analysis says"
    return [passed("gradients", "reach", text, len(names) - len(dead))]


def _gradients(subject: Subject) -> dict[str, Tensor]:
    named = dict(subject.model.named_parameters())
    totals = {name: torch.zeros_like(p) for name, p in named.items()}
    for _ in range(ROUNDS):
        loss = _loss(subject)
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, found, strict=True):
            if gradient is not None:
                totals[name] += gradient.abs()
    return totals


def _loss(subject: Subject) -> Tensor:
    """Return a loss; if chunks are cut, at random places, so that there are some of each length."""
    inputs = subject.inputs(BATCH, subject.length)
    kind = getattr(subject.package, "Decisions", None)
    if kind is None or not any(clock.cut for clock in clocks(subject.program)):
        return subject.loss(inputs)
    record = kind()
    loss = subject.loss(inputs, decisions=record)
    other = {
        name: torch.rand(choice.shape, generator=subject.random) < 0.4
        if choice.dtype == torch.bool
        else choice
        for name, choice in record.to_dict().items()
    }
    try:
        return loss + subject.loss(inputs, decisions=kind.from_dict(other).replay())
    except ValueError:  # chunks of chunks: other chunks have other choices
        return loss


def _is_called_unreached(name: str, unreached: tuple[str, ...]) -> bool:
    """Whether the analysis names a parameter; ``*`` in its names stands for every layer."""
    path = name.split(".")
    return any(
        len(path) == len(parts)
        and all(a == b or (b == "*" and a.isdigit()) for a, b in zip(path, parts, strict=True))
        for parts in (known.split(".") for known in unreached)
    )
