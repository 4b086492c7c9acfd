"""Routers that sample, balance or limit: numbers worked by hand, and the published code's."""

from __future__ import annotations

from math import erf, exp, log, log1p, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.run.test_library import model
from tests.run.test_routers import picks_and_weights
from tests.run.test_routers import routed as trained


def routed(folder: Path, router: str, experts: int, objective: str = "mean(out)") -> Any:
    """Return a router that is not in training; its scores are its input."""
    return trained(folder, router, experts, objective).eval()


def softmax(*scores: float) -> list[float]:
    """Return the probabilities of some scores."""
    total = sum(exp(s) for s in scores)
    return [exp(s) / total for s in scores]


def buffers(made: Any) -> dict[str, Tensor]:
    """Return the buffers of a router by their own names."""
    return {name.rpartition(".")[2]: buffer for name, buffer in made.named_buffers()}


# --------------------------------------------------------------------------- scores


def test_roots_of_softplus_with_a_bias_in_the_choice_alone(tmp_path: Path) -> None:
    made = routed(tmp_path, "softplus_biased(top = 2, scaling = 3.0)", 4)
    buffers(made)["choice_bias"][3] = 5.0
    picks, weights = picks_and_weights(made, [[1.0, 2.0, 3.0, 0.0]])
    a, b = sqrt(log1p(exp(0.0))), sqrt(log1p(exp(3.0)))
    assert picks == [[3, 2]]
    assert weights[0] == pytest.approx([3 * a / (a + b), 3 * b / (a + b)], abs=1e-5)


def test_a_table_chooses_and_scores_weigh(tmp_path: Path) -> None:
    made = model(
        tmp_path,
        """
        use std.routers { listed }
        model tabled() {
          stage out(x: [T, d: 3], ids: tokens[5]) {
            r = listed(it, ids; experts = 3, top = 2, vocab = 5, scaling = 1.0)
            stack(r.weight, f32(r.pick); both: 2)
          }
          objective mean(out)
        }
        """,
    )
    with torch.no_grad():
        next(made.parameters()).copy_(torch.eye(3))
    table = torch.tensor([[0.0, 1], [1, 2], [2, 0], [2, 1], [0, 2]])
    buffers(made)["table"].copy_(table)
    ids = torch.tensor([[4, 0, 2]])
    both = made(torch.tensor([[[0.0, 1.0, 2.0]] * 3]), ids).out[0]
    assert torch.equal(both[..., 1], table[ids[0]])
    score = [sqrt(log1p(exp(s))) for s in (0.0, 1.0, 2.0)]
    wanted = [score[0] / (score[0] + score[2]), score[2] / (score[0] + score[2])]
    assert both[0, :, 0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_a_cosine_does_not_see_lengths(tmp_path: Path) -> None:
    made = model(
        tmp_path,
        """
        use std.routers { cosine_topk }
        model near() {
          stage out(x: [T, d: 2]) {
            r = cosine_topk(it; experts = 2, top = 1, rank = 2, temperature = 0.5)
            stack(r.weight, f32(r.pick); both: 2)
          }
          objective mean(out)
        }
        """,
    )
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.eye(2))
    picks, weights = picks_and_weights(made, [[3.0, 4.0], [30.0, 40.0], [1.0, 0.0]])
    assert picks == [[1], [1], [0]]
    p = softmax(0.6 / 0.5, 0.8 / 0.5)[1]
    assert [w[0] for w in weights] == pytest.approx([p, p, softmax(2.0, 0.0)[0]], abs=1e-6)


