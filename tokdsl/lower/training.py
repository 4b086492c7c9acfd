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


def gather_ways(module: Module, apart: set[int]) -> dict[int, tuple[OpNode, str]]:
    """Move what one of the two values of `in_steps` needs alone before it.

    Returns for each such node the operation, and the operand that it serves.
    """
    homes = [n for n in module.nodes if isinstance(n, OpNode) and n.op.step_operands]
    served: dict[int, tuple[OpNode, str]] = {}
    for home in homes:
        for operand in home.operands:
            alone = _served(module, home, operand, served, apart)
            served |= {id(node): (home, operand) for node in alone}
    for home in homes:
        mine = {o: [n for n in module.nodes if served.get(id(n)) == (home, o)]
                for o in home.operands}  # fmt: skip
        moved = [node for nodes in mine.values() for node in nodes]
        rest = [n for n in module.nodes if id(n) not in {id(m) for m in moved}]
        at = rest.index(home)
        module.nodes = [*rest[:at], *moved, *rest[at:]]
    return served


def _served(
    module: Module,
    home: OpNode,
    operand: str,
    taken: dict[int, tuple[OpNode, str]],
    apart: set[int],
) -> list[Node]:
    """Return the nodes whose results only one operand of an operation needs."""
    value = dict(zip(home.operands, home.inputs, strict=True))[operand]
    others = {id(v) for name, v in zip(home.operands, home.inputs, strict=True) if name != operand}
    readers: dict[int, list[Node]] = {}
    for node in module.nodes:
        for read in node.inputs:
            readers.setdefault(id(read), []).append(node)
    results = {id(v) for v in module.results} | others
    alone: list[Node] = []
    inside: set[int] = set()
    for node in reversed(module.nodes[: module.nodes.index(home)]):
        if id(node) in taken or id(node) in apart or any(id(v) in results for v in node.outputs):
            continue
        if isinstance(node, OpNode) and (node.op.state() is not None or node.op.parameters()):
            continue
        used = [r for v in node.outputs for r in readers.get(id(v), [])]
        fits = all(id(r) in inside or (r is home and value in node.outputs) for r in used)
        if used and fits and not isinstance(node, AuxNode):
            alone.append(node)
            inside.add(id(node))
    return alone[::-1]


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


__all__ = ["gather_training", "gather_ways", "training_alone"]
