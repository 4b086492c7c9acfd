"""How a position came to see another one: the operations between, from the result back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tokdsl.checks.reach import EVERYWHERE, FIRST, Reach, Source, join
from tokdsl.checks.timing import Body, Timing, counted, landing, positions, varying
from tokdsl.diagnostics import Label
from tokdsl.graph.program import CallNode, LoopNode, Node, OpNode, Value
from tokdsl.ops.base import Op
from tokdsl.source import Span
from tokdsl.types.tensors import ChunksType
from tokdsl.types.time import INFINITY


@dataclass(frozen=True)
class Hop:
    """One operation on the way that reads other positions than its own.

    Args:
        node: the use.
        text: what it does.
        adds: what it reads, relative to its result.
        trace: the calls through which it was reached, outermost first.
    """

    node: Node
    text: str
    adds: Reach
    trace: tuple[Label, ...]

    @property
    def span(self) -> Span:
        """The place in the source."""
        return self.node.span

    @property
    def user_span(self) -> Span:
        """The place in the user's own file: the call, for a place in the library."""
        if self.span.file.name.startswith("std/"):
            for label in reversed(self.trace):
                if not label.span.file.name.startswith("std/"):
                    return label.span
        return self.span

    @property
    def op(self) -> Op | None:
        """The primitive, if the hop is one."""
        return self.node.op if isinstance(self.node, OpNode) else None


@dataclass(frozen=True)
class Candidate:
    """One way back from a value: to which operand, along which axis, and what is read in all."""

    value: Value
    key: str | None
    step: Reach
    total: Reach
    name: str = ""
    inner: tuple[Source, str | None] | None = None

    def rank(self, certain: bool) -> tuple[float, float, float]:
        """What reads furthest ahead counts most; of equals the one that adds most itself."""
        latest = self.total.latest
        if isinstance(self.value.type, ChunksType) and self.step.levels:
            # that a chunk is whole is known one token late: its tokens say more, if they are late
            edge = self.step.levels[-1]
            latest -= max(edge.offset + edge.lag, 0) + 0.01
        if not certain:
            return latest, latest, self.step.hi
        if self.total.sure == -INFINITY:
            return -INFINITY, latest, self.step.hi
        return latest if self.total.levels else self.total.sure, latest, self.step.hi


class Tracer:
    """Finds the path from a result back to an input.

    Args:
        timing: the analysis.
        certain: whether the path shall be one along which tokens are certainly read.
    """

    def __init__(self, timing: Timing, certain: bool = True) -> None:
        self.timing = timing
        self.certain = certain

    def trace(
        self,
        body: Body,
        value: Value,
        source: Source,
        key: str | None,
        calls: tuple[Label, ...] = (),
    ) -> list[Hop]:
        """Return the hops from a value back to a source, the last operation first."""
        hops: list[Hop] = []
        seen = 0
        while value.node is not None and seen < 10_000:
            seen += 1
            node = value.node
            ways = self._ways(body, node, value, source, key)
            best = max(ways, key=lambda way: way.rank(self.certain), default=None)
            if best is None:
                break
            if isinstance(node, OpNode):
                if not best.step.is_own:
                    hops.append(Hop(node, _describe(node, best), best.step, calls))
            elif best.inner is not None:
                hops += self._inside(body, node, value, best, calls)
            value, key = best.value, best.key
        return hops

    def _ways(
        self, body: Body, node: Node, value: Value, source: Source, key: str | None
    ) -> Iterator[Candidate]:
        if isinstance(node, OpNode):
            yield from self._operation(body, node, value, source, key)
        elif isinstance(node, CallNode | LoopNode):
            yield from self._called(body, node, value, source, key)

    def _operation(
        self, body: Body, node: OpNode, value: Value, source: Source, key: str | None
    ) -> Iterator[Candidate]:
        flows = node.op.flows()
        for name, operand in varying(node, self.timing.training):
            for mine, reach in body.reads.get(id(operand), {}).get(source, {}).items():
                steps = self.timing.steps(body, node, name, operand, mine, value, flows)
                for target, step in steps:
                    total = join(reach, step, counted(operand.type, mine))
                    if landing(target, total)[0] == key:
                        yield Candidate(operand, mine, step, total, name)

    def _called(
        self, body: Body, node: Node, value: Value, source: Source, key: str | None
    ) -> Iterator[Candidate]:
        loop = isinstance(node, LoopNode)
        for inner in body.called[id(node)]:
            summary = inner.result(0 if loop else value.index)
            result = inner.module.results[0 if loop else value.index]
            names = positions(result.type, value.type)
            for (index, axis), keys in summary.items():
                operand = node.inputs[index]
                back = positions(inner.inputs[index].type, operand.type)
                reads = body.reads.get(id(operand), {}).get(source, {})
                for mine, reach in reads.items():
                    if mine is EVERYWHERE or mine == FIRST:
                        if axis == "" and mine == key:
                            yield Candidate(operand, mine, Reach(0, 0, 0), reach)
                        continue
                    for target, step in keys.items() if back.get(axis) == mine else ():
                        total = join(reach, step, counted(operand.type, mine))
                        outer = names.get(target, target) if target else target
                        if landing(outer, total)[0] == key:
                            place = ((index, axis), target)
                            yield Candidate(operand, mine, step, total, "", place)

    def _inside(
        self, body: Body, node: Node, value: Value, best: Candidate, calls: tuple[Label, ...]
    ) -> list[Hop]:
        assert best.inner is not None
        source, key = best.inner
        for inner in body.called[id(node)]:
            index = 0 if isinstance(node, LoopNode) else value.index
            found = inner.result(index).get(source, {}).get(key)
            if found is None or found != best.step:
                continue
            if isinstance(node, CallNode) and inner.module.kind != "stage":
                calls = (*calls, Label(node.span, f"in `{inner.module.name}`"))
            hops = self.trace(inner, inner.module.results[index], source, key, calls)
            count = _layers(node, inner)
            if count > 1:
                return [replace(h, text=f"{h.text}, in each of {count} layers") for h in hops]
            return hops
        return []