def test_noise_is_for_training_and_the_load_is_that_of_the_normal_distribution(
    tmp_path: Path,
) -> None:
    text = "mean(out) + 0.0 * mean(aux.importance) + 0.0 * mean(aux.load)"
    made = routed(tmp_path, "noisy_topk(top = 1, noise = 2.0)", 2, text)
    picks, weights = picks_and_weights(made, [[1.0, 0.0]])
    assert picks == [[0]] and weights[0] == pytest.approx([softmax(1.0, 0.0)[0]])
    # without noise expert 0 wins with 1/2 (its own score is the least), expert 1 with this
    other = 0.5 * (1 + erf(-1.0 / sqrt(2)))
    mean = (0.5 + other) / 2
    load = ((0.5 - mean) ** 2 + (other - mean) ** 2) / 2 / mean**2
    assert made(torch.tensor([[[1.0, 0.0]]])).aux.load[0].item() == pytest.approx(load, abs=1e-6)
    torch.manual_seed(0)
    drawn = made.train()(torch.tensor([[[1.0, 0.0]] * 2000])).out[0, :, 0, 1]
    # the difference of two noises of 2.0 / 2 is above 1
    assert drawn.mean().item() == pytest.approx(0.5 * (1 - erf(0.5)), abs=0.04)


# --------------------------------------------------------------------------- top two, capacity


SKEWED = [[2.0, 1.0, 0.0], [3.0, 0.5, 0.0], [1.0, 0.0, 0.5], [0.0, 1.2, 0.5]]


def two(scores: list[float], a: int, b: int) -> list[float]:
    p = softmax(*scores)
    return [p[a] / (p[a] + p[b]), p[b] / (p[a] + p[b])]


def test_second_choices_wait_for_all_first_ones(tmp_path: Path) -> None:
    made = routed(tmp_path, 'top2_capacity(capacity = 2, second = "all")', 3)
    picks, weights = picks_and_weights(made, SKEWED)
    # expert 0 is the first choice of three tokens; expert 1 of the last one, which takes one of its
    # two seats before the second choice of the first token does; token 1 comes too late there
    assert picks == [[0, 1], [0, -1], [-1, 2], [1, 2]]
    for row, (a, b) in zip(range(4), [(0, 1), (0, 1), (0, 2), (1, 2)], strict=True):
        assert weights[row] == pytest.approx(two(SKEWED[row], a, b), abs=1e-6)


def test_seats_can_go_to_the_surest_and_weights_to_what_is_left(tmp_path: Path) -> None:
    made = routed(
        tmp_path, 'top2_capacity(capacity = 1, second = "all", after = true, prioritised = true)', 3
    )
    picks, weights = picks_and_weights(made, SKEWED)
    # token 1 is surest of expert 0; expert 1 is full with the last token; expert 2 goes to the
    # second choice of the last token, which is surer of its first than the token before
    assert picks == [[-1, -1], [0, -1], [-1, -1], [1, 2]]
    assert weights[1][0] == pytest.approx(1.0)


def test_the_default_capacity_is_twice_the_mean_rounded_up(tmp_path: Path) -> None:
    made = routed(tmp_path, 'top2_capacity(second = "all")', 4)
    picks, _ = picks_and_weights(made, [[2.0, 1.0, 0.0, 0.0]] * 6)
    assert [p[0] for p in picks] == [0] * 4 + [-1] * 2  # 2 * ceil(6 / 4)
    assert [p[1] for p in picks] == [1] * 4 + [-1] * 2


def test_a_second_choice_is_made_with_twice_its_probability(tmp_path: Path) -> None:
    made = routed(tmp_path, "top2_capacity(capacity = 9000)", 3)
    scores = [log(0.6), log(0.3), log(0.1)]
    picks, _ = picks_and_weights(made, [scores, [log(0.6), log(0.2), log(0.2)]])
    assert picks == [[0, 1], [0, -1]]  # above a quarter, and not
    torch.manual_seed(0)
    drawn = made.train()(torch.tensor([[scores] * 4000])).out[0, :, 1, 1]
    assert (drawn == 1).float().mean().item() == pytest.approx(0.6, abs=0.03)


