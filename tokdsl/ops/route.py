"""Routing of tokens to experts: the route, dispatch of tokens, combination of results."""

from __future__ import annotations

from itertools import count
from typing import ClassVar

from tokdsl.ops.base import AxisRef, Code, Companion, Fault, Op, Operand, op, tensor
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, RouteType, TensorType
from tokdsl.types.time import Flow

_numbers = count(1)


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

    Shape: i64 [*, top], [*, top] -> route[experts, top].   Gradient: smooth in the weights,
    none through the choice.
    """

    #: what is recorded is the choice of ``pick``, by the operation that makes it
    decision: ClassVar[bool] = True

    pick: Operand
    weight: Operand
    experts: Dim | None = None

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
        return RouteType(pick.axes[:-1], Axis("experts", size), pick.axes[-1])

    def flows(self) -> dict[str, list[Flow]]:
        """Every token decides for itself."""
        axes = tensor(self.pick, "pick").axes
        return {name: _by_name(kind, axes) for name, kind in self.operand_types()}  # type: ignore[arg-type]

    def gradient(self) -> dict[str, bool]:
        """Only through the weights."""
        return {"pick": False, "weight": True}

    def annotation(self) -> str:
        """The package's ``Route``."""
        return "Route"

    def torch(self, code: Code) -> str:
        """The pair."""
        return f"{code.use('Route')}({code['pick']}, {code['weight']})"


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

    x: Operand
    route: Operand
    rows: object = None

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
        name = f"rows_{self.rows}"
        return Axis("rows", Dim.of(name), group=route.experts)

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
        experts = code.size(_route(self.route, "route").experts.size)
        return f"{code.use('dispatch')}({code['x']}, {code['route']}.pick, {experts})"


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
        return f"{code.use('combine')}({code['y']}, {code['route']}.weight, {code['order']})"


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


__all__ = ["AxisRef", "Combine", "Dispatch", "PerRow", "Route", "RouteField"]
