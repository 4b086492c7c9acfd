"""Launches of what attention kernels share with sizes as models have them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.fixtures.kernels import load_kernels


def launches() -> dict[str, Callable[[torch.dtype], None]]:
    """Return calls by name."""
    kernels = load_kernels("attend_parts")

    def merge(dtype: torch.dtype) -> None:
        parts, lse = torch.zeros(2, 1, 2048, 8, 128, dtype=dtype), torch.zeros(2, 1, 8, 2048)
        kernels.merge_attention(parts, lse, None)
        kernels.merge_attention(parts, lse, torch.zeros(8, dtype=dtype))

    def shares(dtype: torch.dtype) -> None:
        parts, lse = torch.zeros(16, 8, 1, 16, 512), torch.zeros(16, 8, 16, 1)
        kernels.merged_attention(parts, lse, None, dtype)

    def delta(dtype: torch.dtype) -> None:
        out, lse = torch.zeros(1, 2048, 8, 128, dtype=dtype), torch.zeros(1, 8, 2048)
        kernels.attention_delta(out, out, lse, lse, None)
        kernels.attention_delta(out, out, lse, lse, torch.zeros(8, dtype=dtype))

    def extents(dtype: torch.dtype) -> None:
        position, like = torch.zeros(8, 2048, dtype=torch.int64), torch.zeros(8, 2048, 8, 128)
        kernels.attention_extents(position, position > 0, position, like, 0, 4, 128)

    return {"merge": merge, "shares": shares, "delta": delta, "extents": extents}
