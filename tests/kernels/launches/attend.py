"""Launches of attention with sizes as models have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.fixtures.kernels import load_kernels

#: a score that forgets by learned sums, and falls with the distance at a learned rate
SCORED = {
    "name": "attend_scored",
    "given": [
        {"name": n, "dims": dims, "dtype": "float", "table": False, "gradient": True}
        for n, dims in {
            "decay": ["head"],
            "past": ["batch", "head", "query"],
            "at": ["batch", "head", "key"],
        }.items()
    ],
    "score": {
        "forward": [
            "far = tl.abs(i - j).to(tl.float32)",
            "r = s - decay * far + past - at",
        ],
        "result": "r",
        "backward": [],
        "upstream": "d_r",
        "d_s": "d_r",
        "gradients": {"decay": "-d_r * far", "past": "d_r", "at": "-d_r"},
    },
    "mask": {
        "forward": ["m = (j <= i) | (j < 16)"],
        "result": "m",
        "reach": {
            "forward": [],
            "every": "(j_most <= i_least) | (j_most < 16)",
            "some": "(j_least <= i_most) | (j_least < 16)",
        },
    },
}
#: the first tokens and a window
MASKED = {
    "name": "attend_masked",
    "mask": {
        "forward": ["m = (j <= i) & ((j < 4) | (i - j < 512))"],
        "result": "m",
        "reach": {
            "forward": [],
            "every": "(j_most <= i_least) & ((j_most < 4) | (i_most - j_least < 512))",
            "some": "(j_least <= i_most) & ((j_least < 4) | (i_least - j_most < 512))",
        },
    },
}


def launches() -> dict[str, Callable[[torch.dtype], None]]:
    """Return calls by name."""
    plain = load_kernels("attend_parts", "attend")
    scored = load_kernels("attend_parts", "attend", **SCORED)
    own_mask = load_kernels("attend_parts", "attend", **MASKED)

    def operands(
        dtype: torch.dtype, queries: int, keys: int, heads: int, groups: int, width: int
    ) -> list[torch.Tensor]:
        shapes = [(1, queries, heads, width), *[(1, keys, groups, width)] * 2]
        return [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]

    def training(width: int, **options: Any) -> Callable[[torch.dtype], None]:
        def call(dtype: torch.dtype) -> None:
            out, _ = plain.attend(
                *operands(dtype, 2048, 2048, 8, 2, width), scale=0.1, hi=0, **options
            )
            out.sum().backward()

        return call

    def packed(dtype: torch.dtype) -> None:
        token = torch.arange(2048)[None]
        facts = {"positions": token, "key_positions": token, "documents": token // 512}
        facts |= {"key_documents": token // 512, "sinks": torch.zeros(8, requires_grad=True)}
        training(64, lo=-127, **facts)(dtype)

    def own_score(dtype: torch.dtype) -> None:
        given = [torch.zeros(s) for s in ((1, 8, 1, 1), (1, 8, 2048, 1), (1, 8, 1, 2048))]
        given = [x.requires_grad_() for x in given]
        out, _ = scored.attend_scored(*operands(dtype, 2048, 2048, 8, 8, 64), *given, scale=0.1)
        out.sum().backward()

    def masked(dtype: torch.dtype) -> None:
        token = torch.arange(2048)[None]
        out, _ = own_mask.attend_masked(
            *operands(dtype, 2048, 2048, 8, 2, 128),
            scale=0.1,
            hi=0,
            positions=token,
            key_positions=token,
        )
        out.sum().backward()

    def decoding(dtype: torch.dtype) -> None:
        q, k, v = (x.detach() for x in operands(dtype, 1, 4096, 32, 8, 128))
        plain.attend(q, k, v, scale=0.1, hi=0)

    def latent(dtype: torch.dtype) -> None:
        q, k, _ = (x.detach() for x in operands(dtype, 1, 4096, 16, 1, 576))
        plain.attend(q, k, k[..., :512], scale=0.1, hi=0, shared_values=True)

    return {
        "training": training(128),
        "packed": packed,
        "own score": own_score,
        "masked": masked,
        "decoding": decoding,
        "latent": latent,
    }
