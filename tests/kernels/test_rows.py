"""Routers that users write, compiled: the kernel of their equations against its torch form.

No published model has most of them. Values and gradients are close, picks are equal, ties included.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.kernels import (
    DEVICE,
    check_guards,
    guarded,
    load_kernels,
    scratch_of_nan,
)
from tests.kernels.launches.rows import planned
from tests.kernels.user_routers import ROUNDED, ROUTERS, spec
from tokdsl.driver import build
from tokdsl.training.package import import_package

#: every router at one size, and at the others where there is time
CASES = [
    pytest.param(name, experts, marks=() if i == 0 else pytest.mark.slow)
    for name, (_, _, sizes) in ROUTERS.items()
    for i, experts in enumerate(sizes)
]


class Built:
    """A model with its kernels.

    Args:
        folder: where it is built.
        name: of the router.
        experts: how many.
    """

    def __init__(self, folder: Path, name: str, experts: int) -> None:
        path = folder / "spec.tok"
        path.write_text(spec(name, experts), "utf-8")
        built = build(path, folder)
        assert built.directory is not None, [d.message() for d in built.report]
        self.regions = [r for r in built.regions if r.kernel == "rows"]
        package = import_package(built.directory)
        torch.manual_seed(0)
        self.model: Any = package.Model().to(DEVICE)
        self.functional = importlib.import_module(f"{package.__name__}.functional")
        self.kernels = self.functional.KERNELS
        self.experts = experts
        text = (built.directory / "kernels.py").read_text("utf-8")
        volumes = re.findall(r'ENTRIES"\) // (\d+)', text)
        entries = self.kernels.config("rows.forward")["ENTRIES"]
        self.block = max(1, entries // int(volumes[0]))

    def run(self, x: Tensor, g: Tensor, fused: bool) -> list[Tensor]:
        """Return weights, picks, and the gradients of the scores and of all parameters."""
        self.functional.KERNELS = self.kernels if fused else None
        self.kernels.FORCED = fused
        try:
            both = self.model(x).out
            weights, picks = both.unbind(-1)
            smooth = [x, *self.model.parameters()]
            found = torch.autograd.grad(weights, smooth, g, allow_unused=True)
        finally:
            self.functional.KERNELS, self.kernels.FORCED = self.kernels, False
        given = [
            torch.zeros_like(s) if f is None else f for s, f in zip(smooth, found, strict=True)
        ]
        return [weights.detach(), picks.detach(), *given]

    def compare(self, x: Tensor, tolerance: float) -> None:
        """Compare the kernel with the torch form on scores."""
        x = x.clone().requires_grad_()
        self.functional.KERNELS = None
        g = torch.randn_like(self.model(x).out[..., 0])
        wanted = self.run(x, g, fused=False)
        y = guarded(x.detach()).requires_grad_()
        with scratch_of_nan():
            found = self.run(y, g, fused=True)
        check_guards()
        assert torch.equal(found[1], wanted[1])
        for a, b in zip(wanted, found, strict=True):
            scale = max(1.0, a.float().abs().max().item()) if a.numel() else 1.0
            torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance * scale)


def tied(rows: int, experts: int) -> Tensor:
    """Return scores of one sequence of which many are equal."""
    return torch.randn(1, rows, experts).mul(2).round() / 2


@pytest.mark.parametrize(("name", "experts"), CASES)
def test_a_router_of_a_user_is_one_kernel(name: str, experts: int, tmp_path: Path) -> None:
    made = Built(tmp_path, name, experts)
    assert any(region.fused for region in made.regions), [str(r) for r in made.regions]
    for rows in (0, 1, 7, made.block - 1, made.block, made.block + 1):
        made.compare(torch.randn(1, rows, experts), 1e-5)
    if name not in ROUNDED:
        made.compare(tied(37, experts), 1e-5)
    made.model.half()
    made.compare(torch.randn(1, 13, experts).half(), 2e-3)


@pytest.mark.parametrize("name", ["a bias in the choice alone", "two softmaxes multiplied"])
def test_operations_are_registered_as_torch_demands(name: str) -> None:
    (plan,) = planned(name, 3)
    pieces: dict[str, Any] = dict(plan.pieces)
    given = []
    for item in pieces["inputs"]:
        x = torch.randn(*((4,) if item.has_rows else ()), *item.sizes)
        given.append(x.requires_grad_() if item.dtype == "float" else x.long())
    given += [torch.zeros(1) for _ in pieces["for_types"]]
    kernels = load_kernels("rows", name=plan.name, **pieces)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if not pieces["outputs"][0].torch_dtype.endswith("int64"):  # it adds up results in place
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(kernels, plan.name), tuple(given), test_utils=checks)
