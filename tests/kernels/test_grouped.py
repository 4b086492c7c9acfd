"""Products of sorted rows with the matrix of their group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fixtures.kernels import guarded, load_kernels, scratch_of_nan


def kernels() -> Any:
    """Return the module with the kernels."""
    return load_kernels("grouped")


def _reference(x: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
    parts = [F.linear(rows, matrix) for rows, matrix in zip(x.split(counts), weight, strict=True)]
    return torch.cat(parts)


COUNTS = [[1], [0, 3], [5, 0, 1, 17], [16, 15, 33], [0, 0], [70, 64]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("counts", COUNTS)
def test_rows_of_groups(counts: list[int], dtype: torch.dtype) -> None:
    inputs, outputs = (37, 66) if sum(counts) < 60 else (64, 33)
    torch.manual_seed(0)
    x = torch.randn(sum(counts), inputs).to(dtype)
    weight = (torch.randn(len(counts), outputs, inputs) * inputs**-0.5).to(dtype)
    exact = [v.double().requires_grad_() for v in (x, weight)]
    wanted = _reference(*exact, counts)
    seed = torch.randn(wanted.shape).to(dtype)
    with scratch_of_nan():
        safe = [guarded(v.requires_grad_()) for v in (x, weight)]
        found = kernels().grouped_linear(*safe, torch.tensor(counts).cumsum(0))
        grads = torch.autograd.grad(found, safe, seed)
    tolerance = 2e-6 if dtype == torch.float32 else 2e-3
    right = torch.autograd.grad(wanted, exact, seed.double())
    for a, b in ((found, wanted), *zip(grads, right, strict=True)):
        error = (a.double() - b).norm() / b.norm().clamp_min(1e-6)
        assert error.detach() < tolerance and a.shape == b.shape


def test_registered_operation() -> None:
    for counts in ([2, 0, 3], [0, 0]):
        x, weight = torch.randn(sum(counts), 6), torch.randn(len(counts), 4, 6)
        given = (x.requires_grad_(), weight.requires_grad_(), torch.tensor(counts).cumsum(0))
        torch.library.opcheck(kernels().grouped_linear, given)
