"""The summary: numbers that can be counted by hand, and its three forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokdsl.commands.quantities import TIMES, quantity, size
from tokdsl.commands.summary import Row, Summary, summary

EXAMPLES = Path(__file__).parents[3] / "examples"
SIZES = {"d": "64", "layers": "3", "heads": "4", "kv_heads": "2", "hidden": "96", "vocab": "160"}


@pytest.fixture(scope="module")
def mixtral() -> Summary:
    return summary(EXAMPLES / "mixtral.tok", SIZES)


def find(rows: tuple[Row, ...] | list[Row], *path: str) -> Row:
    row = next(r for r in rows if r.name == path[0])
    return find(row.inner, *path[1:]) if len(path) > 1 else row


def test_totals_are_the_facts_of_the_stages(mixtral: Summary) -> None:
    (text,) = mixtral.rows
    assert text.params == mixtral.numbers["params"]
    assert text.active == mixtral.numbers["active_params"]
    assert text.flops == pytest.approx(mixtral.numbers["flops_per_token"])
    assert text.cache == mixtral.numbers["cache_per_token"]


def test_parameters_by_hand(mixtral: Summary) -> None:
    assert find(mixtral.rows, "text", "embed").params == 160 * 64
    layers = find(mixtral.rows, "text", "layers")
    assert layers.times == 3
    moe = find(layers.inner, "moe")
    expert = find(moe.inner, "expert: swiglu")
    assert expert.times == 8
    assert expert.params == 3 * 8 * 3 * 64 * 96
    assert expert.active == expert.params / 4  # two of eight
    gqa = find(layers.inner, "gqa")
    assert gqa.params == 3 * (2 * 64 * 64 + 2 * 64 * 32)
    assert gqa.cache == 3 * 2 * 32 * 2  # layers, keys and values, entries, bytes


def test_rows_add_up(mixtral: Summary) -> None:
    def check(row: Row) -> None:
        if row.inner:
            assert sum(r.params for r in row.inner) == pytest.approx(row.params)
            assert sum(r.cache for r in row.inner) == pytest.approx(row.cache)
            assert sum(r.flops for r in row.inner) <= row.flops * 1.0001
        for inner in row.inner:
            check(inner)

    check(mixtral.rows[0])


def test_text_is_aligned(mixtral: Summary) -> None:
    lines = mixtral.text.splitlines()
    assert lines[0].startswith("mixtral ")
    assert f"├─ layers {TIMES} 3" in mixtral.text
    assert "[T, vocab=160]" in lines[2]
    body = lines[2 : lines.index(lines[1], 2)]
    assert len({line.index("[") for line in body if "[" in line}) == 1
    assert "\x1b" not in mixtral.text
    assert "causal: text" in mixtral.text


def test_json_holds_the_same_numbers(mixtral: Summary) -> None:
    content = json.loads(mixtral.as_json())
    assert content["model"] == "mixtral"
    assert content["stages"][0]["params"] == content["totals"]["params"]
    assert content["causal"] == {"text": True}


def test_an_encoder_is_not_part_of_a_decode_step(tmp_path: Path) -> None:
    file = tmp_path / "pair.tok"
    file.write_text(PAIR, "utf-8")
    encoder, decoder = summary(file).rows
    assert encoder.flops > 0
    assert encoder.decode == 0 == encoder.cache
    assert decoder.decode > 0


def test_errors_give_no_table(tmp_path: Path) -> None:
    file = tmp_path / "broken.tok"
    file.write_text("model broken() { stage text(ids: tokens[10]) { nothing_here() } }\n", "utf-8")
    found = summary(file)
    assert found.report.has_errors
    assert not found.rows


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1 K"),
        (46702792704, "46.7 B"),
        (6.4e14, "640 T"),
        (999.9e6, "1 B"),
    ],
)
def test_quantities(number: float, text: str) -> None:
    assert quantity(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(96, "96 B"), (131072, "128 KiB"), (1536, "1.5 KiB"), (2**31, "2 GiB")]
)
def test_sizes(number: float, text: str) -> None:
    assert size(number) == text


PAIR = """
use std.attention { gqa }

attention cross(x: [T, d], memory: [S, d]; heads: int) -> [T, d] {
  q = linear(x; heads, head_dim: d // heads)
  k = linear(memory; heads, head_dim: d // heads)
  v = linear(memory; heads, head_dim: d // heads)
  o = linear(attend(q, k, v); d, over = [heads, head_dim])
}

model pair(d: int = 32, vocab: int = 50) {
  stage encoder(source: tokens[vocab]) {
    embed(d)
    repeat 2 { residual { rmsnorm(); gqa(heads = 4, mask = full) } }
  }
  stage decoder(ids: tokens[vocab]) {
    embed(d)
    repeat 2 {
      residual { rmsnorm(); gqa(heads = 4) }
      residual { rmsnorm(); cross(it, encoder; heads = 4) }
    }
    unembed(vocab)
  }
  objective next_token(decoder, ids)
}
"""
