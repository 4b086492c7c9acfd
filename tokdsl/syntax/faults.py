"""Findings about characters, brackets and nesting: what is wrong before any sentence is read."""

from __future__ import annotations

from collections.abc import Iterator

from tokdsl.diagnostics import Diagnostic, Edit, Fix, Label, Severity, did_you_mean
from tokdsl.source import SourceFile, Span
from tokdsl.syntax.layout import Fault
from tokdsl.syntax.lexer import Mistake
from tokdsl.syntax.literals import UNITS
from tokdsl.syntax.mistakes import UnexpectedToken


class UnclosedBracket(Diagnostic, code="TOK104", name="unclosed-bracket", severity=Severity.ERROR):
    """An opening bracket has no partner.

    Where the partner is missing is worked out from the lines and their indentation; what follows is
    read as if it stood there.

    ```tok error
    model small(d: int = 64) {
      stage text(ids: tokens[256]) {
        embed(d
        unembed(256)
      }
    }
    ```
    ```tok ok
    model small(d: int = 64) {
      stage text(ids: tokens[256]) {
        embed(d)
        unembed(256)
      }
    }
    ```
    """

    sign: str
    closer: str

    def message(self) -> str:
        """Say which bracket is open."""
        return f"unclosed `{self.sign}`: expected a matching `{self.closer}`"

    def label(self) -> str:
        """Say it shortly."""
        return f"this `{self.sign}` is never closed"


class MissingBrace(Diagnostic, code="TOK118", name="missing-brace", severity=Severity.ERROR):
    """A block has no opening brace.

    The indented lines that follow are read as the block.

    ```tok error
    fn double(x: [*, d]) -> [*, d]
      2 * x
    }
    ```
    ```tok ok
    fn double(x: [*, d]) -> [*, d] {
      2 * x
    }
    ```
    """

    def message(self) -> str:
        """Say what is missing."""
        return "expected `{` before the lines of the block"

    def label(self) -> str:
        """Say where it belongs."""
        return "`{` belongs behind this"


class StrayBracket(Diagnostic, code="TOK105", name="stray-bracket", severity=Severity.ERROR):
    """A closing bracket has no partner.

    Either it is one too many, or its opening bracket is missing.

    ```tok error
    model small(d: int = 64) {
      stage text(ids: tokens[256]) {
        embed(d))
      }
    }
    ```
    ```tok ok
    model small(d: int = 64) {
      stage text(ids: tokens[256]) {
        embed(d)
      }
    }
    ```
    """

    sign: str

    def message(self) -> str:
        """Say which bracket is too many."""
        return f"unexpected `{self.sign}`: nothing is open that it could close"

    def label(self) -> str:
        """Say it shortly."""
        return "closes nothing"


class UnterminatedString(
    Diagnostic, code="TOK106", name="unterminated-string", severity=Severity.ERROR
):
    r"""A string does not end on its line.

    A line break inside a string is written `\n`.

    ```tok error
    model small {
      tokenizer = bpe("tokenizer.json)
    }
    ```
    ```tok ok
    model small {
      tokenizer = bpe("tokenizer.json")
    }
    ```
    """

    quote: str

    def message(self) -> str:
        """Say what is missing."""
        return f"unterminated string: expected a closing `{self.quote}` on the same line"

    def label(self) -> str:
        """Say it shortly."""
        return "the string begins here"


class UnknownCharacter(
    Diagnostic, code="TOK107", name="unknown-character", severity=Severity.ERROR
):
    """A character has no meaning in the language.

    Outside strings and comments only letters, digits and the signs of the language are read.

    ```tok error
    fn double(x: [*, d]) -> [*, d] {
      2 \u00d7 x
    }
    ```
    ```tok ok
    fn double(x: [*, d]) -> [*, d] {
      2 * x
    }
    ```
    """

    characters: str

    def message(self) -> str:
        """Say which characters."""
        return f"unknown character {shown_characters(self.characters)}"

    def label(self) -> str:
        """Say it shortly."""
        return "has no meaning here"


