"""The literate runner sees what a page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.language.literate import Expected, cases, disagreements, expectations, rewrite
from tests.unit.diagnostics.samples import Clash, Dull
from tokdsl.source import SourceFile, Span

PAGE = """\
# Sums

```tok
# a comment, not a heading
x + y  # error: [clash]
```

## Quiet ones

```tok
dull  # warning: [dull] "nothing"
```

```diagnostics
old
```

```diagnostics full
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "sums.md"
    path.write_text(PAGE)
    return path


def test_cases(page: Path) -> None:
    first, second = cases(page)
    assert (first.id, second.id) == ("sums:4 Sums", "sums:11 Quiet ones")
    assert first.spec == "# a comment, not a heading\nx + y  # error: [clash]\n"
    assert not first.renderings
    assert [(r.form, r.text) for r in second.renderings] == [
        ("diagnostics", "old\n"),
        ("diagnostics full", ""),
    ]


def test_expectations() -> None:
    assert expectations('a # error: [b-c] # warning: [d] "e"\nf # error: g') == [
        Expected(1, "error", "b-c"),
        Expected(1, "warning", "d", "e"),
    ]


def found(spec: str) -> list[Clash | Dull]:
    source = SourceFile("a.tok", spec)
    kinds = {"clash": Clash, "dull": Dull}
    return [
        kinds[word](span=Span(source, spec.index(word), spec.index(word) + 1))
        for word in kinds
        if word in spec.partition("#")[0]
    ]


@pytest.mark.parametrize(
    ("spec", "complaints"),
    [
        ("quiet", []),
        ("clash # error: [clash]", []),
        ("clash; dull # error: [clash] # warning: [dull]", []),
        ("clash", ["extra    line 1: error: [clash] `x` and `chunks` are on different clocks"]),
        ("quiet # error: [clash]", ["missing  line 1: error: [clash]"]),
        (
            "dull # error: [dull]",
            [
                "missing  line 1: error: [dull]",
                "extra    line 1: warning: [dull] this does nothing",
            ],
        ),
        (
            'dull # warning: [dull] "loud"',
            [
                'missing  line 1: warning: [dull] "loud"',
                "extra    line 1: warning: [dull] this does nothing",
            ],
        ),
        (
            "dull\n# warning: [dull]",
            [
                "missing  line 2: warning: [dull]",
                "extra    line 1: warning: [dull] this does nothing",
            ],
        ),
    ],
)
def test_disagreements(spec: str, complaints: list[str]) -> None:
    assert disagreements(spec, found(spec)) == complaints


def test_renderings_are_rewritten_in_place(page: Path) -> None:
    (_, case) = cases(page)
    spec = found(case.spec)
    for rendering in case.renderings:
        rewrite(page, rendering.index, rendering.expected(spec))
    assert [r.text for r in list(cases(page))[1].renderings] == [
        "a.tok:1:1: warning[TOK9902] this does nothing\n",
        "warning[TOK9902]: this does nothing\n --> a.tok:1:1\n  |\n"
        '1 | dull  # warning: [dull] "nothing"\n  | ^\n',
    ]
    assert page.read_text().startswith(PAGE[: PAGE.index("old")])
