"""Element-wise arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from tokdsl.ops.base import Code, Cost, Fault, Op, Operand, broadcast, op
from tokdsl.ops.bounds import Bounds, Scalars
from tokdsl.ops.precedence import fill, literal, primary
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import TensorType, promote


def number(value: float) -> str:
    """Return a static number as Python text."""
    if value in (float("inf"), float("-inf")):
        return f'float("{value}")'
    return repr(value)


class Elementwise(Op):
    """Base of the element-wise operations: axes are matched by name, shapes broadcast.

    Patterns name operands and static arguments in braces; a slope may also use ``{result}``.
    """

    elementwise: ClassVar[bool] = True
    #: torch expression
    pattern: ClassVar[str] = ""
    #: Triton expression: None if it is the torch expression, "" if there is none
    kernel: ClassVar[str | None] = None
    #: d result / d operand as Triton expressions; an operand without one gets no gradient
    slopes: ClassVar[Mapping[str, str]] = {}
    #: dtype of the result: "" for the promoted one, "float" for at least the working dtype
    gives: ClassVar[str] = ""
    #: whether two truth values can be combined
    takes_bool: ClassVar[bool] = False
    #: FLOPs per element
    work: ClassVar[int] = 1

    def type(self) -> TensorType:
        """Return the broadcast of the operands."""
        kind = broadcast(*(kind for _, kind in self.operand_types()))
        if kind.dtype == "bool" and not self.takes_bool:
            raise Fault(
                "operand-kind",
                f"`{self.op_name}` needs numbers, found {kind}",
                help="combine truth values with `and`, `or`, `not`, or convert with `int(x)`",
            )
        if self.gives == "float":
            return kind.with_dtype(promote(kind.dtype, "float"))
        return kind.with_dtype(self.gives) if self.gives else kind

    def gradient(self) -> dict[str, bool]:
        """A gradient flows to the operands that have a slope."""
        return {name: name in self.slopes and kind.is_float for name, kind in self.operand_types()}

    def cost(self) -> Cost:
        """A few FLOPs per element."""
        return Cost(self.type().size * self.work)

    def torch(self, code: Code) -> str:
        """Return the pattern over the aligned operands."""
        operands = {name: code.aligned(name) for name, _ in self.operand_types()}
        return fill(self.pattern, **operands, **self._numbers())

    def triton(self, operands: Mapping[str, str]) -> str | None:
        """Return the kernel pattern over blocks of one shape."""
        pattern = self.pattern if self.kernel is None else self.kernel
        return fill(pattern, **operands, **self._numbers()) if pattern else None

    def derivative(self, operands: Mapping[str, str]) -> dict[str, str] | None:
        """Return the slopes, or None if there is no Triton form."""
        result = operands.get("result") or self.triton(operands)
        if result is None:
            return None
        texts = {**operands, **self._numbers(), "result": result}
        return {name: fill(slope, **texts) for name, slope in self.slopes.items()}

    def _numbers(self) -> dict[str, str]:
        """Return the static arguments as Python text."""
        return {
            name: number(value)
            for name, value in vars(self).items()
            if isinstance(value, (int, float))
        }


class Binary(Elementwise):
    """Base of the element-wise operations of two operands."""

    x: Operand
    y: Operand

    @property
    def is_whole(self) -> bool:
        """Whether both operands are whole numbers."""
        return self.x.dtype == self.y.dtype == "i64"


# ------------------------------------------------------------------ arithmetic


@op("add")
class Add(Binary):
    """``x + y``, axes matched by name.

    Shape: [*a], [*b] -> [* a and b].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"*": {-math.inf: -math.inf}}

    pattern: ClassVar[str] = "{x} + {y}"
    slopes: ClassVar[Mapping[str, str]] = {"x": "1.0", "y": "1.0"}

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """The sums of the ends."""
        x, y = given["x"], given["y"]
        ends = (scalars.add(x.least, y.least), scalars.add(x.most, y.most))
        return Bounds(*ends) if self.is_whole else None


