"""Subwords of lexical units merged in an encoder of code: means, learned shares, the way back."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.decoding import error
from tokdsl.driver import build, check_text
from tokdsl.training.package import import_package

EXAMPLE = Path(__file__).parents[2] / "examples" / "token_merging_code.tok"
SMALL = {"vocab": 50, "d": 16, "layers": 2, "heads": 2, "hidden": 24, "length": 40,
         "merge_hidden": 6}  # fmt: skip

UNITS = """
use std.merging

model m(learned: bool = false) {
  stage out(h: [T, d: 2], unit: bool[T]) {
    c = chunks(opens = unit)
    y, _ = if learned { merging.unit_attention(h, c; hidden = 3) } else { merging.unit_mean(h, c) }
    aux units = y
    again, _ = merging.unit_mean(upsample(y, c), c)
    aux again = again
    upsample(y, c)
  }
}
"""

#: where the units of three rows begin; the rows have 6, 4 and 5 of them
STARTS = ((0, 1, 3, 4, 7, 8), (0, 1, 2, 8), (0, 2, 3, 5, 6))


def package(path: Path, text: str, **settings: object) -> ModuleType:
    """Return the package of a program."""
    (path / "m.tok").write_text(text)
    built = build(path / "m.tok", path / "out", {k: str(v).lower() for k, v in settings.items()})
    assert built.directory is not None, [f.message() for f in built.report]
    return import_package(built.directory)


def example(path: Path, **settings: object) -> Any:
    """Return the example, small, with parameters large enough to matter."""
    return drawn(package(path, EXAMPLE.read_text("utf-8"), **{**SMALL, **settings}))


def drawn(made: ModuleType) -> Any:
    """Return a model with parameters that are the same whatever the merge."""
    model = made.Model().double().eval()
    for name, parameter in sorted(model.named_parameters()):
        torch.manual_seed(len(name) + sum(map(ord, name)))
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The example with the mean."""
    return example(tmp_path_factory.mktemp("mean"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The example with the learned merge."""
    return example(tmp_path_factory.mktemp("learned"), merge="attention")


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both merges alone."""
    path = tmp_path_factory.mktemp("units")
    found = {}
    for name in ("false", "true"):
        (path / name).mkdir()
        found[name] = package(path / name, UNITS, learned=name).Model().double()
    return found


def score_of(model: nn.Module) -> Tensor:
    """Return the vector v of the learned merge."""
    return next(p for name, p in model.named_parameters() if name.endswith("score"))


def inputs() -> tuple[Tensor, Tensor]:
    """Return tokens of three rows and where their units begin."""
    unit = torch.zeros(3, 10, dtype=torch.bool)
    for row, starts in enumerate(STARTS):
        unit[row, list(starts)] = True
    return torch.randint(0, 50, (3, 10)), unit


def test_hand_example(units: dict[str, Any]) -> None:
    h = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [2.0, 4.0]]], dtype=torch.float64)
    unit = torch.tensor([[True, False, True]])
    for model in units.values():  # the learned merge begins as the mean
        output = model(h, unit)
        assert output.aux.units[0].tolist() == [[[2.0, 1.0], [2.0, 4.0]]]
        assert output.aux.again[0].tolist() == output.aux.units[0].tolist()
        assert output.out.tolist() == [[[2.0, 1.0], [2.0, 1.0], [2.0, 4.0]]]


def test_start_of_the_learned_merge(units: dict[str, Any]) -> None:
    """With v = 0 it is the mean, gradients to the pieces included: one over their number each."""
    _, unit = inputs()
    h = torch.randn(3, 10, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 6, 2, dtype=torch.float64)
    found = []
    for model in units.values():
        result = model(h, unit).aux.units[0]
        found.append((result, *torch.autograd.grad((result * weights).sum(), h)))
    for plain, other in zip(*found, strict=True):
        assert error(other, plain) < 1e-12
    sizes = torch.bincount(unit[0].cumsum(0) - 1)
    own = (unit[0].cumsum(0) - 1).tolist()
    for t, j in enumerate(own):
        assert error(found[0][1][0, t], weights[0, j] / sizes[j]) < 1e-12


