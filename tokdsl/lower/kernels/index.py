"""Choices among tokens as kernels: scores of some queries at a time, and exactly the largest.

Requires hoisted modules of kind `SELECTION`; ensures that one whose scores and condition can be
computed for a pair of tokens, and from sums of exponentials over all keys, knows its kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from tokdsl.graph.program import SELECTION, Module, OpNode
from tokdsl.lower.kernels.index_region import Region
from tokdsl.lower.kernels.index_scores import scores_at
from tokdsl.lower.kernels.report import RegionReport
from tokdsl.lower.plan import FunctionPlan, KernelPlan, Statement
from tokdsl.lower.selection import choice_of
from tokdsl.ops.tile import NotTiled
from tokdsl.types.tensors import TensorType, annotation

if TYPE_CHECKING:
    from tokdsl.lower.texts import Texts


@dataclass
class Index:
    """The kernel of a choice.

    Attributes:
        plan: the template and its pieces; the name is a wish.
        scores: the scores at given columns, as a function of `read` and the columns; None if they
            are no function of these.
        fault: why there is no such function, or "".
        read: which inputs of the module that function reads.
        block: tokens of a candidate block; 0 if every key is a candidate.
    """

    plan: KernelPlan
    scores: Module | None
    fault: str
    read: tuple[int, ...]
    block: int
    report: RegionReport


def fuse_index(module: Module) -> list[RegionReport]:
    """Find the kernel of a module that chooses; return what was decided about it."""
    if module.kind != SELECTION:
        return []
    choice = choice_of(module)
    what = tuple(type(n.op).op_name for n in module.nodes if isinstance(n, OpNode) and n.inputs)
    report = RegionReport("index", module.name, what, choice.span, name=f"{module.name}_index")
    try:
        module.statics["index"] = _index(module, choice, report)
    except NotTiled as fault:
        return [RegionReport("index", module.name, what, choice.span, reason=str(fault))]
    return [report]


def _index(module: Module, choice: OpNode, report: RegionReport) -> Index:
    region = Region(module, choice)
    plan = KernelPlan("index", report.name, region.pieces())
    try:
        scores, read = scores_at(module, choice, region.candidates)
    except NotTiled as fault:
        # this matters only where they are read, which is known when the call is written
        return Index(plan, None, str(fault), (), region.block, report)
    return Index(plan, scores, "", read, region.block, report)


def index_arguments(outer: Texts, module: Module, is_read: bool) -> list[str]:
    """Write the kernel of a choice and its scores; return what the call says of them.

    Args:
        outer: the body that calls.
        module: what chooses.
        is_read: whether the scores of what is chosen are read.
    """
    index = module.statics.get("index")
    if not isinstance(index, Index):
        return []
    if is_read and index.scores is None:
        index.report.name = ""
        index.report.reason = f"the scores of what it chooses are read, and {index.fault}"
        return []
    fused = outer.shared.fused
    known = [k for k in fused.kernels if k.pieces == index.plan.pieces and k.template == "index"]
    if known:
        name = known[0].name
    else:
        name = _free(index.plan.name, {k.name for k in fused.kernels})
        fused.kernels.append(KernelPlan("index", name, index.plan.pieces))
    index.report.name = name
    outer.shared.functions.add("on_kernels")
    found = [f'kernel="{name}"']
    if index.block:
        found.append(f"block={index.block}")
    if is_read and index.scores is not None:
        read = ", ".join(str(at) for at in index.read)
        found.append(f"scores={_function(outer, index.scores)}")
        found.append(f"read=({read}{',' if len(index.read) == 1 else ''})")
        found.append(f"gathered={_gathered(index.scores)}")
    return found


def _function(outer: Texts, module: Module) -> str:
    """Write the function of the scores at columns; return its name."""
    from tokdsl.lower.body import Body
    from tokdsl.lower.build import size_names
    from tokdsl.lower.texts import shape_comment

    body = Body(module, outer.shared, size_names(module))
    inputs = []
    for value in module.inputs:
        name = body.input(value, value.name or "x")
        inputs.append((name, annotation(value.type, value.python), shape_comment(value.type)))
    result = body.run()
    statements = [item for item in body.statements if isinstance(item, Statement)]
    functions = outer.shared.fused.functions
    text = [(s.targets, s.text) for s in statements], inputs, result
    for known in functions:
        own = [(s.targets, s.text) for s in known.body if isinstance(s, Statement)]
        if known.definition == module.name and (own, known.inputs, known.result) == text:
            return known.name
    name = _free(module.name, {known.name for known in functions})
    functions.append(
        FunctionPlan(
            name, module.name, module.span, inputs, list(statements), result, "Tensor", module.doc
        )
    )
    return name


def _free(wish: str, taken: set[str]) -> str:
    name, number = wish, 1
    while name in taken:
        number += 1
        name = f"{wish}_{number}"
    return name


def _gathered(scores: Module) -> int:
    """Return the most numbers that the scores need for a query and a column."""
    columns = scores.inputs[-1].type
    assert isinstance(columns, TensorType)
    pair = {axis.name for axis in columns.axes}
    most = 1
    for node in scores.nodes:
        for value in node.outputs:
            axes = getattr(value.type, "axes", ())
            most = max(most, prod(a.size.number or 1 for a in axes if a.name not in pair))
    return most
