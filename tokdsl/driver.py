"""The jobs of the compiler as functions: check, build, load. File input and output happen here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tokdsl.checks.facts import Facts
from tokdsl.diagnostics import Report
from tokdsl.graph.program import Program
from tokdsl.resolve.modules import FileScope, Library
from tokdsl.source import SourceFile

if TYPE_CHECKING:
    from tokdsl.lower.kernels.report import RegionReport


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
    from tokdsl.diagnostics.suppress import apply_suppressions
    from tokdsl.graph.elaborate import check_definitions, elaborate

    report = Report()
    library = Library(report)
    scope = library.load(source, folder)
    checked = Checked(report, scope=scope, sources=library.sources)
    check_definitions(scope, report)
    is_sound = not report.has_errors
    from tokdsl.checks.unused import check_unused_definitions

    for model in scope.models():
        before = len(report.found)
        program = elaborate(scope, model, overrides or {}, report)
        if not any(d.severity.value == "error" for d in report.found[before:]):
            checked.programs.append(program)
            if is_sound:
                checked.facts[program.name] = run_checks(program, report)
    if not report.has_errors:
        check_unused_definitions(scope, report)
        library.report_unused_imports(scope)
    checked.report = apply_suppressions(source, report)
    return checked


def check_text(
    text: str, name: str = "<text>", overrides: Mapping[str, object] | None = None
) -> Report:
    """Check a text that is not in a file; only the standard library can be used."""
    return check_source(SourceFile(name, text), None, overrides).report


def check_file(path: Path, overrides: Mapping[str, str] | None = None) -> Checked:
    """Check a file; ``overrides`` are parameter settings as text (``d=512``)."""
    from tokdsl.syntax.reading import read_source

    source, findings = read_source(path)
    if findings and any(f.severity.value == "error" for f in findings):
        report = Report()
        report.extend(findings)
        return Checked(report)
    values = {name: parse_value(text) for name, text in (overrides or {}).items()}
    return check_source(source, path.parent, values)


def parse_value(text: str) -> object:
    """Return a parameter setting given as text: an int, float, bool, ``none``, string or list."""
    from tokdsl.types.dims import Dim

    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    if lowered == "none":
        return None
    if lowered.startswith("[") and lowered.endswith("]"):
        return tuple(parse_value(part) for part in text.strip()[1:-1].split(",") if part.strip())
    try:
        return Dim.of(int(text.replace("_", "")))
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text.strip("\"'")


@dataclass
class Built:
    """The outcome of a build: findings, and where the package is (None if there is none).

    Args:
        files: text of the files by name.
        regions: what was decided about each region that could be a kernel.
    """

    report: Report
    directory: Path | None = None
    files: dict[str, str] = field(default_factory=dict)
    regions: list[RegionReport] = field(default_factory=list)

    def explained(self) -> list[str]:
        """Return a line per region, and per function of the package that has a kernel."""
        import json

        functions = json.loads(self.files.get("manifest.json", "{}")).get("functions", [])
        lines = [str(region) for region in self.regions]
        return lines + [f"kernel: {f['function']} -> {f['kernel']}" for f in functions]


def emit_program(checked: Checked, program: Program, source_name: str) -> dict[str, str]:
    """Return the files of the package of one checked model."""
    return _emitted(checked, program, source_name)[0]


def _emitted(
    checked: Checked, program: Program, source_name: str
) -> tuple[dict[str, str], list[RegionReport]]:
    from tokdsl.emit.package import emit
    from tokdsl.lower.build import lower

    facts = checked.facts[program.name]
    plan = lower(program, facts, digest(checked))
    return emit(plan, source_name) | tokenizer_file(program), plan.regions


def tokenizer_file(program: Program) -> dict[str, str]:
    """Return the file of a published tokenizer, if it lies where the model says.

    It may also come later, with the weights.
    """
    if program.tokenizer is None or program.tokenizer[0] != "pretrained":
        return {}
    _, arguments, span = program.tokenizer
    path = Path(span.file.name).parent / str(arguments.get("file", "tokenizer.json"))
    return {"tokenizer.json": path.read_text("utf-8")} if path.is_file() else {}


def digest(checked: Checked) -> str:
    """Return a short hash of all sources that the model was made of."""
    import hashlib

    whole = hashlib.sha256()
    for name in sorted(checked.sources):
        whole.update(checked.sources[name].text.encode("utf-8", "surrogatepass"))
    return whole.hexdigest()[:12]


def build(path: Path, out: Path, overrides: Mapping[str, str] | None = None) -> Built:
    """Check a file and write its model's package to ``out``/<model>, whole or not at all.

    Configurations of kernels that were measured stay with those that are as they were.
    """
    from tokdsl.files import replaced_directory
    from tokdsl.lower.diagnostics import NotLowered
    from tokdsl.lower.texts import Unsupported

    checked = check_file(path, overrides)
    if checked.report.has_errors or not checked.programs:
        return Built(checked.report)
    program = checked.programs[0]
    try:
        files, regions = _emitted(checked, program, path.name)
    except Unsupported as error:
        checked.report.add(NotLowered(span=program.span, what=str(error)))
        return Built(checked.report)
    target = out / program.name
    measured = _measured(target, files)
    with replaced_directory(target) as folder:
        for name, text in {**files, **measured}.items():
            (folder / name).write_text(text, "utf-8")
    return Built(checked.report, target, files, regions)


def _measured(target: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Return what `tokdsl tune` measured on an earlier package, as far as its kernels are left."""
    from tokdsl.emit.tuned import TUNED, kept

    tuned, kernels = target / TUNED, target / "kernels.py"
    if not (tuned.is_file() and kernels.is_file()):
        return {}
    before = kernels.read_text("utf-8", "replace")
    left = kept(tuned.read_text("utf-8", "replace"), before, files.get("kernels.py", ""))
    return {TUNED: left} if left else {}
