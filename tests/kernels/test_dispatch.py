"""The counting sort of choices by expert, its table of tiles, and the sum over choices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.kernels import check_guards, guarded, load_kernels, scratch_of_nan


def kernels() -> Any:
    """Return the module with the kernels."""
    return load_kernels("dispatch")


def _picks(tokens: int, slots: int, experts: int, dropped: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(experts, (tokens, slots), generator=generator)
    return torch.where(torch.rand(tokens, slots, generator=generator) < dropped, -1, pick)


def _expected(pick: Tensor, experts: int, first: int = 0) -> tuple[Tensor, Tensor]:
    flat = pick.flatten() - first
    key = torch.where((flat >= 0) & (flat < experts) & (pick.flatten() >= 0), flat, experts)
    return torch.sort(key, stable=True).indices, torch.bincount(key, minlength=experts + 1)[:-1]


def _check_tiles(tiles: Tensor, counts: Tensor, block: int) -> None:
    ends = counts.cumsum(0).tolist()
    wanted = [
        (expert, row, end)
        for expert, (end, count) in enumerate(zip(ends, counts.tolist(), strict=True))
        for row in range(end - count, end, block)
    ]
    found = [tuple(column) for column in tiles.t().tolist()]
    assert found[: len(wanted)] == wanted
    assert all(expert == -1 for expert, _, _ in found[len(wanted) :])


def _check(pick: Tensor, experts: int, block: int = 16, first: int = 0) -> None:
    with scratch_of_nan():
        order, counts, tiles = kernels().dispatch(guarded(pick), experts, block, first)
    order_wanted, counts_wanted = _expected(pick, experts, first)
    torch.testing.assert_close(counts, counts_wanted)
    torch.testing.assert_close(order, order_wanted)
    _check_tiles(tiles, counts, block)


@pytest.mark.parametrize("experts", [1, 2, 7, 64, 67])
@pytest.mark.parametrize("tokens", [1, 8, 61])
def test_few_choices_are_sorted_as_torch_sorts(tokens: int, experts: int) -> None:
    _check(_picks(tokens, 2, experts), experts)


def test_many_experts() -> None:
    _check(_picks(5, 8, 512), 512)
    _check(_picks(150, 8, 515, 0.2), 515)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_choices_of_one_program_and_one_more(slots: int) -> None:
    module = kernels()
    tokens = module.FEW_CHOICES // slots
    _check(_picks(tokens, slots, 5, 0.1), 5, block=64)
    _check(_picks(tokens + 1, slots, 5, 0.1), 5, block=64)


@pytest.mark.parametrize("tokens", [255, 256, 257, 367])
def test_many_choices_are_sorted_as_torch_sorts(tokens: int) -> None:
    _check(_picks(tokens, 5, 12, 0.3), 12, block=32)


def test_more_blocks_than_one_step_of_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    module = kernels()
    monkeypatch.setitem(module.CONFIGS, "dispatch.sort", [{"BLOCK": 16, "num_warps": 1}])
    monkeypatch.setattr(module, "FEW_CHOICES", 16)
    _check(_picks(521, 2, 3), 3)


@pytest.mark.parametrize("tokens", [0, 40, 700])
def test_no_choice_at_all(tokens: int) -> None:
    pick = torch.full((tokens, 2), -1)
    _check(pick, 6)


@pytest.mark.parametrize("tokens", [40, 700])
def test_all_tokens_to_one_expert(tokens: int) -> None:
    for expert in (0, 3, 5):
        _check(torch.full((tokens, 2), expert), 6)


@pytest.mark.parametrize("tokens", [30, 400])
def test_experts_of_one_kind_alone(tokens: int) -> None:
    pick = _picks(tokens, 3, 12, 0.1)
    for first, experts in ((0, 4), (4, 7), (11, 1)):
        _check(pick, experts, first=first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("weighted", [True, False])
def test_sum_over_choices(dtype: torch.dtype, weighted: bool) -> None:
    module = kernels()
    for tokens, slots, width in ((1, 1, 1), (5, 3, 257), (4, 2, 256), (7, 8, 31)):
        pick = _picks(tokens, slots, 4, 0.3)
        y = torch.randn(tokens * slots, width, dtype=dtype)
        y[(pick < 0).flatten()] = torch.nan  # nobody wrote there
        share = torch.rand(tokens, slots) if weighted else None
        sent = (pick >= 0).unsqueeze(-1)
        parts = torch.where(sent, y.view(tokens, slots, width).double(), 0.0)
        wanted = (parts * (1 if share is None else share.double().unsqueeze(-1))).sum(1)
        with scratch_of_nan():
            given = None if share is None else guarded(share)
            found = module._sum_choices(guarded(y), guarded(pick), given, 4)
        tolerance = 2e-6 if dtype == torch.float32 else 2e-3
        torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)


def test_same_bits_every_time() -> None:
    pick = _picks(300, 4, 9, 0.2)
    first = kernels().dispatch(pick, 9, 16)
    again = kernels().dispatch(pick, 9, 16)
    assert all(torch.equal(a, b) for a, b in zip(first[:2], again[:2], strict=True))


def test_registered_operation() -> None:
    for tokens in (0, 5):
        torch.library.opcheck(kernels().dispatch, (_picks(tokens, 2, 3), 3, 16, 0))
    check_guards()
