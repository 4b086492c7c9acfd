"""Linear attention at the sizes of real models."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.fixtures.kernels import load_kernels

#: texts, tokens, heads of keys, heads of values, channels of keys and of values, of decays
SIZES = {
    "one key": (2, 2048, 1, 32, 128, 64, 1),
    "gated": (1, 2048, 4, 4, 128, 256, 128),
}


def both(name: str) -> Callable[[torch.dtype], None]:
    """Return linear attention and its gradient."""
    batch, length, groups, heads, keys, width, gates = SIZES[name]

    def call(dtype: torch.dtype) -> None:
        kernels = load_kernels("linear_attention")
        q, k = (torch.ones(batch, length, groups, keys, dtype=dtype) for _ in range(2))
        v = torch.ones(batch, length, heads, width, dtype=dtype)
        decay = torch.zeros(batch, length, heads, gates)
        mask = torch.ones(batch, length, dtype=torch.bool)
        given = [x.requires_grad_() for x in (q, k, v, decay)]
        y, _ = kernels.linear_attention(q, k, v, decay, mask, mask)
        torch.autograd.grad(y, given, torch.ones_like(y))

    return call


def launches() -> dict[str, Callable[[torch.dtype], None]]:
    """Return calls by name."""
    return {name: both(name) for name in SIZES}


def work() -> dict[str, tuple[float, float]]:
    """Return operations and bytes of forward and backward together, of two bytes a number."""
    found = {}
    for name, (batch, length, groups, heads, keys, width, _) in SIZES.items():
        tokens = batch * length
        flops = 3 * 4 * heads * keys * width + 128 * (4 * groups * keys + 3 * heads * width)
        moved = 5 * (2 * groups * keys + 2 * heads * width)
        found[name] = (float(tokens * flops), float(tokens * moved))
    return found
