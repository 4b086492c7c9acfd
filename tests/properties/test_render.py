"""Whatever the source holds and wherever spans lie, a finding can be shown."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.diagnostics.samples import Clash
from tokdsl.diagnostics import Edit, Fix, Label
from tokdsl.diagnostics.render import render_concise, render_json, render_sarif, render_text
from tokdsl.source import SourceFile, Span

TEXTS = st.text(
    st.sampled_from("ab \t\n\r{}#\"'\x00\x1b\x7f\x85\u0301\u200d\u202e\u2028変🙂\ufffd\ud800"),
    max_size=120,
)


@st.composite
def findings(draw: st.DrawFn) -> Clash:
    files = [SourceFile(f"{name}.tok", draw(TEXTS)) for name in "ab"]

    def span() -> Span:
        file = draw(st.sampled_from(files))
        start = draw(st.integers(0, len(file.text) + 2))
        return Span(file, start, draw(st.integers(start, len(file.text) + 3)))

    labels = tuple(Label(span(), draw(TEXTS)) for _ in range(draw(st.integers(0, 4))))
    edits = tuple(Edit(span(), draw(TEXTS)) for _ in range(draw(st.integers(0, 2))))
    return Clash(
        span=span(),
        what=draw(TEXTS),
        under=draw(TEXTS),
        labels=labels,
        notes=(draw(TEXTS),),
        help=draw(TEXTS),
        fix=Fix(draw(TEXTS), edits) if edits else None,
        trace=labels[:1],
    )


@settings(max_examples=150, deadline=None)
@given(findings(), st.integers(1, 120))
def test_every_finding_can_be_shown(finding: Clash, width: int) -> None:
    shown = render_text([finding], color=False, width=width)
    assert all(c == "\n" or c.isprintable() or c == "\u200d" for c in shown)
    assert render_concise([finding]).count("\n") == 1
    json.loads(render_json([finding]))
    json.loads(render_sarif([finding]))


@settings(max_examples=100, deadline=None)
@given(st.text("a\t変 ", min_size=1, max_size=300), st.data(), st.integers(40, 100))
def test_the_mark_stands_under_its_character(line: str, data: st.DataObject, width: int) -> None:
    at = data.draw(st.integers(0, len(line)))
    file = SourceFile("a.tok", line[:at] + "!" + line[at:])
    finding = Clash(span=Span(file, at, at + 1), under="")
    *_, shown, marks = render_text([finding], color=False, width=width).splitlines()
    column = marks.index("^")
    cells = "".join(c * 2 if c == "変" else c for c in shown)
    assert cells[column] == "!"
    assert len(cells) <= width
