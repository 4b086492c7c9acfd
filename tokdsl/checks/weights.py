"""Checks of ``weights`` clauses: every parameter is published exactly once, under one name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod

from tokdsl.checks.facts import Facts
from tokdsl.checks.layouts import (
    Layout,
    Pattern,
    Rule,
    RuleFault,
    Tied,
    alias_names,
    pattern,
    published_names,
)
from tokdsl.checks.pieces import View
from tokdsl.checks.rules import RuleReader, nested
from tokdsl.diagnostics import Diagnostic, Label, Report, Severity, did_you_mean
from tokdsl.graph.parameters import ParameterInfo, parameter_table
from tokdsl.graph.program import Program
from tokdsl.source import Span
from tokdsl.syntax import tree
from tokdsl.types.dims import Dim

ORDER = 50
ERROR = Severity.ERROR
#: the layout that every package has: the names of its own state dict
OWN = "own"
#: how many names a finding lists
SHOWN = 12
_NUMBER = re.compile(r"\.(\d+)(?=\.)")


class UnknownParameter(Diagnostic, code="TOK330", name="unknown-parameter", severity=ERROR):
    """A rule of a `weights` clause names a parameter that the model does not have.

    A path begins with a stage and goes on with the names of equations and definitions, as in the
    built module: `text.layers[i].gqa.q.weight`. A `repeat` is the list `layers`. A rule applies
    at all indices at which everything it names exists.

    ```tok error
    model m() {
      stage text(ids: tokens[8]) { embed(4); unembed(8) }
      weights published {
        "in" = text.embed.embeding.weight
        "out" = text.unembed.linear.weight
      }
    }
    ```
    ```tok ok
    model m() {
      stage text(ids: tokens[8]) { embed(4); unembed(8) }
      weights published {
        "in" = text.embed.embedding.weight
        "out" = text.unembed.linear.weight
      }
    }
    ```
    """

    text: str

    def message(self) -> str:
        """Say which part of the path does not exist, and what there is."""
        return self.text


class UnmappedParameter(Diagnostic, code="TOK331", name="unmapped-parameter", severity=ERROR):
    """A `weights` clause leaves out parameters of the model.

    Loading would have to invent them. Every parameter and every saved buffer must be made from
    the published tensors; a stacked parameter needs all its rows.

    ```tok error
    model m() {
      stage text(ids: tokens[8]) { embed(4); unembed(8) }
      weights published { "in" = text.embed.embedding.weight }
    }
    ```
    ```tok ok
    model m() {
      stage text(ids: tokens[8]) { embed(4); unembed(8) }
      weights published {
        "in" = text.embed.embedding.weight
        "out" = text.unembed.linear.weight
      }
    }
    ```
    """

    layout: str
    parameters: tuple[str, ...]

    def message(self) -> str:
        """Say which layout lacks which parameters."""
        return f"the layout `{self.layout}` has no rule for {_names(self.parameters)}"

    def label(self) -> str:
        """Say how many there are."""
        count = len(self.parameters)
        return "one parameter is left out" if count == 1 else "parameters are left out"


class DoublyMappedParameter(
    Diagnostic, code="TOK332", name="doubly-mapped-parameter", severity=ERROR
):
    """Two rules of a `weights` clause make the same parameter.

    The second would overwrite what the first one read. A published tensor that repeats another
    one is written `"alias" = tied("the other one")`.

    ```tok error
    model m() {
      stage text(ids: tokens[8]) { embed(4); unembed(8) }
      weights published {
        "in" = text.embed.embedding.weight
        "again" = text.embed.embedding.weight
        "out" = text.unembed.linear.weight
      }
    }
    ```
    ```tok ok
    model m() {
      stage text(ids: tokens[8]) { embed(4); unembed(8) }
      weights published {
        "in" = text.embed.embedding.weight
        "again" = tied("in")
        "out" = text.unembed.linear.weight
      }
    }
    ```
    """

    parameters: tuple[str, ...]

    def message(self) -> str:
        """Say which parameters."""
        return f"this rule maps again {_names(self.parameters)}"


class PublishedTwice(Diagnostic, code="TOK333", name="published-twice", severity=ERROR):
    """Two rules of a `weights` clause give the same published name.

    A published tensor that is made of several parameters is one rule with `fuse(a, b)`.

    ```tok error
    model m() {
      stage text(ids: tokens[8]) { embed(4); unembed(8) }
      weights published {
        "all" = text.embed.embedding.weight
        "all" = text.unembed.linear.weight
      }
    }
    ```
    ```tok ok
    model m() {
      stage text(ids: tokens[8]) { embed(4); unembed(8) }
      weights published {
        "all" = fuse(text.embed.embedding.weight, text.unembed.linear.weight; dim = 0)
      }
    }
    ```
    """

    published: str

    def message(self) -> str:
        """Say which name."""
        return f"the published name `{self.published}` is given twice"


class WeightRule(Diagnostic, code="TOK334", name="weight-rule", severity=ERROR):
    """A rule of a `weights` clause cannot be read.

    The left side is one published name, or several for `split`; indices stand in braces. The
    right side is a path to a parameter or one of the verbs `fuse`, `split`, `transpose`,
    `permute`, `reshape`, `interleave`, `deinterleave`, `tied` and `ignore`.

    ```tok error
    model m() {
      stage text(ids: tokens[8]) { embed(4); unembed(8) }
      weights published {
        "all" = merge(text.embed.embedding.weight, text.unembed.linear.weight)
      }
    }
    ```
    ```tok ok
    model m() {
      stage text(ids: tokens[8]) { embed(4); unembed(8) }
      weights published {
        "all" = fuse(text.embed.embedding.weight, text.unembed.linear.weight)
      }
    }
    ```
    """

    text: str

    def message(self) -> str:
        """Say what is wrong."""
        return self.text


class WeightShape(Diagnostic, code="TOK335", name="weight-shape", severity=ERROR):
    """The sizes of parameters do not fit a verb of a `weights` clause.

    Dimensions count from 0 and include the experts axis of stacked parameters, which is first.

    ```tok error
    model m() {
      stage text(ids: tokens[8]) { embed(4); unembed(8) }
      weights published {
        "all" = fuse(text.embed.embedding.weight, transpose(text.unembed.linear.weight); dim = 0)
      }
    }
    ```
    ```tok ok
    model m() {
      stage text(ids: tokens[8]) { embed(4); unembed(8) }
      weights published {
        "all" = fuse(text.embed.embedding.weight, text.unembed.linear.weight; dim = 0)
      }
    }
    ```
    """

    text: str

    def message(self) -> str:
        """Say which sizes."""
        return self.text


class LayoutTaken(Diagnostic, code="TOK336", name="layout-taken", severity=ERROR):
    """Two `weights` clauses have one name, or a clause is called `own`.

    `own` is the layout that every package has: the names of its own parameters.

    ```tok error
    model m() {
      stage text(ids: tokens[8]) { embed(4) }
      weights own { "in" = text.embed.embedding.weight }
    }
    ```
    ```tok ok
    model m() {
      stage text(ids: tokens[8]) { embed(4) }
      weights published { "in" = text.embed.embedding.weight }
    }
    ```
    """

    layout: str

    def message(self) -> str:
        """Say which name."""
        if self.layout == OWN:
            return "`own` is the layout of the package itself"
        return f"there is already a layout `{self.layout}`"


_KINDS: dict[str, type[UnknownParameter] | type[WeightRule] | type[WeightShape]] = {
    "unknown-parameter": UnknownParameter,
    "weight-rule": WeightRule,
    "weight-shape": WeightShape,
}


def read_layouts(facts: Facts) -> list[Layout]:
    """Return the layouts that the check found sound."""
    found = facts.tables.get("layouts", [])
    assert isinstance(found, list)
    return found


def check(program: Program, facts: Facts, report: Report) -> None:
    """Read all ``weights`` clauses; the layouts go to the facts.

    Reports:
        TOK330 to TOK336.
    """
    layouts: list[Layout] = []
    facts.tables["layouts"] = layouts
    clauses = [clause for clause in program.weights if isinstance(clause, tree.Weights)]
    if not clauses:
        return
    table = parameter_table(program)
    names = {OWN}
    for clause in clauses:
        if clause.name in names:
            report.add(LayoutTaken(span=_header(clause.span), layout=clause.name))
            continue
        names.add(clause.name)
        layout, sound = _read(clause, table, _whole_numbers(program), report)
        if sound:
            _check_published(layout, report)
            _check_coverage(layout, table, report)
            layouts.append(layout)


def _whole_numbers(program: Program) -> dict[str, int]:
    """Return the static parameters of a model that are whole numbers or truth values."""
    found: dict[str, int] = {}
    for name, value in program.parameters.items():
        if isinstance(value, Dim) and value.number is not None:
            found[name] = value.number
        elif isinstance(value, bool):
            found[name] = value
    return found


def _header(span: Span) -> Span:
    """Return the part of a clause before its brace."""
    end = span.text.find("{")
    return (
        Span(span.file, span.start, span.start + len(span.text[:end].rstrip())) if end > 0 else span
    )


def _read(
    clause: tree.Weights,
    table: Mapping[str, ParameterInfo],
    constants: Mapping[str, int],
    report: Report,
) -> tuple[Layout, bool]:
    """Return a clause's layout, and whether all its rules could be read."""
    reader = RuleReader(nested(table), constants)
    layout = Layout(clause.name, _header(clause.span))
    aliases: list[tuple[Pattern, Pattern]] = []
    sound = True
    for node in clause.rules:
        try:
            published = tuple(pattern(name, constants) for name in node.published)
            if isinstance(node.value, tree.Name) and node.value.id == "ignore":
                layout.ignored.extend(published)
            elif isinstance(node.value, tree.Call) and _is_tied(node.value):
                other = _tied_name(node.value, constants)
                aliases += [(alias, other) for alias in published]
            else:
                layout.rules.append(reader.rule(node, published))
        except RuleFault as fault:
            sound = False
            _report(fault, report)
    if sound:
        for alias, other in aliases:
            try:
                layout.tied.append(_tied(layout, alias, other))
            except RuleFault as fault:
                sound = False
                _report(fault, report)
    return layout, sound


