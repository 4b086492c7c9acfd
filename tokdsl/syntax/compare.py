"""Walks over trees and compares them without regard to where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from tokdsl.syntax import tree

_NAMES: dict[str, tuple[str, ...]] = {}


def field_names(node: tree.Node) -> tuple[str, ...]:
    """Return the names of a node's fields that are not spans."""
    kind = type(node).__name__
    if kind not in _NAMES:
        _NAMES[kind] = tuple(f.name for f in fields(node) if f.name not in ("span", "name_span"))
    return _NAMES[kind]


def children(node: tree.Node) -> Iterator[tree.Node]:
    """Return the nodes directly inside a node, in the order of their fields."""
    for name in field_names(node):
        value = getattr(node, name)
        if isinstance(value, tree.Node):
            yield value
        elif isinstance(value, tuple):
            yield from (item for item in value if isinstance(item, tree.Node))


def walk(node: tree.Node) -> Iterator[tree.Node]:
    """Return a node and all nodes inside it; deep trees are no problem."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        yield current
        waiting.extend(reversed(list(children(current))))


def without_spans(node: Any) -> Any:
    """Return a node as nested tuples of its kind and its fields, without spans."""
    if isinstance(node, tree.Node):
        values = (without_spans(getattr(node, name)) for name in field_names(node))
        return (type(node).__name__, *values)
    if isinstance(node, tuple):
        return tuple(without_spans(item) for item in node)
    return (type(node).__name__, node) if isinstance(node, (bool, int, float)) else node


def same_tree(one: tree.Node, other: tree.Node) -> bool:
    """Return whether two trees say the same."""
    return bool(without_spans(one) == without_spans(other))
