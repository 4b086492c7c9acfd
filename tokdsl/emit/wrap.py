"""Line breaking of emitted statements, as a formatter would do it (100 columns)."""

from __future__ import annotations

import re

WIDTH = 100

_OPEN = "([{"
_OPERATORS = ("+ ", "- ", "* ", "/ ", "< ", "> ", "& ", "| ", "if", "==")
_CLOSE = ")]}"
_STRING = re.compile(r'"[^"]*"')


def wrap(statement: str, indent: int, width: int = WIDTH) -> list[str]:
    """Return the lines of a one-line statement, broken at brackets where it is too long."""
    pad = " " * indent
    if indent + len(statement) <= width:
        return [pad + statement]
    bracket = _last_bracket(statement)
    if bracket is None:
        return _parenthesised(statement, indent, width)
    start, end = bracket
    head, inner, tail = statement[: start + 1], statement[start + 1 : end], statement[end:]
    if indent + len(head) > width or (
        " = " in statement[: start + 1] and _operator_outside(statement)
    ):
        return _parenthesised(statement, indent, width)
    parts = _split(inner, ",")
    lines = [pad + head]
    whole = " " * (indent + 4) + inner.strip()
    if len(whole) <= width and (len(parts) == 1 or _fits_tail(tail, indent)):
        lines.append(whole)
    else:
        for part in parts:
            piece = part.strip() + ("," if len(parts) > 1 or not _is_generator(inner) else "")
            lines += _argument(piece, indent + 4, width)
    lines.append(pad + tail)
    return lines


def _argument(piece: str, indent: int, width: int) -> list[str]:
    """Return the lines of what stands between brackets: broken before `and` and `or` first."""
    if indent + len(piece) <= width:
        return [" " * indent + piece]
    parts = _split_at(piece, ("or",))
    parts = parts if len(parts) > 1 else _split_at(piece, ("and",))
    return [line for part in parts for line in wrap(part, indent, width)]


def _fits_tail(tail: str, indent: int) -> bool:
    return indent + len(tail) <= WIDTH


def _is_generator(inner: str) -> bool:
    return " for " in inner


def _operator_outside(statement: str) -> bool:
    """Whether a binary operator stands outside all brackets of the right side."""
    right = statement.partition(" = ")[2]
    depth = 0
    for i, char in enumerate(_code(right)):
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        elif depth == 0 and char == " " and right[i + 1 : i + 3] in _OPERATORS:
            return True
    return False


def _parenthesised(statement: str, indent: int, width: int) -> list[str]:
    """Wrap the right side in parentheses and break it before its outermost operators."""
    left, equals, right = statement.partition(" = ")
    keyword = ""
    if not equals:
        keyword, _, right = statement.partition(" ")
        if keyword != "return":
            return _broken_inside(statement, indent, width)
        left, equals = "return", " "
    else:
        equals = " = "
    pad, inner = " " * indent, " " * (indent + 4)
    if indent + 4 + len(right) <= width:
        return [f"{pad}{left}{equals}(", inner + right, f"{pad})"]
    lines = [f"{pad}{left}{equals}("]
    pieces = _split_operators(right)
    operator, _, last = pieces[-1].partition(" ")
    if len(pieces) == 2 and last.startswith("(") and _last_bracket(last) == (0, len(last) - 1):
        # a single operator before a bracket: the bracket is broken
        lines = [f"{pad}{left}{equals}{pieces[0]} {operator} ("]
        inner_text = last[1:-1]
        fits = indent + 4 + len(inner_text) <= width
        pieces = [inner_text] if fits else _split_operators(inner_text)
    for piece in pieces:
        lines += wrap(piece, indent + 4, width)
    return [*lines, f"{pad})"]


def _broken_inside(text: str, indent: int, width: int) -> list[str]:
    """Break an expression at the bracket that holds most of it, whatever follows."""
    bracket = max(_brackets(text), key=lambda pair: pair[1] - pair[0], default=None)
    if bracket is None or indent + bracket[0] >= width:
        return [" " * indent + text]
    start, end = bracket
    inner = _split(text[start + 1 : end], ",")
    lines = [" " * indent + text[: start + 1]]
    for part in inner:
        comma = "," if len(inner) > 1 else ""
        lines += _argument(part.strip() + comma, indent + 4, width)
    return [*lines, " " * indent + text[end:]]


def _split_operators(text: str) -> list[str]:
    """Split before the loosest operators outside brackets."""
    for group in (("if", "else"), ("or",), ("and",), ("|",), ("&",), ("+", "-"), ("*", "/", "@")):
        pieces = _split_at(text, group)
        if len(pieces) > 1:
            return pieces
    return [text]


def _split_at(text: str, group: tuple[str, ...]) -> list[str]:
    """Split before some operators outside brackets."""
    pieces: list[str] = []
    depth, start = 0, 0
    for i, char in enumerate(_code(text)):
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        elif depth == 0 and char == " ":
            for word in group:
                if text.startswith(f" {word} ", i) and i > start:
                    pieces.append(text[start:i])
                    start = i + 1
                    break
    pieces.append(text[start:])
    return pieces


def _brackets(text: str) -> list[tuple[int, int]]:
    """Return the outermost bracket pairs that are not empty, in order."""
    stack: list[int] = []
    found: list[tuple[int, int]] = []
    for i, char in enumerate(_code(text)):
        if char in _OPEN:
            stack.append(i)
        elif char in _CLOSE and stack:
            start = stack.pop()
            if not stack and i > start + 1:
                found.append((start, i))
    return found


def _last_bracket(text: str) -> tuple[int, int] | None:
    """Return the outermost bracket pair that ends last and is not empty."""
    return next(reversed(_brackets(text)), None)


def _code(text: str) -> str:
    """Return the text with the content of string literals blotted out: nothing breaks there."""
    return _STRING.sub(lambda found: "_" * len(found.group()), text)


def _split(text: str, separator: str) -> list[str]:
    parts: list[str] = []
    depth, start = 0, 0
    for i, char in enumerate(_code(text)):
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        elif depth == 0 and char == separator:
            parts.append(text[start:i])
            start = i + 1
    last = text[start:]
    if last.strip():
        parts.append(last)
    return parts
