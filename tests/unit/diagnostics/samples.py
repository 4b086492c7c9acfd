"""Findings made by hand, for tests of what happens to findings."""

from __future__ import annotations

from tokdsl.diagnostics import Diagnostic, Edit, Fix, Label, Severity
from tokdsl.source import SourceFile, Span

SPEC = SourceFile(
    "model.tok",
    """\
model hnet(d: int = 8) {
  stage text(ids: tokens[256]) {
    embed(d)
    x = it
    stage chunks(width = d) {
      repeat 4 { block() }
    }
    y = x + chunks
  }
}
""",
)
LIBRARY = SourceFile("library.tok", "block rope(x: [*, d]) {\n  x + shift(x)\n}\n")


def at(text: str, file: SourceFile = SPEC, occurrence: int = 0) -> Span:
    """Return the span of an occurrence of a text."""
    start = -1
    for _ in range(occurrence + 1):
        start = file.text.index(text, start + 1)
    return Span(file, start, start + len(text))


class Clash(Diagnostic, code="TOK9901", name="clash", severity=Severity.ERROR):
    """Two things do not go together.

    They are too different.

    ```tok error
    wrong
    ```

    ```tok ok
    right
    ```
    """

    what: str = "`x` and `chunks` are on different clocks"
    under: str = "clocks `text` and `chunks`"

    def message(self) -> str:
        return self.what

    def label(self) -> str:
        return self.under


class Dull(Diagnostic, code="TOK9902", name="dull", severity=Severity.WARNING):
    """Nothing happens here.

    ```tok error
    dull
    ```

    ```tok ok
    bright
    ```
    """

    def message(self) -> str:
        return "this does nothing"


def clash() -> Clash:
    """Return a finding that has everything."""
    return Clash(
        span=at("x + chunks"),
        labels=(
            Label(at("chunks(width = d)"), "this clock is coarser"),
            Label(at("rope", LIBRARY), "reached from here"),
        ),
        notes=("`text` has one token per byte",),
        help="bring both to one clock",
        fix=Fix("expand `chunks`", (Edit(at("chunks", occurrence=1), "expand(chunks)"),)),
        trace=(Label(at("embed(d)"), "embed"), Label(at("shift(x)", LIBRARY), "shift")),
    )
