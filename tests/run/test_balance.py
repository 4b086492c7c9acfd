"""Losses of routers, over micro-batches, sequences, processes and steps, by hand-worked numbers."""

from __future__ import annotations

import importlib
import sys
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tests.run.test_library import model

JUDGED = """
use std.losses { contrastive, decided_and_diverse, global_balance, relu_balance, sequence_balance }

model judged() {
  stage out(logits: [T, experts: 4], scores: [T, experts: 4]) {
    probs   = softmax(logits; over = experts)
    _, pick = topk(scores; top: 1, over = experts)
    tally   = buffer(experts: 4; init = zeros, saved = false, dtype = f32)
    aux micro = switch_balance(probs, pick)
    aux sequence = sequence_balance(probs, pick)
    aux whole = global_balance(probs, pick)
    aux step = global_balance(probs, pick, tally)
    aux diverse = decided_and_diverse(probs)
    logits
  }
  objective mean(aux.whole)
}
"""

UNITS = torch.eye(4)
#: half of the choices each to the first two experts, and what the router thinks of it
FIRST = torch.tensor([0.4, 0.4, 0.1, 0.1]).log().expand(1, 2, 4), UNITS[[0, 1]].unsqueeze(0)
#: its mirror image
SECOND = FIRST[0].flip(-1), FIRST[1].flip(-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged")


@pytest.fixture(scope="module")
def built(folder: Path) -> Any:
    return type(model(folder, JUDGED))


@pytest.fixture
def judged(built: Any) -> Any:
    return built().train()


def aux(made: Any, *inputs: Tensor) -> dict[str, float]:
    return {name: values[0].item() for name, values in made(*inputs).aux._asdict().items()}


def joined(*batches: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    logits, scores = zip(*batches, strict=True)
    return torch.cat(logits), torch.cat(scores)


def test_balance_within_micro_batches_and_over_all_of_them(judged: Any) -> None:
    found = [aux(judged, *batch)["micro"] for batch in (FIRST, SECOND)]
    assert found == pytest.approx([1.6, 1.6])
    assert aux(judged, *joined(FIRST, SECOND))["whole"] == pytest.approx(1.0)
    assert aux(judged, *joined(FIRST, SECOND))["sequence"] == pytest.approx(1.6)


def test_the_buffer_counts_all_passes_of_a_step(judged: Any) -> None:
    for _ in range(2):
        found = [aux(judged, *batch)["step"] for batch in (FIRST, SECOND)]
        # the second pass knows the choices of both
        assert found == pytest.approx([1.6, 1.0])
        assert sum(found) / 2 == pytest.approx(1.3)
        judged.end_step()
    assert aux(judged, *SECOND)["step"] == pytest.approx(1.6)


def test_one_pass_of_one_process_is_a_micro_batch(judged: Any) -> None:
    batch = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    found = aux(judged, *batch)
    assert found["whole"] == pytest.approx(found["micro"], rel=1e-5)
    assert found["step"] == pytest.approx(found["micro"], rel=1e-5)


def test_uniform_choices_and_probabilities_give_one_and_less_is_possible(judged: Any) -> None:
    uniform = torch.zeros(1, 4, 4), UNITS.unsqueeze(0)
    assert aux(judged, *uniform)["whole"] == pytest.approx(1.0)
    # all choices go where the probability is small
    against = (
        torch.tensor([0.1, 0.3, 0.3, 0.3]).log().expand(1, 3, 4),
        UNITS[[0, 0, 0]].unsqueeze(0),
    )
    assert aux(judged, *against)["whole"] == pytest.approx(0.4)


def test_layers_pooled_hide_what_each_layer_shows(tmp_path: Path) -> None:
    made = model(
        tmp_path,
        """
        model pooled() {
          stage out(a: [T, experts: 2], b: [T, experts: 2]) {
            _, first  = topk(a; top: 1, over = experts)
            _, second = topk(b; top: 1, over = experts)
            aux each = switch_balance(a, first)
            aux each = switch_balance(b, second)
            aux probs = a
            aux probs = b
            aux pick = first
            aux pick = second
            a + b
          }
          objective mean(aux.each) + 0.0 * switch_balance(aux.probs, aux.pick)
        }
        """,
    )
    a = torch.tensor([0.9, 0.1]).expand(1, 3, 2)
    terms = made.loss(a, a.flip(-1)).terms
    assert terms["each"].item() == pytest.approx(1.8)
    assert [v.item() for k, v in terms.items() if k != "each"] == pytest.approx([1.0])


def test_the_gradient_flows_through_probabilities_alone(judged: Any) -> None:
    logits, scores = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4)
    logits.requires_grad_()
    judged.double()
    (found,) = torch.autograd.grad(judged.loss(logits, scores.double()).total, logits)
    share = scores.argmax(-1).flatten().bincount(minlength=4) / 6
    wanted_of = 4 * (share * logits.softmax(-1).mean((0, 1))).sum()
    (wanted,) = torch.autograd.grad(wanted_of, logits)
    assert torch.allclose(found, wanted, atol=1e-7)


def test_padding_counts_neither_as_choice_nor_in_the_mean(judged: Any) -> None:
    logits, scores = torch.randn(1, 6, 4), torch.randn(1, 6, 4)
    valid = torch.tensor([[False, True, True, False, True, False]])
    padded = aux(judged, logits, scores, valid)
    judged.end_step()
    alone = aux(judged, logits[:, valid[0]], scores[:, valid[0]])
    for name in ("micro", "whole", "step", "diverse"):
        assert padded[name] == pytest.approx(alone[name], rel=1e-5), name


def test_decided_tokens_of_all_experts_have_the_least_entropy(judged: Any) -> None:
    decided = 1e3 * UNITS.unsqueeze(0), UNITS.unsqueeze(0)
    assert aux(judged, *decided)["diverse"] == pytest.approx(-log(4), abs=1e-5)
    same = 1e3 * UNITS[[0, 0]].unsqueeze(0), UNITS[[0, 0]].unsqueeze(0)
    assert aux(judged, *same)["diverse"] == pytest.approx(0.0, abs=1e-5)


def test_prototypes_are_drawn_to_the_tokens_that_chose_them(tmp_path: Path) -> None:
    made = model(
        tmp_path,
        """
        use std.losses { contrastive }
        model drawn() {
          stage out(x: [T, d: 2]) {
            prototypes = weight(experts: 3, d: 2)
            _, pick    = topk(dot(x, prototypes; over = d); top: 1, over = experts)
            aux contrast = contrastive(prototypes, x, pick; temperature = 0.5)
            x
          }
          objective mean(aux.contrast)
        }
        """,
    )
    prototypes = next(made.parameters())
    with torch.no_grad():
        prototypes.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    # means (1, 0) and (0, 2); the third expert has no tokens: cosines 1 and 0, over 0.5
    x = torch.tensor([[[0.5, 0.0], [1.5, 0.0], [0.0, 2.0]]])
    total = made.loss(x).total
    assert total.item() == pytest.approx(log(1 + torch.tensor(-2.0).exp().item()), abs=1e-5)
    total.backward()
    assert prototypes.grad is not None and prototypes.grad.isfinite().all()
    assert made.loss(x[:, :2]).total.item() == 0.0  # one expert alone has nothing to be told from


# --------------------------------------------------------------------------- several processes


def _process(rank: int, folder: str, name: str, port: int, batches: Any, results: Any) -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, folder)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(batches)
    )
    made = importlib.import_module(name).Model().train()
    logits, scores = batches[rank]
    logits = logits.clone().requires_grad_()
    out = made(logits, scores)
    loss = out.aux.whole[0]
    loss.backward()
    step = out.aux.step[0].item()
    results[rank] = (
        loss.item(),
        step,
        logits.grad.numpy(),
        made.eval().loss(logits, scores).total.item(),
    )
    dist.destroy_process_group()


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradient_of_one_batch(
    built: Any, folder: Path, judged: Any
) -> None:
    torch.manual_seed(0)
    # unequal numbers of tokens
    batches = [(torch.randn(2, n, 4), torch.randn(2, n, 4)) for n in (3, 7)]
    results = mp.Manager().dict()
    place = next(p for p in folder.iterdir() if p.is_dir())
    mp.spawn(_process, (str(folder), place.name, free_port(), batches, results), nprocs=2)
    logits = torch.cat([b[0].reshape(1, -1, 4) for b in batches], dim=1).requires_grad_()
    scores = torch.cat([b[1].reshape(1, -1, 4) for b in batches], dim=1)
    whole = judged.loss(logits, scores).total
    whole.backward()
    assert sum(results[r][0] for r in range(2)) / 2 == pytest.approx(whole.item(), rel=1e-5)
    assert sum(results[r][1] for r in range(2)) / 2 == pytest.approx(whole.item(), rel=1e-5)
    found = torch.cat([torch.from_numpy(results[r][2]).reshape(1, -1, 4) for r in range(2)], dim=1)
    assert torch.allclose(found / 2, logits.grad, atol=1e-6)
    # outside of training every process is on its own
    assert results[0][3] == pytest.approx(judged.loss(*batches[0]).total.item(), rel=1e-5)
