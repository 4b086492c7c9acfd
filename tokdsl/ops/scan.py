"""Recurrences along tokens whose parallel form is exact."""

from __future__ import annotations

from dataclasses import replace

from tokdsl.ops.axes import aligned, need_float, product, state_argument, valid_argument
from tokdsl.ops.base import (
    AxisRef,
    Code,
    Companion,
    Cost,
    Fault,
    Op,
    Operand,
    StateSpec,
    broadcast,
    find_axis,
    op,
    tensor,
)
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import PAST, Flow


class _Recurrence(Op):
    """Base of the recurrences over a token axis."""

    def tokens(self, kind: TensorType) -> Axis:
        """Return the axis that the recurrence runs along.

        Raises:
            Fault: if it does not exist or holds no tokens.
        """
        over: AxisRef | None = getattr(self, "over", None)
        if over is not None:
            axis = find_axis(kind, over, "over")
        else:
            axis = next((a for a in kind.axes if a.clock is not None), Axis("", Dim.of(1)))
        if axis.clock is None:
            raise Fault(
                "operand-shape", f"`{self.op_name}` runs along a token axis, found {kind}", "over"
            )
        return axis

    def type(self) -> TensorType:
        """Return the type of the result."""
        raise TypeError("declared by the operation")

    def flows(self) -> dict[str, list[Flow]]:
        """All positions up to the own one."""
        own = self.tokens(self.type()).name
        return {
            name: [replace(f, interval=PAST) if f.source == own else f for f in flows]
            for name, flows in super().flows().items()
            if name != "valid"
        }

    def state(self) -> StateSpec:
        """The last token's result."""
        kind = self.type()
        own = self.tokens(kind).name
        sizes = tuple(axis.size for axis in kind.axes if axis.name != own)
        return StateSpec("RecurrentState", elements=product(sizes))

    def cost(self) -> Cost:
        """Three times the sequential work: the parallel form combines pairs."""
        return Cost(self.type().size * 6)

    def options(self, code: Code) -> str:
        """Return dim, padding and state as arguments."""
        kind = self.type()
        dim = kind.position(self.tokens(kind).name) - len(kind.axes)
        return f"dim={dim}{valid_argument(code)}{state_argument(code)}"


@op("linear_recurrence")
class LinearRecurrence(_Recurrence):
    """``h[t] = a[t] * h[t - 1] + b[t]``, entry by entry, from ``h = 0``.

    Computed in parallel by combining neighbours; no logarithms, so any ``a`` is allowed and
    ``abs(a) <= 1`` is stable. Padding leaves ``h`` as it is.

    Shape: [T, *a], [T, *b] -> [T, * a and b].   Gradient: smooth.
    Source: Blelloch 1990, "Prefix sums and their applications", section 1.4.
    """

    a: Operand
    b: Operand
    over: AxisRef | None = None
    valid: Companion | None = None

    def type(self) -> TensorType:
        """Return the broadcast of both."""
        kind = broadcast(
            need_float(self.a, "a", self.op_name), need_float(self.b, "b", self.op_name)
        )
        self.tokens(kind)
        return kind

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        a, b = aligned(code, "a", self.type()), aligned(code, "b", self.type())
        return f"{code.use('linear_recurrence')}({a}, {b}, {self.options(code)})"


@op("ema")
class Ema(_Recurrence):
    """The moving average ``h[t] = decay * h[t - 1] + (1 - decay) * x[t]`` from ``h = 0``.

    Shape: [T, *] -> [T, *].   Gradient: smooth.
    """

    x: Operand
    decay: float
    over: AxisRef | None = None
    valid: Companion | None = None

    def type(self) -> TensorType:
        """Return the operand's type."""
        kind = need_float(tensor(self.x, "x"), "x", "ema")
        self.tokens(kind)
        if not 0.0 <= self.decay <= 1.0:
            raise Fault("argument-type", f"`decay` must be in 0 .. 1, found {self.decay}", "decay")
        return kind

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        arguments = f"{code['x']}, {self.decay!r}, {self.options(code)}"
        return f"{code.use('moving_average')}({arguments})"
