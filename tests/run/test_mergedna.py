"""MergeDNA: merging of neighbours and of tokens anywhere, the ways back, and the three passes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.decoding import error
from tokdsl.driver import build, check_file, check_text
from tokdsl.training.package import import_package
from tokdsl.verification.subject import Subject

EXAMPLE = Path(__file__).parents[2] / "examples" / "mergedna.tok"
SMALL = {"d": 16, "heads": 2, "hidden": 24, "window": 8, "latent": 2, "latent_decoder": 1,
         "decoder": 1}  # fmt: skip

#: three layers of pure merging, and what is known of each
NEIGHBOURS = """
use std.merging { merge_neighbours }

reduction layer(x: [T, d], size: [T], keep: i64[]; window: int) -> ([C, d], chunks[T, C], [C]) {
  w = chunks(opens = position(T) % window == 0; longest = window)
  y, c, sizes = merge_neighbours(x, size, x, w, keep)
  [y, c, sizes]
}

model m(window: int = 8) {
  stage out(x: [T, d: 2], first: i64[], second: i64[], third: i64[]) {
    y1, c1, size1 = layer(x, 0.0 * cast_like(position(T), x) + 1.0, first; window = window)
    y2, c2, size2 = layer(y1, size1, second; window = window)
    y3, c3, size3 = layer(y2, size2, third; window = window)
    aux one = size1
    aux two = size2
    aux three = size3
    aux number = segment(c1)
    aux last = upsample(upsample(segment(c3), c2), c1)
    aux words = y3
    upsample(upsample(upsample(y3, c3), c2), c1)
  }
}
"""

ONE_MERGE = """
model m() {
  stage out(x: [T, d: 2], keep: i64[]) {
    y, c, _ = layer(x, 0.0 * cast_like(position(T), x) + 1.0, keep; window = 8)
    upsample(y, c)
  }

  require streaming
}
"""

ANYWHERE = """
use std.merging { drawn, from_groups, merge_anywhere, rare_first }

model m() {
  stage out(x: [T, d: 2], keep: i64[]) {
    y, c, size, group = merge_anywhere(x, 0.0 * cast_like(position(T), x) + 1.0, x, keep)
    aux size = size
    aux group = group
    aux words = y
    from_groups(y, group)
  }
  stage share(group: i64[T], some: i64[]) {
    p = rare_first(group)
    aux drawn = drawn(p, some)
    p
  }
}
"""

SIZED = """
use std.merging { sized_attention }

model m(inside: bool = false) {
  stage out(x: [T, d: 4], size: [T]) {
    angle = size * zeros(pair: 1)
    if inside {
      sized_attention(x, size, angle, chunks(opens = position(T) < 0); heads = 2)
    } else {
      sized_attention(x, size, angle; heads = 2)
    }
  }
}
"""


def package(path: Path, text: str | Path, **settings: object) -> ModuleType:
    """Return the package of a program."""
    source = text if isinstance(text, Path) else path / "m.tok"
    if isinstance(text, str):
        source.write_text(text)
    built = build(source, path / "out", {k: str(v).lower() for k, v in settings.items()})
    assert built.directory is not None, [f.message() for f in built.report]
    return import_package(built.directory)


@pytest.fixture(scope="module")
def dna(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The example, small."""
    return package(tmp_path_factory.mktemp("dna"), EXAMPLE, **SMALL)


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three layers of pure merging."""
    return package(tmp_path_factory.mktemp("neighbours"), NEIGHBOURS).Model().double()


@pytest.fixture(scope="module")
def anywhere(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One merge of tokens anywhere, and probabilities of words."""
    return package(tmp_path_factory.mktemp("anywhere"), ANYWHERE).Model().double().eval()


def drawn_model(made: ModuleType) -> Any:
    """Return a model with parameters that are large enough to matter."""
    model = made.Model().double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return model


def bases(length: int, batch: int = 3) -> Tensor:
    """Return random bases."""
    return torch.randint(0, 4, (batch, length))


def keep(*counts: int) -> Tensor:
    """Return how many tokens to keep in each row."""
    return torch.tensor(counts)


# --------------------------------------------------------------------- neighbours


