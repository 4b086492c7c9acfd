"""Patches of a fixed size, against the batch of patches that the paper describes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.decoding import error, worst_padding, worst_split, worst_verb
from tests.fixtures.layers import layer
from tokdsl.driver import build, check_file
from tokdsl.training.package import import_package

EXAMPLE = Path(__file__).parents[2] / "examples" / "megabyte.tok"
PATCH, HEAD = 4, 8
SIZES = {
    "patch": PATCH, "d": 16, "inner": 32, "layers": 2, "local_layers": 2, "head_dim": HEAD,
    "length": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    folder = tmp_path_factory.mktemp("megabyte")
    built = build(EXAMPLE, folder, {name: str(value) for name, value in SIZES.items()})
    assert not [finding.message() for finding in built.report]
    assert built.directory is not None
    return import_package(built.directory)


def drawn(package: ModuleType, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model with parameters large enough that every part counts."""
    torch.manual_seed(0)
    model = package.Model().to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def rows(count: int, length: int) -> Tensor:
    """Return texts that begin with byte 255."""
    ids = torch.randint(0, 256, (count, length))
    ids[:, 0] = 255
    return ids


def published(model: Any, ids: Tensor) -> Tensor:
    """Return the logits of whole patches, as batches of sequences without any mask of patches."""
    text, batch = model.text, ids.shape[0]
    before = torch.nn.functional.pad(ids, (PATCH - 1, 0))[:, : ids.shape[1]]
    x = text.joined_bytes.table[before].reshape(batch, -1, SIZES["inner"])
    x = x + text.patches.placed.table[: x.shape[1]]
    x = torch.cat((text.patches.begin.expand(batch, 1, -1), x[:, 1:]), dim=1)
    for block in text.patches.layers:
        x = layer(x, block.transformer_relu, HEAD)
    slices = text.slices(x.reshape(-1, PATCH, SIZES["inner"] // PATCH))
    y = text.bytes.embedding(ids).reshape(-1, PATCH, SIZES["d"]) + text.places
    y = torch.cat((text.begin.expand(y.shape[0], 1, -1), y[:, 1:]), dim=1) + slices
    for block in text.layers:
        y = layer(y, block.transformer_relu, HEAD)
    y = nn.functional.layer_norm(y, (SIZES["d"],), text.layernorm.weight)
    return (y @ text.unembed.linear.weight.T).reshape(batch, ids.shape[1], 256)


def test_the_example_has_no_findings() -> None:
    checked = check_file(EXAMPLE)
    assert not list(checked.report)
    assert checked.facts["megabyte"].streaming


def test_logits_are_those_of_a_batch_of_patches(package: ModuleType) -> None:
    model, ids = drawn(package), rows(3, 20)
    assert error(model(ids).text, published(model, ids)) < 1e-6  # angles are in float32


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_steps_are_the_whole_pass(package: ModuleType, dtype: torch.dtype, limit: float) -> None:
    model, ids = drawn(package, dtype), rows(4, 23)
    with torch.no_grad():
        assert worst_split(model, ids, model(ids).text) < limit
        assert worst_padding(model, ids, "text") < limit
        assert worst_verb(model, ids) < limit


def test_the_large_model_reads_the_inputs_up_to_the_first_of_its_patch(package: ModuleType) -> None:
    model, ids = drawn(package), rows(1, 20)
    found: list[Tensor] = []
    hook = model.text.patches.register_forward_hook(lambda _m, _i, out: found.append(out))
    model(ids)
    for t in range(1, 20):
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % 256
        model(changed)
        first = -(-t // PATCH)  # patch k reads inputs up to k * PATCH
        assert torch.equal(found[-1][:, :first], found[0][:, :first])
        if first < 5:
            assert not torch.equal(found[-1][:, first], found[0][:, first])
    hook.remove()


def test_the_small_model_begins_anew_in_every_patch(package: ModuleType) -> None:
    model, ids = drawn(package), rows(1, 20)
    layers = model.text.layers
    entered: list[Tensor] = []
    hook = layers[0].register_forward_hook(lambda _m, given, _o: entered.append(given[0]))
    left = layers[1].register_forward_hook(lambda _m, _i, out: entered.append(out))
    model(ids)
    changed = entered[0].detach().clone()
    changed[:, 5] += 1.0
    hook.remove()
    swap = layers[0].register_forward_pre_hook(lambda _m, given: (changed, *given[1:]))
    model(ids)
    swap.remove()
    left.remove()
    differs = (entered[-1] != entered[1]).any(-1)[0].nonzero().flatten().tolist()
    assert differs == [5, 6, 7]


def test_the_large_model_runs_once_per_patch(package: ModuleType) -> None:
    model, ids = drawn(package), rows(2, 18)
    calls: list[int] = []
    inner = model.text.patches.layers[0]
    hook = inner.register_forward_hook(lambda _m, given, _o: calls.append(len(given[0])))
    state = model.new_state(2)
    for t in range(18):
        model.step(ids[:, t : t + 1], state)
    hook.remove()
    assert calls == [2] * 5


def test_no_cache_of_the_small_model_grows(package: ModuleType) -> None:
    model, ids = drawn(package), rows(1, 32)
    state = model.new_state(1)
    model.prefill(ids[:, :16], state)
    sizes = [sum(layer.bytes() for layer in state.text.layers)]
    model.step(ids[:, 16:], state)
    sizes.append(sum(layer.bytes() for layer in state.text.layers))
    assert sizes[0] == sizes[1]
