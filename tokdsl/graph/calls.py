"""Calls: which argument goes where, for primitives, definitions and partial applications."""

from __future__ import annotations

from collections.abc import Mapping

from tokdsl.diagnostics import Label
from tokdsl.graph import statics
from tokdsl.graph.arguments import OPERAND_KINDS, Arguments, Given, describe, op_owns, rank
from tokdsl.graph.builder import Poison
from tokdsl.graph.frame import Frame
from tokdsl.graph.program import OpNode, Value
from tokdsl.graph.statics import AbstractClosure, Closure, StaticError, Unknown
from tokdsl.ops.base import Argument, Fault, Op, arguments
from tokdsl.resolve.modules import DefinitionRef
from tokdsl.syntax import tree
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, RouteType, UnknownType


class Calls(Arguments):
    """Binding and dispatch of calls."""

    def call(self, frame: Frame, node: tree.Call) -> object:
        """Return the value of a call: tensors, a static value or a closure."""
        if isinstance(node.function, tree.Name):
            name = node.function.id
            if frame.find(name) is None and frame.file.find(name) is None:
                if name == "each":
                    from tokdsl.graph.experts import ExpertsBuilder

                    return ExpertsBuilder(self, frame, node).build()
                if name in ("position", "valid"):
                    return self._ambient(frame, name, node)
                if name in statics.STATIC_CALLS:
                    folded = self._static_call(frame, name, node)
                    if folded is not None:
                        return folded[0]
                if name not in self.ops:
                    self.lookup(frame, node.function)
        target = self._callee(frame, node)
        try:
            return self.call_closure(frame, target, node)
        finally:
            for argument in node.operands:
                frame.evaluated.pop(id(argument.value), None)

    def _callee(self, frame: Frame, node: tree.Call) -> Closure | AbstractClosure:
        target = self._called(frame, node.function)
        if isinstance(target, (Closure, AbstractClosure)):
            return target
        if isinstance(target, Unknown):
            raise Poison
        raise self.fail(
            frame,
            "not-callable",
            node.function.span,
            f"`{node.function.span.text}` is {describe(target)}, not a definition",
        )

    def _called(self, frame: Frame, node: tree.Expression) -> object:
        """Return what is called; a local tensor does not hide a definition of the same name."""
        if isinstance(node, tree.Name):
            local = frame.find(node.id)
            if local is not None and isinstance(local.value, (Value, Dim)):
                found = frame.file.find(node.id) or self.ops.get(node.id)
                if isinstance(found, (DefinitionRef, type)):
                    return Closure(found, (), (), node.span)
        return self.evaluate(frame, node)

    def _ambient(self, frame: Frame, name: str, node: tree.Call) -> Value:
        """``position(T)`` and ``valid(T)``: attributes of the tokens along a token axis."""
        from tokdsl.ops.ambient import Position, Valid

        if len(node.operands) != 1 or not isinstance(node.operands[0].value, tree.Name):
            raise self.fail(
                frame,
                "missing-argument",
                node.span,
                f"`{name}` takes the name of a token axis: `{name}(T)`",
            )
        wanted = node.operands[0].value
        axis = self.token_axis(frame, wanted.id, wanted)
        cls = Position if name == "position" else Valid
        return self.apply(frame, cls(axis=axis), {}, node.span)[0]

    def token_axis(self, frame: Frame, name: str, node: tree.Node) -> Axis:
        """Return the token axis of that name among the values of this body.

        Raises:
            Poison: if there is none (reported).
        """
        if name in frame.indices:
            return frame.indices[name]
        values = [*frame.module.inputs, *(v for n in frame.module.nodes for v in n.outputs)]
        if isinstance(frame.stream, Value):
            # streams of two clocks may call their axes alike: the current one is meant
            values.insert(0, frame.stream)
        for value in values:
            for axis in value.type.axes:
                if axis.name == name and (axis.clock is not None or axis.pack):
                    return axis
        raise self.fail(frame, "unknown-axis", node.span, f"no token axis `{name}` here")

    @property
    def ops(self) -> Mapping[str, type[Op]]:
        """The primitives that a program may name."""
        from tokdsl.ops import WRITTEN

        return WRITTEN

    def _static_call(self, frame: Frame, name: str, node: tree.Call) -> tuple[object] | None:
        """Return the folded call in a tuple if all arguments are static, else None.

        A tensor among them keeps its value for the call itself: it must not be computed twice.
        """
        if node.statics or any(a.name or a.axis for a in node.operands) or not node.operands:
            return None
        values = [self.evaluate(frame, a.value) for a in node.operands]
        if any(isinstance(v, Value) for v in values):
            kept = zip(node.operands, values, strict=True)
            frame.evaluated.update({id(a.value): v for a, v in kept if isinstance(v, Value)})
            return None
        try:
            return (statics.call(name, values),)
        except StaticError as error:
            raise self.fail(frame, "static-value", node.span, str(error)) from None

    def call_closure(
        self, frame: Frame, closure: Closure | AbstractClosure, node: tree.Call
    ) -> object:
        """Return the result of calling a closure with a call's arguments."""
        if isinstance(closure, AbstractClosure):
            return self._abstract(frame, closure, node)
        if isinstance(closure.target, DefinitionRef):
            return self._call_definition(frame, closure, closure.target, node)
        return self._call_op(frame, closure, closure.target, node)

    # ----------------------------------------------------------------- unknown definitions

    def _abstract(self, frame: Frame, closure: AbstractClosure, node: tree.Call) -> object:
        """A call of a definition parameter whose argument is not known: assume its kind's type."""
        values = [self.evaluate(frame, a.value) for a in node.operands if a.axis is None]
        first = next((v for v in values if isinstance(v, Value)), None)
        if first is None:
            return closure
        if closure.kind == "router":
            return Value(UnknownType(), node.span)
        return Value(first.type, node.span, node=first.node)

    # ----------------------------------------------------------------- primitives

    def _call_op(self, frame: Frame, closure: Closure, cls: type[Op], node: tree.Call) -> object:
        given = self._sort(frame, node)
        inputs: dict[str, Value] = dict(closure.operands)
        values: dict[str, object] = dict(closure.statics)
        fields = {a.name: a for a in arguments(cls) if a.name not in cls.hidden}
        for name, argument in given.named.items():
            spec = fields.get(name)
            if spec is None:
                axes = next((a for a in fields.values() if a.kind == "new_axes"), None)
                raise self._unknown_argument(frame, cls.op_name, name, argument, fields, axes)
            if spec.kind in OPERAND_KINDS:
                index = name in ("select", "among")
                operand = self._operand(frame, argument.value, spec.optional, index)
                if operand is not None:
                    inputs[name] = operand
            else:
                values[name] = self._op_static(frame, spec, argument.value)
        self._op_positional(frame, cls, node, given, inputs, values)
        missing = self._missing(cls, inputs, values)
        if missing is not None and missing.kind in OPERAND_KINDS and not inputs:
            return Closure(cls, tuple(values.items()), (), node.span, closure.shared, closure.home)
        if missing is not None:
            raise self.fail(
                frame,
                "missing-argument",
                node.span,
                f"`{cls.op_name}` needs `{missing.name}`",
                help=f"write `{cls.op_name}(...; {missing.name} = ...)`",
            )
        return self.finish_op(frame, cls, inputs, values, node, closure)

    def _operand(
        self, frame: Frame, node: tree.Expression, optional: bool, index: bool = False
    ) -> Value | None:
        value = self.evaluate(frame, node)
        if index and isinstance(value, tuple) and len(value) == 2:
            value = value[1]  # of the results of `topk` the indices
        if value is None and optional:
            return None
        if value is None:
            raise self.fail(frame, "no-value", node.span, "`none` is not a tensor")
        return self.tensor(frame, value, node)

    def _op_positional(
        self,
        frame: Frame,
        cls: type[Op],
        node: tree.Call,
        given: Given,
        inputs: dict[str, Value],
        values: dict[str, object],
    ) -> None:
        operand_slots = [a for a in arguments(cls) if a.kind in ("operand", "operands")]
        settable = [a for a in arguments(cls) if a.name not in cls.hidden]
        static_slots = [a for a in settable if a.kind not in OPERAND_KINDS]
        free_operands = [a for a in operand_slots if a.name not in inputs]
        free_statics = [a for a in static_slots if a.name not in values]
        if not operand_slots:
            given.after[:0], given.before[:] = given.before, []
        for argument in given.before:
            as_operand = self._is_operand(frame, cls, node, argument, free_operands)
            if as_operand is not None:
                self._take_operand(frame, cls, argument, as_operand, free_operands, inputs)
            else:
                given.after.append(argument)
        for argument in given.after:
            if not free_statics:
                raise self._too_many(frame, cls.op_name, argument)
            self._take_static(frame, argument, free_statics, values)

    def _is_operand(
        self,
        frame: Frame,
        cls: type[Op],
        node: tree.Call,
        argument: tree.Argument,
        free: list[Argument],
    ) -> Value | None:
        """Return the operand's value, or None if the argument is a static one."""
        if argument.axis is not None:
            return None
        if node.separated or (cls.elementwise and free):
            value = self.evaluate(frame, argument.value)
            if isinstance(value, Value) or node.separated or value is not None:
                return self.tensor(frame, value, argument.value)
            return None
        if isinstance(argument.value, tree.Name):
            local = frame.find(argument.value.id)
            if local is not None and not isinstance(local.value, Value):
                return None
        if isinstance(argument.value, (tree.Lambda, tree.Number, tree.String, tree.Star)):
            return None
        value = self.evaluate(frame, argument.value)
        return value if isinstance(value, Value) else None

    def _take_operand(
        self,
        frame: Frame,
        cls: type[Op],
        argument: tree.Argument,
        value: Value,
        free: list[Argument],
        inputs: dict[str, Value],
    ) -> None:
        if not free:
            raise self._too_many(frame, cls.op_name, argument)
        spec = free[0]
        if spec.kind == "operands":
            index = sum(1 for name in inputs if name.startswith(spec.name + "_"))
            inputs[f"{spec.name}_{index}"] = value
        else:
            inputs[spec.name] = value
            free.pop(0)

    def _take_static(
        self,
        frame: Frame,
        argument: tree.Argument,
        free: list[Argument],
        values: dict[str, object],
    ) -> None:
        if argument.axis is not None:
            spec = next((a for a in free if a.kind in ("new_axis", "new_axes")), free[0])
        else:
            spec = free[0]
        if spec.kind in ("new_axes", "axes", "sizes"):
            more = self._op_static(frame, spec, argument.value, argument.axis)
            have = values.get(spec.name, ())
            assert isinstance(have, tuple) and isinstance(more, tuple)
            values[spec.name] = (*have, *more)
            free[:] = [spec, *(a for a in free if a is not spec)]
        else:
            values[spec.name] = self._op_static(frame, spec, argument.value, argument.axis)
            free.remove(spec)
            free[:] = [a for a in free if a.name not in values]

    def finish_op(
        self,
        frame: Frame,
        cls: type[Op],
        inputs: dict[str, Value],
        values: dict[str, object],
        node: tree.Call,
        closure: Closure | None = None,
    ) -> object:
        """Build the operation from bound arguments and add it."""
        if any(spec.kind == "predicate" for spec in arguments(cls)):
            from tokdsl.graph.attention import AttentionBuilder

            return AttentionBuilder(self, frame, inputs, values, node).build()
        if cls.op_name == "topk":
            from tokdsl.graph.selection import select

            chosen = select(self, frame, inputs, values, node)
            if chosen is not None:
                return chosen
        if "rows" in cls.hidden:
            values["rows"] = self.rows_before(frame)
        if "clock" in cls.hidden:
            values["clock"] = self.new_clock(frame.targets.get(id(node), ""))
        for spec in arguments(cls):
            if spec.kind == "companion" and spec.name not in inputs:
                found = self.companion(frame, spec.name, list(inputs.values()))
                if found is not None:
                    inputs[spec.name] = found
        data: dict[str, object] = dict(values)
        for spec in arguments(cls):
            if spec.kind == "operands":
                data[spec.name] = tuple(
                    v.type for k, v in inputs.items() if k.startswith(spec.name + "_")
                )
            elif spec.kind in OPERAND_KINDS and spec.name in inputs:
                data[spec.name] = inputs[spec.name].type
        order = [a.name for a in arguments(cls) if a.kind in OPERAND_KINDS]
        ordered = dict(sorted(inputs.items(), key=lambda item: rank(item[0], order)))
        op = cls(**data)
        if any(isinstance(v.type, UnknownType) for v in inputs.values()):
            raise Poison
        try:
            op.type()
        except Fault as fault:
            raise self.fault(frame, fault, node.span, node) from None
        unread = ["valid"] if "valid" in ordered and not op.wants_valid() else []
        if "starts" in ordered and not op.mixes(ordered["starts"].type):
            unread.append("starts")
        for name in unread:
            del ordered[name], data[name]
        op = cls(**data) if unread else op
        attribute = ""
        if op_owns(op):
            attribute = self._attribute_for(frame, closure, cls.op_name, node)
        if closure is not None and closure.shared:
            first = frame.shared.setdefault(closure.shared, op.parameters())
            if first != op.parameters():
                raise self.fail(
                    frame,
                    "shared-mismatch",
                    node.span,
                    f"the shared `{closure.shared}` is used on another type than before",
                )
        results = self.apply(frame, op, ordered, node.span, node, attribute)
        self.note_companions(frame, results, cls.companions)
        if frame.stack is not None and cls.per_row:
            return self.per_row(frame, results[0])
        return results[0] if len(results) == 1 or cls.companions else results

    def rows_before(self, frame: Frame) -> int:
        """Return how many operations of this body made rows: the number of the next one."""
        made = (n for n in frame.module.nodes if isinstance(n, OpNode) and "rows" in n.op.hidden)
        return sum(1 for _ in made)

    def note_companions(
        self, frame: Frame, results: tuple[Value, ...], names: tuple[str, ...]
    ) -> None:
        """Remember the hidden results of an operation by the rows that it made."""
        for axis in results[0].type.axes:
            if axis.group is not None and names:
                key = (id(results[0].owner), str(axis.size))
                self.companions[key] = dict(zip(names, results[1:], strict=True))

    def shared_name(self, frame: Frame, closure: Closure, node: tree.Node | None) -> str:
        """Return the name of a shared instance, if it is owned by this body.

        Raises:
            Poison: if it is owned by another body (reported).
        """
        if closure.home is not frame.module:
            raise self.fail(
                frame,
                "shared-elsewhere",
                node.span if node is not None else closure.span,
                f"the shared `{closure.shared}` belongs to another body",
                labels=(Label(closure.span, "shared here"),),
                help="use it where it is shared, or in a `repeat` there",
            )
        return closure.shared

    def _attribute_for(
        self, frame: Frame, closure: Closure | None, fallback: str, node: tree.Node | None
    ) -> str:
        """Return the name of what this call owns: the equation's, or the callee's."""
        if closure is not None and closure.shared:
            return self.shared_name(frame, closure, node)
        return frame.attribute(frame.targets.pop(id(node), fallback))

    # ----------------------------------------------------------------- definitions

    def _call_definition(
        self, frame: Frame, closure: Closure, target: DefinitionRef, node: tree.Call
    ) -> object:
        given = self._sort(frame, node)
        definition = target.definition
        operand_names = [o.name for o in definition.operands]
        parameter_names = [p.name for p in definition.parameters]
        operands: dict[str, Value | None] = dict(closure.operands)
        values: dict[str, object] = dict(closure.statics)
        spans: dict[str, tree.Node] = {}
        for name, argument in given.named.items():
            if name in operand_names:
                value = self.evaluate(frame, argument.value)
                operands[name] = (
                    None if value is None else self.tensor(frame, value, argument.value)
                )
            elif name in parameter_names:
                values[name] = self._parameter_value(frame, target, name, argument.value)
                spans[name] = argument
            else:
                known = {n: None for n in (*operand_names, *parameter_names)}
                raise self._unknown_argument(frame, target.name, name, argument, known, None)
        self._positional(frame, target, node, given, operands, values)
        if not any(isinstance(v, Value) for v in operands.values()) and definition.operands:
            first = definition.operands[0]
            if first.name not in operands:
                return Closure(
                    target, tuple(values.items()), (), node.span, closure.shared, closure.home
                )
        first_missing = definition.operands and definition.operands[0].name not in operands
        if first_missing:
            kept = tuple((k, v) for k, v in operands.items() if v is not None)
            return Closure(
                target, tuple(values.items()), kept, node.span, closure.shared, closure.home
            )
        return self.instantiate(frame, target, operands, values, node, closure)

    def _positional(
        self,
        frame: Frame,
        target: DefinitionRef,
        node: tree.Call,
        given: Given,
        operands: dict[str, Value | None],
        values: dict[str, object],
    ) -> None:
        definition = target.definition
        free_operands = [o.name for o in definition.operands if o.name not in operands]
        free_values = [p.name for p in definition.parameters if p.name not in values]
        rest: list[tree.Argument] = []
        for argument in given.before:
            if argument.axis is None:
                if not node.separated and isinstance(argument.value, tree.Lambda):
                    rest.append(argument)
                    continue
                value = self.evaluate(frame, argument.value)
                if isinstance(value, Value) or node.separated:
                    if not free_operands:
                        raise self._too_many(frame, target.name, argument)
                    operands[free_operands.pop(0)] = (
                        None if value is None else self.tensor(frame, value, argument.value)
                    )
                    continue
            rest.append(argument)
        for argument in (*rest, *given.after):
            if not free_values:
                raise self._too_many(frame, target.name, argument)
            name = argument.axis if argument.axis in free_values else free_values[0]
            assert name is not None
            free_values.remove(name)
            values[name] = self._parameter_value(frame, target, name, argument.value)

    def _parameter_value(
        self, frame: Frame, target: DefinitionRef, name: str, node: tree.Expression
    ) -> object:
        parameter = next(p for p in target.definition.parameters if p.name == name)
        return self.parameter_value(frame, parameter, node)

    # ----------------------------------------------------------------- partial applications

    def apply_closure(
        self, frame: Frame, closure: Closure, value: Value, node: tree.Node
    ) -> object:
        """Return a partial application applied to the stream."""
        if isinstance(closure.target, DefinitionRef):
            first = closure.target.definition.operands
            if not first:
                raise self.fail(frame, "no-value", node.span, f"`{closure.name}` takes no tensor")
            operands: dict[str, Value | None] = {first[0].name: value, **dict(closure.operands)}
            return self.instantiate(
                frame, closure.target, operands, dict(closure.statics), node, closure
            )
        cls = closure.target
        slot = next((a for a in arguments(cls) if a.kind in ("operand", "operands")), None)
        if slot is None:
            raise self.fail(frame, "no-value", node.span, f"`{closure.name}` takes no tensor")
        key = slot.name if slot.kind == "operand" else f"{slot.name}_0"
        inputs = {key: value, **dict(closure.operands)}
        values = dict(closure.statics)
        missing = self._missing(cls, inputs, values)
        if missing is not None:
            raise self.fail(
                frame, "missing-argument", node.span, f"`{cls.op_name}` needs `{missing.name}`"
            )
        call = (
            node
            if isinstance(node, tree.Call)
            else tree.Call(node.span, tree.Name(node.span, cls.op_name), (), ())
        )
        return self.finish_op(frame, cls, inputs, values, call, closure)

    # ----------------------------------------------------------------- shared parts


__all__ = ["Calls", "RouteType"]
