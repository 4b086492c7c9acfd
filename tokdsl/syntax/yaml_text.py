"""Writes a module in its YAML form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tokdsl.syntax import tree
from tokdsl.syntax.formatter import Formatter
from tokdsl.syntax.literals import is_plain
from tokdsl.syntax.printing import joined

#: A YAML value: nothing, a text, a list, or keys with values.
Value = str | list["Value"] | dict[str, "Value"] | None


class FlatPrinter(Formatter):
    """Prints everything on one line."""

    def __init__(self) -> None:
        super().__init__(None)

    def must_break(self, body: tree.Body) -> bool:
        """Return false: a text in YAML has one line."""
        return False

    def line_of(self, node: tree.Node) -> str:
        """Return a node on one line."""
        return self.flat(node) or ""


def to_yaml(module: tree.Module) -> str:
    """Return the YAML form of a module without mistakes; comments other than docs are lost."""
    import yaml

    writer = _Writer()
    texts = []
    for item in module.items:
        text = yaml.emit(
            _document(writer.item(item)), Dumper=yaml.Dumper, width=10**9, allow_unicode=True
        )
        texts.append("- " + text.replace("\n", "\n  ").rstrip() + "\n")
    return "\n".join(texts)


def _document(value: Value) -> Iterator[Any]:
    """Return the YAML events of a value; lists and mappings nest without recursion limits."""
    import yaml

    yield yaml.StreamStartEvent()
    yield yaml.DocumentStartEvent(explicit=False)
    yield from _events(value)
    yield yaml.DocumentEndEvent(explicit=False)
    yield yaml.StreamEndEvent()


def _events(value: Value) -> Iterator[Any]:
    import yaml

    waiting: list[Any] = [value]
    while waiting:
        current = waiting.pop()
        if current is None:
            yield yaml.ScalarEvent(None, None, (True, True), "null")
        elif isinstance(current, str):
            yield _scalar(current)
        elif isinstance(current, list):
            yield yaml.SequenceStartEvent(None, None, True, flow_style=_is_short(current))
            waiting += [yaml.SequenceEndEvent(), *reversed(current)]
        elif isinstance(current, dict):
            yield yaml.MappingStartEvent(None, None, True, flow_style=not current)
            waiting.append(yaml.MappingEndEvent())
            for key, inner in reversed(current.items()):
                waiting += [inner, key]
        else:
            yield current


def _is_short(items: list[Value]) -> bool:
    """Return whether a list is one of names, which stands on one line."""
    if not items:
        return True
    names = [item for item in items if isinstance(item, str) and item.isidentifier()]
    return len(names) == len(items) and sum(map(len, names)) < 60


def _scalar(text: str) -> Any:
    import yaml

    style = "'" if text in ("", "~", "null") else None
    if not all(is_plain(character) or character == "\n" for character in text):
        style = '"'
    elif "\n" in text:
        style = '"' if text.endswith("\n") else "|"
    return yaml.ScalarEvent(None, None, (True, True), text, style=style)


class _Writer:
    """Turns nodes into YAML values."""

    def __init__(self) -> None:
        self.text = FlatPrinter().line_of

    def item(self, node: tree.Item) -> Value:
        """Return an item."""
        if isinstance(node, tree.Use):
            value: dict[str, Value] = {"use": ".".join(node.module)}
            if node.names:
                value["names"] = [self.text(name) for name in node.names]
            if node.alias:
                value["as"] = node.alias
            return value
        if isinstance(node, tree.Model):
            value = {"model": node.name}
            self.add(value, "doc", node.doc)
            self.add(value, "parameters", self.annotations(node.parameters))
            return value | {"body": self.body(node.members)}
        if not isinstance(node, tree.Definition):
            return node.span.text
        value = {node.kind: node.name}
        self.add(value, "doc", node.doc)
        self.add(value, "operands", self.annotations(node.operands))
        self.add(value, "parameters", self.annotations(node.parameters))
        if node.result is not None:
            value["result"] = self.text(node.result)
        return value | {"body": self.body(node.body.statements)}

    def add(self, value: dict[str, Value], key: str, inner: Value) -> None:
        """Add what is not empty."""
        if inner:
            value[key] = inner

    def annotations(self, nodes: Sequence[tree.Operand | tree.Parameter]) -> Value:
        """Return declarations: as a mapping, or as texts where a name comes twice."""
        if len({node.name for node in nodes}) < len(nodes):
            return [self.text(node) for node in nodes]
        return {node.name: self.annotation(node) for node in nodes}

    def annotation(self, node: tree.Operand | tree.Parameter) -> Value:
        """Return the type and the default of a declaration."""
        kind = self.text(node.type) if node.type is not None else ""
        default = f"= {self.text(node.default)}" if node.default is not None else ""
        return joined(kind, " " if kind and default else "", default) or None

    def arguments(self, nodes: Sequence[tree.Argument]) -> Value:
        """Return arguments: as a mapping, or as texts where not each has a name of its own."""
        names = {node.name for node in nodes if node.name is not None}
        if len(names) < len(nodes):
            return [self.text(node) for node in nodes]
        return {node.name or "": self.text(node.value) for node in nodes}

    def body(self, statements: Sequence[tree.Node]) -> Value:
        """Return the statements of a block."""
        return [self.statement(statement) for statement in statements]

    def statement(self, node: tree.Node) -> Value:
        """Return a statement."""
        value: dict[str, Value]
        match node:
            case tree.Stage():
                value = {"stage": node.name}
                self.add(value, "inputs", self.annotations(node.inputs))
                self.add(value, "arguments", self.arguments(node.arguments))
                return value | {"body": self.body(node.body.statements)}
            case tree.Repeat():
                value = {"repeat": self.text(node.count)}
                self.add(value, "as", node.index or "")
                return value | {"body": self.body(node.body.statements)}
            case tree.Residual():
                value = {"residual": self.body(node.body.statements)}
                self.add(value, "arguments", self.arguments(node.arguments))
                return value
            case tree.Step(value=tree.If() as choice):
                value = {
                    "if": self.text(choice.condition),
                    "then": self.body(choice.then.statements),
                }
                if choice.otherwise is not None:
                    value["else"] = self.body(choice.otherwise.statements)
                return value
            case tree.Objective():
                return {"objective": self.text(node.value)}
            case tree.Require():
                conditions: list[Value] = [self.text(c) for c in node.conditions]
                return {"require": conditions[0] if len(conditions) == 1 else conditions}
            case tree.Weights():
                return {"weights": node.name, "rules": [self.rule(rule) for rule in node.rules]}
            case _:
                return self.text(node)

    def rule(self, node: tree.WeightRule) -> Value:
        """Return a rule of a ``weights`` clause."""
        names: list[Value] = [name.value for name in node.published]
        return {
            "published": names[0] if len(names) == 1 else names,
            "value": self.text(node.value),
        }