def test_a_second_choice_can_be_sampled(tmp_path: Path) -> None:
    made = routed(tmp_path, 'top2_capacity(capacity = 9000, second = "sampled")', 3)
    torch.manual_seed(0)
    scores = [log(0.6), log(0.3), log(0.1)]
    both = made.train()(torch.tensor([[scores] * 4000])).out[0]
    assert (both[:, 0, 1] == 0).all()
    assert (both[:, 1, 1] == 1).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_the_balance_counts_first_choices_of_each_sequence(tmp_path: Path) -> None:
    made = routed(tmp_path, "top2_capacity()", 2, "mean(out) + mean(aux.balance)")
    x = torch.tensor([[[9.0, -9.0], [9.0, -9.0]], [[9.0, -9.0], [-9.0, 9.0]]])
    # all on one expert: 2 * (1 * 1); half on each: 2 * (1/2 * 1/2 + 1/2 * 1/2)
    assert made(x).aux.balance[0].item() == pytest.approx((2.0 + 1.0) / 2, abs=1e-5)


def test_padding_takes_no_seat(tmp_path: Path) -> None:
    made = routed(tmp_path, 'top2_capacity(capacity = 1, second = "all")', 3)
    x = torch.tensor([[[5.0, 1.0, 0.0]] * 2 + SKEWED])
    valid = torch.tensor([[False] * 2 + [True] * 4])
    alone = made(torch.tensor([SKEWED])).out
    assert torch.equal(made(x, valid).out[:, 2:], alone)


# --------------------------------------------------------------------------- sampling


def test_the_sparse_mixer_without_training_takes_the_best_among_close_ones(tmp_path: Path) -> None:
    made = routed(tmp_path, "sparse_mixer(jitter = 0.1)", 4)
    picks, weights = picks_and_weights(made, [[2.0, 1.8, 1.0, -3.0]])
    # (2 - 1.8) / 2 = 0.1 is within 0.2, (2 - 1) / 2 is not; of the rest 1.8 is alone
    assert picks == [[0, 1]]
    assert weights[0] == pytest.approx([softmax(2.0, 1.8)[0], 1.0], abs=1e-6)


def test_the_sparse_mixer_samples_and_its_gradient_is_that_of_the_probability(
    tmp_path: Path,
) -> None:
    made = routed(tmp_path, "sparse_mixer(jitter = 0.3)", 3).train()
    torch.manual_seed(0)
    x = torch.tensor([[[2.0, 1.5, -5.0]] * 4000], requires_grad=True)
    both = made(x).out[0]
    p = softmax(2.0, 1.5)
    best = both[:, 0, 1] == 0
    assert best.float().mean().item() == pytest.approx(p[0], abs=0.03)
    assert torch.allclose(both[best, 0, 0], torch.tensor(p[0]))
    full = both[~best, 0, 0]
    assert (full - p[1]).abs().lt(1e-6).float().mean().item() == pytest.approx(0.25, abs=0.05)
    third = full[(full - p[1]).abs() > 1e-6]
    assert torch.allclose(third, torch.tensor(p[1] / 3))
    # d p_i / d s_i = p_i (1 - p_i), whatever the factor of the value is
    (gradient,) = torch.autograd.grad(both[:, 0, 0].sum(), x)
    sign = torch.where(best, 1.0, -1.0) * p[0] * p[1]
    wanted = torch.stack((sign, -sign, torch.zeros_like(sign)), dim=-1)
    assert torch.allclose(gradient[0], wanted, atol=1e-6)


def test_the_sparse_mixer_has_the_gradient_of_the_published_code(tmp_path: Path) -> None:
    from transformers.models.phimoe.modeling_phimoe import sparsemixer

    made = routed(tmp_path, "sparse_mixer(jitter = 0.05)", 6).eval()
    torch.manual_seed(1)
    x = torch.randn(1, 200, 6).mul(0.3).requires_grad_()
    ours = made(x).out[0]
    weight, pick = sparsemixer(x[0].clone(), 0.05, training=False)
    assert torch.equal(ours[..., 1].long(), pick)
    torch.testing.assert_close(ours[..., 0], weight)
    g = torch.randn_like(weight)
    (mine,) = torch.autograd.grad((ours[..., 0] * g).sum(), x)
    (theirs,) = torch.autograd.grad((weight * g).sum(), x)
    torch.testing.assert_close(mine, theirs)


