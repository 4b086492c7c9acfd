"""Routing of tokens to experts: the route, dispatch of tokens, combination of results."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from tokdsl.ops.base import AxisRef, Code, Companion, Fault, Op, Operand, op, tensor
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, RouteType, TensorType, promote
from tokdsl.types.time import Flow


def _route(kind: object, argument: str) -> RouteType:
    if isinstance(kind, RouteType):
        return kind
    raise Fault("operand-kind", f"`{argument}` must be a route, found {kind}", argument)


def _by_name(kind: RouteType | TensorType, target: tuple[Axis, ...]) -> list[Flow]:
    names = {a.name for a in target}
    return [Flow(a.name, a.name) for a in kind.axes if a.clock is not None and a.name in names]


@op("route")
class Route(Op):
    """A decision: which experts each token goes to (``pick``) and with what ``weight``.

    With ``expected``, a pick of -1 is no choice: nothing is sent there, and nothing comes back.

    Args:
        expected: how many choices a token has on average where some picks are -1; without it
            every pick must be a choice.

    Shape: i64 [*, top], [*, top] -> route[experts, top].   Gradient: smooth in the weights,
    none through the choice.
    """

    #: the choice of ``pick`` is recorded by the operation that makes it, here only what is dropped
    decision: ClassVar[bool] = True

    pick: Operand
    weight: Operand
    experts: Dim | None = None
    expected: float | None = None

    def type(self) -> RouteType:
        """Tokens, experts and choices."""
        pick, weight = tensor(self.pick, "pick"), tensor(self.weight, "weight")
        if pick.dtype != "i64":
            raise Fault("operand-kind", f"`pick` must be indices, found {pick}", "pick")
        if [a.name for a in pick.axes] != [a.name for a in weight.axes]:
            raise Fault(
                "operand-shape", f"picks {pick} and weights {weight} have different axes", "weight"
            )
        size = self.experts if self.experts is not None else pick.classes
        if size is None:
            raise Fault(
                "missing-argument",
                "`route` needs `experts`, the number that the picks choose from",
                help="write `route(pick, weight; experts = experts)`",
            )
        if self.expected is not None and self.expected <= 0:
            raise Fault("argument-type", "`expected` must be a positive number", "expected")
        expected = float(self.expected or 0.0)
        batched = pick.batched or weight.batched
        experts = Axis("experts", size)
        return RouteType(pick.axes[:-1], experts, pick.axes[-1], batched, expected=expected)

    def flows(self) -> dict[str, list[Flow]]:
        """Every token decides for itself."""
        axes = tensor(self.pick, "pick").axes
        return {name: _by_name(kind, axes) for name, kind in self.operand_types()}  # type: ignore[arg-type]

    def gradient(self) -> dict[str, bool]:
        """Only through the weights."""
        return {"pick": False, "weight": True}

    def choice(self) -> TensorType | None:
        """The picks, where some are none."""
        return tensor(self.pick, "pick") if self.expected else None

    def annotation(self) -> str:
        """The package's ``Route``."""
        return "Route"

    def torch(self, code: Code) -> str:
        """The pair."""
        pick = code["pick"]
        if code.decision:
            pick = f"{code.use('decided')}({pick}, {code.decision})"
        return f"{code.use('Route')}({pick}, {code['weight']})"


@op("route_field")
class RouteField(Op):
    """``r.pick`` or ``r.weight`` of a route."""

    internal: ClassVar[bool] = True

    route: Operand
    part: str = "weight"

    def type(self) -> TensorType:
        """The picks or weights."""
        kind = _route(self.route, "route")
        if self.part == "pick":
            return TensorType(kind.axes, "i64", classes=kind.experts.size)
        return TensorType(kind.axes)

    def flows(self) -> dict[str, list[Flow]]:
        """Every token its own."""
        return {"route": _by_name(_route(self.route, "route"), self.route.axes)}

    def gradient(self) -> dict[str, bool]:
        """Weights are smooth, picks are not."""
        return {"route": self.part == "weight"}

    def torch(self, code: Code) -> str:
        """The attribute."""
        return f"{code['route']}.{self.part}"


