"""Findings in, text out."""

from __future__ import annotations

import json

import pytest

from tests.unit.diagnostics.samples import LIBRARY, SPEC, Clash, Dull, at, clash
from tokdsl.diagnostics import Diagnostic, Edit, Fix, Label
from tokdsl.diagnostics.render import (
    Format,
    count,
    render,
    render_concise,
    render_json,
    render_sarif,
    render_text,
)
from tokdsl.source import SourceFile, Span


def text(*diagnostics: Diagnostic, width: int = 80) -> str:
    return "\n" + render_text(diagnostics, color=False, width=width)


def bare(span: Span, *labels: Label, under: str = "here") -> str:
    return text(Clash(span=span, labels=labels, what="a message", under=under))


def test_everything() -> None:
    assert (
        text(clash())
        == """
error[TOK9901]: `x` and `chunks` are on different clocks
 --> model.tok:8:9
  |
5 |     stage chunks(width = d) {
  |           ----------------- this clock is coarser
...
8 |     y = x + chunks
  |         ^^^^^^^^^^ clocks `text` and `chunks`
 ::: library.tok:1:7
  |
1 | block rope(x: [*, d]) {
  |       ---- reached from here
  |
  = in `shift` called from library.tok:2:7
  = in `embed` called from model.tok:3:5
  = note: `text` has one token per byte
  = help: bring both to one clock
help: expand `chunks` (check that this is what you mean)
  |
8 -     y = x + chunks
8 +     y = x + expand(chunks)
"""
    )


def test_several_findings_are_separated() -> None:
    two = text(Dull(span=at("embed")), Dull(span=at("repeat")))
    assert (
        two
        == """
warning[TOK9902]: this does nothing
 --> model.tok:3:5
  |
3 |     embed(d)
  |     ^^^^^

warning[TOK9902]: this does nothing
 --> model.tok:6:7
  |
6 |       repeat 4 { block() }
  |       ^^^^^^
"""
    )


def test_labels_of_one_line_hang_below_each_other() -> None:
    labels = (Label(at("x", occurrence=2), "fine"), Label(at("chunks", occurrence=1), "coarse"))
    assert (
        bare(at("+"), *labels)
        == """
error[TOK9901]: a message
 --> model.tok:8:11
  |
8 |     y = x + chunks
  |         - ^ ------ coarse
  |         | |
  |         | here
  |         fine
"""
    )


def test_a_mark_inside_a_mark_stays_visible() -> None:
    assert (
        bare(at("x + chunks"), Label(at("+"), "adds"))
        == """
error[TOK9901]: a message
 --> model.tok:8:9
  |
8 |     y = x + chunks
  |         ^^-^^^^^^^
  |         | |
  |         | adds
  |         here
"""
    )


def test_span_over_several_lines() -> None:
    assert (
        bare(at("stage chunks(width = d) {\n      repeat 4 { block() }\n    }"))
        == """
error[TOK9901]: a message
 --> model.tok:5:5
  |
5 | /     stage chunks(width = d) {
6 | |       repeat 4 { block() }
7 | |     }
  | |_____^ here
"""
    )


def test_long_span_shows_its_ends() -> None:
    whole = Span(SPEC, 0, len(SPEC.text))
    assert (
        bare(whole, Label(at("embed"), "this"))
        == """
error[TOK9901]: a message
  --> model.tok:1:1
   |
 1 | / model hnet(d: int = 8) {
 2 | |   stage text(ids: tokens[256]) {
 3 | |     embed(d)
   | |     ----- this
...
10 | | }
   | |_^ here
"""
    )


def test_neighbouring_lines_are_joined() -> None:
    assert "...\n" not in bare(at("embed(d)"), Label(at("stage chunks"), "that"))


def test_tabs_and_wide_characters_keep_marks_in_place() -> None:
    file = SourceFile("wide.tok", '\tname\t= "変数 e\u0301"  + tail\n')
    assert (
        bare(at("+", file), Label(at("tail", file), "end"))
        == """
error[TOK9901]: a message
 --> wide.tok:1:18
  |
1 |     name    = "変数 e\u0301"  + tail
  |                         ^ ---- end
  |                         |
  |                         here
"""
    )


def test_control_and_direction_characters_are_made_visible() -> None:
    file = SourceFile("junk.tok", "a\x1b[31m \u202eb \x00\n")
    assert (
        bare(at("b", file))
        == """
error[TOK9901]: a message
 --> junk.tok:1:9
  |
1 | a␛[31m \ufffdb ␀
  |         ^ here
"""
    )


@pytest.mark.parametrize("place", [0, 150, 400])
def test_long_lines_are_cut_around_the_mark(place: int) -> None:
    line = "a" * place + "!" + "b" * (400 - place)
    file = SourceFile("long.tok", line)
    lines = bare(Span(file, place, place + 1), under="").splitlines()
    shown, marks = lines[-2:]
    assert len(shown) <= 80
    assert shown[marks.index("^")] == "!"
    assert ("…a" in shown) == (place > 50)
    assert ("b…" in shown) == (place < 350)


