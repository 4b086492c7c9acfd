"""Contract 8: the facts equal what is measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tokdsl.checks.cost import Accountant, clocks, lengths
from tokdsl.verification.chunks import watched
from tokdsl.verification.result import CheckResult, counted, failed, passed, skipped
from tokdsl.verification.streaming import advance, not_streamed
from tokdsl.verification.subject import Subject

#: Products are what the counter counts; the analysis also counts what is done per entry, and
#: attention with all keys that a block of a kernel touches. At small sizes that is much.
FLOPS_LOW, FLOPS_HIGH = 0.5, 1.5
#: lengths between which the growth of caches is measured: a cache is a power of two long
FIRST, SECOND = 64, 128
#: tokens per step while it is measured: a window keeps room for the longest step
PIECE = 8


def check_facts(subject: Subject) -> list[CheckResult]:
    """Parameters, active parameters, work and memory."""
    return [_parameters(subject), _active(subject), _flops(subject), *_cache(subject)]


def _exactly(name: str, measured: float, said: float | None, unit: str) -> CheckResult:
    if said is None:
        return skipped("facts", name, "the analysis gives no number")
    text = f"{counted(measured)} {unit} measured, {counted(said)} by analysis"
    verdict = passed if abs(measured - said) < 0.5 else failed
    return verdict("facts", name, text, measured)


def _parameters(subject: Subject) -> CheckResult:
    count = sum(p.numel() for p in subject.model.parameters() if p.requires_grad)
    return _exactly("parameters", count, subject.facts.numbers.get("params"), "numbers")


def _active(subject: Subject) -> CheckResult:
    """Count the experts that take part in the result for one token, and all other parameters."""
    inputs = subject.inputs(1, 1)
    results = subject.run(inputs)
    total = torch.stack([r.float().sum() for r in results.values() if r.is_floating_point()]).sum()
    named = list(subject.model.parameters())
    gradients = torch.autograd.grad(total, named, allow_unused=True)
    stacked = _stacked(subject.model)
    count = 0
    for parameter, gradient in zip(named, gradients, strict=True):
        if id(parameter) in stacked and gradient is not None:
            used = gradient.flatten(1).ne(0).any(dim=1)
            count += int(used.sum()) * parameter[0].numel()
        else:
            count += parameter.numel()
    return _exactly(
        "active parameters", count, subject.facts.numbers.get("active_params"), "numbers"
    )


def _stacked(model: nn.Module) -> set[int]:
    """Return the parameters whose first axis is experts."""
    return {
        id(parameter)
        for module in model.modules()
        if type(module).__name__.startswith("Grouped")
        for parameter in module.parameters(recurse=False)
    }


def _flops(subject: Subject) -> CheckResult:
    """Count the products of one forward pass and compare with the analysis at that length."""
    from torch.utils.flop_counter import FlopCounterMode

    length = 32
    # with gradients, because grouped products of inference are one call that is not counted
    with (
        watched(subject) as runs,
        FlopCounterMode(display=False) as counter,
        torch.enable_grad(),
    ):
        subject.run(subject.inputs(1, length, length))
    chunks = {clock.name: float(run.chunks[-1]) for clock, run in runs.items() if run.chunks}
    said = _analysed(subject, length, chunks)
    if not said:
        return skipped("facts", "FLOPs", "the analysis gives no number")
    products = counter.get_total_flops()
    ratio = products / said
    text = (
        f"{counted(products)} in products, {counted(said)} by analysis, "
        f"ratio {ratio:.2f} ({FLOPS_LOW} to {FLOPS_HIGH})"
    )
    verdict = passed if FLOPS_LOW <= ratio <= FLOPS_HIGH else failed
    return verdict("facts", "FLOPs", text, ratio)


def _analysed(subject: Subject, length: int, chunks: dict[str, float]) -> float:
    accountant = Accountant()
    known, _ = lengths(subject.program, length, subject.clock)
    for name, count in chunks.items():
        known[f"T_{name}"] = known[f"S_{name}"] = count
    total = 0.0
    for stage in subject.program.stages:
        flops = accountant.module(stage.module).total.flops
        missing = flops.symbols() - known.keys()
        total += flops.evaluate({**known, **dict.fromkeys(missing, float(length))})
    return total


def _cache(subject: Subject) -> list[CheckResult]:
    """Measure the real state in the dtype that the analysis counts in: two bytes per number."""
    why = not_streamed(subject)
    if why:
        return [skipped("facts", "cache", why)]
    numbers = subject.facts.numbers
    if any(clock.cut for clock in clocks(subject.program)):
        said = counted(numbers.get("cache_per_token", 0.0))
        text = f"chunks come as they come; {said} bytes per token by analysis, at the stated ratios"
        return [skipped("facts", "cache per token", text)]
    half = subject.package.Model().eval().to(torch.bfloat16)
    kept, subject.model = subject.model, half
    try:
        sizes = [_state_bytes(subject, length) for length in (FIRST, SECOND)]
    finally:
        subject.model = kept
    per_token = (sizes[1] - sizes[0]) / (SECOND - FIRST)
    fixed = sizes[0] - per_token * FIRST
    return [
        _exactly("cache per token", per_token, numbers.get("cache_per_token"), "bytes"),
        _at_least("state", fixed, numbers.get("state_bytes")),
    ]


def _at_least(name: str, measured: float, said: float | None) -> CheckResult:
    """A window has room before its oldest tokens are moved out, so more may be held."""
    if said is None:
        return skipped("facts", name, "the analysis gives no number")
    room = " with room to move" if measured > said else ""
    text = f"{counted(measured)} bytes held{room}, {counted(said)} by analysis"
    return (passed if measured >= said else failed)("facts", name, text, measured)


def _state_bytes(subject: Subject, length: int) -> float:
    """Return the bytes that are held after ``length`` tokens."""
    inputs = subject.inputs(1, length)
    inputs = {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in inputs.items()}
    state: Any = subject.model.new_state(1)
    for start in range(0, length, PIECE):
        advance(subject, state, inputs, start, min(length, start + PIECE))
    return float(state.bytes())
