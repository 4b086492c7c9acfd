"""Writes the reference pages of this folder from the code, or with --check says which are stale."""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

from tokdsl.ops import Op
from tokdsl.source import SourceFile
from tokdsl.syntax.tree import Module

HERE = Path(__file__).parent
NOTICE = "<!-- Written by `make docs` from the code; do not edit. -->\n"


def diagnostics() -> Iterator[str]:
    """Yield the page of all findings."""
    from tokdsl.diagnostics.explain import load_registry, page

    yield "# Findings\n"
    yield (
        "`tokdsl explain CODE` prints the same. A warning is accepted on one line by "
        "`# allow <name>` at its end; an error is not.\n"
    )
    for cls in load_registry().values():
        found = page(cls)
        yield f'## <a id="{found.code.lower()}"></a>{found.code} `{found.name}`\n'
        yield f"*{found.severity.value.capitalize()}.* **{found.title}.**\n"
        if found.explanation:
            yield f"{found.explanation}\n"
        for heading, blocks in (("Wrong:", found.wrong), ("Right:", found.right)):
            for block in blocks:
                yield f"{heading}\n\n```{found.language}\n{block}```\n"


def commands() -> Iterator[str]:
    """Yield the page of the command line."""
    from typer.main import get_command

    from tokdsl.cli import app

    group = get_command(app)
    context = group.make_context("tokdsl", [], resilient_parsing=True, terminal_width=90)
    yield "# Commands\n"
    yield "Exit codes: 0 fine, 1 findings, 2 wrong usage, 70 a bug of ours, 130 interrupted.\n"
    for name in group.list_commands(context):  # type: ignore[attr-defined]
        command = group.get_command(context, name)  # type: ignore[attr-defined]
        inner = type(context)(command, info_name=name, parent=context, terminal_width=90)
        yield f"## tokdsl {name}\n"
        yield f"```text\n{command.get_help(inner).strip()}\n```\n"


def primitives() -> Iterator[str]:
    """Yield the page of the primitive operations, family by family."""
    from tokdsl.ops import WRITTEN

    families: dict[str, list[str]] = {}
    for name, cls in sorted(WRITTEN.items()):
        families.setdefault(cls.__module__, []).append(name)
    yield "# Primitive operations\n"
    yield PRIMITIVES
    yield "| family | operations |\n|---|---|"
    for module, names in sorted(families.items()):
        family = module.rpartition(".")[2]
        listed = ", ".join(f"[`{name}`](#{name})" for name in names)
        yield f"| [{family}](#family-{family}) | {listed} |"
    yield ""
    for module, names in sorted(families.items()):
        family = module.rpartition(".")[2]
        yield f'## <a id="family-{family}"></a>{family}\n'
        yield f"{_readable(first_line(module))}\n"
        for name in names:
            yield f'### <a id="{name}"></a>`{_call(WRITTEN[name])}`\n'
            yield from _described(inspect.cleandoc(WRITTEN[name].__doc__ or ""))


PRIMITIVES = """\
Everything in the library is written with these. Tensors stand before the `;`, everything else after
it; what has a value after `=` may be left out. `name: size` makes an axis; a name alone makes one
that is called like a static value and has its size. In shapes `*` and `*a` stand for any axes, and
the batch is not written.
"""


def first_line(module: str) -> str:
    """Return the first line of a module's docstring."""
    return (importlib.import_module(module).__doc__ or "").strip().partition("\n")[0]


def _call(cls: type[Op]) -> str:
    """Return how an operation is called."""
    from tokdsl.ops.base import arguments

    before, after = [], []
    for argument in arguments(cls):
        if argument.name in cls.hidden or argument.kind == "companion":
            continue
        if argument.kind in ("operand", "operands") and not argument.optional:
            before.append(argument.name + (", ..." if argument.kind == "operands" else ""))
        else:
            has_default = argument.optional and argument.kind != "new_axes"
            default = f" = {_literal(argument.default)}" if has_default else ""
            after.append(f"{argument.name}{KINDS.get(argument.kind, '')}{default}")
    inside = "; ".join(", ".join(part) for part in (before, after) if part)
    return f"{cls.op_name}({inside})"


#: what stands after an argument's name, by how it is read
KINDS = {
    "axis": ": axis",
    "axes": ": axes",
    "new_axis": ": size",
    "new_axes": ": size, ...",
    "size": ": int",
    "sizes": ": int, ...",
    "int": ": int",
    "float": ": float",
    "bool": ": bool",
    "str": ": str",
    "init": ": init",
    "predicate": ": expression",
    "operand": ": tensor",
}