@pytest.mark.parametrize(("start", "end"), [(0, 0), (10, 10), (3, 3), (2, 99), (50, 60)], ids=str)
def test_spans_at_and_past_the_end(start: int, end: int) -> None:
    file = SourceFile("end.tok", "abc\ndefghi")
    lines = bare(Span(file, start, end)).splitlines()
    assert lines[-1].endswith("^ here")


def test_empty_file_has_no_excerpt() -> None:
    missing = Clash(span=Span(SourceFile("none.tok", ""), 0, 0), what="no file", help="make it")
    assert (
        text(missing)
        == """
error[TOK9901]: no file
 --> none.tok:1:1
  = help: make it
"""
    )


def test_notes_wrap_and_keep_their_lines() -> None:
    note = "the batch is 64 tokens of 4096 bytes each\n  weights   12 MiB\n  cache      3 MiB"
    assert text(Dull(span=at("embed"), notes=(note,)), width=50).endswith("""
  = note: the batch is 64 tokens of 4096 bytes
          each
            weights   12 MiB
            cache      3 MiB
""")


def test_fix_over_lines_and_files() -> None:
    edits = (
        Edit(at("    embed(d)\n"), ""),
        Edit(at("repeat 4"), "repeat 5"),
        Edit(at("x + shift(x)", LIBRARY), "x"),
    )
    shown = text(Dull(span=at("embed"), fix=Fix("do less", edits, safe=True)))
    assert (
        shown.partition("help: ")[2]
        == """do less
  |
3 -     embed(d)
6 -       repeat 4 { block() }
5 +       repeat 5 { block() }
 --> library.tok:2:3
  |
2 -   x + shift(x)
2 +   x
"""
    )


def test_fix_that_says_what_the_help_says_is_shown_once() -> None:
    finding = Dull(
        span=at("embed"), help="remove it", fix=Fix("remove it", (Edit(at("embed(d)"), ""),))
    )
    assert text(finding).count("remove it") == 1


def test_long_traces_are_shortened() -> None:
    calls = tuple(Label(at("embed"), f"f{i}") for i in range(20))
    lines = text(Dull(span=at("embed"), trace=calls)).splitlines()
    assert lines[-9:-7] == [
        "  = in `f19` called from model.tok:3:5",
        "  = in `f18` called from model.tok:3:5",
    ]
    assert "  = ... 12 more calls ..." in lines


def test_color_adds_only_color() -> None:
    import re

    colored = render_text([clash()], color=True, width=80)
    assert "\x1b[1;31m" in colored
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == render_text([clash()], color=False, width=80)


def test_concise() -> None:
    assert render_concise([clash(), Dull(span=at("embed"))]) == (
        "model.tok:8:9: error[TOK9901] `x` and `chunks` are on different clocks\n"
        "model.tok:3:5: warning[TOK9902] this does nothing\n"
    )


def test_count() -> None:
    assert count([]) == ""
    assert count([clash(), Dull(span=at("embed")), clash()]) == "2 errors, 1 warning"


def test_json_has_one_object_per_finding() -> None:
    first, second = map(json.loads, render_json([clash(), Dull(span=at("embed"))]).splitlines())
    assert (second["severity"], second["name"], second["helps"]) == ("warning", "dull", [])
    assert first["code"] == "TOK9901"
    assert first["file"] == "model.tok"
    assert first["range"] == {
        "start": {"line": 8, "column": 9, "offset": at("x + chunks").start},
        "end": {"line": 8, "column": 19, "offset": at("x + chunks").end},
    }
    assert [label["file"] for label in first["labels"]] == ["model.tok", "library.tok"]
    assert [h["applicability"] for h in first["helps"]] == ["none", "unsafe"]
    assert first["helps"][1]["edits"][0]["text"] == "expand(chunks)"
    assert [call["text"] for call in first["trace"]] == ["embed", "shift"]
    assert first["url"] == "docs/diagnostics.md#tok9901"


def test_sarif() -> None:
    log = json.loads(render_sarif([clash(), Dull(span=at("embed")), clash()]))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "tokdsl"
    assert [rule["id"] for rule in driver["rules"]] == ["TOK9901", "TOK9902"]
    for result in run["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    first = run["results"][0]
    assert first["level"] == "error"
    place = first["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "model.tok"}
    assert place["region"] == {"startLine": 8, "startColumn": 9, "endLine": 8, "endColumn": 19}
    assert len(first["relatedLocations"]) == 2
    (change,) = first["fixes"][0]["artifactChanges"]
    assert change["replacements"][0]["insertedContent"] == {"text": "expand(chunks)"}


def test_sarif_paths_are_uris() -> None:
    file = SourceFile("my models/ä.tok", "x")
    result = json.loads(render_sarif([Dull(span=Span(file, 0, 1))]))["runs"][0]["results"][0]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "my%20models/%C3%A4.tok"


@pytest.mark.parametrize("format", Format)
def test_nothing_found(format: Format) -> None:
    shown = render([], format)
    if format is Format.SARIF:
        assert json.loads(shown)["runs"][0]["results"] == []
    else:
        assert shown == ""