def _report(fault: RuleFault, report: Report) -> None:
    report.add(_KINDS[fault.kind](span=fault.span, text=fault.text, help=fault.help))


# --------------------------------------------------------------------------- repeated tensors


def _is_tied(node: tree.Call) -> bool:
    return isinstance(node.function, tree.Name) and node.function.id == "tied"


def _tied_name(call: tree.Call, constants: Mapping[str, int]) -> Pattern:
    """Return the published name that a call of `tied` gives.

    Raises:
        RuleFault: it gives none.
    """
    given = [*call.operands, *call.statics]
    value = given[0].value if len(given) == 1 else None
    if not isinstance(value, tree.String):
        raise RuleFault("weight-rule", "`tied` takes one published name in quotes", call.span)
    return pattern(value, constants)


def _tied(layout: Layout, alias: Pattern, other: Pattern) -> Tied:
    """Return an alias and the published name that it repeats.

    Raises:
        RuleFault: no rule gives that name.
    """
    known = {p: rule for rule in layout.rules for p in rule.published}
    rule = next((r for p, r in known.items() if p.parts == other.parts), None)
    if rule is None:
        concrete = {name for r in layout.rules for name, _ in published_names(r)}
        if other.variables or other.name({}) not in concrete:
            name = _text(other)
            raise RuleFault(
                "weight-rule",
                f"no rule gives the published name `{name}`",
                other.span,
                did_you_mean(name, [_text(p) for p in known]),
            )
    if set(alias.variables) != set(other.variables):
        raise RuleFault("weight-rule", "both names need the same indices", alias.span)
    return Tied(alias, other, rule)


