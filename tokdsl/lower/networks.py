"""Experts in parts: linear maps of a row, an elementwise part, and a linear map of that.

Most experts are made so. Such a `Network` is given to its function in these parts, which then needs
no copy of all rows; on a GPU it is one kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokdsl.graph.program import AuxNode, CallNode, Module, OpNode, Value
from tokdsl.lower.kernels.experts import experts_kernel
from tokdsl.lower.kernels.nodes import REGION, RegionNode
from tokdsl.lower.kernels.report import RegionReport
from tokdsl.lower.kernels.rows import is_free
from tokdsl.ops.cast import Cast, CastLike
from tokdsl.ops.elementwise import Elementwise
from tokdsl.ops.parameters import Linear
from tokdsl.ops.tile import NotTiled
from tokdsl.source import Span
from tokdsl.types.tensors import TensorType


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
        drops: whether some picks are none, or of other experts.
        start: number of the first of them.
    """

    experts: int = field(default=0, kw_only=True)
    network: Network | None = field(default=None, kw_only=True)
    drops: bool = field(default=False, kw_only=True)
    start: int = field(default=0, kw_only=True)


class Apart(Exception):
    """Experts cannot be one step; the text says why."""

    def __init__(self, reason: str, span: Span) -> None:
        super().__init__(reason)
        self.span = span


def in_parts(module: Module, report: RegionReport) -> Network:
    """Return an expert in parts, with its kernel if that can be written.

    Raises:
        Apart: if it is not made of maps of the row, an elementwise part and a last map.
    """
    if len(module.inputs) != 2:
        raise Apart("experts read more than their rows", module.span)
    row, groups = module.inputs
    nodes: list[OpNode] = []
    for node in module.nodes:
        if not isinstance(node, OpNode):
            called = node.module.name if isinstance(node, CallNode) else "repeat"
            what = "collects a value" if isinstance(node, AuxNode) else f"calls `{called}`"
            raise Apart(f"an expert {what}", node.span)
        nodes.append(node)
    maps = [node for node in nodes if any(v is groups for v in node.inputs)]
    last = module.results[0].node
    first = [node for node in maps if node is not last]
    middle = [node for node in nodes if not any(node is m for m in maps)]
    if not isinstance(last, OpNode) or not any(node is last for node in maps):
        raise Apart("an expert does not end with a linear map", module.span)
    if not first or not middle:
        raise Apart("there is nothing between linear maps of an expert", module.span)
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
        Apart: with the reason.
    """
    op = node.op
    if not isinstance(op, Linear):
        raise Apart(f"`{op.op_name}` has an entry per expert", node.span)
    if len(op.contracted()) != 1 or len(op.out) != 1:
        raise Apart("a linear map has more than one axis", node.span)
    if row is not None and node.inputs[0] is not row:
        raise Apart("a linear map reads something else than the row", node.span)


def _check_entrywise(nodes: list[OpNode], given: list[Value], last: OpNode) -> None:
    """Say so if nodes do not make what the last map reads entry by entry from given values.

    Raises:
        Apart: with the reason.
    """
    known = {id(value) for value in given}
    constants: set[int] = set()
    result, kind = last.inputs[0], given[0].type
    for value in given:
        if _axes(value.type) != _axes(kind):
            raise Apart("the maps of a row have results of different sizes", last.span)
    for node in nodes:
        op = node.op
        if is_free(node):
            constants |= {id(value) for value in node.outputs}
            continue
        entrywise = (
            isinstance(op, Elementwise | Cast | CastLike) and not op.random and op.choice() is None
        )
        if not entrywise or op.parameters():
            raise Apart(f"`{op.op_name}` is not computed entry by entry", node.span)
        if any(id(value) not in known | constants for value in node.inputs):
            raise Apart(f"`{op.op_name}` reads more than the maps of a row", node.span)
        if any(_axes(value.type) != _axes(kind) for value in node.outputs):
            raise Apart(f"`{op.op_name}` gives something of another size", node.span)
        known |= {id(value) for value in node.outputs}
    if id(result) not in known or result.type != kind:
        raise Apart("the last map does not read what the first ones give", last.span)


def _axes(kind: object) -> list[tuple[str, str]] | None:
    if not isinstance(kind, TensorType):
        return None
    return [(axis.name, str(axis.size)) for axis in kind.axes]


__all__ = ["Apart", "MixNode", "Network", "in_parts"]
