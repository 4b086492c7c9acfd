"""Dispatch, experts and combination in one step, so that inference need not copy all rows.

Requires hoisted modules; ensures that a dispatch whose rows go through one stacked module and
nothing else is one `MixNode`. The function behind it picks the form at run time: all rows at once
where a gradient is wanted, one expert at a time where that is faster; if experts are a `Network`,
no copy of all rows at all. Experts of several kinds are one such node per kind (`lower.kinds`).
"""

from __future__ import annotations

from tokdsl.checks.constancy import Constancy
from tokdsl.graph.program import AuxNode, CallNode, Module, Node, OpNode
from tokdsl.lower.kernels.report import RegionReport
from tokdsl.lower.kernels.rows import is_free
from tokdsl.lower.kinds import Kinds
from tokdsl.lower.networks import Apart, MixNode, Network, in_parts
from tokdsl.ops.parameters import Linear
from tokdsl.ops.route import Combine, Dispatch, SplitRows
from tokdsl.types.tensors import RouteType


def fuse_experts(module: Module, constancy: Constancy | None = None) -> list[RegionReport]:
    """Replace every dispatch, call of experts and combination that belong together.

    Args:
        module: its nodes are replaced in place.
        constancy: what decode steps need not compute again; it learns of new values.

    Returns:
        For each dispatch, or each kind of its experts, the kernel that it became part of, or why
        there is none.
    """
    readers: dict[int, list[Node]] = {}
    for node in module.nodes:
        for value in node.inputs:
            readers.setdefault(id(value), []).append(node)
    results = {id(v) for v in module.results}
    replaced: dict[int, list[Node]] = {}
    reports: list[RegionReport] = []
    for node in module.nodes:
        if not isinstance(node, OpNode) or not isinstance(node.op, Dispatch):
            continue
        try:
            reader, combine = _ends(node, readers, results)
            if isinstance(reader, OpNode):
                kinds = Kinds(module, node, reader, combine, readers)
                replaced |= kinds.replacements()
                if constancy is not None:
                    for value in kinds.made:
                        constancy.take(value, combine.outputs[0])
                reports += kinds.reports
                continue
            call = _call(node, reader, combine, readers, results)
        except Apart as apart:
            reports.append(_report(module, node, None, apart))
            continue
        mixed = _mix(module, node, call, combine, reports)
        if mixed is not None:
            replaced |= {id(node): [], id(call): [], id(combine): [mixed]}
    module.nodes = [n for node in module.nodes for n in replaced.get(id(node), [node])]
    return reports


def _report(
    module: Module, dispatch: OpNode, call: CallNode | None, apart: Apart | None = None
) -> RegionReport:
    inner = [] if call is None else [n for n in call.module.nodes if isinstance(n, OpNode)]
    what = ["dispatch", *(n.op.op_name for n in inner if not is_free(n)), "combine"]
    span = dispatch.span if apart is None else apart.span
    reason = "" if apart is None else str(apart)
    return RegionReport("experts", module.name, tuple(what), span, reason=reason)


def _ends(
    dispatch: OpNode, readers: dict[int, list[Node]], results: set[int]
) -> tuple[Node, OpNode]:
    """Return what reads the rows of a dispatch, and the combination.

    Raises:
        Apart: if its rows go elsewhere.
    """
    rows, groups, order = dispatch.outputs
    elsewhere = Apart("its rows go to more than one definition and `combine`", dispatch.span)
    calls, counts, places = (readers.get(id(v), []) for v in (rows, groups, order))
    if any(id(v) in results for v in dispatch.outputs):
        raise elsewhere
    if len(calls) != 1 or calls != counts or len(places) != 1:
        raise elsewhere
    reader, combine = calls[0], places[0]
    if isinstance(reader, OpNode) and not isinstance(reader.op, SplitRows):
        raise elsewhere
    if reader.inputs != (rows, groups):
        raise elsewhere
    if not isinstance(combine, OpNode) or not isinstance(combine.op, Combine):
        raise elsewhere
    if combine.inputs[1] is not dispatch.inputs[1]:
        raise Apart("`combine` has another route than `dispatch`", combine.span)
    return reader, combine


def _call(
    dispatch: OpNode,
    call: Node,
    combine: OpNode,
    readers: dict[int, list[Node]],
    results: set[int],
) -> CallNode:
    """Return the call of the experts.

    Raises:
        Apart: if something else reads what they give.
    """
    elsewhere = Apart("its rows go to more than one definition and `combine`", dispatch.span)
    if not isinstance(call, CallNode) or len(call.outputs) != 1:
        raise elsewhere
    made = call.outputs[0]
    if readers.get(id(made), []) != [combine] or id(made) in results:
        raise elsewhere
    return call


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


def _mix(
    module: Module, dispatch: OpNode, call: CallNode, combine: OpNode, reports: list[RegionReport]
) -> MixNode | None:
    """Return the one node in the place of three, or None if they must stay; add a report."""
    route = dispatch.inputs[1].type
    drops = isinstance(route, RouteType) and bool(route.expected)
    network: Network | None = None
    report = _report(module, dispatch, call)
    try:
        network = in_parts(call.module, report)
    except Apart as apart:
        report.reason, report.span = str(apart), apart.span
    reports.append(report)
    if network is None and (drops or not _takes_one_expert(call.module)):
        return None
    if network is not None:
        call.module.inputs[-1].python = "Tensor | int"
    node = MixNode(
        dispatch.inputs,
        combine.outputs,
        combine.span,
        call.attribute,
        module=call.module,
        shared=call.shared,
        experts=dispatch.outputs[1].type.axes[0].size.number or 0,
        network=network,
        drops=drops,
    )
    for value in combine.outputs:
        value.node = node
    return node


__all__ = ["fuse_experts"]