def test_hand_example_of_sizes(neighbours: Any) -> None:
    """2 and 4 make 3; 3 of size 2 and 9 make 5, the mean of all three."""
    x = torch.tensor([[[2.0, 0.0], [4.0, 0.0], [9.0, 0.0]]], dtype=torch.float64)
    output = neighbours(x, keep(2), keep(2), keep(2))
    assert output.out[0, :, 0].tolist() == [3.0, 3.0, 9.0]
    assert output.aux.one[0].tolist() == [[2.0, 1.0]]
    output = neighbours(x, keep(2), keep(1), keep(1))
    assert output.out[0, :, 0].tolist() == pytest.approx([5.0, 5.0, 5.0], abs=1e-12)
    assert output.aux.two[0].tolist() == [[3.0]]


def test_partition_and_mass(neighbours: Any) -> None:
    x = torch.randn(4, 29, 2, dtype=torch.float64)
    output = neighbours(x, keep(20, 24, 29, 15), keep(16, 20, 29, 12), keep(12, 15, 29, 10))
    for row in range(4):
        number, sizes = output.aux.last[0][row], output.aux.three[0][row]
        counts = torch.bincount(number)
        assert counts.tolist() == sizes[: len(counts)].tolist()
        assert int(sizes.sum()) == 29
        # one run of bases each, in order
        assert bool((number.diff() >= 0).all()) and int(number.diff().max()) == 1
        words = output.aux.words[0][row, : len(counts)]
        total = (counts[:, None] * words).sum(0)
        assert error(total, x[row].sum(0)) < 1e-12
        for word in range(len(counts)):
            assert error(words[word], x[row, number == word].mean(0)) < 1e-12
        # back at the bases: the transpose of the map
        matrix = nn.functional.one_hot(number, len(counts)).double()
        assert error(output.out[row], matrix @ words) < 1e-12


def test_number_of_merges(neighbours: Any) -> None:
    """Windows take turns: the total is exact where windows are even."""
    for kept in (32, 31, 27, 22, 16):
        output = neighbours(torch.randn(1, 32, 2).double(), keep(kept), keep(32), keep(32))
        assert int(output.aux.number[0].max()) + 1 == kept


def test_windows_are_borders(neighbours: Any) -> None:
    x = torch.ones(1, 32, 2, dtype=torch.float64)
    number = neighbours(x, keep(16), keep(16), keep(16)).aux.number[0][0]
    assert number.tolist() == [t // 2 for t in range(32)]
    x = torch.randn(1, 40, 2, dtype=torch.float64)
    number = neighbours(x, keep(25), keep(40), keep(40)).aux.number[0][0]
    for border in range(8, 40, 8):
        assert number[border] != number[border - 1]


def test_most_similar_first(neighbours: Any) -> None:
    """Of equal pairs the first; only the second of a pair joins."""
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [1.0, 0.2], [3.0, 0.0], [1.0, 0.0]]])
    number = neighbours(x.double(), keep(5), keep(9), keep(9)).aux.number[0][0]
    assert number.tolist() == [0, 1, 2, 3, 4, 4]
    x = torch.ones(1, 6, 2, dtype=torch.float64)
    assert neighbours(x, keep(5), keep(9), keep(9)).aux.number[0][0].tolist() == [0, 0, 1, 2, 3, 4]


def test_nothing_or_all(neighbours: Any) -> None:
    x = torch.randn(2, 8, 2, dtype=torch.float64)
    same = neighbours(x, keep(8, 8), keep(8, 8), keep(8, 8)).out
    assert torch.equal(same, x)
    mean = neighbours(x, keep(4, 4), keep(2, 2), keep(1, 1)).out
    assert error(mean, x.mean(1, keepdim=True).expand_as(x)) < 1e-12


def test_a_row_is_itself(neighbours: Any) -> None:
    """With other rows, other rates and padding on either side."""
    x = torch.randn(3, 21, 2, dtype=torch.float64)
    valid = torch.ones(3, 21, dtype=torch.bool)
    valid[1, :6], valid[2, 17:] = False, False
    rates = [keep(16, 11, 17), keep(12, 9, 14), keep(10, 8, 12)]
    output = neighbours(x, *rates, valid).out
    for row, part in ((0, slice(0, 21)), (1, slice(6, 21)), (2, slice(0, 17))):
        alone = neighbours(x[row : row + 1, part], *(r[row : row + 1] for r in rates)).out
        assert error(output[row, part], alone[0]) < 1e-12


