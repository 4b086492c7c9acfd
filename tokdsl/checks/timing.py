"""The time analysis: what every value reads of every input, by composition.

A module is analysed once for each way in which its operands are masked; a call composes the
module's summary with what the operands depend on, a loop composes its body by doubling. The work
is linear in the size of the program, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tokdsl.checks.reach import (
    ALL,
    EVERYWHERE,
    FIRST,
    OWN,
    PERHAPS,
    Dependence,
    Reach,
    add,
    along,
    join,
    of_flow,
)
from tokdsl.checks.support import (
    UNDECIDED,
    Points,
    Support,
    absorbed,
    both,
    intersect,
    literal,
    token_axes,
    truth,
    unite,
)
from tokdsl.graph.predicates import PredicateReader
from tokdsl.graph.program import CallNode, LoopNode, Module, OpNode, Value
from tokdsl.ops.base import operand_fields
from tokdsl.types.tensors import ValueType
from tokdsl.types.time import EVERYTHING, INFINITY, POINTWISE, Crossing, Flow, Interval

#: operations that give their operand back under other names or in another order
MOVES = ("as_axis", "rename", "order", "cache")

#: one step from an axis of an operand (or a key without axis) to a key of a result
Step = tuple["str | None", Reach]


@dataclass(eq=False)
class Body:
    """The analysis of one module.

    Args:
        inputs: the values that the sources are.
        reads: what each value depends on, by identity.
        supports: where each value can depend on the input at all.
        points: which positions an index value holds.
        called: the analyses of called modules, by identity of the node.
    """

    module: Module
    inputs: list[Value]
    reads: dict[int, Dependence] = field(default_factory=dict)
    supports: dict[int, Support] = field(default_factory=dict)
    points: dict[int, Points] = field(default_factory=dict)
    called: dict[int, list[Body]] = field(default_factory=dict)

    def result(self, index: int) -> Dependence:
        """Return what one result depends on."""
        return self.reads.get(id(self.module.results[index]), {})


#: what is known of one operand of a module: its mask and the positions it holds
Known = tuple["Support | None", "Points | None"]


class Timing:
    """The analysis of a program.

    Args:
        ignored: identities of nodes that are taken to read no later token: causes that are known.
        training: whether what is read in training alone counts.
    """

    def __init__(self, ignored: frozenset[int] = frozenset(), training: bool = False) -> None:
        self.ignored = ignored
        self.training = training
        self._bodies: dict[object, Body] = {}
        self._roots: list[Body] = []

    def body(self, module: Module, known: tuple[Known, ...] = ()) -> Body:
        """Return the analysis of a module whose operands are known to be masked."""
        if not any(fact for pair in known for fact in pair):
            known = ()
        key = (id(module), known)
        found = self._bodies.get(key)
        if found is None:
            found = self.start(module, module.inputs, known)
            self._run(found)
            self._bodies[key] = found
        return found

    def root(self, module: Module, inputs: list[Value]) -> Body:
        """Return the analysis of a model's own body, whose inputs are given."""
        body = self.start(module, inputs, ())
        self._roots.append(body)
        self._run(body)
        return body

    def start(self, module: Module, inputs: list[Value], known: tuple[Known, ...]) -> Body:
        """Return a body in which every input depends on itself."""
        body = Body(module, inputs)
        for index, value in enumerate(inputs):
            body.reads[id(value)] = itself(index, value.type)
            if index < len(known):
                support, points = known[index]
                if support is not None:
                    body.supports[id(value)] = support
                if points is not None:
                    body.points[id(value)] = points
        return body

    def _run(self, body: Body) -> None:
        for node in body.module.nodes:
            if isinstance(node, OpNode):
                self.operation(body, node)
            elif isinstance(node, CallNode):
                self._call(body, node)
            elif isinstance(node, LoopNode):
                self._loop(body, node)

    # ----------------------------------------------------------------- operations

    def operation(self, body: Body, node: OpNode) -> None:
        """Analyse one use of a primitive."""
        given = varying(node, self.training)
        flows = node.op.flows()
        for output in node.outputs:
            reads: Dependence = {}
            for name, value in given:
                for source, keys in body.reads.get(id(value), {}).items():
                    for key, reach in keys.items():
                        for target, step in self.steps(body, node, name, value, key, output, flows):
                            way = join(reach, step, counted(value.type, key))
                            add(reads, source, *landing(target, way))
            body.reads[id(output)] = reads
            support = self._support(body, node, given, flows, output)
            if support is not None:
                body.supports[id(output)] = support
            points = self._points(body, node, output)
            if points is not None:
                body.points[id(output)] = points

    def steps(
        self,
        body: Body,
        node: OpNode,
        name: str,
        value: Value,
        key: str | None,
        output: Value,
        flows: Mapping[str, list[Flow]],
    ) -> Iterator[Step]:
        """Yield how an operation carries one axis of an operand to axes of a result."""
        if key is EVERYWHERE or key == FIRST:
            yield key, OWN
            return
        axes = {axis.name for axis in output.type.axes}
        mine = [flow for flow in flows.get(name, ()) if flow.source == key]
        if not mine:
            mine = [Flow(key, key)] if key in axes else [Flow(key, None, EVERYTHING)]
        for flow in mine:
            step = self._step(body, node, name, key, flow, axes)
            if id(node) in self.ignored and flow.crossing is not None:
                yield step[0], of_flow(_early(flow, flow.crossing))
            elif step[1].hi <= 0 or id(node) not in self.ignored:
                yield step
            elif step[0] is not EVERYWHERE:
                yield step[0], Reach(min(step[1].lo, 0), 0, 0, step[1].rate)

    def reads_later(self, node: OpNode) -> bool:
        """Return whether an operation reads tokens after its own on one clock.

        Masks count, as far as they are known where its module is called. Along the tokens of a
        cache alone nothing is read by a token yet.
        """
        flows = node.op.flows()
        return any(
            target is not None and step.is_late
            for body in [*self._bodies.values(), *self._roots]
            if any(mine is node for mine in body.module.nodes)
            for name, value in varying(node)
            for axis in token_axes(value.type)
            if all(f.crossing is None or f.crossing.kind == "inside" for f in flows.get(name, ()))
            for output in node.outputs
            for target, step in self.steps(body, node, name, value, axis.name, output, flows)
            if not (axis.memory and target == axis.name)
        )

    def forgets(self, node: OpNode) -> bool:
        """Return whether an operation may read tokens that a cache with a window does not keep.

        Masks count, as far as they are known where its module is called.
        """
        flows = node.op.flows()
        return any(
            target is EVERYWHERE or target == FIRST or step.lo < 1 - axis.window
            if target != axis.name
            else not step.is_own
            for body in [*self._bodies.values(), *self._roots]
            if any(mine is node for mine in body.module.nodes)
            for name, value in varying(node)
            for axis in token_axes(value.type)
            if axis.memory and axis.window
            for output in node.outputs
            for target, step in self.steps(body, node, name, value, axis.name, output, flows)
        )

    def _step(
        self, body: Body, node: OpNode, name: str, key: str, flow: Flow, axes: set[str]
    ) -> Step:
        interval = flow.interval
        if interval.hi > 0 and interval.lo == -INFINITY and flow.crossing is None:
            narrow = self._narrowed(body, node, name, key, axes)
            if narrow is not None:
                return narrow[0], along(narrow[1])
        if flow.target is None and flow.reads == "first":
            return FIRST, OWN
        if flow.target is None or flow.target not in axes:
            return EVERYWHERE, ALL if interval.exact else PERHAPS
        return flow.target, of_flow(flow)

    def _narrowed(
        self, body: Body, node: OpNode, name: str, key: str, axes: set[str]
    ) -> tuple[str, Interval] | None:
        """Return the axis and offsets to which masks limit what is read along ``key``."""
        supports = [s for s in self._limits(body, node, name) if s is not None]
        index = dict(zip(node.operands, node.inputs, strict=True)).get("index")
        found: list[tuple[str, Interval]] = []
        if index is not None and name == "x" and id(index) in body.points:
            found = [(a, i) for a, i in body.points[id(index)].near if a in axes]
        merged = intersect(supports, None)
        if merged is not None:
            for axis in axes - {key}:
                interval = merged.interval(key, axis)
                if interval is not None:
                    found.append((axis, interval))
        return min(found, key=lambda item: (item[1].hi, -item[1].lo), default=None)

    def _limits(self, body: Body, node: OpNode, name: str) -> Iterator[Support | None]:
        """Yield the supports that limit what one operand can contribute."""
        for other, value in zip(node.operands, node.inputs, strict=True):
            if other == "where":
                yield truth(value, body.supports)
            elif other == name:
                yield self.support(body, value)
            else:
                support = self.support(body, value)
                if support is not None and absorbed(node.op, other, support.value) is not None:
                    yield support

    def support(self, body: Body, value: Value) -> Support | None:
        """Return where a value can depend on the input."""
        if value.type.dtype == "bool":
            return truth(value, body.supports)
        return body.supports.get(id(value))

    def _support(
        self,
        body: Body,
        node: OpNode,
        given: list[tuple[str, Value]],
        flows: Mapping[str, list[Flow]],
        output: Value,
    ) -> Support | None:
        if len(token_axes(output.type)) < 2:
            return None
        if type(node.op).op_name == "where":
            return self._choice(body, node)
        if type(node.op).op_name in MOVES:
            value = node.inputs[0]
            moved = self.support(body, value)
            names = _kept(value.type, next(iter(flows.values()), ()), output.type)
            return moved.renamed(names) if moved is not None else None
        absorbing: list[Support] = []
        fixed = None
        plain: list[Support | None] = []
        for name, value in zip(node.operands, node.inputs, strict=True):
            support = truth(value, body.supports) if name == "where" else self.support(body, value)
            result = absorbed(node.op, name, support.value) if support is not None else None
            if support is not None and result is not None:
                moved = support.renamed(_kept(value.type, flows.get(name, ()), output.type))
                if moved is not None:
                    absorbing.append(moved)
                    fixed = result
            elif (name, value) in given and body.reads.get(id(value)):
                names = _kept(value.type, flows.get(name, ()), output.type, pointwise=True)
                plain.append(support.renamed(names) if support is not None else None)
        if absorbing:
            return intersect(absorbing, fixed)
        if plain and all(s is not None for s in plain):
            return unite([s for s in plain if s is not None])
        return None

    def _choice(self, body: Body, node: OpNode) -> Support | None:
        """The support of ``where(condition, x, y)``: where the varying side is chosen."""
        condition, x, y = node.inputs
        varies = [bool(body.reads.get(id(v))) for v in (x, y)]
        inside = truth(condition, body.supports)
        if inside is None or all(varies):
            return None
        if varies[1] or (not varies[0] and _hides(literal(x))):
            pairs = [(a, b, _outside(i)) for a, b, i in inside.pairs]
            return Support(tuple(pairs), literal(x))
        value = literal(y)
        found = [Support(inside.pairs, value)]
        own = self.support(body, x)
        if own is not None and own.value == value:
            found.append(own)
        return intersect(found, value)

    # ----------------------------------------------------------------- indices

    def _points(self, body: Body, node: OpNode, output: Value) -> Points | None:
        if output.type.dtype != "i64":
            return None
        name = type(node.op).op_name
        operands = dict(zip(node.operands, node.inputs, strict=True))
        if node.op.decision and "where" in operands:
            condition = truth(operands["where"], body.supports)
            over = getattr(node.op, "over", "")
            over = over[0] if isinstance(over, tuple) and over else over
            axes = {axis.name for axis in output.type.axes}
            near = [
                (axis, interval)
                for axis in axes
                if condition is not None
                and (interval := condition.interval(str(over), axis)) is not None
            ]
            return Points(tuple(near)) if near else None
        if name in ("maximum", "minimum", "clamp", "where", "as_axis", "rename", "stop_gradient"):
            return self._moved_points(body, node, output)
        return _affine_points(body, output)

    def _moved_points(self, body: Body, node: OpNode, output: Value) -> Points | None:
        """Positions limited to 0 or chosen among are still near the own one."""
        found: list[Points] = []
        for name, value in zip(node.operands, node.inputs, strict=True):
            if name == "condition":
                continue
            points = body.points.get(id(value))
            if points is None and literal(value) == 0:
                continue
            if points is None:
                return None
            names = _kept(value.type, node.op.flows().get(name, ()), output.type)
            found.append(points.renamed(names) or points)
        zero = any(literal(v) == 0 for v in node.inputs) or getattr(node.op, "min", None) == 0
        near: dict[str, Interval] = {}
        for points in found:
            for axis, interval in points.near:
                if zero:
                    interval = Interval(-INFINITY, max(interval.hi, 0), interval.exact)
                near[axis] = near[axis].union(interval) if axis in near else interval
        return Points(tuple(near.items())) if near else None

    # ----------------------------------------------------------------- calls and loops

    def _call(self, body: Body, node: CallNode) -> None:
        known = tuple(
            self._known(body, outer, inner)
            for outer, inner in zip(node.inputs, node.module.inputs, strict=True)
        )
        inner = self.body(node.module, known)
        body.called[id(node)] = [inner]
        operands = [(v.type, body.reads.get(id(v), {})) for v in node.inputs]
        for index, (output, result) in enumerate(
            zip(node.outputs, node.module.results, strict=True)
        ):
            names = positions(result.type, output.type)
            body.reads[id(output)] = compose(inner.result(index), inner, operands, names)
            support = inner.supports.get(id(result))
            if result.type.dtype == "bool":
                support = truth(result, inner.supports)
            moved = support.renamed(names) if support is not None else None
            if moved is not None:
                body.supports[id(output)] = moved
            points = inner.points.get(id(result))
            near = points.renamed(names) if points is not None else None
            if near is not None:
                body.points[id(output)] = near

    def _known(self, body: Body, outer: Value, inner: Value) -> Known:
        names = positions(outer.type, inner.type)
        support, points = self.support(body, outer), body.points.get(id(outer))
        return (
            support.renamed(names) if support is not None else None,
            points.renamed(names) if points is not None else None,
        )

    def _loop(self, body: Body, node: LoopNode) -> None:
        captured: list[Known] = [
            self._known(body, outer, inner)
            for outer, inner in zip(node.inputs[1:], node.modules[0].inputs[1:], strict=True)
        ]
        runs: list[tuple[Body, int]] = []
        for module in node.modules:
            inner = self.body(module, ((None, None), *captured))
            if runs and runs[-1][0] is inner:
                runs[-1] = (inner, runs[-1][1] + 1)
            else:
                runs.append((inner, 1))
        body.called[id(node)] = list(dict.fromkeys(inner for inner, _ in runs))
        total: Dependence | None = None
        for inner, count in runs:
            part = _power(inner, count)
            total = part if total is None else _after(inner, part, total)
        assert total is not None
        operands = [(v.type, body.reads.get(id(v), {})) for v in node.inputs]
        first, last = runs[0][0], runs[-1][0]
        names = positions(last.module.results[0].type, node.outputs[0].type)
        body.reads[id(node.outputs[0])] = compose(total, first, operands, names)


