"""Routers of the library: numbers worked by hand, ties, experts without tokens, capacities."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.run.test_library import model

UNITS = torch.eye(4)


def routed(folder: Path, router: str, experts: int, objective: str = "mean(out)") -> Any:
    """Return a model that gives what a router picks and weighs; its scores are its input."""
    call = router.replace("(", f"(it; experts = {experts}, ", 1).replace(", )", ")")
    made = model(
        folder,
        f"""
        use std.routers {{ {router.partition("(")[0]} }}
        model routed() {{
          stage out(x: [T, d: {experts}]) {{
            r = {call}
            stack(r.weight, f32(r.pick); both: 2)
          }}
          objective {objective}
        }}
        """,
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.eye(experts))
    return made


def picks_and_weights(made: Any, scores: list[list[float]]) -> tuple[list[Any], list[Any]]:
    """Return picks and weights of the tokens of one sequence."""
    both = made(torch.tensor([scores])).out[0]
    return both[..., 1].long().tolist(), both[..., 0].tolist()


def mixture(folder: Path, block: str, d: int = 4, objective: str = "mean(square(out))") -> Any:
    """Return a model of one mixture."""
    return model(
        folder,
        f"""
        use std.ffn {{ swiglu }}
        use std.experts {{ mixed_moe, zero, constant }}
        use std.routers {{
          expert_choice, hash_moe, relu_router, sigmoid_grouped, softmax_biased, softmax_topk,
          switch, topk_sigmoid
        }}
        block twice(x: [*, d]) -> [*, d] {{ 2.0 * x }}
        block scaled(x: [*, d]) -> [*, d] {{
          gain = weight(d; init = ones)
          x * gain
        }}
        model mixed() {{
          stage out(x: [T, d: {d}], ids: i64[T]) {{ {block} + 0.0 * to(ids; dtype = "float") }}
          objective {objective}
        }}
        """,
    )


# --------------------------------------------------------------------------- token choice


def test_sigmoid_of_the_best_scores(tmp_path: Path) -> None:
    made = routed(tmp_path, "topk_sigmoid(top = 2)", 4)
    picks, weights = picks_and_weights(made, [[1.0, 2.0, 3.0, 0.0]])
    assert picks == [[2, 1]]
    assert weights[0] == pytest.approx([1 / (1 + exp(-3)), 1 / (1 + exp(-2))], abs=1e-6)


@pytest.mark.parametrize(
    "router",
    ["softmax_topk(top = 2)", "topk_softmax(top = 2)", "topk_sigmoid(top = 2)",
     "softmax_biased(top = 2)", "sigmoid_grouped(top = 2)",
     "softmax_grouped(top = 2, groups = 2, keep = 2)"],
)  # fmt: skip
def test_ties_go_to_the_lowest_index(tmp_path: Path, router: str) -> None:
    picks, weights = picks_and_weights(
        routed(tmp_path, router, 4), [[0.5] * 4, [0.0, 1.0, 0.0, 1.0]]
    )
    assert picks == [[0, 1], [1, 3]]
    assert weights[0][0] == weights[0][1]


def test_zero_computation_experts_are_chosen_with_the_bias_and_weigh_without(
    tmp_path: Path,
) -> None:
    # 6 p of the picks, not renormalised: the published scaling
    made = routed(tmp_path, "softmax_biased(top = 2, renorm = false, scaling = 6.0)", 4)
    with torch.no_grad():
        dict(made.named_buffers())["out.r.choice_bias"][3] = 1.0
    picks, weights = picks_and_weights(made, [[1.0, 2.0, 3.0, 0.0]])
    total = exp(1) + exp(2) + exp(3) + 1
    assert picks == [[3, 2]]
    assert weights[0] == pytest.approx([6 / total, 6 * exp(3) / total], abs=1e-5)


# --------------------------------------------------------------------------- capacity


FOUR_TO_THE_FIRST = torch.tensor([[[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.5, 0.0]]])


@pytest.mark.parametrize(
    ("router", "kept"),
    [
        ("switch(capacity = 0)", 0),
        ("switch(capacity = 1)", 1),
        ("switch(capacity = 2)", 2),
        ("switch(factor = 1.0)", 2),
        ("switch(factor = 1.25)", 3),
        ("switch(factor = 2.0)", 4),
    ],
)
def test_tokens_beyond_the_capacity_of_an_expert_are_dropped_in_their_order(
    tmp_path: Path, router: str, kept: int
) -> None:
    made = routed(tmp_path, router, 2)
    picks, weights = picks_and_weights(made, FOUR_TO_THE_FIRST[0].tolist())
    assert [p[0] for p in picks] == [0] * kept + [-1] * (4 - kept)
    assert [w[0] for w in weights] == pytest.approx(
        [1 / (1 + exp(-s)) for s in (3.0, 2.0, 1.0, 0.5)], abs=1e-6
    )


def test_a_dropped_token_passes_through_the_residual(tmp_path: Path) -> None:
    made = mixture(
        tmp_path, "moe(it; experts = 2, expert = twice(), router = switch(capacity = 2))", 2
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.eye(2))
    x = FOUR_TO_THE_FIRST.clone().requires_grad_()
    out = made(x, torch.zeros(1, 4, dtype=torch.long)).out
    p = x.softmax(-1)[..., :1]
    assert torch.allclose(out[:, :2], (2 * p * x)[:, :2])
    assert torch.equal(out[:, 2:], torch.zeros(1, 2, 2))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient[:, 2:], torch.zeros(1, 2, 2))


def test_padding_takes_no_place(tmp_path: Path) -> None:
    made = routed(tmp_path, "switch(capacity = 2)", 2)
    x = torch.cat((torch.ones(1, 3, 2), FOUR_TO_THE_FIRST), dim=1)
    valid = torch.tensor([[False] * 3 + [True] * 4])
    picks = made(x, valid).out[0, 3:, 0, 1]
    assert picks.tolist() == [0, 0, -1, -1]


# --------------------------------------------------------------------------- expert choice


def test_experts_choose_and_a_later_token_takes_a_place(tmp_path: Path) -> None:
    made = routed(tmp_path, "expert_choice(factor = 1.0)", 2)

    def chosen_by_the_first(probabilities: list[float]) -> list[int]:
        scores = [[torch.tensor(p / (1 - p)).log().item(), 0.0] for p in probabilities]
        picks, _ = picks_and_weights(made, scores)
        return [t for t, p in enumerate(picks) if p[0] == 0]

    assert chosen_by_the_first([0.1, 0.8, 0.7, 0.6]) == [1, 2]
    assert chosen_by_the_first([0.1, 0.8, 0.7, 0.95]) == [1, 3]


def test_every_expert_takes_as_many_tokens_and_equal_ones_in_their_order(tmp_path: Path) -> None:
    made = routed(tmp_path, "expert_choice(factor = 1.5)", 4)
    picks, _ = picks_and_weights(made, [[0.0] * 4] * 4)
    # 1.5 * 4 / 4 = 1.5, rounded up
    assert picks == [[0, 1, 2, 3]] * 2 + [[-1] * 4] * 2
    taken = made(torch.randn(3, 9, 4)).out[..., 1] >= 0
    assert (taken.sum(dim=1) == 4).all()  # 1.5 * 9 / 4 = 3.4, rounded up


# --------------------------------------------------------------------------- ReLU


def test_all_experts_with_a_positive_score(tmp_path: Path) -> None:
    made = routed(tmp_path, "relu_router(top = 1)", 3, "mean(out) + 0.0 * mean(aux.sparsity)")
    picks, weights = picks_and_weights(made, [[0.5, -1.0, 2.0], [-1.0, -2.0, 0.0]])
    assert picks == [[0, -1, 2], [-1, -1, -1]]
    assert weights == [[0.5, 0.0, 2.0], [0.0, 0.0, 0.0]]


def test_the_sparsity_penalty_and_its_coefficient(tmp_path: Path) -> None:
    made = routed(tmp_path, "relu_router(top = 1, start = 0.5)", 2, "mean(aux.sparsity)").train()
    coefficient = dict(made.named_buffers())["out.r.coefficient"]
    x = torch.tensor([[[1.0, 3.0], [2.0, -1.0]]])
    # active: 1 and 1/2 of the tokens, mean weights 1.5 and 1.5: 2/1 * (1.5 + 0.75)
    assert made.loss(x).total.item() == pytest.approx(0.5 * 4.5)
    assert coefficient.item() == 0.5  # it waits for the step
    made.end_step()
    assert coefficient.item() == pytest.approx(0.6)  # 1.5 experts per token are more than 1
    made.loss(-x)
    made.end_step()
    assert coefficient.item() == pytest.approx(0.5)  # 0.5 experts per token
    made.end_step()
    made.eval().loss(x)
    made.end_step()
    assert coefficient.item() == pytest.approx(0.5)


# --------------------------------------------------------------------------- the bias


BIASED = "sigmoid_grouped(top = 1, rate = 0.25)"


def test_the_bias_moves_once_per_step_after_all_its_passes(tmp_path: Path) -> None:
    made = routed(tmp_path, BIASED, 4).train()
    buffers = dict(made.named_buffers())
    bias, tally = (buffers[f"out.r.{n}"] for n in ("choice_bias", "tally"))
    for part in ([[9.0, 0, 0, 0], [9.0, 0, 0, 0]], [[0, 9.0, 0, 0], [0, 0, 9.0, 0]]):
        made.loss(torch.tensor([part])).total.backward()
        assert bias.tolist() == [0.0] * 4
    # counts 2, 1, 1, 0 and a mean of 1
    assert tally.tolist() == [2.0, 1.0, 1.0, 0.0]
    made.end_step()
    assert bias.tolist() == [-0.25, 0.0, 0.0, 0.25]
    assert tally.tolist() == [0.0] * 4
    assert "out.r.tally" not in made.state_dict()
    made.end_step()
    assert bias.tolist() == [-0.25, 0.0, 0.0, 0.25]


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_count_once_and_choose_alike(
    tmp_path: Path, reentrant: bool
) -> None:
    from torch.utils.checkpoint import checkpoint

    made = routed(tmp_path, BIASED, 4).train()
    tally = dict(made.named_buffers())["out.r.tally"]
    x = torch.randn(2, 5, 4, requires_grad=True)
    checkpoint(lambda x: made(x).out.square().mean(), x, use_reentrant=reentrant).backward()
    assert tally.sum().item() == 10
    recomputed, x.grad = x.grad, None
    made(x).out.square().mean().backward()
    assert torch.equal(recomputed, x.grad)


def test_the_bias_balances_a_skewed_router(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = routed(tmp_path, "sigmoid_grouped(top = 1, rate = 0.02)", 4).train()
    x = torch.randn(8, 32, 4) + torch.tensor([2.0, 0.0, 0.0, -2.0])
    shares = []
    for _ in range(60):
        pick = made(x).out[..., 1].long()
        shares.append(pick.flatten().bincount(minlength=4).max().item() / pick.numel())
        made.end_step()
    assert shares[0] > 0.75
    assert shares[-1] < 0.35


# --------------------------------------------------------------------------- hashes


def test_a_hash_depends_on_the_number_alone_and_spreads(tmp_path: Path) -> None:
    made = model(
        tmp_path,
        """
        use std.routers { hashed }
        model numbers() {
          stage out(ids: tokens[5000]) {
            a = hashed(ids; experts = 8)
            b = hashed(ids; experts = 8, seed = 1)
            f32(concat(a.pick, b.pick; over = top))
          }
        }
        """,
    )
    picks = made(torch.arange(5000).view(5, 1000)).out.long().view(5000, 2)
    again = made(torch.arange(5000).flip(0).view(1, 5000)).out.long()[0].flip(0)
    assert torch.equal(picks, again)
    for column in picks.unbind(1):
        counts = column.bincount(minlength=8)
        assert counts.min() > 0.8 * 5000 / 8 and counts.max() < 1.2 * 5000 / 8
    assert (picks[:, 0] == picks[:, 1]).float().mean() < 0.25


def test_a_mixture_by_hash_has_no_router_to_train(tmp_path: Path) -> None:
    made = mixture(tmp_path, "hash_moe(it, ids; experts = 3, expert = scaled())")
    assert [p.shape for p in made.parameters()] == [(3, 4)]
    ids, x = torch.randint(100, (2, 9)), torch.randn(2, 9, 4)
    assert torch.equal(made(x, ids).out, x)


# --------------------------------------------------------------------------- kinds of experts


KINDS = (
    "mixed_moe(it; experts = [2 of swiglu(hidden = 3), 2 of identity(), zero(), constant()], "
    "router = softmax_topk(top = 2))"
)


def test_experts_of_several_kinds(tmp_path: Path) -> None:
    made = mixture(tmp_path, KINDS)
    block, x = made.out.mixed_moe, torch.randn(2, 7, 4)
    ids = torch.zeros(2, 7, dtype=torch.long)
    weight, pick = block.router.scores(x).softmax(-1).topk(2)
    weight = weight / weight.sum(-1, keepdim=True)

    def expert(number: int, u: Tensor) -> Tensor:
        if number < 2:
            gate, up, down = (
                m.weight[number] for m in (block.swiglu.gate, block.swiglu.up, block.swiglu.down)
            )
            return (torch.nn.functional.silu(gate @ u) * (up @ u)) @ down.T
        if number < 4:
            return u
        if number == 4:
            return 0 * u
        share = (block.constant.share.weight[0] @ u).softmax(-1)
        return share[0] * u + share[1] * block.constant.vector[0]

    wanted = torch.stack(
        [
            torch.stack(
                [
                    sum(weight[b, t, j] * expert(int(pick[b, t, j]), x[b, t]) for j in range(2))
                    for t in range(7)
                ]
            )
            for b in range(2)
        ]
    )
    assert torch.allclose(made(x, ids).out, wanted, atol=1e-6)
    made.loss(x, ids).total.backward()
    assert all(p.grad is not None for p in made.parameters())


def test_tokens_with_nothing_but_copies_come_back_times_their_weight(tmp_path: Path) -> None:
    block = (
        "mixed_moe(it; experts = [2 of swiglu(hidden = 3), 2 of identity()], "
        "router = softmax_biased(top = 2, renorm = false, scaling = 6.0))"
    )
    made = mixture(tmp_path, block)
    router = made.out.mixed_moe.router
    with torch.no_grad():
        router.choice_bias[2:] = 9.0
    x = torch.randn(2, 5, 4)
    p = (x @ router.weight.T).softmax(-1)
    wanted = 6 * p[..., 2:].sum(-1, keepdim=True) * x
    assert torch.allclose(made(x, torch.zeros(2, 5, dtype=torch.long)).out, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "router",
    ["softmax_topk(top = 2)", "topk_sigmoid(top = 1)", "sigmoid_grouped(top = 2)",
     "switch(capacity = 5)", "switch(factor = 1.0)", "relu_router(top = 2)"],
)  # fmt: skip
def test_the_gradient_reaches_the_router_even_if_experts_have_no_tokens(
    tmp_path: Path, router: str
) -> None:
    block = f"moe(it; experts = 4, expert = swiglu(hidden = 3), router = {router})"
    made = mixture(tmp_path, block).double()
    # all tokens are alike: they go to the same experts, and the others have none
    x = torch.randn(1, 1, 4, dtype=torch.float64).expand(2, 6, 4).contiguous().requires_grad_()
    made.loss(x, torch.zeros(2, 6, dtype=torch.long)).total.backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "router" in name:
            assert parameter.grad.abs().max() > 0
    unused = [
        p.grad.flatten(1).abs().amax(1) == 0 for n, p in made.named_parameters() if "gate" in n
    ]
    assert unused[0].any() or "relu" in router


@pytest.mark.parametrize("router", ["switch(capacity = 1)", "expert_choice(factor = 1.0)"])
def test_all_experts_equal_give_the_weights_times_one(tmp_path: Path, router: str) -> None:
    made = mixture(tmp_path, f"moe(it; experts = 3, expert = twice(), router = {router})")
    x = torch.randn(2, 6, 4)
    out = made(x, torch.zeros(2, 6, dtype=torch.long)).out
    factor = out / (2 * x)
    assert torch.allclose(factor, factor[..., :1].expand_as(factor), atol=1e-5)
    assert (factor >= -1e-6).all() and (factor <= 3.001).all()
    assert (factor[..., 0].abs() < 1e-7).any()  # some token has no expert


def test_dropped_choices_are_replayed(tmp_path: Path) -> None:
    made = mixture(
        tmp_path, "moe(it; experts = 2, expert = twice(), router = switch(capacity = 2))", 2
    )
    import importlib

    decisions = importlib.import_module(type(made).__module__.rpartition(".")[0]).Decisions()
    x, ids = torch.randn(2, 6, 2), torch.zeros(2, 6, dtype=torch.long)
    first = made(x, ids, decisions=decisions).out
    other = made(x + 1e-3, ids, decisions=decisions.replay()).out
    assert torch.equal(first == 0, other == 0)
    assert any("moe.router" in name for name in decisions.names())
