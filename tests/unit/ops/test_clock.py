"""Chunks of tokens and back: against loops over the tokens, with padding on either side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.ops.harness import TD, functions
from tokdsl.ops.base import Fault
from tokdsl.ops.clock import Pool, Upsample
from tokdsl.types.dims import Dim

REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda rows: rows.mean(0),
    "max": lambda rows: rows.amax(0),
    "sum": lambda rows: rows.sum(0),
    "first": lambda rows: rows[0],
    "last": lambda rows: rows[-1],
}
MASKS = {
    "none": None,
    "left": [[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]],
}


def call(name: str) -> Any:
    return functions({name})[name]


def valid_of(mask: str) -> Tensor | None:
    rows = MASKS[mask]
    return None if rows is None else torch.tensor(rows).bool()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("how", REDUCE)
@pytest.mark.parametrize("stride", [2, 3, 7, 9])
def test_pool_reduces_the_tokens_of_each_chunk(how: str, stride: int, mask: str) -> None:
    x, valid = torch.randn(2, 7, 3), valid_of(mask)
    found = call("pool_tokens")(x, stride, dim=-2, how=how, valid=valid)
    assert found.shape == (2, -(-7 // stride), 3)
    for row in range(2):
        tokens = x[row] if valid is None else x[row][valid[row]]
        chunks = tokens.split(stride)
        expected = torch.stack([REDUCE[how](chunk) for chunk in chunks])
        torch.testing.assert_close(found[row, : len(chunks)], expected)
        assert not found[row, len(chunks) :].any()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("lag", [0, 1, 2])
def test_upsample_gives_each_token_its_chunk(lag: int, mask: str) -> None:
    stride, valid = 3, valid_of(mask)
    x = torch.randn(2, 3, 4)
    found = call("upsample_tokens")(x, stride, 7, dim=-2, lag=lag, valid=valid)
    assert found.shape == (2, 7, 4)
    for row in range(2):
        places = range(7) if valid is None else valid[row].nonzero().flatten().tolist()
        for count, place in enumerate(places):
            chunk = count // stride - lag
            expected = x[row, chunk] if chunk >= 0 else torch.zeros(4)
            torch.testing.assert_close(found[row, place], expected)


@pytest.mark.parametrize("how", REDUCE)
def test_gradients_are_right(how: str) -> None:
    x = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    pool, upsample = call("pool_tokens"), call("upsample_tokens")

    def there_and_back(x: Tensor) -> Tensor:
        return upsample(pool(x, 2, dim=-2, how=how), 2, 5, dim=-2, lag=1)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(there_and_back, (x,))


def test_other_axes_may_stand_before_the_tokens() -> None:
    x = torch.randn(2, 3, 6, 4)
    found = call("pool_tokens")(x, 2, dim=-2, how="mean")
    torch.testing.assert_close(found, x.unflatten(2, (3, 2)).mean(3))


def test_types_follow_the_clocks() -> None:
    pool = Pool(x=TD, stride=Dim.of(4))
    coarse = pool.type().axes[0].clock
    assert coarse is not None and coarse.parent == TD.axes[0].clock
    assert Upsample(x=pool.type(), like=TD).type() == TD
    twice = Pool(x=pool.type(), stride=Dim.of(2))
    assert Upsample(x=twice.type(), like=TD).stride() == Dim.of(8)


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        (Pool(x=TD, stride=Dim.of(1)), "argument-type"),
        (Pool(x=TD, stride=Dim.of(4), how="median"), "argument-type"),
        (Upsample(x=TD, like=Pool(x=TD, stride=Dim.of(4)).type()), "clock-mismatch"),
        (Upsample(x=Pool(x=TD, stride=Dim.of(4)).type(), like=TD, lag=-1), "argument-type"),
    ],
)
def test_wrong_uses_are_refused(op: Pool | Upsample, kind: str) -> None:
    with pytest.raises(Fault) as raised:
        op.type()
    assert raised.value.kind == kind
