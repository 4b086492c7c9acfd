"""The codec of the examples gives its published implementation's numbers.

`tests/fixtures/parity/encodec` was made as the others are (see `test_parity.py`); its loss and
gradients are those of the published modules, put together as `meta.json` says.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tokdsl.driver import build, check_file
from tokdsl.training.package import import_package

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "examples" / "encodec.tok"
FIXTURE = ROOT / "tests" / "fixtures" / "parity" / "encodec"
WEIGHTS = FIXTURE / "weights.safetensors"
LAYOUT = "huggingface"
SIZES = {
    "filters": "4", "d": "16", "levels": "2", "ratios": "[4, 2]", "codes": "16", "codebooks": "3",
    "lstm_layers": "1",
}  # fmt: skip
#: samples per frame
HOP = 8


def made(folder: Path, **changes: str) -> Any:
    """Return the model with the published weights."""
    built = build(SPEC, folder, SIZES | changes)
    assert not [finding.message() for finding in built.report]
    assert built.directory is not None
    model = import_package(built.directory).Model()
    part(model, "checkpoint").load(model, WEIGHTS, LAYOUT)
    return model.eval()


def part(model: Any, name: str) -> Any:
    """Return a module of the model's package."""
    return importlib.import_module(f"{type(model).__module__.rpartition('.')[0]}.{name}")


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(tmp_path_factory.mktemp("encodec"))


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    return load_file(FIXTURE / "io.safetensors")


@pytest.fixture(scope="module")
def signal(given: dict[str, Tensor]) -> Tensor:
    return given["in.input_values"].transpose(1, 2)


def test_default_sizes_are_those_of_the_published_model() -> None:
    checked = check_file(SPEC)
    assert not list(checked.report)
    assert checked.facts["encodec"].numbers["params"] == 14_851_810


def test_codes_latents_and_signal_are_the_published_ones(
    codec: Any, given: dict[str, Tensor], signal: Tensor
) -> None:
    out = codec(signal)
    codes = torch.stack(out.aux.codes, dim=1)
    assert torch.equal(codes, given["out.audio_codes"][0])
    assert (out.encoder.transpose(1, 2) - given["out.latent"]).abs().max() < 1e-5
    assert (out.decoder.transpose(1, 2) - given["out.audio_values"]).abs().max() < 1e-5


def test_loss_and_gradients_are_the_published_ones(codec: Any, signal: Tensor) -> None:
    meta = json.loads((FIXTURE / "meta.json").read_text("utf-8"))
    codec.zero_grad()
    loss = codec.loss(signal).total
    assert loss.item() == pytest.approx(meta["loss"], abs=2e-6)
    loss.backward()
    own = {name: torch.zeros_like(value) for name, value in codec.state_dict().items()}
    own |= {name: p.grad for name, p in codec.named_parameters()}
    layouts = part(codec, "layouts")
    found = {n: layouts.whole(t) for n, t in layouts.LAYOUTS[LAYOUT].tensors(own)}
    assert len(meta["grad_l2_sum"]) == 68
    for name, (norm, total) in meta["grad_l2_sum"].items():
        assert found[name].norm().item() == pytest.approx(norm, abs=2e-5 * max(norm, 1e-2)), name
        assert found[name].sum().item() == pytest.approx(total, abs=2e-5 * max(norm, 1e-2)), name


def test_weights_are_saved_as_they_were_published(codec: Any, tmp_path: Path) -> None:
    saved = tmp_path / "model.safetensors"
    part(codec, "checkpoint").save(codec, saved, LAYOUT)
    found, published = load_file(saved), load_file(WEIGHTS)
    assert found.keys() == published.keys()
    assert all(torch.equal(found[name], value) for name, value in published.items())


@pytest.mark.parametrize("length", [1, 3, 7, 8, 9, 31, 40])
def test_padding_on_either_side_changes_nothing(codec: Any, signal: Tensor, length: int) -> None:
    alone = codec(signal[:, :length])
    padded, valid = torch.randn(2, length + 5, 1), torch.zeros(2, length + 5, dtype=torch.bool)
    for row, start in enumerate((2, 5)):
        padded[row, start : start + length] = signal[row, :length]
        valid[row, start : start + length] = True
    out = codec(padded, valid)
    frames = -(-length // HOP)
    assert alone.encoder.shape[1] == frames
    assert (out.encoder[:, :frames] - alone.encoder).abs().max() < 1e-5
    for row, start in enumerate((2, 5)):
        error = out.decoder[row, start : start + length] - alone.decoder[row]
        assert error.abs().max() < 1e-5
    together = codec.loss(padded, valid).total - codec.loss(signal[:, :length]).total
    assert together.abs() < 1e-5


def test_frames_do_not_depend_on_later_samples_without_mirror(
    tmp_path: Path, signal: Tensor
) -> None:
    causal = made(tmp_path, padding='"zeros"')
    before = causal(signal[:, :80])
    codes = torch.stack(before.aux.codes)
    for frame in range(10):
        changed = signal[:, :80].clone()
        changed[:, (frame + 1) * HOP :] += 1.0
        after = causal(changed)
        assert torch.equal(after.encoder[:, : frame + 1], before.encoder[:, : frame + 1])
        assert torch.equal(torch.stack(after.aux.codes)[..., : frame + 1], codes[..., : frame + 1])
        past = slice((frame + 1) * HOP)
        assert torch.equal(after.decoder[:, past], before.decoder[:, past])


def test_first_frame_reads_later_samples_with_mirror(codec: Any, signal: Tensor) -> None:
    changed = signal[:, :80].clone()
    changed[:, HOP:] += 1.0
    difference = codec(changed).encoder[:, 0] - codec(signal[:, :80]).encoder[:, 0]
    assert difference.abs().max() > 1e-3


def test_codebooks_follow_their_vectors_in_training_only(tmp_path: Path, signal: Tensor) -> None:
    codec = made(tmp_path)
    first = codec.quantizer.residual_vector_quantize.layers[0].level
    before = {name: value.clone() for name, value in first.named_buffers()}
    codec.loss(signal)
    assert all(torch.equal(value, before[name]) for name, value in first.named_buffers())
    out = codec(signal)
    codec.train().loss(signal).total.backward()
    chosen = torch.nn.functional.one_hot(out.aux.codes[0], 16).float()
    count = 0.99 * before["cluster_size"] + 0.01 * chosen.sum((0, 1))
    sums = torch.einsum("btk,btd->kd", chosen, out.encoder)
    total = 0.99 * before["total"] + 0.01 * sums
    smooth = (count + 1e-5) / (count.sum() + 16e-5) * count.sum()
    assert torch.allclose(first.cluster_size, count, atol=1e-5)
    assert torch.allclose(first.total, total, atol=1e-5)
    rows = torch.where((count > 0).unsqueeze(-1), total / smooth.unsqueeze(-1), before["table"])
    assert torch.allclose(first.table, rows, rtol=1e-4, atol=1e-5)
    assert not first.table.requires_grad
