"""Quantizers of the library, with numbers worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.run.test_library import model


def quantizer(folder: Path, call: str, objective: str, rows: list[list[list[float]]]) -> Any:
    """Return the model of one quantizer of vectors of size 2, with these rows in its tables."""
    made = model(
        folder,
        f"""
        use std.quantizers {{ vector_quantize, residual_vector_quantize }}
        model coded() {{
          stage out(x: [T, d: 2]) {{ {call} }}
          objective {objective}
        }}
        """,
    )
    named = [*made.named_parameters(), *made.named_buffers()]
    tables = [value for name, value in named if name.endswith("table")]
    with torch.no_grad():
        for table, values in zip(tables, rows, strict=True):
            table.copy_(torch.tensor(values))
    return made


VECTOR = torch.tensor([[[0.9, 0.2]]])
UNITS = [[1.0, 0.0], [0.0, 1.0]]
#: 0.9, 0.2 is nearest to 1, 0; -0.1, 0.2 is left and nearest to 0, 0.25; -0.1, -0.05 is left
LEVELS = [UNITS, [[0.0, 0.25], [0.5, 0.0]], [[0.0, 0.0], [-0.5, 0.0]]]
OBJECTIVE = "mean(out) + mean(aux.commitment) + mean(aux.codebook)"


def test_nearest_row_and_its_losses(tmp_path: Path) -> None:
    made = quantizer(tmp_path, "vector_quantize(codes = 2)", OBJECTIVE, [UNITS])
    x = VECTOR.clone().requires_grad_()
    out = made(x)
    assert torch.equal(out.out, torch.tensor([[[1.0, 0.0]]]))
    assert out.aux.codes[0].tolist() == [[0]]
    terms = made.loss(x).terms
    assert terms["commitment"].item() == pytest.approx((0.01 + 0.04) / 2)
    assert terms["codebook"].item() == pytest.approx((0.01 + 0.04) / 2)


def test_gradients_pass_straight_through_and_to_one_side_each(tmp_path: Path) -> None:
    made = quantizer(tmp_path, "vector_quantize(codes = 2)", OBJECTIVE, [UNITS])
    (table,) = made.parameters()
    x = VECTOR.clone().requires_grad_()
    out = made(x)
    (straight,) = torch.autograd.grad((out.out * torch.tensor([3.0, 5.0])).sum(), x)
    assert straight.tolist() == [[[3.0, 5.0]]]
    out = made(x)
    (side,) = torch.autograd.grad(out.aux.commitment[0], x, retain_graph=True)
    assert side[0, 0].tolist() == pytest.approx([-0.1, 0.2])
    assert out.aux.commitment[0].grad_fn is not None
    (drawn,) = torch.autograd.grad(out.aux.codebook[0], table)
    assert drawn.tolist()[0] == pytest.approx([0.1, -0.2]) and drawn.tolist()[1] == [0.0, 0.0]


def test_residual_codes_sum_and_what_is_left(tmp_path: Path) -> None:
    call = "residual_vector_quantize(codebooks = 3, codes = 2)"
    made = quantizer(tmp_path, call, OBJECTIVE, LEVELS)
    out = made(VECTOR)
    assert [codes.item() for codes in out.aux.codes] == [0, 0, 0]
    assert out.out[0, 0].tolist() == pytest.approx([1.0, 0.25])
    left = [[-0.1, 0.2], [-0.1, -0.05], [-0.1, -0.05]]
    for commitment, (a, b) in zip(out.aux.commitment, left, strict=True):
        assert commitment.item() == pytest.approx((a * a + b * b) / 2)


def test_residual_gradient_is_that_of_the_vector_and_every_level_commits(tmp_path: Path) -> None:
    call = "residual_vector_quantize(codebooks = 3, codes = 2)"
    made = quantizer(tmp_path, call, OBJECTIVE, LEVELS)
    x = VECTOR.clone().requires_grad_()
    out = made(x)
    (gradient,) = torch.autograd.grad(out.out.sum(), x, retain_graph=True)
    assert gradient.tolist() == [[[1.0, 1.0]]]
    expected = [[-0.1, 0.2], [-0.1, -0.05], [-0.1, -0.05]]
    for commitment, wanted in zip(out.aux.commitment, expected, strict=True):
        (side,) = torch.autograd.grad(commitment, x, retain_graph=True)
        assert side[0, 0].tolist() == pytest.approx(wanted)


AVERAGED = "mean(out) + mean(aux.commitment)"


def averaged(folder: Path, decay: str, eps: str = "0.0") -> Any:
    """Return a quantizer with moving averages from two unit rows that were seen once each."""
    call = f"vector_quantize(codes = 2, decay = {decay}, eps = {eps})"
    made = quantizer(folder, call, AVERAGED, [UNITS]).train()
    made.out.vector_quantize.cluster_size.fill_(1.0)
    made.out.vector_quantize.total.copy_(torch.tensor(UNITS))
    return made


def test_moving_averages_are_those_worked_by_hand(tmp_path: Path) -> None:
    made = averaged(tmp_path, "0.9")
    made(VECTOR)
    own = made.out.vector_quantize
    assert own.cluster_size.tolist() == pytest.approx([1.0, 0.9])
    assert own.total.flatten().tolist() == pytest.approx([0.99, 0.02, 0.0, 0.9])
    assert own.table.flatten().tolist() == pytest.approx([0.99, 0.02, 0.0, 1.0])


def test_without_memory_rows_become_the_means_of_their_vectors(tmp_path: Path) -> None:
    made = averaged(tmp_path, "0.0")
    made(torch.tensor([[[0.9, 0.2], [0.7, 0.0], [0.1, 1.5]]]))
    assert made.out.vector_quantize.table.flatten().tolist() == pytest.approx([0.8, 0.1, 0.1, 1.5])


def test_a_row_without_vectors_stays(tmp_path: Path) -> None:
    made = averaged(tmp_path, "0.0")
    made(VECTOR)
    assert made.out.vector_quantize.table.flatten().tolist() == pytest.approx([0.9, 0.2, 0.0, 1.0])


def test_padding_moves_no_row(tmp_path: Path) -> None:
    made, other = averaged(tmp_path, "0.9"), VECTOR + torch.tensor([5.0, 5.0])
    made(torch.cat((VECTOR, other), dim=1), torch.tensor([[True, False]]))
    assert made.out.vector_quantize.cluster_size.tolist() == pytest.approx([1.0, 0.9])
    assert made.out.vector_quantize.table.flatten().tolist() == pytest.approx([0.99, 0.02, 0, 1])


def test_nothing_moves_outside_of_training_or_where_it_is_switched_off(tmp_path: Path) -> None:
    made = averaged(tmp_path, "0.5").eval()
    made(VECTOR)
    assert made.out.vector_quantize.table.tolist() == UNITS
    made.train().out.vector_quantize.inited.zero_()
    made(VECTOR)
    assert made.out.vector_quantize.table.tolist() == UNITS


def test_one_step_is_one_step_of_k_means(tmp_path: Path) -> None:
    made = averaged(tmp_path, "0.0")
    x = torch.randn(3, 20, 2)
    before = made.out.vector_quantize.table.clone()
    picked = torch.cdist(x.flatten(0, 1), before).argmin(1)
    made(x)
    means = [x.flatten(0, 1)[picked == k].mean(0) for k in range(2)]
    assert torch.allclose(made.out.vector_quantize.table, torch.stack(means), atol=1e-6)


def test_result_is_the_sum_of_the_rows(tmp_path: Path) -> None:
    call = "residual_vector_quantize(codebooks = 3, codes = 2)"
    made = quantizer(tmp_path, call, OBJECTIVE, LEVELS)
    out = made(torch.randn(2, 9, 2))
    total: Tensor = sum(
        torch.tensor(rows)[codes] for rows, codes in zip(LEVELS, out.aux.codes, strict=True)
    )  # type: ignore[assignment]
    assert torch.allclose(out.out, total, atol=1e-6)
