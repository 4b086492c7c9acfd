"""Networks of routed tokens: every form gives what each token would get alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.run.test_library import model
from tokdsl.emit.functions import collect, merge

WIDTH, HIDDEN, RESULT = 8, 12, 4


@pytest.fixture
def scope() -> dict[str, Any]:
    """Functions of ``codegen/ops``, as a package has them, with small blocks."""
    names: dict[str, Any] = {"__name__": "functional", "__package__": ""}
    exec(
        compile(merge(collect({"mix_networks", "mix_some_networks"})), "functional.py", "exec"),
        names,
    )
    names["BLOCK_ROWS"] = 8
    return names


def gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


class Case:
    """Layers, tokens and a route in float64."""

    def __init__(
        self, scope: dict[str, Any], shape: tuple[int, ...], experts: int, top: int, bias: bool
    ) -> None:
        torch.manual_seed(0)
        make = scope["GroupedLinear"]
        self.first = tuple(make(experts, WIDTH, HIDDEN, bias=bias).double() for _ in range(2))
        self.last = make(experts, HIDDEN, RESULT, bias=bias).double()
        self.x = torch.randn(*shape, WIDTH, dtype=torch.float64, requires_grad=True)
        self.pick = torch.rand(*shape, experts).topk(top).indices
        self.weight = torch.rand(*shape, top, dtype=torch.float64, requires_grad=True)
        self.mix: Callable[..., Tensor] = scope["mix_networks"]
        self.some: Callable[..., Tensor] = scope["mix_some_networks"]

    @property
    def layers(self) -> tuple[Any, ...]:
        return (*self.first, self.last)

    def mixed(self) -> Tensor:
        return self.mix(self.x, self.pick, self.weight, self.first, gated, self.last)

    def alone(self) -> Tensor:
        """Every expert on every token, and the picked ones of them."""
        results = []
        for expert in range(len(self.last.weight)):
            maps = [
                (layer.weight[expert], None if layer.bias is None else layer.bias[expert])
                for layer in self.layers
            ]
            hidden = gated(*(F.linear(self.x, *parts) for parts in maps[:-1]))
            results.append(F.linear(hidden, *maps[-1]))
        index = self.pick.unsqueeze(-1).expand(*self.pick.shape, RESULT)
        chosen = torch.stack(results, dim=-2).gather(-2, index)
        return (chosen * self.weight.unsqueeze(-1)).sum(-2)

    def inputs(self) -> list[Tensor]:
        return [self.x, self.weight, *(p for layer in self.layers for p in layer.parameters())]


CASES = [((2, 5), 4, 2), ((1, 1), 4, 2), ((3, 1), 16, 8), ((1, 7), 3, 1), ((2, 40), 5, 3)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("shape", "experts", "top"), CASES)
def test_values_and_gradients_are_those_of_each_token(
    scope: dict[str, Any], shape: tuple[int, ...], experts: int, top: int, bias: bool
) -> None:
    case = Case(scope, shape, experts, top, bias)
    expected = case.alone()
    torch.testing.assert_close(case.mixed(), expected)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, case.inputs(), direction)
    found = torch.autograd.grad(case.mixed(), case.inputs(), direction)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("few", [0, 64])
@pytest.mark.parametrize(("shape", "experts", "top"), CASES)
def test_inference_gives_the_same(
    scope: dict[str, Any], shape: tuple[int, ...], experts: int, top: int, few: int
) -> None:
    scope["FEW_ROWS"] = few
    case = Case(scope, shape, experts, top, bias=False)
    with torch.no_grad():
        torch.testing.assert_close(case.mixed(), case.alone())
        case.x, case.weight = case.x.float(), case.weight.float()
        for layer in case.layers:
            layer.float()
        torch.testing.assert_close(case.mixed(), case.alone(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("few", [0, 64])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("start", [-4, 0, 3, 11])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (2, 40)])
def test_a_choice_of_other_experts_gives_nothing(
    scope: dict[str, Any], shape: tuple[int, ...], start: int, grad: bool, few: int
) -> None:
    scope["FEW_ROWS"] = few
    case = Case(scope, shape, 4, 2, bias=True)
    others = torch.rand(*shape, 10, dtype=torch.float64).topk(5).indices - 1  # -1 is none
    case.weight = torch.rand(*shape, 5, dtype=torch.float64, requires_grad=True)
    inside = (others >= start) & (others < start + 4)
    case.pick = torch.where(inside, others - start, 0)
    with torch.set_grad_enabled(grad):
        arguments = case.first, gated, case.last, start
        found = case.some(case.x, others, case.weight, *arguments)
        given, case.weight = case.weight, case.weight * inside
        wanted = case.alone()
    torch.testing.assert_close(found, wanted)
    if not grad:
        return
    case.weight = given
    direction = torch.randn_like(wanted)
    each = [torch.autograd.grad(y, case.inputs(), direction) for y in (found, wanted)]
    for one, other in zip(*each, strict=True):
        torch.testing.assert_close(one, other)


def test_an_expert_with_all_tokens_goes_in_pieces(scope: dict[str, Any]) -> None:
    case = Case(scope, (2, 50), 4, 2, bias=True)
    case.pick[..., 0], case.pick[..., 1] = 3, 1
    test = case.mixed(), case.alone()
    torch.testing.assert_close(*test)
    found, wanted = (torch.autograd.grad(y.square().sum(), case.inputs()) for y in test)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("grad", [False, True])
def test_no_tokens_give_no_results(scope: dict[str, Any], grad: bool) -> None:
    case = Case(scope, (2, 0), 4, 2, bias=False)
    with torch.set_grad_enabled(grad):
        y = case.mixed()
    assert y.shape == (2, 0, RESULT)
    if grad:
        y.sum().backward()  # type: ignore[no-untyped-call]
        assert not case.last.weight.grad.any()


def test_frozen_layers_get_no_gradient(scope: dict[str, Any]) -> None:
    case = Case(scope, (2, 5), 4, 2, bias=False)
    case.first[0].weight.requires_grad_(False)
    case.x.requires_grad_(False)
    case.mixed().sum().backward()  # type: ignore[no-untyped-call]
    assert case.first[0].weight.grad is None
    assert case.first[1].weight.grad.any()


SPEC = """
use std.ffn {{ geglu, mlp, relu2, swiglu }}
use std.norms {{ rmsnorm }}
use std.routers {{ softmax_topk }}
block normed(x: [*, d]) -> [*, d] {{
  up = linear(x; hidden: 12)
  linear(rmsnorm(up); d)
}}
block passing(x: [*, d]) -> [*, d] {{
  gate = linear(x; d)
  linear(silu(gate) * x; d)
}}
model m() {{
  stage out(x: [T, d: 8]) {{
    moe(experts = 4, expert = {expert}, router = softmax_topk(top = 2))
  }}
  objective mean(square(out)) + mean(aux.balance)
}}
"""


@pytest.mark.parametrize(
    ("expert", "is_network"),
    [
        ("swiglu(hidden = 12)", True),
        ("geglu(hidden = 12, bias = true)", True),
        ("mlp(hidden = 12)", True),
        ("relu2(hidden = 12)", True),
        ("normed()", False),
        ("passing()", False),
    ],
)
def test_what_is_a_network_is_run_as_one(tmp_path: Path, expert: str, is_network: bool) -> None:
    made = model(tmp_path, SPEC.format(expert=expert))
    scope = vars(sys.modules[type(made).__module__])
    assert ("mix_networks" in scope) == is_network
    x = torch.randn(2, 50, 8)
    made.loss(x).total.backward()
    whole = made(x).out
    with torch.no_grad():
        torch.testing.assert_close(made(x).out, whole)
        torch.testing.assert_close(made(x[:1, :1]).out, whole[:1, :1])
    with torch.autocast("cpu", torch.bfloat16):
        made.loss(x).total.backward()


def test_a_compiled_network_is_one_graph(tmp_path: Path) -> None:
    made = model(tmp_path, SPEC.format(expert="swiglu(hidden = 12)"))
    x = torch.randn(2, 50, 8)
    compiled = torch.compile(made, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x).out, made(x).out)
