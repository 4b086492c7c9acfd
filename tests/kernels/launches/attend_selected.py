"""Attention to chosen keys at the sizes of real models."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.fixtures.kernels import load_kernels

QUERIES, KEYS = 512, 8192


def tables(blocks: int = 0) -> tuple[Tensor, Tensor, None, Tensor | None]:
    """Return what is known of the last tokens of one text."""
    place = torch.arange(KEYS)
    own = place[-QUERIES:]
    queries = torch.stack((own, torch.ones_like(own), torch.zeros_like(own)), dim=-1)
    keys = torch.stack((place, torch.ones_like(place)), dim=-1)
    starts = torch.arange(0, KEYS, KEYS // blocks).unsqueeze(0) if blocks else None
    return queries.unsqueeze(0), keys.unsqueeze(0), None, starts


def latent(dtype: torch.dtype) -> None:
    """128 heads, one list of 2048 tokens; values are the first 512 of 576 numbers of a key."""
    q, k = torch.randn(1, QUERIES, 128, 576, dtype=dtype), torch.randn(1, KEYS, 1, 576, dtype=dtype)
    select = torch.randint(KEYS, (1, QUERIES, 1, 2048))
    both(q.requires_grad_(), k, k[..., :512], select, 0)


def grouped(dtype: torch.dtype) -> None:
    """64 heads in 4 groups that choose 16 blocks of 64 tokens each."""
    q = torch.randn(1, QUERIES, 64, 128, dtype=dtype)
    k, v = (torch.randn(1, KEYS, 4, 128, dtype=dtype) for _ in range(2))
    select = torch.randint(KEYS // 64, (1, QUERIES, 4, 16))
    both(q.requires_grad_(), k, v, select, 64)


def few(dtype: torch.dtype) -> None:
    """28 heads in 4 groups, one list of 2048 tokens besides the first 128 and the last 512."""
    q = torch.randn(1, QUERIES, 28, 128, dtype=dtype)
    k, v = (torch.randn(1, KEYS, 4, 128, dtype=dtype) for _ in range(2))
    select = torch.randint(KEYS, (1, QUERIES, 1, 2048))
    both(q.requires_grad_(), k, v, select, 0, 128, 512)


def both(
    q: Tensor, k: Tensor, v: Tensor, select: Tensor, block: int, first: int = 0, last: int = 0
) -> None:
    """Attend, and go back."""
    kernels = load_kernels("choice", "attend_selected")
    known = tables(KEYS // block if block else 0)
    statics = max(block, 1), first, last, True, q.shape[-1] ** -0.5
    with torch.no_grad():
        out, lse = kernels.attend_selected(q, k, v, select, *known, None, *statics)
        kernels.attend_selected_backward(
            q, k, v, select, *known, out, lse, torch.ones_like(out), torch.zeros_like(lse), *statics
        )


def launches() -> dict[str, Callable[[torch.dtype], None]]:
    """Return what is launched, by name."""
    return {"latent": latent, "grouped": grouped, "few": few}


def work() -> dict[str, tuple[float, float]]:
    """Return operations and bytes of forward and backward together."""
    found = {}
    shapes = {
        "latent": (128, 1, 1, 576, 512, 2048),
        "grouped": (64, 4, 4, 128, 128, 1024),
        "few": (28, 4, 1, 128, 128, 2688),
    }
    for name, (heads, groups, _, width, values, chosen) in shapes.items():
        pairs = QUERIES * heads * chosen
        forward = 2 * pairs * (width + values)
        backward = 2 * pairs * (3 * width + 2 * values)
        rows = QUERIES * chosen * groups * (width if name == "latent" else width + values) * 2
        found[name] = (float(forward + backward), float(3 * rows))
    return found
