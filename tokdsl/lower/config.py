"""The static parameters of a model as fields of its ``Config``."""

from __future__ import annotations

import json

from tokdsl.graph.statics import show
from tokdsl.lower.plan import ConfigField
from tokdsl.types.dims import Dim


def config_field(name: str, value: object) -> ConfigField:
    """Return a parameter with its value for JSON and its Python text."""
    json_value = plain(value)
    return ConfigField(name, _annotation(value), json_value, _literal(json_value))


def plain(value: object) -> object:
    """Return a static value as JSON has it; definitions as they are written."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Dim):
        return value.number
    return value if isinstance(value, (int, float, str, type(None))) else show(value)


def _literal(value: object) -> str:
    """Return Python text; a list becomes a tuple, as a field of a frozen class must be."""
    if isinstance(value, list):
        inner = ", ".join(_literal(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _annotation(value: object) -> str:
    if isinstance(value, tuple):
        kinds = dict.fromkeys(_annotation(item) for item in value)
        return f"tuple[{' | '.join(kinds)}, ...]" if kinds else "tuple[()]"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, Dim):
        return "int"
    if value is None:
        return "None"
    return "float" if isinstance(value, float) else "str"
