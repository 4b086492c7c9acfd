"""The largest numbers of rows, against sorting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.fixtures.kernels import guarded, load_kernels, scratch_of_nan

NONE = -(2**31)


def ordered(scores: Tensor) -> Tensor:
    """Return whole numbers in the order of scores."""
    bits = (scores + 0.0).view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def check(scores: Tensor, wanted: int, seen: Tensor | None = None) -> None:
    numbers = ordered(scores)
    if seen is not None:
        numbers = torch.where(seen, numbers, NONE)
    with scratch_of_nan():
        values, places = load_kernels("choice").largest(guarded(numbers), wanted)
    for row in range(len(scores)):
        there = range(scores.shape[1]) if seen is None else seen[row].nonzero().flatten().tolist()
        right = sorted(there, key=lambda at: (-int(numbers[row, at]), at))[:wanted]
        missing = wanted - len(right)
        assert places[row].tolist() == [*right, *[-1] * missing]
        expected = torch.cat((scores[row, right], torch.full((missing,), -torch.inf)))
        assert torch.equal(values[row], expected)


@pytest.mark.parametrize("wanted", [1, 64, 300])
@pytest.mark.parametrize("count", [1, 63, 257])
def test_random_scores(count: int, wanted: int) -> None:
    torch.manual_seed(count + wanted)
    check(torch.randn(2, count), wanted)


def test_more_than_a_block() -> None:
    check(torch.randn(1, 2500), 1100)


def test_equal_scores_go_to_the_lowest_place() -> None:
    check(torch.zeros(1, 40), 11)
    check(torch.randint(3, (4, 90)).float() - 1.0, 50)
    check(torch.tensor([[0.0, -0.0, 0.0, 1.0, -0.0]]), 3)


def test_what_may_not_be_chosen() -> None:
    scores = torch.randn(4, 30)
    seen = torch.rand(4, 30) < 0.3
    seen[1] = False
    seen[2] = True
    scores[2, 5:] = -torch.inf
    check(scores, 12, seen)


def test_infinite_scores() -> None:
    scores = torch.randn(2, 20)
    scores[0, 3:9] = torch.inf
    scores[1, 4:] = -torch.inf
    check(scores, 10)


def test_no_rows_and_no_numbers() -> None:
    for shape in ((0, 5), (2, 0)):
        values, places = load_kernels("choice").largest(torch.zeros(shape, dtype=torch.int32), 3)
        assert values.shape == places.shape == (shape[0], 3)
        assert bool((places == -1).all()) and bool((values == -torch.inf).all())


def test_registration() -> None:
    operation = load_kernels("choice").largest
    torch.library.opcheck(operation, (ordered(torch.randn(2, 20)), 4))
