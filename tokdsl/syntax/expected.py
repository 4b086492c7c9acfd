"""Words for tokens: what was expected, and what was found."""

from __future__ import annotations

from collections.abc import Iterable

from tokdsl.syntax.layout import VALUE_STARTS

_SIGNS = {
    "COMMA": ",", "SEMICOLON": ";", "RPAR": ")", "RSQB": "]", "RBRACE": "}", "LPAR": "(",
    "LSQB": "[", "LBRACE": "{", "BODY": "{", "EQUAL": "=", "COLON": ":", "__ANON_0": "->",
    "DOT": ".", "VBAR": "|", "USE": "use", "MODEL": "model", "STAGE": "stage", "REPEAT": "repeat",
    "RESIDUAL": "residual", "SHARED": "shared", "AUX": "aux", "REQUIRE": "require",
    "OBJECTIVE": "objective", "WEIGHTS": "weights", "AS": "as", "OF": "of", "ELSE": "else",
    "STAR": "*",
}  # fmt: skip
_ORDER = list(_SIGNS)
#: What can always follow a value; saying so would help nobody.
_AFTER_VALUE = {
    "PLUS", "MINUS", "STAR", "SLASH", "FLOORDIV", "PERCENT", "POWER", "COMPARE", "AND", "OR",
    "DOT", "LPAR", "LSQB", "OF",
}  # fmt: skip
_STATEMENT = {"STAGE", "REPEAT", "RESIDUAL", "SHARED", "AUX", "REQUIRE", "OBJECTIVE", "WEIGHTS"}


def expected_words(kinds: Iterable[str]) -> list[str]:
    """Return the terminals that could come next as words, the most telling first."""
    left = set(kinds)
    words = []
    if left & _STATEMENT and "EQUAL" not in left:
        words.append("a statement")
        left -= _STATEMENT | VALUE_STARTS | {"MISSING"}
    elif {"NAME", "NUMBER"} <= left:
        words.append("a value")
        left -= VALUE_STARTS | {"MISSING", "STAR"}
    elif {"NAME", "LSQB", "LPAR"} <= left:
        words.append("a type")
        left -= {"NAME", "LSQB", "LPAR"}
    if "PLUS" in left:
        left -= _AFTER_VALUE
    if "NAME" in left:
        words.append("a name")
    if "STRING" in left:
        words.append("a string")
    if "KIND" in left:
        words.append("a definition")
    words += dict.fromkeys(f"`{_SIGNS[kind]}`" for kind in _ORDER if kind in left)
    if left & {"$END", "_END"}:
        words.append("a new line")
    return words or ["an operator"]


def one_of(words: list[str]) -> str:
    """Return ``a, b or c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
