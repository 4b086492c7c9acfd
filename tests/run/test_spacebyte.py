"""A larger model where words begin, against a loop over texts."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.decoding import error, worst_padding, worst_split, worst_verb
from tests.fixtures.layers import layer
from tokdsl.driver import build, check_file
from tokdsl.training.package import import_package

EXAMPLE = Path(__file__).parents[2] / "examples" / "spacebyte.tok"
HEAD, WINDOW = 8, 8
SIZES = {
    "d": 16, "inner": 32, "layers": 2, "first_layers": 1, "last_layers": 2, "head_dim": HEAD,
    "window": WINDOW, "length": 64, "inner_length": 64,
}  # fmt: skip
TEXT = b"\xffWhat? A 2nd (caf\xc3\xa9)  try: \xe4\xb8\xad\xe6\x96\x87."


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    folder = tmp_path_factory.mktemp("spacebyte")
    built = build(EXAMPLE, folder, {name: str(value) for name, value in SIZES.items()})
    assert not [finding.message() for finding in built.report]
    assert built.directory is not None
    return import_package(built.directory)


def drawn(package: ModuleType, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model with parameters large enough that every part counts."""
    torch.manual_seed(0)
    model = package.Model().to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def begins(text: bytes) -> list[int]:
    """Return where words begin: at byte 255, and at the first of a run of space-like bytes."""
    inside = set(b"0123456789") | set(range(65, 91)) | set(range(97, 123)) | set(range(128, 192))
    like = [byte not in inside for byte in text]
    return [t for t, b in enumerate(text) if b == 255 or (like[t] and not (t and like[t - 1]))]


def texts(count: int, length: int) -> list[bytes]:
    """Return texts with words of several lengths, the last one without any."""
    found = [(b"\xff" + TEXT[2 + i :] + TEXT)[:length] for i in range(count - 1)]
    return [*found, b"\xff" + b"a" * (length - 1)]


def rows(given: list[bytes]) -> Tensor:
    """Return texts as ids."""
    return torch.tensor([list(text) for text in given])


def published(model: Any, text: bytes) -> Tensor:
    """Return the logits of one text, of which words are gathered and put back by index."""
    stage, at = model.text, torch.tensor(begins(text))
    x = stage.embed.embedding(torch.tensor(list(text)))[None]
    x = x + stage.learned_positions.table[: len(text)]
    for block in stage.layers:
        x = layer(x, block.transformer_relu, HEAD, WINDOW)
    zeros = x.new_zeros(1, len(at), SIZES["inner"] - SIZES["d"])
    y = torch.cat((zeros, x[:, at]), dim=-1)
    y = y + stage.words.learned_positions.table[: len(at)]
    for block in stage.words.layers:
        y = layer(y, block.transformer_relu, HEAD)
    x = x.index_add(1, at, y[..., -SIZES["d"] :])
    for block in stage.layers_2:
        x = layer(x, block.transformer_relu, HEAD, WINDOW)
    x = nn.functional.layer_norm(x, (SIZES["d"],), stage.layernorm.weight)
    return x[0] @ stage.unembed.linear.weight.T


def test_the_example_has_no_findings() -> None:
    checked = check_file(EXAMPLE)
    assert not list(checked.report)
    assert checked.facts["spacebyte"].streaming


def test_words_begin_where_runs_of_space_like_bytes_do(package: ModuleType) -> None:
    """A first byte of a character of several bytes is space-like, the others are not."""
    assert begins(TEXT) == [0, 5, 8, 12, 17, 19, 25, 30, 33]
    decisions = package.Decisions()
    drawn(package)(rows([TEXT]), decisions=decisions)
    assert decisions["text.c"][0].nonzero().flatten().tolist() == begins(TEXT)


def test_logits_are_those_of_a_loop_over_texts(package: ModuleType) -> None:
    model, given = drawn(package), texts(4, 30)
    found = model(rows(given)).text
    for row, text in enumerate(given):
        assert error(found[row], published(model, text)) < 1e-6  # angles are in float32


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_steps_are_the_whole_pass(package: ModuleType, dtype: torch.dtype, limit: float) -> None:
    model, ids = drawn(package, dtype), rows(texts(4, 27))
    with torch.no_grad():
        assert worst_split(model, ids, model(ids).text) < limit
        assert worst_padding(model, ids, "text") < limit
        assert worst_verb(model, ids) < limit


def test_a_text_without_spaces_has_one_word(package: ModuleType) -> None:
    model = drawn(package)
    shapes: list[tuple[int, ...]] = []
    hook = model.text.words.register_forward_hook(lambda _m, _i, out: shapes.append(out.shape))
    model(rows([b"\xff" + b"abc" * 6]))
    hook.remove()
    assert shapes == [(1, 1, SIZES["d"])]


def test_the_larger_model_runs_only_where_words_begin(package: ModuleType) -> None:
    model, given = drawn(package), texts(3, 30)
    ids, calls = rows(given), []
    inner = model.text.words.layers[0]
    hook = inner.register_forward_hook(lambda _m, given, _o: calls.append(len(given[0])))
    state = model.new_state(3)
    for t in range(ids.shape[1]):
        model.step(ids[:, t : t + 1], state)
    hook.remove()
    assert sum(calls) == sum(len(begins(text)) for text in given)
    assert len(calls) == len({t for text in given for t in begins(text)})


def test_a_byte_changes_nothing_before_it(package: ModuleType) -> None:
    model, ids = drawn(package), rows([TEXT])
    whole = model(ids).text
    for t in range(1, ids.shape[1], 4):
        changed = ids.clone()
        changed[:, t:] = 32
        assert error(model(changed).text[:, :t], whole[:, :t]) < 1e-12
