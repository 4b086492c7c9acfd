"""Linear attention at the sizes of real models."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.fixtures.kernels import load_kernels

#: texts, tokens, heads of keys, heads of values, channels of keys and of values, of decays
SIZES = {
    "one key": (2, 2048, 1, 32, 128, 64, 1),
    "heads": (1, 4096, 16, 16, 128, 128, 1),
    "no decay": (1, 4096, 16, 16, 64, 64, 0),
    "gated": (1, 2048, 4, 4, 128, 256, 128),
}


def both(name: str) -> Callable[[torch.dtype], None]:
    """Return linear attention and its gradient."""
    batch, length, groups, heads, keys, width, gates = SIZES[name]

    def call(dtype: torch.dtype) -> None:
        kernels = load_kernels("linear_attention")
        q, k = (torch.ones(batch, length, groups, keys, dtype=dtype) for _ in range(2))
        v = torch.ones(batch, length, heads, width, dtype=dtype)
        decay = torch.zeros(batch, length, heads, gates) if gates else None
        mask = torch.ones(batch, length, dtype=torch.bool) if name != "no decay" else None
        given = [x.requires_grad_() for x in (q, k, v, decay) if x is not None]
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
        states, pairs = 4 * heads * keys * width, 128 * (groups * keys + heads * width)
        flops = tokens * (states + pairs + 2 * states + 128 * (3 * groups * keys + 2 * heads * width))
        found[name] = (float(flops), 2.0 * tokens * 5 * (2 * groups * keys + 2 * heads * width) / 2)
    return found
