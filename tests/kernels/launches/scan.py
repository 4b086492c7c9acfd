"""Recurrences at the sizes of real models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tests.fixtures.kernels import load_kernels

Shape = Sequence[int]


def both(a_shape: Shape, b_shape: Shape, dim: int, masked: bool) -> Callable[[torch.dtype], None]:
    """Return the recurrence and its gradient."""

    def call(dtype: torch.dtype) -> None:
        kernels = load_kernels("scan")
        a, b = (torch.ones(*x, dtype=dtype).requires_grad_() for x in (a_shape, b_shape))
        mask = torch.ones(b_shape[0], b_shape[dim], dtype=torch.bool) if masked else None
        h, _ = kernels.linear_recurrence(a, b, dim, mask, mask)
        torch.autograd.grad(h, (a, b), torch.ones_like(h))

    return call


def launches() -> dict[str, Callable[[torch.dtype], None]]:
    """Return calls by name."""
    return {
        "channels": both((8, 2048, 1536), (8, 2048, 1536), 1, True),
        "shared": both((8, 2048, 1), (8, 2048, 1024), 1, True),
        "long": both((1, 32768, 256), (1, 32768, 256), 1, False),
    }


def work() -> dict[str, tuple[float, float]]:
    """Return operations and bytes of forward and backward together, of two bytes a number."""
    full = {"channels": 8 * 2048 * 1536, "long": 32768 * 256}
    found = {name: (7.0 * n, 16.0 * n) for name, n in full.items()}
    n = 8 * 2048 * 1024
    found["shared"] = (7.0 * n, 10.0 * n)
    return found
