"""Streams on ragged clocks: the three protocols, nested chunks, padding, documents, steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.decoding import error, worst_padding, worst_split, worst_verb
from tokdsl.driver import build, check_text
from tokdsl.training.package import import_package

REDUCTIONS = """
reduction first_tokens(x: [T, d]; longest: int = 0) -> ([C, d], chunks[T, C]) {
  c = chunks(opens = mean(x; over = d) > 0.0, ratio = 2.0, longest = longest)
  [pool(x, c, how = "first"), c]
}
reduction observed(x: [T, d]; how: str = "mean", longest: int = 0) -> ([C, d], chunks[T, C]) {
  c = chunks(opens = mean(x; over = d) > 0.0, ratio = 2.0, longest = longest)
  [pool(x, c, how = how), c]
}
reduction predicted(x: [T, d]; how: str = "mean", longest: int = 0) -> ([C, d], chunks[T, C]) {
  c = chunks(closes = mean(x; over = d) > 0.0, ratio = 2.0, longest = longest)
  [pool(x, c, how = how), c]
}
# One learned query per head attends to the tokens of a chunk.
reduction attended(x: [T, d]; heads: int = 2) -> ([C, d], chunks[T, C]) {
  c = chunks(closes = mean(x; over = d) > 0.0, ratio = 2.0)
  q = weight(heads, head_dim: d // heads; init = normal(std = 1.0))
  k = members(linear(x; heads, head_dim: d // heads), c)
  v = members(linear(x; heads, head_dim: d // heads), c)
  w = softmax(dot(k, q; over = head_dim); over = place, where = inside(c))
  [linear(dot(v, w; over = place); d, over = [heads, head_dim]), c]
}
"""

#: reduction, expansion, and how many chunks each row has handed on after `IDS`, if that is fixed
PROTOCOLS = {
    "first": ("first_tokens()", "upsample()"),
    "observed": ("observed()", "upsample(lag = 1)"),
    "observed maximum": ('observed(how = "max")', "upsample(lag = 1)"),
    "observed last": ('observed(how = "last")', "upsample(lag = 2)"),
    "predicted": ("predicted()", 'upsample(read = "closed")'),
    "predicted sum": ('predicted(how = "sum")', 'upsample(read = "closed", lag = 1)'),
    "predicted first": ('predicted(how = "first")', "upsample(lag = 1)"),
    "attended": ("attended()", 'upsample(read = "closed")'),
    "longest first": ("first_tokens(longest = 2)", "upsample()"),
    "longest observed": ("observed(longest = 3)", "upsample(lag = 1)"),
    "longest predicted": ("predicted(longest = 2)", 'upsample(read = "closed")'),
}

INNER = """
      residual { conv1d(kernel = 3) }
      repeat 2 { transformer(heads = 2, hidden = 24, rotary = rope) }
      it + ema(it; decay = 0.5)
"""


def spec(reduce: str, expand: str, inner: str = INNER) -> str:
    """Return a model with a stage of chunks between two layers of tokens."""
    return f"""
use std.rotary {{ rope }}
use std.masks {{ sliding }}
{REDUCTIONS}
model m(d: int = 16) {{
  stage text(ids: tokens[32]) {{
    embed(d)
    transformer(heads = 2, hidden = 24, rotary = rope)
    stage words(reduce = {reduce}, expand = {expand}, skip = linear(; d)) {{
      {inner}
    }}
    transformer(heads = 2, hidden = 24, mask = sliding(window = 4))
    unembed(32)
  }}
  objective next_token(text, ids)
}}
"""


def emit(path: Path, text: str) -> ModuleType:
    """Return the package of a program; it must be streaming."""
    source = path / "m.tok"
    source.write_text(text)
    built = build(source, path / "out")
    assert built.directory is not None, [f.message() for f in built.report]
    return import_package(path / "out" / "m")


def drawn(package: ModuleType, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model with parameters large enough that every part counts."""
    model = package.Model().to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def rows(count: int = 4, length: int = 23) -> Tensor:
    """Return token ids."""
    return torch.randint(0, 32, (count, length))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModuleType]:
    """Return the package of a protocol, built once."""

    @cache
    def get(name: str) -> ModuleType:
        return emit(tmp_path_factory.mktemp("protocol"), spec(*PROTOCOLS[name]))

    return get


Packages = Callable[[str], ModuleType]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_steps_of_a_protocol(packages: Packages, name: str) -> None:
    model = drawn(packages(name))
    ids = rows()
    full = model(ids).text
    assert worst_split(model, ids, full) < 1e-10
    assert worst_padding(model, ids, "text") < 1e-10
    assert worst_verb(model, ids) < 1e-10


@pytest.mark.parametrize("name", PROTOCOLS)
def test_nothing_later_is_read(packages: Packages, name: str) -> None:
    model = drawn(packages(name))
    ids = rows(1)
    full = model(ids).text
    for at in range(1, ids.shape[1], 3):
        changed = ids.clone()
        changed[:, at:] = (changed[:, at:] + 5) % 32
        assert error(model(changed).text[:, :at], full[:, :at]) < 1e-12


def test_two_levels(tmp_path: Path) -> None:
    inner = """
      stage phrases(reduce = observed(), expand = upsample(lag = 1), skip = linear(; d: 16)) {
        residual { conv1d(kernel = 3) }
        transformer(heads = 2, hidden = 24, mask = sliding(window = 2))
      }
      transformer(heads = 2, hidden = 24)
    """
    for first in ("first", "predicted"):
        folder = tmp_path / first
        folder.mkdir()
        model = drawn(emit(folder, spec(*PROTOCOLS[first], inner)))
        ids = rows()
        full = model(ids).text
        assert worst_split(model, ids, full) < 1e-10
        assert worst_padding(model, ids, "text") < 1e-10
        assert worst_verb(model, ids) < 1e-10


@pytest.mark.parametrize("name", PROTOCOLS)
def test_packed_documents(packages: Packages, name: str) -> None:
    lengths = (5, 1, 7, 10)
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    model = drawn(packages(name))
    ids = rows(1)
    packed = model(ids, documents=documents).text
    alone = torch.cat([model(part).text for part in ids.split(lengths, dim=1)], dim=1)
    assert error(packed, alone) < 1e-10
    for cut in (3, 5, 6, 13):
        state = model.new_state(1)
        parts = [model.prefill(ids[:, :cut], state, documents=documents[:, :cut])]
        parts.append(model.prefill(ids[:, cut:], state, documents=documents[:, cut:]))
        assert error(torch.cat(parts, dim=1), alone) < 1e-10, cut


def test_inner_stage_runs_only_when_a_chunk_is_complete(packages: Packages) -> None:
    model = drawn(packages("first"))
    seen: list[int] = []
    layer = model.text.words.layers[0]
    layer.register_forward_hook(lambda _m, given, _o: seen.append(given[0].shape[0]))
    for count in (4, 1):
        seen.clear()
        ids = rows(count)
        state = model.new_state(count)
        for t in range(ids.shape[1]):
            model.step(ids[:, t : t + 1], state)
        opened = int(state.text.first_tokens.c.counts(ids).opened.sum())
        assert sum(seen) == opened < ids.numel()
    assert len(seen) < ids.shape[1]


def test_the_unshifted_form_is_rejected_with_its_path() -> None:
    report = check_text(spec("observed()", "upsample()"))
    found = [f for f in report if f.code == "TOK401"]
    assert len(found) == 1
    notes = "\n".join(found[0].notes)
    assert "`upsample` reads the chunk of the token" in notes
    assert "`pool` reads the whole chunk" in notes
    assert "lag = 1" in (found[0].help or "")
