"""Parentheses in emitted expressions: only where Python needs them.

Operands arrive as Python text. A pattern such as ``{x} * {y}`` says where they go; `fill` works out
from Python's own grammar how tightly each place binds and wraps an operand that binds less.
"""

from __future__ import annotations

import ast
import string
from functools import lru_cache
from threading import Lock

#: how tightly the outermost operation of an expression binds
ANY, OR, AND, NOT, COMPARE, BIT_OR, BIT_XOR, BIT_AND, SHIFT, ADD, MULTIPLY, UNARY, POWER, ATOM = (
    range(14)
)

_BINARY: dict[type[ast.operator], int] = {
    ast.BitOr: BIT_OR,
    ast.BitXor: BIT_XOR,
    ast.BitAnd: BIT_AND,
    ast.LShift: SHIFT,
    ast.RShift: SHIFT,
    ast.Add: ADD,
    ast.Sub: ADD,
    ast.Mult: MULTIPLY,
    ast.MatMult: MULTIPLY,
    ast.Div: MULTIPLY,
    ast.FloorDiv: MULTIPLY,
    ast.Mod: MULTIPLY,
    ast.Pow: POWER,
}


#: Python 3.11 counts the depth of a tree that it builds once for all threads
_ONE_AT_A_TIME = Lock()


def syntax_tree(text: str, mode: str = "exec") -> ast.AST:
    """Return Python's own tree of a text; threads may call this at the same time.

    Raises:
        SyntaxError: if it is not Python.
    """
    with _ONE_AT_A_TIME:
        return ast.parse(text, mode=mode)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> ast.expr:
    tree = syntax_tree(text, "eval")
    assert isinstance(tree, ast.Expression)
    return tree.body


def level(text: str) -> int:
    """Return how tightly an expression binds."""
    return _level(_parsed(text))


def _level(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)]
    if isinstance(node, ast.UnaryOp):
        return NOT if isinstance(node.op, ast.Not) else UNARY
    if isinstance(node, ast.BoolOp):
        return OR if isinstance(node.op, ast.Or) else AND
    if isinstance(node, ast.Compare):
        return COMPARE
    if isinstance(node, (ast.IfExp, ast.Lambda, ast.NamedExpr)):
        return ANY
    return ATOM


def wrap(text: str, needed: int) -> str:
    """Return the text, in parentheses if it binds less than ``needed``."""
    return text if level(text) >= needed else f"({text})"


def primary(text: str) -> str:
    """Return the text so that ``.name``, ``(...)`` or ``[...]`` may follow it."""
    if literal(text) is not None:
        return f"({text})"
    return wrap(text, ATOM)


def literal(text: str) -> float | int | bool | None:
    """Return the number that an expression writes out, or None if it is not a literal."""
    node = _parsed(text)
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node, sign = node.operand, -1
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        return node.value if sign == 1 else -node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float":
        value = node.args[0]
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return sign * float(value.value)
    return None


def fill(pattern: str, **operands: str) -> str:
    """Return a pattern with operands put in, in parentheses where the place asks for them.

    Example:
        >>> fill("{x} * {y}", x="a + b", y="c.exp()")
        '(a + b) * c.exp()'
    """
    places = _places(pattern)
    texts = {}
    for name, (needed, suffixed) in places.items():
        text = operands[name]
        texts[name] = primary(text) if suffixed else wrap(text, needed)
    return pattern.format(**texts)


@lru_cache(maxsize=512)
def _places(pattern: str) -> dict[str, tuple[int, bool]]:
    """Return for each operand of a pattern how tightly it must bind and if a suffix follows."""
    names = {name: name for _, name, _, _ in string.Formatter().parse(pattern) if name}
    found: dict[str, tuple[int, bool]] = {}

    def visit(node: ast.AST, needed: int, suffixed: bool) -> None:
        if isinstance(node, ast.Name) and node.id in names:
            before = found.get(node.id, (ANY, False))
            found[node.id] = (max(before[0], needed), before[1] or suffixed)
            return
        for child, child_needed, child_suffixed in _children(node):
            visit(child, child_needed, child_suffixed)

    visit(_parsed(pattern.format(**names)), ANY, False)
    return found


def _children(node: ast.AST) -> list[tuple[ast.AST, int, bool]]:
    if isinstance(node, ast.BinOp):
        own = _BINARY[type(node.op)]
        if own == POWER:
            return [(node.left, ATOM, False), (node.right, UNARY, False)]
        return [(node.left, own, False), (node.right, own + 1, False)]
    if isinstance(node, ast.UnaryOp):
        own = NOT if isinstance(node.op, ast.Not) else UNARY
        return [(node.operand, own, False)]
    if isinstance(node, ast.Compare):
        return [(side, BIT_OR, False) for side in (node.left, *node.comparators)]
    if isinstance(node, ast.BoolOp):
        own = OR if isinstance(node.op, ast.Or) else AND
        return [(side, own + 1, False) for side in node.values]
    if isinstance(node, (ast.Attribute, ast.Subscript)):
        rest = [node.slice] if isinstance(node, ast.Subscript) else []
        return [(node.value, ATOM, True), *((part, ANY, False) for part in rest)]
    if isinstance(node, ast.Call):
        inner = [(part, ANY, False) for part in (*node.args, *(k.value for k in node.keywords))]
        return [(node.func, ATOM, True), *inner]
    return [(child, ANY, False) for child in ast.iter_child_nodes(node)]
