"""The files of a package that are about text: tokens, and segments where the model has them."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokdsl.emit import functions
from tokdsl.emit.environment import render
from tokdsl.lower.plan import Plan
from tokdsl.tokenizers import Step, description

TEMPLATES = {"bytes": "tokenizer_bytes", "chars": "tokenizer_characters"}


def tokenizer_files(plan: Plan) -> dict[str, str]:
    """Return the files of the tokenizer, by name.

    A tokenizer that finds segments is made of three: what makes tokens (``tokens.py``), what cuts
    a text (``segments.py``), and both together (``tokenizer.py``).
    """
    if plan.tokenizer is None:
        return {}
    name, arguments = plan.tokenizer
    base = render(f"package/{TEMPLATES.get(name, 'tokenizer_library')}.py.jinja", {})
    files = {"tokens.py" if plan.segments else "tokenizer.py": base}
    if plan.segments:
        files["segments.py"] = segments(plan.segments)
        files["tokenizer.py"] = _segmenting(plan.segments, is_library=name not in TEMPLATES)
    # the file of a published tokenizer is added by the driver, which reads and writes files
    if name != "pretrained":
        content = description(name, arguments)
        files["tokenizer.json"] = json.dumps(content, indent=2, sort_keys=True) + "\n"
    return files


def segments(steps: Iterable[Step]) -> str:
    """Return the module with what the steps of a tokenizer need."""
    names = {name for step in steps for name in _needed(step)}
    body = functions.merge(functions.collect(names))
    return f'"""Where segments of a text begin; nothing here knows of tokens."""\n\n{body}'


def _needed(step: Step) -> list[str]:
    if step.source in ("text", "whole"):
        return [step.form, "Rule", "token_flags"]
    return [step.form]


def _segmenting(steps: list[Step], is_library: bool) -> str:
    """Return ``tokenizer.py`` of a tokenizer with steps."""
    kinds = {"text": "rules", "whole": "rules", "tokens": "merges", "entropies": "groups"}
    parts: dict[str, list[dict[str, str]]] = {kind: [] for kind in kinds.values()}
    markers: dict[str, str] = {}
    for step in steps:
        given = ", ".join(f"{name}={_literal(value)}" for name, value in step.settings.items())
        constructor = f"{step.form}({given})"
        markers |= {step.name: step.marker} if step.marker else {}
        if step.source == "entropies":
            constructor = f"partial({step.form}, {given})" if given else step.form
        parts[kinds[step.source]].append({"name": step.name, "constructor": constructor})
    imported = sorted({name for step in steps for name in _needed(step)}, key=functions.order)
    is_streaming = any(step.source == "text" for step in steps) and not is_library
    is_streaming = is_streaming and not markers
    beside = [step.name for step in steps if step.source != "entropies"]
    return render(
        "package/tokenizer_segments.py.jinja",
        {
            **parts,
            "functions": imported,
            "beside": beside,
            "streams": is_streaming,
            "late": [step.name for step in steps if step.is_late and is_streaming],
            "markers": markers,
            "partial": any("partial(" in group["constructor"] for group in parts["groups"]),
        },
    )


def _literal(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)
