"""Choices among tokens at the sizes of real models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tests.fixtures.kernels import load_kernels
from tests.kernels.selections import BODIES, OVER_KEYS, pieces, pieces_of

QUERIES, KEYS, HEADS, DIM, TOP, SIZE, NEAR = 256, 65536, 64, 128, 2048, 128, 64
SIZES = {"heads": HEADS, "dim": DIM, "top": TOP, "size": SIZE, "near": NEAR}
#: choices by weights among all keys: layers of a spec, their groups of heads and heads of a group
LAYERS = {
    "votes": (f"token_select(heads = 28, kv_heads = 4, head_dim = {DIM}, top = {TOP})", 4, 7),
    "shares": (f"nsa(heads = 64, kv_heads = 4, head_dim = {DIM}, block = 64, top = 16)", 4, 16),
}


def places(count: int) -> Tensor:
    """Return positions up to the last."""
    return torch.arange(KEYS - count, KEYS).unsqueeze(0)


def tokens(dtype: torch.dtype) -> None:
    """The best 2048 of all tokens, by 64 heads of 128."""
    made = pieces(BODIES["flat"], **SIZES)
    q, w = (
        torch.randn(1, QUERIES, HEADS, DIM, dtype=dtype),
        torch.rand(1, QUERIES, HEADS, dtype=dtype),
    )
    k = torch.randn(1, KEYS, DIM, dtype=dtype)
    kernels = load_kernels("choice", "index", **made)
    getattr(kernels, made["name"])(q, k, w, places(KEYS), places(QUERIES), None, None)


def blocks(dtype: torch.dtype) -> None:
    """The best 64 of 512 blocks."""
    made = pieces(BODIES["blocks"], 0, **SIZES)
    q, w = (
        torch.randn(1, QUERIES, HEADS, DIM, dtype=dtype),
        torch.rand(1, QUERIES, HEADS, dtype=dtype),
    )
    means = torch.randn(1, KEYS // SIZE, DIM, dtype=dtype)
    ends = torch.arange(SIZE - 1, KEYS, SIZE).unsqueeze(0)
    kernels = load_kernels("choice", "index", **made)
    getattr(kernels, made["name"])(q, means, w, places(QUERIES), ends, None, None)


def among(dtype: torch.dtype, body: str = BODIES["blocks"]) -> None:
    """The best 2048 tokens of 64 blocks of 128."""
    made = pieces(body, 1, **SIZES)
    q, w = (
        torch.randn(1, QUERIES, HEADS, DIM, dtype=dtype),
        torch.rand(1, QUERIES, HEADS, dtype=dtype),
    )
    k = torch.randn(1, KEYS, DIM, dtype=dtype)
    parts = torch.randint(KEYS // SIZE, (1, QUERIES, NEAR))
    ones = partial(torch.ones, dtype=torch.int64)
    queries = torch.stack((places(QUERIES), ones(1, QUERIES), 0 * places(QUERIES)), dim=-1)
    keys = torch.stack((places(KEYS), ones(1, KEYS)), dim=-1)
    starts = torch.arange(0, KEYS, SIZE).unsqueeze(0)
    kernels = load_kernels("choice", "index", **made)
    getattr(kernels, made["name"])(
        q, k, w, parts, places(KEYS), places(QUERIES), queries, keys, None, starts
    )


def weights(dtype: torch.dtype, name: str, keys: int) -> None:
    """The best of all keys by the sums of softmax weights over heads."""
    call, groups, heads = LAYERS[name]
    use = f"use std.sparse {{ {call.split('(')[0]} }}"
    made = pieces_of(f"{use}\nmodel m() {{ stage out(x: [T, d: 3584]) {{ {call} }} }}")
    q = torch.randn(1, QUERIES, groups, heads, DIM, dtype=dtype)
    k = torch.randn(1, keys, groups, DIM, dtype=dtype)
    ends = torch.arange(KEYS // keys - 1, KEYS, KEYS // keys).unsqueeze(0)
    documents = torch.ones(1, QUERIES, dtype=torch.int64), torch.ones(1, keys, dtype=torch.int64)
    kernels = load_kernels("choice", "index", **made)
    getattr(kernels, made["name"])(q, k, places(QUERIES), ends, *documents)


def launches() -> dict[str, Callable[[torch.dtype], None]]:
    """Return what is launched, by name."""
    return {
        "tokens": tokens,
        "blocks": blocks,
        "among": among,
        "weighed": partial(among, body=OVER_KEYS["shares in blocks"]),
        "votes": partial(weights, name="votes", keys=KEYS),
        "shares": partial(weights, name="shares", keys=KEYS // 64),
    }


def work() -> dict[str, tuple[float, float]]:
    """Return operations, and bytes that are read once."""
    each = 2.0 * QUERIES * HEADS * DIM
    read = {"tokens": KEYS, "blocks": KEYS // SIZE, "among": QUERIES * NEAR * SIZE}
    pairs = {"tokens": KEYS, "blocks": KEYS // SIZE, "among": NEAR * SIZE}
    own = 2.0 * QUERIES * HEADS * (DIM + 1)
    found = {name: (each * pairs[name], 2.0 * read[name] * DIM + own) for name in read}
    # every score twice where there is a sum over all keys: for that, and for the choice
    found["weighed"] = found["tokens"][0] + found["among"][0], found["tokens"][1]
    for name, keys in (("votes", KEYS), ("shares", KEYS // 64)):
        _, groups, heads = LAYERS[name]
        products = 2.0 * QUERIES * groups * heads * DIM * keys
        found[name] = 2 * products, 2.0 * DIM * groups * (keys + QUERIES * heads)
    return found