def test_learned_shares(units: dict[str, Any]) -> None:
    """They sum to 1 per unit, ignore the order of its pieces and leave units of one piece alone."""
    model = units["true"]
    nn.init.normal_(score_of(model))
    _, unit = inputs()
    h = torch.randn(3, 10, 2, dtype=torch.float64)
    result = model(h, unit).out
    ones = model(torch.ones_like(h), unit).out
    assert error(ones, torch.ones_like(h)) < 1e-12
    order = torch.tensor([0, 2, 1, 3, 6, 5, 4, 7, 9, 8])  # inside the units of the first row
    assert error(model(h[:1, order], unit[:1]).out, result[:1]) < 1e-12
    alone = [t for t in range(9) if unit[0, t] and unit[0, t + 1]]
    assert alone and torch.equal(result[0, alone], h[0, alone])
    nn.init.zeros_(score_of(model))


@pytest.mark.parametrize("merge", ["mean", "attention"])
def test_units_of_one_token_change_nothing(tmp_path: Path, merge: str) -> None:
    source = EXAMPLE.read_text("utf-8")
    start, end = source.index("    units, _ = if"), source.index("    repeat layers - merge_after")
    without = (source[:start] + source[end:]).replace("over = C", "over = T")
    (tmp_path / "merged").mkdir()
    (tmp_path / "plain").mkdir()
    merged = example(tmp_path / "merged", merge=merge)
    plain = drawn(package(tmp_path / "plain", without, **SMALL))
    names = dict(plain.named_parameters())
    more = sum(p.numel() for p in merged.parameters()) - sum(p.numel() for p in names.values())
    assert more == {"mean": 0, "attention": 16 * 6 + 6}[merge]
    missing, _ = merged.load_state_dict(plain.state_dict(), strict=False)
    assert all("unit_attention" in name for name in missing)
    ids, _ = inputs()
    unit = torch.ones_like(ids, dtype=torch.bool)
    assert error(merged(ids, unit).code, plain(ids, unit).code) < 1e-12


def test_a_batch_is_its_rows(mean: Any, learned: Any) -> None:
    ids, unit = inputs()
    valid = torch.ones_like(unit)
    valid[0, 8:], valid[1, 5:] = False, False
    for model in (mean, learned):
        full = model(ids, unit, valid).code
        for row, length in enumerate((8, 5, 10)):
            alone = model(ids[row : row + 1, :length], unit[row : row + 1, :length]).code
            assert error(full[row], alone[0]) < 1e-10


def test_padding_on_the_left(mean: Any) -> None:
    ids, unit = inputs()
    valid = torch.ones_like(unit)
    valid[:, :3] = False
    assert error(mean(ids, unit, valid).code, mean(ids[:, 3:], unit[:, 3:]).code) < 1e-10


def test_later_merge_and_the_other_head(tmp_path: Path) -> None:
    model = example(tmp_path, merge_after=1, head="mean")
    seen: list[int] = []
    for layers in (model.code.layers, model.code.layers_2):
        assert len(layers) == 1
        layers[0].register_forward_hook(lambda _m, x, _y: seen.append(x[0].shape[1]))
    ids, unit = inputs()
    assert model(ids, unit).code.shape == (3, 2)
    assert seen == [10, 6]


def test_training_reaches_everything(learned: Any) -> None:
    ids, unit = inputs()
    nn.init.constant_(score_of(learned), 0.3)
    learned.zero_grad()
    learned.loss(ids, unit, torch.tensor([0, 1, 1])).total.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learned.parameters())


def test_fewer_flops_with_longer_units() -> None:
    """The saved work is a fact that depends on the tokens per unit."""
    wanted = "  require code.flops_per_token < 1\n\n  objective"
    source = EXAMPLE.read_text("utf-8").replace("  objective", wanted)
    texts = []
    for ratio in ("1.0", "1.3"):
        report = check_text(source.replace("subwords: float = 1.2", f"subwords: float = {ratio}"))
        texts += [f.message() for f in report if "flops_per_token" in f.message()]
    assert len(texts) == 2 and texts[0] != texts[1]