# --------------------------------------------------------------------------- balanced scores


FOUR = [[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.5, 0.0]]


def test_sinkhorn_balances_in_training_alone(tmp_path: Path) -> None:
    made = routed(tmp_path, "sinkhorn(top = 1)", 2)
    picks, weights = picks_and_weights(made, FOUR)
    assert picks == [[0]] * 4
    picks, trained = picks_and_weights(made.train(), FOUR)
    assert picks == [[0], [0], [1], [1]]
    assert weights[0][0] == trained[0][0] == pytest.approx(1 / (1 + exp(-3)))
    assert trained[3][0] == 0.5


def test_sinkhorn_has_the_numbers_of_the_sheet(tmp_path: Path) -> None:
    made = model(
        tmp_path,
        """
        use std.routers { balanced_scores }
        model balanced() {
          stage out(x: [T, experts: 2]) { exp(balanced_scores(it; rounds = 100)) / 2.0 }
          objective mean(out)
        }
        """,
    )
    wanted = [[0.2003, 0.0497], [0.1493, 0.1007], [0.0882, 0.1618], [0.0622, 0.1879]]
    x = torch.tensor([FOUR])
    assert torch.allclose(made(x).out[0], torch.tensor(wanted), atol=2e-4)
    # over the batch: two rows are one matrix, and padding is none of it
    rows = made(torch.tensor([FOUR[:2], FOUR[2:]])).out.view(4, 2)
    assert torch.allclose(rows, torch.tensor(wanted), atol=2e-4)
    padded = torch.cat((torch.full((1, 2, 2), 7.0), x), dim=1)
    valid = torch.tensor([[False] * 2 + [True] * 4])
    assert torch.allclose(made(padded, valid).out[0, 2:], torch.tensor(wanted), atol=2e-4)


# --------------------------------------------------------------------------- a controller


ZERO = "zero_computation(real = 2, top = 2, wanted = 1.0, rate = 0.5{more})"


def test_biases_of_networks_move_to_the_wanted_number(tmp_path: Path) -> None:
    made = routed(tmp_path, ZERO.format(more=""), 4).train()
    # both picks of both tokens are networks: each has half of the choices and is to have a quarter
    x = torch.tensor([[[2.0, 1.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0]]])
    assert made(x).aux.networks[0].item() == 2.0
    made.end_step()
    wanted = 0.5 * (1.0 / (2 * 2) - 2 / 4)
    assert buffers(made)["choice_bias"].tolist() == pytest.approx([wanted, wanted, 0.0, 0.0])
    assert buffers(made)["last"].tolist() == pytest.approx([-0.25, -0.25, 0.0, 0.0])


def test_a_controller_with_three_terms(tmp_path: Path) -> None:
    made = routed(tmp_path, ZERO.format(more=", proportional = 2.0, derivative = 4.0"), 4).train()
    held = buffers(made)
    held["last"].copy_(torch.tensor([0.1, 0.0, 0.0, 0.0]))
    held["before"].copy_(torch.tensor([0.3, 0.0, 0.0, 0.0]))
    made(torch.tensor([[[2.0, 1.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0]]]))
    made.end_step()
    e = -0.25
    wanted = [0.5 * e + 2 * (e - 0.1) + 4 * (e - 0.2 + 0.3), 0.5 * e + 2 * e + 4 * e, 0.0, 0.0]
    assert held["choice_bias"].tolist() == pytest.approx(wanted)
    assert held["last"].tolist() == pytest.approx([e, e, 0.0, 0.0])
    assert held["before"].tolist() == pytest.approx([0.1, 0.0, 0.0, 0.0])


