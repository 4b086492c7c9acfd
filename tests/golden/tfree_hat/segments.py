"""Where segments of a text begin; nothing here knows of tokens."""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Protocol


class Rule(Protocol):
    """Cuts a text into segments; nothing is lost, for a rule only says where they begin."""

    def cuts(self, data: bytes) -> list[int]:
        """Return the offsets at which segments of a text begin: 0 and later ones, in order."""

    def splitter(self) -> ByteSplitter:
        """Return what finds the same segments in bytes that arrive one by one.

        Raises:
            ValueError: the rule has to read the whole text first.
        """


class ByteSplitter(Protocol):
    """Finds segments in bytes that arrive one by one."""

    @property
    def pending(self) -> int:
        """How many of the last bytes belong to a character that is not complete."""

    def push(self, byte: int) -> list[int]:
        """Read a byte; return the offsets at which segments are now known to begin."""

    def restart(self) -> None:
        """Begin a segment with the next byte, whatever came before."""


class TextSplitter:
    """Finds the segments of a text whose bytes arrive one by one, by cutting anew what is open.

    The open segment and the next character are cut by themselves: more than one piece means that
    the character begins a segment. A character is known with its last byte, so a segment that
    begins with a character of n bytes is found n - 1 bytes late, at most 3.

    Args:
        cut: cuts a text into segments, without a limit.
        limit: bytes per segment at most; 0 for any number.
    """

    def __init__(self, cut: Callable[[str], list[str]], limit: int = 0) -> None:
        self._cut, self._limit = cut, limit
        self._at = 0  # bytes that were read as characters
        self._open, self._size, self._is_fresh = "", 0, True
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    @property
    def pending(self) -> int:
        """How many of the last bytes belong to a character that is not complete."""
        return len(self._decoder.getstate()[0])

    def push(self, byte: int) -> list[int]:
        """Read a byte; return the offsets at which segments are now known to begin."""
        found = [self._at] if self._is_fresh else []
        self._is_fresh = False
        for character in self._decoder.decode(bytes((byte,))):
            found += self._take(character)
        return found

    def restart(self) -> None:
        """Begin a segment with the next byte, whatever came before."""
        self._at += self.pending
        self._decoder.reset()
        self._open, self._size, self._is_fresh = "", 0, True

    def _take(self, character: str) -> list[int]:
        """Read a character; `_open` is the segment so far, `_size` what the limit left of it."""
        found, length = [], len(character.encode("utf-8", "surrogateescape"))
        pieces = self._cut(self._open + character)
        if len(pieces) > 1:
            # where a rule looks ahead, a segment may begin before the character
            back = len(pieces[-1].encode("utf-8", "surrogateescape")) - length
            found.append(self._at - back)
            self._size = back
        self._open = pieces[-1]
        if self._limit:
            if self._size and self._size + length > self._limit:
                found.append(self._at)
                self._size = 0
            # a character that is longer than the limit is cut
            found += range(self._at + self._limit, self._at + length, self._limit)
            self._size = (self._size + length - 1) % self._limit + 1
        self._at += length
        return found


def cut_long(words: Iterable[str], limit: int) -> list[int]:
    """Return the bytes at which words begin, and at which long words are cut.

    Args:
        words: the words of a text in order.
        limit: bytes per segment at most; 0 for any number. A cut is made between characters where
            that is possible.
    """
    found: list[int] = []
    at = 0
    for word in words:
        found.append(at)
        length = len(word.encode("utf-8", "surrogateescape"))
        if limit and length > limit:
            found += _places(word, at, limit)
        at += length
    return found


def _places(word: str, at: int, limit: int) -> list[int]:
    found: list[int] = []
    size = 0
    for character in word:
        length = len(character.encode("utf-8", "surrogateescape"))
        if size and size + length > limit:
            found.append(at)
            size = 0
        # a character that is longer than the limit is cut
        found += range(at + limit, at + length, limit)
        size = (size + length - 1) % limit + 1
        at += length
    return found


