"""What every legal typed graph satisfies, as a table of named predicates; run after each pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tokdsl.graph.definitions import parameters_of
from tokdsl.graph.program import CallNode, LoopNode, Module, Node, OpNode, Value

Rule = Callable[[Module], Iterator[str]]


def _defined_before_use(module: Module) -> Iterator[str]:
    known = {id(v) for v in module.inputs}
    for node in module.nodes:
        for value in node.inputs:
            if id(value) not in known:
                yield f"{value!r} is read before it is defined"
        known.update(id(v) for v in node.outputs)
    for value in module.results:
        if id(value) not in known:
            yield f"the result {value!r} is not defined"


def _outputs_know_their_node(module: Module) -> Iterator[str]:
    for node in module.nodes:
        for i, value in enumerate(node.outputs):
            if value.node is not node or value.index != i:
                yield f"{value!r} does not point to its producer"


def _calls_match(module: Module) -> Iterator[str]:
    for node in module.nodes:
        called = (
            (node.module,)
            if isinstance(node, CallNode)
            else tuple(set(node.modules))
            if isinstance(node, LoopNode)
            else ()
        )
        for other in called:
            if len(other.inputs) != len(node.inputs):
                yield (
                    f"{other!r} takes {len(other.inputs)} inputs, the call at {node.span} "
                    f"gives {len(node.inputs)}"
                )


def _operands_named(module: Module) -> Iterator[str]:
    for node in module.nodes:
        if isinstance(node, OpNode) and len(node.operands) != len(node.inputs):
            yield f"{type(node.op).op_name} at {node.span} names {len(node.operands)} operands"


def _shared_alike(node: Node, first: object) -> bool:
    """Whether a shared instance is used on another stream with the same parameters."""
    return (
        isinstance(node, CallNode)
        and node.shared
        and isinstance(first, Module)
        and parameters_of(first) == parameters_of(node.module)
    )


def _owners_named(module: Module) -> Iterator[str]:
    seen: dict[str, object] = {}
    for node in module.nodes:
        if isinstance(node, OpNode) and node.op.parameters() and not node.attribute:
            yield f"{type(node.op).op_name} at {node.span} owns parameters without a name"
        if node.attribute:
            what = node.module if isinstance(node, CallNode) else type(node)
            first = seen.setdefault(node.attribute, what)
            if first is not what and not _shared_alike(node, first):
                yield f"two different things are named `{node.attribute}`"


#: every rule by its name
RULES: dict[str, Rule] = {
    "defined-before-use": _defined_before_use,
    "outputs-know-their-node": _outputs_know_their_node,
    "calls-match": _calls_match,
    "operands-named": _operands_named,
    "owners-named": _owners_named,
}


class IllegalGraph(AssertionError):
    """A pass made a graph that breaks a rule: an error of the compiler, never of the user."""


def verify(modules: list[Module]) -> None:
    """Check every rule on every module.

    Raises:
        IllegalGraph: naming the rule, the module and what is wrong.
    """
    for module in modules:
        if module.broken:
            continue
        for name, rule in RULES.items():
            for complaint in rule(module):
                raise IllegalGraph(f"{name}: {module!r}: {complaint}")


__all__ = ["RULES", "IllegalGraph", "Value", "verify"]
