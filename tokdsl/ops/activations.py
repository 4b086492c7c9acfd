"""Element-wise functions of one operand: activations and elementary mathematics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from tokdsl.ops.base import Fault, Operand, op
from tokdsl.ops.bounds import Bounds, Scalars
from tokdsl.ops.elementwise import Elementwise
from tokdsl.types.tensors import TensorType


class Unary(Elementwise):
    """Base of the functions of one number; of integers they give floats."""

    x: Operand
    gives: ClassVar[str] = "float"
    work: ClassVar[int] = 4


class Exact(Elementwise):
    """Base of the functions that stay within the integers."""

    x: Operand


@op("negate")
class Negate(Exact):
    """``-x``.

    Shape: [*a] -> [*a].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "-{x}"
    slopes: ClassVar[Mapping[str, str]] = {"x": "-1.0"}

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds:
        """The ends change places."""
        least, most = given["x"]
        return Bounds(scalars.subtract("0", most), scalars.subtract("0", least))


@op("abs")
class Abs(Exact):
    """The absolute value.

    Shape: [*a] -> [*a].   Gradient: smooth but at 0, where it is 0.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "{x}.abs()"
    kernel: ClassVar[str | None] = "tl.abs({x})"
    slopes: ClassVar[Mapping[str, str]] = {
        "x": "tl.where({x} > 0, 1.0, tl.where({x} < 0, -1.0, 0.0))"
    }

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds:
        """The greater of the ends without sign; the smaller one, or 0 between them."""
        least, most = given["x"]
        below = scalars.subtract("0", least)
        inner = scalars.maximum(least, scalars.subtract("0", most))
        return Bounds(scalars.maximum(inner, "0"), scalars.maximum(most, below))


@op("sign")
class Sign(Exact):
    """-1, 0 or 1.

    Shape: [*a] -> [*a].   Gradient: none.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "{x}.sign()"
    kernel: ClassVar[str | None] = "tl.where({x} > 0, 1.0, tl.where({x} < 0, -1.0, 0.0))"


@op("square")
class Square(Exact):
    """``x * x``.

    Shape: [*a] -> [*a].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "{x}.square()"
    kernel: ClassVar[str | None] = "{x} * {x}"
    slopes: ClassVar[Mapping[str, str]] = {"x": "2.0 * {x}"}


@op("round")
class Round(Exact):
    """The nearest whole number, halves to the even one.

    Shape: [*a] -> [*a].   Gradient: none.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "{x}.round()"
    kernel: ClassVar[str | None] = ""


@op("floor")
class Floor(Exact):
    """The next whole number below.

    Shape: [*a] -> [*a].   Gradient: none.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "{x}.floor()"
    kernel: ClassVar[str | None] = "tl.floor({x})"


@op("ceil")
class Ceil(Exact):
    """The next whole number above.

    Shape: [*a] -> [*a].   Gradient: none.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "{x}.ceil()"
    kernel: ClassVar[str | None] = "tl.ceil({x})"


@op("relu")
class Relu(Exact):
    """``max(x, 0)``.

    Shape: [*a] -> [*a].   Gradient: smooth but at 0, where it is 0.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0, -math.inf: 0.0}}

    pattern: ClassVar[str] = "F.relu({x})"
    kernel: ClassVar[str | None] = "tl.maximum({x}, 0.0)"
    slopes: ClassVar[Mapping[str, str]] = {"x": "tl.where({x} > 0, 1.0, 0.0)"}


@op("exp")
class Exp(Unary):
    """The exponential.

    Shape: [*a] -> [*a].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {-math.inf: 0.0}}

    pattern: ClassVar[str] = "{x}.exp()"
    kernel: ClassVar[str | None] = "tl.exp({x})"
    slopes: ClassVar[Mapping[str, str]] = {"x": "{result}"}


@op("log")
class Log(Unary):
    """The natural logarithm.

    Shape: [*a] -> [*a].   Gradient: smooth for positive ``x``.
    """

    pattern: ClassVar[str] = "{x}.log()"
    kernel: ClassVar[str | None] = "tl.log({x})"
    slopes: ClassVar[Mapping[str, str]] = {"x": "1.0 / {x}"}


