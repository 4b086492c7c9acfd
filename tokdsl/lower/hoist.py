"""Hoisting: what depends only on token positions is computed once per forward, in the stage.

A rotary table or an attention mask is the same in every layer. Such values become inputs of the
modules that use them, and are computed where the tokens come in. Equal ones are computed once.
"""

from __future__ import annotations

from tokdsl.graph.program import SELECTION, CallNode, LoopNode, Module, Node, OpNode, Value
from tokdsl.ops.ambient import ClockOf, Constant, Reading
from tokdsl.types.tensors import Axis, ChunksType


def is_ambient(node: Node, ambient: set[int]) -> bool:
    """Whether a node depends on nothing but positions, validity and literals."""
    if not isinstance(node, OpNode) or node.op.parameters() or node.op.state() is not None:
        return False
    if node.op.random or node.op.decision:
        return False
    if not node.inputs:
        return node.op.ambient
    return all(id(v) in ambient for v in node.inputs)


class Hoister:
    """Moves ambient values out of modules, callees before callers."""

    def __init__(self) -> None:
        self._recipes: dict[int, list[Value]] = {}

    def hoist(self, root: Module) -> None:
        """Move ambient values of everything below a stage into the stage's body."""
        self._visit(root, root)

    def _visit(self, module: Module, root: Module) -> None:
        if id(module) in self._recipes:
            return
        self._recipes[id(module)] = []
        for called in list(module.modules()):
            self._visit(called, root)
        self._pull(module)
        if module is not root:
            self._push(module)
        drop_unused(module)

    # ----------------------------------------------------------------- from callees

    def _pull(self, module: Module) -> None:
        """Compute here what the called modules need from outside."""
        nodes: list[Node] = []
        copies: dict[object, Value] = {}
        keys: dict[int, object] = {}
        for node in module.nodes:
            if isinstance(node, CallNode):
                recipes = self._recipes.get(id(node.module), [])
                extra = [self._copy(v, module, nodes, copies, keys) for v in recipes]
                node.inputs = (*node.inputs, *extra)
            elif isinstance(node, LoopNode):
                self._pull_loop(node, module, nodes, copies, keys)
            nodes.append(node)
        module.nodes = nodes

    def _pull_loop(
        self,
        node: LoopNode,
        module: Module,
        nodes: list[Node],
        copies: dict[object, Value],
        keys: dict[int, object],
    ) -> None:
        """All bodies of a loop get the same inputs, so that one call fits every layer."""
        bodies = list(dict.fromkeys(node.modules))
        merged: dict[object, Value] = {}
        places: list[dict[object, Value]] = []
        for body in bodies:
            recipes = self._recipes.get(id(body), [])
            mine = {self._key(v, keys): (v, i) for i, v in enumerate(recipes)}
            start = len(body.inputs) - len(recipes)
            places.append({key: body.inputs[start + i] for key, (_, i) in mine.items()})
            for key, (value, _) in mine.items():
                merged.setdefault(key, value)
            del body.inputs[start:]
        for body, have in zip(bodies, places, strict=True):
            for key, value in merged.items():
                mine_value = have.get(key) or _formal(value, body)
                body.inputs.append(mine_value)
        extra = [self._copy(v, module, nodes, copies, keys) for v in merged.values()]
        node.inputs = (*node.inputs, *extra)

    def _key(self, value: Value, keys: dict[int, object]) -> object:
        """Return a key that is equal exactly for values computed in the same way."""
        found = keys.get(id(value))
        if found is None:
            node = value.node
            assert isinstance(node, OpNode)
            what: object = node.op
            if isinstance(node.op, Reading) and isinstance(node.op.axis, Axis):
                axis = node.op.axis  # its name differs between definitions
                width = (axis.window, axis.block, str(axis.size))
                memory = axis.memory and not isinstance(node.op, ClockOf)  # a clock has all keys
                what = (type(node.op), axis.clock, memory, *width)
            found = (what, value.index, tuple(self._key(v, keys) for v in node.inputs))
            keys[id(value)] = found
        return found

    def _copy(
        self,
        value: Value,
        module: Module,
        nodes: list[Node],
        copies: dict[object, Value],
        keys: dict[int, object],
    ) -> Value:
        key = self._key(value, keys)
        if key in copies:
            return copies[key]
        node = value.node
        assert isinstance(node, OpNode)
        inputs = tuple(self._copy(v, module, nodes, copies, keys) for v in node.inputs)
        outputs = tuple(
            Value(v.type, v.span, v.name, owner=module, python=v.python) for v in node.outputs
        )
        made = OpNode(inputs, outputs, node.span, op=node.op, operands=node.operands)
        for i, output in enumerate(outputs):
            output.node, output.index = made, i
            copies[(*key[:1], i, *key[2:])] = output  # type: ignore[index]
        nodes.append(made)
        return outputs[value.index]

    # ----------------------------------------------------------------- to callers

    def _push(self, module: Module) -> None:
        """Make the ambient values that this body uses its inputs."""
        ambient: set[int] = set()
        here = _clocks_made(module)
        blocked = module.kind == SELECTION  # conditions over pairs are made block by block
        for node in module.nodes:
            if blocked and node.inputs:
                continue
            if is_ambient(node, ambient) and not _reads(node, here):
                ambient.update(id(v) for v in node.outputs)
        wanted: dict[int, Value] = {}
        for node in module.nodes:
            if node.outputs and id(node.outputs[0]) in ambient:
                continue
            for value in node.inputs:
                self._want(value, ambient, wanted)
        for value in module.results:
            self._want(value, ambient, wanted)
        keys: dict[int, object] = {}
        inputs: dict[object, Value] = {}
        renamed: dict[int, Value] = {}
        for value in wanted.values():
            key = self._key(value, keys)
            if key not in inputs:
                formal = _formal(value, module)
                inputs[key] = formal
                module.inputs.append(formal)
                self._recipes[id(module)].append(value)
            renamed[id(value)] = inputs[key]
        for node in module.nodes:
            if not (node.outputs and id(node.outputs[0]) in ambient):
                node.inputs = tuple(renamed.get(id(v), v) for v in node.inputs)
        module.results = tuple(renamed.get(id(v), v) for v in module.results)

    def _want(self, value: Value, ambient: set[int], wanted: dict[int, Value]) -> None:
        node = value.node
        if id(value) in ambient and isinstance(node, OpNode) and not _literal(node):
            wanted[id(value)] = value


