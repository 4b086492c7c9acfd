"""From characters to tokens, with the terminals of the grammar."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache

from tokdsl.syntax.tables import load_tables

#: What is not a token of the language but must be told apart to be reported well.
MISTAKES = (
    ("BAD_NUMBER", r"\d\w*(?:\.\d\w*)?(?:(?<=[eE])[+-]\d\w*)?"),
    ("OPEN_STRING", r"\"[^\n]*|'[^\n]*"),
    ("BAD_CHARACTER", r"[^\n]"),
)

_MISTAKEN = {kind for kind, _ in MISTAKES}

#: Characters that follow a string on its line; they are not part of an unterminated one.
_AFTER_STRING = ")]},; \t\r"


@dataclass(slots=True)
class Tokens:
    """Tokens as parallel lists, which is the fastest form to parse from.

    Args:
        kinds: the terminal of each token.
        values: its text, or a node for `BODY`.
        starts: where it starts in the file.
        ends: where it ends in the file.
    """

    kinds: list[str] = field(default_factory=list)
    values: list[object] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def add(self, kind: str, value: object, start: int, end: int) -> None:
        """Append one token."""
        self.kinds.append(kind)
        self.values.append(value)
        self.starts.append(start)
        self.ends.append(end)

    def cut(self, size: int) -> None:
        """Forget all tokens from ``size`` on."""
        del self.kinds[size:], self.values[size:], self.starts[size:], self.ends[size:]

    def part(self, low: int, high: int) -> Tokens:
        """Return the tokens from ``low`` up to ``high``."""
        window = slice(low, high)
        return Tokens(
            self.kinds[window], self.values[window], self.starts[window], self.ends[window]
        )

    def __len__(self) -> int:
        return len(self.kinds)


@dataclass(frozen=True, slots=True)
class Mistake:
    """A piece of text that is no token."""

    kind: str
    start: int
    end: int
    text: str


@dataclass(slots=True)
class Lexed:
    """The tokens of a text, which of them begin a line, its comments and its mistakes."""

    tokens: Tokens
    first: bytearray
    comments: list[tuple[int, int]]
    mistakes: list[Mistake]


@cache
def _scanner() -> re.Pattern[str]:
    named = dict(load_tables().patterns)
    space = named.pop("SPACE")
    patterns = [f"(?P<{name}>{pattern})" for name, pattern in (*named.items(), *MISTAKES)]
    return re.compile(f"(?:{space})?(?:{'|'.join(patterns)})?")


def lex(text: str) -> Lexed:
    """Split a text into tokens; nothing is lost and nothing raises.

    A bad number becomes a `NUMBER` and an unterminated string a `STRING`, so that what is around
    them still parses; a bad character is left out. Each is listed among the mistakes.
    """
    lexed = Lexed(Tokens(), bytearray(), [], [])
    tokens, first = lexed.tokens, lexed.first
    kinds, values, starts, ends = tokens.kinds, tokens.values, tokens.starts, tokens.ends
    word = load_tables().words.get
    match = _scanner().match
    new_line, at, size = 1, 0, len(text)
    while at < size:
        found = match(text, at)
        assert found is not None
        kind = found.lastgroup
        if kind is None:  # space at the end
            break
        start, at = found.span(kind)
        if kind == "LINE_BREAK":
            new_line = 1
            continue
        if kind == "COMMENT":
            lexed.comments.append((start, at))
            continue
        value = text[start:at]
        if kind == "NAME":
            kind = word(value, kind)
        elif kind in _MISTAKEN:
            kind, at = _mend(lexed, kind, start, value)
            if not kind:
                continue
            value = text[start:at]
        kinds.append(kind)
        values.append(value)
        starts.append(start)
        ends.append(at)
        first.append(new_line)
        new_line = 0
    return lexed


def _mend(lexed: Lexed, kind: str, start: int, value: str) -> tuple[str, int]:
    """List a mistake; return the token to read instead, if any, and where it ends."""
    end = start + len(value)
    if kind == "OPEN_STRING":
        end = start + max(len(value.rstrip(_AFTER_STRING)), 1)
    lexed.mistakes.append(Mistake(kind, start, end, value[: end - start]))
    return {"BAD_NUMBER": "NUMBER", "OPEN_STRING": "STRING"}.get(kind, ""), end
