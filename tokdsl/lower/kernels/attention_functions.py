"""The functions of an attention in ``fused.py``: what becomes of scores, and what is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokdsl.graph.program import Module
from tokdsl.lower.kernels.attention import AttentionNode
from tokdsl.lower.plan import FunctionPlan, KernelPlan, Statement
from tokdsl.types.tensors import annotation

if TYPE_CHECKING:
    from tokdsl.lower.texts import Texts


@dataclass
class TileFunction(FunctionPlan):
    """A function of a tile of queries and keys.

    Args:
        along: what the dimensions of each given value count.
    """

    along: tuple[str, ...] = ()


def write_functions(outer: Texts, node: AttentionNode) -> dict[str, str]:
    """Write the functions of an attention, and its kernel; return what its call says of them."""
    found: dict[str, str] = {}
    if node.score is not None:
        doc = f"What becomes of the scores of `{node.home}`"
        found["score"] = _write(outer, node.score, node.along, doc)
    if node.visible is not None:
        doc = f"Which keys a query of `{node.home}` sees"
        found["visible"] = _write(outer, node.visible, node.along, doc)
    if node.pieces is not None and found:
        name = "_".join(["attend", *found.values()])
        kernels = outer.shared.fused.kernels
        if all(kernel.name != name for kernel in kernels):
            kernels.append(KernelPlan("attend", name, node.pieces))
    if node.along:
        letters = ", ".join(f'"{along}"' for along in node.along)
        found["along"] = f"({letters}{',' if len(node.along) == 1 else ''})"
    return found


def _write(outer: Texts, module: Module, along: tuple[str, ...], doc: str) -> str:
    from tokdsl.lower.body import Body
    from tokdsl.lower.build import size_names
    from tokdsl.lower.texts import shape_comment

    body = Body(module, outer.shared, size_names(module))
    inputs = []
    for value in module.inputs:
        name = body.input(value, value.name or "x")
        inputs.append((name, annotation(value.type, value.python), shape_comment(value.type)))
    result = body.run()
    plan = TileFunction(
        "", module.name, module.span, inputs, body.statements, result, "Tensor", doc, along=along
    )
    functions = outer.shared.fused.functions
    for known in functions:
        if isinstance(known, TileFunction) and _key(known) == _key(plan):
            return known.name
    taken = {known.name for known in functions}
    plan.name, number = module.name, 1
    while plan.name in taken:
        number += 1
        plan.name = f"{module.name}_{number}"
    functions.append(plan)
    return plan.name


def _key(plan: TileFunction) -> object:
    lines = tuple((s.targets, s.text) for s in plan.body if isinstance(s, Statement))
    return plan.definition, tuple(plan.inputs), plan.along, lines, plan.result
