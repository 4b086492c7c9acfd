"""Choices among tokens in kernels, against their torch form: the same indices, ties too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.kernels import guarded, load_kernels, scratch_of_nan
from tests.kernels.selections import (
    BODIES,
    DIM,
    HEADS,
    REFUSED,
    Package,
    pieces,
    plan_of,
    spec,
    whole,
)
from tokdsl.driver import build
from tokdsl.training.package import import_package


@pytest.mark.parametrize("name", BODIES)
def test_the_same_tokens_are_chosen(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    package = Package(tmp_path, spec(BODIES[name]))
    sizes = {"ROWS": 16, "BLOCK_K": 16, "CHUNK": 16, "num_warps": 4, "num_stages": 1}
    package.kernels.CONFIGS["index.single"] = [sizes]
    lengths = (1, 17) if name == "flat" else (7,)
    for length in lengths:
        package.model(whole(length))
    assert package.compared == len(lengths) * len(plan_of(BODIES[name]).kernels)


@pytest.mark.parametrize("name", ["flat", "blocks"])
def test_padding_documents_and_steps(tmp_path: Path, name: str) -> None:
    package = Package(tmp_path, spec(BODIES[name]))
    x = whole(6, batch=2)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[0, :2] = False
    package.model(x, valid=valid)
    package.model(x, documents=torch.arange(6).expand(2, -1) // 4)
    state = package.model.new_state(2)
    for start, end in ((0, 4), (4, 6)):
        package.model.step(x[:, start:end], state)
    assert package.compared == 4 * len(plan_of(BODIES[name]).kernels)


def test_some_queries_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flat", "blocks"):
        folder = tmp_path / name
        folder.mkdir()
        package = Package(folder, spec(BODIES[name]))
        monkeypatch.setattr(package.kernels, "CHOICE_SCORES", 40)
        package.model(whole(5))
        assert package.compared


def test_no_tokens(tmp_path: Path) -> None:
    package = Package(tmp_path, spec(BODIES["flat"]))
    package.model(whole(0))
    package.model(whole(3, batch=0))
    assert package.compared == 2


def test_half_precision(tmp_path: Path) -> None:
    package = Package(tmp_path, spec(BODIES["flat"]))
    package.model = package.model.half()
    package.model(whole(11).half())
    assert package.compared == 1


def test_vectors_longer_than_a_product(tmp_path: Path) -> None:
    package = Package(tmp_path, spec(BODIES["flat"], dim=21))
    sizes = {"ROWS": 16, "BLOCK_K": 16, "CHUNK": 16, "num_warps": 4, "num_stages": 1}
    package.kernels.CONFIGS["index.single"] = [sizes]
    package.model(torch.randint(-2, 3, (1, 7, 2 * HEADS * 21 + HEADS)).float())
    assert package.compared == 1


def test_more_is_chosen_than_there_is(tmp_path: Path) -> None:
    package = Package(tmp_path, spec(BODIES["flat"], top=40))
    package.model(whole(5))
    assert package.compared == 1


def test_gradients_of_scores_are_those_of_the_form(tmp_path: Path) -> None:
    torch.manual_seed(1)
    body = BODIES["blocks"] + "    rename(where(keep >= 0, best, 0.0); i, T)\n"
    text = spec(body).replace("    rename(f32(keep); i, T)\n", "")
    path = tmp_path / "spec.tok"
    path.write_text(text, "utf-8")
    built = build(path, tmp_path)
    assert built.directory is not None, [d.message() for d in built.report]
    made: Any = import_package(built.directory)
    x = torch.randn(1, 7, 2 * HEADS * DIM + HEADS)
    found = []
    for forced in (False, True):
        made.functional.KERNELS.FORCED = forced
        for size in (2**22, 500):
            made.functional.SCORES = size
            leaf = x.clone().requires_grad_()
            made.Model()(leaf).out.pow(2).sum().backward()
            found.append(leaf.grad)
    made.functional.KERNELS.FORCED = False
    for gradient in found[1:]:
        assert gradient is not None and found[0] is not None
        assert torch.allclose(gradient, found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reason", REFUSED)
def test_other_choices_run_in_torch_and_say_why(reason: str) -> None:
    plan = plan_of(REFUSED[reason])
    (region,) = [r for r in plan.regions if r.kernel == "index"]
    assert not region.fused and all(k.template != "index" for k in plan.kernels)
    assert reason in region.reason


def test_any_strides() -> None:
    made = pieces(BODIES["flat"])
    operation = getattr(load_kernels("choice", "index", **made), made["name"])
    x = whole(5)
    q, k, w = x[..., : HEADS * DIM].unflatten(-1, (HEADS, DIM)), x[..., :DIM], x[..., -HEADS:]
    place = torch.arange(5).unsqueeze(0)
    wanted = operation(q.contiguous(), k.contiguous(), w.contiguous(), place, place, None, None)
    turned = q.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    with scratch_of_nan():
        found = operation(
            guarded(turned), guarded(k.mT.contiguous().mT), w, place, place, None, None
        )
    assert all(map(torch.equal, found, wanted))


def test_registration() -> None:
    made = pieces(BODIES["flat"])
    operation = getattr(load_kernels("choice", "index", **made), made["name"])
    x = whole(5)
    q, k, w = x[..., : HEADS * DIM].unflatten(-1, (HEADS, DIM)), x[..., :DIM], x[..., -HEADS:]
    place = torch.arange(5).unsqueeze(0)
    args = q, k, w, place, place, None, None
    torch.library.opcheck(operation, args)
    compiled = torch.compile(lambda *x: operation(*x)[1], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), operation(*args)[1])
