"""Costs against published numbers and against sums by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokdsl.checks.facts import Facts
from tokdsl.driver import check_file, check_source
from tokdsl.source import SourceFile

EXAMPLES = Path(__file__).parents[3] / "examples"
LENGTH = 2048


def facts_of(text: str) -> Facts:
    checked = check_source(SourceFile("spec.tok", text), None)
    assert not checked.report.has_errors, [d.message() for d in checked.report]
    return next(iter(checked.facts.values()))


def stage(body: str, rest: str = "", uses: str = "") -> Facts:
    head = f"{uses}\nmodel m(d: int = 16) {{\n  stage text(ids: tokens[256]) {{"
    return facts_of(f"{head}\n    embed(d)\n    {body}\n    unembed(256)\n  }}\n{rest}\n}}\n")


def test_mixtral_is_the_published_size() -> None:
    facts = check_file(EXAMPLES / "mixtral.tok").facts["mixtral"]
    assert facts.numbers["params"] == 46_702_792_704  # the checkpoint's count
    assert facts.numbers["active_params"] == pytest.approx(12.88e9, rel=1e-3)
    assert facts.numbers["cache_per_token"] == 128 * 1024
    assert facts.numbers["decode_flops_per_token"] == pytest.approx(2 * 12.75e9, rel=0.05)


def test_a_linear_map_by_hand() -> None:
    facts = stage("linear(it; d)")
    assert facts.numbers["params"] == 256 * 16 + 16 * 16 + 16 * 256
    assert facts.numbers["flops_per_token"] == 2 * (16 * 16 + 16 * 256)
    assert facts.numbers["cache_per_token"] == 0


def test_layers_count_as_often_as_they_run() -> None:
    one = stage("residual { linear(it; d) }").numbers
    many = stage("repeat 7 { residual { linear(it; d) } }").numbers
    assert many["params"] - one["params"] == 6 * 16 * 16
    assert many["flops"] - one["flops"] == 6 * (2 * 16 * 16 + 16) * LENGTH


def test_a_shared_block_has_its_parameters_once_and_works_twice() -> None:
    twice = "residual { f() }\n    residual { f() }"
    shared = stage(f"shared f = swiglu(hidden = 32)\n    {twice}", uses="use std.ffn { swiglu }")
    apart = stage(
        "residual { swiglu(hidden = 32) }\n    residual { swiglu(hidden = 32) }",
        uses="use std.ffn { swiglu }",
    )
    assert apart.numbers["params"] - shared.numbers["params"] == 3 * 16 * 32
    assert apart.numbers["flops"] == shared.numbers["flops"]


def test_experts_are_active_by_their_share() -> None:
    facts = stage(
        "residual { moe(experts = 8, expert = swiglu(hidden = 32), "
        "router = softmax_topk(top = 2)) }",
        uses="use std.ffn { swiglu }\nuse std.routers { softmax_topk }",
    ).numbers
    experts = 8 * 3 * 16 * 32
    assert facts["params"] == 2 * 256 * 16 + 16 * 8 + experts
    assert facts["active_params"] == 2 * 256 * 16 + 16 * 8 + experts // 4


@pytest.mark.parametrize("window", [4, 64])
def test_a_window_keeps_a_fixed_number_of_tokens(window: int) -> None:
    facts = stage(
        f"residual {{ gqa(heads = 2, mask = sliding(window = {window})) }}",
        uses="use std.attention { gqa }",
    ).numbers
    assert facts["cache_per_token"] == 0
    assert facts["state_bytes"] == (window - 1) * 2 * 16 * 2


def test_a_coarser_cache_costs_less_per_token() -> None:
    facts = stage(
        "residual { stage chunks(reduce = pool(stride = 4), expand = upsample(lag = 1)) "
        "{ residual { gqa(heads = 2) } } }",
        uses="use std.attention { gqa }",
    )
    assert facts.numbers["cache_per_token"] == 2 * 16 * 2 / 4


def test_lines_add_up_to_the_whole() -> None:
    facts = check_file(EXAMPLES / "mixtral.tok").facts["mixtral"]
    lines = facts.tables["own_lines"]
    assert isinstance(lines, dict)
    for name in ("params", "active_params", "flops", "cache_per_token"):
        total = sum(numbers[name] for numbers in lines.values())
        assert total == pytest.approx(facts.numbers[name])