@op("subtract")
class Subtract(Binary):
    """``x - y``, axes matched by name.

    Shape: [*a], [*b] -> [* a and b].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {-math.inf: -math.inf}}

    pattern: ClassVar[str] = "{x} - {y}"
    slopes: ClassVar[Mapping[str, str]] = {"x": "1.0", "y": "-1.0"}

    def torch(self, code: Code) -> str:
        """Return the difference; torch refuses truth values here, so they become integers."""
        texts = {}
        for name, kind in self.operand_types():
            text = code.aligned(name)
            if kind.dtype == "bool" and literal(text) is None:
                text = f"{primary(text)}.long()"
            texts[name] = text
        return fill(self.pattern, **texts)

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """The differences of opposite ends."""
        x, y = given["x"], given["y"]
        ends = (scalars.subtract(x.least, y.most), scalars.subtract(x.most, y.least))
        return Bounds(*ends) if self.is_whole else None


@op("multiply")
class Multiply(Binary):
    """``x * y``, axes matched by name; without a common axis it is the outer product.

    Shape: [*a], [*b] -> [* a and b].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"*": {0.0: 0.0}}

    pattern: ClassVar[str] = "{x} * {y}"
    slopes: ClassVar[Mapping[str, str]] = {"x": "{y}", "y": "{x}"}

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """The extremes of the products of the ends."""
        if not self.is_whole:
            return None
        one, *others = (
            scalars.bind(scalars.multiply(x, y), "product")
            for x in dict.fromkeys(given["x"])
            for y in dict.fromkeys(given["y"])
        )
        least = most = one
        for other in others:
            least, most = scalars.minimum(least, other), scalars.maximum(most, other)
        return Bounds(least, most)


