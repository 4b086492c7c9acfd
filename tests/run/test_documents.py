"""Packed documents: a row of several gives what each of them gives alone, and nothing crosses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.emitted import emitted
from tokdsl.diagnostics import Severity
from tokdsl.driver import build
from tokdsl.training.package import import_package

#: lengths of the documents of the two rows
ROWS = ((5, 1, 7, 4), (2, 9, 3, 3))
LENGTH = sum(ROWS[0])
VOCAB = 32
EXAMPLE_FILES = Path(__file__).parents[2] / "examples"

BODIES = {
    "attention": "residual { gqa(heads = 4, kv_heads = 2) }",
    "window": "residual { gqa(heads = 2, mask = sliding(window = 3)) }",
    "first tokens": "residual { gqa(heads = 2, mask = |i, j| j <= i and (j < 2 or i - j < 3)) }",
    "score": "residual { gqa(heads = 2, score = |s, i, j| tanh(s) - 0.1 * f32(i - j)) }",
    "short convolution": "residual { conv1d(it; kernel = 3) }",
    "wide convolution": "residual { conv1d(it; d: 16, kernel = 4, dilation = 2) }",
    "shift": "it + shift(it; 2)",
    "filled shift": "it + shift(it; 1, fill = 0.5)",
    "average": "it + ema(it; decay = 0.8)",
    "recurrence": "it + linear_recurrence(sigmoid(linear(it; d: 16)), it)",
    "sum": "it + 0.1 * cumsum(it; over = T)",
    "maximum": "it + cumulative_max(it; over = T)",
    "product": "it + cumulative_product(1 + 0.1 * tanh(it); over = T)",
    "two layers": "residual { gqa(heads = 2) }\n it + ema(conv1d(it; kernel = 4); decay = 0.5)",
    "chunks": """c = chunks(opens = ids < 10)
    residual {
      y = pool(it, c; how = "mean")
      z = y + gqa(y; heads = 2)
      upsample(z + ema(z; decay = 0.5), c; lag = 1)
    }""",
    "learned positions": "it + lookup(weight(64, d), position(T))",
}
#: what an edited document may change: how many chunks there are decides how products are rounded
ROUNDING = {"chunks": 1e-10}
#: what reads later tokens too
CENTRED = {
    "both sides": "residual { gqa(heads = 2, mask = |i, j| true) }",
    "centred convolution": "it + conv1d(it; kernel = 4, causal = false)",
    "next token": "it + shift(it; -2)",
}

#: settings that make a published model small
EXAMPLES = {
    "llama": "vocab=32 d=16 layers=2 heads=4 kv_heads=2 hidden=24",
    "mixtral": "vocab=32 d=16 layers=2 heads=4 kv_heads=2 hidden=24 experts=4",
    "gemma3_text": "vocab=32 d=16 layers=3 heads=2 head_dim=8 hidden=24 window=3 period=2",
    "deepseek_v3": "vocab=32 d=16 layers=2 dense_layers=1 heads=2 query_rank=8 latent=8 nope_dim=8"
    " rope_dim=4 hidden=24 expert_hidden=8 experts=4 top=2 groups=2 keep=1",
}


def spec(body: str, ahead: bool = True, more: str = "") -> str:
    """Return a small model around a body."""
    objective = "next_token(text, ids)" if ahead else "cross_entropy(text, ids)"
    return f"""
use std.attention {{ gqa }}
use std.masks {{ sliding }}
use std.losses {{ next_token }}

