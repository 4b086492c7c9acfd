"""The JSON Schema of the YAML form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.syntax.showing import module
from tokdsl.syntax.schema import json_schema
from tokdsl.syntax.yaml_form import to_yaml

PROGRAMS = sorted(Path(__file__).parent.glob("programs/*.tok"))
SCHEMA = json_schema()
TYPES = {"string": str, "integer": int, "boolean": bool, "object": dict, "array": list}


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """Return whether a value fits the part of JSON Schema that pydantic writes."""
    if "$ref" in schema:
        return is_valid(value, SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]])
    if "anyOf" in schema:
        return any(is_valid(value, choice) for choice in schema["anyOf"])
    kind = schema["type"]
    if kind == "null":
        return value is None
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if not isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, bool)):
        return False
    if kind == "string":
        return len(value) >= schema.get("minLength", 0) and bool(
            re.search(schema.get("pattern", ""), value)
        )
    if kind == "array":
        return all(is_valid(item, schema["items"]) for item in value)
    return kind != "object" or is_valid_object(value, schema)


def is_valid_object(value: dict[str, Any], schema: dict[str, Any]) -> bool:
    """Return whether a mapping fits a schema."""
    known = schema.get("properties", {})
    patterns = schema.get("patternProperties", {})
    for key, inner in value.items():
        fitting = [part for pattern, part in patterns.items() if re.search(pattern, key)]
        fitting += [known[key]] if key in known else []
        if not fitting and (schema.get("additionalProperties") is False or patterns):
            return False
        if not all(is_valid(inner, part) for part in fitting):
            return False
    return set(schema.get("required", ())) <= value.keys()


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_programs_are_valid(path: Path) -> None:
    document = yaml.safe_load(to_yaml(module(path.read_text("utf-8"))))
    assert is_valid(document, SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "- model: m\n  paramters: {}\n  body: []",
        "- model: m",
        "- model: m\n  body: x",
        "- model: 3 m\n  body: []",
        "- fn: f\n  body: [{repeat: 4, bdy: []}]",
        "- fn: f\n  body: [{repeat: [4], body: []}]",
        "- fn: f\n  parameters: {a b: int}\n  body: []",
        "just a text",
    ],
)
def test_mistakes_are_not_valid(text: str) -> None:
    assert not is_valid(yaml.safe_load(text), SCHEMA)


def test_every_key_is_described() -> None:
    for form in SCHEMA["$defs"].values():
        assert form["description"]
        assert all(key["description"] for key in form["properties"].values())
