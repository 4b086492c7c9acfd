"""Calls: which argument goes where, for primitives, definitions and partial applications."""

from __future__ import annotations

from dataclasses import dataclass

from tokdsl.diagnostics import did_you_mean
from tokdsl.graph import statics
from tokdsl.graph.builder import Poison
from tokdsl.graph.expressions import Expressions
from tokdsl.graph.frame import Frame
from tokdsl.graph.program import Value
from tokdsl.graph.statics import AbstractClosure, Closure, StaticError, Unknown
from tokdsl.ops.base import Argument, AxisRef, Fault, NewAxis, Op, arguments
from tokdsl.resolve.modules import DefinitionRef
from tokdsl.syntax import tree
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, RouteType, UnknownType

OPERAND_KINDS = ("operand", "operands", "companion")
AXIS_KINDS = ("axis", "axes", "new_axis", "new_axes")


@dataclass
class Given:
    """The arguments of a call sorted by how they were written, not yet evaluated."""

    before: list[tree.Argument]
    after: list[tree.Argument]
    named: dict[str, tree.Argument]


class Calls(Expressions):
    """Binding and dispatch of calls."""

    def call(self, frame: Frame, node: tree.Call) -> object:
        """Return the value of a call: tensors, a static value or a closure."""
        if isinstance(node.function, tree.Name):
            name = node.function.id
            if frame.find(name) is None and frame.file.find(name) is None:
                if name == "each":
                    return self._each(frame, node)
                if name in ("position", "valid"):
                    return self._ambient(frame, name, node)
                if name in statics.STATIC_CALLS:
                    folded = self._static_call(frame, name, node)
                    if folded is not None:
                        return folded[0]
                if name not in self.ops:
                    self.lookup(frame, node.function)
        target = self._callee(frame, node)
        return self.call_closure(frame, target, node)

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
            f"`{node.function.span.text}` is {statics.type_name(target)}, not a definition",
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
        for value in (*frame.module.inputs, *(v for n in frame.module.nodes for v in n.outputs)):
            for axis in value.type.axes:
                if axis.name == name and (axis.clock is not None or axis.pack):
                    return axis
        raise self.fail(frame, "unknown-axis", node.span, f"no token axis `{name}` here")

    @property
    def ops(self) -> dict[str, type[Op]]:
        """Every primitive by name."""
        from tokdsl.ops import OPS

        return OPS

    def _static_call(self, frame: Frame, name: str, node: tree.Call) -> tuple[object] | None:
        """Return the folded call in a tuple if all arguments are static, else None."""
        if node.statics or any(a.name or a.axis for a in node.operands) or not node.operands:
            return None
        values = [self.evaluate(frame, a.value) for a in node.operands]
        if any(isinstance(v, Value) for v in values):
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

    def _call_op(
        self, frame: Frame, closure: Closure, cls: type[Op], node: tree.Call
    ) -> object:
        given = self._sort(frame, node)
        inputs: dict[str, Value] = dict(closure.operands)
        values: dict[str, object] = dict(closure.statics)
        fields = {a.name: a for a in arguments(cls)}
        for name, argument in given.named.items():
            spec = fields.get(name)
            if spec is None:
                axes = next((a for a in fields.values() if a.kind == "new_axes"), None)
                raise self._unknown_argument(frame, cls.op_name, name, argument, fields, axes)
            if spec.kind in OPERAND_KINDS:
                operand = self._operand(frame, argument.value, spec.optional)
                if operand is not None:
                    inputs[name] = operand
            else:
                values[name] = self._op_static(frame, spec, argument.value)
        self._op_positional(frame, cls, node, given, inputs, values)
        missing = self._missing(cls, inputs, values)
        if missing is not None and missing.kind in OPERAND_KINDS and not inputs:
            return Closure(cls, tuple(values.items()), (), node.span, closure.shared)
        if missing is not None:
            raise self.fail(
                frame,
                "missing-argument",
                node.span,
                f"`{cls.op_name}` needs `{missing.name}`",
                help=f"write `{cls.op_name}(...; {missing.name} = ...)`",
            )
        return self.finish_op(frame, cls, inputs, values, node, closure)

    def _operand(self, frame: Frame, node: tree.Expression, optional: bool) -> Value | None:
        value = self.evaluate(frame, node)
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
        static_slots = [a for a in arguments(cls) if a.kind not in OPERAND_KINDS]
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

    def _op_static(
        self, frame: Frame, spec: Argument, node: tree.Expression, axis: str | None = None
    ) -> object:
        """Return a static argument of a primitive, read as its field says."""
        if spec.kind == "new_axis":
            return self._new_axis(frame, spec, node, axis)
        if spec.kind == "new_axes":
            items = node.items if isinstance(node, tree.ListExpression) else (node,)
            return tuple(self._new_axis(frame, spec, item, axis) for item in items)
        if spec.kind == "axis":
            return self._axis(frame, node)
        if spec.kind == "axes":
            items = node.items if isinstance(node, tree.ListExpression) else (node,)
            return tuple(self._axis(frame, item) for item in items)
        if spec.kind == "init":
            return self.initialiser(frame, node)
        if spec.kind in ("any", "predicate") and isinstance(node, tree.Lambda):
            from tokdsl.graph.masks import LambdaClosure

            return LambdaClosure(node, frame)
        value = self.evaluate(frame, node)
        if spec.kind == "sizes":
            return value if isinstance(value, tuple) else (value,)
        if isinstance(value, Unknown) and spec.optional:
            return spec.default
        return self._coerce(frame, spec.kind, value, node, spec.name, spec.optional)

    def initialiser(self, frame: Frame, node: tree.Expression) -> str | None:
        """Return an initialiser such as ``normal(std = 0.02)`` as ``normal(std=0.02)``."""
        from tokdsl.ops.initialisers import INITIALISERS

        if isinstance(node, tree.Nothing):
            return None
        call = node if isinstance(node, tree.Call) else None
        head = call.function if call is not None else node
        if isinstance(head, tree.Name):
            local = frame.find(head.id)
            if local is not None and call is None:
                return local.value if isinstance(local.value, str) else None
            takes = INITIALISERS.get(head.id)
            if takes is not None:
                return self._initialiser_text(frame, head.id, takes, call)
        raise self.fail(
            frame,
            "argument-type",
            node.span,
            f"`{node.span.text}` is no initialiser",
            help="initialisers are " + ", ".join(f"`{name}`" for name in INITIALISERS),
        )

    def _initialiser_text(
        self, frame: Frame, name: str, takes: tuple[str, ...], call: tree.Call | None
    ) -> str:
        given: list[str] = []
        for i, argument in enumerate(call.operands if call is not None else ()):
            label = argument.name or (takes[i] if i < len(takes) else "")
            if label not in takes:
                raise self._too_many(frame, name, argument)
            value = self.evaluate(frame, argument.value)
            number = statics.as_float(value)
            if number is None and not isinstance(value, Unknown):
                raise self.fail(
                    frame, "argument-type", argument.span, f"`{label}` must be a number"
                )
            given.append(f"{label}={number!r}")
        return f"{name}({', '.join(given)})"

    def _axis(self, frame: Frame, node: tree.Expression) -> AxisRef:
        if isinstance(node, tree.Star):
            return AxisRef("*")
        if isinstance(node, tree.Name):
            local = frame.find(node.id)
            if local is not None and isinstance(local.value, AxisRef):
                return local.value
            return AxisRef(node.id)
        raise self.fail(
            frame, "unknown-axis", node.span, f"an axis name is needed, found `{node.span.text}`"
        )

    def _new_axis(
        self, frame: Frame, spec: Argument, node: tree.Expression, axis: str | None
    ) -> NewAxis:
        value = self.evaluate(frame, node)
        if isinstance(value, Unknown):
            value = Dim.of(axis or spec.name)
        if not isinstance(value, Dim):
            raise self.fail(
                frame,
                "argument-type",
                node.span,
                f"the size of an axis must be int, found {statics.type_name(value)} "
                f"{statics.show(value)}",
            )
        number = value.number
        if number is not None and not 0 < number < 2**40:
            raise self.fail(
                frame, "size-mismatch", node.span, f"an axis cannot have size {number}"
            )
        name = axis or (node.id if isinstance(node, tree.Name) else spec.name)
        return NewAxis(name, value)

    def _coerce(
        self,
        frame: Frame,
        kind: str,
        value: object,
        node: tree.Node,
        name: str,
        optional: bool = False,
    ) -> object:
        """Return a static value as the wanted type.

        Raises:
            Poison: if it does not fit (reported).
        """
        if value is None and optional:
            return None
        if isinstance(value, Unknown):
            return _stand_in(kind, value)
        if kind in ("any", "object", "predicate"):
            return value
        if kind in ("size", "int") and isinstance(value, Dim):
            if kind == "size":
                return value
            return value.number if value.number is not None else 1
        if kind == "float" and isinstance(value, (Dim, float)) and not isinstance(value, bool):
            number = statics.as_float(value)
            return number if number is not None else 1.0
        if kind == "bool" and isinstance(value, bool):
            return value
        if kind == "str" and isinstance(value, str):
            return value
        raise self.fail(
            frame,
            "argument-type",
            node.span,
            f"`{name}` must be {'int' if kind == 'size' else kind}, found "
            f"{statics.type_name(value) if isinstance(value, (Dim, float, str, bool, tuple)) else 'a tensor'}"
            f" {statics.show(value) if not isinstance(value, Value) else value.type}",
        )

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
        if cls.op_name == "dispatch":
            values["rows"] = sum(1 for n in frame.module.nodes if len(n.outputs) == 3)
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
        ordered = dict(
            sorted(inputs.items(), key=lambda item: _rank(item[0], order))
        )
        op = cls(**data)
        if any(isinstance(v.type, UnknownType) for v in inputs.values()):
            raise Poison
        try:
            op.type()
        except Fault as fault:
            raise self.fault(frame, fault, node.span, node) from None
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
        self.note_companions(frame, results)
        if frame.stack is not None and op.op_name in ("weight", "buffer"):
            return self.per_row(frame, results[0])
        return results[0] if len(results) == 1 or op.op_name == "dispatch" else results

    def note_companions(self, frame: Frame, results: tuple[Value, ...]) -> None:
        """Remember the hidden results of a dispatch by the rows that it made."""
        for axis in results[0].type.axes:
            if axis.group is not None and len(results) == 3:
                key = (id(results[0].owner), str(axis.size))
                self.companions[key] = {"groups": results[1], "order": results[2]}

    def _attribute_for(
        self, frame: Frame, closure: Closure | None, fallback: str, node: tree.Node | None
    ) -> str:
        """Return the name of what this call owns: the equation's, or the callee's."""
        if closure is not None and closure.shared:
            return closure.shared
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
                operands[name] = None if value is None else self.tensor(
                    frame, value, argument.value
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
                return Closure(target, tuple(values.items()), (), node.span, closure.shared)
        first_missing = definition.operands and definition.operands[0].name not in operands
        if first_missing:
            kept = tuple((k, v) for k, v in operands.items() if v is not None)
            return Closure(target, tuple(values.items()), kept, node.span, closure.shared)
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

    def parameter_value(
        self, frame: Frame, parameter: tree.Parameter, node: tree.Expression
    ) -> object:
        """Return a static argument as its parameter's type wants it."""
        kind = parameter.type.name if isinstance(parameter.type, tree.NamedType) else "any"
        if kind == "axis":
            return self._axis(frame, node)
        if kind == "init":
            return self.initialiser(frame, node)
        if isinstance(node, tree.Lambda):
            from tokdsl.graph.masks import LambdaClosure

            return LambdaClosure(node, frame)
        value = self.evaluate(frame, node)
        if isinstance(value, Value):
            raise self.fail(
                frame,
                "argument-type",
                node.span,
                f"`{parameter.name}` is a static parameter, found a tensor {value.type}",
                help="tensors go before the `;`",
            )
        return self.check_static(frame, kind, value, node, parameter.name)

    def check_static(
        self, frame: Frame, kind: str, value: object, node: tree.Node, name: str
    ) -> object:
        """Return a value that fits a parameter's type.

        Raises:
            Poison: if it does not (reported).
        """
        if value is None or kind == "any" or isinstance(value, (Unknown, AbstractClosure)):
            return value
        if kind == "float" and isinstance(value, Dim):
            return statics.as_float(value) if value.is_number else Unknown("float")
        found = statics.type_name(value)
        fits = {"list": "list", "dtype": "str"}.get(kind, kind) == found
        if isinstance(value, Closure):
            fits = kind in tree.DEFINITION_KINDS
        if kind == "dtype" and isinstance(value, Closure):
            return value.name
        if not fits:
            raise self.fail(
                frame,
                "argument-type",
                node.span,
                f"`{name}` must be {kind}, found {found} {statics.show(value)}",
            )
        return value

    # ----------------------------------------------------------------- experts

    def _each(self, frame: Frame, node: tree.Call) -> object:
        """``each(expert, rows)``: one set of parameters per entry of the rows' group axis."""
        if len(node.operands) != 2 or node.statics:
            raise self.fail(
                frame,
                "missing-argument",
                node.span,
                "`each` takes a definition and the rows of a dispatch: `each(expert, rows)`",
            )
        closure = self.evaluate(frame, node.operands[0].value)
        rows = self.evaluate(frame, node.operands[1].value)
        if isinstance(closure, AbstractClosure):
            return rows
        if not isinstance(rows, Value) or not isinstance(closure, Closure):
            raise self.fail(
                frame, "operand-kind", node.span, "`each` takes a definition and tensor rows"
            )
        if isinstance(rows.type, UnknownType):
            raise Poison
        axis = next((a for a in rows.type.axes if a.group is not None), None)
        if axis is None or axis.group is None:
            raise self.fail(
                frame,
                "operand-kind",
                node.operands[1].span,
                f"`each` needs dispatched rows, found {rows.type}",
                help="dispatch first: `rows = dispatch(x, r)`",
            )
        name = node.operands[0].value
        frame.targets[id(node)] = name.id if isinstance(name, tree.Name) else closure.name
        outer, frame.stack = frame.stack, axis.group
        try:
            return self.apply_closure(frame, closure, rows, node)
        finally:
            frame.stack = outer

    def apply_closure(
        self, frame: Frame, closure: Closure, value: Value, node: tree.Node
    ) -> object:
        """Return a partial application applied to the stream."""
        if isinstance(closure.target, DefinitionRef):
            first = closure.target.definition.operands
            if not first:
                raise self.fail(
                    frame, "no-value", node.span, f"`{closure.name}` takes no tensor"
                )
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
        call = node if isinstance(node, tree.Call) else tree.Call(node.span, tree.Name(
            node.span, cls.op_name), (), ())
        return self.finish_op(frame, cls, inputs, values, call, closure)

    # ----------------------------------------------------------------- shared parts

    def _sort(self, frame: Frame, node: tree.Call) -> Given:
        given = Given([], [], {})
        for group, target in ((node.operands, given.before), (node.statics, given.after)):
            for argument in group:
                if argument.name is None:
                    target.append(argument)
                elif argument.name in given.named:
                    raise self.fail(
                        frame,
                        "unknown-argument",
                        argument.span,
                        f"argument `{argument.name}` is given twice",
                    )
                else:
                    given.named[argument.name] = argument
        return given

    def _missing(
        self, cls: type[Op], inputs: dict[str, Value], values: dict[str, object]
    ) -> Argument | None:
        for spec in arguments(cls):
            if spec.optional or spec.kind == "companion":
                continue
            if spec.kind == "operands":
                if not any(key.startswith(spec.name + "_") for key in inputs):
                    return spec
            elif spec.kind == "operand":
                if spec.name not in inputs:
                    return spec
            elif spec.name not in values:
                return spec
        return None

    def _too_many(self, frame: Frame, name: str, argument: tree.Argument) -> Poison:
        return self.fail(
            frame, "unknown-argument", argument.span, f"`{name}` takes no further argument"
        )

    def _unknown_argument(
        self,
        frame: Frame,
        callee: str,
        name: str,
        argument: tree.Argument,
        known: object,
        axes: Argument | None,
    ) -> Poison:
        names = list(known) if isinstance(known, dict) else []
        takes = ", ".join(f"`{n}`" for n in names) or "nothing"
        near = did_you_mean(name, names)
        if near is None and axes is not None:
            near = f"to name a new axis write `{name}: {argument.value.span.text}`"
        return self.fail(
            frame,
            "unknown-argument",
            argument.span,
            f"`{callee}` has no argument `{name}`; it takes {takes}",
            help=near,
        )


def op_owns(op: Op) -> bool:
    """Whether an operation owns parameters or state, and so needs a name."""
    return bool(op.parameters()) or op.state() is not None


def _rank(name: str, order: list[str]) -> tuple[int, int]:
    if name in order:
        return order.index(name), 0
    base, _, index = name.rpartition("_")
    return (order.index(base), int(index)) if base in order and index.isdigit() else (99, 0)


def _stand_in(kind: str, value: Unknown) -> object:
    """Return a value of the wanted type for a static that is decided by the caller."""
    return {"size": Dim.of(value.type), "int": 1, "float": 1.0, "bool": False, "str": ""}.get(
        kind, value
    )


__all__ = ["Calls", "RouteType"]
