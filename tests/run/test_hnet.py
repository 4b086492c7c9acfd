"""H-Net: the numbers worked by hand, the paths of the gradient, and its decoder."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.decoding import error, worst_padding, worst_split, worst_verb
from tokdsl.driver import build
from tokdsl.training.package import import_package

EXAMPLES = Path(__file__).parents[2] / "examples"
ONE = {
    "d0": 32, "d1": 48, "outer": 1, "inner": 1, "heads": 2, "hidden": 32, "state": 8,
    "head_dim": 16,
}  # fmt: skip
TWO = {
    "d0": 32, "d1": 48, "d2": 64, "outer": 1, "inner": 1, "heads": 2, "hidden1": 32,
    "hidden2": 32, "window": 4, "state": 8, "head_dim": 16, "ratio1": 2.0, "ratio2": 2.0,
}  # fmt: skip

#: the sheet's hidden states, with the identity as both projections
HIDDEN = [[1.0, 0.0], [-0.8, 0.6], [-0.8, 0.6], [0.8, -0.6]]

ROUTER = """
use std.chunking { cosine_chunk, smooth }

model m(ratio: float = 2.0, smoothed: bool = false) {
  stage out(x: [T, d: 2], inner: [T, one: 1]) {
    y, c, prob, confidence = cosine_chunk(x; ratio = ratio)
    if smoothed {
      smooth(pool(inner, c, how = "first"), c, prob)
    } else {
      where(inner == 0.0, prob, prob)
    }
  }
  objective mean(out) + sum(aux.ratio)
}
"""


def package(path: Path, text: str | Path, **settings: Any) -> ModuleType:
    """Return the package of a program."""
    source = text if isinstance(text, Path) else path / "m.tok"
    if isinstance(text, str):
        source.write_text(text)
    built = build(source, path / "out", {k: str(v) for k, v in settings.items()})
    assert built.directory is not None, [f.message() for f in built.report]
    return import_package(built.directory)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The one-stage example, small."""
    return package(tmp_path_factory.mktemp("one"), EXAMPLES / "hnet.tok", **ONE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The two-stage example, small."""
    return package(tmp_path_factory.mktemp("two"), EXAMPLES / "hnet_two_stage.tok", **TWO)


def drawn(made: ModuleType, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model with parameters that are large enough to matter."""
    model = made.Model().to(dtype).eval()
    for name, parameter in model.named_parameters():
        if "cosine_chunk" not in name and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def text(length: int, batch: int = 4) -> Tensor:
    """Return random bytes."""
    return torch.randint(0, 256, (batch, length))


def test_hand_example(tmp_path: Path) -> None:
    hidden = torch.tensor([HIDDEN], dtype=torch.float64)
    inner = torch.tensor([[[10.0], [20.0], [0.0], [30.0]]], dtype=torch.float64)
    for ratio, wanted in ((2.0, 1.225), (3.0, 1.734375)):
        model = package(tmp_path, ROUTER, ratio=ratio).Model().double()
        output = model(x=hidden, inner=inner)
        assert output.out[0, :, 0].tolist() == pytest.approx([1.0, 0.9, 0.0, 1.0], abs=1e-7)
        assert torch.stack(list(output.aux.ratio)).tolist() == pytest.approx([wanted], abs=1e-6)
    model = package(tmp_path, ROUTER, smoothed="true").Model().double()
    smoothed = model(x=hidden, inner=inner).out[0, :, 0].tolist()
    # 0.9999 * 10; then 0.9 * 20 + 0.1 * that, held; then 0.9999 * 30 + 0.0001 * that
    assert smoothed == pytest.approx([9.999, 18.9999, 18.9999, 29.99889999], abs=1e-6)


@pytest.mark.parametrize("stages", [1, 2])
def test_steps_equal_the_whole(one: ModuleType, two: ModuleType, stages: int) -> None:
    made = one if stages == 1 else two
    ids = text(21)
    model = drawn(made)
    assert worst_split(model, ids, model(ids).text) < 1e-10
    assert worst_padding(model, ids, "text") < 1e-10
    assert worst_verb(model, ids) < 1e-10
    single = drawn(made, torch.float32)
    full = single(ids).text
    # near 0.5 rounding decides whether a chunk opens: the choices of the whole pass are replayed
    record = made.Decisions()
    single(ids, decisions=record)
    for parts in ([1] * 21, [4, 9, 1, 7]):
        state, found, at = single.new_state(4), [], 0
        for count in parts:
            piece = ids[:, at : at + count]
            found.append(single.step(piece, state, decisions=record.replay()))
            at += count
        assert error(torch.cat(found, dim=1), full) < 1e-5


def test_a_batch_is_its_rows(two: ModuleType) -> None:
    model, ids = drawn(two), text(19)
    full = model(ids).text
    for row in range(4):
        assert error(model(ids[row : row + 1]).text[0], full[row]) < 1e-10
    order = torch.tensor([3, 1, 0, 2])
    assert error(model(ids[order]).text, full[order]) < 1e-12


def test_packed_documents(two: ModuleType) -> None:
    model, ids = drawn(two), text(19, 1)
    lengths = (6, 1, 12)
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    alone = torch.cat([model(part).text for part in ids.split(lengths, dim=1)], dim=1)
    assert error(model(ids, documents=documents).text, alone) < 1e-10


def test_every_byte_its_own_chunk(one: ModuleType) -> None:
    """With all boundaries open, the inner network runs on bytes."""
    model, ids = drawn(one), text(12, 2)
    record = one.Decisions()
    model(ids, decisions=record)
    (name,) = [n for n in record.names() if n.endswith(("opens", "chunks", ".c"))]
    seen: list[tuple[int, ...]] = []
    model.text.chunks.register_forward_hook(lambda _m, given, _o: seen.append(given[0].shape))
    for value, chunks in ((True, 12), (False, 1)):
        forced = one.Decisions.from_dict(
            {**record.to_dict(), name: torch.full_like(record[name], value)}
        )
        model(ids, decisions=forced.replay())
        assert seen.pop()[1] == chunks


def test_scaling_the_router_changes_nothing(one: ModuleType) -> None:
    model, ids = drawn(one), text(16)
    full = model(ids).text
    with torch.no_grad():
        model.text.cosine_chunk.q.weight *= 3.0
        model.text.cosine_chunk.k.weight *= 0.5
    assert error(model(ids).text, full) < 1e-12


def test_gradient_of_the_router(one: ModuleType) -> None:
    """The language-model loss alone reaches it, through the average and the confidence."""
    model, ids = drawn(one), text(24)
    terms = model.loss(ids).terms
    router = [model.text.cosine_chunk.q.weight, model.text.cosine_chunk.k.weight]
    found = torch.autograd.grad(terms["next_token"], router, retain_graph=True)
    assert all(float(g.abs().max()) > 1e-8 for g in found)


def test_cut_gradient_of_the_router(tmp_path: Path) -> None:
    """Without both paths nothing is left: the compiler says so."""
    source = (EXAMPLES / "hnet.tok").read_text("utf-8")
    source = re.sub(r"gate = confident\(\),\s+", "", source)
    source = source.replace("0.03 * sum(aux.ratio)", "0.0")
    source = source.replace("expand = smooth()", "expand = upsample()")
    (tmp_path / "cut.tok").write_text(source)
    report = build(tmp_path / "cut.tok", tmp_path / "out").report
    assert any(f.code == "TOK411" for f in report)


def test_equal_widths_have_no_padding(tmp_path: Path) -> None:
    made = package(tmp_path, EXAMPLES / "hnet.tok", **{**ONE, "d1": 32})
    assert not any("widened" in name for name, _ in made.Model().named_parameters())


def test_nothing_later_is_read(two: ModuleType) -> None:
    model, ids = drawn(two), text(20, 1)
    full = model(ids).text
    for at in (1, 5, 11, 19):
        changed = ids.clone()
        changed[:, at:] = (changed[:, at:] + 7) % 256
        assert error(model(changed).text[:, :at], full[:, :at]) < 1e-12
