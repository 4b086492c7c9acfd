"""Choosing tokens and reading what is chosen: types, references, blocks, padding, documents."""

from __future__ import annotations

import pytest
import torch

from tests.unit.ops.cases.selection import token_choice_cases
from tests.unit.ops.harness import Case, functions, run, shape
from tokdsl.ops.base import Fault
from tokdsl.types.dims import Dim

CASES = token_choice_cases()
IDS = [f"{n}-{case.op.op_name}" for n, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_declared_type_and_reference(case: Case) -> None:
    torch.manual_seed(0)
    for _ in range(5):
        operands = case.operands()
        found = run(case, operands)
        for value, kind in zip(found, case.types(), strict=True):
            wanted = shape(kind)
            rows = [a.block for a in kind.axes]
            assert [v for v, b in zip(value.shape[1:], rows, strict=True) if not b] == [
                w for w, b in zip(wanted[1:], rows, strict=True) if not b
            ]
            assert value.dtype.is_floating_point == kind.is_float
        if case.reference is not None:
            other = case.reference(operands)
            assert isinstance(other, torch.Tensor)
            torch.testing.assert_close(found[0], other, check_dtype=False)


def test_names_of_cost_and_state() -> None:
    blocks = next(case.op for case in CASES if case.op.op_name == "blocks")
    state = blocks.state()
    assert state is not None and state.kind == "BlockSums"
    attend = next(case.op for case in CASES if case.op.op_name == "attend_selected")
    # two products of 2 numbers for 3 keys in each of 4 heads
    assert attend.cost().flops.evaluate({"T_text": 10}) == 10 * 3 * 4 * 4 * 2


def test_blocks_of_documents_and_padding() -> None:
    scope = functions({"block_means", "block_clock", "token_clock", "chosen_columns"})
    valid = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 1]]).bool()
    documents = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 2, 2]])
    x = torch.arange(9.0).expand(2, -1).unsqueeze(-1)
    clock = scope["token_clock"](x, valid, documents)  # type: ignore[operator]
    means = scope["block_means"](x, clock, 2)[..., 0]  # type: ignore[operator]
    # row 0: [2, 3] [4] | [5, 6] [7, 8]; row 1: [0] | [1, 2] [3, 4] [5, 6] | [7, 8]
    assert means[0, :4].tolist() == [2.5, 4.0, 5.5, 7.5]
    assert means[1].tolist() == [0.0, 1.5, 3.5, 5.5, 7.5]
    coarse = scope["block_clock"](clock, 2)  # type: ignore[operator]
    assert coarse.key_position[0, :4].tolist() == [1, 3, 1, 3]
    assert coarse.key_valid[0].tolist() == [True] * 4 + [False]
    assert coarse.key_document[1].tolist() == [1, 2, 2, 2, 3]
    near = torch.tensor([[[1, 3]], [[3, 1]]]).expand(-1, 9, -1)
    columns = scope["chosen_columns"](near, clock, block=2)  # type: ignore[operator]
    assert columns[0, 2].tolist() == [4, -1, -1, -1]
    assert columns[0, 8].tolist() == [-1, -1, 7, 8]
    assert columns[1, 6].tolist() == [5, 6, 1, 2]


@pytest.mark.parametrize(
    ("name", "changed", "kind"),
    [
        ("blocks", {"size": Dim.of(0)}, "argument-type"),
        ("selected_weights", {"block": 2}, "operand-shape"),
        ("attend_selected", {"block": 2, "select": None}, "size-mismatch"),
    ],
)
def test_faults(name: str, changed: dict[str, object], kind: str) -> None:
    op = next(case.op for case in CASES if case.op.op_name == name)
    fields = {field: getattr(op, field) for field in op._names} | changed
    if fields.get("select", 0) is None:
        from dataclasses import replace

        fields["select"] = replace(op.select, classes=op.select.axes[0].size)  # type: ignore[attr-defined]
    with pytest.raises(Fault) as caught:
        type(op)(**fields).type()
    assert caught.value.kind == kind
