"""The functions that an emitted package needs, collected from ``codegen/ops``."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache

from tokdsl.ops.precedence import syntax_tree
from tokdsl.resources import resource

_NEEDS = re.compile(r"^# needs: (.+)$", re.MULTILINE)
_KERNELS = re.compile(r"^# kernel: (\w+)$", re.MULTILINE)
STANDARD = {"collections", "dataclasses", "math", "typing", "itertools", "json", "pathlib",
            "functools", "collections.abc", "__future__", "contextlib", "bisect", "codecs",
            "importlib", "importlib.util", "io", "os", "re", "string", "tokenize", "types",
            "warnings"}  # fmt: skip


@dataclass(frozen=True)
class Function:
    """One file of ``codegen/ops``: what it imports, needs and defines.

    Args:
        kernels: folders of ``codegen/kernels`` that it calls on a GPU.
    """

    name: str
    plain: frozenset[str]
    members: frozenset[tuple[str, str]]
    needs: tuple[str, ...]
    body: str
    kernels: tuple[str, ...] = ()


@cache
def read(name: str) -> Function:
    """Return a function's file in parts.

    Raises:
        FileNotFoundError: if there is no such function: a primitive names one that is missing.
    """
    return parse(name, resource("codegen", "ops", f"{name}.py.jinja").read_text("utf-8"))


def parse(name: str, text: str) -> Function:
    """Return a file's text in parts: imports, and what follows them."""
    needs = tuple(
        part.strip() for line in _NEEDS.findall(text) for part in line.split(",") if part.strip()
    )
    module = syntax_tree(text)
    assert isinstance(module, ast.Module)
    plain: set[str] = set()
    members: set[tuple[str, str]] = set()
    lines = text.split("\n")
    last = 0
    for node in module.body:
        if isinstance(node, ast.Import):
            plain |= {f"{a.name} as {a.asname}" if a.asname else a.name for a in node.names}
            last = node.end_lineno or last
        elif isinstance(node, ast.ImportFrom):
            members |= {
                (node.module or "", f"{a.name} as {a.asname}" if a.asname else a.name)
                for a in node.names
            }
            last = node.end_lineno or last
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            last = node.end_lineno or last
        else:
            break
    marks = (_NEEDS, _KERNELS)
    body = "\n".join(line for line in lines[last:] if not any(m.match(line) for m in marks))
    kernels = tuple(_KERNELS.findall(text))
    return Function(name, frozenset(plain), frozenset(members), needs, body.strip("\n"), kernels)


def collect(names: set[str]) -> list[Function]:
    """Return the named functions and all that they need, needed ones first."""
    order: list[Function] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        function = read(name)
        for other in function.needs:
            visit(other)
        order.append(function)

    for name in sorted(names):
        visit(name)
    return order


def merge(functions: list[Function]) -> str:
    """Return the text of a module with these functions (without its docstring)."""
    plain = {name for f in functions for name in f.plain}
    members = {pair for f in functions for pair in f.members if pair[0] != "__future__"}
    head = "from __future__ import annotations\n\n" + imports(plain, members)
    bodies = "".join(f"\n\n{f.body}\n" for f in functions)
    is_definition = functions[0].body.startswith(("def ", "class ", "@")) if functions else True
    return head + (bodies if is_definition else bodies[1:])


def imports(plain: set[str], members: set[tuple[str, str]]) -> str:
    """Return sorted import lines: the standard library, then the others."""
    groups: list[str] = []
    for standard in (True, False):
        lines = [f"import {n}" for n in sorted(plain) if _is_standard(n) == standard]
        modules = sorted({m for m, _ in members if _is_standard(m) == standard})
        for module in modules:
            names = sorted({n for m, n in members if m == module}, key=order)
            lines.append(_from_line(module, names))
        if lines:
            groups.append("\n".join(lines) + "\n")
    return "\n".join(groups)


def _from_line(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= 100:
        return line
    return f"from {module} import (\n" + "".join(f"    {n},\n" for n in names) + ")"


def _is_standard(name: str) -> bool:
    return name.split(" ")[0].split(".")[0] in STANDARD


def order(name: str) -> tuple[int, str]:
    """Return what imported names are sorted by: constants, classes, functions."""
    kind = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return kind, name
