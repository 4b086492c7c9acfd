"""Routers that users write, at the sizes of large models, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.fixtures.kernels import load_kernels
from tests.kernels.user_routers import ROUTERS, spec
from tokdsl.driver import check_source
from tokdsl.lower.build import lower
from tokdsl.lower.plan import KernelPlan
from tokdsl.source import SourceFile

TOKENS = 2048
#: those that differ most in what a program holds
LAUNCHED = (
    "two levels of groups",
    "sparsemax with a bias",
    "ranks by sorting",
    "two softmaxes multiplied",
    "a bias in the choice alone",
)


def planned(name: str, experts: int) -> list[KernelPlan]:
    """Return the kernels of a router."""
    checked = check_source(SourceFile("spec.tok", spec(name, experts)), None)
    program = checked.programs[0]
    plan = lower(program, checked.facts[program.name])
    return [kernel for kernel in plan.kernels if kernel.template == "rows"]


def call(plan: KernelPlan) -> Callable[[torch.dtype], None]:
    """Return a launch of a kernel and of its gradient."""
    pieces: dict[str, Any] = dict(plan.pieces)

    def launch(dtype: torch.dtype) -> None:
        given = []
        for item in pieces["inputs"]:
            lead = (TOKENS,) if item.has_rows else ()
            smooth = item.dtype == "float"
            kind = dtype if smooth else torch.int64 if item.dtype == "i64" else torch.bool
            given.append(torch.zeros((*lead, *item.sizes), dtype=kind, requires_grad=smooth))
        likes: list[Any] = [torch.zeros(1, dtype=dtype) for _ in pieces["for_types"]]
        likes += [None] * bool(pieces["has_padding"])
        kernel = getattr(load_kernels("rows", name=plan.name, **pieces), plan.name)
        found = kernel(*given, *likes)
        parts = found if isinstance(found, tuple) else (found,)
        total = sum(part.float().sum() for part in parts if part.requires_grad)
        if isinstance(total, torch.Tensor):
            total.backward()

    return launch


def launches() -> dict[str, Callable[[torch.dtype], None]]:
    """Return calls by name."""
    found: dict[str, Callable[[torch.dtype], None]] = {}
    for name in LAUNCHED:
        experts = max(ROUTERS[name][2])
        for plan in planned(name, experts):
            found[f"{name}, {experts} experts"] = call(plan)
    return found