model m(d: int = 16) {{
  stage text(ids: tokens[{VOCAB}]) {{
    embed(d)
    {body}
    unembed({VOCAB})
  }}
  objective {objective}
  require isolated{more}
}}
"""


@dataclass
class Rows:
    """Rows of documents, the numbers that say so, and which entries are tokens."""

    ids: Tensor
    documents: Tensor
    valid: Tensor | None = None

    def each(self) -> Iterator[tuple[int, slice]]:
        """Return the row and the tokens of every document."""
        for row, lengths in enumerate(ROWS):
            start = 0
            for length in lengths:
                inside = torch.arange(start, start + length)
                if self.valid is not None:
                    inside = inside[self.valid[row, inside]]
                if len(inside):
                    yield row, slice(int(inside[0]), int(inside[-1]) + 1)
                start += length

    def edited(self, row: int, inside: slice) -> Tensor:
        """Return the ids with those of one document replaced."""
        ids = self.ids.clone()
        ids[row, inside] = (ids[row, inside] + 7) % VOCAB
        return ids

    def given(self, start: int = 0, stop: int = LENGTH) -> dict[str, Tensor]:
        """Return what a model is told of some of the tokens."""
        found = {"documents": self.documents[:, start:stop]}
        return found if self.valid is None else found | {"valid": self.valid[:, start:stop]}


def packed() -> Rows:
    """Return two rows; numbers rise by more than one in the first, two take turns in the second."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCAB, (2, LENGTH), generator=generator)
    numbers = [(3, 4, 9, 20), (0, 1, 0, 1)]
    rows = [
        torch.tensor(names).repeat_interleave(torch.tensor(lengths))
        for names, lengths in zip(numbers, ROWS, strict=True)
    ]
    return Rows(ids, torch.stack(rows))


def padded(number: int) -> Rows:
    """Return rows with padding on the left, between documents and at the end, under a number."""
    rows = packed()
    valid = torch.ones_like(rows.ids, dtype=torch.bool)
    valid[0, :3] = False  # of the five tokens of the first document
    valid[1, 2:4] = False  # of the nine of the second one
    valid[1, -2:] = False
    return replace(rows, valid=valid, documents=torch.where(valid, rows.documents, number))


def model(folder: Path, text: str, dtype: torch.dtype = torch.float64) -> Any:
    """Return the model of a spec that has no errors."""
    made = emitted(text, folder)
    assert not [d.message() for d in made.report if d.severity is Severity.ERROR]
    assert made.facts.isolated
    return made.model.to(dtype)


def example(folder: Path, name: str, dtype: torch.dtype) -> Any:
    """Return a small model of an example, with weights that are large enough to matter."""
    settings = dict(item.split("=") for item in EXAMPLES[name].split())
    built = build(EXAMPLE_FILES / f"{name}.tok", folder, settings)
    assert built.directory is not None, [d.message() for d in built.report]
    torch.manual_seed(0)
    made = import_package(built.directory).Model().eval()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.to(dtype)


def close(found: Tensor, wanted: Tensor, limit: float = 0.0) -> None:
    """Compare within a limit, or the rounding of the dtype."""
    limit = limit or (1e-10 if found.dtype == torch.float64 else 1e-5)
    torch.testing.assert_close(found, wanted, rtol=limit, atol=limit)


def gradients(made: Any, total: Tensor) -> list[Tensor]:
    """Return the gradients of all parameters, relative to the largest."""
    parameters = list(made.parameters())
    found = torch.autograd.grad(total, parameters, materialize_grads=True)
    return [g / max(1.0, float(g.abs().max())) for g in found]


def check_packed(made: Any, rows: Rows, limit: float = 0.0) -> None:
    """Results, the loss and its gradients are those of the documents alone."""
    found = made(rows.ids, **rows.given()).text
    total, weight = torch.zeros((), dtype=found.dtype), 0
    for row, inside in rows.each():
        alone = rows.ids[row : row + 1, inside]
        close(found[row : row + 1, inside], made(alone).text, limit)
        if alone.shape[1] > 1:
            total = total + made.loss(alone).terms["next_token"] * (alone.shape[1] - 1)
            weight += alone.shape[1] - 1
    whole = made.loss(rows.ids, **rows.given()).terms["next_token"]
    close(whole, total / weight, limit)
    pairs = zip(gradients(made, whole), gradients(made, total / weight), strict=True)
    for mine, wanted in pairs:
        close(mine, wanted, limit)


@torch.no_grad()
def check_borders(made: Any, rows: Rows, limit: float = 0.0) -> None:
    """Editing one document changes nothing at all in the others, and something in itself."""
    before = made(rows.ids, **rows.given()).text
    for row, inside in rows.each():
        after = made(rows.edited(row, inside), **rows.given()).text
        changed = ((after - before).abs() > limit).any(-1)
        if rows.valid is not None:
            changed &= rows.valid
        assert changed[row, inside].any()
        changed[row, inside] = False
        assert not changed.any()


