"""Source excerpts with their marks, drawn the way rustc and ariadne draw them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tokdsl.source import SourceFile, Span

Style = Literal["error", "warning", "note", "help", "gutter", "title", "added", "removed"]

_ANSI: dict[Style, str] = {
    "error": "1;31",
    "warning": "1;33",
    "note": "1;36",
    "help": "1;32",
    "gutter": "1;34",
    "title": "1",
    "added": "32",
    "removed": "31",
}

TAB = 4
#: a line is never cut below this many columns, however narrow the terminal is
NARROWEST = 30
#: columns of source kept before the first mark of a line that is cut
CONTEXT = 12
#: a span over more lines than this is shown by its first and last line
TALLEST = 4


@dataclass(frozen=True, slots=True)
class Paint:
    """Adds colour to text, or leaves it alone."""

    color: bool

    def __call__(self, style: Style, text: str) -> str:
        """Return the text in a style."""
        return f"\x1b[{_ANSI[style]}m{text}\x1b[0m" if self.color and text else text


@dataclass(frozen=True, slots=True)
class Mark:
    """A span to underline, the text beside it and the style of both."""

    span: Span
    text: str
    primary: bool
    style: Style

    @property
    def sign(self) -> str:
        """The character that underlines the span."""
        return "^" if self.primary else "-"


# --------------------------------------------------------------------------- characters


def visible(text: str) -> str:
    """Replace what a terminal would act on by something to look at; line breaks stay."""
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else _symbol(c) for c in text)


def _symbol(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if character == "\u200d" or unicodedata.category(character) == "Zs":
        return character
    return "\ufffd"  # C1 controls, bidirectional overrides, surrogates, unassigned


def _cell_count(character: str) -> int:
    if unicodedata.combining(character) or character in "\u200d\ufe0e\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cells(text: str) -> tuple[str, Sequence[int]]:
    """Return a line as shown and the display column of each code point, and of the end."""
    if text.isascii() and text.isprintable():
        return text, range(len(text) + 1)
    shown: list[str] = []
    columns = [0]
    for character in text:
        if character == "\t":
            piece = " " * (TAB - columns[-1] % TAB)
            width = len(piece)
        else:
            piece = visible(character)
            width = _cell_count(piece)
        shown.append(piece)
        columns.append(columns[-1] + width)
    return "".join(shown), columns


# --------------------------------------------------------------------------- one line


@dataclass(frozen=True, slots=True)
class _Bar:
    """A mark on one line, in display columns."""

    start: int
    end: int
    mark: Mark


def _cut(text: str, columns: Sequence[int], bars: list[_Bar], room: int) -> tuple[str, list[_Bar]]:
    """Cut a line that is too long to a window around its marks."""
    shown, columns = cells(text)
    if columns[-1] <= room:
        return shown, bars
    first = min((bar.start for bar in bars), default=0)
    low = 0 if first < room - CONTEXT else first - CONTEXT
    high = low + room - 2
    kept = [i for i in range(len(text)) if columns[i] >= low and columns[i + 1] <= high]
    # a tab keeps its width; what is cut through at the left edge becomes blank
    pieces = " " * (columns[kept[0]] - low) if kept else ""
    for i in kept:
        tab = " " * (columns[i + 1] - columns[i])
        pieces += tab if text[i] == "\t" else cells(text[i])[0]
    left = "…" if low else ""
    right = "…" if columns[-1] > high else ""
    shift = low - len(left)
    end = high - shift
    moved = [
        _Bar(min(b.start - shift, end), min(max(b.end - shift, 1), end + 1), b.mark) for b in bars
    ]
    return left + pieces + right, moved


def _overlay(bars: list[_Bar], paint: Paint) -> str:
    """Return the underline row; narrower marks lie on wider ones."""
    row: list[tuple[str, Style] | None] = [None] * max(bar.end for bar in bars)
    for bar in sorted(bars, key=lambda b: (b.start - b.end, b.mark.primary)):
        for column in range(bar.start, bar.end):
            row[column] = (bar.mark.sign, bar.mark.style)
    return _paint_row(row, paint)


def _paint_row(row: Sequence[tuple[str, Style] | None], paint: Paint) -> str:
    pieces: list[str] = []
    start = 0
    for at in range(1, len(row) + 1):
        if at < len(row) and row[at] == row[start]:
            continue
        cell = row[start]
        run = at - start
        pieces.append(" " * run if cell is None else paint(cell[1], cell[0] * run))
        start = at
    return "".join(pieces)


def _connectors(bars: Iterable[_Bar], paint: Paint) -> str:
    row: list[tuple[str, Style] | None] = []
    for bar in sorted(bars, key=lambda b: b.start):
        row.extend([None] * (bar.start + 1 - len(row)))
        row[bar.start] = ("|", bar.mark.style)
    return _paint_row(row, paint)


def _under(bars: list[_Bar], paint: Paint) -> Iterator[str]:
    """Yield the rows under a source line: the underline, then the texts that hang from it."""
    if not bars:
        return
    underline = _overlay(bars, paint)
    hanging = sorted((bar for bar in bars if bar.mark.text), key=lambda b: b.start)
    last = max(bars, key=lambda b: (b.start, b.mark.primary))
    if last.mark.text and last.end == max(bar.end for bar in bars):
        underline += " " + paint(last.mark.style, visible(last.mark.text))
        hanging.remove(last)
    yield underline
    if hanging:
        yield _connectors(hanging, paint)
    while hanging:
        bar = hanging.pop()
        left = [other for other in hanging if other.start < bar.start]
        lead = _connectors(left, paint)
        used = max((other.start + 1 for other in left), default=0)
        yield lead + " " * (bar.start - used) + paint(bar.mark.style, visible(bar.mark.text))


# --------------------------------------------------------------------------- one file


@dataclass(frozen=True, slots=True)
class _Place:
    """A mark with the lines and code-point columns (from 0) that it covers."""

    mark: Mark
    first: int
    last: int
    start: int
    end: int


def _place(mark: Mark) -> _Place:
    file, size = mark.span.file, len(mark.span.file.text)
    start = min(max(mark.span.start, 0), size)
    end = min(max(mark.span.end, start), size)
    first, start_column = file.position(start)
    # a span that ends with a line break ends on the line that the break closes
    last, end_column = file.position(end - 1 if end > start else end)
    return _Place(mark, first, last, start_column - 1, end_column - (end == start))


class Excerpt:
    """The lines of one file that carry marks."""

    def __init__(
        self, file: SourceFile, marks: Sequence[Mark], *, paint: Paint, width: int, digits: int
    ) -> None:
        places = [_place(mark) for mark in marks]
        self._file = file
        self._paint = paint
        self._digits = digits
        self._flat = [p for p in places if p.first == p.last]
        self._tall = [p for p in places if p.first != p.last]
        margin = len(self._tall) + 1 if self._tall else 0
        self._room = max(NARROWEST, width - digits - 3 - margin)

    def lines(self) -> Iterator[str]:
        """Yield the drawn lines, without the header that names the file."""
        previous = 0
        for number in self._shown_numbers():
            if previous and number == previous + 2:
                yield from self._line(previous + 1)
            elif previous and number > previous + 2:
                yield self._paint("gutter", "...")
            yield from self._line(number)
            previous = number

    def _shown_numbers(self) -> list[int]:
        numbers = {place.first for place in self._flat}
        for place in self._tall:
            if place.last - place.first < TALLEST:
                numbers.update(range(place.first, place.last + 1))
            else:
                numbers.update((place.first, place.last))
        return sorted(numbers)

    def _row(self, number: int | None, margin: str, text: str) -> str:
        head = f"{'' if number is None else number:>{self._digits}} |"
        body = margin + text
        return self._paint("gutter", head) + (" " + body if body.strip() else "")

    def _margin(self, number: int, *, below: bool = False) -> str:
        """Return the vertical bars of the spans over several lines."""
        if not self._tall:
            return ""
        bars = ""
        for place in self._tall:
            inside = place.first <= number < place.last if below else False
            on_line = place.first <= number <= place.last and not below
            sign = "/" if on_line and number == place.first else "|" if inside or on_line else " "
            bars += self._paint(place.mark.style, sign) if sign != " " else sign
        return bars + " "

    def _line(self, number: int) -> Iterator[str]:
        text = self._file.line(number)
        _, columns = cells(text)
        bars = []
        for place in self._flat:
            if place.first == number:
                start = columns[min(place.start, len(text))]
                end = columns[min(place.end, len(text))]
                bars.append(_Bar(start, max(end, start + 1), place.mark))
        shown, bars = _cut(text, columns, bars, self._room)
        yield self._row(number, self._margin(number), shown.rstrip())
        for under in _under(bars, self._paint):
            yield self._row(None, self._margin(number, below=True), under)
        for index, place in enumerate(self._tall):
            if place.last == number:
                yield self._row(None, "", self._closing(index, place, text, columns))

    def _closing(self, index: int, place: _Place, text: str, columns: Sequence[int]) -> str:
        """Return the row that closes a span over several lines."""
        mark, number = place.mark, place.last
        before = ""
        for earlier in self._tall[:index]:
            active = earlier.first <= number < earlier.last
            before += self._paint(earlier.mark.style, "|") if active else " "
        column = max(columns[min(place.end, len(text))] - 1, 0)
        dashes = min(len(self._tall) - index - 1 + 1 + column, self._room)
        row = before + self._paint(mark.style, "|" + "_" * dashes + mark.sign)
        return row + (" " + self._paint(mark.style, visible(mark.text)) if mark.text else "")


def draw(marks: Sequence[Mark], *, paint: Paint, width: int, digits: int) -> list[str]:
    """Draw the excerpts of all files that the marks touch, the first mark's file first.

    Args:
        marks: the marks; the first is the one that the header points to.
        paint: adds colour or not.
        width: columns of the terminal; longer source lines are cut around their marks.
        digits: columns of the line numbers.
    """
    by_file: dict[SourceFile, list[Mark]] = {}
    for mark in marks:
        by_file.setdefault(mark.span.file, []).append(mark)
    drawn: list[str] = []
    for index, (file, own) in enumerate(by_file.items()):
        arrow = paint("gutter", " " * digits + (":::" if index else "-->"))
        drawn.append(f"{arrow} {visible(str(own[0].span))}")
        if file.text:
            bar = paint("gutter", " " * digits + " |")
            excerpt = Excerpt(file, own, paint=paint, width=width, digits=digits)
            drawn += [bar, *excerpt.lines()]
    return drawn