@cache
def word_pattern() -> SimpleNamespace:
    """Return compiled patterns: the segments of UAX #29, and where they are cut further.

    Raises:
        ModuleNotFoundError: the library that knows the word boundaries is not installed.
    """
    try:
        import regex  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "cutting text into words needs the library `regex`: pip install regex"
        ) from error
    hebrew, quote, number = r"\p{WB=Hebrew_Letter}", r"\p{WB=Single_Quote}", r"\p{WB=Numeric}"
    letter, between = rf"[\p{{WB=ALetter}}{hebrew}]", rf"\p{{WB=MidNumLet}}{quote}"
    # WB4: these continue what is before them
    more = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"
    # WB5 to WB12: letters and numbers, with one mark between them
    run = (
        rf"(?:{hebrew}{more}\p{{WB=Double_Quote}}{more}(?={hebrew})"
        rf"|{letter}{more}(?:[\p{{WB=MidLetter}}{between}]{more}(?={letter}))?"
        rf"|{number}{more}(?:[\p{{WB=MidNum}}{between}]{more}(?={number}))?)+"
    )
    # WB13: katakana; WB13a and b: underscores join all of these; WB7a: a quote ends Hebrew
    items = rf"(?:{run}|(?:\p{{WB=Katakana}}{more})+)"
    under = rf"(?:\p{{WB=ExtendNumLet}}{more})"
    end = rf"(?:{under}+|(?<={hebrew}{more}){quote}{more})?"
    word = rf"(?:{under}*{items}(?:{under}+{items})*{end}|{under}+)"
    # WB3d: spaces; WB15 and 16: flags; WB3c: what a joiner holds together; WB3 to 3b: line ends
    flag = rf"\p{{WB=Regional_Indicator}}{more}"
    one = rf"(?:{word}|\p{{WB=WSegSpace}}+{more}|{flag}{flag}|.{more})"
    line = r"\r\n|[\r\n\p{WB=Newline}]"
    whole = rf"{line}|{one}(?:(?<=\u200d)(?=\p{{Extended_Pictographic}}){one})*"
    return SimpleNamespace(
        segment=regex.compile(whole, regex.DOTALL | regex.VERSION1),
        inside=regex.compile(r"(?<=\p{P})|(?<=\p{Ll})(?=\p{Lu})", regex.VERSION1),
        punctuation=regex.compile(r"\p{P}"),
        white=regex.compile(r"\p{White_Space}+"),
    )


class Words:
    """Words of Unicode text, with punctuation after them and the space before them.

    A text is cut at the word boundaries of Unicode (UAX #29), behind every punctuation character
    and inside camelCase. Then a word joins a single space before it, and punctuation joins a word,
    punctuation or a single space before it. Any bytes may be cut: those that are not UTF-8 count
    as characters of one byte.

    Args:
        max_bytes: a longer word is cut, between characters where that is possible; 0 for never.

    Raises:
        ModuleNotFoundError: the library that knows the word boundaries is not installed.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        if max_bytes < 0:
            raise ValueError(f"a word has at least one byte, not {max_bytes}")
        self._limit = max_bytes
        self._patterns: SimpleNamespace = word_pattern()

    def cuts(self, data: bytes) -> list[int]:
        """Return the offsets at which segments of a text begin: 0 and later ones, in order."""
        return cut_long(self._words(data.decode("utf-8", "surrogateescape")), self._limit)

    def splitter(self) -> TextSplitter:
        """Return what finds the same segments in bytes that arrive one by one.

        Where the boundary before a character depends on what follows it, the two may differ:
        combining marks and joiners behind white space or punctuation.
        """
        return TextSplitter(self._words, self._limit)

    def _words(self, text: str) -> list[str]:
        found: list[str] = []
        last = ""
        for part in self._parts(text):
            kind = self._kind(part)
            if (last == "space" and kind == "word") or (last and kind == "punctuation"):
                found[-1] += part
            else:
                found.append(part)
            # nothing joins white space that is not a single space
            last = "" if kind == "white" else kind
        return found

    def _parts(self, text: str) -> list[str]:
        parts: list[str] = []
        is_space = False
        for segment in self._patterns.segment.findall(text):
            for part in self._patterns.inside.split(segment):
                if part == " " and is_space:
                    parts[-1] += part
                elif part:
                    parts.append(part)
                    is_space = part == " "
        return parts

    def _kind(self, part: str) -> str:
        if part == " ":
            return "space"
        if self._patterns.white.fullmatch(part):
            return "white"
        return "punctuation" if self._patterns.punctuation.fullmatch(part) else "word"


def token_flags(
    cuts: Sequence[int], spans: Sequence[tuple[int, int] | None], data: bytes
) -> list[bool]:
    """Return which tokens begin a segment.

    White space at the ends of a token does not decide to which segment it belongs. A special
    token, and a token that still belongs to two segments, is a segment of its own.

    Args:
        cuts: the offsets at which segments of the text begin.
        spans: the bytes of the text that each token stands for; None for special tokens.
        data: the text.
    """
    if len(spans) == len(data) and None not in spans:  # one token per byte
        flags = [False] * len(data)
        for at in cuts:
            flags[at] = True
        return flags
    found: list[bool] = []
    last: int | None = None
    for span in spans:
        segment = None if span is None else _segment(cuts, span, data)
        found.append(segment is None or segment != last)
        last = segment
    return found


def _segment(cuts: Sequence[int], span: tuple[int, int], data: bytes) -> int | None:
    start, stop = span
    text = data[start:stop]
    if text.strip():
        start, stop = stop - len(text.lstrip()), start + len(text.rstrip())
    first = bisect_right(cuts, start)
    return first if bisect_right(cuts, max(start, stop - 1)) == first else None
