"""Lowering of ``weights`` clauses: rows of code that pair published tensors with parameters.

A rule becomes one row inside the loops over its indices; rules with the same indices share their
loops.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence

from tokdsl.checks.layouts import Group, Layout, Pattern, Rule, names_in, number
from tokdsl.checks.pieces import Fused, Piece, Reshaped, Step, View
from tokdsl.lower.plan import Code, LayoutLoop, LayoutPlan, LayoutRow
from tokdsl.syntax import tree

#: values of one index variable
Values = tuple[int, ...]
Loops = tuple[tuple[str, Values], ...]
#: names that the emitted functions use themselves
_TAKEN = {"own", "range", *keyword.kwlist}


def lower_layouts(layouts: Iterable[Layout]) -> list[LayoutPlan]:
    """Return the plans of all layouts."""
    return [_layout(layout) for layout in layouts]


def _layout(layout: Layout) -> LayoutPlan:
    rows: list[LayoutRow | LayoutLoop] = []
    tied: list[LayoutRow | LayoutLoop] = []
    for rule in layout.rules:
        for group in rule.groups:
            for loops in _loops(rule, group):
                text = Texts(loops)
                for published, piece in zip(rule.published, group.pieces, strict=True):
                    row = LayoutRow(text.name(published.parts), text.piece(piece))
                    _place(rows, _kept(loops), row)
    for repeated in layout.tied:
        rule_loops = _all_loops(repeated.rule, repeated.alias)
        for loops in rule_loops:
            text = Texts(loops)
            row = LayoutRow(text.name(repeated.alias.parts), text.name(repeated.other.parts))
            _place(tied, _kept(loops), row)
    ignored = tuple(_regex(given) for given in layout.ignored)
    return LayoutPlan(layout.name, layout.span, rows, tied, ignored)


# --------------------------------------------------------------------------- loops


def _loops(rule: Rule, group: Group) -> list[Loops]:
    """Return the nests of loops that together go over all bindings of a group."""
    rows = tuple((name, tuple(range(count))) for name, count in group.axes.items())
    return [(*loops, *rows) for loops in _nests(rule.variables, group.bindings)]


def _all_loops(rule: Rule | None, alias: Pattern) -> list[Loops]:
    """Return the nests over all bindings of a rule, as far as a name depends on them."""
    if rule is None or not alias.variables:
        return [()]
    return [loops for group in rule.groups for loops in _loops(rule, group)]


def _nests(variables: Sequence[str], bindings: list[Values]) -> list[Loops]:
    """Return nests whose products are together the bindings, outer variable first."""
    if not variables:
        return [()]
    inner: dict[int, list[Values]] = {}
    for first, *rest in bindings:
        inner.setdefault(first, []).append(tuple(rest))
    same: dict[tuple[Values, ...], list[int]] = {}
    for first, rests in inner.items():
        same.setdefault(tuple(rests), []).append(first)
    return [
        ((variables[0], tuple(values)), *nest)
        for rests, values in same.items()
        for nest in _nests(variables[1:], list(rests))
    ]


def _kept(loops: Loops) -> Loops:
    """Return the loops without those of one turn, whose value is written out."""
    return tuple((_variable(name), values) for name, values in loops if len(values) > 1)


def _place(rows: list[LayoutRow | LayoutLoop], loops: Loops, row: LayoutRow) -> None:
    """Add a row inside its loops, which may exist already."""
    for name, values in loops:
        made = LayoutLoop(name, _range(values), [])
        same = (r for r in rows if isinstance(r, LayoutLoop) and r.head == made.head)
        loop = next(same, None)
        if loop is None:
            rows.append(made)
            loop = made
        rows = loop.rows
    rows.append(row)


def _range(values: Values) -> str:
    """Return Python text for the values of an index."""
    first, last = values[0], values[-1]
    step = values[1] - first if len(values) > 1 else 1
    if step > 0 and values == tuple(range(first, last + 1, step)):
        if step > 1:
            return f"range({first}, {last + 1}, {step})"
        return f"range({first}, {last + 1})" if first else f"range({last + 1})"
    inside = f"range({first}, {last + 1})" if first else f"range({last + 1})"
    for period in range(2, 17):
        kept = {value % period for value in values}
        if values == tuple(v for v in range(first, last + 1) if v % period in kept):
            left = sorted(set(range(period)) - kept)
            test = f"!= {left[0]}" if len(left) == 1 else f"in {tuple(sorted(kept))}"
            return f"[n for n in {inside} if n % {period} {test}]"
    return f"({', '.join(str(value) for value in values)})"


# --------------------------------------------------------------------------- texts


def _variable(name: str) -> str:
    return f"{name}_" if name in _TAKEN else name


class Texts:
    """Python text of names and pieces inside a nest of loops.

    Args:
        loops: indices of one turn are written out.
    """

    def __init__(self, loops: Loops) -> None:
        self.numbers = {name: values[0] for name, values in loops if len(values) == 1}

    def name(self, parts: Sequence[str | tree.Expression], dots: bool = False) -> str:
        """Return a string literal, formatted where the name depends on an index."""
        texts = [p if isinstance(p, str) else self._hole(p) for p in parts]
        joined = ("." if dots else "").join(texts)
        return ("f" if "{" in joined else "") + json.dumps(joined, ensure_ascii=False)

    def _hole(self, node: tree.Expression) -> str:
        """Return the place of an index in a name; a known number is plain text."""
        text = self.index(node)
        return text if text.isdigit() else f"{{{text}}}"

    def index(self, node: tree.Expression) -> str:
        """Return an index expression with constants written out."""
        return self._expression(node)[0]

    def _expression(self, node: tree.Expression) -> tuple[str, int]:
        """Return the text of an expression and how tightly it binds."""
        value = _value(node, self.numbers)
        if value is not None:
            return str(value), 3 if value >= 0 else 2
        if isinstance(node, tree.Name):
            return _variable(node.id), 3
        if isinstance(node, tree.Unary):
            inner, level = self._expression(node.operand)
            return f"-{inner if level > 1 else f'({inner})'}", 2
        assert isinstance(node, tree.Binary)
        level = 0 if node.operator in ("+", "-") else 1
        left, left_level = self._expression(node.left)
        right, right_level = self._expression(node.right)
        left = left if left_level >= level else f"({left})"
        right = right if right_level > level else f"({right})"
        operator = "//" if node.operator == "/" else node.operator
        return f"{left} {operator} {right}", level

    def piece(self, piece: Piece) -> Code:
        """Return code for a piece: text, or a call as (function, argument, ...)."""
        if isinstance(piece, Fused):
            return ("Fused", str(piece.dim), *(self.piece(p) for p in piece.parts))
        if isinstance(piece, Reshaped):
            return ("Reshaped", self.piece(piece.part), _tuple(piece.shape))
        return self._view(piece)

    def _view(self, view: View) -> str:
        text = f"own[{self.name(view.path, dots=True)}]"
        rank = len(view.shape) + sum(step.verb == "select" for step in view.steps)
        for step in view.steps:
            text += self._step(step, rank)
            rank = len(step.numbers) if step.verb == "view" else rank - (step.verb == "select")
        return text

    def _step(self, step: Step, rank: int) -> str:
        if step.verb == "select":
            assert step.index is not None
            return f"[{self.index(step.index)}]"
        if step.verb == "transpose" and rank == 2:
            return ".T"
        if step.verb == "narrow" and step.numbers[0] == 0:
            _, start, size = step.numbers
            return f"[{start or ''}:{start + size}]"
        return f".{step.verb}({', '.join(str(n) for n in step.numbers)})"


def _tuple(numbers: Sequence[int]) -> str:
    comma = "," if len(numbers) == 1 else ""
    return f"({', '.join(str(n) for n in numbers)}{comma})"


def _value(node: tree.Expression, numbers: Mapping[str, int]) -> int | None:
    """Return the value of an expression whose names are all known."""
    if any(name not in numbers for name in names_in(node)):
        return None
    return number(node, numbers)


def _regex(given: Pattern) -> str:
    """Return a regular expression for names that are ignored: indices are numbers, `*` is any."""
    texts = [
        ".*".join(map(re.escape, part.split("*"))) if isinstance(part, str) else r"\d+"
        for part in given.parts
    ]
    return "".join(texts)
