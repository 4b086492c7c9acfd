"""Text as UTF-8 bytes: token n is byte n, special tokens follow from 256."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Self

__all__ = ["StreamDecoder", "Tokenizer"]

FILE = "tokenizer.json"
BYTES = 256
#: bytes that are in no text of UTF-8
UNUSED = (0xC0, 0xC1, *range(0xF5, 0x100))


class Tokenizer:
    """Maps text to bytes and back; special tokens stand for no text.

    Args:
        specials: the special tokens in the order of their numbers; ``bos``, ``eos`` and ``pad``
            are used for the beginning and the end of a text and for padding.
        place: where their numbers are: ``after`` the bytes, ``before`` them (so that byte n is
            token n plus the number of special tokens), or ``unused``: those of bytes that no text
            has, so that there are 256 tokens.
    """

    def __init__(self, specials: Iterable[str] = (), place: str = "after") -> None:
        self.specials, self.place = tuple(specials), place
        if len(set(self.specials)) < len(self.specials) or "" in self.specials:
            raise ValueError(f"specials must be different names, not {self.specials}")
        starts = {"after": range(BYTES, BYTES + len(self.specials)), "unused": UNUSED}
        numbers = {**starts, "before": range(len(self.specials))}.get(place)
        if numbers is None or len(numbers) < len(self.specials):
            raise ValueError(f"{len(self.specials)} special tokens cannot be placed {place!r}")
        #: the number of each special token
        self.numbers = dict(zip(self.specials, numbers, strict=False))
        #: the token of byte 0
        self.first = len(self.specials) if place == "before" else 0
        self.vocab_size = BYTES + (0 if place == "unused" else len(self.specials))
        self.bos = self.numbers.get("bos")
        self.eos = self.numbers.get("eos")
        self.pad = self.numbers.get("pad")
        self._names = {number: name for name, number in self.numbers.items()}

    def encode(self, text: str, *, with_specials: bool = False) -> list[int]:
        """Return the tokens of a text.

        Args:
            text: any text.
            with_specials: read the name of a special token as that token.
        """
        found: list[int] = []
        for part in self.parts(text, with_specials):
            found += [part] if isinstance(part, int) else self._tokens(_bytes(part))
        return found

    def encode_bytes(self, data: bytes) -> list[int]:
        """Return the tokens of any bytes, one per byte.

        Raises:
            ValueError: a byte is the number of a special token.
        """
        return self._tokens(data)

    def parts(self, text: str, with_specials: bool = False) -> list[str | int]:
        """Return the pieces of a text between special tokens, and the numbers of these."""
        if not with_specials or not self.specials:
            return [text]
        names = sorted(map(re.escape, self.specials), key=len, reverse=True)
        pieces = re.split(f"({'|'.join(names)})", text)
        return [self.numbers[p] if i % 2 else p for i, p in enumerate(pieces) if p]

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int] | None]]:
        """Return tokens and the bytes of the text that each stands for."""
        ids = self._tokens(_bytes(text))
        return ids, [(at, at + 1) for at in range(len(ids))]

    def token_bytes(self, token: int) -> bytes | None:
        """Return the bytes that a token stands for; None for a special token."""
        return None if self._checked(token) in self._names else bytes((token - self.first,))

    def decode(self, ids: Iterable[int], *, with_specials: bool = False) -> str:
        """Return the text of tokens; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: tokens.
            with_specials: write the names of special tokens.
        """
        if with_specials:
            ids = list(ids)
            text = (self._names.get(i, "").encode() or self.decode_bytes([i]) for i in ids)
            return b"".join(text).decode("utf-8", "replace")
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that the tokens stand for."""
        return b"".join(filter(None, map(self.token_bytes, ids)))

    def byte_length(self, ids: Iterable[int]) -> int:
        """Return how many bytes of text the tokens stand for."""
        return len(self.decode_bytes(ids))

    def is_piece(self, text: str) -> bool:
        """Whether a text is one piece before it is cut into tokens: every text is."""
        return True

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder for tokens that arrive one by one."""
        return StreamDecoder(self)

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` into a folder."""
        content: dict[str, object] = {"kind": "bytes", "specials": list(self.specials)}
        if self.place != "after":
            content["place"] = self.place
        Path(folder, FILE).write_text(json.dumps(content, indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the tokenizer that was saved in a folder."""
        content = json.loads(Path(folder, FILE).read_text("utf-8"))
        if content.get("kind") != "bytes":
            raise ValueError(f"{FILE} is not a bytes tokenizer: {content.get('kind')!r}")
        return cls(content["specials"], content.get("place", "after"))

    def _tokens(self, data: bytes) -> list[int]:
        if self.place == "unused":
            taken = set(data) & self._names.keys()
            if taken:
                byte = min(taken)
                raise ValueError(f"byte {byte:#x} stands for the token {self._names[byte]!r}")
        return [byte + self.first for byte in data] if self.first else list(data)

    def _checked(self, token: int) -> int:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token {token} is outside the vocabulary of {self.vocab_size}")
        return token


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class StreamDecoder:
    """Turns tokens into text as they arrive and never gives out half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the text that is complete now that the token is known; it may be empty."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def flush(self) -> str:
        """Return what is left at the end."""
        return self._decoder.decode(b"", True)
