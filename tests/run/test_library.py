"""Definitions of the standard library against numbers from elsewhere, or worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tokdsl.diagnostics import Report
from tokdsl.driver import build
from tokdsl.graph.elaborate import check_definitions
from tokdsl.resolve.modules import FileScope, Library
from tokdsl.source import SourceFile
from tokdsl.training.package import import_package


def model(folder: Path, text: str) -> Any:
    """Return the emitted model of a spec."""
    path = folder / "spec.tok"
    path.write_text(text, "utf-8")
    built = build(path, folder)
    assert built.directory is not None, [d.message() for d in built.report]
    return import_package(built.directory).Model()


def route(
    folder: Path, router: str, scores: list[float], bias: list[float] | None = None
) -> tuple[list[float], list[int]]:
    """Return the weights and picks of a router that sees these scores."""
    count = len(scores)
    call = router.replace("(", f"(it; experts = {count}, ", 1)
    text = f"""
    use std.routers {{ {router.partition("(")[0]} }}
    model routed() {{
      stage out(x: [T, d: {count}]) {{
        r = {call}
        stack(r.weight, f32(r.pick); both: 2)
      }}
      objective mean(out)
    }}
    """
    made = model(folder, text)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.eye(count))
        for buffer in made.buffers():
            buffer.copy_(torch.tensor(bias or [0.0] * count))
    both = made(torch.tensor([[scores]])).out[0, 0]
    return both[:, 0].tolist(), both[:, 1].long().tolist()


def test_every_definition_checks_for_all_sizes() -> None:
    report = Report()
    library = Library(report)
    names = [f.stem for f in (Path(__file__).parents[2] / "stdlib").glob("*.tok")]
    text = "\n".join(f"use std.{name}" for name in sorted(names))
    scope = library.load(SourceFile("all.tok", text), None)
    modules = [found for found in scope.names.values() if isinstance(found, FileScope)]
    assert len(modules) == len(names)
    for module in modules:
        check_definitions(module, report)
    assert not [finding.message() for finding in report]


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


@pytest.mark.parametrize(
    ("router", "weights"),
    [
        # softmax of the chosen scores alone: e / (1 + e)
        ("softmax_topk(top = 2)", [0.731059, 0.268941]),
        ("topk_softmax(top = 2)", [0.731059, 0.268941]),
        ("softmax_biased(top = 2)", [0.731059, 0.268941]),
        # of all four scores
        ("softmax_topk(top = 2, renorm = false)", [0.643914, 0.236883]),
        ("softmax_grouped(top = 2, groups = 2, keep = 2)", [0.643914, 0.236883]),
        (
            "softmax_grouped(top = 2, groups = 2, keep = 2, scaling = 16.0)",
            [10.302628, 3.790124],
        ),
        ("sigmoid_grouped(top = 2)", [0.519575, 0.480425]),
    ],
)
def test_router_weights(tmp_path: Path, router: str, weights: list[float]) -> None:
    found, picks = route(tmp_path, router, [1.0, 2.0, 3.0, 0.0])
    assert picks == [2, 1]
    assert found == pytest.approx(weights, abs=2e-6)


def test_groups_by_their_best_expert_and_by_the_sum_of_the_two_best(tmp_path: Path) -> None:
    # the best expert is in the first group, the best pair in the second
    scores = [3.0, -9.0, 2.5, 2.4]
    for name, kept in (("softmax_grouped", [0, 1]), ("sigmoid_grouped", [2, 3])):
        folder = tmp_path / name
        folder.mkdir()
        _, picks = route(folder, f"{name}(top = 2, groups = 2, keep = 1)", scores)
        assert picks == kept


def test_choice_bias_changes_the_choice_and_not_the_weights(tmp_path: Path) -> None:
    router = "sigmoid_grouped(top = 2, scaling = 2.5)"
    found, picks = route(tmp_path, router, [1.0, 2.0, 3.0, 0.0], bias=[0.0, 0.0, 0.0, 5.0])
    assert picks == [3, 2]
    chosen = [sigmoid(0.0), sigmoid(3.0)]
    assert found == pytest.approx([2.5 * s / sum(chosen) for s in chosen], abs=1e-6)


#: frequencies of 8 pairs at base 10000 by the functions of transformers 5.23.0
SCALED = {
    "linear_scaling(factor = 4.0)": [
        0.25, 0.079056941, 0.025, 0.0079056947, 0.0025, 0.00079056947, 0.00025, 7.9056947e-05,
    ],
    "llama3_scaling(factor = 8.0, original = 512)": [
        1.0, 0.31622776, 0.1, 0.018496677, 0.00125, 0.00039528473, 0.000125, 3.9528473e-05,
    ],
    "yarn(theta = 1e4, factor = 4.0, original = 1024)": [
        1.0, 0.31622776, 0.08125, 0.019764237, 0.004375, 0.00079056947, 0.00025, 7.9056947e-05,
    ],
    "dynamic_ntk(length = 3000, original = 1024, factor = 2.0)": [
        1.0, 0.2522999, 0.063655242, 0.016060211, 0.0040519894, 0.0010223166, 0.00025793037,
        6.5075808e-05,
    ],
}  # fmt: skip


@pytest.mark.parametrize("scaling", SCALED)
@pytest.mark.parametrize("pairs", ["half", "neighbours"])
def test_scaled_rotary_frequencies(tmp_path: Path, scaling: str, pairs: str) -> None:
    name = scaling.partition("(")[0]
    made = model(
        tmp_path,
        f"""
        use std.rotary {{ rope, {name} }}
        model turned() {{
          stage out(x: [T, heads: 1, head_dim: 16]) {{
            rope(scaling = {scaling}, pairs = "{pairs}")
          }}
        }}
        """,
    )
    turned = made(torch.ones(1, 5, 1, 16)).out[0, 4, 0]
    first, second = turned.chunk(2) if pairs == "half" else (turned[0::2], turned[1::2])
    # (1, 1) turned by an angle: cos - sin, sin + cos
    angle = torch.atan2(second - first, second + first)
    wanted = torch.tensor(SCALED[scaling]) * 4
    error = torch.remainder(angle - wanted + torch.pi, 2 * torch.pi) - torch.pi
    assert error.abs().max() < 1e-6


@pytest.mark.parametrize("pairs", ["half", "neighbours"])
def test_a_part_of_the_channels_turns(tmp_path: Path, pairs: str) -> None:
    made = model(
        tmp_path,
        f"""
        use std.rotary {{ rope }}
        model turned() {{
          stage out(x: [T, heads: 2, head_dim: 8]) {{ rope(part = 0.5, pairs = "{pairs}") }}
        }}
        """,
    )
    x = torch.randn(2, 6, 2, 8)
    y = made(x).out
    assert torch.equal(y[..., 4:], x[..., 4:])
    assert y[..., :4].norm(dim=-1).allclose(x[..., :4].norm(dim=-1))
    assert not y[:, 1:, :, :4].isclose(x[:, 1:, :, :4]).all(-1).any()


def losses(folder: Path, objective: str, probs: Tensor, top: int = 1) -> float:
    """Return an objective over probabilities (B, T, experts) and the picks of the best ``top``."""
    experts = probs.shape[-1]
    made = model(
        folder,
        f"""
        use std.losses {{ switch_balance, sequence_balance, importance, router_z }}
        model judged() {{
          stage out(probs: [T, experts: {experts}]) {{
            aux probs = probs * 1.0
            _, pick = topk(probs; top: {top}, over = experts)
            aux pick = pick
            probs
          }}
          objective {objective}
        }}
        """,
    )
    loss: Tensor = made.loss(probs).total
    return loss.item()


def test_router_z_is_the_mean_square_of_the_log_sum(tmp_path: Path) -> None:
    scores = torch.tensor([[[2.0, 1.0, 0.0]]])
    found = losses(tmp_path, "router_z(aux.probs)", scores)
    assert found == pytest.approx(5.796566, abs=1e-5)
    assert found == pytest.approx(log(exp(2) + exp(1) + 1) ** 2, abs=1e-5)


def test_importance_is_the_squared_coefficient_of_variation(tmp_path: Path) -> None:
    probs = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    # totals 1.5 and 0.5: variance 0.25, mean 1
    assert losses(tmp_path, "importance(aux.probs)", probs) == pytest.approx(0.25)


def test_switch_balance_is_one_per_choice_where_all_is_equal(tmp_path: Path) -> None:
    probs = torch.eye(4)[torch.tensor([[0, 1], [2, 3]])]
    assert losses(tmp_path, "switch_balance(aux.probs, aux.pick)", probs) == pytest.approx(1.0)


def test_switch_balance_sees_all_rows_and_sequence_balance_each(tmp_path: Path) -> None:
    # each row uses one expert of two, together they are balanced
    probs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    for definition, wanted in (("switch_balance", 1.0), ("sequence_balance", 2.0)):
        folder = tmp_path / definition
        folder.mkdir()
        use = f"use std.losses {{ {definition} }}"
        made = model(
            folder,
            f"""
            {use}
            model judged() {{
              stage out(probs: [T, experts: 2]) {{
                _, pick = topk(probs; top: 1, over = experts)
                aux balance = {definition}(probs, pick)
                probs
              }}
              objective mean(aux.balance)
            }}
            """,
        )
        assert made.loss(probs).total.item() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("definition", "seen"),
    [
        ("causal", ["1000", "1100", "1110", "1111"]),
        ("full", ["1111", "1111", "1111", "1111"]),
        ("sliding(window = 2)", ["1000", "1100", "0110", "0011"]),
        ("sliding_with_first(window = 1, first = 1)", ["1000", "1100", "1010", "1001"]),
        ("chunked(size = 2)", ["1000", "1100", "0010", "0011"]),
        ("prefix(length = 3)", ["1110", "1110", "1110", "1111"]),
        ("neighbourhood(window = 2)", ["1100", "1110", "0111", "0011"]),
    ],
)
def test_masks_show_these_keys_to_these_queries(
    tmp_path: Path, definition: str, seen: list[str]
) -> None:
    name = definition.partition("(")[0]
    made = model(
        tmp_path,
        f"""
        use std.masks {{ {name} }}
        model watched() {{
          stage out(x: [T, d: 4]) {{
            h = split(it; one: 1, d: 4, over = d)
            y = attend(h * 0.0, h, h; mask = {definition})
            merge(y; d: 4, over = [one, d])
          }}
        }}
        """,
    )
    # equal scores: a query's result is the mean of the unit vectors of the keys that it sees
    found = made(torch.eye(4).unsqueeze(0)).out[0]
    assert ["".join("1" if w > 0 else "0" for w in row) for row in found] == seen


@pytest.mark.parametrize(
    ("definition", "activation"),
    [
        ("relu2(hidden = 5)", lambda t: t.relu().square()),
        ("mlp(hidden = 5, bias = false)", torch.nn.functional.gelu),
        ("mlp(hidden = 5, activation = silu, bias = false)", torch.nn.functional.silu),
    ],
)
def test_feed_forward_blocks(
    tmp_path: Path, definition: str, activation: Callable[[Tensor], Tensor]
) -> None:
    name = definition.partition("(")[0]
    made = model(
        tmp_path,
        f"""
        use std.ffn {{ {name} }}
        model fed() {{
          stage out(x: [T, d: 4]) {{ {definition} }}
        }}
        """,
    )
    block, x = getattr(made.out, name), torch.randn(2, 3, 4)
    assert torch.allclose(made(x).out, block.down(activation(block.up(x))))


def test_norms_stand_before_or_after_the_sums(tmp_path: Path) -> None:
    made = model(
        tmp_path,
        """
        use std.blocks { transformer, transformer_post }
        model stacked() {
          stage out(x: [T, d: 8]) {
            transformer(heads = 2, kv_heads = 1)
            transformer_post(heads = 2, mask = causal)
          }
        }
        """,
    )
    x = torch.randn(1, 4, 8)
    y = made(x).out
    # the last norm has gain 1 and bias 0
    assert y.mean(-1).abs().max() < 1e-5
    assert torch.allclose(y.var(-1, correction=0), torch.ones(1, 4), atol=1e-3)
    changed = torch.cat((x[:, :3], torch.randn(1, 1, 8)), dim=1)
    assert torch.allclose(made(changed).out[:, :3], y[:, :3], atol=1e-6)


def test_attention_options_compute_what_they_say(tmp_path: Path) -> None:
    made = model(
        tmp_path,
        """
        use std.attention { gqa }
        model attended() {
          stage out(x: [T, d: 6]) {
            gqa(heads = 2, kv_heads = 1, head_dim = 4, scale = 0.25, score = softcap(cap = 2.0),
                sinks = true, bias = true, out_bias = false)
          }
        }
        """,
    )
    gqa = made.out.gqa
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    x = torch.randn(2, 5, 6)
    q = gqa.q(x).unflatten(-1, (2, 4)).transpose(1, 2)
    k, v = gqa.k(x).unsqueeze(1), gqa.v(x).unsqueeze(1)
    scores = 2 * torch.tanh(0.25 * q @ k.mT / 2)
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    sink = gqa.sink.view(1, 2, 1, 1).expand(2, 2, 5, 1)
    probs = torch.cat((scores, sink), -1).softmax(-1)[..., :-1]
    wanted = gqa.o((probs @ v).transpose(1, 2).flatten(-2))
    assert gqa.o.bias is None
    assert (made(x).out - wanted).abs().max() < 1e-5
