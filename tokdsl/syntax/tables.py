"""The parse tables: made by lark from ``grammar/tok.lark``, stored ready beside it.

Lark takes half a second to read a grammar, so the finished tables lie in
``grammar/tok.tables.json`` with a digest of the grammar they were made from. When the digest does
not fit (somebody is changing the grammar) the tables are made anew in memory. After a change of
the grammar run ``python -m tokdsl.syntax.tables``; a test says when it was forgotten.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokdsl.resources import resource

#: Every rule that a text can be parsed from.
STARTS = (
    "module", "item", "statement", "member", "weight_rule", "expression", "type",
    "annotation", "declaration", "argument", "value",
)  # fmt: skip

#: Name of the terminal that stands for the end of the text.
END = "$END"


@dataclass(frozen=True, slots=True)
class Rule:
    """One production of the grammar.

    Args:
        origin: the rule's name.
        builder: the alias or the name, which tells how its node is built.
        size: how many symbols it has.
        keep: the places of the symbols that carry meaning.
        splice: the places whose value is a list to be joined in (from ``*`` and ``+``).
        unit: whether it only passes its one symbol on.
        drops: whether some of its symbols carry no meaning.
    """

    origin: str
    builder: str
    size: int
    keep: tuple[int, ...]
    splice: frozenset[int]
    unit: bool
    drops: bool


@dataclass(frozen=True, slots=True)
class Tables:
    """The LALR tables and the terminals.

    ``actions[state][symbol]`` is the next state, or ``~rule`` for a reduction.
    """

    rules: tuple[Rule, ...]
    actions: tuple[dict[str, int], ...]
    starts: dict[str, int]
    accepts: dict[str, int]
    patterns: tuple[tuple[str, str], ...]
    words: dict[str, str]
    #: results of chains of unit reductions, filled as they are met
    chains: dict[tuple[int, int, str], int] = field(default_factory=dict)


def _digest(grammar: str) -> str:
    return f"{zlib.crc32(grammar.encode()):08x}-{len(grammar)}"


def _word_list(pattern: str) -> list[str] | None:
    """Return the words of a terminal that consists of words only."""
    inner = pattern[3:-1] if pattern.startswith("(?:") and pattern.endswith(")") else pattern
    words = inner.split("|")
    return words if all(re.fullmatch(r"[a-z]+", word) for word in words) else None


def build_tables(grammar: str) -> dict[str, Any]:
    """Make the tables from the text of the grammar, as plain data.

    Raises:
        lark.exceptions.GrammarError: the grammar has a conflict or a mistake.
    """
    from lark import Lark

    parser = Lark(
        grammar,
        parser="lalr",
        lexer="basic",
        start=list(STARTS),
        maybe_placeholders=False,
        strict=False,
    )
    table = parser.parser.parser._parse_table
    rules = list(parser.rules)
    number = {rule: index for index, rule in enumerate(rules)}
    order = _state_order(table)
    actions = []
    for state in order:
        row = {}
        for symbol, (action, target) in sorted(table.states[state].items()):
            row[symbol] = order[target] if action.name == "Shift" else ~number[target]
        actions.append(row)
    patterns = [(t.name, t.pattern.to_regexp()) for t in parser.terminals]
    return {
        "digest": _digest(grammar),
        "rules": [_plain_rule(rule) for rule in rules],
        "actions": actions,
        "starts": {start: order[table.start_states[start]] for start in STARTS},
        "accepts": {start: order[table.end_states[start]] for start in STARTS},
        "patterns": [[n, p] for n, p in _by_precedence(patterns) if _word_list(p) is None],
        "words": {w: n for n, p in patterns for w in _word_list(p) or ()},
    }


def _state_order(table: Any) -> dict[int, int]:
    """Number the states as they are met from the start rules: lark's own numbers vary."""
    order: dict[int, int] = {}
    waiting = deque(table.start_states[start] for start in STARTS)
    while waiting:
        state = waiting.popleft()
        if state not in order:
            order[state] = len(order)
            row = sorted(table.states[state].items())
            waiting.extend(target for _, (action, target) in row if action.name == "Shift")
    return order


def _plain_rule(rule: Any) -> list[Any]:
    symbols = list(rule.expansion)
    keep = [i for i, s in enumerate(symbols) if not (s.is_term and s.filter_out)]
    splice = [i for i, s in enumerate(symbols) if s.name.startswith("__")]
    unit = bool(rule.options.expand1) and len(symbols) == 1 and rule.alias is None
    return [rule.origin.name, rule.alias or rule.origin.name, len(symbols), keep, splice, unit]


def _by_precedence(patterns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Order patterns so that a longer operator is tried before its beginning."""

    def width(pattern: str) -> int:
        return len(pattern.replace("\\", ""))

    operators = [p for p in patterns if re.match(r"\\?[^\w\s]", p[1]) or p[0] == "COMPARE"]
    return sorted(patterns, key=lambda p: (p in operators, -width(p[1]), p[0]))


def _from_plain(plain: dict[str, Any]) -> Tables:
    rules = tuple(
        Rule(origin, builder, size, tuple(keep), frozenset(splice), unit, len(keep) != size)
        for origin, builder, size, keep, splice, unit in plain["rules"]
    )
    return Tables(
        rules,
        tuple(plain["actions"]),
        plain["starts"],
        plain["accepts"],
        tuple((name, pattern) for name, pattern in plain["patterns"]),
        plain["words"],
    )


@cache
def load_tables() -> Tables:
    """Return the tables of the grammar (ready ones when they fit it)."""
    grammar = resource("grammar", "tok.lark").read_text("utf-8")
    stored = resource("grammar", "tok.tables.json")
    if stored.is_file():
        plain = json.loads(stored.read_text("utf-8"))
        if plain["digest"] == _digest(grammar):
            return _from_plain(plain)
    return _from_plain(build_tables(grammar))


def render_tables() -> str:
    """Return the text of ``grammar/tok.tables.json`` for the present grammar."""
    plain = build_tables(resource("grammar", "tok.lark").read_text("utf-8"))
    lines = []
    for key, value in plain.items():
        if isinstance(value, list):
            rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
            lines.append(f"{json.dumps(key)}:[\n{rows}\n]")
        else:
            lines.append(f"{json.dumps(key)}:{json.dumps(value, separators=(',', ':'))}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    Path(str(resource("grammar", "tok.tables.json"))).write_text(render_tables(), "utf-8")
