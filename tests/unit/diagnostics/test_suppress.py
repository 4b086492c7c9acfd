"""Which findings a comment accepts."""

from __future__ import annotations

import pytest

from tests.unit.diagnostics.samples import Clash, Dull
from tokdsl.diagnostics import Diagnostic, Report
from tokdsl.diagnostics.render import render_concise
from tokdsl.diagnostics.suppress import apply_suppressions
from tokdsl.source import SourceFile, Span


def report(text: str) -> tuple[SourceFile, Report]:
    """Return a report with a warning for each `dull` and an error for each `clash` in code."""
    source = SourceFile("a.tok", text)
    report = Report()
    kinds: dict[str, type[Diagnostic]] = {"dull(": Dull, "clash(": Clash}
    for word, kind in kinds.items():
        start = text.find(word)
        while start >= 0:
            report.add(kind(span=Span(source, start, start + len(word))))
            start = text.find(word, start + 1)
    return source, report


def left(text: str) -> list[str]:
    return render_concise(apply_suppressions(*report(text))).splitlines()


DULL = "warning[TOK9902] this does nothing"
CLASH = "error[TOK9901] `x` and `chunks` are on different clocks"


@pytest.mark.parametrize(
    "text",
    [
        "dull()  # allow dull",
        "dull()  # allow TOK9902",
        "dull()  #allow   dull  ",
        "dull()  # allow dull: the teacher wants it",
        "# allow dull\ndull()",
        "# about the next line\n# allow dull\n# more\n\ndull()",
        'x = "# allow other"; dull()  # allow dull',
        "dull(); dull()  # allow dull",
    ],
)
def test_accepted(text: str) -> None:
    assert left(text) == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("dull()", [f"a.tok:1:1: {DULL}"]),
        ('dull("# allow dull")', [f"a.tok:1:1: {DULL}"]),
        ("dull()  # we allow dull", [f"a.tok:1:1: {DULL}"]),
        ("dull()  # allow dull things", [f"a.tok:1:1: {DULL}"]),
        (
            "ok()  # allow dull\ndull()",
            [
                "a.tok:1:15: warning[TOK190] nothing on this line is reported as `dull`",
                f"a.tok:2:1: {DULL}",
            ],
        ),
        (
            "dull()  # allow dull, bright",
            ["a.tok:1:23: warning[TOK190] nothing on this line is reported as `bright`"],
        ),
        (
            "clash()  # allow clash",
            [
                f"a.tok:1:1: {CLASH}",
                "a.tok:1:18: warning[TOK190] `clash` is an error here and cannot be allowed",
            ],
        ),
    ],
)
def test_reported(text: str, lines: list[str]) -> None:
    assert left(text) == lines


def test_unused_comments_wait_until_all_stages_have_run() -> None:
    assert left("clash()\nok()  # allow dull") == [f"a.tok:1:1: {CLASH}"]


def test_misspelt_names_get_a_suggestion() -> None:
    (unused,) = apply_suppressions(*report("ok()  # allow unused-alow"))
    assert unused.help == "did you mean `unused-allow`?"


def test_other_files_keep_their_findings() -> None:
    source = SourceFile("b.tok", "ok()  # allow dull\n")
    _, found = report("dull()")
    codes = [d.code for d in apply_suppressions(source, found)]
    assert codes == ["TOK9902", "TOK190"]
