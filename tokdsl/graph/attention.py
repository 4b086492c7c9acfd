"""Elaboration of attention: its conditions over positions, and what is cached between steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokdsl.graph.builder import Builder, Poison
from tokdsl.graph.frame import Frame
from tokdsl.graph.masks import LambdaClosure
from tokdsl.graph.predicates import PredicateReader
from tokdsl.graph.program import Module, Value
from tokdsl.graph.statics import AbstractClosure, Closure, type_name
from tokdsl.ops.ambient import ClockOf, Position
from tokdsl.ops.attend import Attend, AttentionMix, AttentionScores, Cache, token_axis
from tokdsl.ops.base import Fault, arguments
from tokdsl.ops.logic import LogicalAnd
from tokdsl.ops.pairs import SameChunk, Visible
from tokdsl.ops.selected import AttendSelected
from tokdsl.resolve.modules import DefinitionRef
from tokdsl.syntax import tree
from tokdsl.types.tensors import Axis, ChunksType, UnknownType
from tokdsl.types.time import EVERYTHING, INFINITY, PAST, Interval


class AttentionBuilder:
    """One use of ``attend`` in a body."""

    def __init__(
        self,
        builder: Builder,
        frame: Frame,
        inputs: dict[str, Value],
        values: dict[str, Any],
        node: tree.Call,
    ) -> None:
        self.builder = builder
        self.frame = frame
        self.inputs = {k: builder.localize(frame, v, node.span) for k, v in inputs.items()}
        self.mask = values.pop("mask", None)
        self.score = values.pop("score", None)
        self.within = self.inputs.pop("within", None)
        self.window = 0
        self.values = values
        self.node = node

    def build(self) -> Value:
        """Add the nodes and return the result.

        Raises:
            Poison: if the operands do not fit (reported).
        """
        if any(isinstance(v.type, UnknownType) for v in self.inputs.values()):
            raise Poison
        try:
            query = token_axis(self.inputs["q"].type, "q")
            key = token_axis(self.inputs["k"].type, "k")
            token_axis(self.inputs["v"].type, "v")
        except Fault as fault:
            raise self.builder.fault(self.frame, fault, self.node.span, self.node) from None
        same = query.clock == key.clock
        stride = _stride(query, key)
        interval = self._interval(query, key, stride) if stride else EVERYTHING
        window = 0
        if same and interval.hi <= 0 and interval.lo > -INFINITY:
            window = int(1 - interval.lo)
        self.window = window
        if same:
            self._cache(window)
        if "select" in self.inputs:
            return self._selected(interval)
        for name in ("block", "first", "last", "pairs"):
            self.values.pop(name, None)
        key = token_axis(self.inputs["k"].type, "k")
        decomposed = self.score is not None or "sinks" in self.inputs
        known = same or self.mask is None
        structured = known and _is_structured(interval) and not decomposed
        structured = structured and self.within is None and not key.block
        unlimited = bool(stride) and interval == EVERYTHING and self.within is None
        mask = self._mask(query, key, structured or unlimited)
        if decomposed:
            return self._decomposed(query, key, mask, interval, stride)
        inputs = {"q": self.inputs["q"], "k": self.inputs["k"], "v": self.inputs["v"]}
        if mask is not None:
            inputs["mask"] = mask
        if "sinks" in self.inputs:
            inputs["sinks"] = self.inputs["sinks"]
        if self.within is not None:
            inputs["within"] = self.within
        return self._apply(
            Attend,
            inputs,
            interval=interval,
            stride=stride,
            structured=structured,
            **self.values,
        )

    def _selected(self, interval: Interval) -> Value:
        """Attend to the keys of an index set."""
        inputs = {n: v for n, v in self.inputs.items() if n not in ("within", "mask", "score")}
        if self.within is not None or self.score is not None:
            raise self.builder.fail(
                self.frame,
                "argument-type",
                self.node.span,
                "`select` says which keys are read: it goes with neither `within` nor `score`",
            )
        if self.mask is None:
            interval = PAST
        if interval not in (PAST, EVERYTHING):
            raise self.builder.fail(
                self.frame,
                "argument-type",
                self.node.span,
                "with `select`, `mask` is `causal` or `full`",
                help="say which keys can be chosen where they are: `topk(...; where = ...)`",
            )
        span = self.node.span
        key = token_axis(self.inputs["k"].type, "k")
        inputs["clock"] = self.builder.apply(self.frame, ClockOf(axis=key), {}, span)[0]
        values = {n: v for n, v in self.values.items() if n != "pairs"}
        values["pairs_of"] = self.values.get("pairs", "half")
        op = AttendSelected(**_types(inputs), **values, interval=interval)
        order = [a.name for a in arguments(AttendSelected) if a.name in inputs]
        ordered = {name: inputs[name] for name in order}
        return self.builder.apply(self.frame, op, ordered, span, self.node)[0]

    def _apply(self, cls: type[Attend], inputs: dict[str, Value], **statics: Any) -> Value:
        op = cls(**_types(inputs), **statics)
        return self.builder.apply(self.frame, op, inputs, self.node.span, self.node)[0]

    # ----------------------------------------------------------------- masks

    def _interval(self, query: Axis, key: Axis, stride: int) -> Interval:
        """Return which keys the mask allows, read from a scratch copy of its graph."""
        if self.mask is None:
            return EVERYTHING
        scratch = scratch_frame(self.frame)
        value = self._condition(scratch, self.mask, query, replace(key, name="S"))
        if value is None:
            return Interval(-INFINITY, INFINITY, exact=False)
        return PredicateReader(query.name, "S", stride).interval(value)

    def _mask(self, query: Axis, key: Axis, structured: bool) -> Value | None:
        """Return what hides keys: padding, other documents, and what `attend` cannot state itself.

        None where the number of keys is fixed, so that there is no padding, and no condition left.
        """
        if structured and key.size.is_number:
            return None
        builder, frame, span = self.builder, self.frame, self.node.span
        inputs: dict[str, Value] = {}
        if self.mask is not None and not structured:
            predicate = self._condition(frame, self.mask, query, key)
            if predicate is None:
                raise Poison
            inputs["predicate"] = predicate
        if self.within is not None:
            same = self._same_chunk(self.within, query, key)
            given = inputs.get("predicate")
            if given is not None:
                same = builder.use(frame, LogicalAnd, {"x": given, "y": same}, span)
            inputs["predicate"] = same
        inputs["keys"] = builder.apply(frame, ClockOf(axis=key), {}, span)[0]
        if query.clock != key.clock and not query.size.is_number:
            inputs["queries"] = builder.apply(frame, ClockOf(axis=query), {}, span)[0]
        op = Visible(
            **_types(inputs),
            query=query,
            key=key,
        )
        mask = builder.apply(frame, op, inputs, span)[0]
        mask.name = "mask"
        return mask

    def _same_chunk(self, chunks: Value, query: Axis, key: Axis) -> Value:
        """Return whether a query and a key are in the same chunk."""
        kind = chunks.type
        if not isinstance(kind, ChunksType) or not (kind.fine.clock == query.clock == key.clock):
            raise self.builder.fail(
                self.frame,
                "operand-kind",
                self.node.span,
                f"`within` must be the chunks of the stream that attends, found {kind}",
            )
        op = SameChunk(chunks=kind, key=key, window=self.window)
        return self.builder.apply(self.frame, op, {"chunks": chunks}, self.node.span)[0]

    def _condition(self, frame: Frame, condition: object, query: Axis, key: Axis) -> Value | None:
        """Return a condition as a bool value over the query and key axes."""
        names = [query, key]
        positions = [
            self.builder.apply(frame, Position(axis=axis), {}, self.node.span)[0] for axis in names
        ]
        result = self._evaluate(frame, condition, positions, names)
        if result is None:
            return None
        if not isinstance(result, Value):
            result = self.builder.constant(frame, result, self.node.span)
        if isinstance(result.type, UnknownType):
            raise Poison
        if result.type.dtype != "bool":
            raise self.builder.fail(
                self.frame,
                "argument-type",
                self.node.span,
                f"`mask` must be a condition (bool), found {result.type}",
            )
        return result

    def _evaluate(
        self, frame: Frame, function: object, arguments: list[Value], axes: list[Axis]
    ) -> object:
        if isinstance(function, LambdaClosure):
            return self._lambda(frame, function, arguments, axes)
        if isinstance(function, Closure) and isinstance(function.target, DefinitionRef):
            names = [o.name for o in function.target.definition.operands]
            if len(names) != len(arguments):
                raise self.builder.fail(
                    self.frame,
                    "result-count",
                    self.node.span,
                    f"`{function.name}` takes {len(names)} tensors, "
                    f"attention gives it {len(arguments)}",
                )
            operands: dict[str, Value | None] = dict(zip(names, arguments, strict=True))
            return self.builder.instantiate(
                frame, function.target, operands, dict(function.statics), self.node, function
            )
        if isinstance(function, AbstractClosure):
            return None
        raise self.builder.fail(
            self.frame,
            "argument-type",
            self.node.span,
            f"`mask` must be an expression over positions or a mask, found {type_name(function)}",
            help="write `mask = |i, j| j <= i` or `mask = causal`",
        )

    def _lambda(
        self, frame: Frame, function: LambdaClosure, arguments: list[Value], axes: list[Axis]
    ) -> object:
        node = function.node
        if len(node.parameters) != len(arguments):
            raise self.builder.fail(
                self.frame,
                "result-count",
                node.span,
                f"this expression names {len(node.parameters)} positions, "
                f"attention gives {len(arguments)}",
            )
        home = function.frame
        inner = lambda_frame(frame, home)
        positions = list(zip(node.parameters[-2:], axes, strict=True))
        inner.indices = {**home.indices, **dict(positions)}
        for name, value in zip(node.parameters, arguments, strict=True):
            inner.bind(name, value)
        return self.builder.evaluate(inner, node.body)

    # ----------------------------------------------------------------- caches

    def _cache(self, window: int) -> None:
        """Keep keys and values between steps unless they are computed from something cached."""
        done: dict[int, Value] = {}
        for name in ("k", "v"):
            value = self.inputs[name]
            axis = token_axis(value.type, name)
            if axis.memory:
                continue
            kept = self.builder.kept.get((id(self.frame.module), id(value)))
            if not window and kept is not None and kept[0] is value:
                done[id(value)] = kept[1]
            if id(value) not in done:
                op = Cache(x=value.type, window=window)
                attribute = self.frame.attribute("keys" if name == "k" else "values")
                cached = self.builder.apply(
                    self.frame, op, {"x": value}, self.node.span, attribute=attribute
                )[0]
                cached.name = value.name
                done[id(value)] = cached
            self.inputs[name] = done[id(value)]

    # ----------------------------------------------------------------- scores

    def _decomposed(
        self, query: Axis, key: Axis, mask: Value | None, interval: Interval, stride: int
    ) -> Value:
        builder, frame = self.builder, self.frame
        statics: dict[str, Any] = {k: v for k, v in self.values.items() if k in ("scale", "over")}
        whole = {name: self.inputs[name] for name in ("q", "k", "v")}
        try:
            Attend(**_types(whole), **statics).type()
        except Fault as fault:
            raise builder.fault(frame, fault, self.node.span, self.node) from None
        scores = AttentionScores(
            q=self.inputs["q"].type,
            k=self.inputs["k"].type,
            **statics,
        )
        raw = {"q": self.inputs["q"], "k": self.inputs["k"]}
        value = builder.apply(frame, scores, raw, self.node.span, self.node)[0]
        value.name = "scores"
        positions = [
            builder.apply(frame, Position(axis=axis), {}, self.node.span)[0]
            for axis in (query, key)
        ]
        result = value
        if self.score is not None:
            given = [value, *positions][: self._score_arguments()]
            result = self._evaluate_score(given, [query, key])
        inputs = {"scores": result, "v": self.inputs["v"]}
        if mask is not None:
            inputs["mask"] = mask
        if "sinks" in self.inputs:
            inputs["sinks"] = self.inputs["sinks"]
        op = AttentionMix(
            **_types(inputs),
            interval=interval,
            stride=stride,
        )
        return builder.apply(frame, op, inputs, self.node.span, self.node)[0]

    def _score_arguments(self) -> int:
        if isinstance(self.score, LambdaClosure):
            return len(self.score.node.parameters)
        if isinstance(self.score, Closure) and isinstance(self.score.target, DefinitionRef):
            return len(self.score.target.definition.operands)
        return 1

    def _evaluate_score(self, given: list[Value], axes: list[Axis]) -> Value:
        if isinstance(self.score, AbstractClosure):
            return given[0]
        if isinstance(self.score, LambdaClosure):
            node = self.score.node
            home = self.score.frame
            inner = lambda_frame(self.frame, home)
            names = node.parameters[1:]
            inner.indices = {**home.indices, **dict(zip(names, axes, strict=False))}
            for name, value in zip(node.parameters, given, strict=False):
                inner.bind(name, value)
            result = self.builder.evaluate(inner, node.body)
        elif isinstance(self.score, Closure) and isinstance(self.score.target, type):
            from tokdsl.ops.base import operand_fields

            first = operand_fields(self.score.target)[0].name
            op = self.score.target(**{first: given[0].type}, **dict(self.score.statics))
            result = self.builder.apply(self.frame, op, {first: given[0]}, self.node.span)[0]
        else:
            result = self._evaluate(self.frame, self.score, given, axes)
        if not isinstance(result, Value):
            raise self.builder.fail(
                self.frame, "argument-type", self.node.span, "`score` must give a tensor of scores"
            )
        return result


def _types(inputs: dict[str, Value]) -> dict[str, Any]:
    """Return the operand fields of an operation."""
    return {name: value.type for name, value in inputs.items()}


def _stride(query: Axis, key: Axis) -> int:
    """Return the query tokens per key token; 0 if their clocks have no fixed relation."""
    stride, clock = 1, key.clock
    while clock is not None and clock != query.clock:
        number = clock.stride.number if clock.stride is not None else None
        stride, clock = stride * (number or 0), clock.parent
    return stride if clock is not None else 0


def _is_structured(interval: Interval) -> bool:
    """Whether a condition is nothing, exactly causal, or exactly a causal window."""
    return interval.exact and (interval == EVERYTHING or interval.hi == 0)


def scratch_frame(frame: Frame) -> Frame:
    """Return a frame that reads like another but fills a scratch module."""
    scratch = Module("scratch", "scratch", frame.module.span)
    copy = Frame(
        scratch,
        frame.file,
        stream=frame.stream,
        parent=frame,
        stack=frame.stack,
        trace=frame.trace,
        active=frame.active,
        indices=dict(frame.indices),
        symbolic=frame.symbolic,
    )
    copy.names = dict(frame.names)
    return copy


def lambda_frame(frame: Frame, home: Frame) -> Frame:
    """Return a frame that adds to one body and reads the names of another (a lambda's home)."""
    inner = Frame(
        frame.module,
        home.file,
        stream=home.stream,
        parent=frame.parent,
        stack=frame.stack,
        trace=frame.trace,
        active=frame.active,
        symbolic=frame.symbolic,
    )
    chain: list[Frame] = []
    at: Frame | None = home
    while at is not None:
        chain.append(at)
        at = at.parent
    for outer in reversed(chain):
        inner.names.update(outer.names)
    inner.captured, inner.captured_from = frame.captured, frame.captured_from
    return inner
