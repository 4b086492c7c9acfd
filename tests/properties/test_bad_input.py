"""Whatever a file holds, checking it gives findings in bounded time and never an exception."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from tokdsl import driver
from tokdsl.diagnostics.render import render_concise, render_text

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    [
        *(ROOT / "examples").glob("*.tok"),
        *(ROOT / "stdlib").glob("*.tok"),
        *(ROOT / "tests" / "language").glob("*/*.tok"),
    ]
)
TOKEN = re.compile(r"\w+|[^\w\s]|\s+")
SCRAPS = (
    "{", "}", "(", ")", "[", "]", ";", ",", "=", "*", "|", "none", "true", "-1", "0", "1e999",
    "99999999999999999999", "it", "x", "T", "d", '"', "#", "repeat 3 {", "residual {", "aux y =",
    "stage s(", "each", "attend", "\x00", "é", "\n", "if", "of", "..", "objective",
    "require causal", "linear(it; d)", "softmax(it; over = T)", "mean(it)", "|i, j| j <= i",
)  # fmt: skip
#: seconds that one file may take, with room for a busy machine
LIMIT = 20.0


def mutated(rng: random.Random, text: str) -> str:
    """Return a text with one to six of its tokens changed."""
    tokens = TOKEN.findall(text)
    for _ in range(rng.randint(1, 6)):
        if not tokens:
            break
        at = rng.randrange(len(tokens))
        kind = rng.randrange(6)
        if kind == 0:
            del tokens[at]
        elif kind == 1:
            tokens.insert(at, rng.choice(SCRAPS))
        elif kind == 2:
            tokens[at] = rng.choice(SCRAPS)
        elif kind == 3:
            tokens[at] = rng.choice(tokens)
        elif kind == 4:
            other = rng.randrange(len(tokens))
            tokens[at], tokens[other] = tokens[other], tokens[at]
        else:
            del tokens[at : at + rng.randint(1, 30)]
    return "".join(tokens)


def noise(rng: random.Random) -> str:
    """Return a text that is no program: scraps, deep nesting, or random characters."""
    kind = rng.randrange(3)
    if kind == 0:
        return " ".join(rng.choice(SCRAPS) for _ in range(rng.randint(1, 200)))
    if kind == 1:
        depth = rng.randint(10, 5000)
        opening = rng.choice(["(", "[", "{", "f(", "-", "if x {", "repeat 2 {", "residual {"])
        return "fn f(x: [*, d]) -> [*, d] { " + opening * depth
    return "".join(chr(rng.randrange(1, 0x2FF)) for _ in range(rng.randint(1, 400)))


def examine(text: str) -> None:
    """Check and render a text within the time limit."""
    start = time.monotonic()
    found = driver.check_text(text).sorted()
    for diagnostic in found:
        assert diagnostic.message()
        assert diagnostic.span.line >= 1 and diagnostic.span.column >= 1
    render_text(found, color=False, width=100)
    render_concise(found)
    assert time.monotonic() - start < LIMIT


def run(seed: int, count: int) -> None:
    """Examine so many texts, three of four made from real programs."""
    rng = random.Random(seed)
    texts = [path.read_text("utf-8") for path in SOURCES]
    for number in range(count):
        text = noise(rng) if number % 4 == 3 else mutated(rng, rng.choice(texts))
        try:
            examine(text)
        except Exception as error:
            raise AssertionError(f"seed {seed}, text {number}:\n{text}") from error


@pytest.mark.parametrize("seed", range(4))
def test_some_bad_files(seed: int) -> None:
    run(seed, 50)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_two_thousand_bad_files(seed: int) -> None:
    run(seed, 100)
