"""Launches of experts as large models make them, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.fixtures.kernels import load_kernels
from tests.kernels.experts_pieces import GATED, SQUARED


def launches() -> dict[str, Callable[[torch.dtype], None]]:
    """Return calls by name."""
    gated = load_kernels("experts", name="gated_experts", activation=GATED)
    squared = load_kernels("experts", name="squared_experts", activation=SQUARED)

    def call(
        kernel: Callable[..., Tensor], maps: int, tokens: int, bias: bool, trained: bool
    ) -> Callable[[torch.dtype], None]:
        def launch(dtype: torch.dtype) -> None:
            experts, slots, width, hidden = 8, 2, 256, 128
            x = torch.zeros(tokens, width, dtype=dtype, requires_grad=trained)
            pick = torch.zeros(tokens, slots, dtype=torch.int64)
            share = torch.zeros(tokens, slots, dtype=dtype, requires_grad=trained)
            given: list[Tensor | None] = []
            for rows, columns in [(hidden, width)] * maps + [(width, hidden)]:
                given += [torch.zeros(experts, rows, columns, dtype=dtype, requires_grad=trained)]
                given += [torch.zeros(experts, rows, dtype=dtype) if bias else None]
            y = kernel(x, pick, share, given)
            if trained:
                y.sum().backward()

        return launch

    return {
        "decode": call(gated.gated_experts, 2, 16, False, False),
        "training": call(gated.gated_experts, 2, 1024, False, True),
        "training, few rows": call(gated.gated_experts, 2, 64, False, True),
        "training with biases": call(squared.squared_experts, 1, 1024, True, True),
    }
