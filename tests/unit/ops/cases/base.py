"""How cases are written: a use of a primitive, and operands of a certain form."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.unit.ops.harness import (
    Case,
    T,
    Tensors,
    d,
    kind,
    tokens,
)
from tokdsl.ops import OPS
from tokdsl.ops.base import AxisRef

IDS = kind(T, dtype="i64")
MASK = kind(T, dtype="bool")
TD_MASK = kind(T, d, dtype="bool")
QUERY, KEY = tokens("i"), tokens("j")
IJ = kind(QUERY, KEY)
ONE = kind(dtype="i64", batched=False)
INTEGERS = kind(T, d, dtype="i64")
Reference = Callable[[Tensors], object]


def use(
    name: str,
    *,
    reference: Reference | None = None,
    make: Callable[[Tensors], Tensors] | None = None,
    texts: dict[str, str] | None = None,
    parameters: dict[str, tuple[int, ...]] | None = None,
    **arguments: object,
) -> Case:
    """Return a use of a primitive; lists become axis references, numbers for sizes sizes."""
    fields = {
        key: tuple(AxisRef(v) for v in value) if isinstance(value, list) else value
        for key, value in arguments.items()
    }
    return Case(OPS[name](**fields), reference, make, texts or {}, parameters or {})


def positive(operands: Tensors) -> Tensors:
    """Make all floats positive and not too small."""
    return {k: v.abs() + 0.5 if v.is_floating_point() else v for k, v in operands.items()}


def spread(operands: Tensors) -> Tensors:
    """Keep floats away from the places where a function is not smooth."""
    return {k: v + 0.3 * v.sign() if v.is_floating_point() else v for k, v in operands.items()}


def at_least_one(operands: Tensors) -> Tensors:
    """Make integer divisors positive."""
    return {k: v + 1 if v.dtype == torch.long else v for k, v in operands.items()}


def some_true(t: Tensors) -> Tensors:
    """Let the condition hold somewhere in every row."""
    where = t["where"].clone()
    where[:, 0] = True
    if where.dim() > 2:
        where[:, :, 0] = True
    return {**t, "where": where}
