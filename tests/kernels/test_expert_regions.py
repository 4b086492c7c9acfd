"""Which experts become a kernel, what is said of the others, and that packages run on them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.kernels import DEVICE
from tokdsl.driver import build, check_source
from tokdsl.lower.build import lower
from tokdsl.lower.kernels.report import RegionReport
from tokdsl.lower.plan import Plan
from tokdsl.source import SourceFile
from tokdsl.training.package import import_package

MODEL = """
use std.ffn { swiglu, mlp }
use std.routers { softmax_topk, switch }
use std.experts { constant, mixed_moe, zero }

block normed(x: [*, d]; hidden: int) -> [*, d] {
  up   = linear(x; hidden)
  down = linear(rmsnorm(relu(up)); d)
}

block scaled(x: [*, d]; hidden: int) -> [*, d] {
  gain = weight(hidden; init = ones())
  up   = linear(x; hidden)
  down = linear(gain * relu(up); d)
}

block straight(x: [*, d]; hidden: int) -> [*, d] {
  up   = linear(x; hidden)
  down = linear(up; d)
}

block bent(x: [*, d]) -> [*, d] { 2.0 * tanh(x) }

block capped(x: [*, d]; hidden: int) -> [*, d] {
  gate = linear(x; hidden, bias = true)
  up   = linear(x; hidden)
  open = cast_like(where(gate > 0.0, tanh(precise(gate)), 0.25), up)
  down = linear(open * clamp(up; max = 1.0); d, bias = true)
}

