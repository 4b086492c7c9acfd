"""Which values stay the same through all decode steps of a model with more inputs than its stream.

A decoder reads one stream step by step. What depends on other inputs alone, such as the result of
an encoder or the keys that a decoder makes of it, is computed once and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum

from tokdsl.checks.causality import root_of
from tokdsl.graph.program import AuxNode, CallNode, LoopNode, Module, Node, OpNode, Value
from tokdsl.ops.ambient import Reading
from tokdsl.types.tensors import Axis, Clock


class Level(IntEnum):
    """What a value depends on; an operation has the highest level of its operands."""

    FREE = 0  # parameters and literals alone
    FIXED = 1  # inputs that are read once
    STREAMED = 2  # the tokens of the stream


Levels = tuple[Level, ...]


class Constancy:
    """The level of every value of the stages that are run in decode steps.

    A module has one level per input, the highest over its calls; calls whose operands are all
    fixed are left out, for they are made once.

    Args:
        clocks: the clocks of the stream.
    """

    def __init__(self, clocks: set[Clock]) -> None:
        self._clocks = clocks
        self._inputs: dict[int, list[Level]] = {}
        self._values: dict[int, Level] = {}
        self._alone: dict[tuple[int, Levels], Level] = {}

    def run(self, roots: Iterable[tuple[Module, Sequence[Level]]]) -> None:
        """Find the levels below these stages, each given with the levels of its inputs."""
        pairs = list(roots)
        while any([self._enter(module, levels) for module, levels in pairs]):
            pass

    def level(self, value: Value) -> Level:
        """Return the level of a value; one that no decode step meets is streamed."""
        return self._values.get(id(value), Level.STREAMED)

    def take(self, value: Value, other: Value) -> None:
        """Give a new value the level of another one."""
        self._values[id(value)] = self.level(other)

    def entered(self, module: Module) -> bool:
        """Whether decode steps run this module."""
        return id(module) in self._inputs

    def is_fixed(self, node: Node) -> bool:
        """Whether a node of a module that is run in steps depends on fixed inputs alone."""
        return bool(node.outputs) and all(self.level(v) is Level.FIXED for v in node.outputs)

    def kept(self, module: Module) -> list[Value]:
        """Return the fixed values that the steps of this module read, in order of evaluation."""
        inner = {id(v) for node in module.nodes if self.is_fixed(node) for v in node.outputs}
        readers = [node for node in module.nodes if not self.is_fixed(node)]
        read = {id(v) for node in readers for v in node.inputs} | {id(v) for v in module.results}
        return [v for node in module.nodes for v in node.outputs if id(v) in inner & read]

    # ----------------------------------------------------------------- levels

    def _enter(self, module: Module, levels: Sequence[Level]) -> bool:
        """Note a call of a module; return whether that raised a level somewhere."""
        old = self._inputs.get(id(module))
        new = list(levels) if old is None else [max(a, b) for a, b in zip(old, levels, strict=True)]
        self._inputs[id(module)] = new
        for value, level in zip(module.inputs, new, strict=True):
            self._values[id(value)] = level
        changed = new != old
        for node in module.nodes:
            changed |= self._node(node)
        return changed

    def _node(self, node: Node) -> bool:
        given = tuple(self.level(v) for v in node.inputs)
        level = self._result(node, given)
        for value in node.outputs:
            self._values[id(value)] = level
        if level is not Level.STREAMED:
            return False
        if isinstance(node, CallNode):
            return self._enter(node.module, given)
        if isinstance(node, LoopNode):
            changed = [self._enter(m, (level, *given[1:])) for m in dict.fromkeys(node.modules)]
            return any(changed)
        return False

    def _result(self, node: Node, given: Levels) -> Level:
        if isinstance(node, OpNode):
            return max((self._own(node), *given))
        if isinstance(node, CallNode):
            return self._of(node.module, given)
        if isinstance(node, LoopNode):
            level = given[0]
            for module in dict.fromkeys(node.modules):
                level = max(level, self._of(module, (level, *given[1:])))
            return level
        assert isinstance(node, AuxNode)
        return Level.STREAMED

    def _own(self, node: OpNode) -> Level:
        """Return the level of an operation without its operands: positions tick with a stream."""
        if isinstance(node.op, Reading):
            axis = node.op.axis
            clock = axis.clock if isinstance(axis, Axis) else None
            if clock is not None and root_of(clock) in self._clocks:
                return Level.STREAMED
        return Level.FREE

    def _of(self, module: Module, given: Levels) -> Level:
        """Return the level of the results of a call, whatever other calls there are."""
        key = (id(module), given)
        if key not in self._alone:
            inner = {id(v): level for v, level in zip(module.inputs, given, strict=True)}
            for node in module.nodes:
                level = self._result(node, tuple(inner[id(v)] for v in node.inputs))
                inner |= {id(v): level for v in node.outputs}
            self._alone[key] = max((inner[id(v)] for v in module.results), default=Level.FREE)
        return self._alone[key]
