"""From source text to the syntax tree; never raises."""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

from tokdsl.diagnostics import Diagnostic, Report
from tokdsl.source import SourceFile, Span
from tokdsl.syntax import tree
from tokdsl.syntax.build import Build
from tokdsl.syntax.comments import Comments
from tokdsl.syntax.engine import begin, finish, run
from tokdsl.syntax.faults import (
    NestedTooDeep,
    StrayBracket,
    encoding_findings,
    fault_findings,
    is_binary,
    mistake_findings,
)
from tokdsl.syntax.layout import Fault, lay_out
from tokdsl.syntax.lexer import Mistake, Tokens, lex
from tokdsl.syntax.mistakes import MisplacedStatement
from tokdsl.syntax.recovery import Recovery
from tokdsl.syntax.tables import load_tables

#: Levels of the tree that are read; deeper text is refused so that no later pass runs out of stack.
NESTING_LIMIT = 200

_LEVELS = dict.fromkeys(
    ("PLUS", "MINUS", "STAR", "SLASH", "FLOORDIV", "PERCENT", "POWER", "COMPARE", "AND", "OR",
     "NOT", "DOT", "IF", "ELSE", "VBAR"), 1,
)  # fmt: skip
_LEVELS |= {"LPAR": 2, "LSQB": 2, "LBRACE": 3, "RPAR": -1, "RSQB": -1, "RBRACE": -1}
_LEVELS |= {"COMMA": 0, "SEMICOLON": 0, "_END": 0}


def parse(source: SourceFile) -> tuple[tree.Module, list[Diagnostic]]:
    """Read a text into a module; the mistakes are listed and the rest keeps its tree.

    Reports:
        TOK101 to TOK121.
    """
    with _collector_paused():
        return _parse(source)


def _parse(source: SourceFile) -> tuple[tree.Module, list[Diagnostic]]:
    whole = Span(source, 0, len(source.text))
    report = Report()
    report.extend(encoding_findings(source))
    if is_binary(source):
        return tree.Module(whole, ()), report.sorted()
    lexed = lex(source.text)
    laid = lay_out(source.text, lexed)
    report.extend(mistake_findings(source, lexed.mistakes))
    report.extend(fault_findings(source, laid.faults, NESTING_LIMIT))
    found: list[Diagnostic] = []
    build = Build(source, found, Comments(source.text, lexed.comments).doc_above)
    reader = Reader(source, build, tainted_places(lexed.mistakes, laid.faults))
    items = tuple(reader.item(laid.tokens, low, high) for low, high in laid.items)
    report.extend(found)
    return tree.Module(whole, items), drop_echoes(items, report.sorted())


class Reader:
    """Reads items: at once when they are right, statement by statement when they are not.

    Args:
        source: the file.
        build: builds the nodes and holds the list of findings.
        tainted: places whose mistake is already reported.
    """

    def __init__(self, source: SourceFile, build: Build, tainted: set[int]) -> None:
        self.source = source
        self.build = build
        self.tainted = tainted
        self.tables = load_tables()
        self.builders = build.builders()
        self.recovery = Recovery(source, build, self.builders, tainted)

    def item(self, tokens: Tokens, low: int, high: int) -> tree.Item:
        """Read one item."""
        deep = deepest(tokens, low, high)
        if deep is not None:
            return self.too_deep(tokens, low, high, deep)
        stacks = begin(self.tables, "item")
        if run(self.tables, self.builders, stacks, tokens, low, high) == high:
            done, item = finish(self.tables, self.builders, stacks, "item")
            if done:
                self.build.check_declared()
                self.recovery.after_junk = False
                return item  # type: ignore[return-value]
        self.build.declared.clear()
        return self.recovery.item(tokens.part(low, high))  # type: ignore[return-value]

    def too_deep(self, tokens: Tokens, low: int, high: int, deep: int) -> tree.Item:
        """Report an item that is nested too deeply, unless that was done."""
        start, end = tokens.starts[low], tokens.ends[high - 1]
        if not any(start <= place <= end for place in self.tainted):
            span = Span(self.source, tokens.starts[deep], tokens.ends[deep])
            self.build.found.append(NestedTooDeep(span=span, limit=NESTING_LIMIT))
        return tree.BrokenItem(Span(self.source, start, end))


def drop_echoes(items: tuple[tree.Item, ...], found: list[Diagnostic]) -> list[Diagnostic]:
    """Drop what only echoes a mistake in the item before: its end was taken for too early.

    A brace that closes nothing and statements outside of an item, behind an item that has a
    finding of its own, come from that; behind one without, only the brace is reported.
    """
    if not any(isinstance(finding, StrayBracket) for finding in found):
        return found
    proper = [item.span for item in items if not isinstance(item, tree.BrokenItem)]
    starts = [span.start for span in proper]
    groups: dict[int, list[Diagnostic]] = {}
    for finding in found:
        groups.setdefault(bisect_right(starts, finding.span.start) - 1, []).append(finding)
    kept: list[Diagnostic] = []
    for place, group in groups.items():
        end = proper[place].end if place >= 0 else 0
        behind = [finding for finding in group if finding.span.start >= end]
        braces = [f for f in behind if isinstance(f, StrayBracket) and f.sign == "}"]
        if place < 0 or not braces:
            kept += group
            continue
        inside = [finding for finding in group if finding.span.start < end]
        caused = [f for f in inside[1:] if not isinstance(f, MisplacedStatement)]
        kept += [*inside[:1], *caused] if inside else braces[:1]
    return kept


def tainted_places(mistakes: list[Mistake], faults: list[Fault]) -> set[int]:
    """Return the places whose mistake is already reported."""
    places = {mistake.start for mistake in mistakes}
    for fault in faults:
        places |= {fault.start, fault.at, *fault.others}
    return places


def deepest(tokens: Tokens, low: int, high: int, level: int = 0) -> int | None:
    """Return the token at which the tree of an item would get too deep, if any.

    Counts what can make a node, from ``level`` on: each operator one level, a bracket two, a brace
    three.
    """
    opened = [level]
    weigh = _LEVELS.get
    kinds = tokens.kinds
    for place in range(low, high):
        kind = kinds[place]
        weight = weigh(kind)
        if weight is None:
            continue
        if weight > 0:
            level += weight
            if weight > 1:
                opened.append(level)
            if level > NESTING_LIMIT:
                return place
        elif weight:
            level = opened.pop() if len(opened) > 1 else opened[0]
        else:
            level = opened[-1]
    return None


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector: a tree has no cycles, and looking for them doubles the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