model m(d: int = 12) {
  stage out(x: [T, d: d]) {
    %s
  }
  objective mean(out)
}
"""


def source(expert: str, router: str = "softmax_topk(top = 2)") -> str:
    """Return a model that is one mixture of experts."""
    if expert.startswith("["):
        return MODEL % f"mixed_moe(experts = {expert}, router = {router})"
    return MODEL % f"moe(experts = 4, expert = {expert}, router = {router})"


def planned(text: str) -> tuple[Plan, list[RegionReport]]:
    """Return the plan of a model, and what it says of its experts."""
    checked = check_source(SourceFile("spec.tok", text), None)
    assert not checked.report.has_errors, [d.message() for d in checked.report]
    program = checked.programs[0]
    plan = lower(program, checked.facts[program.name])
    return plan, [region for region in plan.regions if region.kernel == "experts"]


@pytest.mark.parametrize(
    "expert", ["swiglu(hidden = 8)", "mlp(hidden = 8)", "capped(hidden = 8)", "relu2(hidden = 8)"]
)
def test_maps_with_an_elementwise_part_are_one_kernel(expert: str) -> None:
    text = source(expert).replace("swiglu, mlp", "swiglu, mlp, relu2")
    plan, (report,) = planned(text)
    assert report.fused, str(report)
    (kernel,) = [k for k in plan.kernels if k.template == "experts"]
    assert kernel.name == report.name
    assert report.operations[0] == "dispatch" and report.operations[-1] == "combine"


@pytest.mark.parametrize(
    ("expert", "reason"),
    [
        ("normed(hidden = 8)", "an expert calls `rmsnorm`"),
        ("scaled(hidden = 8)", "`per_row` has an entry per expert"),
        ("straight(hidden = 8)", "there is nothing between linear maps of an expert"),
    ],
)
def test_others_say_why_not(expert: str, reason: str) -> None:
    plan, (report,) = planned(source(expert))
    assert not report.fused and not [k for k in plan.kernels if k.template == "experts"]
    assert reason in str(report)


def test_equal_experts_of_two_mixtures_share_a_kernel() -> None:
    one = "moe(experts = 4, expert = swiglu(hidden = 8), router = softmax_topk(top = 2))"
    checked = check_source(SourceFile("spec.tok", MODEL % f"{one}\n    {one}"), None)
    program = checked.programs[0]
    plan = lower(program, checked.facts[program.name])
    assert len([k for k in plan.kernels if k.template == "experts"]) == 1


KINDS = "[2 of swiglu(hidden = 8), zero(), 3 of mlp(hidden = 6), identity(), constant(), bent()]"


def test_each_kind_says_what_it_became() -> None:
    plan, reports = planned(source(KINDS))
    assert [(r.part, r.fused) for r in reports] == [
        ("experts 0 to 1 (`swiglu`)", True),
        ("expert 2", False),
        ("experts 3 to 5 (`mlp`)", True),
        ("expert 6", False),
        ("expert 7 (`constant`)", False),
        ("expert 8", False),
    ]
    kernels = {k.name for k in plan.kernels if k.template == "experts"}
    assert kernels == {r.name for r in reports if r.fused} and len(kernels) == 2
    texts = [str(report) for report in reports]
    assert texts[0].startswith("fused: mixed_moe, experts 0 to 1 (`swiglu`): dispatch, linear, ")
    assert "experts of this kind give nothing, at experts.tok:" in texts[1]
    assert "experts of this kind give a multiple of the token" in texts[3]
    assert "an expert does not end with a linear map, at experts.tok:" in texts[4]
    assert "experts of this kind have no linear maps, at spec.tok:" in texts[5]


def test_kinds_that_are_no_networks_keep_one_dispatch() -> None:
    plan, reports = planned(source("[2 of normed(hidden = 8), bent()]"))
    assert not [k for k in plan.kernels if k.template == "experts"]
    assert [report.reason for report in reports] == [
        "an expert calls `rmsnorm`",
        "experts of this kind have no linear maps",
    ]
    (mixture,) = [c for c in plan.classes if c.definition == "mixed_moe"]
    assert "split_rows" in "".join(getattr(s, "text", "") for s in mixture.body)


def test_rows_that_something_else_reads_stay_together() -> None:
    body = """router = softmax_topk(x; experts = 3, top = 2)
    y = each([2 of swiglu(hidden = 8), zero()], dispatch(x, router))
    aux size = mean(square(y); over = *)
    combine(y, router)"""
    _, (report,) = planned((MODEL % body).replace("mean(out)", "mean(out) + mean(aux.size)"))
    assert "the rows of several kinds go to more than `combine`" in report.reason


def test_the_manifest_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "m.tok").write_text(source(KINDS), "utf-8")
    built = build(tmp_path / "m.tok", tmp_path / "out", {})
    assert built.directory is not None
    manifest = json.loads((built.directory / "manifest.json").read_text("utf-8"))
    said = [entry for entry in manifest["kernels"] if entry["kernel"] == "experts"]
    assert [(entry["part"], entry["fused"]) for entry in said] == [
        (report.part, report.fused) for report in planned(source(KINDS))[1]
    ]


def _run(model: Any, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    given = x.clone().requires_grad_()
    out = model(given).out
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert given.grad is not None
    return [out.detach(), given.grad, *grads]


@pytest.mark.parametrize(
    ("expert", "router"),
    [
        ("capped(hidden = 8)", "softmax_topk(top = 2)"),
        ("swiglu(hidden = 8)", "switch(capacity = 2)"),
        (KINDS, "softmax_topk(top = 2)"),
        (KINDS, "switch(capacity = 1)"),
        ("normed(hidden = 8)", "softmax_topk(top = 2)"),
    ],
)
def test_packages_give_on_kernels_what_they_give_in_torch(
    expert: str, router: str, tmp_path: Path
) -> None:
    (tmp_path / "m.tok").write_text(source(expert, router), "utf-8")
    built = build(tmp_path / "m.tok", tmp_path / "out", {})
    assert built.directory is not None
    package = import_package(built.directory)
    functional = importlib.import_module(f"{package.__name__}.functional")
    kernels = functional.KERNELS
    torch.manual_seed(1)
    model = package.Model().float().to(DEVICE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 5, 12)
    functional.KERNELS = None
    wanted = _run(model, x)
    functional.KERNELS = kernels
    kernels.FORCED = True
    try:
        found = _run(model, x)
    finally:
        kernels.FORCED = False
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