@op("dispatch")
class Dispatch(Op):
    """The tokens of each expert, one row per choice, sorted by expert (none is dropped).

    Shape: [*, d], route[experts, top] -> rows [rows by expert, d].   Gradient: smooth.
    """

    hidden: ClassVar[tuple[str, ...]] = ("rows",)
    companions: ClassVar[tuple[str, ...]] = ("groups", "order")

    x: Operand
    route: Operand
    rows: int = 0

    def type(self) -> tuple[TensorType, TensorType, TensorType]:
        """Rows; how many each expert has; and which choice each row is."""
        x, route = tensor(self.x, "x"), _route(self.route, "route")
        mine = x.axes[: len(x.axes) - 1]
        if [a.name for a in mine] != [a.name for a in route.tokens]:
            raise Fault(
                "operand-shape",
                f"tokens {x} and the route of {TensorType(route.tokens)} do not agree",
                "route",
            )
        axis = self._rows(x, route)
        return (
            TensorType((axis, x.axes[-1]), x.dtype, batched=False),
            TensorType((route.experts,), "i64", batched=False),
            TensorType((axis,), "i64", batched=False),
        )

    def _rows(self, x: TensorType, route: RouteType) -> Axis:
        return Axis("rows", Dim.of(f"rows_{self.rows}"), group=route.experts)

    def sent(self) -> dict[str, RouteType]:
        """Return the route by which rows were made, by the size of their axis."""
        return {f"rows_{self.rows}": _route(self.route, "route")}

    def flows(self) -> dict[str, list[Flow]]:
        """Rows are tokens of their own; the way back is by ``combine``."""
        return {
            "x": [Flow(a.name, "rows") for a in self.x.axes if a.clock is not None],
            "route": [Flow(a.name, "rows") for a in self.route.axes if a.clock is not None],
        }

    def gradient(self) -> dict[str, bool]:
        """Rows are copies; the choice has no gradient."""
        return {"x": True, "route": False}

    def torch(self, code: Code) -> str:
        """A call of the package's ``dispatch``."""
        route = _route(self.route, "route")
        function = code.use("dispatch_some" if route.expected else "dispatch")
        return f"{function}({code['x']}, {code['route']}.pick, {code.size(route.experts.size)})"


@op("combine")
class Combine(Op):
    """The weighted sum, per token, of the rows of its choices.

    Shape: rows [rows by expert, d], route[experts, top] -> [*, d].   Gradient: smooth.
    """

    y: Operand
    route: Operand
    order: Companion | None = None

    def type(self) -> TensorType:
        """The tokens that were dispatched, with the rows' last axes."""
        y, route = tensor(self.y, "y"), _route(self.route, "route")
        if not any(a.group is not None for a in y.axes):
            raise Fault("operand-kind", f"`y` must be dispatched rows, found {y}", "y")
        rest = tuple(a for a in y.axes if a.group is None)
        return TensorType((*route.tokens, *rest), y.dtype)

    def flows(self) -> dict[str, list[Flow]]:
        """Every row goes back to its token."""
        route = _route(self.route, "route")
        tokens = [a.name for a in route.tokens if a.clock is not None]
        rows = next(a.name for a in self.y.axes if a.group is not None)
        return {
            "y": [Flow(rows, name) for name in tokens],
            "route": [Flow(name, name) for name in tokens],
        }

    def gradient(self) -> dict[str, bool]:
        """Smooth in rows and weights."""
        return {"y": True, "route": True, "order": False}

    def torch(self, code: Code) -> str:
        """A call of the package's ``combine``."""
        function = code.use("combine_some" if _route(self.route, "route").expected else "combine")
        return f"{function}({code['y']}, {code['route']}.weight, {code['order']})"


