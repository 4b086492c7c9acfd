"""Parentheses are where Python needs them and nowhere else."""

from __future__ import annotations

import pytest

from tokdsl.ops.precedence import fill, literal, primary


@pytest.mark.parametrize(
    ("pattern", "x", "y", "expected"),
    [
        ("{x} * {y}", "a + b", "c", "(a + b) * c"),
        ("{x} - {y}", "a - b", "c - d", "a - b - (c - d)"),
        ("{x} ** {y}", "-a", "-b", "(-a) ** -b"),
        ("{x} ** {y}", "a ** b", "c ** d", "(a ** b) ** c ** d"),
        ("{x} / {y}", "a * b", "c * d", "a * b / (c * d)"),
        ("{x}.exp()", "a", "", "a.exp()"),
        ("{x}.exp()", "a + b", "", "(a + b).exp()"),
        ("{x}.clamp(min={y})", "f(a)[0]", "b + c", "f(a)[0].clamp(min=b + c)"),
        ("{x} < {y}", "a < b", "c | d", "(a < b) < c | d"),
        ("{x} & {y}", "a <= b", "c & d", "(a <= b) & (c & d)"),
        ("~{x}", "a & b", "", "~(a & b)"),
        ("-{x}", "a * b", "", "-(a * b)"),
        ("f({x}, k={y})", "a if b else c", "lambda t: t", "f(a if b else c, k=lambda t: t)"),
        ("{x} * {y}", "a if b else c", "1e-06", "(a if b else c) * 1e-06"),
        ("{x}.abs()", "2", "", "(2).abs()"),
    ],
)
def test_fill(pattern: str, x: str, y: str, expected: str) -> None:
    assert fill(pattern, x=x, y=y) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("-1e-06", -1e-06),
        ('float("-inf")', float("-inf")),
        ("True", True),
        ("x", None),
        ("float(x)", None),
        ("x + 1", None),
    ],
)
def test_literal(text: str, value: object) -> None:
    assert literal(text) == value


def test_primary_keeps_calls() -> None:
    assert primary("a.b(c)[0]") == "a.b(c)[0]"
