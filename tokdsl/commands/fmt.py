"""`tokdsl fmt`: one way to write a spec, and conversion between its two forms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from tokdsl.diagnostics import Report
from tokdsl.files import write_atomic
from tokdsl.source import SourceFile

if TYPE_CHECKING:
    from tokdsl.syntax import tree


class Form(StrEnum):
    """The two surfaces of the language."""

    TOK = "tok"
    YAML = "yaml"


class FormatError(Exception):
    """A file that cannot be formatted for a reason that has no place in it; one line."""


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Args:
        report: its syntax errors; a file with errors is not touched.
        text: the new text.
        path: the file that was written, or would be.
        changed: whether its content changed, or would.
    """

    report: Report
    text: str = ""
    path: Path | None = None
    changed: bool = False


def form_of(path: Path) -> Form:
    """Return the form that the ending of a file says."""
    return Form.YAML if path.suffix in (".yaml", ".yml") else Form.TOK


def format_text(text: str, name: str) -> Outcome:
    """Return a spec in its one way of writing; comments stay where they are."""
    return _format(SourceFile(name, text), Report())


def _format(source: SourceFile, report: Report) -> Outcome:
    module = _parse(source, report, Form.TOK)
    if report.has_errors:
        return Outcome(report, source.text)
    from tokdsl.syntax.formatter import format_module

    text = format_module(source, module)
    return Outcome(report, text, changed=text != source.text)


def reformat(path: Path, *, write: bool) -> Outcome:
    """Format a file in place, or only say whether it would change.

    Raises:
        FormatError: the file cannot be written, or is in the YAML form.
    """
    if form_of(path) is Form.YAML:
        raise FormatError(f"{path}: only the tok form is formatted; `--to tok` converts")
    outcome = _format(*_read(path))
    if outcome.changed and write:
        _write(path, outcome.text)
    return replace(outcome, path=path)


def convert(path: Path, to: Form) -> Outcome:
    """Write a spec in the other form beside the file; comments are not carried over.

    Raises:
        FormatError: the file has this form already, or what would be written is there with other
            content or cannot be written.
    """
    if form_of(path) is to:
        raise FormatError(f"{path} is in the {to} form already")
    source, report = _read(path)
    module = _parse(source, report, form_of(path))
    if report.has_errors:
        return Outcome(report)
    target, text = _converted(path, module, to)
    if not target.exists():
        _write(target, text)
        return Outcome(report, text, target, changed=True)
    existing, unreadable = _read(target)
    if unreadable.has_errors or existing.text != text:
        raise FormatError(f"{target} is already there with other content")
    return Outcome(report, text, target)


def _converted(path: Path, module: tree.Module, to: Form) -> tuple[Path, str]:
    if to is Form.YAML:
        from tokdsl.syntax.yaml_form import to_yaml

        return path.with_name(f"{path.name}.yaml"), to_yaml(module)
    from tokdsl.syntax.formatter import print_module

    return path.with_name(path.stem.removesuffix(".tok") + ".tok"), print_module(module)


def _parse(source: SourceFile, report: Report, form: Form) -> tree.Module:
    """Parse a text and add its findings to the report."""
    if form is Form.YAML:
        from tokdsl.syntax.yaml_form import parse_yaml as parse
    else:
        from tokdsl.syntax.parser import parse
    module, found = parse(source)
    report.extend(found)
    return module


def _read(path: Path) -> tuple[SourceFile, Report]:
    from tokdsl.syntax.reading import read_source

    source, found = read_source(path)
    report = Report()
    report.extend(found)
    return source, report


def _write(path: Path, text: str) -> None:
    try:
        write_atomic(path, text)
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}") from None
