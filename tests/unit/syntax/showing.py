"""Short texts for trees and findings, so that a test is a text in and a text out."""

from __future__ import annotations

from tokdsl.diagnostics import Diagnostic
from tokdsl.source import SourceFile
from tokdsl.syntax import tree
from tokdsl.syntax.compare import children, field_names
from tokdsl.syntax.formatter import Formatter
from tokdsl.syntax.parser import parse
from tokdsl.syntax.yaml_form import parse_yaml


def module(text: str) -> tree.Module:
    """Parse a text that has no mistakes."""
    parsed, found = parse(SourceFile("t.tok", text))
    assert [finding.message() for finding in found] == []
    return parsed


def statements(text: str) -> tuple[tree.Statement, ...]:
    """Parse the statements of a body."""
    (item,) = module(f"fn f(x: [*, d]) {{\n{text}\n}}").items
    assert isinstance(item, tree.Definition)
    return item.body.statements


def shape(text: str) -> str:
    """Return the tree of an expression or of statements in prefix notation."""
    return "; ".join(prefix(statement) for statement in statements(text))


def prefix(node: tree.Node) -> str:
    """Return a node in prefix notation."""
    match node:
        case tree.Name():
            return node.id
        case tree.Number():
            return repr(node.value) + (f"~{node.unit}" if node.unit else "")
        case tree.String() | tree.Boolean():
            return repr(node.value)
        case tree.Step():
            return prefix(node.value)
        case tree.Binary() | tree.Unary():
            inner = " ".join(prefix(child) for child in children(node))
            return f"({node.operator} {inner})"
        case tree.Body():
            return "{" + "; ".join(prefix(child) for child in children(node)) + "}"
        case _:
            plain = [getattr(node, name) for name in field_names(node)]
            words = [str(value) for value in plain if isinstance(value, (str, bool)) and value]
            parts = [type(node).__name__, *words, *(prefix(child) for child in children(node))]
            return f"({' '.join(parts)})"


def findings(text: str) -> list[str]:
    """Return the findings of a text, one line each."""
    return lines(parse(SourceFile("t.tok", text))[1])


def yaml_findings(text: str) -> list[str]:
    """Return the findings of a YAML text, one line each."""
    return lines(parse_yaml(SourceFile("t.tok.yaml", text))[1])


def lines(found: list[Diagnostic]) -> list[str]:
    """Return findings as ``line:column code message (help)``."""
    texts = []
    for finding in found:
        advice = f" ({finding.help})" if finding.help else ""
        place = f"{finding.span.line}:{finding.span.column}"
        texts.append(f"{place} {finding.code} {finding.message()}{advice}")
    return texts


def formatted(text: str) -> str:
    """Format a text without the safety net."""
    source = SourceFile("t.tok", text)
    parsed, found = parse(source)
    assert [finding.message() for finding in found] == []
    return Formatter(source).module(parsed)
