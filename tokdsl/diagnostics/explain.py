"""The long page of each finding, made from its class's docstring."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec

from tokdsl.diagnostics.base import REGISTRY, Diagnostic, Severity, did_you_mean

_FENCE = re.compile(r"^```(tok|yaml|sh) (error|ok)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DECLARATION = re.compile(r"\bcode=\"TOK\d+\"")


@dataclass(frozen=True, slots=True)
class Page:
    """What is written about one finding.

    Args:
        code: its code.
        name: the name by which it is suppressed.
        severity: error, warning or note.
        title: the first line of the docstring.
        explanation: the prose between the title and the examples.
        wrong: the texts of the ``tok error`` blocks; a well-formed page has one.
        right: the texts of the ``tok ok`` blocks; a well-formed page has one.
        language: ``tok``, ``yaml`` for findings about the YAML form, or ``sh`` for findings about
            files or settings and not about a text; the blocks are then command lines.
    """

    code: str
    name: str
    severity: Severity
    title: str
    explanation: str
    wrong: tuple[str, ...]
    right: tuple[str, ...]
    language: str


def page(cls: type[Diagnostic]) -> Page:
    """Return the page of a class of findings."""
    title, _, body = inspect.cleandoc(cls.__doc__ or "").partition("\n")
    blocks = _FENCE.findall(body + "\n")
    return Page(
        code=cls.code,
        name=cls.name,
        severity=cls.severity,
        title=title.rstrip("."),
        explanation=re.sub(r"\n{3,}", "\n\n", _FENCE.sub("", body + "\n")).strip(),
        wrong=tuple(text for _, kind, text in blocks if kind == "error"),
        right=tuple(text for _, kind, text in blocks if kind == "ok"),
        language=blocks[0][0] if blocks else "tok",
    )


def explain(code_or_name: str) -> str | None:
    """Return the long form of a finding, or None when nothing has this code or name.

    Args:
        code_or_name: ``TOK301``, ``tok301``, ``301`` or the name.
    """
    cls = _find(code_or_name)
    return None if cls is None else _text(page(cls))


def nearest(code_or_name: str) -> str | None:
    """Return ``did you mean `x`?`` for a code or name that does not exist."""
    wanted = code_or_name.strip()
    registry = load_registry()
    codes = did_you_mean(wanted.upper(), registry)
    return codes or did_you_mean(wanted.lower(), (cls.name for cls in registry.values()))


def _find(code_or_name: str) -> type[Diagnostic] | None:
    wanted = code_or_name.strip().lower()
    registry = load_registry()
    code = wanted.upper() if wanted.startswith("tok") else f"TOK{wanted}"
    by_name = {cls.name: cls for cls in registry.values()}
    return registry.get(code) or by_name.get(wanted)


def _text(page: Page) -> str:
    parts = [f"{page.severity.value}[{page.code}] {page.name}", page.title + "."]
    if page.explanation:
        parts.append(page.explanation)
    for heading, blocks in (("Wrong:", page.wrong), ("Right:", page.right)):
        parts += [f"{heading}\n\n{_indent(block)}" for block in blocks]
    if page.severity is Severity.WARNING:
        parts.append(f"`# allow {page.name}` at the end of the line accepts it there.")
    return "\n\n".join(parts) + "\n"


def _indent(block: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in block.strip("\n").split("\n"))


# --------------------------------------------------------------------------- registry


@cache
def load_registry() -> dict[str, type[Diagnostic]]:
    """Import every module that declares a finding and return the classes by code.

    Modules are found by their text, so that none is imported that declares nothing; nothing that
    needs torch declares findings.
    """
    root = importlib.import_module("tokdsl")
    for spec in _modules("tokdsl", list(root.__path__)):
        if _DECLARATION.search(_source(spec)):
            importlib.import_module(spec.name)
    return dict(sorted(REGISTRY.items()))


def _modules(package: str, path: list[str]) -> Iterator[ModuleSpec]:
    """Yield the specs of all modules under a package without importing any."""
    for info in pkgutil.iter_modules(path, package + "."):
        spec = info.module_finder.find_spec(info.name, None)
        if spec is None:
            continue
        yield spec
        if info.ispkg:
            yield from _modules(info.name, list(spec.submodule_search_locations or ()))


def _source(spec: ModuleSpec) -> str:
    get_source = getattr(spec.loader, "get_source", None)
    return (get_source(spec.name) or "") if get_source else ""
