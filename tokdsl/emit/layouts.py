"""The text of ``layouts.py``: the layouts of a checkpoint as tables in code."""

from __future__ import annotations

import json
import re
from typing import Any

from tokdsl.emit.classes import where
from tokdsl.emit.environment import render
from tokdsl.emit.wrap import WIDTH
from tokdsl.lower.plan import Code, LayoutLoop, LayoutPlan, LayoutRow, Plan

INDENT = 4
_CHAIN = re.compile(r"(?<=[\])])\.")


def layouts(plan: Plan, header: str) -> str:
    """Return the text of ``layouts.py``."""
    used = {head for layout in plan.layouts for head in _heads(layout.rows)}
    context: dict[str, Any] = {
        "header": header,
        "model": plan.name,
        "layouts": [_layout(layout) for layout in plan.layouts],
        "fused": "Fused" in used,
        "reshaped": "Reshaped" in used,
    }
    return render("package/layouts.py.jinja", context)


def _layout(layout: LayoutPlan) -> dict[str, Any]:
    return {
        "name": layout.name,
        "where": where(layout.span),
        "rows": _lines(layout.rows, INDENT),
        "tied": _lines(layout.tied, INDENT),
        "ignored": [_pattern(text) for text in layout.ignored],
    }


def _pattern(text: str) -> str:
    """Return a regular expression as a literal, raw where that is possible."""
    return json.dumps(text) if '"' in text else f'r"{text}"'


def _heads(rows: list[LayoutRow | LayoutLoop]) -> set[str]:
    """Return the names of the classes that the rows use."""
    found: set[str] = set()
    for row in rows:
        found |= _heads(row.rows) if isinstance(row, LayoutLoop) else _calls(row.value)
    return found


def _calls(code: Code) -> set[str]:
    if isinstance(code, str):
        return set()
    head, *arguments = code
    assert isinstance(head, str)
    return {head}.union(*(_calls(argument) for argument in arguments))


def _lines(rows: list[LayoutRow | LayoutLoop], indent: int) -> list[str]:
    """Return the statements that yield every row."""
    lines: list[str] = []
    for row in rows:
        if isinstance(row, LayoutLoop):
            lines += [" " * indent + row.head, *_lines(row.rows, indent + 4)]
        else:
            lines += _yield(row.published, row.value, indent)
    return lines


def _yield(published: str, value: Code, indent: int) -> list[str]:
    pad = " " * indent
    line = f"{pad}yield {published}, {_flat(value)}"
    if len(line) <= WIDTH:
        return [line]
    inner = [*_argument(published, indent + 4), *_argument(value, indent + 4)]
    return [f"{pad}yield (", *inner, f"{pad})"]


def _argument(code: Code, indent: int) -> list[str]:
    """Return the lines of one argument with its comma."""
    pad = " " * indent
    flat = _flat(code)
    if len(pad) + len(flat) + 1 <= WIDTH:
        return [f"{pad}{flat},"]
    if isinstance(code, str):
        # a chain of views, one to a line
        parts = _CHAIN.split(f"{flat},")
        return [pad + parts[0], *(f"{pad}.{part}" for part in parts[1:])]
    head, *arguments = code
    inner = ", ".join(_flat(argument) for argument in arguments)
    if indent + 4 + len(inner) <= WIDTH:
        return [f"{pad}{head}(", f"{pad}    {inner}", f"{pad}),"]
    lines = [line for argument in arguments for line in _argument(argument, indent + 4)]
    return [f"{pad}{head}(", *lines, f"{pad}),"]


def _flat(code: Code) -> str:
    """Return code on one line."""
    if isinstance(code, str):
        return code
    head, *arguments = code
    return f"{_flat(head)}({', '.join(_flat(argument) for argument in arguments)})"
