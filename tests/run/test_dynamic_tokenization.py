"""Tokens merged while a model runs: vectors that a network makes, and a head over candidates."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.decoding import error, worst_padding, worst_split, worst_verb
from tokdsl.driver import build, check_file
from tokdsl.training.package import import_package

EXAMPLES = Path(__file__).parents[2] / "examples"
ENCODER = {"vocab": 50, "d": 16, "layers": 1, "heads": 2, "hidden": 24, "length": 40, "surface": 3,
           "make_layers": 1, "make_hidden": 12}  # fmt: skip
DECODER = {"vocab": 60, "d": 16, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 24, "window": 6}

HEAD = """
use std.merging { candidate_logits }

model m(candidates: int = 2) {
  stage out(h: [T, d: 2]) {
    table = weight(vocab: 4, d: 2; init = normal(std = 1.0))
    candidate_logits(h, table; candidates = candidates)
  }
}
"""


def package(path: Path, source: Path, **settings: object) -> ModuleType:
    """Return the package of a program."""
    built = build(source, path / "out", {k: str(v) for k, v in settings.items()})
    assert built.directory is not None, [f.message() for f in built.report]
    return import_package(built.directory)


def drawn(made: ModuleType) -> Any:
    """Return a model with parameters that are large enough to matter."""
    model = made.Model().double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The encoder, small."""
    path = tmp_path_factory.mktemp("encoder")
    return drawn(package(path, EXAMPLES / "dynamic_tokenization.tok", **ENCODER))


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The decoder with 20 candidates, and with all classes as candidates."""
    found = []
    for count in (20, 60):
        path = tmp_path_factory.mktemp(f"decoder{count}")
        made = package(path, EXAMPLES / "dynamic_generation.tok", **DECODER, candidates=count)
        found.append(drawn(made))
    found[1].load_state_dict(found[0].state_dict())
    return found[0], found[1]


def units_of(model: Any, ids: Tensor, unit: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the vectors of merged tokens."""
    seen: list[Tensor] = []
    (made,) = [m for n, m in model.text.named_children() if "hypernet" in n]
    handle = made.register_forward_hook(lambda _m, _x, y: seen.append(y[0]))
    model(ids, unit, valid)
    handle.remove()
    return seen[0]


def flags(*starts: int, length: int = 10) -> Tensor:
    """Return one row that is true where tokens begin."""
    unit = torch.zeros(1, length, dtype=torch.bool)
    unit[0, list(starts)] = True
    return unit


# --------------------------------------------------------------------- the encoder


def test_tokens_of_one_piece_keep_their_vectors(encoder: Any) -> None:
    ids, unit = torch.randint(0, 50, (1, 10)), flags(0, 1, 3, 4, 8, 9)
    table = encoder.text.vectors.weight
    units = units_of(encoder, ids, unit)[0]
    assert torch.equal(units[[0, 2, 4, 5]], table[ids[0, [0, 3, 8, 9]]])
    assert error(units[1], table[ids[0, 1]]) > 0.1
    # without merging all tokens do: the model is the plain encoder
    every = units_of(encoder, ids, torch.ones_like(unit))
    assert torch.equal(every, table[ids])


def test_vectors_are_made_of_the_first_pieces(encoder: Any) -> None:
    """The fourth piece is cut off; order counts; a place and the neighbours do not."""
    ids, unit = torch.randint(0, 50, (1, 10)), flags(0, 1, 5, 8)
    units = units_of(encoder, ids, unit)
    for place, same in ((4, True), (3, False), (1, False)):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 1) % 50
        assert (error(units_of(encoder, changed, unit)[0, 1], units[0, 1]) < 1e-12) == same
    moved, begins = ids.roll(2, 1), unit.roll(2, 1)
    begins[0, :2] = True
    assert error(units_of(encoder, moved, begins)[0, 3], units[0, 1]) < 1e-12
    assert error(units_of(encoder, ids[:, 1:4], flags(0, length=3))[0, 0], units[0, 1]) < 1e-12


def test_a_batch_is_its_rows(encoder: Any) -> None:
    """The tokens depend on the batch; given these the model does not."""
    ids = torch.randint(0, 50, (3, 10))
    unit = torch.cat((flags(0, 1, 3, 4, 8), flags(0, 1, 5), flags(*range(10))))
    valid = torch.ones_like(unit)
    valid[0, 7:], valid[1, :2] = False, False
    full = encoder(ids, unit, valid).text
    for row, part in ((0, slice(0, 7)), (1, slice(2, 10)), (2, slice(0, 10))):
        alone = encoder(ids[row : row + 1, part], unit[row : row + 1, part]).text
        assert error(full[row], alone[0]) < 1e-10
    facts = check_file(EXAMPLES / "dynamic_tokenization.tok").facts["dynamic_tokenization"]
    assert facts.tables["depends_on_batch"] == []