@op("divide")
class Divide(Binary):
    """``x / y``, axes matched by name; integers give floats.

    Shape: [*a], [*b] -> [* a and b].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "{x} / {y}"
    gives: ClassVar[str] = "float"
    takes_bool: ClassVar[bool] = True
    slopes: ClassVar[Mapping[str, str]] = {"x": "1.0 / {y}", "y": "-{x} / ({y} * {y})"}


@op("power")
class Power(Binary):
    """``x ** y``, axes matched by name.

    Shape: [*a], [*b] -> [* a and b].   Gradient: smooth where ``x > 0`` or ``y`` is whole.
    """

    pattern: ClassVar[str] = "{x} ** {y}"
    kernel: ClassVar[str | None] = "tl.exp({y} * tl.log({x}))"
    slopes: ClassVar[Mapping[str, str]] = {
        "x": "{y} * {result} / {x}",
        "y": "{result} * tl.log({x})",
    }

    def torch(self, code: Code) -> str:
        """Return the operator, without spaces between simple operands as formatters have it."""
        text = super().torch(code)
        base, _, power = text.partition(" ** ")
        simple = all(part.replace(".", "").replace("_", "").isalnum() for part in (base, power))
        return f"{base}**{power}" if simple else text

    def triton(self, operands: Mapping[str, str]) -> str | None:
        """Return products for small whole powers, which are right for negative bases too."""
        power = literal(operands["y"])
        if power in (1, 2, 3, 4):
            return fill(" * ".join(["{x}"] * int(power)), x=operands["x"])
        return super().triton(operands)

    def derivative(self, operands: Mapping[str, str]) -> dict[str, str] | None:
        """Return the slopes; for small whole powers without a division."""
        power = literal(operands["y"])
        if power in (1, 2, 3, 4):
            factors = [number(float(power)), *["{x}"] * (int(power) - 1)]
            return {"x": fill(" * ".join(factors), x=operands["x"])}
        return super().derivative(operands)


@op("floor_divide")
class FloorDivide(Binary):
    """``x // y`` rounded down, axes matched by name.

    Shape: [*a], [*b] -> [* a and b].   Gradient: none.
    """

    kernel: ClassVar[str | None] = "tl.floor({x} / {y})"

    @property
    def pattern(self) -> str:  # type: ignore[override]  # depends on the operands
        """The operator for integers; for floats torch gives it no derivative, not even 0."""
        return "({x} / {y}).floor()" if self.type().is_float else "{x} // {y}"

    def triton(self, operands: Mapping[str, str]) -> str | None:
        """Return the quotient; for integers, which Triton rounds towards zero, one less below 0."""
        if self.type().is_float:
            return super().triton(operands)
        down = "({x} % {y} != 0) & (({x} % {y} ^ {y}) < 0)"
        return fill(f"tl.where({down}, {{x}} // {{y}} - 1, {{x}} // {{y}})", **operands)

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """The quotients of the ends, by a positive number."""
        number = literal(given["y"].least) if given["y"].least == given["y"].most else None
        if not self.is_whole or number is None or number <= 0:
            return None
        return Bounds(*(scalars.quotient(end, int(number)) for end in given["x"]))


@op("remainder")
class Remainder(Binary):
    """``x % y`` with the sign of ``y``, axes matched by name.

    Shape: [*a], [*b] -> [* a and b].   Gradient: smooth in ``x`` between the jumps.
    """

    pattern: ClassVar[str] = "{x} % {y}"
    kernel: ClassVar[str | None] = "{x} - tl.floor({x} / {y}) * {y}"
    slopes: ClassVar[Mapping[str, str]] = {"x": "1.0", "y": "-tl.floor({x} / {y})"}

    def triton(self, operands: Mapping[str, str]) -> str | None:
        """Return the remainder; that of integers, which has the sign of ``x``, is moved."""
        if self.type().is_float:
            return super().triton(operands)
        down = "({x} % {y} != 0) & (({x} % {y} ^ {y}) < 0)"
        return fill(f"tl.where({down}, {{x}} % {{y}} + {{y}}, {{x}} % {{y}})", **operands)

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """The remainders of the ends by a positive number, if no jump is between them; else all."""
        number = literal(given["y"].least) if given["y"].least == given["y"].most else None
        if not self.is_whole or number is None or number <= 0:
            return None
        by = int(number)
        low, high = (scalars.bind(scalars.quotient(end, by), "quotient") for end in given["x"])
        least, most = (scalars.remainder(end, by) for end in given["x"])
        together = scalars.bind(scalars.same(low, high), "together")
        ends = (scalars.choice(together, least, "0"), scalars.choice(together, most, str(by - 1)))
        return Bounds(*ends)


class _Extreme(Binary):
    """Base of `Maximum` and `Minimum`: a number becomes a bound of ``clamp``."""

    bound: ClassVar[str] = ""

    def torch(self, code: Code) -> str:
        """Return ``clamp`` if one side is a number; torch has no extreme with a number."""
        x, y = code.aligned("x"), code.aligned("y")
        if literal(y) is not None:
            return fill(f"{{x}}.clamp({self.bound}={{y}})", x=x, y=y)
        if literal(x) is not None:
            return fill(f"{{y}}.clamp({self.bound}={{x}})", x=x, y=y)
        return fill(self.pattern, x=x, y=y)

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """The extremes of the ends."""
        extreme = getattr(scalars, self.op_name)
        ends = (extreme(*pair) for pair in zip(given["x"], given["y"], strict=True))
        return Bounds(*ends) if self.is_whole else None


@op("maximum")
class Maximum(_Extreme):
    """The larger of ``x`` and ``y``, axes matched by name.

    Shape: [*a], [*b] -> [* a and b].   Gradient: to the larger one, half to each if equal.
    """

    bound: ClassVar[str] = "min"
    pattern: ClassVar[str] = "torch.maximum({x}, {y})"
    kernel: ClassVar[str | None] = "tl.maximum({x}, {y})"
    slopes: ClassVar[Mapping[str, str]] = {
        "x": "tl.where({x} > {y}, 1.0, tl.where({x} == {y}, 0.5, 0.0))",
        "y": "tl.where({y} > {x}, 1.0, tl.where({x} == {y}, 0.5, 0.0))",
    }


@op("minimum")
class Minimum(_Extreme):
    """The smaller of ``x`` and ``y``, axes matched by name.

    Shape: [*a], [*b] -> [* a and b].   Gradient: to the smaller one, half to each if equal.
    """

    bound: ClassVar[str] = "max"
    pattern: ClassVar[str] = "torch.minimum({x}, {y})"
    kernel: ClassVar[str | None] = "tl.minimum({x}, {y})"
    slopes: ClassVar[Mapping[str, str]] = {
        "x": "tl.where({x} < {y}, 1.0, tl.where({x} == {y}, 0.5, 0.0))",
        "y": "tl.where({y} < {x}, 1.0, tl.where({x} == {y}, 0.5, 0.0))",
    }


@op("clamp")
class Clamp(Elementwise):
    """``x`` limited to ``min .. max``; either bound may be absent.

    Shape: [*a] -> [*a].   Gradient: smooth between the bounds, none outside.
    """

    x: Operand
    min: float | None = None
    max: float | None = None
    pattern: ClassVar[str] = "{x}.clamp({bounds})"
    slopes: ClassVar[Mapping[str, str]] = {"x": ""}

    def type(self) -> TensorType:
        """Return the operand's type; a fractional bound makes floats of integers."""
        kind = super().type()
        return kind if self._whole() else kind.with_dtype(promote(kind.dtype, "float"))

    def torch(self, code: Code) -> str:
        """Return ``clamp`` with the bounds that are given."""
        show = (lambda v: str(int(v))) if not self.type().is_float else number
        given = [("min", self.min), ("max", self.max)]
        bounds = ", ".join(f"{name}={show(v)}" for name, v in given if v is not None)
        return f"{primary(code.aligned('x'))}.clamp({bounds})" if bounds else code.aligned("x")

    def triton(self, operands: Mapping[str, str]) -> str:
        """Return the extremes one in the other."""
        text = operands["x"]
        if self.min is not None:
            text = f"tl.maximum({text}, {number(self.min)})"
        return f"tl.minimum({text}, {number(self.max)})" if self.max is not None else text

    def derivative(self, operands: Mapping[str, str]) -> dict[str, str]:
        """One inside the bounds, which belong to it."""
        tests = [("{x} >= " + number(self.min))] if self.min is not None else []
        tests += [("{x} <= " + number(self.max))] if self.max is not None else []
        inside = " & ".join(f"({fill(test, x=operands['x'])})" for test in tests)
        return {"x": f"tl.where({inside}, 1.0, 0.0)" if inside else "1.0"}

    def _whole(self) -> bool:
        return all(v is None or float(v).is_integer() for v in (self.min, self.max))

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """The ends within the limits."""
        ends = list(given["x"])
        if self.x.dtype != "i64" or not self._whole():
            return None
        if self.min is not None:
            ends = [scalars.maximum(end, str(int(self.min))) for end in ends]
        if self.max is not None:
            ends = [scalars.minimum(end, str(int(self.max))) for end in ends]
        return Bounds(*ends)


