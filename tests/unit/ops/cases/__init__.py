"""Uses of every primitive: types, sizes and, where it is not trivial, the result another way."""

from __future__ import annotations

from tests.unit.ops.cases import codec, elementwise, mix, recurrence, reduce, select, shape

CASES = [
    *elementwise.elementwise_cases(),
    *elementwise.cast_cases(),
    *reduce.reduction_cases(),
    *reduce.row_cases(),
    *select.selection_cases(),
    *shape.shape_cases(),
    *mix.mixing_cases(),
    *recurrence.recurrence_cases(),
    *codec.codec_cases(),
]
MODULES = (
    "activations",
    "cast",
    "constants",
    "contract",
    "convolution",
    "counting",
    "elementwise",
    "fourier",
    "loss",
    "lstm",
    "random",
    "recurrence",
    "reduce",
    "row",
    "running",
    "scan",
    "select",
    "shape",
    "sorting",
    "strided",
    "tokens",
    "update",
)