def test_gradient_of_the_choice(neighbours: Any) -> None:
    """Pairs that merged and pairs that did not: both learn from being merged or not."""
    x = torch.randn(1, 8, 2, dtype=torch.float64, requires_grad=True)
    output = neighbours(x, keep(6), keep(8), keep(8)).out
    (found,) = torch.autograd.grad(output[..., 0].square().sum(), x)
    assert bool((found[..., 1] != 0).all())  # through the cosine alone


# --------------------------------------------------------------------- anywhere


def test_merging_anywhere(anywhere: Any) -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.1]]], dtype=torch.float64)
    group = torch.zeros(1, 1, dtype=torch.long)
    output = anywhere(x, keep(3), group, keep(1))
    assert output.aux.group[0].tolist() == [[0, 1, 1, 2]]
    assert output.aux.size[0].tolist() == [[1.0, 2.0, 1.0]]
    assert error(output.aux.words[0][0], torch.tensor([[1, 0], [0, 2], [1, 0.1]])) < 1e-7
    output = anywhere(x, keep(2), group, keep(1))
    assert output.aux.group[0].tolist() == [[0, 1, 1, 0]]
    assert error(output.out[0, 3], torch.tensor([1.0, 0.05])) < 1e-7


def test_groups_conserve_mass(anywhere: Any) -> None:
    x, group = torch.randn(3, 19, 2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.long)
    valid = torch.ones(3, 19, dtype=torch.bool)
    valid[1, 14:], valid[2, :4] = False, False
    output = anywhere(x, keep(12, 14, 10), group, keep(1), valid)
    for row, part in ((0, slice(0, 19)), (1, slice(0, 14)), (2, slice(4, 19))):
        number = output.aux.group[0][row, part]
        count = int(number.max()) + 1
        assert count == (12, 14, 10)[row]
        matrix = nn.functional.one_hot(number, count).double()
        words = matrix.T @ x[row, part] / matrix.sum(0)[:, None]
        assert error(output.aux.words[0][row, :count], words) < 1e-12
        assert output.aux.size[0][row, :count].tolist() == matrix.sum(0).tolist()
        assert error(output.out[row, part], matrix @ words) < 1e-12


def test_words_of_small_groups_are_drawn_first(anywhere: Any) -> None:
    """Groups of 1, 1, 2 and 4 words."""
    x, group = torch.zeros(1, 1, 2).double(), torch.tensor([[0, 1, 2, 2, 3, 3, 3, 3]])
    output = anywhere(x, keep(1), group, keep(3))
    wanted = [0.3636, 0.3636, 0.0909, 0.0909, *[0.0227] * 4]
    assert output.share[0].tolist() == pytest.approx(wanted, abs=1e-4)
    assert float(output.share.sum()) == pytest.approx(1.0)
    by_group = torch.zeros(4).double().scatter_add(0, group[0], output.share[0].double())
    assert by_group.tolist() == pytest.approx([0.364, 0.364, 0.182, 0.091], abs=1e-3)
    assert output.aux.drawn[0][0].tolist() == [True, True, True, *[False] * 5]


def test_draws_follow_the_probabilities(anywhere: Any) -> None:
    x, group = torch.zeros(1, 1, 2).double(), torch.tensor([[0, 1, 2, 2, 3, 3, 3, 3]])
    many = group.expand(4000, -1)
    try:
        anywhere.train()
        output = anywhere(x.expand(4000, 1, 2), keep(*[1] * 4000), many, keep(*[1] * 4000))
    finally:
        anywhere.eval()
    assert bool((output.aux.drawn[0].sum(1) == 1).all())
    assert error(output.aux.drawn[0].double().mean(0), output.share[0].double()) < 0.1


# --------------------------------------------------------------------- attention


@pytest.mark.parametrize("inside", [False, True])
def test_a_token_of_size_n_counts_n_times(tmp_path: Path, inside: bool) -> None:
    model = package(tmp_path, SIZED, inside=inside).Model().double()
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    size = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64)
    many = x[:, [0, 0, 0, 1, 2, 2]]
    assert (
        error(model(x, size).out, model(many, torch.ones(1, 6).double()).out[:, [0, 3, 4]]) < 1e-12
    )


# --------------------------------------------------------------------- the model


def encoded(model: Any, ids: Tensor, **more: Any) -> list[tuple[Any, Any]]:
    """Return what each use of the local encoder takes and gives."""
    seen: list[tuple[Any, Any]] = []
    handle = model.bases.encode.register_forward_hook(lambda _m, x, y: seen.append((x, y)))
    model(ids, **more)
    handle.remove()
    return seen