@op("stop_gradient")
class StopGradient(Elementwise):
    """The same value; no gradient passes.

    Shape: [*a] -> [*a].   Gradient: none.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {
        "x": {0.0: 0.0, -math.inf: -math.inf}
    }

    x: Operand
    pattern: ClassVar[str] = "{x}.detach()"
    kernel: ClassVar[str | None] = "{x}"
    takes_bool: ClassVar[bool] = True
    work: ClassVar[int] = 0

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds:
        """Those of the operand."""
        return given["x"]


@op("straight_through")
class StraightThrough(Elementwise):
    """The value of ``hard`` with the gradient of ``soft``.

    The value is exactly ``hard``: the finite soft part is subtracted from itself.

    Shape: [*a], [*b] -> [* a and b].   Gradient: straight-through, to ``soft`` only.
    Source: Bengio, Leonard, Courville 2013, arXiv:1308.3432.
    """

    hard: Operand
    soft: Operand
    pattern: ClassVar[str] = "{hard}.detach() + ({soft} - {soft}.detach())"
    kernel: ClassVar[str | None] = "{hard}"
    slopes: ClassVar[Mapping[str, str]] = {"soft": "1.0"}

    def type(self) -> TensorType:
        """Return the broadcast; ``soft`` must be a float."""
        if not self.soft.is_float:
            raise Fault("operand-kind", f"`soft` must carry a gradient, found {self.soft}", "soft")
        return super().type()

    def torch(self, code: Code) -> str:
        """Return the sum; a number has no gradient to cut."""
        hard, soft = code.aligned("hard"), code.aligned("soft")
        if literal(hard) is not None:
            return f"{hard} + ({soft} - {primary(soft)}.detach())"
        return super().torch(code)

    def cost(self) -> Cost:
        """Nothing that the emitted code would not fold."""
        return Cost(Dim(()))
