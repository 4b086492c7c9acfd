"""The common ground of elaboration: reporting, adding nodes, applying primitives."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import tokdsl.graph.diagnostics
import tokdsl.resolve.diagnostics  # noqa: F401  (declares what is reported here)
from tokdsl.diagnostics import REGISTRY, Label, Report
from tokdsl.graph.frame import Frame
from tokdsl.graph.program import Module, Node, OpNode, Value
from tokdsl.graph.statics import Closure
from tokdsl.ops.base import Fault, Op, operand_fields
from tokdsl.resolve.modules import DefinitionRef, FileScope
from tokdsl.source import Span
from tokdsl.syntax import tree
from tokdsl.types.tensors import Axis, TensorType, UnknownType, ValueType

if TYPE_CHECKING:
    from tokdsl.graph.program import Program


class Poison(Exception):
    """A statement cannot go on; its cause is already reported."""


class Builder:
    """State of one elaboration: the report and the modules built so far."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.instances: dict[object, Module] = {}
        self.companions: dict[tuple[int, str], dict[str, Value]] = {}
        #: what is kept of all tokens, by body and value: (value, kept)
        self.kept: dict[tuple[int, int], tuple[Value, Value]] = {}
        self.program: Program | None = None
        self.by_name = {cls.name: cls for cls in REGISTRY.values()}
        self.rows = 0
        #: names of the clocks that operations made, and the stage whose clock is being made
        self.clocks: dict[str, int] = {}
        self.clock_name = ""

    # ----------------------------------------------------------------- parts in other modules

    def evaluate(self, frame: Frame, node: tree.Expression) -> object:
        """Return the value of an expression: a `Value` or a static value."""
        raise TypeError("defined in expressions.py")

    def instantiate(
        self,
        frame: Frame,
        target: DefinitionRef,
        operands: dict[str, Value | None],
        statics: dict[str, object],
        node: tree.Node,
        closure: Closure | None = None,
    ) -> object:
        """Return the result of a definition called with these arguments."""
        raise TypeError("defined in definitions.py")

    def run_body(self, frame: Frame, body: tree.Body) -> object:
        """Evaluate the statements of a body; return the value of the last one."""
        raise TypeError("defined in statements.py")

    # ----------------------------------------------------------------- reporting

    def fail(
        self,
        frame: Frame,
        name: str,
        span: Span,
        text: str,
        *,
        labels: tuple[Label, ...] = (),
        help: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> Poison:
        """Report a finding of the 3xx family and return the exception that stops the statement."""
        cls = self.by_name[name]
        span, labels = self.at_user(frame, span, labels)
        data: dict[str, Any] = {"text": text} if "text" in cls.data else {}
        self.report.add(
            cls(span=span, labels=labels, help=help, notes=notes, trace=frame.trace, **data)
        )
        frame.module.broken = True
        return Poison()

    def at_user(
        self, frame: Frame, span: Span, labels: tuple[Label, ...]
    ) -> tuple[Span, tuple[Label, ...]]:
        """Move a finding inside the library to the user's call; the library line is a label."""
        if not frame.trace or not span.file.name.startswith("std/"):
            return span, labels
        for label in reversed(frame.trace):
            if not label.span.file.name.startswith("std/"):
                return label.span, (Label(span, "here, in the library"), *labels)
        return span, labels

    def fault(self, frame: Frame, fault: Fault, span: Span, call: tree.Call | None) -> Poison:
        """Report a broken rule of an operation or signature at its argument."""
        if call is not None and fault.argument is not None:
            for argument in (*call.operands, *call.statics):
                if fault.argument in (argument.name, argument.axis):
                    span = argument.span
        return self.fail(frame, fault.kind, span, fault.text, help=fault.help)

    # ----------------------------------------------------------------- nodes

    def add(self, frame: Frame, node: Node) -> None:
        """Append a node and claim its outputs."""
        for i, value in enumerate(node.outputs):
            value.node, value.index, value.owner = node, i, frame.module
            if isinstance(node, OpNode):
                value.python = node.op.annotation()
        frame.module.nodes.append(node)

    def apply(
        self,
        frame: Frame,
        op: Op,
        inputs: dict[str, Value],
        span: Span,
        call: tree.Call | None = None,
        attribute: str = "",
    ) -> tuple[Value, ...]:
        """Add a use of a primitive and return its results.

        Raises:
            Poison: if the operands do not fit (reported).
        """
        if any(isinstance(v.type, UnknownType) for v in inputs.values()):
            raise Poison
        inputs = {name: self.localize(frame, value, span) for name, value in inputs.items()}
        try:
            kind = op.type()
        except Fault as fault:
            raise self.fault(frame, fault, span, call) from None
        kinds: tuple[ValueType, ...] = kind if isinstance(kind, tuple) else (kind,)
        self._unique_axes(frame, kinds, span)
        outputs = tuple(Value(k, span) for k in kinds)
        owned = op.parameters()
        stack = frame.stack if owned else None
        if (owned or op.state() is not None) and not attribute:
            attribute = frame.attribute(type(op).op_name)
        node = OpNode(
            tuple(inputs.values()),
            outputs,
            span,
            attribute,
            op=op,
            operands=tuple(inputs),
            stack=stack,
        )
        self.add(frame, node)
        return outputs

    def use(
        self,
        frame: Frame,
        cls: type[Op],
        inputs: dict[str, Value],
        span: Span,
        attribute: str = "",
        **statics: object,
    ) -> Value:
        """Apply a primitive that the elaborator itself needs; return its first result."""
        given: dict[str, object] = {name: value.type for name, value in inputs.items()}
        for spec in operand_fields(cls):
            if spec.kind == "companion" and spec.name not in given:
                companion = self.companion(frame, spec.name, list(inputs.values()))
                if companion is not None:
                    inputs[spec.name] = companion
                    given[spec.name] = companion.type
        return self.apply(frame, cls(**given, **statics), inputs, span, attribute=attribute)[0]

    def _unique_axes(self, frame: Frame, kinds: tuple[ValueType, ...], span: Span) -> None:
        for kind in kinds:
            names = [axis.name for axis in kind.axes]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise self.fail(
                    frame,
                    "axis-taken",
                    span,
                    f"the result would have two axes named `{twice}`: {kind}",
                    help=f"name the new axis differently: `other: {twice}`",
                )

    def new_clock(self, wanted: str) -> str:
        """Return the name of a clock that an operation makes: of its stage, or its equation."""
        name = self.clock_name or wanted or "chunks"
        count = self.clocks.get(name, 0) + 1
        self.clocks[name] = count
        return name if count == 1 else f"{name}_{count}"

    # ----------------------------------------------------------------- companions

    def companion(self, frame: Frame, field: str, values: list[Value]) -> Value | None:
        """Return the hidden operand of an operation: rows per expert, row order, or validity."""
        if field in ("valid", "starts", "batch", "clock"):
            return self._of_tokens(frame, field, values)
        for value in values:
            for axis in value.type.axes:
                if axis.group is not None:
                    if frame.groups is not None:
                        return frame.groups if field == "groups" else None
                    found = self.companions.get((id(frame.module), str(axis.size)), {})
                    if field in found:
                        return found[field]
        return None

    def localize(self, frame: Frame, value: Value, span: Span | None = None) -> Value:
        """Return a value of this body or of a surrounding one as seen from this body.

        Raises:
            Poison: if it belongs to a body that this one cannot see (reported).
        """
        if value.owner is None or value.owner is frame.module:
            return value
        if frame.parent is None:
            raise self.fail(
                frame,
                "operand-kind",
                span or value.span,
                "a tensor given to a partial application cannot cross into another definition",
                help="give the tensor where the definition is applied",
            )
        return frame.capture(self.localize(frame.parent, value, span))

    def _of_tokens(self, frame: Frame, field: str, values: list[Value]) -> Value | None:
        """Return which tokens are padding, which begin a document, or how many rows there are."""
        from tokdsl.ops.ambient import BatchOf, ClockOf, Starts, Valid

        axes = [
            (axis, value)
            for value in values
            if value.type.batched
            for axis in value.type.axes
            if axis.clock is not None and not axis.size.is_number  # of fixed length: no padding
        ]
        # of streams at several resolutions the finest says which tokens are padding
        axis, value = min(axes, key=lambda item: _depth(item[0]), default=(None, None))
        if axis is None or value is None:
            return None
        if field == "clock":
            axis = replace(axis, memory=True)  # as attention asks for it: one for all
        cls = {"valid": Valid, "starts": Starts, "batch": BatchOf, "clock": ClockOf}[field]
        return self.apply(frame, cls(axis=axis), {}, value.span)[0]

    def per_row(self, frame: Frame, value: Value) -> Value:
        """Return a stacked parameter as one entry per dispatched row."""
        from tokdsl.ops.route import PerRow

        if frame.stack is None or frame.groups is None or frame.rows is None:
            return value
        op = PerRow(x=value.type, groups=frame.groups.type, rows=frame.rows)  # type: ignore[arg-type]
        return self.apply(frame, op, {"x": value, "groups": frame.groups}, value.span)[0]

    def constant(self, frame: Frame, number: object, span: Span) -> Value:
        """Return a literal number as an operand."""
        from tokdsl.ops.ambient import Constant

        return self.apply(frame, Constant(value=number), {}, span)[0]


def _depth(axis: Axis) -> int:
    """Return how many reductions lie between an axis and the input's clock."""
    clock, depth = axis.clock, 0
    while clock is not None and clock.parent is not None:
        clock, depth = clock.parent, depth + 1
    return depth


def plain(kind: ValueType) -> TensorType | None:
    """Return the type as a tensor type, or None for records and unknown types."""
    return kind if isinstance(kind, TensorType) else None


def axis_of(value: Value, name: str) -> Axis | None:
    """Return the named axis of a value, or None."""
    kind = plain(value.type)
    return kind.axis(name) if kind is not None else None


__all__ = ["Builder", "FileScope", "Poison", "axis_of", "plain"]
