"""Encoders and decoders of frames, read and written in steps of any size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fixtures.emitted import Emitted, emitted

ACCEPTED = Path(__file__).parents[1] / "language" / "accept"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Emitted]:
    return {
        name: emitted((ACCEPTED / f"causal_codec_{name}.tok").read_text("utf-8"), folder)
        for name, folder in ((n, tmp_path_factory.mktemp(n)) for n in ("encoder", "decoder"))
    }


@pytest.mark.parametrize("counts", [(40,), (1,) * 40, (8, 3, 5, 16, 7, 1), (5, 35)], ids=str)
def test_encoder_gives_every_frame_as_soon_as_it_is_complete(
    made: dict[str, Emitted], counts: tuple[int, ...]
) -> None:
    model = made["encoder"].model
    signal = torch.randn(2, 40, 1, dtype=torch.float64)
    whole = model(signal).frames
    state, frames, read = model.new_state(batch=2), [], 0
    for part in torch.split(signal, list(counts), dim=1):
        frames.append(model.step(part, state))
        read += part.shape[1]
        assert sum(f.shape[1] for f in frames) == read // 8
    assert torch.allclose(torch.cat(frames, dim=1), whole)


@pytest.mark.parametrize("counts", [(6,), (1,) * 6, (2, 1, 3)], ids=str)
def test_decoder_gives_the_samples_of_every_frame(
    made: dict[str, Emitted], counts: tuple[int, ...]
) -> None:
    model = made["decoder"].model
    frames = torch.randn(2, 6, 16, dtype=torch.float64)
    whole = model(frames).samples
    assert whole.shape == (2, 48, 1)
    state = model.new_state(batch=2)
    before = state.snapshot()
    model.step(frames[:, :2], state)
    state.restore(before)
    samples = [model.step(part, state) for part in torch.split(frames, list(counts), dim=1)]
    assert torch.allclose(torch.cat(samples, dim=1), whole)


def test_frames_and_samples_read_nothing_later(made: dict[str, Emitted]) -> None:
    encoder, decoder = made["encoder"].model, made["decoder"].model
    signal = torch.randn(1, 40, 1, dtype=torch.float64)
    frames = torch.randn(1, 5, 16, dtype=torch.float64)
    for at in range(5):
        changed, moved = signal.clone(), frames.clone()
        changed[:, (at + 1) * 8 :] += 1.0
        moved[:, at + 1 :] += 1.0
        same = encoder(changed).frames[:, : at + 1] - encoder(signal).frames[:, : at + 1]
        assert same.abs().max() == 0
        end = slice((at + 1) * 8)
        assert (decoder(moved).samples[:, end] - decoder(frames).samples[:, end]).abs().max() == 0


def test_padded_rows_give_what_they_give_alone(made: dict[str, Emitted]) -> None:
    encoder, decoder = made["encoder"].model, made["decoder"].model
    signal = torch.randn(1, 21, 1, dtype=torch.float64)
    padded = torch.cat((torch.randn(1, 3, 1, dtype=torch.float64), signal), dim=1)
    valid = torch.arange(24).unsqueeze(0) >= 3
    assert torch.allclose(encoder(padded, valid).frames, encoder(signal).frames)
    frames = torch.randn(1, 5, 16, dtype=torch.float64)
    behind = torch.cat((frames, torch.randn(1, 2, 16, dtype=torch.float64)), dim=1)
    found = decoder(behind, torch.arange(7).unsqueeze(0) < 5).samples
    assert torch.allclose(found[:, :40], decoder(frames).samples)
