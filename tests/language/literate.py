"""Specs with their expected findings written in them, alone or inside Markdown pages.

In a spec, a line that ends in ``# error: [name]`` or ``# warning: [name]`` has exactly that
finding; a line without such a comment has none. Several comments may follow one another, and
``# error: [name] "text"`` also requires the text in the message; then ``notes "text"`` requires it
in one of the notes, such as the way by which a token saw a later one, and ``help "text"`` in the
help.

In a page, each ```` ```tok ```` block is a spec. A ```` ```diagnostics ```` block after it holds
all its findings, one line each; a ```` ```diagnostics full ```` block holds them with excerpts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokdsl.diagnostics import Diagnostic
from tokdsl.diagnostics.render import render_concise, render_text

_FENCE = re.compile(r"^```(tok|diagnostics(?: full)?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
_EXPECTED = re.compile(
    r'# (error|warning): \[([\w-]+)\](?: "([^"]*)")?((?: (?:notes|help) "[^"]*")*)'
)
_BESIDE = re.compile(r'(notes|help) "([^"]*)"')
WIDTH = 100


@dataclass(frozen=True, order=True)
class Expected:
    """A finding that a comment announces."""

    line: int
    severity: str
    name: str
    text: str = ""
    beside: tuple[tuple[str, str], ...] = ()

    def matches(self, diagnostic: Diagnostic) -> bool:
        """Whether this is the finding."""
        return (
            self.line == diagnostic.span.line
            and self.severity == diagnostic.severity.value
            and self.name == diagnostic.name
            and self.text in diagnostic.message()
            and all(_says(diagnostic, where, text) for where, text in self.beside)
        )

    def __str__(self) -> str:
        text = f' "{self.text}"' if self.text else ""
        text += "".join(f' {where} "{said}"' for where, said in self.beside)
        return f"line {self.line}: {self.severity}: [{self.name}]{text}"


def _says(diagnostic: Diagnostic, where: str, text: str) -> bool:
    """Whether the notes or the help of a finding hold a text."""
    if where == "help":
        return text in (diagnostic.help or "")
    return any(text in note for note in diagnostic.notes)


def expectations(spec: str) -> list[Expected]:
    """Return what the comments of a spec announce."""
    return [
        Expected(number, match[1], match[2], match[3] or "", tuple(_BESIDE.findall(match[4])))
        for number, line in enumerate(spec.split("\n"), 1)
        for match in _EXPECTED.finditer(line)
    ]


def disagreements(spec: str, found: list[Diagnostic]) -> list[str]:
    """Return one line per finding that is missing and per finding that is too much."""
    missing, extra = expectations(spec), list(found)
    for expected in list(missing):
        match = next((d for d in extra if expected.matches(d)), None)
        if match is not None:
            missing.remove(expected)
            extra.remove(match)
    return [f"missing  {expected}" for expected in missing] + [
        f"extra    line {d.span.line}: {d.severity.value}: [{d.name}] {d.message()}" for d in extra
    ]


@dataclass(frozen=True)
class Rendering:
    """A block of a page that shows findings.

    Args:
        form: the words after the fence.
        text: what the block holds.
        index: its number among the fenced blocks of the page.
    """

    form: str
    text: str
    index: int

    def expected(self, found: list[Diagnostic]) -> str:
        """Return what the block must hold."""
        if self.form == "diagnostics full":
            return render_text(found, color=False, width=WIDTH)
        return render_concise(found)


@dataclass(frozen=True)
class Case:
    """One spec of a page with the renderings that follow it."""

    page: Path
    title: str
    line: int
    spec: str
    renderings: tuple[Rendering, ...]

    @property
    def id(self) -> str:
        """A name that is short and says where it is."""
        return f"{self.page.stem}:{self.line} {self.title}"


def cases(page: Path) -> Iterator[Case]:
    """Yield the specs of a page in order.

    Raises:
        ValueError: a rendering stands before any spec.
    """
    text = page.read_text("utf-8")
    headings = [(match.start(), match[1]) for match in _HEADING.finditer(_without_blocks(text))]
    case: Case | None = None
    for index, match in enumerate(_FENCE.finditer(text)):
        if match[1] == "tok":
            if case:
                yield case
            title = next((t for at, t in reversed(headings) if at < match.start()), "")
            line = text.count("\n", 0, match.start()) + 2
            case = Case(page, title, line, match[2], ())
        elif case is None:
            raise ValueError(f"{page}: a diagnostics block stands before any tok block")
        else:
            shown = Rendering(match[1], match[2], index)
            case = Case(page, case.title, case.line, case.spec, (*case.renderings, shown))
    if case:
        yield case


def rewrite(page: Path, index: int, text: str) -> None:
    """Replace the content of one fenced block of a page."""
    old = page.read_text("utf-8")
    match = list(_FENCE.finditer(old))[index]
    page.write_text(old[: match.start(2)] + text + old[match.end(2) :], "utf-8")


def _without_blocks(text: str) -> str:
    """Blank out the blocks, whose comments look like headings."""
    return re.sub(
        r"^```.*?^```$",
        lambda m: re.sub(r"[^\n]", " ", m[0]),
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
