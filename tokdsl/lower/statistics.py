"""What is computed for auxiliary values alone is moved together, so that decoding can leave it out.

Requires an inlined module; ensures that such nodes stand directly before the first ``aux`` that
reads them.
"""

from __future__ import annotations

from tokdsl.graph.program import AuxNode, Module, Node, OpNode
from tokdsl.lower.kernels.nodes import RegionNode


def gather(module: Module) -> set[int]:
    """Move nodes that serve auxiliary values alone before their ``aux``; return their identities.

    Operations with parameters or state, and calls, stay where they are.
    """
    apart = alone(module)
    if not apart:
        return set()
    waiting: list[Node] = []
    order: list[Node] = []
    for node in module.nodes:
        if id(node) in apart and not isinstance(node, AuxNode):
            waiting.append(node)
        elif isinstance(node, AuxNode):
            needed = _needed(node, waiting)
            order += [n for n in waiting if id(n) in needed]
            waiting = [n for n in waiting if id(n) not in needed]
            order.append(node)
        else:
            order.append(node)
    module.nodes = order + waiting
    return apart


def alone(module: Module) -> set[int]:
    """Return the ``aux`` nodes and those whose results only they read, directly or not."""
    readers: dict[int, list[Node]] = {}
    for node in module.nodes:
        for value in node.inputs:
            readers.setdefault(id(value), []).append(node)
    results = {id(v) for v in module.results}
    apart: set[int] = set()
    for node in reversed(module.nodes):
        if isinstance(node, AuxNode):
            apart.add(id(node))
            continue
        if isinstance(node, OpNode):
            if node.op.parameters() or node.op.state() is not None:
                continue
        elif not isinstance(node, RegionNode):
            continue
        used = [reader for value in node.outputs for reader in readers.get(id(value), [])]
        kept = any(id(value) in results for value in node.outputs)
        if used and not kept and all(id(reader) in apart for reader in used):
            apart.add(id(node))
    return apart


def _needed(aux: AuxNode, waiting: list[Node]) -> set[int]:
    """Return which waiting nodes an ``aux`` depends on."""
    wanted = {id(v) for v in aux.inputs}
    found: set[int] = set()
    for node in reversed(waiting):
        if any(id(v) in wanted for v in node.outputs):
            found.add(id(node))
            wanted.update(id(v) for v in node.inputs)
    return found
