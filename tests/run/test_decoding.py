"""Every example that is causal: prefill and steps give what the whole forward gives.

Sizes are those that `tokdsl verify` derives. In float64 nothing is left to rounding. In float32 the
discrete choices of the whole forward are replayed, because a rounding may turn one that is close.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.decoding import error, splits
from tokdsl.checks.facts import Facts
from tokdsl.commands.verify import small_settings
from tokdsl.driver import build, check_file
from tokdsl.graph.program import Program
from tokdsl.training.package import import_package
from tokdsl.verification.streaming import advance, final
from tokdsl.verification.subject import Subject

EXAMPLES = Path(__file__).parents[2] / "examples"
#: examples that decode; one that starts or stops to decode must be moved on purpose
DECODED = {
    "blt", "byte_moe", "deepseek_v3", "dynamic_generation", "emo", "gemma3_text",
    "global_batch_lbl", "hamburger", "hat", "hisa", "hnet", "hnet_two_stage", "ling", "llama",
    "mamba2", "megabyte", "mixtral", "olmoe", "qwen3", "spacebyte", "t5", "tfree_hat",
    "tokenselect",
}  # fmt: skip
ROWS, LENGTH = 3, 19
#: float32 rounds in each of its 32 layers
ROUNDED = {"ling": 5e-5}
#: settings where derived sizes would leave nothing to test
SETTINGS = {"byte_moe": {"d": 16, "heads": 2, "kv_heads": 1, "hidden": 16, "experts": 4}}


def small(name: str) -> tuple[Program, Facts, dict[str, str]]:
    """Return an example at small sizes, with the settings."""
    path = EXAMPLES / f"{name}.tok"
    settings = SETTINGS.get(name) or small_settings(path, check_file(path))
    texts = {key: str(value) for key, value in settings.items()}
    checked = check_file(path, texts)
    program = checked.programs[0]
    return program, checked.facts[program.name], texts


def test_the_list_is_complete() -> None:
    found = set()
    for path in EXAMPLES.glob("*.tok"):
        checked = check_file(path)
        for program in checked.programs:
            if checked.facts[program.name].streaming:
                found.add(path.stem)
    assert found == DECODED


def worst(
    subject: Subject, inputs: dict[str, Tensor], parts: list[int], full: Any, record: Any
) -> float:
    """Return the worst relative error of a prefill and steps over all decoded stages."""
    state = subject.model.new_state(ROWS)
    found: dict[str, list[Tensor]] = {}
    at = 0
    for count in parts:
        more = {"decisions": record.replay()} if record is not None else {}
        piece = advance(subject, state, inputs, at, at + count, **more)
        for name, value in piece.items():
            found.setdefault(name, []).append(value)
        at += count
    stages = [stage.name for stage in final(subject)]
    return max(error(torch.cat(found[name], dim=1), getattr(full, name)) for name in stages)


def large(model: nn.Module) -> None:
    """Draw matrices so that every part of a model counts."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3 if parameter.shape[-1] < 32 else 0.15)


@pytest.mark.parametrize("name", sorted(DECODED))
def test_steps_give_the_whole(name: str, tmp_path: Path) -> None:
    program, facts, settings = small(name)
    built = build(EXAMPLES / f"{name}.tok", tmp_path, settings)
    assert built.directory is not None
    package: ModuleType = import_package(built.directory)
    rounded = ROUNDED.get(name, 1e-5)
    for dtype, limit in ((torch.float64, 1e-10), (torch.float32, rounded)):
        subject = Subject(package, program, facts, seed=3)
        subject.model = package.Model().to(dtype).eval()
        if dtype is torch.float64:
            large(subject.model)
        inputs = subject.inputs(ROWS, LENGTH)
        inputs = {n: x.to(dtype) if x.is_floating_point() else x for n, x in inputs.items()}
        record = package.Decisions() if hasattr(package, "Decisions") else None
        more = {"decisions": record} if record is not None else {}
        with torch.no_grad():
            full = subject.model(**subject.taken(inputs), **more)
        replayed = record if dtype is torch.float32 else None
        for parts in splits(LENGTH):
            assert worst(subject, inputs, parts, full, replayed) < limit, (dtype, parts)
