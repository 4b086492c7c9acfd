"""``each(expert, rows)``: one set of parameters per entry of the axis by which rows are grouped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokdsl.graph.builder import Poison
from tokdsl.graph.frame import Frame
from tokdsl.graph.program import OpNode, Value
from tokdsl.graph.statics import AbstractClosure, Closure, Repeated, Unknown
from tokdsl.ops.route import Dispatch, JoinRows, SplitRows
from tokdsl.syntax import tree
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, RouteType, UnknownType

if TYPE_CHECKING:
    from tokdsl.graph.calls import Calls


class ExpertsBuilder:
    """One call of ``each``.

    A list, such as ``[6 of swiglu(hidden = 64), 2 of identity()]``, names experts of several kinds
    in the order of the axis: each kind gets its own rows.
    """

    def __init__(self, calls: Calls, frame: Frame, node: tree.Call) -> None:
        self.calls = calls
        self.frame = frame
        self.node = node

    def build(self) -> object:
        """Return the rows as their experts give them back.

        Raises:
            Poison: if the arguments do not fit (reported).
        """
        node, fail = self.node, self.calls.fail
        if len(node.operands) != 2 or node.statics:
            text = "`each` takes a definition and the rows of a dispatch: `each(expert, rows)`"
            raise fail(self.frame, "missing-argument", node.span, text)
        experts, rows = (self.calls.evaluate(self.frame, a.value) for a in node.operands)
        if isinstance(experts, AbstractClosure | Unknown):
            return rows
        kinds = kinds_of(experts)
        if not isinstance(rows, Value) or not kinds:
            text = "`each` takes a definition, or a list of them, and tensor rows"
            raise fail(self.frame, "operand-kind", node.span, text)
        if isinstance(rows.type, UnknownType):
            raise Poison
        axis = next((a for a in rows.type.axes if a.group is not None), None)
        if axis is None or axis.group is None:
            raise fail(
                self.frame,
                "operand-kind",
                node.operands[1].span,
                f"`each` needs dispatched rows, found {rows.type}",
                help="dispatch first: `rows = dispatch(x, r)`",
            )
        if isinstance(experts, tuple) and (
            len(kinds) > 1 or axis.group.size != Dim.of(kinds[0][0])
        ):
            return self._several(kinds, rows, axis)
        name = node.operands[0].value
        wanted = name.id if isinstance(name, tree.Name) else kinds[0][1].name
        return self._stacked(kinds[0][1], rows, axis.group, wanted)

    def _stacked(self, closure: Closure, rows: Value, experts: Axis, wanted: str) -> object:
        """Apply a definition to rows with one set of parameters per expert."""
        frame = self.frame
        frame.targets[id(self.node)] = wanted
        outer, frame.stack = frame.stack, experts
        try:
            return self.calls.apply_closure(frame, closure, rows, self.node)
        finally:
            frame.stack = outer

    def _several(self, kinds: list[tuple[int, Closure]], rows: Value, axis: Axis) -> Value:
        """Apply each kind of experts to its own rows, and put the results together again."""
        calls, frame, node = self.calls, self.frame, self.node
        assert axis.group is not None
        total = sum(count for count, _ in kinds)
        if axis.group.size != Dim.of(total):
            raise calls.fail(
                frame,
                "size-mismatch",
                node.operands[0].span,
                f"the list has {total} experts, the route goes to {axis.group.size}",
            )
        groups = calls.companion(frame, "groups", [rows])
        assert groups is not None
        split = SplitRows(
            x=rows.type,
            groups=groups.type,  # type: ignore[arg-type]
            counts=tuple(count for count, _ in kinds),
            route=self._route(axis),
            rows=calls.rows_before(frame),
        )
        parts = calls.apply(frame, split, {"x": rows, "groups": groups}, node.span)
        results: dict[str, Value] = {}
        for i, (_, closure) in enumerate(kinds):
            own, counts = parts[2 * i : 2 * i + 2]
            calls.note_companions(frame, (own, counts), ("groups",))
            group = own.type.axes[0].group
            assert group is not None
            result = self._stacked(closure, own, group, closure.name)
            results[f"parts_{i}"] = calls.tensor(frame, result, node)
        join = JoinRows(parts=tuple(v.type for v in results.values()), rows=axis)
        return calls.apply(frame, join, results, node.span)[0]

    def _route(self, axis: Axis) -> RouteType:
        """Return the route by which the rows on an axis were made."""
        return next(
            route
            for made in self.frame.module.nodes
            if isinstance(made, OpNode) and isinstance(made.op, Dispatch)
            for name, route in made.op.sent().items()
            if name == str(axis.size)
        )


def kinds_of(experts: object) -> list[tuple[int, Closure]]:
    """Return how many experts there are of each kind, in order; [] if they are no definitions."""
    kinds: list[tuple[int, Closure]] = []
    for item in experts if isinstance(experts, tuple) else (experts,):
        count, closure = (item.count, item.value) if isinstance(item, Repeated) else (1, item)
        if not isinstance(closure, Closure):
            return []
        if kinds and kinds[-1][1].key() == closure.key():
            count += kinds.pop()[0]
        kinds.append((count, closure))
    return kinds


__all__ = ["ExpertsBuilder", "kinds_of"]
