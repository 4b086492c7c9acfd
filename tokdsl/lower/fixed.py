"""What a module computes once in decoding is moved together, so that later steps leave it out.

Requires an inlined module; ensures that what depends on parameters alone comes first, then what
depends on inputs that are read once, then the rest.
"""

from __future__ import annotations

from tokdsl.checks.constancy import Constancy, Level
from tokdsl.graph.program import AuxNode, Module, Node, OpNode, Value
from tokdsl.ops.ambient import Rename
from tokdsl.types.tensors import TensorType

#: the class of ``state.py`` that holds such values
KEPT = "Kept"


def kept_field(module: Module, constancy: Constancy | None) -> str:
    """Return the field of a module's state with what it keeps; "" if there is nothing."""
    if constancy is None or not constancy.entered(module) or not kept(module, constancy, set()):
        return ""
    names = {node.attribute for node in module.nodes}
    return "kept" if "kept" not in names else "kept_values"


def keep_together(
    module: Module, constancy: Constancy | None, apart: set[int]
) -> tuple[set[int], list[Value]]:
    """Order the nodes of a module; return those that steps leave out, and what is kept of them.

    Args:
        module: the module, changed in place.
        constancy: which values stay the same through decode steps; None if none is looked for.
        apart: nodes that stay where they are.
    """
    if constancy is None or not constancy.entered(module):
        return set(), []
    values = kept(module, constancy, apart)
    if not values:
        return set(), []
    once = _once(module, constancy, apart)
    free = [n for n in module.nodes if id(n) not in apart and _is_free(n, constancy)]
    first = {id(n) for n in free} | once
    module.nodes = [
        *free,
        *(n for n in module.nodes if id(n) in once),
        *(n for n in module.nodes if id(n) not in first),
    ]
    return once, values


def kept(module: Module, constancy: Constancy, apart: set[int]) -> list[Value]:
    """Return the values to keep: computed once, and read by what is computed in every step."""
    once = _once(module, constancy, apart)
    made = {id(v): v for n in module.nodes if id(n) in once for v in n.outputs}
    read = [v for n in module.nodes if id(n) not in once for v in n.inputs]
    found: dict[int, Value] = {}
    for value in (*read, *module.results):
        source = _unnamed(value)
        if id(value) in made and id(source) in made:
            found[id(source)] = source
    if not all(isinstance(v.type, TensorType) and v.python == "Tensor" for v in found.values()):
        return []  # a route is not kept: it is computed again
    return [value for key, value in made.items() if key in found]


def _once(module: Module, constancy: Constancy, apart: set[int]) -> set[int]:
    nodes = (n for n in module.nodes if id(n) not in apart)
    return {id(n) for n in nodes if constancy.is_fixed(n)}


def _is_free(node: Node, constancy: Constancy) -> bool:
    if isinstance(node, AuxNode) or not node.outputs:
        return False
    return all(constancy.level(value) is Level.FREE for value in node.outputs)


def _unnamed(value: Value) -> Value:
    """Return the value of which this one is another name."""
    while isinstance(value.node, OpNode) and isinstance(value.node.op, Rename):
        value = value.node.inputs[0]
    return value
