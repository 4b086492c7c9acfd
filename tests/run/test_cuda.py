"""The examples on a GPU: the published numbers again, other dtypes, and compilation whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.run.test_parity import CAUSAL, ROOT, SIZES, Case
from tokdsl.driver import build
from tokdsl.training.package import import_package

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Build each example once, and put it with its inputs on the GPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

    @cache
    def make(name: str) -> Case:
        sizes = {key: str(value) for key, value in SIZES[name].items()}
        built = build(ROOT / "examples" / f"{name}.tok", tmp_path_factory.mktemp(name), sizes)
        assert built.directory is not None
        case = Case(name, import_package(Path(built.directory)))
        case.model.cuda()
        for key, value in case.tensors.items():
            case.tensors[key] = value.cuda()
        return case

    return make


@pytest.mark.parametrize("name", list(SIZES))
def test_logits_are_the_published_ones(made: Callable[[str], Case], name: str) -> None:
    case = made(name)
    logits = on_gpu(case)
    error = (logits - case.tensors["out.logits"]).abs()
    if name == "bert":
        error = error[case.tensors["in.attention_mask"].bool()]
    assert error.max() < 2e-5


def on_gpu(case: Case) -> torch.Tensor:
    with torch.device("cuda"):
        return case.logits()


@pytest.mark.parametrize("name", CAUSAL)
def test_steps_are_the_whole_pass(made: Callable[[str], Case], name: str) -> None:
    case = made(name)
    for counts in ((24,), (1,) * 24, (5, 1, 7, 3, 8)):
        assert (case.splits(*counts) - case.tensors["out.logits"]).abs().max() < 2e-5


@pytest.mark.parametrize("name", CAUSAL)
def test_gradients_are_those_of_the_cpu(made: Callable[[str], Case], name: str) -> None:
    case = made(name)
    ids = case.tensors["in.input_ids"]
    case.model.zero_grad()
    case.model.loss(ids).total.backward()
    found = {n: p.grad.cpu() for n, p in case.model.named_parameters() if p.grad is not None}
    case.model.cpu().zero_grad()
    case.model.loss(ids.cpu()).total.backward()
    for key, parameter in case.model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[key], parameter.grad, atol=2e-5), key
    case.model.cuda()


@pytest.mark.parametrize("name", CAUSAL)
def test_bfloat16_training_gives_finite_gradients(made: Callable[[str], Case], name: str) -> None:
    case = made(name)
    model = case.package.Model().to("cuda", torch.bfloat16)
    loss = model.loss(case.tensors["in.input_ids"]).total
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral", "deepseek_v3"])
def test_compiles_whole(made: Callable[[str], Case], name: str) -> None:
    case = made(name)
    ids = case.tensors["in.input_ids"]
    compiled = torch.compile(case.model, fullgraph=True)
    with torch.no_grad():
        error = (compiled(ids).text - case.tensors["out.logits"]).abs().max()
    assert error < 5e-5
