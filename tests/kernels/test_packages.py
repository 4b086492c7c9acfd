"""Whole models on their kernels give what they give in torch: results, objective, gradients.

A small model runs twice with equal parameters in float32: once on the torch forms, once with every
region and function that has a kernel on it (Triton's interpreter where there is no GPU).
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.kernels import DEVICE
from tests.run.test_decoding import EXAMPLES, small
from tokdsl.driver import build
from tokdsl.training.package import import_package
from tokdsl.verification.subject import Subject

#: one per kind of kernel or more; the interpreter is slow
QUICK = ("mixtral",)
SLOW = (
    "hisa", "mamba2", "t5",
    "blt", "byte_moe", "deepseek_v3", "emo", "gemma3_text", "global_batch_lbl", "hat", "hnet",
    "ling", "llama", "moirai_moe", "tokenselect", "vit",
)  # fmt: skip
ROWS, LENGTH = 2, 7


def prepared(name: str, folder: Path) -> tuple[ModuleType, Subject]:
    """Return a small example's package, and its model with drawn parameters."""
    program, facts, settings = small(name)
    built = build(EXAMPLES / f"{name}.tok", folder, settings)
    assert built.directory is not None
    package = import_package(built.directory)
    subject = Subject(package, program, facts, seed=3)
    subject.model = package.Model().float().eval().to(DEVICE)
    torch.manual_seed(4)
    for parameter in subject.model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return package, subject


def run(subject: Subject, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return results, objective and gradients by name."""
    model: Any = subject.model
    model.zero_grad()
    output = model(**subject.taken(inputs))
    found = {s.name: getattr(output, s.name).detach() for s in subject.program.stages}
    total = sum(x.float().square().mean() for x in found.values())
    if hasattr(model, "loss"):
        loss = model.loss(**inputs).total
        found["objective"] = loss.detach()
        loss.backward()
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[f"gradient of {key}"] = parameter.grad.clone()
    assert torch.isfinite(total)
    return found


def launched(kernels: ModuleType) -> list[str]:
    """Count from now on which operations of a package's kernels run."""
    names: list[str] = []
    for name in vars(kernels):
        operation = getattr(kernels, name)
        if not isinstance(operation, torch._library.custom_ops.CustomOpDef):
            continue

        def counted(*args: Any, _operation: Any = operation, _name: str = name, **more: Any) -> Any:
            names.append(_name)
            return _operation(*args, **more)

        setattr(kernels, name, counted)
    return names


def compare(name: str, folder: Path) -> None:
    package, subject = prepared(name, folder)
    functional = importlib.import_module(f"{package.__name__}.functional")
    assert functional.KERNELS is not None
    inputs = subject.inputs(ROWS, LENGTH)
    inputs = {n: (x.float() if x.is_floating_point() else x).to(DEVICE) for n, x in inputs.items()}
    kernels, functional.KERNELS = functional.KERNELS, None
    wanted = run(subject, inputs)
    functional.KERNELS = kernels
    names = launched(kernels)
    kernels.FORCED = True
    try:
        found = run(subject, inputs)
    finally:
        kernels.FORCED = False
    assert names, "no kernel ran"
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        scale = value.float().abs().max().clamp_min(1e-3)
        error = (found[key].float() - value.float()).abs().max() / scale
        assert error < 2e-4, (key, float(error))


@pytest.mark.parametrize("name", QUICK)
def test_kernels_give_what_torch_gives(name: str, tmp_path: Path) -> None:
    compare(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_kernels_of_further_examples_give_what_torch_gives(name: str, tmp_path: Path) -> None:
    compare(name, tmp_path)