@op("log1p")
class Log1p(Unary):
    """``log(1 + x)``, exact for small ``x``.

    Shape: [*a] -> [*a].   Gradient: smooth for ``x > -1``.
    """

    pattern: ClassVar[str] = "{x}.log1p()"
    kernel: ClassVar[str | None] = "tl.log(1.0 + {x})"
    slopes: ClassVar[Mapping[str, str]] = {"x": "1.0 / (1.0 + {x})"}


@op("sqrt")
class Sqrt(Unary):
    """The square root.

    Shape: [*a] -> [*a].   Gradient: smooth for positive ``x``.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "{x}.sqrt()"
    kernel: ClassVar[str | None] = "tl.sqrt({x})"
    slopes: ClassVar[Mapping[str, str]] = {"x": "0.5 / {result}"}


@op("rsqrt")
class Rsqrt(Unary):
    """``1 / sqrt(x)``.

    Shape: [*a] -> [*a].   Gradient: smooth for positive ``x``.
    """

    pattern: ClassVar[str] = "{x}.rsqrt()"
    kernel: ClassVar[str | None] = "tl.rsqrt({x})"
    slopes: ClassVar[Mapping[str, str]] = {"x": "-0.5 * {result} / {x}"}


@op("reciprocal")
class Reciprocal(Unary):
    """``1 / x``.

    Shape: [*a] -> [*a].   Gradient: smooth but at 0.
    """

    pattern: ClassVar[str] = "{x}.reciprocal()"
    kernel: ClassVar[str | None] = "1.0 / {x}"
    slopes: ClassVar[Mapping[str, str]] = {"x": "-{result} * {result}"}


@op("sin")
class Sin(Unary):
    """The sine of an angle in radians.

    Shape: [*a] -> [*a].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "{x}.sin()"
    kernel: ClassVar[str | None] = "tl.sin({x})"
    slopes: ClassVar[Mapping[str, str]] = {"x": "tl.cos({x})"}


@op("cos")
class Cos(Unary):
    """The cosine of an angle in radians.

    Shape: [*a] -> [*a].   Gradient: smooth.
    """

    pattern: ClassVar[str] = "{x}.cos()"
    kernel: ClassVar[str | None] = "tl.cos({x})"
    slopes: ClassVar[Mapping[str, str]] = {"x": "-tl.sin({x})"}


@op("erf")
class Erf(Unary):
    """The error function.

    Shape: [*a] -> [*a].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "{x}.erf()"
    kernel: ClassVar[str | None] = "tl.erf({x})"
    slopes: ClassVar[Mapping[str, str]] = {"x": "1.1283791670955126 * tl.exp(-{x} * {x})"}


@op("lgamma")
class LogGamma(Unary):
    """The logarithm of the gamma function's absolute value: of factorials, at ``n + 1``.

    Shape: [*a] -> [*a].   Gradient: smooth for positive `x`.
    """

    pattern: ClassVar[str] = "{x}.lgamma()"
    kernel: ClassVar[str | None] = ""
    slopes: ClassVar[Mapping[str, str]] = {"x": "{x}.digamma()"}
    work: ClassVar[int] = 20


@op("sigmoid")
class Sigmoid(Unary):
    """``1 / (1 + exp(-x))``.

    Shape: [*a] -> [*a].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {-math.inf: 0.0}}

    pattern: ClassVar[str] = "{x}.sigmoid()"
    kernel: ClassVar[str | None] = "tl.sigmoid({x})"
    slopes: ClassVar[Mapping[str, str]] = {"x": "{result} * (1.0 - {result})"}


@op("tanh")
class Tanh(Unary):
    """The hyperbolic tangent.

    Shape: [*a] -> [*a].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "{x}.tanh()"
    kernel: ClassVar[str | None] = "2.0 * tl.sigmoid(2.0 * {x}) - 1.0"
    slopes: ClassVar[Mapping[str, str]] = {"x": "1.0 - {result} * {result}"}


@op("silu")
class Silu(Unary):
    """``x * sigmoid(x)``.

    Shape: [*a] -> [*a].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    pattern: ClassVar[str] = "F.silu({x})"
    kernel: ClassVar[str | None] = "{x} * tl.sigmoid({x})"
    slopes: ClassVar[Mapping[str, str]] = {
        "x": "tl.sigmoid({x}) * (1.0 + {x} * (1.0 - tl.sigmoid({x})))"
    }


_TANH_ARGUMENT = "1.5957691216057308 * {x} * (1.0 + 0.044715 * {x} * {x})"


