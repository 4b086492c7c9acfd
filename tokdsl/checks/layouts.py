"""Layouts of published checkpoints: names, indices, and the pieces that tensors are made of."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

from tokdsl.checks.pieces import Piece, View
from tokdsl.diagnostics import did_you_mean
from tokdsl.source import SourceFile, Span
from tokdsl.syntax import tree

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


class RuleFault(Exception):
    """A rule cannot be read; becomes a diagnostic.

    Args:
        kind: the ``name`` of the diagnostic class.
        text: expected, then found.
        span: the smallest part of the rule that is at fault.
        help: how to repair it.
    """

    def __init__(self, kind: str, text: str, span: Span, help: str | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.span = span
        self.help = help


@dataclass(frozen=True, slots=True)
class Pattern:
    """A published name with index expressions in braces."""

    parts: tuple[str | tree.Expression, ...]
    variables: tuple[str, ...]
    span: Span

    def name(self, numbers: Mapping[str, int]) -> str:
        """Return the name at given indices."""
        return "".join(p if isinstance(p, str) else str(number(p, numbers)) for p in self.parts)


@dataclass(frozen=True)
class Group:
    """The bindings of one rule at which it has the same form.

    Args:
        pieces: one per published name.
        bindings: values of the variables.
        axes: variables that go over all rows of a parameter, with the number of rows.
    """

    pieces: tuple[Piece, ...]
    bindings: list[tuple[int, ...]] = field(default_factory=list)
    axes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """One line of a ``weights`` clause, resolved.

    Args:
        variables: the index variables that `Group.bindings` give values.
    """

    published: tuple[Pattern, ...]
    variables: tuple[str, ...]
    groups: list[Group]
    covered: list[View]
    span: Span


@dataclass(frozen=True)
class Tied:
    """A published name that repeats another one; ``rule`` gives the values of their indices."""

    alias: Pattern
    other: Pattern
    rule: Rule | None


@dataclass(frozen=True)
class Layout:
    """One ``weights`` clause: how a published checkpoint names and forms the parameters.

    Args:
        ignored: patterns of published names that this model does not need.
    """

    name: str
    span: Span
    rules: list[Rule] = field(default_factory=list)
    tied: list[Tied] = field(default_factory=list)
    ignored: list[Pattern] = field(default_factory=list)


# --------------------------------------------------------------------------- numbers

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv,
    "%": operator.mod, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "==": operator.eq, "!=": operator.ne,
    "and": lambda a, b: bool(a) and bool(b), "or": lambda a, b: bool(a) or bool(b),
}  # fmt: skip


def number(node: tree.Expression, names: Mapping[str, int]) -> int:
    """Return the value of an expression over whole numbers.

    Raises:
        RuleFault: it is none, or has an unknown name.
    """
    if isinstance(node, tree.Number) and isinstance(node.value, int):
        return node.value
    if isinstance(node, tree.Name):
        if node.id in names:
            return names[node.id]
        raise RuleFault(
            "weight-rule",
            f"`{node.id}` is neither an index of the published name nor a parameter of the model",
            node.span,
            did_you_mean(node.id, names)
            or f"indices stand in braces in the published name: `{{{node.id}}}`",
        )
    if isinstance(node, tree.Unary):
        value = number(node.operand, names)
        return -value if node.operator == "-" else not value
    if isinstance(node, tree.Binary) and (node.operator in _OPERATORS or node.operator == "/"):
        left, right = number(node.left, names), number(node.right, names)
        if node.operator in ("/", "//", "%") and right == 0:
            raise RuleFault("weight-rule", "division by zero", node.span)
        if node.operator == "/":
            if left % right:
                raise RuleFault("weight-rule", f"{left} / {right} is not whole", node.span)
            return left // right
        return _OPERATORS[node.operator](left, right)
    raise RuleFault("weight-rule", "a whole number is needed here", node.span)


def bind(node: tree.Expression, constants: Mapping[str, int]) -> tree.Expression:
    """Return an expression over numbers with the names of constants replaced by their values."""
    if isinstance(node, tree.Name) and node.id in constants:
        return tree.Number(node.span, constants[node.id])
    if isinstance(node, tree.Unary):
        return tree.Unary(node.span, node.operator, bind(node.operand, constants))
    if isinstance(node, tree.Binary):
        left, right = bind(node.left, constants), bind(node.right, constants)
        return tree.Binary(node.span, node.operator, left, right)
    return node


def names_in(node: object) -> Iterator[str]:
    """Yield the names in an expression over numbers."""
    if isinstance(node, tree.Name):
        yield node.id
    elif isinstance(node, tree.Unary):
        yield from names_in(node.operand)
    elif isinstance(node, tree.Binary):
        yield from names_in(node.left)
        yield from names_in(node.right)


# --------------------------------------------------------------------------- published names


@lru_cache(maxsize=256)
def _embedded(text: str) -> tree.Expression | None:
    """Return the expression that stands between braces, or None if it is none."""
    if text.isidentifier():
        return tree.Name(Span(SourceFile("", text), 0, len(text)), text)
    from tokdsl.syntax.parser import parse

    module, found = parse(SourceFile("", f"fn name() {{ ({text}) }}"))
    item = module.items[0] if module.items else None
    if found or len(module.items) != 1 or not isinstance(item, tree.Definition):
        return None
    statements = item.body.statements
    if len(statements) != 1 or not isinstance(statements[0], tree.Step):
        return None
    return statements[0].value


def pattern(published: tree.String, constants: Mapping[str, int]) -> Pattern:
    """Return a published name in parts; a ``{}`` that only mentions constants is filled in.

    Raises:
        RuleFault: what stands in braces is no expression.
    """
    parts: list[str | tree.Expression] = []
    variables: list[str] = []
    last = 0
    for match in _PLACEHOLDER.finditer(published.value):
        node = _embedded(match[1].strip())
        if node is None:
            raise RuleFault(
                "weight-rule", f"`{match[0]}` holds no index expression", published.span
            )
        node = bind(node, constants)
        names = list(names_in(node))
        text = "" if names else str(number(node, {}))
        parts += [published.value[last : match.start()], node if names else text]
        variables += names
        last = match.end()
    parts.append(published.value[last:])
    kept = tuple(p for p in parts if p != "")
    if any("{" in part or "}" in part for part in kept if isinstance(part, str)):
        raise RuleFault("weight-rule", "a brace is not closed or not opened", published.span)
    return Pattern(kept, tuple(dict.fromkeys(variables)), published.span)


def alias_names(tied: Tied) -> Iterator[str]:
    """Yield every published name that a rule with `tied` gives."""
    if tied.rule is None or not tied.alias.variables:
        yield tied.alias.name({})
    else:
        for group in tied.rule.groups:
            yield from _names(tied.alias, tied.rule, group)


def published_names(rule: Rule) -> Iterator[tuple[str, Pattern]]:
    """Yield every published name of a rule, with the pattern that gives it."""
    for group in rule.groups:
        for given in rule.published:
            for name in _names(given, rule, group):
                yield name, given


def _names(given: Pattern, rule: Rule, group: Group) -> Iterator[str]:
    """Yield the names that a pattern gives in one group; quickly, for there may be very many."""
    variables = (*rule.variables, *group.axes)
    rows = list(product(*(range(count) for count in group.axes.values())))
    values = ((*first, *rest) for first in group.bindings for rest in rows)
    holes = [part for part in given.parts if not isinstance(part, str)]
    if all(isinstance(hole, tree.Name) for hole in holes):
        texts = (p.replace("%", "%%") if isinstance(p, str) else "%d" for p in given.parts)
        form = "".join(texts)
        places = [variables.index(hole.id) for hole in holes if isinstance(hole, tree.Name)]
        for row in values:
            yield form % tuple([row[i] for i in places])
    else:
        for row in values:
            yield given.name(dict(zip(variables, row, strict=True)))
