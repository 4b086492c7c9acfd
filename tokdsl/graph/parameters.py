"""The parameters and saved buffers of a program under the names of the emitted state dict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokdsl.graph.program import CallNode, LoopNode, Module, Node, OpNode, Program
from tokdsl.ops.base import ParameterSpec
from tokdsl.source import Span
from tokdsl.types.tensors import Axis


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """One tensor of the state dict.

    Args:
        shape: sizes in memory order; a stacked parameter begins with its experts axis.
        trainable: false for a buffer.
        span: the expression that owns it.
        dtype: "float" for the working dtype.
    """

    shape: tuple[int, ...]
    trainable: bool
    span: Span
    dtype: str = "float"


def parameter_table(program: Program) -> dict[str, ParameterInfo]:
    """Return every parameter and saved buffer by its name in the emitted ``state_dict()``.

    A loop numbers its layers (``text.layers.3.gqa.q.weight``); an instance that several calls
    share is listed once.
    """
    table: dict[str, ParameterInfo] = {}
    rows: dict[int, list[tuple[str, ParameterInfo]]] = {}
    for node in model_parameters(program):
        table.update(_node(node, rows))
    for stage in program.stages:
        for name, info in _module(stage.module, rows):
            table.setdefault(f"{stage.name}.{name}", info)
    return table


def model_parameters(program: Program) -> list[OpNode]:
    """Return what the model itself owns: parameters that stages share."""
    root = program.stages[0].result.owner if program.stages else None
    nodes = root.nodes if root is not None else []
    used = {id(value) for stage in program.stages for value in stage.inputs}
    return [
        node
        for node in nodes
        if isinstance(node, OpNode) and node.op.parameters() and id(node.outputs[0]) in used
    ]


def _module(
    module: Module, rows: dict[int, list[tuple[str, ParameterInfo]]]
) -> list[tuple[str, ParameterInfo]]:
    """Return the rows of one module, names relative to it; computed once per module."""
    if id(module) not in rows:
        found: list[tuple[str, ParameterInfo]] = []
        seen: set[str] = set()
        for node in _read_nodes(module):
            if node.attribute and node.attribute not in seen:
                own = list(_node(node, rows))
                if own:
                    seen.add(node.attribute)
                found += own
        rows[id(module)] = found
    return rows[id(module)]


def _node(
    node: Node, rows: dict[int, list[tuple[str, ParameterInfo]]]
) -> Iterator[tuple[str, ParameterInfo]]:
    if isinstance(node, OpNode):
        for spec in node.op.parameters():
            if spec.saved:
                name = f"{node.attribute}.{spec.name}" if spec.name else node.attribute
                yield name, _info(spec, node.stack, node.span)
    elif isinstance(node, CallNode):
        for name, info in _module(node.module, rows):
            yield f"{node.attribute}.{name}", info
    elif isinstance(node, LoopNode):
        for i, body in enumerate(node.modules):
            for name, info in _module(body, rows):
                yield f"{node.attribute}.{i}.{name}", info


def _info(spec: ParameterSpec, stack: Axis | None, span: Span) -> ParameterInfo:
    sizes = ((stack.size,) if stack is not None else ()) + spec.shape
    # a size that is not decided was reported where it is used
    return ParameterInfo(tuple(s.number or 0 for s in sizes), spec.trainable, span, spec.dtype)


def _read_nodes(module: Module) -> list[Node]:
    """Return the nodes whose results are read; lowering drops the others."""
    read = {id(value) for value in module.results}
    kept: list[Node] = []
    for node in reversed(module.nodes):
        if not node.outputs or any(id(v) in read for v in node.outputs) or _collects(node):
            kept.append(node)
            read.update(id(value) for value in node.inputs)
    return kept[::-1]


def _collects(node: Node) -> bool:
    """Whether a node holds auxiliary values, so that it stays although its result is unread."""
    if isinstance(node, CallNode):
        return any(not n.outputs or _collects(n) for n in node.module.nodes)
    if isinstance(node, LoopNode):
        return any(not n.outputs for m in set(node.modules) for n in m.nodes)
    return False
