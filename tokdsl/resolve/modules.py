"""Loading of files and binding of top-level names.

A file's scope holds its own definitions, what it imports, and the prelude (the standard
library's common names). Only text is read here; nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tokdsl.diagnostics import Diagnostic, Label, Report, did_you_mean
from tokdsl.resolve.diagnostics import (
    CyclicUse,
    NameTaken,
    UnknownImport,
    UnknownModule,
    UnusedImport,
)
from tokdsl.resources import resource
from tokdsl.source import SourceFile
from tokdsl.syntax import tree


@dataclass(eq=False)
class DefinitionRef:
    """A definition together with the file scope in which its body is read."""

    definition: tree.Definition
    scope: FileScope

    @property
    def name(self) -> str:
        """The definition's own name."""
        return self.definition.name

    def __repr__(self) -> str:
        return self.definition.name


@dataclass(eq=False)
class FileScope:
    """The top-level names of one file."""

    name: str
    source: SourceFile
    module: tree.Module
    names: dict[str, DefinitionRef | FileScope] = field(default_factory=dict)
    imported: dict[str, tree.Node] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    prelude: FileScope | None = None
    is_library: bool = False

    def find(self, name: str) -> DefinitionRef | FileScope | None:
        """Return what a top-level name is bound to, here or in the prelude."""
        found = self.names.get(name)
        if found is not None:
            self.used.add(name)
            return found
        return self.prelude.names.get(name) if self.prelude is not None else None

    def visible(self) -> list[str]:
        """Return all names that `find` would answer, for suggestions."""
        return [*self.names, *(self.prelude.names if self.prelude is not None else ())]

    def definitions(self) -> list[DefinitionRef]:
        """Return the definitions written in this file, in order."""
        return [
            ref
            for ref in self.names.values()
            if isinstance(ref, DefinitionRef) and ref.scope is self
        ]

    def models(self) -> list[tree.Model]:
        """Return the models written in this file."""
        return [item for item in self.module.items if isinstance(item, tree.Model)]


class Library:
    """All files of one compilation, each loaded once.

    Args:
        report: where findings go.
        parse: the parser, which gives a tree and findings.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self._scopes: dict[str, FileScope] = {}
        self._loading: list[str] = []
        self.prelude: FileScope | None = None
        self.sources: dict[str, SourceFile] = {}
        self.prelude = self._library_scope(("prelude",))

    def load(self, source: SourceFile, folder: Path | None) -> FileScope:
        """Return the scope of the user's main file; relative `use` is read from ``folder``."""
        key = str((folder / Path(source.name).name).resolve()) if folder else source.name
        return self._build(key, source, folder, is_library=False)

    def _library_scope(self, parts: tuple[str, ...]) -> FileScope | None:
        key = "std." + ".".join(parts)
        if key in self._scopes:
            return self._scopes[key]
        file = resource("stdlib", *parts[:-1], parts[-1] + ".tok")
        if not file.is_file():
            return None
        source = SourceFile("std/" + "/".join(parts) + ".tok", file.read_text("utf-8"))
        return self._build(key, source, None, is_library=True)

    def _build(
        self, key: str, source: SourceFile, folder: Path | None, *, is_library: bool
    ) -> FileScope:
        module, findings = parse_any(source)
        self.report.extend(findings)
        scope = FileScope(key, source, module, is_library=is_library, prelude=self.prelude)
        self.sources[source.name] = source
        self._loading.append(key)
        for item in module.items:
            if isinstance(item, tree.Use):
                self._use(scope, item, folder)
            elif isinstance(item, tree.Definition):
                self._define(scope, item)
        self._loading.pop()
        self._scopes[key] = scope
        return scope

    def _define(self, scope: FileScope, item: tree.Definition) -> None:
        first = scope.names.get(item.name)
        if first is not None:
            labels: tuple[Label, ...] = ()
            if isinstance(first, DefinitionRef):
                labels = (Label(first.definition.name_span, "first defined here"),)
            self.report.add(NameTaken(span=item.name_span, taken=item.name, labels=labels))
            return
        scope.names[item.name] = DefinitionRef(item, scope)

    def _use(self, scope: FileScope, item: tree.Use, folder: Path | None) -> None:
        target = self._target(scope, item, folder)
        if target is None:
            return
        dotted = ".".join(item.module)
        if not item.names:
            name = item.alias or item.module[-1]
            self._import(scope, item, name, target)
            return
        for wanted in item.names:
            found = target.names.get(wanted.name)
            if found is None:
                self.report.add(
                    UnknownImport(
                        span=wanted.span,
                        module=dotted,
                        missing=wanted.name,
                        help=did_you_mean(wanted.name, target.names),
                    )
                )
            else:
                self._import(scope, wanted, wanted.alias or wanted.name, found)

    def _import(
        self, scope: FileScope, node: tree.Node, name: str, found: DefinitionRef | FileScope
    ) -> None:
        if name in scope.names:
            self.report.add(NameTaken(span=node.span, taken=name))
            return
        scope.names[name] = found
        scope.imported[name] = node

    def _target(self, scope: FileScope, item: tree.Use, folder: Path | None) -> FileScope | None:
        if item.module[0] == "std":
            found = self._library_scope(item.module[1:]) if len(item.module) > 1 else None
            if found is None:
                self._unknown(item, "the standard library", library_modules())
            return found
        if folder is None:
            self._unknown(item, "this text (it has no folder)", ())
            return None
        return self._user_scope(item, folder)

    def _user_scope(self, item: tree.Use, folder: Path) -> FileScope | None:
        path = folder.joinpath(*item.module[:-1], item.module[-1] + ".tok")
        if not path.is_file():
            path = path.with_suffix(".tok.yaml")
        key = str(path.resolve())
        if key in self._loading:
            circle = [Path(k).name for k in self._loading[self._loading.index(key) :]]
            self.report.add(CyclicUse(span=item.span, path=" -> ".join([*circle, Path(key).name])))
            return None
        if key in self._scopes:
            return self._scopes[key]
        if not path.is_file():
            near = [p.stem for p in path.parent.glob("*.tok")] if path.parent.is_dir() else []
            self._unknown(item, f"`{path.parent}`", near)
            return None
        from tokdsl.syntax.reading import read_source

        source, findings = read_source(path)
        self.report.extend(findings)
        return self._build(key, source, path.parent, is_library=False)

    def _unknown(self, item: tree.Use, where: str, near: object) -> None:
        names = list(near) if isinstance(near, (list, tuple)) else []
        self.report.add(
            UnknownModule(
                span=item.span,
                module=".".join(item.module),
                looked_in=where,
                help=did_you_mean(item.module[-1], names),
            )
        )

    def report_unused_imports(self, scope: FileScope) -> None:
        """Report the imports of a file that no body of it used."""
        only_uses = all(isinstance(item, tree.Use) for item in scope.module.items)
        if scope.is_library or only_uses:
            return
        for name, node in scope.imported.items():
            if name not in scope.used:
                self.report.add(UnusedImport(span=node.span, unused=name))


def parse_any(source: SourceFile) -> tuple[tree.Module, list[Diagnostic]]:
    """Parse a text or YAML source, by the ending of its name."""
    if source.name.endswith((".yaml", ".yml")):
        from tokdsl.syntax.yaml_form import parse_yaml

        return parse_yaml(source)
    from tokdsl.syntax.parser import parse

    return parse(source)


def library_modules() -> list[str]:
    """Return the module names of the standard library."""
    found = []
    for entry in resource("stdlib").iterdir():
        if entry.name.endswith(".tok"):
            found.append(entry.name.removesuffix(".tok"))
    return sorted(found)
