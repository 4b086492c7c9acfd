"""Documents in one row: what mixes tokens keeps them apart, or says that it cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.ops.cases import CASES
from tests.unit.ops.harness import CLOCK, LENGTH, VALID, Case, run
from tokdsl.ops import OPS
from tokdsl.ops.base import Op
from tokdsl.types.tensors import TensorType

#: first tokens of the documents of each row
STARTS = ((0, 3, 4), (0, 2))


def takes_starts(op: Op) -> bool:
    """Whether a use knows where documents start once it is told."""
    return "starts" in op._names and op.mixes(VALID) and _told(op).isolates()


def _told(op: Op) -> Op:
    values = {name: getattr(op, name) for name in op._names}
    return type(op)(**(values | {"starts": VALID}))


FOUND = [case for case in CASES if takes_starts(case.op)]


@pytest.mark.parametrize("case", FOUND, ids=[case.id for case in FOUND])
def test_documents_are_those_alone(case: Case) -> None:
    told = replace(case, op=_told(case.op))
    torch.manual_seed(0)
    operands = case.operands(torch.float64)
    parameters = {n: torch.randn(*s, dtype=torch.float64) for n, s in case.parameters.items()}
    starts = torch.zeros(2, LENGTH, dtype=torch.bool)
    for row, places in enumerate(STARTS):
        starts[row, list(places)] = True
    whole = run(told, {**operands, "starts": starts}, parameters=parameters)[0]
    for row, places in enumerate(STARTS):
        for first, end in zip(places, (*places[1:], LENGTH), strict=True):
            own = {n: _part(case, n, v, row, first, end) for n, v in operands.items()}
            alone = run(case, own, parameters=parameters)[0]
            mine = _tokens(whole, case.types()[0], row, first, end)
            torch.testing.assert_close(mine, alone, rtol=1e-10, atol=1e-10)
            others = _elsewhere(case, operands, row, first, end)
            again = run(told, {**others, "starts": starts}, parameters=parameters)[0]
            assert torch.equal(_tokens(again, case.types()[0], row, first, end), mine)


def _part(case: Case, name: str, value: Tensor, row: int, first: int, end: int) -> Tensor:
    kind = dict(case.op.operand_types())[name]
    assert isinstance(kind, TensorType)
    return _tokens(value, kind, row, first, end)


def _tokens(value: Tensor, kind: TensorType, row: int, first: int, end: int) -> Tensor:
    """Return one document of a value."""
    value = value[row : row + 1] if kind.batched else value
    for at, axis in enumerate(kind.axes):
        if axis.clock == CLOCK:
            value = value.narrow(at + kind.batched, first, end - first)
    return value


def _elsewhere(
    case: Case, operands: dict[str, Tensor], row: int, first: int, end: int
) -> dict[str, Tensor]:
    """Return other operands that hold the same in one document."""
    found = {}
    for name, value in operands.items():
        kind = dict(case.op.operand_types())[name]
        assert isinstance(kind, TensorType)
        found[name] = value
        if kind.batched and value.is_floating_point():
            found[name] = value * 1.5 + 0.25
            _tokens(found[name], kind, row, first, end).copy_(_tokens(value, kind, row, first, end))
    return found


def test_all_that_take_starts_have_a_case() -> None:
    wanted = {name for name, cls in OPS.items() if "starts" in cls._names}
    changing = {"chunks", "conv_transpose1d"}
    assert {case.op.op_name for case in FOUND} == wanted - changing


def test_what_goes_over_the_row_does_not_isolate() -> None:
    mixing = {case.op.op_name for case in CASES if not case.op.isolates()}
    assert {"mean", "softmax", "fft_real", "flip", "at"} <= mixing
    own = {case.op.op_name for case in CASES if case.op.isolates()}
    assert {"linear", "lookup", "cast", "dropout"} & own