def _text(given: Pattern) -> str:
    """Return a published name as it is written."""
    return given.span.text.strip("\"'")


# --------------------------------------------------------------------------- whole clauses


def _check_published(layout: Layout, report: Report) -> None:
    first: dict[str, Pattern] = {}
    given = [pair for rule in layout.rules for pair in published_names(rule)]
    given += [(name, tied.alias) for tied in layout.tied for name in alias_names(tied)]
    told: set[int] = set()
    for name, published in given:
        if name not in first:
            first[name] = published
        elif id(published) not in told:
            told.add(id(published))
            other = first[name]
            labels = () if other is published else (Label(other.span, "first given here"),)
            report.add(PublishedTwice(span=published.span, published=name, labels=labels))


def _check_coverage(layout: Layout, table: Mapping[str, ParameterInfo], report: Report) -> None:
    views: dict[str, list[tuple[View, Rule]]] = {}
    for rule in layout.rules:
        for view in rule.covered:
            views.setdefault(view.name, []).append((view, rule))
    missing: list[str] = []
    twice: dict[int, tuple[Rule, Rule, list[str]]] = {}
    for name, info in table.items():
        again, left = _rows(views.get(name, []), info.shape)
        if again is not None:
            first = views[name][0][1]
            twice.setdefault(id(again), (again, first, []))[2].append(name)
        elif left:
            missing.append(name + left)
    for rule, first, names in twice.values():
        labels = (Label(first.span, "mapped here"),) if first is not rule else ()
        report.add(DoublyMappedParameter(span=rule.span, parameters=compress(names), labels=labels))
    if missing:
        found = compress(missing)
        notes = tuple(found[SHOWN:])
        report.add(
            UnmappedParameter(
                span=layout.span,
                layout=layout.name,
                parameters=found,
                notes=(f"also {', '.join(f'`{name}`' for name in notes)}",) if notes else (),
            )
        )


