"""Attention to chosen blocks against forms that look at all pairs of tokens."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.decoding import error
from tokdsl.driver import build
from tokdsl.training.package import import_package

SPEC = """
use std.sparse {{ block_topk, nsa }}
use std.attention {{ gqa }}
model m() {{ stage out(x: [T, d: 16]) {{ {call} }} }}
"""


def layer(folder: Path, call: str) -> Any:
    """Return a float64 model of one layer with parameters large enough to matter."""
    folder.mkdir(exist_ok=True)
    path = folder / "spec.tok"
    path.write_text(SPEC.format(call=call), "utf-8")
    built = build(path, folder)
    assert built.directory is not None, [d.message() for d in built.report]
    made: ModuleType = import_package(built.directory)
    torch.manual_seed(0)
    model = made.Model().double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def heads(part: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (H, T, 4), keys and values once per query head."""
    q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(0, 1) for f in (part.q, part.k, part.v))
    count = len(q) // len(k)
    return q, k.repeat_interleave(count, 0), v.repeat_interleave(count, 0)


def mix(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attend where (H, T, S) says so; 0 where nothing is seen."""
    scores = (q @ k.transpose(1, 2) / 2).masked_fill(seen.logical_not(), -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


def means(x: Tensor, size: int) -> Tensor:
    """Return the means of blocks, (H, T, 4) -> (H, M, 4)."""
    return torch.stack([part.mean(1) for part in x.split(size, dim=1)], dim=1)


@pytest.mark.parametrize("length", [16, 27])
def test_block_topk_by_definition(tmp_path: Path, length: int) -> None:
    size, top = 4, 3
    model = layer(tmp_path, f"block_topk(heads = 4, kv_heads = 2, block = {size}, top = {top})")
    x = torch.randn(length, 16, dtype=torch.float64)
    part = model.out.block_topk
    q, k, v = heads(part, x)
    scores = q @ means(k, size).transpose(1, 2)
    seen = torch.zeros(4, length, length, dtype=torch.bool)
    for h in range(4):
        for t in range(length):
            own = t // size
            order = scores[h, t, :own].argsort(descending=True)[: top - 1].tolist()
            for block in [own, *order]:
                seen[h, t, block * size : min((block + 1) * size, t + 1)] = True
    wanted = part.o(mix(q, k, v, seen).transpose(0, 1).flatten(1))
    assert error(model(x[None]).out[0], wanted) < 1e-12


def test_all_blocks_are_plain_attention(tmp_path: Path) -> None:
    some = layer(tmp_path / "s", "block_topk(heads = 4, kv_heads = 2, block = 4, top = 50)")
    full = layer(tmp_path / "f", "gqa(heads = 4, kv_heads = 2)")
    full.load_state_dict(
        {n: some.state_dict()[n.replace("gqa", "block_topk")] for n in full.state_dict()}
    )
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    assert error(some(x).out, full(x).out) < 1e-12


def test_nsa_by_definition(tmp_path: Path) -> None:
    size, top, window, length = 4, 4, 5, 30
    call = f"nsa(heads = 4, kv_heads = 2, block = {size}, top = {top}, window = {window})"
    model = layer(tmp_path, call)
    x = torch.randn(length, 16, dtype=torch.float64)
    part = model.out.nsa
    q, k, v = heads(part, x)
    mean_k, mean_v = means(k, size), means(v, size)
    ends = (torch.arange(mean_k.shape[1]) + 1) * size - 1
    place = torch.arange(length)
    complete = (ends <= place[:, None]).expand(4, -1, -1)
    coarse = mix(q, mean_k, mean_v, complete)
    assert not coarse[:, :3].any()
    probs = (q @ mean_k.transpose(1, 2) / 2).masked_fill(complete.logical_not(), -torch.inf)
    share = probs.softmax(-1).nan_to_num(0.0).unflatten(0, (2, 2)).mean(1)
    seen = torch.zeros(4, length, length, dtype=torch.bool)
    for group in range(2):
        for t in range(length):
            own = t // size
            forced = sorted({0, max(own - 1, 0), own})
            others = [b for b in range(own) if b not in forced]
            others.sort(key=lambda b: -float(share[group, t, b].detach()))
            for block in [*forced, *others][:top]:
                at = slice(block * size, min((block + 1) * size, t + 1))
                seen[2 * group : 2 * group + 2, t, at] = True
    fine = mix(q, k, v, seen)
    gap = place[:, None] - place
    close = mix(q, k, v, ((gap >= 0) & (gap < window)).expand(4, -1, -1))
    gate = torch.sigmoid(part.gate(x)).unflatten(-1, (4, 3)).transpose(0, 1)
    mixed = gate[..., :1] * coarse + gate[..., 1:2] * fine + gate[..., 2:] * close
    wanted = part.o(mixed.transpose(0, 1).flatten(1))
    assert error(model(x[None]).out[0], wanted) < 1e-12
