"""Uses of every primitive: types, sizes and, where it is not trivial, the result another way."""

from __future__ import annotations

from tests.unit.ops.cases import elementwise, mix, reduce, select, shape

CASES = [
    *elementwise.elementwise_cases(),
    *elementwise.cast_cases(),
    *reduce.reduction_cases(),
    *reduce.row_cases(),
    *select.selection_cases(),
    *shape.shape_cases(),
    *mix.mixing_cases(),
]
MODULES = (
    "activations",
    "cast",
    "constants",
    "contract",
    "convolution",
    "elementwise",
    "fourier",
    "loss",
    "random",
    "reduce",
    "row",
    "scan",
    "select",
    "shape",
    "tokens",
)
