"""Inlining: calls of definitions that own nothing become part of their caller.

Requires a checked program; ensures that every remaining call and loop owns parameters or state.
"""

from __future__ import annotations

from tokdsl.graph.definitions import owns, parameters_of
from tokdsl.graph.program import AuxNode, CallNode, LoopNode, Module, Node, OpNode, Value

Map = dict[int, Value]


class Inliner:
    """Copies modules with the calls that own nothing replaced by their bodies.

    Args:
        states: whether a state counts, so that what has one stays: not in an objective.
    """

    def __init__(self, states: bool = True) -> None:
        self._states = states
        self._done: dict[int, Module] = {}

    def module(self, source: Module) -> Module:
        """Return the inlined copy of a module; the same object for the same module."""
        if id(source) not in self._done:
            self._done[id(source)] = self._copy(source)
        return self._done[id(source)]

    def _copy(self, source: Module) -> Module:
        target = Module(source.name, source.kind, source.span, stack=source.stack)
        target.statics, target.doc = source.statics, source.doc
        values: Map = {}
        for value in source.inputs:
            copy = Value(value.type, value.span, value.name, owner=target, python=value.python)
            values[id(value)] = copy
            target.inputs.append(copy)
        self._body(source, values, target)
        target.results = tuple(values[id(v)] for v in source.results)
        return target

    def _body(self, source: Module, values: Map, target: Module) -> None:
        for node in source.nodes:
            if isinstance(node, CallNode) and not self._owns(node.module):
                self._inline(node.module, node, values, target)
            elif isinstance(node, LoopNode) and not any(owns(m) for m in set(node.modules)):
                self._unroll(node, values, target)
            else:
                self._node(node, values, target)

    def _owns(self, module: Module) -> bool:
        return owns(module) if self._states else bool(parameters_of(module))

    def _inline(self, module: Module, node: CallNode, values: Map, target: Module) -> None:
        inner: Map = {
            id(formal): values[id(actual)]
            for formal, actual in zip(module.inputs, node.inputs, strict=True)
        }
        self._body(module, inner, target)
        for result, value in zip(module.results, node.outputs, strict=True):
            made = inner[id(result)]
            if value.name:
                made.name = value.name
            values[id(value)] = made

    def _unroll(self, node: LoopNode, values: Map, target: Module) -> None:
        stream = values[id(node.inputs[0])]
        for module in node.modules:
            inner: Map = {id(module.inputs[0]): stream}
            for formal, actual in zip(module.inputs[1:], node.inputs[1:], strict=True):
                inner[id(formal)] = values[id(actual)]
            self._body(module, inner, target)
            stream = inner[id(module.results[0])]
        values[id(node.outputs[0])] = stream

    def _node(self, node: Node, values: Map, target: Module) -> None:
        inputs = tuple(values[id(v)] for v in node.inputs)
        outputs = tuple(
            Value(v.type, v.span, v.name, owner=target, python=v.python) for v in node.outputs
        )
        copy: Node
        if isinstance(node, OpNode):
            copy = OpNode(
                inputs,
                outputs,
                node.span,
                node.attribute,
                op=node.op,
                operands=node.operands,
                stack=node.stack,
            )
        elif isinstance(node, CallNode):
            called = self.module(node.module)
            copy = CallNode(
                inputs, outputs, node.span, node.attribute, module=called, shared=node.shared
            )
        elif isinstance(node, LoopNode):
            modules = tuple(self.module(m) for m in node.modules)
            copy = LoopNode(inputs, outputs, node.span, node.attribute, modules=modules)
        else:
            assert isinstance(node, AuxNode)
            copy = AuxNode(inputs, outputs, node.span, node.attribute, name=node.name)
        for i, (old, new) in enumerate(zip(node.outputs, outputs, strict=True)):
            new.node, new.index = copy, i
            values[id(old)] = new
        target.nodes.append(copy)
