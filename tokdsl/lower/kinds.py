"""Experts of several kinds: each kind has its own share of the choices, and the results are added.

A dispatch is split into the rows of each kind, and these are joined again before the combination.
Here a kind that is a `Network` becomes a `MixNode`, which ignores the choices of the others.
Experts that give a multiple of their row need no rows: that is the token times its weights for
them. Any other kind is dispatched and combined by itself. So there is no copy of all rows, and what
one kind is does not change how the others run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tokdsl.checks.support import absorbed
from tokdsl.graph.program import CallNode, Module, Node, OpNode, Value
from tokdsl.lower.kernels.report import RegionReport
from tokdsl.lower.kernels.rows import is_free
from tokdsl.lower.networks import Apart, MixNode, Network, in_parts
from tokdsl.ops.activations import Negate
from tokdsl.ops.ambient import Constant
from tokdsl.ops.elementwise import Multiply
from tokdsl.ops.route import (
    CombineKind,
    DispatchKind,
    JoinRows,
    SplitRows,
    SumKinds,
    WeighTokens,
)
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, RouteType, TensorType, ValueType

Values = tuple[Value, ...]

#: how experts are run: the parts of a network, which multiple of their row they give, or None if
#: they have rows of their own
Way = Network | float | None


@dataclass(eq=False)
class _Kind:
    """Some experts that follow each other.

    Args:
        start: number of the first of them.
        count: how many there are.
        rows: the tokens that are sent to them.
        groups: how many each of them has.
        part: what they make of the rows.
        way: how they are run.
    """

    start: int
    count: int
    rows: Value
    groups: Value
    part: Value
    way: Way = None

    @property
    def text(self) -> str:
        """Their numbers, and the definition that they are calls of."""
        last = self.start + self.count - 1
        text = f"experts {self.start} to {last}" if self.count > 1 else f"expert {last}"
        node = self.part.node
        return f"{text} (`{node.module.name}`)" if isinstance(node, CallNode) else text


class Kinds:
    """The kinds of experts of one dispatch.

    Args:
        module: the body in which it stands.
        dispatch: the rows of all kinds.
        split: the rows of each kind.
        combine: the weighted sum.
        readers: the nodes of the body that read a value, by its identity.

    Raises:
        Apart: if what is joined again goes elsewhere too.
    """

    def __init__(
        self,
        module: Module,
        dispatch: OpNode,
        split: OpNode,
        combine: OpNode,
        readers: dict[int, list[Node]],
    ) -> None:
        self.module = module
        self.dispatch = dispatch
        self.split = split
        self.combine = combine
        self.readers = readers
        self.join = self._join()
        #: what is said of each kind
        self.reports: list[RegionReport] = []
        #: values that were not there before
        self.made: list[Value] = []
        self._replaced: dict[int, list[Node]] = {}
        self._weighed: list[Node] = []

    def _join(self) -> OpNode:
        value = self.combine.inputs[0]
        join = value.node
        is_join = isinstance(join, OpNode) and isinstance(join.op, JoinRows)
        if not is_join or self._read(value) != [self.combine]:
            raise Apart("the rows of several kinds go to more than `combine`", self.combine.span)
        assert isinstance(join, OpNode)
        return join

    def _read(self, value: Value) -> list[Node | None]:
        """Return what reads a value; None stands for the caller of this body."""
        outside = [None] if any(value is v for v in self.module.results) else []
        return [*self.readers.get(id(value), []), *outside]

    def replacements(self) -> dict[int, list[Node]]:
        """Return what stands for each node that goes, by its identity; {} if all stay."""
        kinds = list(self._kinds())
        for kind in kinds:
            kind.way = self._way(kind)
        if all(kind.way is None for kind in kinds):
            return {}  # one dispatch for all is less work than one for each
        some = [kind for kind in kinds if kind.way != 0.0] or kinds
        parts = [self._part(kind) for kind in some]
        for kind in kinds:
            if isinstance(kind.way, float):
                self._replaced |= {id(node): [] for node in self._inner(kind)}
        total = OpNode(
            tuple(parts),
            self.combine.outputs,
            self.combine.span,
            op=SumKinds(parts=tuple(v.type for v in parts)),
            operands=tuple(f"parts_{i}" for i in range(len(parts))),
        )
        total.outputs[0].node = total
        for node in (self.dispatch, self.split, self.join):
            self._replaced[id(node)] = [
                n for n in self._replaced.get(id(node), []) if n is not node
            ]
        self._replaced[id(self.combine)] = [*self._weighed, total]
        return self._replaced

    def _kinds(self) -> Iterator[_Kind]:
        split = self.split.op
        assert isinstance(split, SplitRows) and isinstance(split.counts, tuple)
        start = 0
        for i, (count, part) in enumerate(zip(split.counts, self.join.inputs, strict=True)):
            rows, groups = self.split.outputs[2 * i : 2 * i + 2]
            yield _Kind(start, count, rows, groups, part)
            start += count

    # ----------------------------------------------------------------- how a kind is run

    def _way(self, kind: _Kind) -> Way:
        """Return how a kind is run; report it."""
        node = kind.part.node
        inner = self._inner(kind)
        report = RegionReport(
            "experts",
            self.module.name,
            ("dispatch", *(n.op.op_name for n in inner), "combine"),
            kind.part.span if kind.part is not kind.rows else self.combine.span,
            part=kind.text,
        )
        self.reports.append(report)
        try:
            if isinstance(node, CallNode):
                return self._network(kind, node, report)
        except Apart as apart:
            report.reason, report.span = str(apart), apart.span
            return None
        fits = self._is_alone(kind, inner) and _shape(kind.part) == _shape(kind.rows)
        factor = _multiple(kind.part, kind.rows) if fits else None
        what = "have no linear maps" if factor is None else "give a multiple of the token"
        report.reason = f"experts of this kind {what if factor != 0.0 else 'give nothing'}"
        return factor

    def _network(self, kind: _Kind, call: CallNode, report: RegionReport) -> Network:
        """Return the parts of the experts.

        Raises:
            Apart: if they have none.
        """
        if call.inputs != (kind.rows, kind.groups):
            raise Apart("experts read more than their rows", call.span)
        alone = self._read(kind.rows) == self._read(kind.groups) == [call]
        if not alone or len(call.outputs) != 1 or self._read(kind.part) != [self.join]:
            raise Apart("the rows of this kind go to more than one definition", call.span)
        return in_parts(call.module, report)

    def _inner(self, kind: _Kind) -> list[OpNode]:
        """Return the operations that make the result of the rows: of experts, or in the body."""
        node = kind.part.node
        if isinstance(node, CallNode):
            nodes = [n for n in node.module.nodes if isinstance(n, OpNode)]
            return [n for n in nodes if not is_free(n)]
        known, wanted = {id(kind.rows)}, {id(kind.part)}
        after = [n for n in self.module.nodes if _passes_on(n.inputs, n.outputs, known)]
        return [
            n
            for n in reversed(after)
            if _passes_on(n.outputs, n.inputs, wanted) and isinstance(n, OpNode)
        ][::-1]

    def _is_alone(self, kind: _Kind, nodes: list[OpNode]) -> bool:
        """Whether nothing but these operations reads the rows and what is made of them."""
        ends = [*nodes, self.join]
        values = [kind.rows, *(v for node in nodes for v in node.outputs)]
        alone = all(any(n is e for e in ends) for v in values for n in self._read(v))
        return alone and not self._read(kind.groups)

    # ----------------------------------------------------------------- what stands for a kind

    def _part(self, kind: _Kind) -> Value:
        """Return the result of one kind for all tokens."""
        if isinstance(kind.way, Network):
            return self._mixed(kind, kind.way)
        if kind.way is None:
            return self._combined(kind)
        return self._weigh(kind, kind.way)

    def _mixed(self, kind: _Kind, network: Network) -> Value:
        """Put one node for the experts where they were called."""
        call = kind.part.node
        assert isinstance(call, CallNode)
        call.module.inputs[-1].python = "Tensor | int"
        node = MixNode(
            self.dispatch.inputs,
            call.outputs,
            call.span,
            call.attribute,
            module=call.module,
            shared=call.shared,
            experts=kind.count,
            network=network,
            drops=True,
            start=kind.start,
        )
        kind.part.type = self._tokens(kind.part.type)
        kind.part.name = kind.part.name or call.attribute
        kind.part.node = node
        self._replaced[id(call)] = [node]
        return kind.part

    def _combined(self, kind: _Kind) -> Value:
        """Give the experts rows of their own, and combine these."""
        x, route = self.dispatch.inputs
        rows = kind.rows.type
        assert isinstance(rows, TensorType)
        op = DispatchKind(x=x.type, route=route.type, start=kind.start, rows=rows.axes[0])
        of_order = op.type()[2]
        order = Value(of_order, kind.rows.span, owner=self.module)
        outputs = (kind.rows, kind.groups, order)
        node = OpNode((x, route), outputs, self.dispatch.span, op=op, operands=("x", "route"))
        for i, value in enumerate(outputs):
            value.node, value.index = node, i
        kind.rows.name = kind.rows.name or "rows"
        self.made.append(order)
        combined = CombineKind(y=kind.part.type, route=route.type, order=of_order)
        made = kind.part.node
        name = made.attribute if isinstance(made, CallNode) else "combined"
        result = self._node(combined, (kind.part, route, order), ("y", "route", "order"), name)
        assert made is not None and result.node is not None
        # the rows are made where they are needed first, and gone when they are combined
        ends = self._replaced.setdefault(id(made), [made]) if made is not node else self._weighed
        ends.append(result.node)
        readers = (n for n in self.module.nodes if any(v in n.inputs for v in outputs))
        first = next(readers)
        self._replaced.setdefault(id(first), [first]).insert(0, node)
        return result

    def _weigh(self, kind: _Kind, factor: float) -> Value:
        """Multiply each token by its weights for the experts."""
        x, route = self.dispatch.inputs
        op = WeighTokens(
            y=x.type, route=route.type, start=kind.start, count=kind.count, factor=factor
        )
        result = self._node(op, (x, route), ("y", "route"), "weighed")
        assert result.node is not None
        self._weighed.append(result.node)
        return result

    def _node(
        self,
        op: CombineKind | WeighTokens,
        inputs: tuple[Value, ...],
        operands: tuple[str, ...],
        name: str,
    ) -> Value:
        value = Value(op.type(), self.combine.span, name, owner=self.module)
        node = OpNode(inputs, (value,), self.combine.span, op=op, operands=operands)
        value.node = node
        self.made.append(value)
        return value

    def _tokens(self, kind: ValueType) -> ValueType:
        """Return the type of what is no longer computed for rows but for tokens."""
        route, result = self.dispatch.inputs[1].type, self.combine.outputs[0].type
        assert isinstance(route, RouteType) and isinstance(result, TensorType)
        if not isinstance(kind, TensorType) or not any(map(_is_rows, kind.axes)):
            return kind
        axes = (*route.tokens, *(axis for axis in kind.axes if not _is_rows(axis)))
        return replace(kind, axes=axes, batched=result.batched)


def _passes_on(read: Values, made: Values, known: set[int]) -> bool:
    """Whether a node reads a known value; then what it makes is known too."""
    found = any(id(value) in known for value in read)
    known |= {id(value) for value in made} if found else set()
    return found


def _multiple(value: Value, rows: Value) -> float | None:
    """Return the number that rows are multiplied with to give a value, if it is no more."""
    node = value.node
    if value is rows:
        return 1.0
    if not isinstance(node, OpNode):
        return None
    if isinstance(node.op, Negate):
        inner = _multiple(node.inputs[0], rows)
        return None if inner is None else -inner
    pairs = list(zip(node.operands, node.inputs, strict=True))
    if any(absorbed(node.op, name, _literal(v)) == 0.0 for name, v in pairs):
        return 0.0
    if isinstance(node.op, Multiply):
        for (_, one), (_, other) in (pairs, pairs[::-1]):
            number, inner = _literal(one), _multiple(other, rows)
            if number is not None and inner is not None:
                return number * inner
    return None


def _literal(value: Value) -> float | None:
    node = value.node
    if not isinstance(node, OpNode) or not isinstance(node.op, Constant):
        return None
    return node.op.value if isinstance(node.op.value, float) else None


def _shape(value: Value) -> tuple[str, list[Dim]]:
    return value.type.dtype, [axis.size for axis in value.type.axes]


def _is_rows(axis: Axis) -> bool:
    return axis.group is not None


__all__ = ["Kinds"]
