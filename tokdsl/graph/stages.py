"""Stages inside stages: reduce, the body at the coarser clock, expand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tokdsl.graph.builder import Poison
from tokdsl.graph.definitions import owns
from tokdsl.graph.frame import Frame
from tokdsl.graph.program import CallNode, Module, Value
from tokdsl.graph.statements import Statements
from tokdsl.graph.statics import Closure
from tokdsl.ops.base import AxisRef, operand_fields
from tokdsl.ops.cast import CastLike
from tokdsl.ops.shape import Slice
from tokdsl.syntax import tree
from tokdsl.types.tensors import ChunksType, TensorType, UnknownType

#: the definitions that a nested stage takes, in the order in which they are applied
PARTS = ("reduce", "widen", "expand", "gate", "skip")


@dataclass
class Reduced:
    """What the reduction of a stage gave.

    Args:
        stream: the coarser stream.
        chunks: how the stream was cut, if it was.
        named: all further results by name.
    """

    stream: Value
    chunks: Value | None = None
    named: dict[str, Value] = field(default_factory=dict)


class Stages(Statements):
    """Nested stages."""

    def nested_stage(self, frame: Frame, statement: tree.Stage) -> object:
        """A stage inside a stage.

        ``reduce`` gives the coarser stream and, if it cuts chunks, how. ``widen`` changes the
        channels for the body; after it the first ones are kept. ``expand`` goes back to the finer
        clock, ``gate`` changes the result, and ``skip`` of the stream before is added.
        """
        stream = self._current(frame, statement)
        if isinstance(stream.type, UnknownType):
            raise Poison
        given = {a.name or "": a for a in statement.arguments}
        for name, argument in given.items():
            if name not in PARTS:
                known = ", ".join(f"`{part}`" for part in PARTS)
                raise self.fail(
                    frame,
                    "unknown-argument",
                    argument.span,
                    f"a nested stage takes {known}; found `{name}`",
                )
        reduced = Reduced(stream)
        if "reduce" in given:
            reduced = self._reduce(frame, statement.name, given["reduce"], stream)
        output = self._coarse(frame, statement, given, reduced)
        result = output
        for name in ("expand", "gate"):
            if name in given:
                result = self._part(frame, given[name], result, reduced, stream)
        if "skip" in given:
            skipped = self._part(frame, given["skip"], stream, reduced, None)
            self._same_axes(frame, given["skip"], result, skipped)
            result = self.elementwise(frame, "add", [result, skipped], statement)
        of_ids = isinstance(stream.type, TensorType) and not stream.type.is_float
        if result.type.dtype != stream.type.dtype and len(given) > 1 and not of_ids:
            result = self.use(frame, CastLike, {"x": result, "like": stream}, statement.span)
        frame.bind(statement.name, output, statement.span)
        frame.names[statement.name].used = True
        frame.stream = result
        return result

    def _same_axes(
        self, frame: Frame, argument: tree.Argument, result: Value, skipped: Value
    ) -> None:
        names = [a.name for a in result.type.axes]
        if names != [a.name for a in skipped.type.axes]:
            raise self.fail(
                frame,
                "size-mismatch",
                argument.span,
                f"`skip` gives {skipped.type}, which is added to {result.type}",
                help=f"give its result the same axes: `linear(; {names[-1]}: ...)`",
            )

    def _reduce(self, frame: Frame, name: str, argument: tree.Argument, stream: Value) -> Reduced:
        closure = self._closure(frame, argument)
        outer, self.clock_name = self.clock_name, name
        try:
            found = self.apply_closure(frame, closure, stream, argument.value)
        finally:
            self.clock_name = outer
        values = found if isinstance(found, tuple) else (found,)
        results = [self.tensor(frame, value, argument.value) for value in values]
        reduced = Reduced(results[0])
        for value in results[1:]:
            if isinstance(value.type, ChunksType):
                reduced.chunks = value
            node = value.node
            label = node.module.results[value.index].name if isinstance(node, CallNode) else ""
            if label:
                reduced.named[label] = value
        if isinstance(reduced.stream.type, ChunksType):
            raise self.fail(
                frame,
                "operand-kind",
                argument.span,
                "the first result of a reduction is the coarser stream, then come its chunks",
            )
        return reduced

    def _coarse(
        self,
        frame: Frame,
        statement: tree.Stage,
        given: dict[str, tree.Argument],
        reduced: Reduced,
    ) -> Value:
        """Return the result of the body on the coarser stream."""
        stream = reduced.stream
        if "widen" in given:
            stream = self._part(frame, given["widen"], stream, reduced, None)
        inner = self._stage_body(frame, statement, stream, reduced.chunks)
        module = inner.module
        output = Value(module.results[0].type, statement.span, statement.name)
        attribute = frame.attribute(statement.name) if owns(module) else ""
        inputs = (stream, *inner.captured_from)
        self.add(frame, CallNode(inputs, (output,), statement.span, attribute, module=module))
        if "widen" not in given:
            return output
        kind, before = output.type, reduced.stream.type
        if not isinstance(kind, TensorType) or not isinstance(before, TensorType):
            raise Poison
        channels, wide = before.axes[-1], kind.axes[-1]
        if wide.name == channels.name and wide.size == channels.size:
            return output
        return self.use(
            frame,
            Slice,
            {"x": output},
            given["widen"].span,
            over=AxisRef(wide.name),
            stop=channels.size,
            into=AxisRef(channels.name),
        )

    def _closure(self, frame: Frame, argument: tree.Argument) -> Closure:
        closure = self.evaluate(frame, argument.value)
        if not isinstance(closure, Closure):
            raise self.fail(
                frame, "not-callable", argument.span, f"`{argument.name}` must be a definition"
            )
        return closure

    def _part(
        self,
        frame: Frame,
        argument: tree.Argument,
        value: Value,
        reduced: Reduced,
        fine: Value | None,
    ) -> Value:
        """Return a part of a stage applied to a stream.

        Its further operands are the chunks, results of the reduction by name, and the stream
        before the stage.
        """
        closure = self._closure(frame, argument)
        have = {name for name, _ in closure.operands}
        operands = list(closure.operands)
        for name, head in self._operand_names(closure)[1:]:
            if name in have:
                continue
            found = reduced.named.get(name)
            if found is None and (head == "chunks" or name == "like"):
                found = reduced.chunks
            if found is None and (name == "like" or (head != "chunks" and fine is not None)):
                found = None if head == "optional" else fine
            if found is not None:
                operands.append((name, found))
        closure = replace(closure, operands=tuple(operands))
        result = self.apply_closure(frame, closure, value, argument.value)
        return self.tensor(frame, result, argument.value)

    def _operand_names(self, closure: Closure) -> list[tuple[str, str]]:
        """Return the operands of a definition with the word before their type."""
        if isinstance(closure.target, type):
            return [
                (a.name, "optional" if a.optional else "")
                for a in operand_fields(closure.target)
                if a.kind == "operand"
            ]
        found = []
        for operand in closure.target.definition.operands:
            head = operand.type.head if isinstance(operand.type, tree.TensorType) else ""
            found.append((operand.name, "optional" if operand.default is not None else head or ""))
        return found

    def _stage_body(
        self, frame: Frame, statement: tree.Stage, stream: Value, chunks: Value | None
    ) -> Frame:
        module = Module(statement.name, "stage", statement.span)
        value = Value(stream.type, statement.span, "x", owner=module)
        module.inputs.append(value)
        inner = Frame(
            module,
            frame.file,
            stream=value,
            parent=frame,
            stack=frame.stack,
            trace=frame.trace,
            active=frame.active,
            symbolic=frame.symbolic,
        )
        if chunks is not None:
            # positions and validity of its tokens come with the chunks
            inner.capture(chunks).name = "chunks"
        self.run_body(inner, statement.body)
        module.results = (self._current(inner, statement),)
        return inner


__all__ = ["Stages"]