def _early(flow: Flow, crossing: Crossing) -> Flow:
    """Return a change of clock that is taken to read no later token: its cause is known."""
    if crossing.kind == "inside":
        return replace(flow, crossing=None, interval=POINTWISE)
    early = replace(crossing, whole=False, late=0, closed=True, lag=max(crossing.lag, 1))
    return replace(flow, crossing=early)


def itself(index: int, kind: ValueType) -> Dependence:
    """Return the dependence of an input on itself."""
    found: Dependence = {(index, ""): {EVERYWHERE: ALL}}
    for axis in token_axes(kind):
        found[index, axis.name] = {axis.name: OWN}
    return found


def varying(node: OpNode, training: bool = False) -> list[tuple[str, Value]]:
    """Return the operands that data flows through, with those that training alone reads if asked.

    Those that the compiler adds are not among them, nor those that give their type only: they
    have tokens, but the time rule does not speak of them.
    """
    added = {a.name for a in operand_fields(type(node.op)) if a.kind == "companion"}
    added |= set(() if training else node.op.training_operands)
    flows = node.op.flows()
    return [
        (name, value)
        for name, value in zip(node.operands, node.inputs, strict=True)
        if name not in added and (name in flows or not token_axes(value.type))
    ]


def positions(mine: ValueType, other: ValueType) -> dict[str, str]:
    """Return the names of axes in another body's view of the same value."""
    return {a.name: b.name for a, b in zip(mine.axes, other.axes, strict=False)}


