"""Which equations become a kernel, and what is said of those that do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokdsl.checks.facts import Facts
from tokdsl.cli import app
from tokdsl.driver import check_source
from tokdsl.graph.program import Program
from tokdsl.lower.build import lower
from tokdsl.lower.kernels.report import RegionReport
from tokdsl.lower.plan import Plan
from tokdsl.source import SourceFile

MODEL = """
use std.ffn { swiglu }

router mine(x: [T, d]; experts: int, top: int) -> route[experts, top] {
  scores = precise(linear(x; experts))
  %s
}

model m(vocab: int = 32, d: int = 16) {
  stage text(ids: tokens[vocab]) {
    embed(d)
    residual { moe(experts = 6, expert = swiglu(hidden = 8), router = mine(top = 2)) }
    unembed(vocab)
  }
  objective next_token(text, ids) %s
}
"""


def planned(equations: str, objective: str = "") -> Plan:
    """Return the plan of a model whose router has these equations after `scores`."""
    checked = check_source(SourceFile("spec.tok", MODEL % (equations, objective)), None)
    assert not checked.report.has_errors, [d.message() for d in checked.report]
    program: Program = checked.programs[0]
    facts: Facts = checked.facts[program.name]
    return lower(program, facts)


def rows(plan: Plan) -> list[RegionReport]:
    return [region for region in plan.regions if region.kernel == "rows"]


def test_a_chain_over_the_experts_is_one_region() -> None:
    plan = planned("""
  p = softmax(scores; over = experts)
  w, pick = topk(p; top, over = experts)
  route(pick, cast_like(w / sum(w; over = top), x))
""")
    (region,) = rows(plan)
    expected = ("precise", "softmax", "topk", "sum", "divide", "cast_like")
    assert region.operations == expected
    assert region.fused
    assert region.name in [function.name for function in plan.fused]
    assert region.name in [kernel.name for kernel in plan.kernels]
    assert str(region).startswith("fused: mine: precise, softmax, topk")


def test_statistics_of_all_tokens_are_a_region_of_their_own() -> None:
    plan = planned(
        """
  p = softmax(scores; over = experts)
  w, pick = topk(p; top, over = experts)
  aux balance = switch_balance(p, pick)
  route(pick, cast_like(w, x))
""",
        "+ 0.01 * mean(aux.balance)",
    )
    chain, statistics = rows(plan)
    assert "histogram" in statistics.operations and "mean" in statistics.operations
    assert "histogram" not in chain.operations


def test_what_waits_for_a_value_from_outside_is_another_region() -> None:
    # the total over all tokens needs the first part and is needed by the second
    plan = planned("""
  p = softmax(scores; over = experts)
  q = p * p / sum(p * p; over = experts)
  m = cumsum(q; over = T)
  w, pick = topk(q + m; top, over = experts)
  route(pick, cast_like(w / sum(w; over = top), x))
""")
    first, second = rows(plan)
    assert first.operations[-1] == "divide" and "softmax" in first.operations
    assert second.operations[0] == "add" and "topk" in second.operations


def test_two_chains_that_meet_are_one_region() -> None:
    plan = planned("""
  p = softmax(scores; over = experts)
  q = sigmoid(scores) / sum(sigmoid(scores); over = experts)
  w, pick = topk(p * q; top, over = experts)
  route(pick, cast_like(w, x))
""")
    (region,) = rows(plan)
    assert {"softmax", "sigmoid", "topk"} <= set(region.operations)


@pytest.mark.parametrize(
    ("equations", "reason"),
    [
        ("w, pick = topk(f64(scores); top, over = experts)", "f64"),
        (
            "w, pick = topk(scores + gumbel_noise(scores); top, over = experts)",
            "",
        ),
    ],
)
def test_what_is_not_fused_says_why(equations: str, reason: str) -> None:
    plan = planned(equations + "\n  v = softmax(w; over = top)\n  route(pick, cast_like(v * v, x))")
    if reason:
        assert any(reason in region.reason for region in rows(plan) if not region.fused)
    else:  # noise is drawn outside; what follows is fused
        assert any("topk" in region.operations and region.fused for region in rows(plan))


def test_build_explains_the_kernels(tmp_path: Path) -> None:
    spec = tmp_path / "m.tok"
    equations = """
  p = softmax(scores; over = experts)
  w, pick = topk(p; top, over = experts)
  route(pick, cast_like(w / sum(w; over = top), x))
"""
    spec.write_text(MODEL % (equations, ""), "utf-8")
    command = ["build", str(spec), "-o", str(tmp_path), "--explain-kernels"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "fused: mine: precise, softmax, topk, sum, divide, cast_like -> rows" in result.output
    told = json.loads((tmp_path / "m" / "manifest.json").read_text("utf-8"))["kernels"]
    assert {"kernel": "rows", "fused": True, "module": "mine"}.items() <= told[0].items()


CHUNKED = """
use std.attention { gqa }
use std.rotary { rope }

model m(vocab: int = 32, d: int = 8) {
  stage text(ids: tokens[vocab]) {
    embed(d)
    residual { rmsnorm(); gqa(heads = 2, rotary = rope) }
    residual {
      words = chunks(opens = mean(it; over = d) > 0.0, ratio = 2.0)
      fine = it
      pool(it, words, how = "first")
      residual { rmsnorm(); gqa(heads = 2, rotary = rope) }
      where(place(words) == 0, upsample(it, words), 0.5 * fine)
    }
    unembed(vocab)
  }
  objective next_token(text, ids)
}
"""


def test_positions_of_chunks_stay_behind_the_region_that_makes_these() -> None:
    checked = check_source(SourceFile("spec.tok", CHUNKED), None)
    plan = lower(checked.programs[0], checked.facts["m"])
    (region,) = rows(plan)
    assert region.fused and "greater" in region.operations
