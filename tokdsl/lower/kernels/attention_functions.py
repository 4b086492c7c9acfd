"""The functions of an attention in ``fused.py``: what becomes of scores, and what is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokdsl.graph.program import Module
from tokdsl.lower.kernels.attention import AttentionNode
from tokdsl.lower.kernels.bounds import ENDS, TorchScalars, reach
from tokdsl.lower.plan import FunctionPlan, KernelPlan, Loop, Statement
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
        reached = _reach(outer, node)
        if reached:
            found["reach"] = reached
    if node.pieces is not None and found:
        names = [found[kind] for kind in ("score", "visible") if kind in found]
        name = "_".join(["attend", *names])
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
    return _placed(outer, plan)


def _reach(outer: Texts, node: AttentionNode) -> str:
    """Write what the condition comes to over whole tiles; return its name, or "" if nothing."""
    assert node.visible is not None
    found = reach(node.visible, TorchScalars(("torch", *ENDS)))
    if found is None:
        return ""
    results = [found.every, found.some]
    if "False" in results[:1]:
        results[0] = f"torch.zeros_like({results[1]})"
    if "True" in results[1:]:
        results[1] = f"torch.ones_like({results[0]})"
    span = node.visible.span
    inputs = [(name, "Tensor", "(n, 1)" if name.startswith("i") else "(m,)") for name in ENDS]
    lines: list[Statement | Loop] = [
        Statement((name,), text, "", span) for name, text in found.lines
    ]
    doc = f"Whether tiles of queries of `{node.home}` see all of tiles of keys, and whether any"
    name = f"{node.visible.name.removesuffix('_visible')}_reach"
    returns = "tuple[Tensor, Tensor]"
    return _placed(
        outer, TileFunction("", name, span, inputs, lines, ", ".join(results), returns, doc)
    )


def _placed(outer: Texts, plan: TileFunction) -> str:
    """Add a function, if there is no equal one; return its name."""
    functions = outer.shared.fused.functions
    for known in functions:
        if isinstance(known, TileFunction) and _key(known) == _key(plan):
            return known.name
    taken = {known.name for known in functions}
    plan.name, number = plan.definition, 1
    while plan.name in taken:
        number += 1
        plan.name = f"{plan.definition}_{number}"
    functions.append(plan)
    return plan.name


def _key(plan: TileFunction) -> object:
    lines = tuple((s.targets, s.text) for s in plan.body if isinstance(s, Statement))
    return plan.definition, tuple(plan.inputs), plan.along, lines, plan.result