def _clocks_made(module: Module) -> set[str]:
    """Return the ragged clocks whose chunks a module has: their attributes are read there."""
    values = [*module.inputs, *(v for node in module.nodes for v in node.outputs)]
    return {
        v.type.coarse.clock.name
        for v in values
        if isinstance(v.type, ChunksType) and v.type.coarse.clock is not None
    }


def _reads(node: Node, clocks: set[str]) -> bool:
    """Whether a node reads an attribute of one of these clocks."""
    if not isinstance(node, OpNode) or not isinstance(node.op, Reading):
        return False
    axis = node.op.axis
    return isinstance(axis, Axis) and axis.clock is not None and axis.clock.name in clocks


def _formal(value: Value, module: Module) -> Value:
    """Return a fresh value that stands for another one in a module."""
    name = value.name
    if not name and isinstance(value.node, OpNode):
        op = value.node.op
        name = op.attribute if isinstance(op, Reading) else op.op_name
    return Value(value.type, value.span, name, owner=module, python=value.python)


def _literal(node: OpNode) -> bool:
    return isinstance(node.op, Constant)


def drop_unused(module: Module) -> None:
    """Remove nodes whose results nothing reads."""
    read = {id(v) for v in module.results}
    kept: list[Node] = []
    for node in reversed(module.nodes):
        if not node.outputs or any(id(v) in read for v in node.outputs) or _has_effect(node):
            kept.append(node)
            read.update(id(v) for v in node.inputs)
    module.nodes = kept[::-1]


def _has_effect(node: Node) -> bool:
    """Whether a node collects auxiliary values, so that it stays although its result is unread."""
    if isinstance(node, CallNode):
        return any(_has_effect(n) or not n.outputs for n in node.module.nodes)
    if isinstance(node, LoopNode):
        return any(not n.outputs for m in set(node.modules) for n in m.nodes)
    return False
