"""What the objective reaches: backwards through a program, with and without a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tokdsl.graph.program import AuxNode, CallNode, LoopNode, Module, Node, OpNode, Program, Value

#: which results of a module are reached: (with a gradient, at all) for each, then aux names
Reached = tuple[tuple[bool, bool], ...]


@dataclass(eq=False)
class Backward:
    """What of a module the objective reaches, for given reached results.

    Args:
        inputs: per input: whether a gradient reaches it, whether anything does.
        values: the same per value of the body, by identity.
        calls: the analysis of each called module, by identity of the node.
        layers: the analysis of each iteration of a loop, in order.
    """

    module: Module
    values: dict[int, tuple[bool, bool]] = field(default_factory=dict)
    calls: dict[int, list[Backward]] = field(default_factory=dict)
    layers: dict[int, list[Backward]] = field(default_factory=dict)

    def reached(self, value: Value) -> tuple[bool, bool]:
        """Return whether a gradient, and whether anything, flows from a value to the objective."""
        return self.values.get(id(value), (False, False))

    @property
    def inputs(self) -> list[tuple[bool, bool]]:
        """What is reached of the inputs."""
        return [self.reached(v) for v in self.module.inputs]


class Gradients:
    """The backward analysis of a program."""

    def __init__(self, aux: dict[str, tuple[bool, bool]]) -> None:
        self.aux = aux
        self._known: dict[object, Backward] = {}

    def backward(self, module: Module, results: Reached) -> Backward:
        """Return what is reached in a module when these results are."""
        key = (id(module), results)
        found = self._known.get(key)
        if found is None:
            found = Backward(module)
            for value, state in zip(module.results, results, strict=True):
                _merge(found, value, *state)
            for node in reversed(module.nodes):
                self._node(found, node)
            self._known[key] = found
        return found

    def root(self, module: Module, reached: dict[int, tuple[bool, bool]]) -> Backward:
        """Return what is reached in the model's own body when these values are."""
        found = Backward(module, dict(reached))
        for node in reversed(module.nodes):
            self._node(found, node)
        return found

    def _node(self, found: Backward, node: Node) -> None:
        if isinstance(node, AuxNode):
            _merge(found, node.inputs[0], *self.aux.get(node.name, (False, False)))
        elif isinstance(node, OpNode):
            self._operation(found, node)
        elif isinstance(node, CallNode):
            results = tuple(found.reached(v) for v in node.outputs)
            inner = self.backward(node.module, results)
            found.calls[id(node)] = [inner]
            for value, state in zip(node.inputs, inner.inputs, strict=True):
                _merge(found, value, *state)
        elif isinstance(node, LoopNode):
            self._loop(found, node)

    def _operation(self, found: Backward, node: OpNode) -> None:
        smooth = any(found.reached(v)[0] for v in node.outputs)
        anything = any(found.reached(v)[1] for v in node.outputs)
        if not anything:
            return
        passes = passing(node)
        for name, value in zip(node.operands, node.inputs, strict=True):
            _merge(found, value, smooth and name in passes, True)

    def _loop(self, found: Backward, node: LoopNode) -> None:
        state = found.reached(node.outputs[0])
        bodies: list[Backward] = []
        layers: list[Backward] = []
        for module in reversed(node.modules):
            inner = self.backward(module, (state,))
            layers.append(inner)
            if not bodies or bodies[-1] is not inner:
                bodies.append(inner)
                for value, reached in zip(node.inputs[1:], inner.inputs[1:], strict=True):
                    _merge(found, value, *reached)
            state = inner.inputs[0]
        found.calls[id(node)] = list(dict.fromkeys(bodies))
        found.layers[id(node)] = layers[::-1]
        _merge(found, node.inputs[0], *state)


def _merge(found: Backward, value: Value, smooth: bool, anything: bool) -> None:
    old = found.reached(value)
    found.values[id(value)] = (old[0] or (smooth and value.type.is_float), old[1] or anything)


def passing(node: OpNode) -> set[str]:
    """Return the operands of a use to which a gradient flows back."""
    if constant_axis(node) is not None:
        return set()
    return {name for name, smooth in node.op.gradient().items() if smooth}


