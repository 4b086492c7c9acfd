"""Choices by weights among all keys in kernels, against their torch form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.kernels import load_kernels
from tests.kernels.selections import DIM, HEADS, OVER_KEYS, Package, pieces, plan_of, spec
from tokdsl.driver import build, check_file
from tokdsl.lower.build import lower
from tokdsl.training.package import import_package

EXAMPLE = Path(__file__).parents[2] / "examples" / "tokenselect.tok"
LAYERS = {
    "nsa": "nsa(heads = 4, kv_heads = 2, block = 4, top = 3, window = 5)",
    "token_select": "token_select(heads = 4, kv_heads = 2, first = 2, last = 3, top = 4)",
    "token_select, keys of each head": "token_select(heads = 3, first = 1, last = 2, top = 5)",
}
LAYER = """
use std.sparse {{ {name} }}
model m() {{ stage out(x: [T, d: {width}]) {{ {call} }} }}
"""
#: small enough that short sequences have many blocks
SMALL = {"ROWS": 16, "BLOCK_K": 16, "CHUNK": 16, "num_warps": 4, "num_stages": 1}


def package(folder: Path, text: str, near: float = 1e-5) -> Package:
    """Return a package of small blocks, whose scores are not exact."""
    folder.mkdir(exist_ok=True)
    made = Package(folder, text)
    made.near = near
    for name in ("score", "single", "sums", "sums_single"):
        made.kernels.CONFIGS[f"index.{name}"] = [SMALL]
    return made


def layer(name: str) -> str:
    """Return the spec of one layer of attention."""
    width = 12 if "each head" in name else 16
    return LAYER.format(name=name.split(",")[0], call=LAYERS[name], width=width)


def numbers(length: int, batch: int = 1) -> Tensor:
    """Return queries, keys and weights of heads."""
    return torch.randn(batch, length, 2 * HEADS * DIM + HEADS)


@pytest.mark.parametrize("name", OVER_KEYS)
def test_the_same_keys_are_chosen(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    made = package(tmp_path, spec(OVER_KEYS[name]))
    lengths = (1, 15, 16, 17) if name == "surest head" else (1, 17)
    for length in lengths:
        made.model(numbers(length))
    assert made.compared == len(lengths) * len(plan_of(OVER_KEYS[name]).kernels)


@pytest.mark.parametrize("name", ["shares of blocks", "votes", "two of them", "shares in blocks"])
def test_padding_documents_and_steps(tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    made = package(tmp_path, spec(OVER_KEYS[name]))
    x = numbers(7, batch=2)
    valid = torch.rand(2, 7) < 0.7
    valid[1] = True
    made.model(x, valid=valid)
    made.model(x, documents=torch.arange(7).expand(2, -1) // 4)
    state = made.model.new_state(2)
    for start, end in ((0, 5), (5, 7)):
        made.model.step(x[:, start:end], state)
    assert made.compared == 4 * len(plan_of(OVER_KEYS[name]).kernels)


@pytest.mark.parametrize("programs", [1, 2**20])
def test_some_queries_and_some_keys_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: int
) -> None:
    torch.manual_seed(2)
    made = package(tmp_path, spec(OVER_KEYS["votes"]))
    monkeypatch.setattr(made.kernels, "CHOICE_PROGRAMS", programs)
    made.model(numbers(37))
    monkeypatch.setattr(made.kernels, "CHOICE_SCORES", 60)
    made.model(numbers(19))
    assert made.compared == 2


@pytest.mark.parametrize("name", ["shares of blocks", "surest head"])
def test_half_precision(tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    made = package(tmp_path, spec(OVER_KEYS[name]), near=1e-2)
    made.model = made.model.half()
    made.model(numbers(18).half())
    assert made.compared == 1


def test_no_tokens(tmp_path: Path) -> None:
    made = package(tmp_path, spec(OVER_KEYS["votes"]))
    made.model(numbers(0))
    made.model(numbers(3, batch=0))
    assert made.compared == 2


def test_large_scores(tmp_path: Path) -> None:
    """Sums of exponentials neither overflow nor vanish."""
    torch.manual_seed(4)
    made = package(tmp_path, spec(OVER_KEYS["votes"]))
    made.model(30 * numbers(20))
    assert made.compared == 1


@pytest.mark.parametrize("name", LAYERS)
def test_whole_layers(tmp_path: Path, name: str) -> None:
    torch.manual_seed(5)
    made = package(tmp_path, layer(name))
    for parameter in made.model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1, 14, 12 if "each head" in name else 16)
    wanted = made.model(x).out
    assert made.compared == 1
    made.made.model.query_blocks = made.form
    made.kernels.FORCED = True
    found = made.model(x).out
    made.kernels.FORCED = False
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_keys_that_are_no_candidates_count(tmp_path: Path) -> None:
    body = """
    means = blocks(k; size)
    parts[i: T, b: blocks] = dot(at(q; over = heads, index = 0)[i], means[b]; over = dim)
    _, near_ones = topk(parts; near, over = b, where = b < i + size)
    score[i: T, j: T] = dot(at(q; over = heads, index = 1)[i], k[j]; over = dim) * 0.3
    share[i: T, j: T] = softmax(score; over = j, where = j <= i)
    best, keep = topk(share; top, over = j, where = j <= i, among = near_ones, block = size)
