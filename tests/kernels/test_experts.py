"""Experts of a route: gathered rows, first maps, an activation, the last map, the weighted sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.fixtures.kernels import DEVICE, guarded, load_kernels, scratch_of_nan
from tests.kernels.experts_pieces import GATED, PLAIN, SQUARED

ACTIVATIONS: dict[str, tuple[dict[str, Any], Callable[..., Tensor]]] = {
    "gated": (GATED, lambda gate, up: F.silu(gate) * up),
    "squared": (SQUARED, lambda up: F.relu(up).square()),
    "plain": (PLAIN, lambda only: only),
}


def _kernel(kind: str) -> Any:
    return getattr(_module(kind), f"{kind}_experts")


def _module(kind: str) -> Any:
    return load_kernels("experts", name=f"{kind}_experts", activation=ACTIVATIONS[kind][0])


Maps = list[Tensor | None]


def _reference(
    kind: str, x: Tensor, pick: Tensor, share: Tensor, maps: Maps, first: int = 0
) -> Tensor:
    """Return the definition, an expert after the other."""
    *layers, (last, last_bias) = zip(maps[::2], maps[1::2], strict=True)

    def of(value: Tensor | None, expert: int) -> Tensor | None:
        return None if value is None else value[expert]

    out = x.new_zeros(*x.shape[:-1], last.shape[1])
    for expert in range(len(last)):
        blocks = [F.linear(x, w[expert], of(b, expert)) for w, b in layers]
        y = F.linear(ACTIVATIONS[kind][1](*blocks), last[expert], of(last_bias, expert))
        weight = (share * (pick == expert + first)).sum(-1, keepdim=True)
        out = out + torch.where(weight != 0, y * weight, 0.0)
    return out


def _inputs(
    kind: str, tokens: int, slots: int, experts: int, sizes: tuple[int, int, int],
    dtype: torch.dtype = torch.float32, bias: bool = False, last_bias: bool = False,
    dropped: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Maps]:  # fmt: skip
    generator = torch.Generator(DEVICE).manual_seed(tokens + 7 * experts)
    width, hidden, outputs = sizes

    def draw(*shape: int) -> Tensor:
        value = torch.randn(*shape, generator=generator) * shape[-1] ** -0.5
        return value.to(dtype).requires_grad_()

    maps: Maps = []
    for _ in ACTIVATIONS[kind][0]["inputs"]:
        maps += [draw(experts, hidden, width), draw(experts, hidden) if bias else None]
    maps += [draw(experts, outputs, hidden), draw(experts, outputs) if last_bias else None]
    pick = torch.rand(tokens, experts, generator=generator).topk(slots).indices
    gone = torch.rand(tokens, slots, generator=generator) < dropped
    share = torch.rand(tokens, slots, generator=generator) + 0.1
    x = torch.randn(tokens, width, generator=generator).to(dtype)
    return x.requires_grad_(), torch.where(gone, -1, pick), share.requires_grad_(), maps


def _smooth(x: Tensor, share: Tensor, maps: Maps) -> list[Tensor]:
    return [x, share, *(m for m in maps if m is not None)]


def _ratio(found: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double()
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-6))


def _check(kind: str, x: Tensor, pick: Tensor, share: Tensor, maps: Maps, first: int = 0) -> None:
    """Compare result and gradients with those of the definition in float64."""
    exact = [None if v is None else v.detach().double().requires_grad_() for v in (x, share, *maps)]
    wanted = _reference(kind, exact[0], pick, exact[1], exact[2:], first)
    seed = torch.randn(wanted.shape, generator=torch.Generator(DEVICE).manual_seed(3))
    wanted_grads = torch.autograd.grad(wanted, [v for v in exact if v is not None], seed.double())
    with scratch_of_nan():
        safe = [None if v is None else guarded(v) for v in (x, share, *maps)]
        found = _kernel(kind)(safe[0], guarded(pick), safe[1], safe[2:], first=first)
        given = [v for v in safe if v is not None]
        grads = torch.autograd.grad(found, given, seed.to(found.dtype))
    tolerance = 2e-6 if x.dtype == torch.float32 else 3e-3
    assert found.dtype == x.dtype and _ratio(found.detach(), wanted.detach()) < tolerance
    for value, grad, right in zip(given, grads, wanted_grads, strict=True):
        assert grad.dtype == value.dtype
        assert _ratio(grad, right) < tolerance, value.shape


SIZES = [
    (1, (5, 3, 5)),
    (15, (16, 16, 16)),
    (16, (33, 31, 40)),
    (17, (64, 65, 63)),
    (61, (7, 70, 66)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("tokens", "sizes"), SIZES)
def test_edges(tokens: int, sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    _check("gated", *_inputs("gated", tokens, 2, 3, sizes, dtype))


@pytest.mark.parametrize("kind", ["gated", "squared", "plain"])
def test_activations_and_biases(kind: str) -> None:
    for bias, last_bias in ((True, False), (False, True)):
        _check(kind, *_inputs(kind, 19, 2, 3, (18, 35, 17), bias=bias, last_bias=last_bias))


def test_choices_that_are_none() -> None:
    _check("gated", *_inputs("gated", 23, 3, 5, (12, 20, 12), dropped=0.4))


def test_token_and_expert_without_choice() -> None:
    x, pick, share, maps = _inputs("gated", 9, 2, 4, (12, 20, 12), bias=True, last_bias=True)
    pick[3] = -1
    pick[pick == 2] = -1
    _check("gated", x, pick, share, maps)


def test_one_choice_of_one_expert() -> None:
    _check("squared", *_inputs("squared", 6, 1, 1, (12, 20, 12)))


def test_one_expert_gets_all() -> None:
    x, pick, share, maps = _inputs("gated", 40, 1, 4, (12, 20, 12))
    _check("gated", x, torch.full_like(pick, 2), share, maps)


def test_experts_of_one_kind_among_others() -> None:
    x, pick, share, maps = _inputs("gated", 21, 2, 3, (12, 20, 12))
    _check("gated", x, pick + 4 - (pick == 0).long() * 4, share, maps, first=4)


def test_no_choice_and_no_token() -> None:
    x, pick, share, maps = _inputs("gated", 5, 2, 3, (12, 20, 10), bias=True, last_bias=True)
    _check("gated", x, torch.full_like(pick, -1), share, maps)
    found = _kernel("gated")(x[:0], pick[:0], share[:0], maps)
    assert found.shape == (0, 10)
    grads = torch.autograd.grad(found.sum(), [x, *(m for m in maps if m is not None)])
    assert all(not g.any() for g in grads)


def test_many_rows_per_expert() -> None:
    """Tiles and blocks are those of training."""
    _check("gated", *_inputs("gated", 70, 2, 2, (40, 36, 33)))


def test_leading_axes_and_strides() -> None:
    x, pick, share, maps = _inputs("gated", 12, 2, 3, (12, 20, 12))
    wanted = _kernel("gated")(x, pick, share, maps)
    apart = torch.stack([x, x]).transpose(0, 1)[:, 0].unflatten(0, (3, 4))
    turned = [w if w is None else w.transpose(1, 2).contiguous().transpose(1, 2) for w in maps]
    found = _kernel("gated")(
        apart, pick.t().contiguous().t().unflatten(0, (3, 4)), share.unflatten(0, (3, 4)), turned
    )
    assert torch.equal(found.flatten(0, 1), wanted)


def test_same_bits_every_time() -> None:
    x, pick, share, maps = _inputs("gated", 33, 2, 3, (12, 20, 12))
    seed = torch.ones(33, 12)
    runs = []
    for _ in range(2):
        y = _kernel("gated")(x, pick, share, maps)
        runs.append((y, *torch.autograd.grad(y, _smooth(x, share, maps), seed)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_only_what_is_asked_is_computed() -> None:
    x, pick, share, maps = _inputs("gated", 8, 2, 3, (12, 20, 12))
    assert maps[0] is not None
    y = _kernel("gated")(x.detach(), pick, share.detach(), [maps[0].detach(), *maps[1:]])
    trained = [m for m in maps[1:] if m is not None]
    found = torch.autograd.grad(y.sum(), trained)
    y = _kernel("gated")(x, pick, share, maps)
    wanted = torch.autograd.grad(y.sum(), trained)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    with torch.no_grad():
        assert not _kernel("gated")(x, pick, share, maps).requires_grad


def test_registered_operations() -> None:
    x, pick, share, maps = _inputs("gated", 5, 2, 3, (6, 7, 6), bias=True, last_bias=True)
    operation = _module("gated")._gated_experts_forward
    for tokens in (5, 0):
        arguments = (x[:tokens].detach().requires_grad_(), pick[:tokens], share[:tokens].detach())
        torch.library.opcheck(operation, (*arguments, *maps, 0, True))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_without_a_break(backend: str) -> None:
    x, pick, share, maps = _inputs("gated", 5, 2, 3, (6, 7, 6))
    kernel = _kernel("gated")
    compiled = torch.compile(kernel, fullgraph=True, backend=backend)
    tensors = _smooth(x, share, maps)
    found, wanted = compiled(x, pick, share, maps), kernel(x, pick, share, maps)
    assert torch.equal(found, wanted)
    pairs = zip(
        torch.autograd.grad(found.sum(), tensors),
        torch.autograd.grad(wanted.sum(), tensors),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


def test_mixed_precision() -> None:
    x, pick, share, maps = _inputs("gated", 5, 2, 3, (6, 7, 6))
    with torch.autocast(DEVICE, torch.float16):
        y = _kernel("gated")(x, pick, share, maps)
    assert y.dtype == torch.float16
    grads = torch.autograd.grad(y.float().sum(), _smooth(x, share, maps))
    assert all(g.dtype == torch.float32 for g in grads)