class NestedTooDeep(Diagnostic, code="TOK109", name="nested-too-deep", severity=Severity.ERROR):
    """Brackets and operators are nested too deeply.

    Up to 200 levels are read. Give inner parts names of their own.

    ```tok error
    fn deep(x: [*, d]) -> [*, d] {
      - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - -
      - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - -
      - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - -
      - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - -
      - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - x
    }
    ```
    ```tok ok
    fn deep(x: [*, d]) -> [*, d] {
      - - x
    }
    ```
    """

    limit: int

    def message(self) -> str:
        """Say the limit."""
        return f"nested too deeply: expected at most {self.limit} levels"

    def label(self) -> str:
        """Say it shortly."""
        return "the limit is passed here"


class MalformedNumber(Diagnostic, code="TOK116", name="malformed-number", severity=Severity.ERROR):
    """A number is followed by letters that are no unit.

    Units are `K M B T` (powers of 1000), `KB MB GB TB` and `KiB MiB GiB TiB` (powers of 1024).

    ```tok error
    model small {
      require active_params < 13X
    }
    ```
    ```tok ok
    model small {
      require active_params < 13B
    }
    ```
    """

    text: str

    def message(self) -> str:
        """Say what was written."""
        shown = self.text if len(self.text) <= 24 else f"{self.text[:20]}..."
        return f"`{shown}` is not a number with a known unit"

    def label(self) -> str:
        """Say what is known."""
        return "expected a number, or one with a unit such as `13B` or `128KiB`"


class BrokenEncoding(Diagnostic, code="TOK111", name="broken-encoding", severity=Severity.ERROR):
    """The file is not valid UTF-8.

    Each byte that could not be read is shown as `\ufffd`. Save the file as UTF-8.

    ```tok error
    # caf\ufffd
    model small {
      require causal
    }
    ```
    ```tok ok
    # café
    model small {
      require causal
    }
    ```
    """

    count: int

    def message(self) -> str:
        """Say how much is broken."""
        places = "1 place" if self.count == 1 else f"{self.count} places"
        return f"the text is not valid UTF-8 (in {places})"

    def label(self) -> str:
        """Say where it begins."""
        return "the first broken byte"


class BinaryText(Diagnostic, code="TOK112", name="binary-text", severity=Severity.ERROR):
    """The file is not text.

    It holds bytes that no text has, such as zero bytes, so it is not read further.

    ```sh error
    tokdsl check weights.safetensors
    ```
    ```sh ok
    tokdsl check model.tok
    ```
    """

    def message(self) -> str:
        """Say it."""
        return "expected text, found binary data"

    def label(self) -> str:
        """Say where."""
        return "the first byte that no text has"


#: What people write who know other languages.
_MEANT = {
    "&": "write `and`",
    "!": "write `not`, or `!=` to compare",
    "^": "a power is written `**`",
    "@": "a matrix product is written `dot(a, b; over = axis)`",
    "`": 'strings stand in `"` quotes',
    "\u201c": 'strings stand in `"` quotes',
    "\u201d": 'strings stand in `"` quotes',
    "\u2018": "strings stand in `'` quotes",
    "\u2019": "strings stand in `'` quotes",
    "\u2264": "write `<=`",
    "\u2265": "write `>=`",
    "\u2260": "write `!=`",
    "\u00b7": "write `*`",
    "\u00d7": "write `*`",
    "\u2212": "write `-`",
    "\u2013": "write `-`",
    "?": "a choice is written `if condition { a } else { b }`",
    "\\": "a line continues when it ends with an operator or inside brackets",
}


def shown_characters(characters: str) -> str:
    """Return characters as a message shows them."""
    if len(characters) == 1 and not characters.isprintable():
        return f"U+{ord(characters):04X}"
    shown = "".join(c if c.isprintable() else "\ufffd" for c in characters[:12])
    return f"`{shown}`"