"""
    path = tmp_path / "spec.tok"
    text = spec(body, near=2).replace("rename(f32(keep); i, T)", "rename(best; i, T)")
    path.write_text(text, "utf-8")
    built = build(path, tmp_path)
    assert built.directory is not None, [d.message() for d in built.report]
    made: Any = import_package(built.directory)
    torch.manual_seed(6)
    x = numbers(21).double()
    best = made.Model().double()(x).out[0]
    q, k = (x[0, :, start : start + DIM] for start in (DIM, HEADS * DIM))
    share = (0.3 * q @ k.T).masked_fill(torch.ones(21, 21).triu(1).bool(), -torch.inf).softmax(-1)
    for t in range(21):
        for value in best[t][best[t].isfinite()]:
            assert (share[t] - value).abs().min() < 1e-12
    assert best[20].clamp_min(0).sum() < 0.9


def test_scores_that_are_read_stay_in_torch(tmp_path: Path) -> None:
    """Their gradient goes through all keys."""
    body = (
        OVER_KEYS["votes"].replace("f32(score)", "score")
        + "    rename(where(keep >= 0, best, 0.0); i, T)\n"
    )
    path = tmp_path / "spec.tok"
    text = spec(body).replace("    rename(f32(keep); i, T)\n", "")
    path.write_text(text, "utf-8")
    built = build(path, tmp_path)
    assert built.directory is not None
    made: Any = import_package(built.directory)
    assert "kernel=" not in (built.directory / "model.py").read_text("utf-8")
    model = made.Model().double()
    x = numbers(9).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x).out, x)
    other = torch.autograd.grad(model(x).out[0, 8].pow(2).sum(), x)[0]
    assert (other[0, 2:8].abs().amax(-1) > 0).all()


def test_the_example_is_fused() -> None:
    checked = check_file(EXAMPLE)
    (program,) = checked.programs
    plan = lower(program, checked.facts[program.name])
    (region,) = [r for r in plan.regions if r.kernel == "index"]
    assert region.fused and "softmax" in region.operations


def test_registration() -> None:
    made = pieces(OVER_KEYS["mean vote of some"])
    operation = getattr(load_kernels("choice", "index", **made), made["name"])
    x = numbers(5)
    q, k = x[..., : HEADS * DIM].unflatten(-1, (2, 2, DIM)), x[..., :DIM]
    place = torch.arange(5).unsqueeze(0)
    args = q, k, place, place, None, None
    torch.library.opcheck(operation, args)
    compiled = torch.compile(lambda *x: operation(*x)[1], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), operation(*args)[1])
