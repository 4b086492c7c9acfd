"""The jobs of the compiler as functions: check, build, load. File input and output happen here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokdsl.checks.facts import Facts
from tokdsl.diagnostics import Report
from tokdsl.graph.program import Program
from tokdsl.resolve.modules import FileScope, Library
from tokdsl.source import SourceFile


@dataclass
class Checked:
    """The outcome of a check.

    Args:
        report: all findings, in source order when iterated.
        programs: the typed graph of each model that has one.
        facts: what the checks established, by model name.
        scope: the names of the main file, or None if it could not be read.
    """

    report: Report
    programs: list[Program] = field(default_factory=list)
    facts: dict[str, Facts] = field(default_factory=dict)
    scope: FileScope | None = None
    sources: dict[str, SourceFile] = field(default_factory=dict)


def check_source(
    source: SourceFile, folder: Path | None, overrides: Mapping[str, object] | None = None
) -> Checked:
    """Check one source text: names, every definition for all sizes, every model with numbers."""
    from tokdsl.checks import run_checks
    from tokdsl.graph.elaborate import check_definitions, elaborate

    report = Report()
    library = Library(report)
    scope = library.load(source, folder)
    checked = Checked(report, scope=scope, sources=library.sources)
    modules = check_definitions(scope, report)
    from tokdsl.checks.unused import check_unused_definitions

    for model in scope.models():
        before = len(report.found)
        program = elaborate(scope, model, overrides or {}, report)
        if not any(d.severity.value == "error" for d in report.found[before:]):
            checked.programs.append(program)
            if not report.has_errors:
                checked.facts[program.name] = run_checks(program, report)
    if not report.has_errors:
        check_unused_definitions(scope, modules, report)
        library.report_unused_imports(scope)
    return checked


def check_text(
    text: str, name: str = "<text>", overrides: Mapping[str, object] | None = None
) -> Report:
    """Check a text that is not in a file; only the standard library can be used."""
    return check_source(SourceFile(name, text), None, overrides).report


def check_file(path: Path, overrides: Mapping[str, str] | None = None) -> Checked:
    """Check a file; ``overrides`` are parameter settings as text (``d=512``)."""
    from tokdsl.diagnostics.suppress import apply_suppressions
    from tokdsl.syntax.reading import read_source

    source, findings = read_source(path)
    if findings and any(f.severity.value == "error" for f in findings):
        report = Report()
        report.extend(findings)
        return Checked(report)
    values = {name: parse_value(text) for name, text in (overrides or {}).items()}
    checked = check_source(source, path.parent, values)
    checked.report = apply_suppressions(source, checked.report)
    return checked


def parse_value(text: str) -> object:
    """Return a parameter setting given as text: an int, float, bool, ``none`` or string."""
    from tokdsl.types.dims import Dim

    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered == "none":
        return None
    try:
        return Dim.of(int(text.replace("_", "")))
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text.strip("\"'")