def _described(doc: str) -> Iterator[str]:
    """Yield the parts of a docstring: prose, then arguments, shape, gradient and source."""
    points: list[str] = []
    for paragraph in doc.split("\n\n"):
        if not re.match(r"(Args|Shape|Gradient|Source|Units|Raises):", paragraph):
            yield _readable(paragraph) + "\n"
            continue
        lines: list[str] = []
        for line in paragraph.split("\n"):
            is_next = re.match(r"(Args|Shape|Gradient|Source|Units|Raises):|    \w+: ", line)
            if is_next or not lines:
                lines.append(line)
            else:
                lines[-1] += f" {line.strip()}"
        points += [point for line in lines for point in _points(line)]
    if points:
        yield "\n".join(points) + "\n"


def _points(line: str) -> Iterator[str]:
    """Yield the points of a list that a line of a section makes."""
    head, _, text = line.partition(":")
    if line.startswith("    "):
        yield f"- `{head.strip()}`: {_readable(text.strip())}"
    elif head == "Shape":
        shape, _, gradient = text.partition("Gradient:")
        types, dot, rest = shape.strip().partition(".  ")
        types = types.removesuffix(".")
        yield f"- Shape: `{types}`" + (
            f". {_readable(rest.strip())}" if dot and rest.strip() else ""
        )
        if gradient:
            yield f"- Gradient: {_readable(gradient.strip())}"
    elif head != "Args":
        yield f"- {head}: {_readable(text.strip())}"


def _readable(text: str) -> str:
    """Return docstring text as Markdown: code is in single backticks, an axis list is code."""
    return text.replace("``", "`")


def _literal(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if value == ():
        return "none"
    return f'"{value}"' if isinstance(value, str) else str(value)


def library() -> Iterator[str]:
    """Yield the page of the standard library, file by file."""
    from tokdsl.resources import resource
    from tokdsl.syntax import tree

    files = [
        (name, *_parsed(name, path))
        for name, path in sorted(_library_files(resource("stdlib"), "std"))
    ]
    yield "# Standard library\n"
    yield (
        "The library is written in the language; its files are in `stdlib/`. The names of the "
        "prelude need no `use`.\n"
    )
    yield "| file | definitions |\n|---|---|"
    for name, _, module in files:
        defined = [item.name for item in module.items if isinstance(item, tree.Definition)]
        used = [i.name for u in module.items if isinstance(u, tree.Use) for i in u.names]
        listed = ", ".join(f"`{item}`" for item in (used if name == "std.prelude" else defined))
        link = name if name == "std.prelude" else f"[{name}](#{name.replace('.', '')})"
        yield f"| {link} | {listed} |"
    yield ""
    for name, source, module in files:
        if name == "std.prelude":
            continue
        yield f"## {name}\n"
        yield f"{_file_comment(source)}\n"
        for item in module.items:
            if isinstance(item, tree.Definition):
                signature = source.text[item.span.start : item.body.span.start].strip()
                yield f"### {item.name}\n"
                if item.doc:
                    yield f"{_with_source_apart(item.doc)}\n"
                yield f"```text\n{signature}\n```\n"


def _file_comment(source: SourceFile) -> str:
    """Return the comment with which a file begins."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), source.text.split("\n"))
    return "\n".join(line[1:].strip() for line in lines)


def _with_source_apart(doc: str) -> str:
    """Return a comment in which the source is a paragraph of its own."""
    return re.sub(r"\nSource: ", "\n\nSource: ", doc)


def _library_files(folder: Traversable, name: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _library_files(entry, f"{name}.{entry.name}")
        elif entry.name.endswith(".tok"):
            yield f"{name}.{entry.name.removesuffix('.tok')}", entry


def _parsed(name: str, path: Traversable) -> tuple[SourceFile, Module]:
    from tokdsl.syntax.parser import parse

    source = SourceFile(name, path.read_text("utf-8"))
    module, found = parse(source)
    if found:
        raise ValueError(f"{name}: {found[0].message()}")
    return source, module


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "diagnostics.md": diagnostics,
    "commands.md": commands,
    "primitives.md": primitives,
    "library.md": library,
}


def main() -> int:
    """Write or check the pages and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when stale")
    checks = parser.parse_args().check
    stale = []
    for name, write in PAGES.items():
        text = "\n".join([NOTICE, *write()])
        path = HERE / name
        if path.is_file() and path.read_text("utf-8") == text:
            continue
        stale.append(name)
        if not checks:
            path.write_text(text, "utf-8")
    if stale:
        print(f"{'stale, run `make docs`' if checks else 'wrote'}: {', '.join(stale)}")
    return 1 if checks and stale else 0


if __name__ == "__main__":
    sys.exit(main())
