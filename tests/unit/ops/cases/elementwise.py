"""Uses of arithmetic, comparison, logic, functions of one number and conversions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.ops.cases.base import (
    INTEGERS,
    MASK,
    ONE,
    TD_MASK,
    at_least_one,
    positive,
    spread,
    use,
)
from tests.unit.ops.harness import (
    SCALAR,
    TD,
    VECTOR,
    Case,
    T,
    Tensors,
    kind,
)

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.true_divide,
    "floor_divide": torch.floor_divide,
    "remainder": torch.remainder,
    "power": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "equal": torch.eq,
    "not_equal": torch.ne,
}

_ALIKE = ("less_equal", "greater", "greater_equal", "not_equal")

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "negate": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "square": torch.square,
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "relu": lambda x: x.clamp(min=0),
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "lgamma": torch.lgamma,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "softplus": lambda x: torch.log1p(x.exp()),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
}


def elementwise_cases() -> list[Case]:
    """Return uses of arithmetic, comparison, logic and functions of one number."""
    cases = []
    for name, f in _BINARY.items():
        make = positive if name == "power" else spread
        found = [
            use(name, x=TD, y=TD, reference=lambda t, f=f: f(t["x"], t["y"]), make=make),
            use(name, x=TD, y=VECTOR, reference=lambda t, f=f: f(t["x"], t["y"]), make=make),
            use(
                name,
                x=kind(T),
                y=TD,
                reference=lambda t, f=f: f(t["x"].unsqueeze(-1), t["y"]),
                make=make,
            ),
            use(
                name,
                x=INTEGERS,
                y=INTEGERS,
                reference=lambda t, f=f: f(t["x"], t["y"]),
                make=at_least_one,
            ),
            use(
                name,
                x=TD,
                y=SCALAR,
                texts={"y": "2.0"},
                reference=lambda t, f=f: f(t["x"], torch.tensor(2.0, dtype=t["x"].dtype)),
                make=make,
            ),
        ]
        # the comparisons differ in nothing but their sign
        cases += found[:1] if name in _ALIKE else found
    for name, g in _UNARY.items():
        make = positive if name in ("log", "log1p", "sqrt", "rsqrt", "reciprocal") else spread
        cases.append(use(name, x=TD, reference=lambda t, g=g: g(t["x"]), make=make))
    cases += [
        use("subtract", x=ONE, y=MASK, texts={"x": "1"}, reference=lambda t: 1 - t["y"].long()),
        use("maximum", x=SCALAR, y=TD, texts={"x": "0.0"}, reference=lambda t: F.relu(t["y"])),
        use("divide", x=MASK, y=SCALAR, texts={"y": "2"}, reference=lambda t: t["x"] / 2),
        use("exp", x=INTEGERS, reference=lambda t: t["x"].exp()),
        use("gelu", x=TD, approximate="tanh", reference=_gelu_tanh),
        use("elu", x=TD, alpha=0.5, make=spread),
        use("softcap", x=TD, cap=2.0, reference=lambda t: 2 * torch.tanh(t["x"] / 2)),
        use("clamp", x=TD, min=-0.5, max=0.5, reference=lambda t: t["x"].clamp(-0.5, 0.5)),
        use("clamp", x=TD, min=-0.5, reference=lambda t: t["x"].clamp(min=-0.5)),
        use("clamp", x=INTEGERS, max=1.0, reference=lambda t: t["x"].clamp(max=1)),
        use("logical_and", x=MASK, y=TD_MASK, reference=lambda t: t["x"].unsqueeze(-1) & t["y"]),
        use("logical_or", x=MASK, y=TD_MASK, reference=lambda t: t["x"].unsqueeze(-1) | t["y"]),
        use("logical_not", x=MASK, reference=lambda t: t["x"].logical_not()),
        use("where", condition=MASK, x=TD, y=VECTOR, reference=_where),
        use(
            "where",
            condition=TD_MASK,
            x=TD,
            y=SCALAR,
            texts={"y": 'float("-inf")'},
            reference=lambda t: t["x"].masked_fill(~t["condition"], float("-inf")),
        ),
        use("stop_gradient", x=TD, reference=lambda t: t["x"]),
        use("straight_through", hard=TD, soft=TD, reference=lambda t: t["hard"]),
        use(
            "straight_through", hard=INTEGERS, soft=TD, reference=lambda t: t["hard"].to(t["soft"])
        ),
    ]
    return cases


def _gelu_tanh(t: Tensors) -> Tensor:
    x = t["x"]
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _where(t: Tensors) -> Tensor:
    return torch.where(t["condition"].unsqueeze(-1), t["x"], t["y"])


def cast_cases() -> list[Case]:
    """Return conversions."""
    named = {"f32": torch.float32, "f64": torch.float64, "f16": torch.half, "bf16": torch.bfloat16}
    cases = [use(n, x=TD, reference=lambda t, v=v: t["x"].to(v)) for n, v in named.items()]
    return [
        *cases,
        use("f32", x=TD.with_dtype("f32"), reference=lambda t: t["x"]),
        use("precise", x=TD, reference=lambda t: t["x"]),
        use("int", x=TD, reference=lambda t: t["x"].long()),
        use("bool", x=INTEGERS, reference=lambda t: t["x"] != 0),
        use("to", x=TD, dtype="f64", reference=lambda t: t["x"].double()),
        use("to", x=MASK, dtype="float"),
        use("cast_like", x=TD.with_dtype("f64"), like=VECTOR),
    ]
