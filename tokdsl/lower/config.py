"""The static parameters of a model as fields of its ``Config``."""

from __future__ import annotations

import json

from tokdsl.graph.statics import show
from tokdsl.lower.plan import ConfigField
from tokdsl.types.dims import Dim


def config_field(name: str, value: object) -> ConfigField:
    """Return a parameter with its value for JSON and its Python text."""
    json_value = plain(value)
    literal = json.dumps(json_value) if isinstance(json_value, str) else repr(json_value)
    return ConfigField(name, _annotation(value), json_value, literal)


def plain(value: object) -> object:
    """Return a static value as JSON has it; definitions as they are written."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Dim):
        return value.number
    return value if isinstance(value, (int, float, str, type(None))) else show(value)


def _annotation(value: object) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, Dim):
        return "int"
    if value is None:
        return "None"
    return "float" if isinstance(value, float) else "str"
