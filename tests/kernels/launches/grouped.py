"""Launches of products by group as large models make them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.fixtures.kernels import load_kernels


def launches() -> dict[str, Callable[[torch.dtype], None]]:
    """Return calls by name."""
    kernels = load_kernels("grouped")

    def product(rows: int) -> Callable[[torch.dtype], None]:
        def call(dtype: torch.dtype) -> None:
            x = torch.zeros(rows, 256, dtype=dtype, requires_grad=True)
            weight = torch.zeros(8, 512, 256, dtype=dtype, requires_grad=True)
            kernels.grouped_linear(x, weight, torch.zeros(8, dtype=torch.int64)).sum().backward()

        return call

    return {"few rows": product(64), "many rows": product(2048)}
