"""Experts of several kinds: each kind runs by itself, and the sum is what each token would get."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.run.test_experts_memory import allocated
from tests.run.test_library import model

WIDTH, HIDDEN, INNER = 6, 5, 7
COUNT = 10

#: experts 0 and 1 are gated, 2 gives nothing, 3 and 4 are perceptrons, 5 and 6 copy a token, 7
#: gives thrice its negative, 8 mixes it with a vector, 9 doubles it after it is bounded
EXPERTS = (
    f"[2 of swiglu(hidden = {HIDDEN}), zero(), 2 of mlp(hidden = {INNER}), 2 of identity(),"
    " turned(), constant(), squashed()]"
)
SPEC = """
use std.attention {{ gqa, rope }}
use std.experts {{ constant, mixed_moe, zero }}
use std.ffn {{ mlp, swiglu }}
use std.routers {{ softmax_topk, switch }}
block turned(x: [*, d]) -> [*, d] {{ -(3.0 * x) }}
block squashed(x: [*, d]) -> [*, d] {{ 2.0 * tanh(x) }}
block normed(x: [*, d]) -> [*, d] {{ linear(rmsnorm(linear(x; hidden: 4)); d) }}
# A pick that is given with the tokens.
router told(x: [*, d], pick: i64[*, top: 2]; experts: int) -> route[experts, top] {{
  scores = linear(x; experts)
  weight = gather(sigmoid(scores), clamp(pick; min = 0); over = experts)
  route(pick, weight; experts = experts, expected = 1.5)
}}
{rest}
"""
PICKED = """
model m() {{
  stage out(x: [T, d: {width}], pick: i64[T, top: 2]) {{
    router = told(x, pick; experts = {count})
    combine(each({experts}, dispatch(x, router)), router)
  }}
  objective mean(square(out))
}}
"""
STREAM = """
model m(d: int = 6) {{
  stage text(ids: tokens[32]) {{
    embed(d)
    residual {{ rmsnorm(); gqa(heads = 2, rotary = rope) }}
    residual {{ rmsnorm(); mixed_moe(experts = {experts}, router = {router}) }}
    unembed(32)
  }}
  objective next_token(text, ids)
}}
"""


def picked(folder: Path, experts: str = EXPERTS, count: int = COUNT, width: int = WIDTH) -> Any:
    """Return a mixture whose picks are an input."""
    text = PICKED.format(experts=experts, count=count, width=width)
    return drawn(model(folder, SPEC.format(rest=text)))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a mixture of all kinds."""
    return picked(tmp_path_factory.mktemp("kinds"))


@pytest.fixture
def mixture(package: Any) -> Any:
    """Return a fresh copy of it."""
    return drawn(type(package)())


def drawn(made: Any) -> Any:
    torch.manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def expert(out: Any, number: int, u: Tensor) -> Any:
    """Return what one expert of `EXPERTS` makes of one token."""
    if number < 2:
        layers = (out.swiglu.gate, out.swiglu.up, out.swiglu.down)
        gate, up, down = (layer.weight[number] for layer in layers)
        return down @ (F.silu(gate @ u) * (up @ u))
    if number == 2:
        return 0 * u
    if number < 5:
        up, down, i = out.mlp.up, out.mlp.down, number - 3
        return down.weight[i] @ F.gelu(up.weight[i] @ u + up.bias[i]) + down.bias[i]
    if number < 7:
        return u
    if number == 7:
        return -3 * u
    if number == 8:
        share = (out.constant.share.weight[0] @ u).softmax(-1)
        return share[0] * u + share[1] * out.constant.vector[0]
    return 2 * u.tanh()


def one_by_one(made: Any, x: Tensor, pick: Tensor) -> Tensor:
    """Return the mixture of `EXPERTS`, token by token."""
    weights = made.out.router.scores(x).sigmoid()
    rows = []
    for u, mine, w in zip(x.flatten(0, 1), pick.flatten(0, 1), weights.flatten(0, 1), strict=True):
        parts = [w[e] * expert(made.out, int(e), u) for e in mine if e >= 0]
        rows.append(sum(parts, torch.zeros_like(u)))
    return torch.stack(rows).view_as(x)


def some(*shape: int) -> Tensor:
    """Return picks of which a quarter is none."""
    pick = torch.rand(*shape, COUNT).topk(2).indices
    return pick.where(torch.rand(*shape, 2) > 0.25, -1)


def within(low: int, high: int) -> Callable[..., Tensor]:
    """Return a maker of picks of these experts alone."""
    return lambda *shape: torch.randint(low, high, (*shape, 2))


PICKS = {
    "some": some,
    "one kind alone": within(3, 5),
    "no network": within(5, 10),
    "copies": within(5, 8),
    "none": within(-1, 0),
}


@pytest.mark.parametrize("shape", [(2, 9), (1, 1), (2, 60)])
@pytest.mark.parametrize("picks", PICKS.values(), ids=PICKS)
def test_values_and_gradients_are_those_of_each_token(
    mixture: Any, picks: Callable[..., Tensor], shape: tuple[int, int]
) -> None:
    made = mixture.double()
    pick = picks(*shape)
    x = torch.randn(*shape, WIDTH, dtype=torch.float64, requires_grad=True)
    inputs = [x, *made.parameters()]
    expected, found = one_by_one(made, x, pick), made(x, pick).out
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(made(x, pick).out, expected)
    direction = torch.randn_like(found)
    if not expected.requires_grad:
        expected = expected + 0 * x
    wanted = torch.autograd.grad(expected, inputs, direction, materialize_grads=True)
    grads = torch.autograd.grad(found, inputs, direction)
    for one, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_compiled_mixture_is_one_graph(mixture: Any) -> None:
    made, x = mixture, torch.randn(2, 20, WIDTH)
    compiled: Any = torch.compile(made, fullgraph=True, backend="eager")
    for picks in (some, within(-1, 0)):
        pick = picks(2, 20)
        torch.testing.assert_close(compiled(x, pick).out, made(x, pick).out)
        grads = []
        for form in (compiled, made):
            made.zero_grad()
            form(x, pick).out.square().sum().backward()
            grads.append([p.grad for p in made.parameters()])
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other)