def compose(
    summary: Dependence,
    inner: Body,
    operands: Sequence[tuple[ValueType, Dependence]],
    names: Mapping[str, str],
) -> Dependence:
    """Return what the result of a call depends on.

    Args:
        summary: what the callee's result depends on, over the callee's inputs.
        inner: the callee.
        operands: type and dependence of each operand in the caller.
        names: the caller's name of each axis of the callee's result.
    """
    found: Dependence = {}
    for (index, axis), keys in summary.items():
        kind, reads = operands[index]
        back = positions(inner.inputs[index].type, kind)
        for source, outer in reads.items():
            for key, reach in outer.items():
                if key is EVERYWHERE or key == FIRST:
                    if axis == "":
                        add(found, source, key, reach)
                elif axis and back.get(axis) == key:
                    for target, step in keys.items():
                        name = names.get(target, target) if target else target
                        way = join(reach, step, counted(kind, key))
                        add(found, source, *landing(name, way))
    return found


def counted(kind: ValueType, key: str | None) -> bool:
    """Return whether data decide how many entries a value has along an axis: chunks."""
    clock = next((a.clock for a in kind.axes if a.name == key), None)
    while clock is not None and not clock.cut:
        clock = clock.parent
    return clock is not None


def landing(target: str | None, reach: Reach) -> tuple[str | None, Reach]:
    """Return where a way ends: what has no axis left is read from everywhere.

    The first position reads the first one only, unless it reads later ones itself.
    """
    if target == FIRST and reach.hi > 0:
        target = EVERYWHERE
    if target is EVERYWHERE:
        return target, ALL if reach.sure > -INFINITY else PERHAPS
    return target, OWN if target == FIRST else reach


