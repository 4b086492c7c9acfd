"""The kernels of a package as text: templates of ``codegen/kernels``, filled."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from typing import Any

from tokdsl.emit import functions
from tokdsl.emit.environment import render
from tokdsl.emit.wrap import WIDTH, wrap
from tokdsl.lower.plan import KernelPlan
from tokdsl.resources import resource


@cache
def description(template: str) -> dict[str, Any]:
    """Return what ``kernel.toml`` says of a template."""
    return tomllib.loads(resource("codegen", "kernels", template, "kernel.toml").read_text("utf-8"))


def templates() -> list[str]:
    """Return the names of all kernel templates."""
    folders = resource("codegen", "kernels").iterdir()
    return sorted(folder.name for folder in folders if folder.is_dir())


def wanted(names: set[str]) -> list[str]:
    """Return the generic templates that some functions of ``functional.py`` call."""
    collected = functions.collect(names)
    return sorted({kernel for function in collected for kernel in function.kernels})


def called(names: set[str]) -> list[tuple[str, str]]:
    """Return the functions of ``functional.py`` that call a kernel: function and template."""
    collected = functions.collect(names)
    return [(function.name, kernel) for function in collected for kernel in function.kernels]


def kernels(generic: list[str], instances: list[KernelPlan]) -> str:
    """Return the text of ``kernels.py`` without its docstring."""
    generic = _with_needs(generic, instances)
    used = sorted({*generic, *(instance.template for instance in instances)})
    configs: dict[str, list[dict[str, int]]] = {}
    for template in used:
        for suffix, candidates in description(template).get("configs", {}).items():
            configs[f"{template}.{suffix}"] = candidates
    parts = [functions.parse("common", render("kernels/common.py.jinja", {"configs": configs}))]
    parts += [_filled(template, {}) for template in generic]
    parts += [
        _filled(instance.template, {"name": instance.name, **instance.pieces})
        for instance in instances
    ]
    return "\n".join(_folded(functions.merge(parts).rstrip().split("\n"))) + "\n"


def _folded(lines: list[str]) -> Iterator[str]:
    """Break lines of generated statements that are too long."""
    for line in lines:
        text = line.lstrip()
        if len(line) <= WIDTH or text.startswith("#"):
            yield line
        elif text.endswith(","):
            yield from _filled_lines(text, len(line) - len(text))
        else:
            yield from wrap(text, len(line) - len(text))


def _filled_lines(text: str, indent: int) -> Iterator[str]:
    """Break a line of an argument list that goes on after commas."""
    line = ""
    for piece in text.split(", "):
        if line and indent + len(line) + len(piece) + 3 > WIDTH:
            yield " " * indent + line + ","
            line = piece
        else:
            line = f"{line}, {piece}" if line else piece
    yield " " * indent + line


def _with_needs(generic: list[str], instances: list[KernelPlan]) -> list[str]:
    """Return the generic templates with those whose functions they or the instances call."""
    found: dict[str, None] = {}

    def add(template: str) -> None:
        for needed in description(template).get("needs", ()):
            add(needed)
            found[needed] = None

    for template in (*generic, *(instance.template for instance in instances)):
        add(template)
    return list(found | dict.fromkeys(generic))


def _filled(template: str, pieces: dict[str, object]) -> functions.Function:
    text = render(f"kernels/{template}/triton.py.jinja", pieces)
    return functions.parse(template, text)