@op("split_rows")
class SplitRows(Op):
    """Dispatched rows cut where one kind of experts ends and the next begins.

    Shape: [rows by expert, d] -> for each kind: [its rows by expert, d], i64 [its experts].
    Gradient: smooth.
    """

    internal: ClassVar[bool] = True
    hidden: ClassVar[tuple[str, ...]] = ("rows",)

    x: Operand
    groups: Companion
    counts: object = ()
    route: object = None
    rows: int = 0

    def type(self) -> tuple[TensorType, ...]:
        """Return the rows of each kind and how many each of its experts has."""
        x = tensor(self.x, "x")
        found: list[TensorType] = []
        for name, route in self.sent().items():
            axis = Axis("rows", Dim.of(name), group=route.experts)
            found.append(x.with_axes((axis, *x.axes[1:])))
            found.append(TensorType((route.experts,), "i64", batched=False))
        return tuple(found)

    def sent(self) -> dict[str, RouteType]:
        """Return the part of the route for each kind of experts, by the size of its rows."""
        route, counts = self.route, self.counts
        assert isinstance(route, RouteType) and isinstance(counts, tuple)
        total = sum(counts)
        top = route.expected or route.top.size.number or 1
        return {
            f"rows_{self.rows}_{i}": replace(
                route, experts=Axis("experts", Dim.of(n)), expected=top * n / total
            )
            for i, n in enumerate(counts)
        }

    def flows(self) -> dict[str, list[Flow]]:
        """Every row keeps to itself."""
        return {"x": [Flow("rows", "rows")]}

    def gradient(self) -> dict[str, bool]:
        """Rows are views."""
        return {"x": True, "groups": False}

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        assert isinstance(self.counts, tuple)
        return f"{code.use('split_rows')}({code['x']}, {code['groups']}, {self.counts})"


@op("join_rows")
class JoinRows(Op):
    """The rows of several kinds of experts, as they were before they were split.

    Shape: [rows by expert, d], ... -> [rows by expert, d].   Gradient: smooth.
    """

    internal: ClassVar[bool] = True

    parts: tuple[Operand, ...]
    rows: object = None

    def type(self) -> TensorType:
        """Return the rows of all kinds.

        Raises:
            Fault: if the kinds give different results.
        """
        kinds = [tensor(kind, "parts") for kind in self.parts]
        first = kinds[0]
        for kind in kinds[1:]:
            if [a.size for a in kind.axes[1:]] != [a.size for a in first.axes[1:]]:
                raise Fault(
                    "size-mismatch", f"one kind of experts gives {first}, another {kind}", "parts"
                )
        assert isinstance(self.rows, Axis)
        dtype = promote(*(kind.dtype for kind in kinds))
        return TensorType((self.rows, *first.axes[1:]), dtype, batched=False)

    def flows(self) -> dict[str, list[Flow]]:
        """Every row keeps to itself."""
        return {name: [Flow("rows", "rows")] for name, _ in self.operand_types()}

    def torch(self, code: Code) -> str:
        """Return the concatenation."""
        parts = ", ".join(code[name] for name, _ in self.operand_types())
        return f"torch.cat(({parts}))"


@op("dispatch_kind")
class DispatchKind(Op):
    """The tokens of the experts of one kind, one row per choice, sorted by expert.

    Args:
        start: number of the first of them; choices of others get no row.
        rows: the axis of the rows.

    Shape: [*, d], route[experts, top] -> rows [rows by expert, d], i64 [its experts], i64 [rows].
    Gradient: smooth.
    """

    internal: ClassVar[bool] = True
    companions: ClassVar[tuple[str, ...]] = ("groups", "order")

    x: Operand
    route: Operand
    start: int = 0
    rows: object = None

    def type(self) -> tuple[TensorType, TensorType, TensorType]:
        """Rows; how many each expert has; and which choice each row is."""
        x, rows = tensor(self.x, "x"), self.rows
        assert isinstance(rows, Axis) and rows.group is not None
        return (
            TensorType((rows, x.axes[-1]), x.dtype, batched=False),
            TensorType((rows.group,), "i64", batched=False),
            TensorType((rows,), "i64", batched=False),
        )

    def flows(self) -> dict[str, list[Flow]]:
        """Rows are tokens of their own."""
        return {
            name: [Flow(a.name, "rows") for a in kind.axes if a.clock is not None]
            for name, kind in self.operand_types()
        }

    def gradient(self) -> dict[str, bool]:
        """Rows are copies; the choice has no gradient."""
        return {"x": True, "route": False}

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        assert isinstance(self.rows, Axis) and self.rows.group is not None
        chosen = f"{code['route']}.pick, {code.size(self.rows.group.size)}"
        start = f", start={self.start}" if self.start else ""
        return f"{code.use('dispatch_some')}({code['x']}, {chosen}{start})"


