"""Recurrences along tokens, or along a plain axis, whose parallel form is exact."""

from __future__ import annotations

from dataclasses import replace

from tokdsl.ops.axes import (
    aligned,
    is_token,
    need_float,
    product,
    starts_argument,
    state_argument,
    valid_argument,
)
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
from tokdsl.ops.precedence import primary
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import PAST, Flow


class _Recurrence(Op):
    """Base of the recurrences: over a token axis, or over the axis that is named."""

    def tokens(self, kind: TensorType) -> Axis:
        """Return the axis that the recurrence runs along.

        Raises:
            Fault: if it does not exist.
        """
        over: AxisRef | None = getattr(self, "over", None)
        if over is not None:
            return find_axis(kind, over, "over")
        axis = next((a for a in kind.axes if a.clock is not None), None)
        if axis is None:
            raise Fault(
                "operand-shape",
                f"`{self.op_name}` runs along a token axis, found {kind}",
                "over",
                help=f"name the axis: `{self.op_name}(..., over = slot)`",
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
            if name not in ("valid", "starts")
        }

    def wants_valid(self) -> list[Axis]:
        """Return the token axis, if the recurrence runs along one."""
        own = self.tokens(self.type())
        return [own] if is_token(own) else []

    def state(self) -> StateSpec | None:
        """The last token's result; a plain axis is there as a whole in every step."""
        kind = self.type()
        if not is_token(self.tokens(kind)):
            return None
        own = self.tokens(kind).name
        sizes = tuple(axis.size for axis in kind.axes if axis.name != own)
        return StateSpec("RecurrentState", elements=product(sizes))

    def cost(self) -> Cost:
        """Three times the sequential work: the parallel form combines pairs."""
        return Cost(self.type().size * 6)

    def options(self, code: Code) -> str:
        """Return dim and, along tokens, padding, documents and state as arguments."""
        kind = self.type()
        own = self.tokens(kind)
        dim = f"dim={kind.position(own.name) - len(kind.axes)}"
        if not is_token(own):
            return dim
        return f"{dim}{valid_argument(code)}{starts_argument(code)}{state_argument(code)}"


@op("linear_recurrence")
class LinearRecurrence(_Recurrence):
    """``h[t] = a[t] * h[t - 1] + b[t]``, entry by entry, from ``h = 0``.

    Computed in parallel by combining neighbours; no logarithms, so any ``a`` is allowed and
    ``abs(a) <= 1`` is stable. Padding leaves ``h`` as it is; a document begins from 0. ``over``
    may name a plain axis, such as the slots that tokens were put into in an order of their own.

    Shape: [T, *a], [T, *b] -> [T, * a and b].   Gradient: smooth.
    Source: Blelloch 1990, "Prefix sums and their applications", section 1.4.
    """

    a: Operand
    b: Operand
    over: AxisRef | None = None
    valid: Companion | None = None
    starts: Companion | None = None

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
        function = code.use("linear_recurrence")
        if not self.type().batched:  # the function expects the batch in front
            a, b = f"{primary(a)}.unsqueeze(0)", f"{primary(b)}.unsqueeze(0)"
            return f"{function}({a}, {b}, {self.options(code)}).squeeze(0)"
        return f"{function}({a}, {b}, {self.options(code)})"


@op("ema")
class Ema(_Recurrence):
    """The moving average ``h[t] = decay * h[t - 1] + (1 - decay) * x[t]`` from ``h = 0``.

    Shape: [T, *] -> [T, *].   Gradient: smooth.
    """

    x: Operand
    decay: float
    over: AxisRef | None = None
    valid: Companion | None = None
    starts: Companion | None = None

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