@op("gelu")
class Gelu(Unary):
    """``x * Phi(x)``: exact with the error function, or its published tanh approximation.

    Args:
        approximate: ``"none"`` for the exact form, ``"tanh"`` for the approximation.

    Shape: [*a] -> [*a].   Gradient: smooth.
    Source: Hendrycks, Gimpel 2016, arXiv:1606.08415.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"x": {0.0: 0.0}}

    approximate: str = "none"
    kernel: ClassVar[str | None] = "0.5 * {x} * (1.0 + tl.erf(0.7071067811865476 * {x}))"
    slopes: ClassVar[Mapping[str, str]] = {"x": ""}
    work: ClassVar[int] = 8

    def type(self) -> TensorType:
        """Return the operand's type."""
        if self.approximate not in ("none", "tanh"):
            raise Fault(
                "argument-type",
                f'`approximate` must be "none" or "tanh", found "{self.approximate}"',
                "approximate",
            )
        return super().type()

    @property
    def pattern(self) -> str:  # type: ignore[override]  # depends on the argument
        """The torch call of the chosen form."""
        return "F.gelu({x})" if self.approximate == "none" else 'F.gelu({x}, approximate="tanh")'

    def triton(self, operands: Mapping[str, str]) -> str | None:
        """Return the chosen form; half of 1 + tanh is a sigmoid."""
        if self.approximate == "none":
            return super().triton(operands)
        return ("{x} * tl.sigmoid(" + _TANH_ARGUMENT + ")").format(x=_atom(operands["x"]))

    def derivative(self, operands: Mapping[str, str]) -> dict[str, str]:
        """Return the slope of the chosen form."""
        if self.approximate == "none":
            slope = (
                "0.5 * (1.0 + tl.erf(0.7071067811865476 * {x}))"
                " + 0.3989422804014327 * {x} * tl.exp(-0.5 * {x} * {x})"
            )
        else:
            gate = f"tl.sigmoid({_TANH_ARGUMENT})"
            inner = "1.5957691216057308 * (1.0 + 0.134145 * {x} * {x})"
            slope = f"{gate} + {{x}} * {gate} * (1.0 - {gate}) * {inner}"
        return {"x": slope.format(x=_atom(operands["x"]))}


def _atom(text: str) -> str:
    return text if text.isidentifier() else f"({text})"


@op("softplus")
class Softplus(Unary):
    """``log(1 + exp(x))``.

    Shape: [*a] -> [*a].   Gradient: smooth.
    """

    pattern: ClassVar[str] = "F.softplus({x})"
    kernel: ClassVar[str | None] = "tl.maximum({x}, 0.0) + tl.log(1.0 + tl.exp(-tl.abs({x})))"
    slopes: ClassVar[Mapping[str, str]] = {"x": "tl.sigmoid({x})"}


@op("elu")
class Elu(Unary):
    """``x`` if positive, else ``alpha * (exp(x) - 1)``.

    Shape: [*a] -> [*a].   Gradient: smooth.
    Source: Clevert, Unterthiner, Hochreiter 2015, arXiv:1511.07289.
    """

    alpha: float = 1.0
    kernel: ClassVar[str | None] = "tl.where({x} > 0, {x}, {alpha} * (tl.exp({x}) - 1.0))"
    slopes: ClassVar[Mapping[str, str]] = {"x": "tl.where({x} > 0, 1.0, {alpha} * tl.exp({x}))"}

    @property
    def pattern(self) -> str:  # type: ignore[override]  # depends on the argument
        """The torch call, without the argument where it is torch's default."""
        return "F.elu({x})" if self.alpha == 1.0 else "F.elu({x}, {alpha})"


@op("softcap")
class Softcap(Unary):
    """``cap * tanh(x / cap)``: keeps values within ``-cap .. cap``.

    Shape: [*a] -> [*a].   Gradient: smooth.
    Source: Gemma 2, arXiv:2408.00118, section 2.
    """

    cap: float
    pattern: ClassVar[str] = "{cap} * torch.tanh({x} / {cap})"
    kernel: ClassVar[str | None] = "{cap} * (2.0 * tl.sigmoid(2.0 * {x} / {cap}) - 1.0)"
    slopes: ClassVar[Mapping[str, str]] = {"x": "1.0 - {result} * {result} / ({cap} * {cap})"}
