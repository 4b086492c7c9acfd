"""Launches of the sort by expert as large models make them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.fixtures.kernels import load_kernels


def launches() -> dict[str, Callable[[torch.dtype], None]]:
    """Return calls by name."""
    kernels = load_kernels("dispatch")

    def sort(tokens: int, slots: int, experts: int) -> Callable[[torch.dtype], None]:
        def call(dtype: torch.dtype) -> None:
            kernels.dispatch(torch.randint(experts, (tokens, slots)), experts, 64)

        return call

    def total(dtype: torch.dtype) -> None:
        pick = torch.randint(64, (4096, 8))
        y = torch.zeros(4096 * 8, 512, dtype=dtype)
        kernels._sum_choices(y, pick, torch.zeros(4096, 8, dtype=dtype), 64)
        kernels._sum_choices(y, pick, None, 64)

    return {
        "decode": sort(16, 8, 256),
        "training": sort(4096, 8, 64),
        "many experts": sort(4096, 8, 512),
        "sum": total,
    }
