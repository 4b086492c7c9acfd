"""Dispatch, experts and combination in one step, so that inference need not copy all rows.

Requires hoisted modules; ensures that a dispatch whose rows go through one stacked module and
nothing else is one `MixNode`. The function behind it picks the form at run time: all rows at once
where a gradient is wanted, one expert at a time where that is faster.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokdsl.graph.program import AuxNode, CallNode, Module, Node, OpNode, Value
from tokdsl.ops.parameters import Linear
from tokdsl.ops.route import Combine, Dispatch
from tokdsl.types.tensors import RouteType


@dataclass(eq=False, slots=True)
class MixNode(CallNode):
    """Experts applied to routed tokens: the inputs are the tokens and the route."""

    experts: int = field(default=0, kw_only=True)


def fuse_experts(module: Module) -> None:
    """Replace every dispatch, call of experts and combination that belong together."""
    readers: dict[int, list[Node]] = {}
    for node in module.nodes:
        for value in node.inputs:
            readers.setdefault(id(value), []).append(node)
    results = {id(v) for v in module.results}
    replaced: dict[int, Node | None] = {}
    for node in module.nodes:
        if isinstance(node, OpNode) and isinstance(node.op, Dispatch):
            found = _chain(node, readers, results)
            if found is not None:
                call, combine = found
                replaced |= {id(node): None, id(call): None, id(combine): _mix(node, call, combine)}
    module.nodes = [n for node in module.nodes if (n := replaced.get(id(node), node)) is not None]


def _chain(
    dispatch: OpNode, readers: dict[int, list[Node]], results: set[int]
) -> tuple[CallNode, OpNode] | None:
    """Return the call and the combination of a dispatch if its rows go nowhere else."""
    rows, groups, order = dispatch.outputs
    if any(id(v) in results for v in dispatch.outputs):
        return None
    calls, counts, places = (readers.get(id(v), []) for v in (rows, groups, order))
    if len(calls) != 1 or calls != counts or len(places) != 1:
        return None
    call, combine = calls[0], places[0]
    if not isinstance(call, CallNode) or call.inputs != (rows, groups) or len(call.outputs) != 1:
        return None
    if not isinstance(combine, OpNode) or not isinstance(combine.op, Combine):
        return None
    same_route = combine.inputs[1] is dispatch.inputs[1]
    if isinstance(kind := dispatch.inputs[1].type, RouteType) and kind.expected:
        return None
    only_reader = readers.get(id(call.outputs[0]), []) == [combine]
    if not (same_route and only_reader and _takes_one_expert(call.module)):
        return None
    return call, combine


def _takes_one_expert(module: Module) -> bool:
    """Whether only linear maps ask which rows belong to which expert."""
    groups = module.inputs[-1]
    for node in module.nodes:
        if isinstance(node, AuxNode) or not isinstance(node, OpNode):
            return False
        if node.op.choice() is not None:  # it is recorded for all rows at once
            return False
        if any(v is groups for v in node.inputs) and not isinstance(node.op, Linear):
            return False
    groups.python = "Tensor | int"
    return True


def _mix(dispatch: OpNode, call: CallNode, combine: OpNode) -> MixNode:
    count = dispatch.outputs[1].type.axes[0].size.number or 0
    node = MixNode(
        dispatch.inputs,
        combine.outputs,
        combine.span,
        call.attribute,
        module=call.module,
        shared=call.shared,
        experts=count,
    )
    for value in combine.outputs:
        value.node = node
    return node


__all__ = ["MixNode", "Value", "fuse_experts"]
