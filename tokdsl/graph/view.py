"""The typed graph as a networkx graph, for analyses of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokdsl.graph.program import AuxNode, CallNode, LoopNode, Module, Node, OpNode, Program

if TYPE_CHECKING:
    from networkx import MultiDiGraph


def digraph(program: Program) -> MultiDiGraph[str]:
    """Return a program's values and operations as a directed graph.

    Nodes are named ``module/number``; ``module`` is the definition's name, numbered where it is
    used in several ways. Each has ``kind`` (``input``, ``op``, ``call``, ``repeat``, ``aux``),
    ``name``, ``module``, ``types`` (of its results, as text) and ``place`` (file:line:column).
    An edge goes from the producer of a value to each reader, with the value's ``type``. A call and
    a repeat have an attribute ``bodies``: the modules that they run.
    """
    import networkx

    graph: MultiDiGraph[str] = networkx.MultiDiGraph(name=program.name)
    counts: dict[str, int] = {}
    labels: dict[int, str] = {}
    for module in program.all_modules():
        counts[module.name] = counts.get(module.name, 0) + 1
        number = counts[module.name]
        labels[id(module)] = module.name if number == 1 else f"{module.name}.{number}"
        _add_module(graph, module, labels)
    return graph


def _add_module(graph: MultiDiGraph[str], module: Module, labels: dict[int, str]) -> None:
    label = labels[id(module)]
    makers: dict[int, str] = {}
    for i, value in enumerate(module.inputs):
        name = f"{label}/in{i}"
        makers[id(value)] = name
        graph.add_node(
            name,
            kind="input",
            name=value.name,
            module=label,
            types=(str(value.type),),
            place=str(value.span),
        )
    for i, node in enumerate(module.nodes):
        name = f"{label}/{i}"
        kind, what, bodies = _describe(node, labels)
        graph.add_node(
            name,
            kind=kind,
            name=what,
            module=label,
            types=tuple(str(v.type) for v in node.outputs),
            place=str(node.span),
            bodies=bodies,
        )
        for value in node.inputs:
            graph.add_edge(makers[id(value)], name, type=str(value.type))
        makers.update((id(v), name) for v in node.outputs)


def _describe(node: Node, labels: dict[int, str]) -> tuple[str, str, tuple[str, ...]]:
    """Return a node's kind, its name, and the modules that it runs."""
    if isinstance(node, OpNode):
        return "op", type(node.op).op_name, ()
    if isinstance(node, CallNode):
        return "call", node.module.name, (labels[id(node.module)],)
    if isinstance(node, LoopNode):
        return "repeat", f"x {len(node.modules)}", tuple(labels[id(m)] for m in node.modules)
    assert isinstance(node, AuxNode)
    return "aux", node.name, ()
