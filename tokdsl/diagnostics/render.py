"""Findings as text for people; the forms for machines are in `machine`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from enum import StrEnum
from typing import Literal

from tokdsl.diagnostics.base import Diagnostic, Edit, Fix, Label, Severity
from tokdsl.diagnostics.excerpt import Mark, Paint, Style, draw, visible
from tokdsl.diagnostics.machine import render_json, render_sarif
from tokdsl.source import SourceFile


class Format(StrEnum):
    """How findings are written."""

    TEXT = "text"
    CONCISE = "concise"
    JSON = "json"
    SARIF = "sarif"


__all__ = [
    "Format",
    "count",
    "render",
    "render_concise",
    "render_json",
    "render_sarif",
    "render_text",
]

_STYLES: dict[Severity, Style] = {
    Severity.ERROR: "error",
    Severity.WARNING: "warning",
    Severity.NOTE: "note",
}
#: a longer call chain is shown by its first and last calls
LONGEST_TRACE = 8
#: a longer fix is shown by its first lines
LONGEST_FIX = 12


def render(
    diagnostics: Iterable[Diagnostic], format: Format, *, color: bool = False, width: int = 100
) -> str:
    """Return the findings in one of the formats; empty without findings, but for SARIF."""
    match format:
        case Format.TEXT:
            return render_text(diagnostics, color=color, width=width)
        case Format.CONCISE:
            return render_concise(diagnostics)
        case Format.JSON:
            return render_json(diagnostics)
        case Format.SARIF:
            return render_sarif(diagnostics)


def render_concise(diagnostics: Iterable[Diagnostic]) -> str:
    """Return one line per finding: ``file:line:col: error[TOK301] message``."""
    return "".join(
        f"{visible(str(d.span))}: {d.severity.value}[{d.code}] {_one_line(d.message())}\n"
        for d in diagnostics
    )


def render_text(diagnostics: Iterable[Diagnostic], *, color: bool, width: int) -> str:
    """Return the findings with excerpts of the source.

    Args:
        diagnostics: the findings, in the order to show.
        color: whether to write ANSI colours.
        width: columns of the terminal.
    """
    paint = Paint(color)
    return "\n".join("".join(f"{line}\n" for line in _block(d, paint, width)) for d in diagnostics)


def count(diagnostics: Iterable[Diagnostic]) -> str:
    """Return how many findings there are in words: ``2 errors, 1 warning``; empty for none."""
    totals = dict.fromkeys(Severity, 0)
    for diagnostic in diagnostics:
        totals[diagnostic.severity] += 1
    return ", ".join(
        f"{number} {severity.value}{'s' if number > 1 else ''}"
        for severity, number in totals.items()
        if number
    )


def _one_line(text: str) -> str:
    return visible(" ".join(text.split("\n")))


# --------------------------------------------------------------------------- one finding


def _block(diagnostic: Diagnostic, paint: Paint, width: int) -> Iterator[str]:
    style = _STYLES[diagnostic.severity]
    title = paint(style, f"{diagnostic.severity.value}[{diagnostic.code}]")
    yield title + paint("title", f": {_one_line(diagnostic.message())}")

    marks = [Mark(diagnostic.span, diagnostic.label(), primary=True, style=style)]
    marks += [Mark(label.span, label.text, False, "gutter") for label in diagnostic.labels]
    digits = _digits(diagnostic)
    yield from draw(marks, paint=paint, width=width, digits=digits)

    remarks = list(_remarks(diagnostic, paint, width - digits - 3))
    if remarks and diagnostic.span.file.text:
        yield paint("gutter", " " * digits + " |")
    for remark in remarks:
        first, *rest = remark.split("\n")
        yield paint("gutter", " " * digits + " =") + f" {first}"
        yield from (" " * (digits + 3) + line if line else "" for line in rest)
    if diagnostic.fix is not None:
        yield from _fix(diagnostic.fix, diagnostic.span.file, paint, digits)


def _digits(diagnostic: Diagnostic) -> int:
    """Return the columns of the largest line number of the block."""
    spans = [diagnostic.span, *(label.span for label in diagnostic.labels)]
    spans += [edit.span for edit in (diagnostic.fix.edits if diagnostic.fix else ())]
    return max(len(str(span.file.position(max(span.start, span.end))[0])) for span in spans)


def _remarks(diagnostic: Diagnostic, paint: Paint, width: int) -> Iterator[str]:
    yield from _trace(diagnostic.trace)
    for note in diagnostic.notes:
        yield _remark("note", note, paint, width)
    if diagnostic.help and not (diagnostic.fix and diagnostic.fix.title == diagnostic.help):
        yield _remark("help", diagnostic.help, paint, width)


def _remark(kind: Literal["note", "help"], text: str, paint: Paint, width: int) -> str:
    """Return ``note: text``; long lines are wrapped, further lines hang under the first."""
    room = max(width - len(kind) - 2, 30)
    lines: list[str] = []
    for line in visible(text).split("\n"):
        indent = " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(
            line,
            room,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        ) or [""]
    hanging = "\n" + " " * (len(kind) + 2)
    return paint(kind, f"{kind}:") + " " + hanging.join(lines)


def _trace(calls: Sequence[Label]) -> list[str]:
    """Return one line per call through which the place was reached, the innermost first."""
    lines = [f"{_inside(call.text)} called from {visible(str(call.span))}" for call in calls]
    lines.reverse()
    if len(lines) > LONGEST_TRACE:
        half = LONGEST_TRACE // 2
        lines[half:-half] = [f"... {len(lines) - 2 * half} more calls ..."]
    return lines


def _inside(text: str) -> str:
    return f"in `{text}`" if text.isidentifier() else visible(text)


# --------------------------------------------------------------------------- fixes


def _fix(fix: Fix, file: SourceFile, paint: Paint, digits: int) -> Iterator[str]:
    """Yield a fix as a small difference."""
    caution = "" if fix.safe else " (check that this is what you mean)"
    yield paint("help", "help:") + f" {visible(fix.title)}{caution}"
    by_file: dict[SourceFile, list[Edit]] = {}
    for edit in fix.edits:
        by_file.setdefault(edit.span.file, []).append(edit)
    for edited, edits in by_file.items():
        if edited != file:
            yield paint("gutter", " " * digits + "-->") + f" {visible(str(edits[0].span))}"
        yield paint("gutter", " " * digits + " |")
        rows = list(_difference(edited, edits))
        for sign, number, text in rows[:LONGEST_FIX]:
            style: Literal["added", "removed"] = "added" if sign == "+" else "removed"
            head = paint("gutter", f"{number:>{digits}}")
            yield f"{head} {paint(style, (sign + ' ' + visible(text.expandtabs(4))).rstrip())}"
        if len(rows) > LONGEST_FIX:
            yield paint("gutter", "...")


def _difference(file: SourceFile, edits: Sequence[Edit]) -> Iterator[tuple[str, int, str]]:
    """Yield ``(sign, line number, text)`` of the lines that the edits remove and add."""
    ordered = sorted(edits, key=lambda e: (e.span.start, e.span.end))
    first = file.position(ordered[0].span.start)[0]
    starts = file.line_starts()
    low = starts[first - 1]
    last = max(file.position(edit.span.end)[0] for edit in ordered)
    high = starts[last] if last < len(starts) else len(file.text)
    changed, at = "", low
    for edit in ordered:
        changed += file.text[at : max(edit.span.start, at)] + edit.text
        at = max(edit.span.end, at)
    before = file.text[low:high].splitlines()
    after = (changed + file.text[at:high]).splitlines()
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag != "equal":
            yield from (("-", first + k, before[k]) for k in range(i, i_end))
            yield from (("+", first + k, after[k]) for k in range(j, j_end))
