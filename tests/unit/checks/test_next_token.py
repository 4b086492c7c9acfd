"""Which stages an objective trains to predict later tokens."""

from __future__ import annotations

import pytest

from tokdsl.checks.next_token import predictions
from tokdsl.driver import check_source
from tokdsl.source import SourceFile

MODEL = """\
model m(d: int = 8) {{
  stage text(ids: tokens[32]) {{ embed(d); unembed(32) }}
  stage other(ids: tokens[32]) {{ embed(d); unembed(32) }}
  objective {objective}
}}
"""


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("next_token(text, ids)", {("text", 1)}),
        ("next_token(text, ids) + next_token(other, ids)", {("text", 1), ("other", 1)}),
        ("cross_entropy(text, targets(ids; ahead = 3); over = vocab)", {("text", 3)}),
        ("cross_entropy(shift(text; by = 2), ids; over = vocab)", {("text", 2)}),
        ("cross_entropy(shift(text; by = 1), targets(ids); over = vocab)", {("text", 2)}),
        ("cross_entropy(text, ids; over = vocab)", set()),
        ("mean(square(text)) + next_token(other, ids)", {("other", 1)}),
        ("mean(square(text - other))", set()),
    ],
)
def test_what_an_objective_predicts(objective: str, expected: set[tuple[str, int]]) -> None:
    source = SourceFile("spec.tok", MODEL.format(objective=objective))
    program = check_source(source, None).programs[0]
    assert {(p.stage, p.ahead) for p in predictions(program)} == expected
