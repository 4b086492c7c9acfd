"""Elaboration of a choice among tokens: `topk` over an index of an equation over pairs.

What is written over pairs of tokens becomes a module of its own, which is run on some queries at a
time, so that nothing is kept of all pairs. What it reads of the keys is kept between decode steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokdsl.graph.builder import Builder
from tokdsl.graph.frame import Frame
from tokdsl.graph.program import SELECTION, CallNode, Module, OpNode, Value
from tokdsl.ops.ambient import ClockOf, Constant, Reading, Rename
from tokdsl.ops.attend import Cache
from tokdsl.ops.base import Op, arguments
from tokdsl.ops.select import TopK
from tokdsl.ops.selected import Seen
from tokdsl.syntax import tree
from tokdsl.types.tensors import Axis, TensorType, ValueType


def select(
    builder: Builder,
    frame: Frame,
    inputs: dict[str, Value],
    values: dict[str, Any],
    node: tree.Call,
) -> tuple[Value, ...] | None:
    """Return the results of a `topk` over pairs, or None if it is not one."""
    x, where = inputs.get("x"), inputs.get("where")
    given = [v for v in (x, where) if v is not None and isinstance(v.type, TensorType)]
    axes = {axis.name: axis for value in given for axis in value.type.axes}
    key = axes.get(str(values.get("over")))
    if x is None or key is None or key.clock is None or key.pack:
        return None
    queries = [
        a for a in axes.values() if a.clock == key.clock and not a.memory and a.name != key.name
    ]
    if len(queries) != 1 or key.size.is_number:
        return None
    outline = Outline(builder, frame, queries[0], key, node)
    if not all(outline.can(value) for value in given):
        return None
    return outline.build(inputs, values)


class Outline:
    """A module with what an equation says of pairs of tokens."""

    def __init__(
        self, builder: Builder, frame: Frame, query: Axis, key: Axis, node: tree.Call
    ) -> None:
        self.builder = builder
        self.frame = frame
        self.query = query
        self.old = key
        self.key = key if key.memory else replace(key, memory=True)
        self.node = node
        self.name = frame.targets.get(id(node), "") or "selection"
        self.module = Module(f"{frame.module.name}_{self.name}", SELECTION, node.span)
        self.module.statics = {"query": self.query, "key": self.key}
        self.module.doc = "Which tokens each token chooses."
        self.inner = Frame(
            self.module,
            frame.file,
            stack=None,
            trace=frame.trace,
            active=frame.active,
            symbolic=frame.symbolic,
        )
        self.outer: list[Value] = []
        self._formal: dict[int, Value] = {}
        self._done: dict[int, tuple[Value, ...]] = {}
        self._clock: Value | None = None

    # ----------------------------------------------------------------- whether it can be done

    def can(self, value: Value) -> bool:
        """Return whether a value over pairs can be computed for some queries alone."""
        names = {axis.name for axis in value.type.axes}
        node = value.node
        if not {self.query.name, self.old.name} <= names:
            return self.old.name not in names or self.old.memory or self._can_keep(value)
        if not isinstance(node, OpNode) or not _is_plain(node.op):
            return False
        for _, kind in node.op.operand_types():
            inner = {axis.name for axis in kind.axes}
            if self.old.name in inner and not self._goes_along(node.op) and self._mixes(node.op):
                return False
        return all(
            self.can(v)
            for name, v in zip(node.operands, node.inputs, strict=True)
            if not _is_companion(node.op, name)
        )

    def _can_keep(self, value: Value) -> bool:
        """Return whether a value of the keys alone can be kept between steps."""
        node = value.node
        if not isinstance(node, OpNode):
            return False
        if isinstance(node.op, Reading | Constant | Rename):
            return True
        others = [v for v in node.inputs if any(a.name == self.old.name for a in v.type.axes)]
        return node.op.elementwise and all(self._can_keep(v) for v in others)

    def _mixes(self, op: Op) -> bool:
        return any(axis.name in (self.old.name, self.query.name) for axis in op.mixed())

    def _goes_along(self, op: Op) -> bool:
        """Return whether an operation goes over the keys, under a condition that can be given."""
        over = getattr(op, "over", None)
        names = (over,) if isinstance(over, str) else tuple(over or ())
        return names == (self.old.name,) and any(a.name == "where" for a in arguments(type(op)))

    # ----------------------------------------------------------------- the module

    def build(self, inputs: dict[str, Value], values: dict[str, Any]) -> tuple[Value, ...]:
        """Add the call of the module; return values and indices."""
        given = {name: self._value(v) for name, v in inputs.items() if name in ("x", "where")}
        given["where"] = self._seen(given.get("where"))
        if "among" in inputs:
            given["among"] = self._input(inputs["among"])
        kinds: dict[str, Any] = {name: v.type for name, v in given.items()}
        op = TopK(**kinds, **values)
        span = self.node.span
        results = self.builder.apply(self.inner, op, given, span, self.node)
        self.module.results = results
        outputs = tuple(Value(v.type, span) for v in results)
        if self.name != "selection":
            outputs[1].name = results[1].name = self.name
        attribute = self.frame.attribute(self.name)
        call = CallNode(tuple(self.outer), outputs, span, attribute, module=self.module)
        self.builder.add(self.frame, call)
        return outputs

    def _value(self, value: Value) -> Value:
        """Return a value as seen from the module."""
        names = {axis.name for axis in value.type.axes}
        node = value.node
        pair = {self.query.name, self.old.name} <= names
        if isinstance(node, OpNode) and (pair or _is_ambient(value)):
            if id(node) not in self._done:
                self._done[id(node)] = self._copy(node)
            return self._done[id(node)][value.index]
        return self._input(self._kept(value) if self.old.name in names else value)

    def _copy(self, node: OpNode) -> tuple[Value, ...]:
        op = node.op
        if isinstance(op, Reading):
            axis = self.key if _names(op.axis) == self.old.name else op.axis
            op = type(op)(axis=axis)
            return self.builder.apply(self.inner, op, {}, node.span)
        inputs = {
            name: self._value(v)
            for name, v in zip(node.operands, node.inputs, strict=True)
            if not _is_companion(op, name)
        }
        if self._goes_along(op):
            inputs["where"] = self._seen(inputs.get("where"))
        op = retyped(op, {name: v.type for name, v in inputs.items()})
        outputs = self.builder.apply(self.inner, op, inputs, node.span)
        for old, new in zip(node.outputs, outputs, strict=True):
            new.name = old.name
        return outputs

    def _seen(self, where: Value | None) -> Value:
        """Return a condition with padding and other documents left out."""
        span = self.node.span
        if self._clock is None:
            self._clock = self.builder.apply(self.inner, ClockOf(axis=self.key), {}, span)[0]
        inputs = ({} if where is None else {"where": where}) | {"clock": self._clock}
        kinds = {name: v.type for name, v in inputs.items()}
        op = Seen(**kinds, query=self.query, key=self.key)
        return self.builder.apply(self.inner, op, inputs, span)[0]

    def _input(self, value: Value) -> Value:
        value = self.builder.localize(self.frame, value)
        formal = self._formal.get(id(value))
        if formal is None:
            name = _name_of(value)
            formal = Value(value.type, value.span, name, owner=self.module, python=value.python)
            self._formal[id(value)] = formal
            self.outer.append(value)
            self.module.inputs.append(formal)
        return formal

    # ----------------------------------------------------------------- what is kept of the keys

    def _kept(self, value: Value) -> Value:
        """Return a value of the keys, of all tokens so far."""
        node = value.node
        if self.old.memory or not isinstance(node, OpNode):
            return value
        if id(node) in self._done:
            return self._done[id(node)][value.index]
        if isinstance(node.op, Rename):
            made = self._renamed(node, node.op)
        else:
            inputs = {
                name: self._kept(v) if any(a.name == self.old.name for a in v.type.axes) else v
                for name, v in zip(node.operands, node.inputs, strict=True)
            }
            op = retyped(node.op, {name: v.type for name, v in inputs.items()})
            made = self.builder.apply(self.frame, op, inputs, node.span)
        self._done[id(node)] = made
        return made[value.index]

    def _renamed(self, node: OpNode, op: Rename) -> tuple[Value, ...]:
        source = node.inputs[0]
        own = next(a for a in source.type.axes if a.name == op.old)
        if not own.memory:
            source = kept(self.builder, self.frame, source, self.node)
        old = next(a.name for a in source.type.axes if a.memory)
        op = Rename(x=source.type, old=old, axis=self.key)
        return self.builder.apply(self.frame, op, {"x": source}, node.span)


def kept(builder: Builder, frame: Frame, value: Value, node: tree.Node) -> Value:
    """Return a value of all tokens so far; what is kept already is not kept twice."""
    value = builder.localize(frame, value, node.span)
    key = (id(frame.module), id(value))
    found = builder.kept.get(key)
    if found is None or found[0] is not value:
        attribute = frame.attribute(f"{value.name or 'index'}_kept")
        made = builder.apply(
            frame, Cache(x=value.type), {"x": value}, node.span, attribute=attribute
        )
        made[0].name = value.name
        found = builder.kept[key] = (value, made[0])
    return found[1]


def retyped(op: Op, kinds: dict[str, ValueType]) -> Op:
    """Return the same operation on operands of other types, without its companions."""
    fields: dict[str, Any] = {name: getattr(op, name) for name in op._names}
    for spec in arguments(type(op)):
        if spec.kind == "companion":
            fields[spec.name] = None
        elif spec.kind == "operands":
            prefix = f"{spec.name}_"
            fields[spec.name] = tuple(k for n, k in kinds.items() if n.startswith(prefix))
        elif spec.kind == "operand":
            fields[spec.name] = kinds.get(spec.name)
    return type(op)(**fields)


def _is_plain(op: Op) -> bool:
    random = op.random or bool(op.parameters()) or op.state() is not None
    return not random and "clock" not in op.hidden and not op.decision


def _is_companion(op: Op, name: str) -> bool:
    return any(a.name == name and a.kind == "companion" for a in arguments(type(op)))


def _is_ambient(value: Value) -> bool:
    """Whether a value follows from positions and literals alone."""
    node = value.node
    if not isinstance(node, OpNode) or not _is_plain(node.op):
        return False
    return node.op.ambient if not node.inputs else all(_is_ambient(v) for v in node.inputs)


def _name_of(value: Value) -> str:
    """Return the name of a value, or of what it is a view of."""
    while not value.name and isinstance(value.node, OpNode) and len(value.node.inputs) == 1:
        value = value.node.inputs[0]
    return value.name


def _names(axis: object) -> str:
    return axis.name if isinstance(axis, Axis) else ""


__all__ = ["kept", "retyped", "select"]