def _layers(node: Node, inner: Body) -> int:
    """Return how many iterations of a loop run one body."""
    if not isinstance(node, LoopNode):
        return 1
    return sum(1 for module in node.modules if module is inner.module)


def _describe(node: OpNode, way: Candidate) -> str:
    what = f" of `{way.value.name}`" if way.value.name else ""
    if way.key is EVERYWHERE:
        return f"`{node.op.op_name}` passes on a value of the whole sequence"
    if isinstance(way.value.type, ChunksType) and way.step.levels:
        edge = "ends" if way.step.levels[-1].lag else "begins"
        return f"`{node.op.op_name}` reads where the chunk{what} {edge}"
    return f"`{node.op.op_name}` reads {extent(way.step)}{what}"


def extent(reach: Reach) -> str:
    """Return what is read in words."""
    if reach.levels:
        return _chunked(reach)
    if reach.lo == float("-inf") and reach.hi == float("inf"):
        return "every position" if reach.sure > float("-inf") else "positions that depend on data"
    if reach.rate > 1:
        lo, hi = _signed(reach.lo), _signed(reach.hi)
        return f"{reach.rate:g} tokens per token ({lo}..{hi})"
    if reach.rate < 1:
        return f"one token per {1 / reach.rate:g} ({_signed(reach.lo)}..{_signed(reach.hi)})"
    if reach.lo == reach.hi:
        return f"position {_at(reach.hi)}"
    if reach.lo == float("-inf"):
        return f"everything up to {_at(reach.hi)}"
    if reach.hi == float("inf"):
        return f"everything from {_at(reach.lo)} on"
    return f"positions {_at(reach.lo)} .. {_at(reach.hi)}"


def _chunked(reach: Reach) -> str:
    """Return what is read through ragged chunks in words."""
    level = reach.levels[0]
    if level.kind == "expand":
        base = "the newest closed chunk" if level.closed else "the chunk of the token"
        return f"{base}, {level.lag} before" if level.lag else base
    if level.kind == "inside":
        return "the whole chunk of the token"
    return "the whole chunk" if level.lag else "the first token of the chunk"


def _at(offset: float) -> str:
    return "t" if offset == 0 else f"t{_signed(offset)}"


def _signed(offset: float) -> str:
    return f"{round(offset, 2):+g}" if offset else "0"
