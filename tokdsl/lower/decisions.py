"""Which discrete choices of a module are recorded and replayed, and under what names.

A choice that only auxiliary values read is a statistic: it changes nothing that the model computes,
and decode steps leave it out. So it is not recorded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokdsl.graph.program import SELECTION, CallNode, Module, Node, OpNode
from tokdsl.lower.kernels.nodes import REGION, RegionNode
from tokdsl.lower.statistics import alone
from tokdsl.types.tensors import Clock, TensorType


def choices(module: Module) -> dict[int, str]:
    """Return the names of the choices of a module itself, by the identity of their nodes.

    A choice is called as the value that the program gives it, or else as its operation; further
    ones of the same name are numbered.
    """
    if module.kind == REGION:  # named in the module that it is a part of
        named = module.statics["choices"]
        assert isinstance(named, dict)
        return named
    apart = alone(module)
    names: dict[int, str] = {}
    for node in module.nodes:
        if isinstance(node, RegionNode):
            names |= choices(node.module)
    if module.kind == SELECTION:  # one choice, recorded where the module is called
        first = next(n for n in module.nodes if isinstance(n, OpNode) and n.op.choice() is not None)
        return {id(first): "choice"}
    for node in module.nodes:
        if id(node) not in apart and _chooses(node):
            base = _name(node)
            name, number = base, 1
            while name in names.values():
                number += 1
                name = f"{base}_{number}"
            names[id(node)] = name
    return names


def _chooses(node: Node) -> bool:
    if isinstance(node, CallNode):
        return node.module.kind == SELECTION
    return isinstance(node, OpNode) and node.op.choice() is not None


def _name(node: Node) -> str:
    named = (value.name for value in reversed(node.outputs) if value.name not in ("", "_"))
    return next(named, type(node.op).op_name if isinstance(node, OpNode) else "topk")


def keeper(name: str, kind: TensorType | None, clock: str, chunks: Sequence[str] = ()) -> str:
    """Return the text of what keeps a choice: its name, and where the tokens are in it.

    Args:
        name: of the choice in its module.
        kind: the type of the choice.
        clock: name of the input's clock whose tokens the record counts, or "".
        chunks: what `place` is told of the tokens, if they are not those of the module.
    """
    tokens = _token_dimension(kind, clock) if kind is not None else None
    dimension = {1: "", None: ", None"}.get(tokens, f", {tokens}")
    here = ", ".join(['""', *chunks])
    inner = f".inside({here})" if chunks else ""
    return f'decisions and decisions{inner}.at("{name}"{dimension})'


def place(*arguments: str) -> str:
    """Return the text of the decisions of a called module.

    Args:
        arguments: its name; then, if its tokens are not those of the caller, their clock, the
            number of each in its row, and their rows.
    """
    return f"decisions and decisions.inside({', '.join(arguments)})"


_KEEPER = re.compile(r"(, )?(decision=)?decisions and decisions(\.\w+\([^()]*\))+")


def without_keepers(text: str) -> str:
    """Return an expression as it would be without records: how long it seems to a reader."""
    return _KEEPER.sub("", text)


def _token_dimension(kind: TensorType, clock: str) -> int | None:
    for at, axis in enumerate(kind.axes):
        if axis.clock is not None and not axis.memory and _root(axis.clock).name == clock:
            return at + 1 if kind.batched else None
    return None


def _root(clock: Clock) -> Clock:
    while clock.parent is not None:
        clock = clock.parent
    return clock


def clock_of(module: Module) -> str:
    """Return the name of the input's clock that a stage's tokens belong to; "" if it has none."""
    values = [*module.results, *module.inputs]
    clocks = (axis.clock for value in values for axis in value.type.axes)
    return next((_root(clock).name for clock in clocks if clock is not None), "")