def _rows(views: list[tuple[View, Rule]], shape: tuple[int, ...]) -> tuple[Rule | None, str]:
    """Return the rule that maps a row again, and which rows no rule maps ("" for none)."""
    if not views:
        return None, " "
    if len(views) == 1 and all(row is None for row in views[0][0].selection):
        return None, ""
    depth = max(len(view.selection) for view, _ in views)
    seen: set[tuple[int, ...]] = set()
    for view, rule in views:
        rows: list[tuple[int, ...]] = [()]
        for at in range(depth):
            chosen = view.selection[at] if at < len(view.selection) else None
            numbers = range(shape[at]) if chosen is None else (chosen,)
            rows = [(*row, i) for row in rows for i in numbers]
        if not seen.isdisjoint(rows):
            return rule, ""
        seen.update(rows)
    left = prod(shape[:depth]) - len(seen)
    return None, f" ({left} rows)" if left else ""


def compress(names: list[str]) -> tuple[str, ...]:
    """Return names with the numbers of layers as ranges: ``text.layers[0..31].q.weight``."""
    groups: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        numbers = tuple(int(number) for number in _NUMBER.findall(name))
        groups.setdefault(_NUMBER.sub("[#]", name.rstrip()), []).append(numbers)
    found = []
    for text, rows in groups.items():
        parts = text.split("[#]")
        shown = parts[0]
        for i, part in enumerate(parts[1:]):
            shown += f"[{ranges(sorted({row[i] for row in rows}))}]{part}"
        found.append(shown)
    return tuple(found)


def ranges(numbers: list[int]) -> str:
    """Return sorted numbers as ranges: ``0..3, 7``."""
    runs: list[list[int]] = []
    for i in numbers:
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:SHOWN])
    left = len(names) - SHOWN
    return f"{shown} and {left} more" if left > 0 else shown
