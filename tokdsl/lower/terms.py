"""Names of the terms of an objective, so that a loss can report its parts."""

from __future__ import annotations

from tokdsl.graph.program import CallNode, Module, OpNode, Program, Value
from tokdsl.lower.names import variable
from tokdsl.ops.ambient import Constant


def name_terms(program: Program) -> list[str]:
    """Name the unscaled terms of the objective's sum; return the names in order.

    ``next_token(text, ids) + 0.02 * mean(aux.balance)`` has the terms ``next_token`` and
    ``balance``.
    """
    module = program.objective
    if module is None or not module.results:
        return []
    sources = {id(v): s for v, s in zip(module.inputs, program.objective_inputs, strict=True)}
    names: list[str] = []
    for value in _terms(module.results[0]):
        name = _name(value, sources, module)
        unique, number = name, 1
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        value.name = unique
        names.append(unique)
    return names


def _terms(value: Value) -> list[Value]:
    node = value.node
    if isinstance(node, OpNode) and node.op.op_name == "add":
        return [term for operand in node.inputs for term in _terms(operand)]
    if isinstance(node, OpNode) and node.op.op_name in ("multiply", "divide"):
        factors = [v for v in node.inputs if not _is_literal(v)]
        if len(factors) == 1:
            return _terms(factors[0])
    return [] if _is_literal(value) else [value]


def _is_literal(value: Value) -> bool:
    return isinstance(value.node, OpNode) and isinstance(value.node.op, Constant)


def _name(value: Value, sources: dict[int, str], module: Module) -> str:
    node = value.node
    if value.name:
        return variable(value.name)
    if isinstance(node, CallNode):
        return variable(node.module.name)
    while isinstance(node, OpNode) and len(node.inputs) == 1:
        source = sources.get(id(node.inputs[0]), "")
        if source.startswith("aux:"):
            return variable(source[4:])
        node = node.inputs[0].node
    return variable(node.op.op_name if isinstance(node, OpNode) else "term")