@op("combine_kind")
class CombineKind(Combine):
    """The weighted sum, per token, of the rows of one kind of experts; 0 without any.

    Shape: rows [rows by expert, d], route[experts, top] -> [*, d].   Gradient: smooth.
    """

    internal: ClassVar[bool] = True

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        rows = f"{code['y']}, {code['route']}.weight, {code['order']}"
        return f"{code.use('combine_some')}({rows})"


@op("weigh_tokens")
class WeighTokens(Op):
    """What experts that copy a token give: a multiple of it, times its weights for them.

    Args:
        start: number of the first of them.
        count: how many there are.
        factor: which multiple.

    Shape: [*, d], route[experts, top] -> [*, d].   Gradient: smooth.
    """

    internal: ClassVar[bool] = True

    y: Operand
    route: Operand
    start: int = 0
    count: int = 1
    factor: float = 1.0

    def type(self) -> TensorType:
        """As the tokens."""
        return tensor(self.y, "y")

    def flows(self) -> dict[str, list[Flow]]:
        """Every token keeps to itself."""
        axes = tensor(self.y, "y").axes
        return {name: _by_name(kind, axes) for name, kind in self.operand_types()}  # type: ignore[arg-type]

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        chosen = f"{code['route']}.pick, {code['route']}.weight, {self.count}"
        start = f", start={self.start}" if self.start else ""
        text = f"{code.use('weigh_tokens')}({code['y']}, {chosen}{start})"
        return text if self.factor == 1.0 else f"{self.factor!r} * {text}"


@op("sum_kinds")
class SumKinds(Op):
    """The results of several kinds of experts together.

    Shape: [*, d], ... -> [*, d].   Gradient: smooth.
    """

    internal: ClassVar[bool] = True

    parts: tuple[Operand, ...]

    def type(self) -> TensorType:
        """As each of them."""
        kinds = [tensor(kind, "parts") for kind in self.parts]
        return kinds[0].with_dtype(promote(*(kind.dtype for kind in kinds)))

    def torch(self, code: Code) -> str:
        """Return the sum."""
        return " + ".join(code[name] for name, _ in self.operand_types())


@op("per_row")
class PerRow(Op):
    """A parameter stacked over experts as one entry per dispatched row.

    Shape: [*], i64 [experts] -> [rows, *].   Gradient: smooth.
    """

    internal: ClassVar[bool] = True

    x: Operand
    groups: Companion
    rows: object = None

    def type(self) -> TensorType:
        """The rows axis, then the parameter's own axes."""
        assert isinstance(self.rows, Axis)
        return TensorType((self.rows, *self.x.axes), self.x.dtype, batched=False)

    def flows(self) -> dict[str, list[Flow]]:
        """Parameters have no positions."""
        return {}

    def gradient(self) -> dict[str, bool]:
        """Smooth in the parameter."""
        return {"x": True, "groups": False}

    def torch(self, code: Code) -> str:
        """Repeat each expert's entry for its rows."""
        return f"{code['x']}.repeat_interleave({code['groups']}, dim=0)"


__all__ = [
    "AxisRef",
    "Combine",
    "CombineKind",
    "Dispatch",
    "DispatchKind",
    "JoinRows",
    "PerRow",
    "Route",
    "RouteField",
    "SplitRows",
    "SumKinds",
    "WeighTokens",
]
