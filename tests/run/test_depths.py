"""Mixture of depths: some tokens go through a layer, in training the best, otherwise predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.fixtures.decoding import worst_padding, worst_split, worst_verb
from tests.run.test_library import model

TEXT = """
use std.depths { mixture_of_depths }

model deep() {
  stage text(ids: tokens[40]) {
    embed(16)
    transformer(heads = 2)
    mixture_of_depths(body = transformer(heads = 2), share = 0.25)  # allow reads-ahead-in-training
    unembed(40)
  }
  objective next_token(text, ids) + 0.01 * mean(aux.predictor)
  require causal, streaming
}
"""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    made = model(tmp_path_factory.mktemp("deep"), TEXT).double()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4)
    return made


def watched(deep: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what goes into the block, what comes out, and what its layer is given."""
    block = deep.text.mixture_of_depths
    seen: dict[str, torch.Tensor] = {}

    def of_block(_: Any, given: Any, out: torch.Tensor) -> None:
        seen["x"], seen["y"] = given[0], out

    def of_layer(_: Any, given: Any) -> None:
        seen["chosen"] = given[0]

    hooks = [block.register_forward_hook(of_block), block.body.register_forward_pre_hook(of_layer)]
    deep(ids)
    for hook in hooks:
        hook.remove()
    return seen["x"], seen["y"], seen["chosen"]


def test_a_share_of_the_tokens_goes_through_the_layer(deep: Any) -> None:
    x, y, _ = watched(deep.train(), torch.randint(40, (3, 20)))
    changed = (y - x).abs().amax(-1) > 1e-12
    score = deep.text.mixture_of_depths.score(x).squeeze(-1)
    best = torch.zeros_like(changed).scatter_(1, score.topk(5).indices, True)
    assert torch.equal(changed, best)


def test_the_layer_sees_the_chosen_tokens_and_the_first(deep: Any) -> None:
    x, _, chosen = watched(deep.train(), torch.randint(40, (1, 12)))
    best = deep.text.mixture_of_depths.score(x).squeeze(-1)[0].topk(3).indices.tolist()
    assert torch.equal(chosen[0], x[0, sorted({0, *best})])


def test_the_predictor_learns_what_the_choice_is_and_nothing_else(deep: Any) -> None:
    deep.train()
    deep.zero_grad()
    out = deep(torch.randint(40, (2, 12)))
    out.aux.predictor[0].backward()
    named = deep.named_parameters()
    touched = {n for n, p in named if p.grad is not None and p.grad.abs().max() > 0}
    assert touched == {f"text.mixture_of_depths.guess.{n}" for n in ("weight", "bias")}
    deep.loss(torch.randint(40, (2, 12))).total.backward()
    assert all(p.grad is not None for p in deep.parameters())


def test_the_decoder_gives_the_whole_pass(deep: Any) -> None:
    deep.eval()
    ids = torch.randint(40, (4, 24))
    with torch.no_grad():
        assert worst_split(deep, ids, deep(ids).text) < 1e-9
        assert worst_padding(deep, ids, "text") < 1e-9
        assert worst_verb(deep, ids) < 1e-9
