"""`in_steps`: two forms of one function, one for short calls and one for long ones."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch

from tests.fixtures.emitted import emitted

MODEL = """
use std.attention { mla, rope }

model m(vocab: int = 32, d: int = 16, absorbed: int = %d) {
  stage text(ids: tokens[vocab]) {
    embed(d)
    residual {
      mla(heads = 2, latent = 8, nope_dim = 4, rope_dim = 4, rotary = rope(), absorbed = absorbed)
    }
    unembed(vocab)
  }

  objective next_token(text, ids)
}
"""


def built(folder: Path, absorbed: int):  # type: ignore[no-untyped-def]
    return emitted(MODEL % absorbed, folder)


def test_all_lengths_of_calls_give_the_same(tmp_path: Path) -> None:
    ids = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(1))
    results = []
    for absorbed in (0, 1, 3, 1000):
        model = built(tmp_path, absorbed).model
        with torch.no_grad():
            whole = model(ids).text
            state = model.new_state(2)
            parts = [model.prefill(ids[:, :2], state)]
            parts += [model.step(ids[:, a:b], state) for a, b in ((2, 3), (3, 6), (6, 9))]
        results += [whole, torch.cat(parts, dim=1)]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-10, atol=1e-10)


def test_gradients_of_both_forms_are_equal(tmp_path: Path) -> None:
    ids = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(1))
    found = []
    for absorbed in (0, 1000):
        model = built(tmp_path, absorbed).model
        model.loss(ids).total.backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-9, atol=1e-12)


def test_each_form_computes_only_what_it_needs(tmp_path: Path) -> None:
    package = inspect.getmodule(type(built(tmp_path, 1).model))
    text = inspect.getsource(package.Mla.forward)  # type: ignore[union-attr]
    short, long = text.split("if x.shape[1] <= 1:")[1].split("else:")
    assert "self.value_up" in short and "attend(" in short and "q_latent = " in short
    assert "k_nope = " in long and "attend(" in long and "q_latent" not in long
    assert "k_nope" not in short and "append" not in short + long


def test_costs_are_those_of_the_form_that_runs(tmp_path: Path) -> None:
    numbers = [built(tmp_path, absorbed).facts.numbers for absorbed in (0, 1)]
    # a whole pass has more than one token: the same work, whatever steps do
    assert numbers[0]["flops"] == numbers[1]["flops"]
    assert numbers[0]["params"] == numbers[1]["params"]
    assert numbers[1]["decode_flops_per_token"] < numbers[0]["decode_flops_per_token"] / 3
