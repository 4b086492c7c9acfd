"""What a decoder saves with stages that run only when a chunk is complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tokdsl.types.tensors import Clock, ragged
from tokdsl.verification.result import CheckResult, failed, passed, skipped
from tokdsl.verification.streaming import advance, not_streamed
from tokdsl.verification.subject import Subject

#: tokens that are decoded one by one, at most
LENGTH = 48


@dataclass
class Runs:
    """How often a nested stage ran.

    Args:
        path: its name in the model.
        chunks: tokens that it was given, per call.
        work: calls of its first layer.
    """

    path: str
    chunks: list[int] = field(default_factory=list)
    work: int = 0


def nested_stages(subject: Subject) -> dict[Clock, str]:
    """Return the ragged clocks of a model with the paths of the stages that run on them."""
    names: dict[str, Clock] = {}
    for module in subject.program.modules:
        clock = ragged(module.inputs[0].type) if module.inputs else None
        if clock is not None and module.kind == "stage":
            names[module.name] = clock
    found: dict[Clock, str] = {}
    for path, _ in subject.model.named_modules():
        clock = names.get(path.rpartition(".")[2])
        if clock is not None:
            found.setdefault(clock, path)
    return found


@contextmanager
def watched(subject: Subject) -> Iterator[dict[Clock, Runs]]:
    """Count what the nested stages of a model are given while it runs."""
    found: dict[Clock, Runs] = {}
    hooks = []
    for clock, path in nested_stages(subject).items():
        stage = subject.model.get_submodule(path)
        runs = found[clock] = Runs(path)
        hooks.append(stage.register_forward_pre_hook(_counter(runs)))
        layer = next((m for m in stage.modules() if m is not stage and not _is_list(m)), None)
        if layer is not None:
            hooks.append(layer.register_forward_pre_hook(_worker(runs)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList)


def _counter(runs: Runs) -> Any:
    def count(_module: nn.Module, given: tuple[Any, ...]) -> None:
        runs.chunks.append(int(given[0].shape[1]))

    return count


def _worker(runs: Runs) -> Any:
    def count(_module: nn.Module, _given: tuple[Any, ...]) -> None:
        runs.work += 1

    return count


def check_chunks(subject: Subject) -> list[CheckResult]:
    """Stages of chunks run for complete chunks alone; what that saves is measured."""
    why = not_streamed(subject)
    if why or not nested_stages(subject):
        return [skipped("chunks", "inner stages", why or "no stage runs on chunks")]
    from torch.utils.flop_counter import FlopCounterMode

    length = min(LENGTH, subject.length)
    inputs = subject.inputs(1, length)
    state = subject.model.new_state(1)
    with watched(subject) as runs, FlopCounterMode(display=False) as counter, torch.no_grad():
        for at in range(length):
            advance(subject, state, inputs, at, at + 1)
    counts = counter.get_flop_counts()
    total = counter.get_total_flops()
    root = type(subject.model).__name__
    return [
        _result(clock, run, total, sum(counts.get(f"{root}.{run.path}", {}).values()))
        for clock, run in runs.items()
    ]


def _result(clock: Clock, runs: Runs, total: int, inner: int) -> CheckResult:
    given = sum(runs.chunks)
    calls = sum(1 for count in runs.chunks if count)
    name = f"stage {clock.name}"
    if runs.work > calls:
        return failed("chunks", name, f"ran {runs.work} times for {calls} steps with a chunk")
    tokens = len(runs.chunks)
    if not given:
        return passed("chunks", name, f"no chunk was complete in {tokens} steps", 0.0)
    always = total - inner + inner * tokens / calls
    stated = f", {clock.ratio:g} stated" if clock.ratio else ""
    text = (
        f"ran in {calls} of {tokens} steps ({tokens / given:.1f} tokens per chunk{stated}): "
        f"{always / max(total, 1):.2f} times fewer products than in every step"
    )
    return passed("chunks", name, text, always / max(total, 1))