def test_reduced_precision(mixture: Any) -> None:
    made, x, pick = mixture, torch.randn(2, 20, WIDTH), some(2, 20)
    whole = made(x, pick).out
    with torch.autocast("cpu", torch.bfloat16):
        rounded = made(x, pick).out
        rounded.float().square().sum().backward()
    torch.testing.assert_close(rounded.float(), whole, rtol=0.1, atol=0.1)
    assert made.to(torch.bfloat16)(x.bfloat16(), pick).out.dtype == torch.bfloat16


def test_what_a_token_did_not_choose_does_not_touch_it(mixture: Any) -> None:
    """A copy is made for all tokens, and weighs nothing where it is not wanted."""
    made, pick = mixture, torch.tensor([[[0, 1], [5, 2]]])
    x = torch.full((1, 2, WIDTH), 1e30, requires_grad=True)
    with torch.no_grad():
        made.out.router.scores.weight.zero_()
        made.out.swiglu.gate.weight.zero_()
    made(x, pick).out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 0.5]).view(1, 2, 1).expand_as(x))


def test_parameters_keep_their_names(mixture: Any) -> None:
    assert list(mixture.state_dict()) == [
        "out.router.scores.weight",
        "out.swiglu.gate.weight",
        "out.swiglu.up.weight",
        "out.swiglu.down.weight",
        "out.mlp.up.weight",
        "out.mlp.up.bias",
        "out.mlp.down.weight",
        "out.mlp.down.bias",
        "out.constant.vector",
        "out.constant.share.weight",
    ]


def test_no_kind_copies_the_rows_of_another(tmp_path: Path) -> None:
    forms = {
        "[2 of swiglu(hidden = 3), normed()]": {"mix_some_networks", "dispatch_some"},
        "[2 of swiglu(hidden = 3), identity()]": {"mix_some_networks", "weigh_tokens"},
        "[2 of swiglu(hidden = 3), zero()]": {"mix_some_networks"},
        "[2 of normed(), zero()]": {"dispatch_some"},
        "[2 of normed(), identity()]": {"dispatch_some", "weigh_tokens"},
        "[2 of normed(), squashed()]": {"dispatch_some", "split_rows"},  # one sort for both
    }
    known = {"dispatch", "mix_networks"}.union(*forms.values())
    for experts, wanted in forms.items():
        made = picked(tmp_path, experts, 3)
        assert known & vars(sys.modules[type(made).__module__]).keys() == wanted


def test_copies_allocate_little_beside_the_result(tmp_path: Path) -> None:
    experts = f"[2 of swiglu(hidden = {HIDDEN}), 6 of identity()]"
    made = picked(tmp_path, experts, 8, width=64)
    x, pick = torch.randn(1, 4096, 64), within(2, 8)(1, 4096)
    with torch.no_grad():
        made(x, pick)
        most, _ = allocated(lambda: made(x, pick))
    # the result of each kind and their sum, and some numbers per choice
    assert most < 3.5 * x.nbytes


@pytest.mark.parametrize("router", ["softmax_topk(top = 2)", "switch(capacity = 3)"])
def test_steps_give_the_whole(tmp_path: Path, router: str) -> None:
    text = STREAM.format(experts=EXPERTS, router=router)
    made = drawn(model(tmp_path, SPEC.format(rest=text))).double().eval()
    ids = torch.randint(32, (2, 13))
    with torch.no_grad():
        whole = made(ids).text
        state = made.new_state(2)
        parts = [made.prefill(ids[:, :6], state)]
        parts += [made.step(ids[:, i : i + n], state) for i, n in ((6, 1), (7, 2), (9, 4))]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


READ_ONCE = """
attention cross(x: [T, d], memory: [S, d]; heads: int) -> [T, d] {{
  q = linear(x; heads, head_dim: d // heads)
  k = linear(memory; heads, head_dim: d // heads)
  v = linear(memory; heads, head_dim: d // heads)
  linear(attend(q, k, v); d, over = [heads, head_dim])
}}
model m(d: int = 6) {{
  stage source(given: tokens[32]) {{ embed(d); rmsnorm() }}
  stage text(ids: tokens[32], source: [S, d]) {{
    embed(d)
    router = softmax_topk(source; experts = {count}, top = 2)
    memory = combine(each({experts}, dispatch(source, router)), router)
    residual {{ rmsnorm(); cross(it, memory; heads = 2) }}
    unembed(32)
  }}
  objective next_token(text, ids)
}}
"""


def test_kinds_of_a_memory_that_is_read_once_run_once(tmp_path: Path) -> None:
    text = READ_ONCE.format(experts=EXPERTS, count=COUNT)
    made = drawn(model(tmp_path, SPEC.format(rest=text))).double().eval()
    given, ids = torch.randint(32, (2, 9)), torch.randint(32, (2, 7))
    calls: list[object] = []
    made.text.constant.register_forward_hook(lambda *_: calls.append(_))
    with torch.no_grad():
        whole = made(given, ids).text
        calls.clear()
        state = made.new_state(2)
        parts = [made.prefill(ids[:, :3], state, given)]
        parts += [made.step(ids[:, i : i + 1], state) for i in range(3, 7)]
    assert len(calls) == 1
    torch.testing.assert_close(torch.cat(parts, 1), whole)
