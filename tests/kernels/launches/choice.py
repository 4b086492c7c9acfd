"""The largest of many numbers at the sizes of real models."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.fixtures.kernels import load_kernels


def tokens(dtype: torch.dtype) -> None:
    """2048 of 65536 tokens."""
    numbers = torch.randint(-(2**31), 2**31 - 1, (512, 65536), dtype=torch.int32)
    load_kernels("choice").largest(numbers, 2048)


def blocks(dtype: torch.dtype) -> None:
    """64 of 512 blocks."""
    numbers = torch.randint(-(2**31), 2**31 - 1, (4096, 512), dtype=torch.int32)
    load_kernels("choice").largest(numbers, 64)


def launches() -> dict[str, Callable[[torch.dtype], None]]:
    """Return what is launched, by name."""
    return {"tokens": tokens, "blocks": blocks}
