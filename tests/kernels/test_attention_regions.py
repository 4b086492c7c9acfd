"""Attention with the equations of a program: its kernel against its torch form."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.fixtures.kernels import DEVICE
from tests.run.test_attention_memory import (
    batches,
    functional,
    model_of,
    package,
    with_gradients,
)

#: between them all kinds of what is given: per head, per token, of queries, of keys, a table
NAMES = {
    "slopes": "attend_own_score",
    "buckets": "attend_own_score",
    "every third token": "attend_own_score_own_visible",
    "a reach per head": "attend_own_score_own_visible",
    "gates with sinks": "attend_own_score",
    "tokens of a kind": "attend_own_score_own_visible",
    "words": "attend",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_gives_what_the_torch_form_gives(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tokens, model, made = batches()["both"], model_of(name, torch.float32), package(name)
    tokens.x = tokens.x.float().requires_grad_()
    wanted = with_gradients(model, tokens, model(tokens.x, **tokens.given()).out)

    called: list[str] = []
    module: Any = functional(made)
    original = module._on_kernel

    def noted(kernel: Any, *more: Any) -> Any:
        called.append(kernel.__name__)
        return original(kernel, *more)

    monkeypatch.setattr(module, "_on_kernel", noted)
    if DEVICE == "cpu":
        monkeypatch.setattr(sys.modules[f"{made.__name__}.kernels"], "FORCED", True)
    model.to(DEVICE)
    tokens.x = tokens.x.detach().to(DEVICE).requires_grad_()
    tokens.valid = None if tokens.valid is None else tokens.valid.to(DEVICE)
    tokens.documents = None if tokens.documents is None else tokens.documents.to(DEVICE)
    found = with_gradients(model, tokens, model(tokens.x, **tokens.given()).out)
    assert called == [NAMES[name]]
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.cpu() - theirs).abs().max() <= 2e-5 * theirs.abs().max().clamp_min(1e-3)
