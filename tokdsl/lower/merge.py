"""Merging of classes: equal ones become one, ones that differ in sizes take them as arguments."""

from __future__ import annotations

import re
from dataclasses import replace

from tokdsl.lower.names import variable
from tokdsl.lower.plan import ClassPlan, Loop, Owned, Plan, Statement

_NUMBER = re.compile(r"\b\d+\b")


def code_key(plan: ClassPlan) -> object:
    """Return what two classes must share to be one: everything but comments and names."""
    return (
        plan.definition,
        plan.kind,
        tuple(_owned_key(owned, owned.constructor) for owned in plan.owned),
        _rest(plan),
    )


def _owned_key(owned: Owned, constructor: str) -> object:
    inits = tuple((spec.name, spec.init, spec.trainable, spec.saved) for spec in owned.parameters)
    return owned.name, owned.kind, constructor, inits, owned.classes


def _rest(plan: ClassPlan) -> object:
    return (
        tuple((name, python) for name, python, _ in plan.inputs),
        tuple(_line(item) for item in plan.body),
        plan.result,
        plan.returns,
        tuple((part.name, part.constructor, part.annotation) for part in plan.state),
        plan.collects_aux,
        plan.decides,
        plan.stateful,
        plan.clocks,
    )


def _line(item: Statement | Loop) -> object:
    if isinstance(item, Loop):
        return item.attribute, item.target, item.call, item.indexed, item.indent
    return item.targets, item.text, item.indent


# --------------------------------------------------------------------------- sizes as arguments


def take_sizes(plan: Plan) -> None:
    """Give classes that differ only in the sizes of what they own these sizes as arguments."""
    groups: dict[object, list[ClassPlan]] = {}
    for item in plan.classes:
        if _can_take_sizes(item):
            groups.setdefault(_sizeless_key(item), []).append(item)
    for members in groups.values():
        if len(members) > 1:
            _take(plan, members)


def _can_take_sizes(plan: ClassPlan) -> bool:
    """Whether sizes stand only where parameters are made, so that arguments can replace them."""
    if plan.kind in ("layer", "stage") or plan.stateful:
        return False
    fixed = all(
        spec.init in ("zeros()", "ones()", "fan_in_uniform()") or spec.init.startswith("normal(")
        for owned in plan.owned
        for spec in owned.parameters
    )
    return fixed and all(owned.kind != "list" for owned in plan.owned)


def _sizeless_key(plan: ClassPlan) -> object:
    owned = tuple(_owned_key(o, _NUMBER.sub("#", o.constructor)) for o in plan.owned)
    return plan.definition, plan.kind, owned, _rest(plan)


def _take(plan: Plan, members: list[ClassPlan]) -> None:
    """Turn the members of a group into one class; their users give the sizes."""
    rows = [[int(n) for o in m.owned for n in _NUMBER.findall(o.constructor)] for m in members]
    labels = [label for o in members[0].owned for label in o.sizes]
    if len(labels) != len(rows[0]):
        return
    columns = list(zip(*rows, strict=True))
    varying = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    names: dict[tuple[int, ...], str] = {}
    for i in varying:
        if columns[i] not in names:
            names[columns[i]] = _unique(variable(labels[i]), set(names.values()))
    if len(names) > 4:
        return
    texts = {i: names[columns[i]] for i in varying}
    kept = members[0]
    calls = {
        member.name: f"{kept.name}({', '.join(str(column[row]) for column in names)})"
        for row, member in enumerate(members)
    }
    _write_arguments(kept, texts)
    kept.arguments = tuple(names.values())
    dropped = {member.name for member in members[1:]}
    plan.classes = [item for item in plan.classes if item.name not in dropped]
    for item in plan.classes:
        item.owned = [_renamed(owned, calls) for owned in item.owned]


def _unique(name: str, taken: set[str]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique


def _write_arguments(kept: ClassPlan, texts: dict[int, str]) -> None:
    at = 0
    owned: list[Owned] = []
    for item in kept.owned:
        count = len(_NUMBER.findall(item.constructor))
        mine = iter(range(at, at + count))
        text = _NUMBER.sub(lambda m, mine=mine: texts.get(next(mine), m.group()), item.constructor)  # type: ignore[misc]
        owned.append(replace(item, constructor=text))
        at += count
    kept.owned = owned


def _renamed(owned: Owned, calls: dict[str, str]) -> Owned:
    name = owned.constructor.removesuffix("()")
    if owned.kind == "module" and name in calls:
        return replace(owned, constructor=calls[name])
    return owned
