"""Findings for machines: JSON lines and SARIF 2.1.0.

Lines and columns count from 1, columns in code points; the end of a range is exclusive.
`json` and `urllib` are imported where they are used: most runs write text.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokdsl import __version__
from tokdsl.diagnostics.base import Diagnostic, Fix, Label, Severity
from tokdsl.source import Span

Json = dict[str, Any]

#: where `make docs` writes the page of all findings
REFERENCE = "docs/diagnostics.md"


def render_json(diagnostics: Iterable[Diagnostic]) -> str:
    """Return one JSON object per finding, each on its own line.

    Fields: ``code``, ``name``, ``severity``, ``message``, ``file``, ``range``, ``label``,
    ``labels``, ``notes``, ``helps`` (title, edits, applicability ``safe``, ``unsafe`` or
    ``none`` when there is nothing to apply), ``trace`` and ``url``.
    """
    import json

    return "".join(json.dumps(_object(d), ensure_ascii=False) + "\n" for d in diagnostics)


def _object(diagnostic: Diagnostic) -> Json:
    return {
        "code": diagnostic.code,
        "name": diagnostic.name,
        "severity": diagnostic.severity.value,
        "message": diagnostic.message(),
        "file": diagnostic.span.file.name,
        "range": _range(diagnostic.span),
        "label": diagnostic.label(),
        "labels": [_label(label) for label in diagnostic.labels],
        "notes": list(diagnostic.notes),
        "helps": _helps(diagnostic),
        "trace": [_label(call) for call in diagnostic.trace],
        "url": f"{REFERENCE}#{diagnostic.code.lower()}",
    }


def _range(span: Span) -> Json:
    line, column = span.file.position(span.start)
    end_line, end_column = span.file.position(span.end)
    return {
        "start": {"line": line, "column": column, "offset": span.start},
        "end": {"line": end_line, "column": end_column, "offset": span.end},
    }


def _label(label: Label) -> Json:
    return {"file": label.span.file.name, "range": _range(label.span), "text": label.text}


def _helps(diagnostic: Diagnostic) -> list[Json]:
    helps: list[Json] = []
    if diagnostic.help:
        helps.append({"title": diagnostic.help, "edits": [], "applicability": "none"})
    if fix := diagnostic.fix:
        edits = [
            {"file": e.span.file.name, "range": _range(e.span), "text": e.text} for e in fix.edits
        ]
        applicability = "safe" if fix.safe else "unsafe"
        helps.append({"title": fix.title, "edits": edits, "applicability": applicability})
    return helps


# --------------------------------------------------------------------------- SARIF


def render_sarif(diagnostics: Iterable[Diagnostic]) -> str:
    """Return the findings as one SARIF 2.1.0 log, also when there are none."""
    import json

    found = list(diagnostics)
    classes = sorted({type(d) for d in found}, key=lambda c: c.code)
    index = {cls.code: number for number, cls in enumerate(classes)}
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "tokdsl",
                        "version": __version__,
                        "rules": [_rule(cls) for cls in classes],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [_result(d, index[d.code]) for d in found],
            }
        ],
    }
    return json.dumps(log, indent=2, ensure_ascii=False) + "\n"


def _level(severity: Severity) -> str:
    return severity.value  # SARIF has the same three words


def _rule(cls: type[Diagnostic]) -> Json:
    return {
        "id": cls.code,
        "name": cls.name,
        "shortDescription": {"text": cls.title()},
        "help": {"text": f"tokdsl explain {cls.code}"},
        "defaultConfiguration": {"level": _level(cls.severity)},
    }


def _result(diagnostic: Diagnostic, rule: int) -> Json:
    text = "\n".join([diagnostic.message(), *diagnostic.notes, diagnostic.help or ""]).strip()
    result: Json = {
        "ruleId": diagnostic.code,
        "ruleIndex": rule,
        "level": _level(diagnostic.severity),
        "message": {"text": text},
        "locations": [_location(diagnostic.span, diagnostic.label())],
    }
    if diagnostic.labels:
        result["relatedLocations"] = [
            {"id": number, **_location(label.span, label.text)}
            for number, label in enumerate(diagnostic.labels)
        ]
    if diagnostic.fix:
        result["fixes"] = [_sarif_fix(diagnostic.fix)]
    return result


def _location(span: Span, text: str) -> Json:
    location: Json = {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(span.file.name)},
            "region": _region(span),
        }
    }
    if text:
        location["message"] = {"text": text}
    return location


def _uri(name: str) -> str:
    from urllib.parse import quote

    path = Path(name)
    return path.as_uri() if path.is_absolute() else quote(name.replace("\\", "/"))


def _region(span: Span) -> Json:
    line, column = span.file.position(span.start)
    end_line, end_column = span.file.position(span.end)
    return {"startLine": line, "startColumn": column, "endLine": end_line, "endColumn": end_column}


def _sarif_fix(fix: Fix) -> Json:
    by_file: dict[str, list[Json]] = {}
    for edit in fix.edits:
        replacement = {
            "deletedRegion": _region(edit.span),
            "insertedContent": {"text": edit.text},
        }
        by_file.setdefault(_uri(edit.span.file.name), []).append(replacement)
    return {
        "description": {"text": fix.title},
        "artifactChanges": [
            {"artifactLocation": {"uri": uri}, "replacements": replacements}
            for uri, replacements in by_file.items()
        ],
    }