def mistake_findings(source: SourceFile, mistakes: list[Mistake]) -> Iterator[Diagnostic]:
    """Report pieces of text that are no tokens; unknown characters once per line."""
    last_line, joined = -1, -1
    for place, mistake in enumerate(mistakes):
        span = Span(source, mistake.start, mistake.end)
        text = mistake.text
        if mistake.kind == "BAD_NUMBER":
            unit = text.lstrip("0123456789._")
            near = next((u for u in UNITS if u.lower() == unit.lower()), None)
            suggestion = f"did you mean `{near}`?" if near else did_you_mean(unit, UNITS)
            yield MalformedNumber(span=span, text=text, help=suggestion)
        elif mistake.kind == "OPEN_STRING":
            edit = Edit(Span(source, mistake.end, mistake.end), text[0])
            fix = Fix(f"close the string with `{text[0]}`", (edit,))
            yield UnterminatedString(span=span, quote=text[0], fix=fix)
        elif text != "\ufffd":
            line = span.line
            if line != last_line and mistake.start >= joined:
                run = _run(mistakes, place)
                joined = run[-1].end
                yield UnknownCharacter(
                    span=Span(source, mistake.start, joined),
                    characters=text * len(run),
                    help=_MEANT.get(text),
                )
            last_line = line


def _run(mistakes: list[Mistake], place: int) -> list[Mistake]:
    """Return the same character repeated (`&&`)."""
    end = place + 1
    while (
        end < len(mistakes)
        and mistakes[end].start == mistakes[end - 1].end
        and mistakes[end].text == mistakes[place].text
    ):
        end += 1
    return mistakes[place:end]


def fault_findings(source: SourceFile, faults: list[Fault], limit: int) -> Iterator[Diagnostic]:
    """Report brackets without a partner and brackets that are too deep, once per line."""
    closers = {"(": ")", "[": "]", "{": "}"}
    lines: set[int] = set()
    for fault in faults:
        span = Span(source, fault.start, fault.start + 1)
        if span.line in lines:
            continue
        lines |= {span.line, source.position(fault.at)[0]}
        if fault.kind == "stray":
            fix = Fix(f"remove the `{fault.sign}`", (Edit(span, ""),))
            yield StrayBracket(span=span, sign=fault.sign, fix=fix)
        elif fault.kind == "deep":
            yield NestedTooDeep(span=span, limit=limit)
        elif fault.kind == "foreign":
            yield UnexpectedToken(span=span, expected="a value", found=f"`{fault.sign}`")
        elif fault.kind == "unopened":
            here = Span(source, fault.at, fault.at)
            fix = Fix("insert ` {`", (Edit(here, " {"),))
            yield MissingBrace(span=Span(source, max(fault.at - 1, 0), fault.at), fix=fix)
        else:
            yield _unclosed(source, fault, span, closers[fault.sign])


def _unclosed(source: SourceFile, fault: Fault, span: Span, closer: str) -> Diagnostic:
    here = Span(source, fault.at, fault.at)
    also = [Label(Span(source, at, at + 1), "this one is open as well") for at in fault.others[:3]]
    return UnclosedBracket(
        span=span,
        sign=fault.sign,
        closer=closer,
        labels=(Label(here, f"`{closer}` may belong here"), *also),
        fix=Fix(f"insert `{closer}`", (Edit(here, closer),)),
    )


def encoding_findings(source: SourceFile) -> Iterator[Diagnostic]:
    """Report bytes that are no text, once per file."""
    text = source.text
    zero = text.find("\0")
    broken = text.count("\ufffd")
    if zero >= 0 or broken > 64 + len(text) // 16:
        at = zero if zero >= 0 else text.find("\ufffd")
        yield BinaryText(span=Span(source, at, at + 1))
    elif broken:
        at = text.find("\ufffd")
        yield BrokenEncoding(span=Span(source, at, at + 1), count=broken)


def is_binary(source: SourceFile) -> bool:
    """Return whether a text is not worth reading."""
    return any(isinstance(found, BinaryText) for found in encoding_findings(source))
