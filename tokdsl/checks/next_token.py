"""Which stages an objective trains to predict later tokens of which input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokdsl.checks.reach import EVERYWHERE, FIRST, Dependence, Reach, add, join
from tokdsl.checks.timing import Body, Timing, compose, itself, positions, varying
from tokdsl.graph.program import CallNode, Module, OpNode, Program
from tokdsl.source import Span
from tokdsl.types.time import INFINITY


@dataclass(frozen=True)
class Prediction:
    """A stage whose result at a position is compared with a later token of an input."""

    stage: str
    input: str
    ahead: int
    span: Span


def predictions(program: Program) -> list[Prediction]:
    """Return what the objective predicts, in order of the source."""
    if program.objective is None:
        return []
    walk = _Walk(program)
    timing = Timing()
    body = timing.start(program.objective, program.objective.inputs, ())
    walk.run(timing, body)
    return sorted(set(walk.found), key=lambda p: (p.stage, p.input, p.span.start))


class _Walk:
    """Goes through the objective and what it calls with the true operands of every call."""

    def __init__(self, program: Program) -> None:
        self.sources = program.objective_inputs
        self.found: list[Prediction] = []

    def run(self, timing: Timing, body: Body) -> None:
        for node in body.module.nodes:
            if isinstance(node, OpNode):
                self._compare(body, node)
                timing.operation(body, node)
            elif isinstance(node, CallNode):
                self._call(timing, body, node)

    def _call(self, timing: Timing, body: Body, node: CallNode) -> None:
        inner = Body(node.module, body.inputs)
        for outer, formal in zip(node.inputs, node.module.inputs, strict=True):
            names = positions(outer.type, formal.type)
            inner.reads[id(formal)] = _renamed(body.reads.get(id(outer), {}), names)
        self.run(timing, inner)
        for output, result in zip(node.outputs, node.module.results, strict=True):
            names = positions(result.type, output.type)
            body.reads[id(output)] = _renamed(inner.reads.get(id(result), {}), names)

    def _compare(self, body: Body, node: OpNode) -> None:
        """Note the stages and inputs that meet along one axis in this operation."""
        met: dict[str, list[tuple[int, Reach]]] = {}
        for _, value in varying(node):
            for (index, _axis), keys in body.reads.get(id(value), {}).items():
                for key, reach in keys.items():
                    if key is not EVERYWHERE and key != FIRST:
                        met.setdefault(key, []).append((index, reach))
        for reads in met.values():
            self.found += self._pairs(reads, node)

    def _pairs(self, reads: list[tuple[int, Reach]], node: OpNode) -> Iterator[Prediction]:
        for stage, mine in reads:
            kind, _, name = self.sources[stage].partition(":")
            if kind != "stage" or abs(mine.sure) == INFINITY:
                continue
            for other, target in reads:
                what, _, given = self.sources[other].partition(":")
                ahead = target.sure - mine.sure
                if what == "input" and 0 < ahead < INFINITY:
                    yield Prediction(name, given, int(ahead), node.span)


def _renamed(reads: Dependence, names: dict[str, str]) -> Dependence:
    found: Dependence = {}
    for source, keys in reads.items():
        for key, reach in keys.items():
            add(found, source, names.get(key, key) if key else key, reach)
    return found


__all__ = ["Module", "Prediction", "compose", "itself", "join", "predictions"]
