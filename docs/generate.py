"""Writes the reference pages of this folder from the code, or with --check says which are stale."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

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
    from tokdsl.ops import OPS
    from tokdsl.ops.base import arguments

    yield "# Primitive operations\n"
    yield "Everything in the library is written with these.\n"
    families: dict[str, list[str]] = {}
    for name, cls in sorted(OPS.items()):
        families.setdefault(cls.__module__.rpartition(".")[2], []).append(name)
    for family, names in sorted(families.items()):
        yield f"## {family}\n"
        for name in names:
            cls = OPS[name]
            fields = [
                f"{a.name}: {a.kind}" + (f" = {_literal(a.default)}" if a.optional else "")
                for a in arguments(cls)
            ]
            yield f"### `{name}({', '.join(fields)})`\n"
            yield inspect.cleandoc(cls.__doc__ or "") + "\n"


def _literal(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return str(value)


def library() -> Iterator[str]:
    """Yield the page of the standard library, file by file."""
    from tokdsl.resources import resource
    from tokdsl.syntax import tree

    yield "# Standard library\n"
    for name, path in sorted(_library_files(resource("stdlib"), "std")):
        source, module = _parsed(name, path)
        yield f"## {name}\n"
        for item in module.items:
            if isinstance(item, tree.Definition):
                signature = source.text[item.span.start : item.body.span.start].strip()
                yield f"```tok\n{signature}\n```\n"
                if item.doc:
                    yield f"{item.doc}\n"


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
