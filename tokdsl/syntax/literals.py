"""Reads and writes numbers and strings."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from tokdsl.diagnostics import Diagnostic, Severity
from tokdsl.source import SourceFile, Span
from tokdsl.syntax import tree

#: What a unit behind a number multiplies it by.
UNITS = {
    "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip

#: Digits that a number may have; sizes and rates need far fewer.
DIGIT_LIMIT = 64

_NUMBER = re.compile(r"(\d[\d_]*)(\.[\d_]+)?([eE][+-]?\d+)?([A-Za-z]*)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", '"': '"', "'": "'", "\\": "\\"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)


class NumberOutOfRange(
    Diagnostic, code="TOK108", name="number-out-of-range", severity=Severity.ERROR
):
    """A number is too large or too small to be held.

    Whole numbers are held in 64 bits and other numbers as double precision (up to about 1.8e308).

    ```tok error
    model big(theta: float = 1e999) {
      require causal
    }
    ```
    ```tok ok
    model big(theta: float = 1e6) {
      require causal
    }
    ```
    """

    text: str
    limit: str

    def message(self) -> str:
        """Say which number passes which limit."""
        shown = self.text if len(self.text) <= 24 else f"{self.text[:12]}...{self.text[-4:]}"
        return f"number `{shown}` is out of range: {self.limit}"

    def label(self) -> str:
        """Say it shortly."""
        return "does not fit"


class UnknownEscape(Diagnostic, code="TOK119", name="unknown-escape", severity=Severity.ERROR):
    r"""A backslash in a string is followed by something without a meaning.

    Known are `\n`, `\t`, `\r`, `\0`, `\\`, `\"`, `\'`, `\x41`, `\u00e9` and `\U0001f600`. In a
    string with single quotes a backslash is an ordinary character, which suits patterns.

    ```tok error
    model words(pattern: str = "\s+") {
      require causal
    }
    ```
    ```tok ok
    model words(pattern: str = '\s+') {
      require causal
    }
    ```
    """

    escape: str

    def message(self) -> str:
        """Say which escape is unknown."""
        return f"unknown escape `{self.escape}` in a string"

    def label(self) -> str:
        """Say it shortly."""
        return "has no meaning"


class Literals:
    """Builds number and string nodes, and reports what cannot be held.

    Args:
        source: the file that the spans point into.
        found: the list that findings are added to.
    """

    def __init__(self, source: SourceFile, found: list[Diagnostic]) -> None:
        self.source = source
        self.found = found

    def number(self, text: str, span: Span) -> tree.Number:
        """Return the number that a text stands for.

        Reports:
            TOK108 when it cannot be held.
        """
        if text.isascii() and text.isdigit() and len(text) < 19:
            return tree.Number(span, int(text))
        parts = _NUMBER.fullmatch(text)
        unit = parts[4] if parts else ""
        if parts is None or (unit and unit not in UNITS):
            return tree.Number(span, 0)  # reported by the lexer
        digits = text[: len(text) - len(unit)].replace("_", "")
        limit = _out_of_range(digits, unit)
        if limit:
            self.found.append(NumberOutOfRange(span=span, text=text, limit=limit))
            return tree.Number(span, 0, unit)
        return tree.Number(span, number_value(digits, unit), unit)

    def string(self, text: str, span: Span) -> tree.String:
        r"""Return the string that a quoted text stands for.

        Reports:
            TOK119 when a backslash is followed by something without a meaning.
        """
        inner = text[1:-1] if len(text) > 1 and text[-1] == text[0] else text[1:]
        if text[0] == "'" or "\\" not in inner:
            return tree.String(span, inner)
        return tree.String(span, _ESCAPE.sub(lambda found: self._escaped(found, span), inner))

    def _escaped(self, found: re.Match[str], span: Span) -> str:
        code = found[1]
        if code in _ESCAPES:
            return _ESCAPES[code]
        if len(code) > 1:
            point = int(code[1:], 16)
            if point <= 0x10FFFF and not 0xD800 <= point <= 0xDFFF:
                return chr(point)
        at = span.start + 1 + found.start()
        place = Span(span.file, at, min(at + len(found[0]), span.end))
        self.found.append(
            UnknownEscape(
                span=place,
                escape=found[0],
                help=f"write `\\\\{code[0]}` for a backslash, or use a string in single quotes",
            )
        )
        return found[0]


def number_value(digits: str, unit: str) -> int | float:
    """Return the value of digits with a unit; whole results are integers."""
    if not unit:
        return int(digits) if digits.isdigit() else float(digits)
    exact = Decimal(digits) * UNITS[unit]
    return int(exact) if exact == exact.to_integral_value() else float(exact)


def _out_of_range(digits: str, unit: str) -> str:
    """Return the limit that a number passes, or nothing."""
    whole = digits.isdigit()
    if whole and (len(digits) > DIGIT_LIMIT or int(digits) * UNITS.get(unit, 1) >= 2**63):
        return "whole numbers end at 9223372036854775807 (64 bits)"
    if whole:
        return ""
    if len(digits) > DIGIT_LIMIT:
        return f"at most {DIGIT_LIMIT} digits are read"
    value = float(digits) * UNITS.get(unit, 1)
    if math.isinf(value) or (unit and value >= 2**63):
        return "numbers end at 1.8e308" if not unit else "sizes end at 9223372036854775807"
    if value == 0.0 and re.search(r"[1-9]", re.split("[eE]", digits)[0]):
        return "numbers other than zero begin at 4.9e-324"
    return ""


def number_text(value: int | float, unit: str) -> str:
    """Return the shortest usual text of a number: `13B`, `1e6`, `0.5`."""
    if unit:
        exact = (Decimal(repr(value)) / UNITS[unit]).normalize()
        return f"{exact:f}{unit}"
    text = repr(value)
    if isinstance(value, int):
        return text
    mantissa, mark, exponent = text.partition("e")
    if not mark:
        digits = Decimal(text).normalize().as_tuple()
        if len(digits.digits) > 1 or not value:
            return text
        mantissa, exponent = str(digits.digits[0]), str(digits.exponent)
    short = f"{mantissa}e{int(exponent)}"
    return short if mark or len(short) + 2 < len(text) else text


def string_text(value: str) -> str:
    """Return the text of a string, in single quotes where that saves escapes."""
    plain = all(is_plain(character) for character in value)
    if plain and ("\\" in value or '"' in value) and "'" not in value:
        return f"'{value}'"
    return '"' + "".join(_escape(character) for character in value) + '"'


def is_plain(character: str) -> bool:
    """Return whether a character can stand in a source text as it is."""
    return character.isprintable() and character != "\ufffd"


def _escape(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if is_plain(character):
        return character
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0"}
    point = ord(character)
    if character in short:
        return short[character]
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