def _power(body: Body, count: int) -> Dependence:
    """Return the dependence of ``count`` iterations of a loop body, by doubling."""
    step = body.result(0)
    total: Dependence | None = None
    while True:
        if count % 2:
            total = step if total is None else _after(body, step, total)
        count //= 2
        if not count:
            break
        step = _after(body, step, step)
    assert total is not None
    return total


def _after(body: Body, second: Dependence, first: Dependence) -> Dependence:
    """Return one piece of a loop after another: the stream goes through both."""
    stream = (body.module.results[0].type, first)
    rest = [(v.type, itself(n, v.type)) for n, v in enumerate(body.inputs) if n]
    kind = body.module.results[0].type
    return compose(second, body, [stream, *rest], positions(kind, kind))


def _kept(
    kind: ValueType, flows: Sequence[Flow], result: ValueType, pointwise: bool = False
) -> dict[str, str]:
    """Return the token axes of an operand that a result keeps, by name."""
    axes = {axis.name for axis in result.axes}
    found: dict[str, str] = {}
    for axis in token_axes(kind):
        mine = [f for f in flows if f.source == axis.name] or [Flow(axis.name, axis.name)]
        for flow in mine:
            if flow.target in axes and (flow.interval == POINTWISE or not pointwise):
                found[axis.name] = str(flow.target)
    return found


def _hides(value: float | None) -> bool:
    """Whether a number is the one of two that stands for a masked score."""
    return value is not None and value <= -1e4


def _outside(interval: Interval) -> Interval:
    """Return the offsets at which a condition can fail."""
    if interval.exact and interval.lo == -INFINITY and interval.hi < INFINITY:
        return Interval(interval.hi + 1, INFINITY)
    if interval.exact and interval.hi == INFINITY and interval.lo > -INFINITY:
        return Interval(-INFINITY, interval.lo - 1)
    return UNDECIDED


def _affine_points(body: Body, output: Value) -> Points | None:
    """Positions computed from the own one by adding a number."""
    if body.reads.get(id(output)):
        return None
    near = []
    for axis in output.type.axes:
        if axis.clock is not None:
            affine = PredicateReader(axis.name, "")._affine(output, {})
            if affine is not None and affine.query == 1 and affine.key == 0:
                near.append((axis.name, Interval(affine.constant, affine.constant)))
    return Points(tuple(near)) if near else None


__all__ = ["Body", "Timing", "both", "compose", "itself", "positions", "varying"]