def test_the_number_of_networks_settles(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = routed(tmp_path, ZERO.format(more="").replace("0.5", "0.2"), 4).train()
    x = torch.randn(4, 64, 4) + torch.tensor([2.0, 2.0, 0.0, 0.0])
    counts = []
    for _ in range(40):
        counts.append(made(x).aux.networks[0].item())
        made.end_step()
    assert counts[0] > 1.5
    assert counts[-1] == pytest.approx(1.0, abs=0.1)
    assert buffers(made)["choice_bias"][2:].tolist() == [0.0, 0.0]


# --------------------------------------------------------------------------- blocks


def blocks(folder: Path, body: str) -> Any:
    """Return a model of mixtures on tokens of four numbers."""
    return model(
        folder,
        f"""
        use std.experts {{ scaled_input_moe, soft_moe }}
        use std.routers {{ carried_moe, topk_sigmoid }}
        block squared(x: [*, d]) -> [*, d] {{
          gain = weight(d; init = normal(std = 1.0))
          x * x * gain
        }}
        block affine(x: [*, d]) -> [*, d] {{ weight(d; init = normal(std = 1.0)) * x }}
        model mixed() {{
          stage out(x: [T, d: 4]) {{ {body} }}
          objective mean(square(out))
        }}
        """,
    )


def test_a_weight_on_the_input_is_squared_by_an_expert_that_squares(tmp_path: Path) -> None:
    made = blocks(
        tmp_path,
        "scaled_input_moe(it; experts = 4, expert = squared(), router = topk_sigmoid(top = 1))",
    )
    held = dict(made.named_parameters())
    scores = next(p for n, p in held.items() if "scores" in n)
    gain = next(p for n, p in held.items() if "gain" in n)
    with torch.no_grad():
        scores.copy_(torch.eye(4))
    x = torch.randn(2, 5, 4, requires_grad=True)
    best, pick = x.max(-1)
    wanted = (x * best.sigmoid().unsqueeze(-1)).square() * gain[pick]
    out = made(x).out
    assert torch.allclose(out, wanted, atol=1e-6)
    out.sum().backward()
    assert scores.grad is not None and scores.grad.abs().max() > 0


def test_slots_mix_all_tokens_and_tokens_all_slots(tmp_path: Path) -> None:
    made = blocks(tmp_path, "soft_moe(it; experts = 3, slots = 2, expert = affine())")
    held = {n.rpartition(".")[2]: p for n, p in made.named_parameters()}
    means, scale = held.pop("means"), held.pop("scale")
    (gain,) = held.values()
    x = torch.randn(2, 5, 4)
    score = (
        torch.nn.functional.normalize(x, dim=-1)
        @ (scale * torch.nn.functional.normalize(means, dim=-1)).T
    )
    rows = score.softmax(1).transpose(1, 2) @ x
    wanted = score.softmax(2) @ (rows * gain.repeat_interleave(2, dim=0))
    assert torch.allclose(made(x).out, wanted, atol=1e-6)


def test_a_skip_weighs_nothing_and_the_state_goes_to_the_next_layer(tmp_path: Path) -> None:
    made = blocks(
        tmp_path,
        """
            y, s = carried_moe(it; experts = 3, expert = affine(), state = 5)
            z, _ = carried_moe(y, s; experts = 3, expert = affine(), state = 5)
            z
        """,
    )
    x = torch.randn(2, 7, 4)
    first, second = (m for n, m in made.named_modules() if type(m).__name__.startswith("Carried")
                     and hasattr(m, "choice_bias"))  # fmt: skip
    made.loss(x).total.backward()
    own = dict(second.named_parameters())
    (carry,) = (p for n, p in own.items() if n not in dict(first.named_parameters()))
    assert carry.shape == (5,) and carry.grad is not None and carry.grad.abs().max() > 0
    with torch.no_grad():
        second.choice_bias[3] = 9.0  # the skip wins
    assert torch.equal(made(x).out, torch.zeros(2, 7, 4))