@pytest.mark.parametrize("length", [64, 80, 51])
def test_half_of_the_bases(dna: ModuleType, length: int) -> None:
    model = drawn_model(dna)
    _, (_, size, *_) = encoded(model, bases(length))[0]
    assert bool((size.sum(1) == length).all())
    assert int((size > 0).sum(1).float().mean().sub(length / 2).abs().ceil()) <= 2


def test_share_is_drawn_in_training(dna: ModuleType) -> None:
    model, ids = drawn_model(dna).train(), bases(96, 1)
    counts = {int((encoded(model, ids)[0][1][1] > 0).sum()) for _ in range(6)}
    assert len(counts) > 2
    assert all(0.38 * 96 <= count <= 0.62 * 96 for count in counts)


def test_a_batch_is_its_rows(dna: ModuleType) -> None:
    model, ids = drawn_model(dna), bases(41)
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[1, :9], valid[2, 30:] = False, False
    full = model(ids, valid).bases
    for row, part in ((0, slice(0, 41)), (1, slice(9, 41)), (2, slice(0, 30))):
        assert error(full[row, part], model(ids[row : row + 1, part]).bases[0]) < 1e-10


def test_gradients_of_the_passes(dna: ModuleType) -> None:
    model, ids = drawn_model(dna), bases(48)
    terms = model.loss(ids).terms
    assert set(terms) == {"masked_token", "tight", "filled"}
    tokenizer = [model.bases.table, *model.bases.encode.parameters()]
    grouping = [p for n, p in model.bases.encode.named_parameters() if "grouping" in n]
    assert len(grouping) == 4

    def gradients(term: str, of: list[Tensor]) -> list[Tensor | None]:
        return list(torch.autograd.grad(terms[term], of, retain_graph=True, allow_unused=True))

    assert all(g is None or not g.any() for g in gradients("tight", tokenizer))
    rest = [*model.bases.first.parameters(), *model.bases.latent_merge.parameters()]
    assert all(g is not None and g.abs().max() > 0 for g in gradients("tight", rest))
    for term in ("masked_token", "filled"):
        assert all(g is not None and g.abs().max() > 0 for g in gradients(term, grouping))


def test_whole_words_are_masked(dna: ModuleType) -> None:
    """As many words as stated, and the merge is done anew for what is left to see."""
    model, ids = drawn_model(dna), bases(48, 2)
    (_, first), ((blinded, *_), again) = encoded(model, ids)
    number = first[6].number
    for cut in reversed(first[3:6]):
        number = number.gather(1, cut.number)
    hidden = (blinded == model.bases.table[5]).all(-1)
    for row in range(2):
        words = number[row].max() + 1
        count = torch.zeros(int(words)).scatter_add(0, number[row], hidden[row].float())
        whole = torch.bincount(number[row]).float()
        assert bool(((count == 0) | (count == whole)).all())
        assert int((count > 0).sum()) == round(0.5 * int(words))
    assert not torch.equal(first[3].number, again[3].number)


def test_inference_alone(tmp_path: Path) -> None:
    made = package(tmp_path, EXAMPLE, **SMALL, pretraining=False)
    model, ids = drawn_model(made), bases(40)
    assert len(encoded(model, ids)) == 1
    assert set(model.loss(ids).terms) == {"masked_token"}


def test_published_size() -> None:
    """380 million parameters, and no decoder."""
    facts = check_file(EXAMPLE).facts["mergedna"]
    assert facts.numbers["params"] == pytest.approx(380e6, rel=0.002)
    assert facts.causal == {"bases": False}


def test_no_decoder() -> None:
    """What reads ahead is named down to the step of the merge."""
    source = NEIGHBOURS[: NEIGHBOURS.index("model")] + ONE_MERGE
    notes = [note for f in check_text(source) if f.code == "TOK401" for note in f.notes]
    assert any("`members` reads the whole chunk" in note for note in notes)
    assert any("in `merge_neighbours`" in note for note in notes)


def test_its_alphabet_has_no_text_to_verify_with(tmp_path: Path) -> None:
    settings = {name: str(value) for name, value in SMALL.items()}
    checked = check_file(EXAMPLE, settings)
    (program,) = checked.programs
    built = build(EXAMPLE, tmp_path, settings)
    assert built.directory is not None
    subject = Subject(import_package(built.directory), program, checked.facts[program.name])
    assert subject.text is None
    assert subject.inputs(1, 8)