def test_positions_count_merged_tokens(encoder: Any) -> None:
    """A long token takes one position, whatever its pieces."""
    ids = torch.randint(0, 50, (1, 10))
    unit = flags(0, 1, 4, 5, 6, 7, 8, 9)
    longer = torch.cat((ids[:, :4], ids[:, 3:]), dim=1)  # one more piece, behind the third
    begins = flags(0, 1, 5, 6, 7, 8, 9, 10, length=11)
    assert error(encoder(longer, begins).text, encoder(ids, unit).text) < 1e-12


def test_mean_of_pieces(tmp_path: Path) -> None:
    made = package(tmp_path, EXAMPLES / "dynamic_tokenization.tok", **ENCODER, make="mean")
    model, ids, unit = drawn(made), torch.randint(0, 50, (1, 10)), flags(0, 1, 5)
    seen: list[Tensor] = []
    model.text.layernorm.register_forward_hook(lambda _m, x, _y: seen.append(x[0]))
    model(ids, unit)
    table, place = model.text.vectors.weight, model.text.table
    wanted = table[ids[0, 1:5]].mean(0) + model.text.kind + place[3]
    assert error(seen[0][0, 1], wanted) < 1e-12


def test_training_reaches_everything(encoder: Any) -> None:
    encoder.zero_grad()
    ids, unit = torch.randint(0, 50, (1, 10)), flags(0, 1, 5)
    encoder.loss(ids, unit, torch.tensor([1])).total.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())


# --------------------------------------------------------------------- the decoder


def test_all_candidates_are_the_exact_head(decoders: tuple[Any, Any]) -> None:
    some, every = decoders
    ids = torch.randint(0, 60, (3, 12))
    exact = every(ids).text
    states: list[Tensor] = []
    handle = every.text.rmsnorm.register_forward_hook(lambda _m, _x, y: states.append(y))
    every(ids)
    handle.remove()
    assert error(exact, states[0] @ every.text.output.T) < 1e-12
    found = some(ids).text
    chosen = found.isfinite()
    assert bool((chosen.sum(-1) == 20).all())
    assert error(found[chosen], exact[chosen]) < 1e-12
    # renormalised over the candidates
    kept = exact.masked_fill(~chosen, float("-inf"))
    assert error(found.softmax(-1), kept.softmax(-1)) < 1e-12
    assert error(found.softmax(-1), exact.softmax(-1)) > 1e-3


def test_directions_are_not_products(tmp_path: Path) -> None:
    """A long vector that points elsewhere has the largest logit and is missed."""
    (tmp_path / "m.tok").write_text(HEAD)
    model = package(tmp_path, tmp_path / "m.tok").Model().double()
    with torch.no_grad():
        model.out.table.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.2], [9.0, 9.0], [0.0, 1.0]]))
    logits = model(torch.tensor([[[2.0, 0.0]]], dtype=torch.float64)).out[0, 0]
    assert logits.tolist() == [2.0, 2.0, float("-inf"), float("-inf")]
    longer = model(torch.tensor([[[20.0, 0.0]]], dtype=torch.float64)).out[0, 0]
    assert longer.isfinite().tolist() == logits.isfinite().tolist()


def test_recall_of_the_best(decoders: tuple[Any, Any]) -> None:
    """With vectors of one length the best class is always among the candidates."""
    some, every = decoders
    ids = torch.randint(0, 60, (3, 12))
    with torch.no_grad():
        for model in decoders:
            model.text.output /= model.text.output.norm(dim=1, keepdim=True)
    assert torch.equal(some(ids).text.argmax(-1), every(ids).text.argmax(-1))


def test_steps_equal_the_whole(decoders: tuple[Any, Any]) -> None:
    model, ids = decoders[1], torch.randint(0, 60, (4, 18))
    assert worst_split(model, ids, model(ids).text) < 1e-10
    assert worst_padding(model, ids, "text") < 1e-10
    assert worst_verb(model, ids) < 1e-10
    some = decoders[0]
    state = some.new_state(4)
    steps = [some.step(ids[:, t : t + 1], state) for t in range(18)]
    whole = some(ids).text
    assert torch.equal(torch.cat(steps, 1).isfinite(), whole.isfinite())
