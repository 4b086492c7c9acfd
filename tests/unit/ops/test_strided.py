"""Lengths, ends and steps of convolutions between clocks, and steps of an LSTM."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.ops.harness import functions

NAMES = {"strided_convolution", "transposed_convolution", "causal_convolution", "lstm"}
STATES = {"StrideState", "OverlapState", "RecurrentState"}
SHAPES = [(2, 2), (4, 2), (5, 2), (7, 3), (8, 4), (16, 8), (5, 5)]
CUTS = [(3,), (1, 2, 3, 4, 5, 6, 7, 8, 9), (0, 4), (5, 6, 11), (12,)]


@pytest.fixture(scope="module")
def forms() -> dict[str, Any]:
    return functions(NAMES)


@pytest.fixture(scope="module")
def states() -> dict[str, Any]:
    return functions(STATES)


def frames(forms: dict[str, Any], x: Tensor, weight: Tensor, stride: int, **options: Any) -> Tensor:
    """Return a causal convolution with a stride."""
    before = weight.shape[2] - stride
    call = forms["strided_convolution"]
    result: Tensor = call(x, weight, None, stride=stride, before=before, **options)
    return result


@pytest.mark.parametrize(("kernel", "stride"), SHAPES)
@pytest.mark.parametrize("reflect", [False, True])
def test_there_is_a_frame_per_chunk_that_began(
    forms: dict[str, Any], kernel: int, stride: int, reflect: bool
) -> None:
    weight, back = torch.randn(3, 2, kernel), torch.randn(3, 2, kernel)
    for length in range(1, 21):
        x = torch.randn(1, length, 2)
        y = frames(forms, x, weight, stride, reflect=reflect)
        assert y.shape == (1, -(-length // stride), 3)
        whole = forms["transposed_convolution"](y, back, None, stride=stride)
        assert whole.shape == (1, -(-length // stride) * stride, 2)
        inverse = forms["transposed_convolution"](y, back, None, stride=stride, length=length)
        assert inverse.shape == x.shape and torch.equal(inverse, whole[:, :length])


@pytest.mark.parametrize(("kernel", "stride"), SHAPES)
def test_frame_ends_with_its_chunk(forms: dict[str, Any], kernel: int, stride: int) -> None:
    x, weight = torch.randn(1, 20, 2), torch.randn(3, 2, kernel)
    y = frames(forms, x, weight, stride)
    padded = torch.cat((torch.zeros(1, kernel - stride, 2), x, torch.zeros(1, stride, 2)), dim=1)
    for t in range(y.shape[1]):
        part = padded[0, t * stride : t * stride + kernel]
        assert torch.allclose(y[0, t], torch.einsum("kc,ock->o", part, weight), atol=1e-5)


def test_mirror_is_that_of_torch(forms: dict[str, Any]) -> None:
    x, weight = torch.randn(2, 11, 2), torch.randn(3, 2, 7)
    mirrored = torch.cat((x[:, 1:7].flip(1), x), dim=1).transpose(1, 2)
    expected = torch.nn.functional.conv1d(mirrored, weight).transpose(1, 2)
    found = forms["strided_convolution"](x, weight, None, before=6, reflect=True)
    assert torch.allclose(found, expected, atol=1e-5)


def test_two_samples_and_their_mirror_by_hand(forms: dict[str, Any]) -> None:
    x = torch.tensor([[[1.0], [2.0], [4.0]]])
    # frames of two: 4 2 | 1 2 and 1 2 | 4 and, in place of the missing one, the one before: 2
    y = frames(forms, x, torch.ones(1, 1, 4), 2, reflect=True)
    assert y.flatten().tolist() == [9.0, 9.0]
    zeros = frames(forms, x, torch.ones(1, 1, 4), 2)
    assert zeros.flatten().tolist() == [3.0, 7.0]
    back = forms["transposed_convolution"](zeros, torch.ones(1, 1, 4), None, stride=2)
    assert back.flatten().tolist() == [3.0, 3.0, 10.0, 10.0]


@pytest.mark.parametrize(("kernel", "stride"), SHAPES)
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_steps_give_the_frames_that_are_complete(
    forms: dict[str, Any], states: dict[str, Any], kernel: int, stride: int, cuts: tuple[int, ...]
) -> None:
    x, weight = torch.randn(2, 13, 2), torch.randn(3, 2, kernel)
    whole = frames(forms, x, weight, stride)
    state, parts = states["StrideState"](kernel - stride, stride), []
    for start, stop in itertools.pairwise((0, *cuts, 13)):
        parts.append(frames(forms, x[:, start:stop], weight, stride, state=state))
        assert sum(part.shape[1] for part in parts) == stop // stride
        state.restore(state.snapshot())
        state.reorder(torch.arange(2))
    assert torch.allclose(torch.cat(parts, dim=1), whole[:, : 13 // stride], atol=1e-5)
    _ends(state, 13)


@pytest.mark.parametrize(("kernel", "stride"), SHAPES)
@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_steps_of_frames_give_their_samples(
    forms: dict[str, Any], states: dict[str, Any], kernel: int, stride: int, cuts: tuple[int, ...]
) -> None:
    y, weight, bias = torch.randn(2, 13, 3), torch.randn(3, 2, kernel), torch.randn(2)
    call = forms["transposed_convolution"]
    whole = call(y, weight, bias, stride=stride)
    state, parts = states["OverlapState"](kernel - stride), []
    for start, stop in itertools.pairwise((0, *cuts, 13)):
        parts.append(call(y[:, start:stop], weight, bias, stride=stride, state=state))
        assert parts[-1].shape[1] == (stop - start) * stride
        state.restore(state.snapshot())
        state.reorder(torch.arange(2))
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
    if kernel > stride:
        _ends(state, 13 * stride)


def _ends(state: Any, length: int) -> None:
    assert state.length == length
    assert state.bytes() > 0 or state.snapshot()[1].numel() == 0
    with pytest.raises(ValueError, match="cannot crop"):
        state.crop(2)
    state.crop(0)
    assert state.length == 0 and state.bytes() == 0


def test_state_rows_are_reordered(forms: dict[str, Any], states: dict[str, Any]) -> None:
    x, weight = torch.randn(2, 12, 2), torch.randn(3, 2, 8)
    turned = torch.tensor([1, 0])
    state = states["StrideState"](4, 4)
    frames(forms, x[:, :6], weight, 4, state=state)
    state.reorder(turned)
    rest = frames(forms, x[turned, 6:], weight, 4, state=state)
    assert torch.allclose(rest, frames(forms, x, weight, 4)[turned, 1:], atol=1e-5)


def test_neither_documents_nor_padding_in_steps(
    forms: dict[str, Any], states: dict[str, Any]
) -> None:
    x, weight = torch.randn(2, 8, 2), torch.randn(2, 2, 4)
    mask = torch.ones(2, 8, dtype=torch.bool)
    for name, kept in (("strided_convolution", "StrideState"), ("transposed_convolution", "")):
        with pytest.raises(ValueError, match="documents"):
            forms[name](x, weight, None, stride=2, starts=mask)
        state = states["StrideState"](2, 2) if kept else states["OverlapState"](2)
        assert forms[name](x, weight, None, stride=2, valid=mask, state=state).shape[0] == 2
        mask[0, 0] = False
        with pytest.raises(ValueError, match="no padding in steps"):
            forms[name](x, weight, None, stride=2, valid=mask, state=state)
        mask[0, 0] = True


# ------------------------------------------------------------------ LSTM


@pytest.fixture
def layer() -> nn.LSTM:
    torch.manual_seed(0)
    return nn.LSTM(3, 5, batch_first=True)


def weights(layer: nn.LSTM) -> list[tuple[Tensor, ...]]:
    """Return both matrices and both biases."""
    parts = list(layer.parameters())
    return [tuple(parts[:2]), tuple(parts[2:])]


def test_lstm_is_that_of_torch_with_and_without_padding(
    forms: dict[str, Any], layer: nn.LSTM
) -> None:
    x = torch.randn(2, 9, 3)
    expected, _ = layer(x)
    assert torch.equal(forms["lstm"](x, *weights(layer)), expected)
    every = torch.ones(2, 9, dtype=torch.bool)
    found = forms["lstm"](x, *weights(layer), valid=every)
    assert torch.allclose(found, expected, atol=1e-6)


def test_padding_leaves_an_lstm_as_it_is(forms: dict[str, Any], layer: nn.LSTM) -> None:
    x, valid = torch.randn(2, 9, 3), torch.ones(2, 9, dtype=torch.bool)
    valid[0, :2] = False
    valid[1, 3:5] = False
    found = forms["lstm"](x, *weights(layer), valid=valid)
    for row in range(2):
        alone, _ = layer(x[row : row + 1, valid[row]])
        assert torch.allclose(found[row, valid[row]], alone[0], atol=1e-6)


def test_documents_begin_anew(forms: dict[str, Any], layer: nn.LSTM) -> None:
    x, starts = torch.randn(1, 9, 3), torch.zeros(1, 9, dtype=torch.bool)
    starts[0, [0, 4]] = True
    found = forms["lstm"](x, *weights(layer), starts=starts)
    alone = torch.cat((layer(x[:, :4])[0], layer(x[:, 4:])[0]), dim=1)
    assert torch.allclose(found, alone, atol=1e-6)


@pytest.mark.parametrize("cuts", [(1, 2, 3, 4, 5, 6, 7, 8), (4,), (0, 3, 3, 8)], ids=str)
def test_lstm_steps_are_the_whole(
    forms: dict[str, Any], states: dict[str, Any], layer: nn.LSTM, cuts: tuple[int, ...]
) -> None:
    x, state = torch.randn(2, 9, 3), states["RecurrentState"]()
    parts = [
        forms["lstm"](x[:, start:stop], *weights(layer), state=state)
        for start, stop in itertools.pairwise((0, *cuts, 9))
    ]
    assert torch.allclose(torch.cat(parts, dim=1), layer(x)[0], atol=1e-6)
    hidden, cell = layer(x)[1]
    assert torch.allclose(state.value, torch.stack((hidden[0], cell[0]), dim=1), atol=1e-6)


def test_one_cell_by_hand(forms: dict[str, Any]) -> None:
    one = torch.ones(4, 1)
    x = torch.tensor([[[0.0], [0.0]]])
    found = forms["lstm"](x, (one, one), None)
    assert found.flatten().tolist() == [0.0, 0.0]
    biased = forms["lstm"](x[:, :1], (one, one), (torch.full((4,), 1.0), torch.zeros(4)))
    sigmoid, tanh = 0.7310585786, 0.7615941560
    assert biased.item() == pytest.approx(sigmoid * torch.tensor(sigmoid * tanh).tanh().item())
