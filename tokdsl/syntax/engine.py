"""Runs the LALR tables over tokens: a tight loop without recursion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tokdsl.syntax.lexer import Tokens
from tokdsl.syntax.tables import END, Rule, Tables

#: Builds the value of a rule from its children and the offsets where it starts and ends.
Builder = Callable[[list[object], int, int], object]


@dataclass(slots=True)
class Stacks:
    """The state of a parse between two tokens."""

    states: list[int]
    values: list[object] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    end: int = 0

    def copy(self) -> Stacks:
        """Return an independent copy."""
        return Stacks(list(self.states), list(self.values), list(self.starts), self.end)


def list_builder(children: list[object], start: int, end: int) -> object:
    """Build the list that a ``*`` or ``+`` in the grammar stands for."""
    return children


def begin(tables: Tables, start: str) -> Stacks:
    """Return the state before the first token of a start rule."""
    return Stacks([tables.starts[start]])


def run(
    tables: Tables, builders: Sequence[Builder], stacks: Stacks, tokens: Tokens, low: int, high: int
) -> int:
    """Feed the tokens from ``low`` up to ``high`` and return the place that does not fit.

    Returns ``high`` when all were taken. The reductions before a token that does not fit may
    already be done then, so a caller that wants to go on works from a copy.
    """
    actions, rules, chains = tables.actions, tables.rules, tables.chains
    states, values, starts = stacks.states, stacks.values, stacks.starts
    kinds, texts, begins, ends = tokens.kinds, tokens.values, tokens.starts, tokens.ends
    end = stacks.end
    for place in range(low, high):
        kind = kinds[place]
        action = actions[states[-1]].get(kind)
        while action is not None and action < 0:
            rule = rules[~action]
            if rule.unit:
                key = (states[-2], states[-1], kind)
                top = chains.get(key)
                states[-1] = follow_chain(tables, key) if top is None else top
            elif rule.size:
                size = rule.size
                children = values[-size:]
                if rule.splice:
                    children = splice(rule, children)
                elif rule.drops:
                    children = [children[kept] for kept in rule.keep]
                values[-size:] = [builders[~action](children, starts[-size], end)]
                if size > 1:
                    del starts[1 - size :]
                del states[-size:]
                states.append(actions[states[-1]][rule.origin])
            else:
                values.append(builders[~action]([], begins[place], begins[place]))
                starts.append(begins[place])
                states.append(actions[states[-1]][rule.origin])
            action = actions[states[-1]].get(kind)
        if action is None:
            stacks.end = end
            return place
        states.append(action)
        values.append(texts[place])
        starts.append(begins[place])
        end = ends[place]
    stacks.end = end
    return high


def splice(rule: Rule, symbols: list[object]) -> list[object]:
    """Join the lists of repeated symbols into the children of a rule."""
    children: list[object] = []
    for place in rule.keep:
        symbol = symbols[place]
        if place in rule.splice:
            children.extend(symbol)  # type: ignore[arg-type]
        else:
            children.append(symbol)
    return children


def follow_chain(tables: Tables, key: tuple[int, int, str]) -> int:
    """Return the state that a chain of unit reductions ends in, and remember it."""
    below, top, kind = key
    while True:
        action = tables.actions[top].get(kind)
        if action is None or action >= 0 or not tables.rules[~action].unit:
            tables.chains[key] = top
            return top
        top = tables.actions[below][tables.rules[~action].origin]


def finish(
    tables: Tables, builders: Sequence[Builder], stacks: Stacks, start: str
) -> tuple[bool, object]:
    """End the text and return whether it was complete, and the value."""
    end = Tokens([END], [""], [stacks.end], [stacks.end])
    run(tables, builders, stacks, end, 0, 1)
    done = stacks.states[-1] == tables.accepts[start]
    return done, stacks.values[-1] if done else None


def accepts(tables: Tables, states: list[int], kinds: Sequence[str]) -> bool:
    """Return whether these tokens could come next; the stack of states is not changed."""
    stack = list(states)
    for kind in kinds:
        while True:
            action = tables.actions[stack[-1]].get(kind)
            if action is None:
                return kind == END and stack[-1] in tables.accepts.values()
            if action >= 0:
                stack.append(action)
                break
            rule = tables.rules[~action]
            if rule.size:
                del stack[-rule.size :]
            stack.append(tables.actions[stack[-1]][rule.origin])
    return True
