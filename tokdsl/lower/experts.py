"""Dispatch, experts and combination in one step, so that inference need not copy all rows.

Requires hoisted modules; ensures that a dispatch whose rows go through one stacked module and
nothing else is one `MixNode`. The function behind it picks the form at run time: all rows at once
where a gradient is wanted, one expert at a time where that is faster.

Most experts are linear maps of a row, an elementwise part, and a linear map of that. Such a
`Network` is given to its function in these parts, which then needs no copy of all rows at all; on a
GPU it is one kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokdsl.graph.program import AuxNode, CallNode, Module, Node, OpNode, Value
from tokdsl.lower.kernels.experts import experts_kernel
from tokdsl.lower.kernels.nodes import REGION, RegionNode
from tokdsl.lower.kernels.report import RegionReport
from tokdsl.lower.kernels.rows import is_free
from tokdsl.ops.cast import Cast, CastLike
from tokdsl.ops.elementwise import Elementwise
from tokdsl.ops.parameters import Linear
from tokdsl.ops.route import Combine, Dispatch, SplitRows
from tokdsl.ops.tile import NotTiled
from tokdsl.source import Span
from tokdsl.types.tensors import RouteType, TensorType


@dataclass(frozen=True)
class Network:
    """An expert in parts.

    Args:
        first: the layers that map a row, by their names in the expert.
        middle: what is done with their results, entry by entry.
        last: the layer that maps the result.
    """

    first: tuple[str, ...]
    middle: RegionNode
    last: str


@dataclass(eq=False, slots=True)
class MixNode(CallNode):
    """Experts applied to routed tokens: the inputs are the tokens and the route.

    Args:
        experts: how many there are.
        network: the expert in parts, if it has these.
        drops: whether some picks are none.
    """

    experts: int = field(default=0, kw_only=True)
    network: Network | None = field(default=None, kw_only=True)
    drops: bool = field(default=False, kw_only=True)


class _Apart(Exception):
    """Experts cannot be one step; the text says why."""

    def __init__(self, reason: str, span: Span) -> None:
        super().__init__(reason)
        self.span = span


def fuse_experts(module: Module) -> list[RegionReport]:
    """Replace every dispatch, call of experts and combination that belong together.

    Returns:
        For each dispatch, the kernel that it became part of, or why there is none.
    """
    readers: dict[int, list[Node]] = {}
    for node in module.nodes:
        for value in node.inputs:
            readers.setdefault(id(value), []).append(node)
    results = {id(v) for v in module.results}
    replaced: dict[int, Node | None] = {}
    reports: list[RegionReport] = []
    for node in module.nodes:
        if not isinstance(node, OpNode) or not isinstance(node.op, Dispatch):
            continue
        try:
            call, combine = _chain(node, readers, results)
        except _Apart as apart:
            reports.append(_report(module, node, None, apart))
            continue
        mixed = _mix(module, node, call, combine, reports)
        if mixed is not None:
            replaced |= {id(node): None, id(call): None, id(combine): mixed}
    module.nodes = [n for node in module.nodes if (n := replaced.get(id(node), node)) is not None]
    return reports


def _report(
    module: Module, dispatch: OpNode, call: CallNode | None, apart: _Apart | None = None
) -> RegionReport:
    inner = [] if call is None else [n for n in call.module.nodes if isinstance(n, OpNode)]
    what = ["dispatch", *(n.op.op_name for n in inner if not is_free(n)), "combine"]
    span = dispatch.span if apart is None else apart.span
    reason = "" if apart is None else str(apart)
    return RegionReport("experts", module.name, tuple(what), span, reason=reason)


def _chain(
    dispatch: OpNode, readers: dict[int, list[Node]], results: set[int]
) -> tuple[CallNode, OpNode]:
    """Return the call and the combination of a dispatch.

    Raises:
        _Apart: if its rows go elsewhere.
    """
    rows, groups, order = dispatch.outputs
    elsewhere = _Apart("its rows go to more than one definition and `combine`", dispatch.span)
    calls, counts, places = (readers.get(id(v), []) for v in (rows, groups, order))
    if any(isinstance(n, OpNode) and isinstance(n.op, SplitRows) for n in calls):
        raise _Apart("there are experts of several kinds", dispatch.span)
    if any(id(v) in results for v in dispatch.outputs):
        raise elsewhere
    if len(calls) != 1 or calls != counts or len(places) != 1:
        raise elsewhere
    call, combine = calls[0], places[0]
    if not isinstance(call, CallNode) or call.inputs != (rows, groups) or len(call.outputs) != 1:
        raise elsewhere
    if not isinstance(combine, OpNode) or not isinstance(combine.op, Combine):
        raise elsewhere
    if combine.inputs[1] is not dispatch.inputs[1]:
        raise _Apart("`combine` has another route than `dispatch`", combine.span)
    if readers.get(id(call.outputs[0]), []) != [combine]:
        raise elsewhere
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


def _mix(
    module: Module, dispatch: OpNode, call: CallNode, combine: OpNode, reports: list[RegionReport]
) -> MixNode | None:
    """Return the one node in the place of three, or None if they must stay; add a report."""
    route = dispatch.inputs[1].type
    drops = isinstance(route, RouteType) and bool(route.expected)
    network: Network | None = None
    report = _report(module, dispatch, call)
    try:
        network = _network(call.module, report)
    except _Apart as apart:
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


def _network(module: Module, report: RegionReport) -> Network:
    """Return an expert in parts, with its kernel if that can be written.

    Raises:
        _Apart: if it is not made of maps of the row, an elementwise part and a last map.
    """
    if len(module.inputs) != 2:
        raise _Apart("experts read more than their rows", module.span)
    row, groups = module.inputs
    nodes: list[OpNode] = []
    for node in module.nodes:
        if not isinstance(node, OpNode):
            called = node.module.name if isinstance(node, CallNode) else "repeat"
            what = "collects a value" if isinstance(node, AuxNode) else f"calls `{called}`"
            raise _Apart(f"an expert {what}", node.span)
        nodes.append(node)
    maps = [node for node in nodes if any(v is groups for v in node.inputs)]
    last = module.results[0].node
    first = [node for node in maps if node is not last]
    middle = [node for node in nodes if not any(node is m for m in maps)]
    if not isinstance(last, OpNode) or not any(node is last for node in maps):
        raise _Apart("an expert does not end with a linear map", module.span)
    if not first or not middle:
        raise _Apart("there is nothing between linear maps of an expert", module.span)
    for node in maps:
        _check_map(node, None if node is last else row)
    given = [value for node in first for value in node.outputs]
    _check_entrywise(middle, given, last)
    part = Module(f"{module.name}_hidden", REGION, middle[0].span, given, list(middle))
    part.results, part.doc = (last.inputs[0],), module.doc
    part.statics["choices"] = {}
    region = RegionNode(tuple(given), part.results, middle[0].span, module=part)
    names = tuple(node.attribute for node in first)
    try:
        region.kernel = experts_kernel(f"{module.name}_hidden", names, part)
        region.report = report
    except NotTiled as fault:
        report.reason = str(fault)
    return Network(names, region, last.attribute)


def _check_map(node: OpNode, row: Value | None) -> None:
    """Say so if a node is no map of one axis to one axis, or not of the row.

    Raises:
        _Apart: with the reason.
    """
    op = node.op
    if not isinstance(op, Linear):
        raise _Apart(f"`{op.op_name}` has an entry per expert", node.span)
    if len(op.contracted()) != 1 or len(op.out) != 1:
        raise _Apart("a linear map has more than one axis", node.span)
    if row is not None and node.inputs[0] is not row:
        raise _Apart("a linear map reads something else than the row", node.span)


def _check_entrywise(nodes: list[OpNode], given: list[Value], last: OpNode) -> None:
    """Say so if nodes do not make what the last map reads entry by entry from given values.

    Raises:
        _Apart: with the reason.
    """
    known = {id(value) for value in given}
    constants: set[int] = set()
    result, kind = last.inputs[0], given[0].type
    for value in given:
        if _axes(value.type) != _axes(kind):
            raise _Apart("the maps of a row have results of different sizes", last.span)
    for node in nodes:
        op = node.op
        if is_free(node):
            constants |= {id(value) for value in node.outputs}
            continue
        entrywise = (
            isinstance(op, Elementwise | Cast | CastLike) and not op.random and op.choice() is None
        )
        if not entrywise or op.parameters():
            raise _Apart(f"`{op.op_name}` is not computed entry by entry", node.span)
        if any(id(value) not in known | constants for value in node.inputs):
            raise _Apart(f"`{op.op_name}` reads more than the maps of a row", node.span)
        if any(_axes(value.type) != _axes(kind) for value in node.outputs):
            raise _Apart(f"`{op.op_name}` gives something of another size", node.span)
        known |= {id(value) for value in node.outputs}
    if id(result) not in known or result.type != kind:
        raise _Apart("the last map does not read what the first ones give", last.span)


def _axes(kind: object) -> list[tuple[str, str]] | None:
    if not isinstance(kind, TensorType):
        return None
    return [(axis.name, str(axis.size)) for axis in kind.axes]


__all__ = ["MixNode", "Network", "Value", "fuse_experts"]