@torch.no_grad()
def check_pieces(made: Any, rows: Rows, limit: float = 0.0) -> None:
    """Pieces of a prompt that cut documents, steps that go on, and a new document after them."""
    whole = made(rows.ids, **rows.given()).text
    tokens = slice(None) if rows.valid is None else rows.valid
    for cuts in ((0, 3, 8, 9, LENGTH), (0, 0, 6, LENGTH)):
        state = made.new_state(2)
        parts = [
            made.prefill(rows.ids[:, a:b], state, **rows.given(a, b)) for a, b in pairwise(cuts)
        ]
        close(torch.cat(parts, dim=1)[tokens], whole[tokens], limit)


@torch.no_grad()
def check_steps(made: Any, limit: float = 0.0) -> None:
    """Steps go on with the last document, a later prompt begins another; states go back."""
    rows = packed()
    ids = torch.cat((rows.ids, rows.ids[:, :6]), dim=1)
    last = rows.documents[:, -1:]
    documents = torch.cat((rows.documents, last.expand(-1, 3), last.expand(-1, 3) + 50), dim=1)
    whole = made(ids, documents=documents).text
    state = made.new_state(2)
    made.prefill(rows.ids, state, documents=rows.documents)
    parts = [made.step(ids[:, LENGTH : LENGTH + 1], state)]
    saved = state.snapshot()
    parts.append(made.step(ids[:, LENGTH + 1 : LENGTH + 3], state))
    parts.append(made.prefill(ids[:, -3:], state, documents=documents[:, -3:]))
    close(torch.cat(parts, dim=1), whole[:, LENGTH:], limit)
    state.restore(saved)
    state.reorder(torch.tensor([1, 0]))
    again = made.step(ids[:, LENGTH + 1 : LENGTH + 3].flip(0), state)
    close(again.flip(0), whole[:, LENGTH + 1 : LENGTH + 3], limit)


@pytest.mark.parametrize("name", BODIES)
def test_packed_documents_are_those_alone(tmp_path: Path, name: str) -> None:
    made = model(tmp_path, spec(BODIES[name], more=", streaming"))
    check_packed(made, packed())
    check_borders(made, packed(), ROUNDING.get(name, 0.0))
    check_pieces(made, packed())
    check_steps(made)
    check_packed(made.float(), packed())


@pytest.mark.parametrize("name", BODIES)
def test_padding_beside_documents(tmp_path: Path, name: str) -> None:
    made = model(tmp_path, spec(BODIES[name], more=", streaming"))
    check_packed(made, padded(3))
    check_borders(made, padded(3), ROUNDING.get(name, 0.0))
    check_pieces(made, padded(99))


@pytest.mark.parametrize("name", CENTRED)
def test_packed_documents_of_an_encoder(tmp_path: Path, name: str) -> None:
    made = model(tmp_path, spec(CENTRED[name], ahead=False))
    for rows in (packed(), padded(3)):
        found = made(rows.ids, **rows.given()).text
        for row, inside in rows.each():
            close(found[row : row + 1, inside], made(rows.ids[row : row + 1, inside]).text)
        check_borders(made, rows)


@pytest.mark.parametrize("name", EXAMPLES)
def test_published_models(tmp_path: Path, name: str) -> None:
    # norms compute in float32, so that roundings of 1e-16 become some of 1e-8
    made = example(tmp_path, name, torch.float64)
    check_packed(made, packed(), 1e-6)
    # how many rows an expert has decides how its product is rounded
    check_borders(made, packed(), 0.0 if name in ("llama", "gemma3_text") else 1e-6)
    check_pieces(made, padded(99), 1e-6)
    check_steps(made, 1e-6)
    check_packed(made.float(), padded(3), 2e-5)


def test_one_document_per_row_is_no_documents(tmp_path: Path) -> None:
    made, rows = model(tmp_path, spec("\n".join(BODIES.values()))), packed()
    alone = made(rows.ids).text
    close(made(rows.ids, documents=torch.full_like(rows.ids, 8)).text, alone)


def test_what_mixes_documents_takes_none(tmp_path: Path) -> None:
    body = "it + mean(it; over = T)"
    made = emitted(spec(body, ahead=False).replace("require isolated", ""), tmp_path)
    assert not made.facts.isolated
    with pytest.raises(TypeError, match="documents"):
        made.model(packed().ids, documents=packed().documents)
