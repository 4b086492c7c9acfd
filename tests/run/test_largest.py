"""The largest entries: one answer for every form, ties to the lowest index."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tokdsl.emit.functions import collect, merge


@pytest.fixture
def scope() -> dict[str, Any]:
    """The function and what it needs, as a package has them."""
    names: dict[str, Any] = {"__name__": "functional", "__package__": ""}
    exec(compile(merge(collect({"topk_stable"})), "functional.py", "exec"), names)
    return names


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "dim"), [((3, 9), -1), ((2, 9, 4), 1), ((0, 9), -1)])
def test_a_short_call_and_a_long_one_choose_the_same(
    scope: dict[str, Any], dtype: torch.dtype, shape: tuple[int, ...], dim: int
) -> None:
    torch.manual_seed(0)
    values = torch.tensor([-torch.inf, -1.0, -0.0, 0.0, 1.0, torch.inf], dtype=dtype)
    x = values[torch.randint(len(values), shape)]
    short = scope["topk_stable"](x, 5, dim=dim)
    scope["SHORT_ENTRIES"] = -1
    long = scope["topk_stable"](x, 5, dim=dim)
    assert torch.equal(short[0], long[0])
    assert torch.equal(short[1], long[1])


def test_ties_go_to_the_lowest_index(scope: dict[str, Any]) -> None:
    x = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0, -0.0]])
    for entries in (1024, -1):
        scope["SHORT_ENTRIES"] = entries
        assert scope["topk_stable"](x, 5)[1].tolist() == [[1, 2, 4, 0, 3]]


@pytest.mark.parametrize("entries", [1024, -1])
def test_the_gradient_goes_to_what_was_chosen(scope: dict[str, Any], entries: int) -> None:
    scope["SHORT_ENTRIES"] = entries
    x = torch.tensor([[1.0, 3.0, 2.0, 0.0]], requires_grad=True)
    values, _ = scope["topk_stable"](x, 2)
    (values * torch.tensor([[5.0, 7.0]])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[0.0, 5.0, 7.0, 0.0]]
