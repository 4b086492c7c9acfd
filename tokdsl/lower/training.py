"""What is computed for training alone stands in a block that inference leaves out.

Requires an inlined module; ensures that such nodes stand directly before the operation that takes
their value in training.
"""

from __future__ import annotations

from tokdsl.graph.program import AuxNode, Module, Node, OpNode, Value


def training_alone(module: Module) -> dict[int, Node]:
    """Return for each node that training alone needs the operation that takes its value there."""
    if not any(isinstance(n, OpNode) and n.op.training_operands for n in module.nodes):
        return {}
    readers: dict[int, list[Node]] = {}
    for node in module.nodes:
        for value in node.inputs:
            readers.setdefault(id(value), []).append(node)
    results = {id(v) for v in module.results}
    found: dict[int, Node] = {}
    for node in reversed(module.nodes):
        if isinstance(node, AuxNode) or any(id(v) in results for v in node.outputs):
            continue
        homes = {
            id(home): home
            for value in node.outputs
            for reader in readers.get(id(value), [])
            for home in [_home(reader, value, found)]
        }
        if len(homes) == 1 and id(None) not in homes:
            found |= {id(node): home for home in homes.values() if home is not None}
    return found


def _home(reader: Node, value: Value, found: dict[int, Node]) -> Node | None:
    """Return the operation for whose training value a reader reads, or None."""
    if id(reader) in found:
        return found[id(reader)]
    if not isinstance(reader, OpNode):
        return None
    pairs = zip(reader.operands, reader.inputs, strict=True)
    names = {name for name, read in pairs if read is value}
    return reader if names <= set(reader.op.training_operands) else None


def gather_training(module: Module, apart: set[int]) -> dict[int, Node]:
    """Move such nodes before their operation; return the operation of each, and its own.

    What serves auxiliary values alone (``apart``) stays where it is.
    """
    served = {k: home for k, home in training_alone(module).items() if id(home) not in apart}
    homes = {id(home): home for home in served.values()}
    waiting: dict[int, list[Node]] = {key: [] for key in homes}
    order: list[Node] = []
    for node in module.nodes:
        if id(node) in served:
            waiting[id(served[id(node)])].append(node)
            continue
        order += waiting.pop(id(node), [])
        order.append(node)
    module.nodes = order
    return served | homes


__all__ = ["gather_training", "training_alone"]