def constant_axis(node: OpNode) -> str | None:
    """Return the axis of size one over which this use is a share of its own total, if it is one."""
    share = getattr(node.op, "constant", None)
    if share is not None and "softmax" in type(node.op).op_name and share():
        axes = node.op.reduction().axes  # type: ignore[attr-defined]
        return str(axes[0].name)
    if type(node.op).op_name != "divide":
        return None
    x, y = (_through_casts(value) for value in node.inputs)
    below = y.node
    if not isinstance(below, OpNode) or type(below.op).op_name != "sum":
        return None
    axes = below.op.reduction().axes  # type: ignore[attr-defined]
    if _through_casts(below.inputs[0]) is x and axes and all(a.size.number == 1 for a in axes):
        return str(axes[0].name)
    return None


def _through_casts(value: Value) -> Value:
    while isinstance(value.node, OpNode) and len(value.node.inputs) == 1:
        name = type(value.node.op).op_name
        if name not in ("f32", "f64", "bf16", "f16", "to"):
            break
        value = value.node.inputs[0]
    return value


def analyse(program: Program, root: Module) -> tuple[Gradients, Backward]:
    """Return the backward analysis of the model's body; without an objective all results count."""
    aux: dict[str, tuple[bool, bool]] = {}
    reached: dict[int, tuple[bool, bool]] = {}
    if program.objective is None:
        aux = dict.fromkeys(program.aux, (True, True))
        reached = {id(stage.result): (True, True) for stage in program.stages}
    else:
        objective = Gradients({}).backward(program.objective, ((True, True),))
        stages = {stage.name: stage.result for stage in program.stages}
        for source, state in zip(program.objective_inputs, objective.inputs, strict=True):
            kind, _, name = source.partition(":")
            if kind == "aux":
                old = aux.get(name, (False, False))
                aux[name] = (old[0] or state[0], old[1] or state[1])
            elif kind == "stage":
                reached[id(stages[name])] = state
    gradients = Gradients(aux)
    return gradients, gradients.root(root, reached)


def unreached(body: Backward, prefix: str = "") -> Iterator[str]:
    """Yield the names of the parameters that get no gradient; ``*`` stands for every layer.

    What is shared is used several times, and is reached if one use is.
    """
    uses: dict[str, list[list[str]]] = {}
    for node in body.module.nodes:
        missed = list(unreached_by(body, node, prefix))
        uses.setdefault(node.attribute or str(id(node)), []).append(missed)
    for first, *others in uses.values():
        yield from (name for name in first if all(name in other for other in others))


def unreached_by(body: Backward, node: Node, prefix: str = "") -> Iterator[str]:
    """Yield the names of the parameters that get no gradient through one node of a module."""
    name = f"{prefix}{node.attribute}." if node.attribute else prefix
    if isinstance(node, OpNode):
        if not is_reached(body, node):
            specs = (s.name for s in node.op.parameters() if s.trainable)
            yield from (f"{name}{spec}".rstrip(".") for spec in specs)
    elif isinstance(node, LoopNode):
        layers = body.layers[id(node)]
        for inner in dict.fromkeys(layers):
            places = [str(i) for i, layer in enumerate(layers) if layer is inner]
            for place in ["*"] if len(places) == len(layers) else places:
                yield from unreached(inner, f"{name}{place}.")
    else:
        for inner in body.calls.get(id(node), ()):
            yield from unreached(inner, name)


def reached_elsewhere(body: Backward, node: Node) -> bool:
    """Whether what a node owns is shared, and all of it reached through other uses."""
    others = [n for n in body.module.nodes if n.attribute == node.attribute and n is not node]
    if not node.attribute or not others:
        return False
    missed = set(unreached_by(body, node))
    for other in others:
        missed &= set(unreached_by(body, other))
    return not missed


def is_trained(node: OpNode) -> bool:
    """Whether an operation owns a trainable parameter."""
    return any(spec.trainable for spec in node.op.parameters())


def is_reached(body: Backward, node: OpNode) -> bool:
    """Whether a gradient reaches what an operation owns."""
    return any(body.reached(value)[0] for value in node.outputs)
