"""What a mixture of experts allocates: little beside the activations that a gradient needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tokdsl.driver import build
from tokdsl.training.package import import_package

SPEC = Path(__file__).parents[2] / "examples" / "mixtral.tok"
TOKENS, WIDTH, HIDDEN, EXPERTS, TOP = 4096, 32, 32, 16, 4
SIZES = {
    "vocab": 8,
    "d": WIDTH,
    "layers": 1,
    "heads": 4,
    "kv_heads": 2,
    "hidden": HIDDEN,
    "experts": EXPERTS,
    "top": TOP,
}
#: bytes of the results of both first maps, for every row
KEPT = TOKENS * TOP * 2 * HIDDEN * 4
RESULT = TOKENS * WIDTH * 4


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = {name: str(value) for name, value in SIZES.items()}
    built = build(SPEC, tmp_path_factory.mktemp("mixtral"), settings)
    assert built.directory is not None
    return import_package(built.directory).Model().text.layers[0].moe


def allocated(run: Callable[[], object]) -> tuple[int, int]:
    """Return the most bytes that were allocated at a time during a run, and those after it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    assert profiler.profiler is not None
    found = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in found if e.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    del result
    return most, now


def routed(skew: bool) -> tuple[Tensor, Tensor]:
    """Return picks and weights; with `skew` all tokens have the same experts."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1, TOKENS, EXPERTS, generator=generator)
    if skew:
        scores[..., :TOP] += 1
    return scores.topk(TOP).indices, torch.rand(1, TOKENS, TOP, generator=generator)


def forms(layer: Any, skew: bool) -> Callable[[Tensor], Tensor]:
    """Return the experts of a layer on given routes."""
    pick, weight = routed(skew)

    class Router(torch.nn.Module):
        def forward(self, x: Tensor, aux: object, decisions: object) -> Any:
            return self.kind(pick, weight)

    router = Router()
    router.kind = type(layer.router(torch.zeros(1, 1, WIDTH), None, None))  # type: ignore[assignment]

    def form(x: Tensor) -> Tensor:
        before, layer.router = layer.router, router
        try:
            result: Tensor = layer(x, None, None)
        finally:
            layer.router = before
        return result

    return form


@pytest.mark.parametrize("skew", [False, True])
def test_training_allocates_little_beside_what_it_keeps(layer: Any, skew: bool) -> None:
    form = forms(layer, skew)
    x = torch.randn(1, TOKENS, WIDTH, requires_grad=True)
    form(x).sum().backward()
    y: list[Tensor] = []
    most, after = allocated(lambda: y.append(form(x)))
    assert after < 1.1 * (KEPT + RESULT)
    assert most < 1.3 * (KEPT + RESULT)
    for parameter in layer.parameters():
        parameter.grad = None
    x.grad = None
    gradients = RESULT + sum(p.numel() * 4 for p in layer.expert.parameters())
    grad = torch.randn_like(x)
    most, _ = allocated(lambda: y.pop().backward(grad))  # type: ignore[no-untyped-call]
    assert most < gradients + 0.3 * (KEPT + RESULT)


@pytest.mark.parametrize("skew", [False, True])
def test_inference_holds_one_block_of_rows(layer: Any, skew: bool) -> None:
    form = forms(layer, skew)
    x = torch.randn(1, TOKENS, WIDTH)
    with torch.no_grad():
        form(x)
        most, _ = allocated(lambda: form(x))
    assert most < RESULT + 0.3 * KEPT
