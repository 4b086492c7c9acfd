"""Evaluation of expressions to values of the graph or to static values."""

from __future__ import annotations

from dataclasses import replace

from tokdsl.diagnostics import did_you_mean
from tokdsl.graph import statics
from tokdsl.graph.builder import Builder, Poison
from tokdsl.graph.frame import Frame
from tokdsl.graph.program import Value
from tokdsl.graph.statics import Closure, Repeated, StaticError, Unknown
from tokdsl.ops import OPS, WRITTEN
from tokdsl.resolve.modules import DefinitionRef, FileScope
from tokdsl.syntax import tree
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, TensorType, UnknownType

BINARY = {
    "+": "add",
    "-": "subtract",
    "*": "multiply",
    "/": "divide",
    "//": "floor_divide",
    "%": "remainder",
    "**": "power",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
    "==": "equal",
    "!=": "not_equal",
    "and": "logical_and",
    "or": "logical_or",
}


class Expressions(Builder):
    """Evaluation of every form of expression but calls."""

    def evaluate(self, frame: Frame, node: tree.Expression) -> object:
        """Return the value of an expression.

        Raises:
            Poison: if it has none; the cause is reported.
        """
        if frame.evaluated and id(node) in frame.evaluated:
            return frame.evaluated.pop(id(node))
        match node:
            case tree.Name():
                return self._name(frame, node)
            case tree.Number():
                return Dim.of(node.value) if isinstance(node.value, int) else node.value
            case tree.String() | tree.Boolean():
                return node.value
            case tree.Nothing():
                return None
            case tree.Binary():
                return self._binary(frame, node)
            case tree.Unary():
                return self._unary(frame, node)
            case tree.Call():
                return self.call(frame, node)
            case tree.If():
                return self.branch(frame, node)
            case tree.ListExpression():
                return tuple(self.evaluate(frame, item) for item in node.items)
            case tree.Repeated():
                return self._repeated(frame, node)
            case tree.Index():
                return self._index(frame, node)
            case tree.Attribute():
                return self._attribute(frame, node)
            case tree.Lambda():
                raise self.fail(
                    frame,
                    "no-value",
                    node.span,
                    "an expression over positions is only allowed as an argument",
                    help="give it to an operation: `attend(q, k, v; mask = |i, j| j <= i)`",
                )
            case tree.Star():
                raise self.fail(
                    frame, "no-value", node.span, "`*` is only allowed where an axis is named"
                )
            case _:
                raise Poison

    def call(self, frame: Frame, node: tree.Call) -> object:
        """Return the value of a call."""
        raise TypeError("defined in calls.py")

    def branch(self, frame: Frame, node: tree.If) -> object:
        """Return the value of an ``if``."""
        raise TypeError("defined in statements.py")

    # ----------------------------------------------------------------- names

    def _name(self, frame: Frame, node: tree.Name) -> object:
        found = self.lookup(frame, node)
        if isinstance(found, (DefinitionRef, type)):
            return Closure(found, (), (), node.span)
        return found

    def lookup(self, frame: Frame, node: tree.Name) -> object:
        """Return what a name stands for: local, of the file, a primitive or a constant.

        Raises:
            Poison: if nothing has that name (reported).
        """
        name = node.id
        if name == "it":
            if frame.stream is None:
                raise self.fail(
                    frame, "no-value", node.span, "there is no stream here that `it` could be"
                )
            return frame.stream
        local = frame.find(name)
        if local is not None:
            return local.value
        if name in frame.indices:
            return self.position(frame, frame.indices[name], node)
        found = frame.file.find(name)
        if found is not None:
            return found
        if name in WRITTEN:
            return WRITTEN[name]
        if name in statics.CONSTANTS:
            return statics.CONSTANTS[name]
        raise self._unknown(frame, node)

    def _unknown(self, frame: Frame, node: tree.Name) -> Poison:
        from tokdsl.resolve.diagnostics import UnknownName

        in_scope = [*frame.visible(), *frame.file.visible(), *WRITTEN, *statics.STATIC_CALLS]
        span, labels = self.at_user(frame, node.span, ())
        self.report.add(
            UnknownName(
                span=span,
                unknown=node.id,
                labels=labels,
                trace=frame.trace,
                help=did_you_mean(node.id, in_scope),
            )
        )
        frame.module.broken = True
        return Poison()

    def position(self, frame: Frame, axis: Axis, node: tree.Node) -> Value:
        """Return the positions along an index axis as a value."""
        from tokdsl.ops.ambient import Position

        return self.apply(frame, Position(axis=axis), {}, node.span)[0]

    # ----------------------------------------------------------------- operators

    def _binary(self, frame: Frame, node: tree.Binary) -> object:
        left = self.evaluate(frame, node.left)
        right = self.evaluate(frame, node.right)
        if not isinstance(left, Value) and not isinstance(right, Value):
            try:
                return statics.binary(node.operator, left, right)
            except StaticError as error:
                raise self.fail(frame, "static-value", node.span, str(error)) from None
        return self.elementwise(frame, BINARY[node.operator], [left, right], node)

    def _unary(self, frame: Frame, node: tree.Unary) -> object:
        value = self.evaluate(frame, node.operand)
        if isinstance(value, Value):
            name = "negate" if node.operator == "-" else "logical_not"
            return self.elementwise(frame, name, [value], node)
        try:
            if node.operator == "-":
                return statics.negate(value)
            if isinstance(value, bool):
                return not value
            if isinstance(value, Unknown):
                return value
            raise StaticError(f"`not` needs bool, found {statics.type_name(value)}")
        except StaticError as error:
            raise self.fail(frame, "static-value", node.span, str(error)) from None

    def elementwise(self, frame: Frame, name: str, values: list[object], node: tree.Node) -> Value:
        """Apply an element-wise primitive; static numbers become literals."""
        cls = OPS[name]
        from tokdsl.ops.base import operand_fields

        fields = operand_fields(cls)
        inputs = {
            spec.name: self.tensor(frame, value, node)
            for spec, value in zip(fields, values, strict=True)
        }
        if name in ("add", "subtract"):
            self._check_clocks(frame, list(inputs.values()), node)
        op = cls(**{key: value.type for key, value in inputs.items()})
        return self.apply(frame, op, inputs, node.span)[0]

    def _check_clocks(self, frame: Frame, values: list[Value], node: tree.Node) -> None:
        """A sum of a stream and chunks would pair each with each: one of them is not yet back.

        Names that are given to the axes, by indices or `rename`, say that pairs are meant.
        """
        streams = [v.type for v in values if isinstance(v.type, TensorType) and v.type.is_float]
        if len(streams) < 2:
            return
        names = {axis.name for axis in streams[0].axes} & {axis.name for axis in streams[1].axes}
        one, other = (_only_stream(kind, names) for kind in streams)
        if not names or one is None or other is None:
            return
        if _is_plain_chunk(one) or _is_plain_chunk(other):
            clocks = " and ".join(f"`{a.clock.name}`" for a in (one, other) if a.clock is not None)
            raise self.fail(
                frame,
                "clock-mismatch",
                node.span,
                f"operands live on different clocks: {clocks}",
                help="go back to the finer stream first: `upsample(y, c)`",
            )

    def tensor(self, frame: Frame, value: object, node: tree.Node) -> Value:
        """Return a value as an operand; numbers become literals.

        Raises:
            Poison: if it is neither (reported).
        """
        if isinstance(value, Value):
            return value
        if isinstance(value, (Dim, float, bool)):
            return self.constant(frame, value, node.span)
        if isinstance(value, Unknown) and value.type in ("int", "float", "bool"):
            return self.constant(frame, 1.0, node.span)
        if isinstance(value, Closure):
            raise self.fail(
                frame,
                "no-value",
                node.span,
                f"`{value.name}(...)` is not applied to anything",
                help=f"give it a tensor: `{value.name}(x)`",
            )
        raise self.fail(
            frame,
            "operand-kind",
            node.span,
            f"a tensor is needed here, found {statics.type_name(value)} {statics.show(value)}",
        )

    # ----------------------------------------------------------------- lists, indices, attributes

    def _repeated(self, frame: Frame, node: tree.Repeated) -> object:
        count = self.evaluate(frame, node.count)
        number = count.number if isinstance(count, Dim) else None
        if number is None or number < 0:
            raise self.fail(
                frame,
                "static-value",
                node.count.span,
                f"`of` needs a whole number before it, found {statics.show(count)}",
            )
        return Repeated(number, self.evaluate(frame, node.value))

    def _index(self, frame: Frame, node: tree.Index) -> object:
        value = self.evaluate(frame, node.value)
        if isinstance(value, tuple):
            return self._element(frame, node, value)
        if not isinstance(value, Value):
            raise self.fail(
                frame,
                "operand-kind",
                node.span,
                f"only tensors and lists have elements, found {statics.type_name(value)}",
            )
        for index in node.indices:
            value = self._at_index(frame, value, index)
        return value

    def _element(self, frame: Frame, node: tree.Index, items: tuple[object, ...]) -> object:
        index = self.evaluate(frame, node.indices[0])
        number = index.number if isinstance(index, Dim) else None
        flat: list[object] = []
        for item in items:
            flat += [item.value] * item.count if isinstance(item, Repeated) else [item]
        if number is None or not -len(flat) <= number < len(flat):
            raise self.fail(
                frame,
                "static-value",
                node.span,
                f"no element {statics.show(index)} in a list of {len(flat)}",
            )
        return flat[number]

    def _at_index(self, frame: Frame, value: Value, index: tree.Expression) -> Value:
        from tokdsl.ops.ambient import Rename

        if isinstance(index, tree.Missing):
            raise Poison
        name = index.id if isinstance(index, tree.Name) else ""
        axis = frame.indices.get(name)
        if axis is None:
            known = ", ".join(f"`{i}`" for i in frame.indices) or "none"
            raise self.fail(
                frame,
                "unknown-axis",
                index.span,
                f"`{index.span.text}` is not an index; indices here: {known}",
                help="declare it on the left: `score[i: T, j: T] = ...`",
            )
        kind = value.type
        if isinstance(kind, UnknownType):
            raise Poison
        same = [a for a in kind.axes if a.clock is not None and a.clock == axis.clock]
        own = next((a for a in same if a.block == axis.block), None)
        if own is None or not isinstance(kind, TensorType):
            clock = axis.clock.name if axis.clock is not None else axis.name
            raise self.fail(
                frame,
                "unknown-axis",
                index.span,
                f"the value {kind} has no token axis on clock `{clock}` to index by `{name}`",
            )
        if own.memory and not axis.memory:
            axis = replace(own, name=name)
        op = Rename(x=kind, old=own.name, axis=axis)
        return self.apply(frame, op, {"x": value}, index.span)[0]

    def _attribute(self, frame: Frame, node: tree.Attribute) -> object:
        if isinstance(node.value, tree.Name):
            name = node.value.id
            local = frame.find(name)
            if local is None:
                scope = frame.file.find(name)
                if isinstance(scope, FileScope):
                    return self._member(frame, node, scope)
        value = self.evaluate(frame, node.value)
        if isinstance(value, Value) and node.name in ("weight", "pick"):
            from tokdsl.ops.route import RouteField

            return self.use(frame, RouteField, {"route": value}, node.span, part=node.name)
        raise self.fail(
            frame,
            "operand-kind",
            node.span,
            f"`{node.span.text}` has no attribute `{node.name}`",
            help="routes have `.weight` and `.pick`; modules have their definitions",
        )

    def _member(self, frame: Frame, node: tree.Attribute, scope: FileScope) -> object:
        found = scope.names.get(node.name)
        if isinstance(found, DefinitionRef):
            return Closure(found, (), (), node.span)
        raise self.fail(
            frame,
            "no-value",
            node.span,
            f"module `{scope.name}` has no `{node.name}`",
            help=did_you_mean(node.name, scope.names),
        )


def _only_stream(kind: TensorType, shared: set[str]) -> Axis | None:
    """Return the only token axis of a value, if the other operand does not have it."""
    found = [axis for axis in kind.axes if axis.clock is not None]
    return found[0] if len(found) == 1 and found[0].name not in shared else None


def _is_plain_chunk(axis: Axis) -> bool:
    """Whether an axis of chunks has the name that it got when the stream was cut."""
    clock = axis.clock
    return clock is not None and bool(clock.cut) and axis.name in ("C", "CC", clock.name)
