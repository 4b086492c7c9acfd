"""Chunks in decode steps: when they are handed on, and where decode states learn of them.

A chunk of which only the first token is read goes on with that token. All others wait until it is
known that no token will be added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tokdsl.checks.streaming import reads_whole_chunks
from tokdsl.graph.program import CallNode, LoopNode, Module, Node, OpNode, Value
from tokdsl.ops.ambient import Reading
from tokdsl.ops.base import Op, arguments
from tokdsl.ops.chunks import Chunks, clock_of
from tokdsl.ops.clock import Pool, Upsample
from tokdsl.types.tensors import Axis, ChunksType, Clock, ragged


def hand_on_first_tokens(modules: Iterable[Module]) -> None:
    """Let the chunks of which only first tokens are read go on with these.

    Where chunks wait for their last token, what is made of their first one waits with it.
    """
    every = list(modules)
    whole = reads_whole_chunks(every)
    for module in every:
        for node in module.nodes:
            if not isinstance(node, OpNode):
                continue
            op = node.op
            if isinstance(op, Chunks) and op.clock not in whole:
                node.op = _changed(op, whole=False)
            elif isinstance(op, Pool) and isinstance(op.chunks, ChunksType):
                if clock_of(op.chunks).name in whole:
                    node.op = _changed(op, waits=True)
                    node.attribute = node.attribute or _unused_name(module)
            elif isinstance(op, Upsample) and isinstance(op.like, ChunksType):
                early = op.read == "closed" and clock_of(op.like).name not in whole
                node.op = _changed(op, early=early) if early else op


def _unused_name(module: Module) -> str:
    """Return a name for one more state of a module."""
    taken = {node.attribute for node in module.nodes}
    names = ("pool" if n == 1 else f"pool_{n}" for n in range(1, len(taken) + 2))
    return next(name for name in names if name not in taken)


def _changed(op: Op, **values: bool) -> Op:
    """Return an operation with other values of some arguments."""
    return type(op)(**{**{a.name: getattr(op, a.name) for a in arguments(type(op))}, **values})


def chunks_in(module: Module) -> dict[str, Value]:
    """Return the chunks that a module is given or makes, by their clock."""
    outputs = [v for node in module.nodes for v in node.outputs]
    return {
        value.type.coarse.clock.name: value
        for value in (*module.inputs, *outputs)
        if isinstance(value.type, ChunksType) and value.type.coarse.clock is not None
    }


def read_by(node: Node, chunks: Mapping[str, Value]) -> tuple[Value, ...]:
    """Return what must be there before a node: its inputs, and the chunks whose tokens it numbers.

    Args:
        node: any node.
        chunks: those of its module, by their clock.
    """
    if not isinstance(node, OpNode) or not isinstance(node.op, Reading):
        return node.inputs
    axis = node.op.axis
    clock = axis.clock if isinstance(axis, Axis) else None
    while clock is not None and not clock.cut:
        clock = clock.parent
    found = chunks.get(clock.name) if clock is not None else None
    return node.inputs if found is None else (*node.inputs, found)


def stage_clock(module: Module) -> Clock | None:
    """Return the ragged clock on which a nested stage runs."""
    if module.kind != "stage" or not module.inputs:
        return None
    clock = ragged(module.inputs[0].type)
    return clock if clock is not None and clock.name in chunks_in(module) else None


def wanted_clocks(node: Node) -> set[str]:
    """Return the ragged clocks of whose chunks the decode states of a node must learn."""
    if isinstance(node, OpNode):
        axis = node.op.remembers() if node.op.state() is not None else None
        if axis is None or axis.clock is None or not axis.clock.cut:
            return set()
        return {axis.clock.name}
    called: tuple[Module, ...] = ()
    if isinstance(node, CallNode):
        called = (node.module,)
    elif isinstance(node, LoopNode):
        called = node.modules
    found: set[str] = set()
    for module in dict.fromkeys(called):
        inside = set().union(*(wanted_clocks(n) for n in module.nodes))
        found |= inside - chunks_in(module).keys()
    return found


def read_clocks(module: Module) -> set[str]:
    """Return the ragged clocks of which a module reads an attribute or tells decode states."""
    found: set[str] = set()
    for node in module.nodes:
        found |= wanted_clocks(node)
        axis = node.op.axis if isinstance(node, OpNode) and isinstance(node.op, Reading) else None
        if isinstance(axis, Axis) and axis.clock is not None:
            found.add(axis.clock.name)
    return found


__all__ = ["chunks_in", "hand_on_first_tokens", "read_clocks", "stage_clock", "wanted_clocks"]
