"""Chunks of a byte stream, as hierarchical models have them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.fixtures.kernels import load_kernels

BATCH, LENGTH, CHUNKS, WIDTH = 8, 8192, 1536, 1024


def index() -> Tensor:
    """Return six tokens per chunk."""
    return (torch.arange(LENGTH) // 6).expand(BATCH, -1).contiguous()


def cut(dtype: torch.dtype) -> None:
    """Cut rows of one and of several documents."""
    kernels = load_kernels("segment")
    flags = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    kernels.cut_segments(flags, None, None, False, 0)
    kernels.cut_segments(flags, flags, flags, True, 16)


def pool(how: str) -> Callable[[torch.dtype], None]:
    """Return a reduction and its gradient."""

    def call(dtype: torch.dtype) -> None:
        kernels = load_kernels("segment")
        x = torch.zeros(BATCH, LENGTH, WIDTH, dtype=dtype).requires_grad_()
        found = kernels.pool_segments(x, index(), CHUNKS, how)
        torch.autograd.grad(found, x, torch.ones_like(found))

    return call


def upsample(dtype: torch.dtype) -> None:
    """Go back to tokens, with and without something where there is no chunk."""
    kernels = load_kernels("segment")
    y = torch.zeros(BATCH, CHUNKS, WIDTH, dtype=dtype).requires_grad_()
    start = torch.zeros(WIDTH, dtype=dtype).requires_grad_()
    for given in ((y,), (y, start)):
        fine = kernels.upsample_segments(y, index(), *given[1:])
        torch.autograd.grad(fine, given, torch.ones_like(fine))


def members(dtype: torch.dtype) -> None:
    """Put the tokens of each chunk side by side."""
    kernels = load_kernels("segment")
    x = torch.zeros(BATCH, LENGTH, WIDTH, dtype=dtype).requires_grad_()
    found = kernels.place_segments(x, torch.arange(LENGTH).expand(BATCH, -1), CHUNKS * 8)
    torch.autograd.grad(found, x, torch.ones_like(found))


def launches() -> dict[str, Callable[[torch.dtype], None]]:
    """Return calls by name."""
    found = {how: pool(how) for how in ("sum", "mean", "max", "first")}
    return {"cut": cut, **found, "upsample": upsample, "members": members}


def work() -> dict[str, tuple[float, float]]:
    """Return operations and bytes of forward and backward together, of two bytes a number."""
    fine, coarse = BATCH * LENGTH * WIDTH, BATCH * CHUNKS * WIDTH
    once = 4.0 * (fine + coarse)
    return {
        "cut": (0.0, BATCH * LENGTH * 54.0),
        "sum": (2.0 * fine, once),
        "mean": (2.0 * fine, once),
        "max": (3.0 * fine, once + 4.0 * (fine + coarse)),
        "first": (0.0, 4.0 * coarse + 2.0 * (coarse + fine)),
        "upsample": (2.0 * fine, 2 * once),
        "members": (0.0, 2.0 * (fine + 8 * coarse + 2 * fine)),
    }
