"""The text of ``fused.py``: functions of the program's own equations."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from tokdsl.emit import classes
from tokdsl.emit.environment import render
from tokdsl.emit.wrap import WIDTH, wrap
from tokdsl.lower.plan import FunctionPlan, Loop, Plan

INDENT = 4


def fused(plan: Plan, header: str, names: list[str]) -> str:
    """Return the text of ``fused.py``.

    Args:
        plan: of the package.
        header: who made the file.
        names: of ``functional.py``.
    """
    described = [_function(item) for item in plan.fused]
    text = "\n".join(line for item in described for part in item.values() for line in part)
    context: dict[str, Any] = {
        "header": header,
        "functional": imported(names, text),
        "torch": {"torch": "torch." in text, "F": "F." in text},
        "functions": described,
    }
    return render("package/fused.py.jinja", context)


def imported(names: list[str], text: str) -> list[str]:
    """Return which names a text mentions, in the order of an import sorter."""
    words = set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", text))
    if "on_kernels" in names:
        names = [*names, "KERNELS"]
    found = [name for name in dict.fromkeys(names) if name in words]
    return sorted(found, key=lambda n: (0 if n.isupper() else 1 if n[:1].isupper() else 2, n))


def _function(item: FunctionPlan) -> dict[str, list[str]]:
    kernel: list[str] = []
    if item.kernel[0]:
        kernel = [
            *wrap(f"if {item.kernel[0]}:", INDENT),
            *wrap(f"return {item.kernel[1]}", INDENT + 4),
        ]
    return {
        "name": [item.name],
        "title": [_title(item)],
        "signature": _signature(item),
        "kernel": kernel,
        "body": _body(item),
    }


def _title(item: FunctionPlan) -> str:
    sentence = f"{item.doc} ({classes.where(item.span)})."
    shapes = ", ".join(f"{name} {shape}" for name, _, shape in item.inputs if shape)
    first = textwrap.wrap(sentence, 92)
    lines = [first[0], *(f"    {line}" for line in first[1:])]
    if shapes:
        lines += ["", *textwrap.wrap(f"Shape: {shapes}", 99, initial_indent="    ",
                                     subsequent_indent="        ")]  # fmt: skip
    return "\n".join(lines) + ("\n    " if len(lines) > 1 else "")


def _signature(item: FunctionPlan) -> list[str]:
    parameters = [f"{name}: {python}" for name, python, _ in item.inputs]
    line = f"def {item.name}({', '.join(parameters)}) -> {item.returns}:"
    if len(line) <= WIDTH:
        return [line]
    joined = ", ".join(parameters)
    if 4 + len(joined) <= WIDTH:
        return [f"def {item.name}(", f"    {joined}", f") -> {item.returns}:"]
    return [f"def {item.name}(", *(f"    {p}," for p in parameters), f") -> {item.returns}:"]


def _body(item: FunctionPlan) -> list[str]:
    lines: list[str] = []
    for statement in item.body:
        assert not isinstance(statement, Loop)
        targets = ", ".join(statement.targets)
        text = f"{targets} = {statement.text}" if targets else statement.text
        lines += _dedented(classes.commented(text, statement))
    result = f"return {item.result}"
    if INDENT + len(result) > WIDTH and item.returns.startswith("tuple"):
        result = f"return ({item.result})"
    return [*lines, *wrap(result, INDENT)]


def _dedented(lines: list[str]) -> list[str]:
    """Statements of a function stand one level less deep than those of a method."""
    return [line[classes.INDENT - INDENT :] for line in lines]
