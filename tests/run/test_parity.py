"""The examples are the systems they name: they give a published implementation's numbers.

`tests/fixtures/parity/<name>` holds tiny models with random weights that were run by the public
`transformers` library (5.23.0, float32, eager attention): their weights, inputs and outputs, the
loss, the norm and sum of every gradient, and 16 greedy tokens.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tokdsl.driver import build, check_file
from tokdsl.training.package import import_package

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "parity"
LAYOUT = "huggingface"

TINY = {"vocab": 160, "d": 48, "heads": 4}
DECODER = {**TINY, "kv_heads": 2, "hidden": 96}
SIZES: dict[str, dict[str, object]] = {
    "llama": {**DECODER, "layers": 3, "theta": 10000.0, "eps": 1e-6},
    "qwen3": {**DECODER, "layers": 2, "head_dim": 16},
    "mixtral": {**DECODER, "layers": 3, "hidden": 64, "experts": 6},
    "olmoe": {**TINY, "layers": 2, "hidden": 32, "experts": 8, "top": 3, "clip": 2.0},
    "gemma3_text": {
        **DECODER, "layers": 4, "head_dim": 16, "window": 8, "period": 3, "query_scalar": 20.0,
    },
    "deepseek_v3": {
        **TINY, "layers": 3, "dense_layers": 1, "query_rank": 24, "latent": 16, "nope_dim": 16,
        "rope_dim": 8, "hidden": 96, "expert_hidden": 32, "experts": 8, "top": 3, "groups": 4,
        "keep": 2, "scaling": 1.7, "stretch": 1.0,
    },
    "mamba2": {
        "vocab": 160, "d": 48, "layers": 3, "state": 16, "head_dim": 16, "groups": 2,
    },
    "bert": {**TINY, "layers": 2, "hidden": 96, "length": 128},
    "vit": {"d": 48, "heads": 4, "layers": 2, "hidden": 96, "size": 32, "patch": 8, "classes": 10},
    "vit_mae": {
        "size": 32, "patch": 8, "d": 48, "layers": 2, "heads": 4, "hidden": 96, "keep": 4,
        "inner": 32, "inner_layers": 1, "inner_heads": 4, "inner_hidden": 64,
    },
    "t5": {**TINY, "layers": 2, "head_dim": 12, "hidden": 96, "buckets": 8, "far": 20},
}  # fmt: skip
CAUSAL = ("llama", "qwen3", "mixtral", "olmoe", "gemma3_text", "deepseek_v3", "mamba2")
#: those whose published code defines an auxiliary loss
POOLED = ("mixtral", "olmoe")
#: parameters of the published models, saved buffers aside
PUBLISHED = {
    "llama": 8_030_261_248,
    "qwen3": 8_190_735_360,
    "mixtral": 46_702_792_704,
    "olmoe": 6_919_161_856,
    "gemma3_text": 999_885_952,
    "deepseek_v3": 671_026_404_352,
    "mamba2": 7_285_403_648,
    "bert": 109_514_298,
    "vit": 86_567_656,
    "vit_mae": 111_655_680,
    "t5": 222_903_552,
}


@dataclass
class Case:
    """One model built from its example, with the published weights, and what it must give."""

    name: str
    package: ModuleType

    @cached_property
    def checkpoint(self) -> Any:
        """The package's reader and writer of weights."""
        return importlib.import_module(f"{self.package.__name__}.checkpoint")

    @cached_property
    def layouts(self) -> Any:
        """The package's tables of published names."""
        return importlib.import_module(f"{self.package.__name__}.layouts")

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The scalars of the reference."""
        data: dict[str, Any] = json.loads((FIXTURES / self.name / "meta.json").read_text("utf-8"))
        return data

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The inputs and outputs of the reference."""
        return load_file(FIXTURES / self.name / "io.safetensors")

    @property
    def weights(self) -> Path:
        """The file of the published weights."""
        return FIXTURES / self.name / "weights.safetensors"

    @cached_property
    def model(self) -> Any:
        """The emitted model with the published weights."""
        model = self.package.Model()
        self.checkpoint.load(model, self.weights, LAYOUT)
        return model.eval()

    def logits(self) -> Tensor:
        """Return the main output on the reference's inputs."""
        given = self.tensors
        if self.name == "vit":
            return self.model(given["in.pixel_values"]).image
        if self.name == "vit_mae":
            return self.model(given["in.pixel_values"], given["in.noise"]).decoder
        if self.name == "t5":
            return self.model(*self.pair(), given["in.attention_mask"].bool()).decoder
        ids = given["in.input_ids"]
        if self.name == "bert":
            valid = given["in.attention_mask"].bool()
            return self.model(ids, torch.zeros_like(ids), valid).text
        return self.model(ids).text

    def pair(self) -> tuple[Tensor, Tensor]:
        """Return the inputs of an encoder and a decoder."""
        return self.tensors["in.input_ids"], self.tensors["in.decoder_input_ids"]

    def published_gradients(self) -> dict[str, Tensor]:
        """Return the gradients of the parameters in the published layout."""
        own = {name: torch.zeros_like(t) for name, t in self.model.state_dict().items()}
        own |= {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        rows = self.layouts.LAYOUTS[LAYOUT].tensors(own)
        return {name: self.layouts.whole(target) for name, target in rows}

    def splits(self, *counts: int) -> Tensor:
        """Return the logits of the reference's inputs, read in steps of so many tokens."""
        state = self.model.new_state(batch=2)
        prompt, *steps = self.tensors["in.input_ids"].split(counts, dim=1)
        logits = [self.model.prefill(prompt, state)]
        return torch.cat([*logits, *(self.model.step(ids, state) for ids in steps)], dim=1)


Make = Callable[..., Case]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Build each example once; changes are further parameters, as on the command line."""

    @cache
    def make(name: str, *changes: tuple[str, str]) -> Case:
        sizes = {key: str(value) for key, value in SIZES[name].items()} | dict(changes)
        folder = tmp_path_factory.mktemp(name)
        built = build(ROOT / "examples" / f"{name}.tok", folder, sizes)
        assert not [finding.message() for finding in built.report]
        assert built.directory is not None
        return Case(name, import_package(built.directory))

    return make


@pytest.fixture(params=list(SIZES))
def case(request: pytest.FixtureRequest, made: Make) -> Case:
    return made(request.param)


@pytest.fixture(params=CAUSAL)
def causal(request: pytest.FixtureRequest, made: Make) -> Case:
    return made(request.param)


@pytest.mark.parametrize("name", SIZES)
def test_default_sizes_are_those_of_the_published_model(name: str) -> None:
    checked = check_file(ROOT / "examples" / f"{name}.tok")
    assert not list(checked.report)
    assert checked.facts[name].numbers["params"] == PUBLISHED[name]


def test_logits_are_the_published_ones(case: Case) -> None:
    error = (case.logits() - case.tensors["out.logits"]).abs()
    if case.name == "bert":
        error = error[case.tensors["in.attention_mask"].bool()]
    assert error.max() < 1e-5


def test_loss_and_gradients_are_the_published_ones(case: Case) -> None:
    case.model.zero_grad()
    loss = reference_loss(case)
    assert loss.item() == pytest.approx(case.meta.get("ce_loss", case.meta.get("loss")), abs=2e-6)
    loss.backward()
    found = case.published_gradients()
    known = {name: pair for name, pair in case.meta["grad_l2_sum"].items() if pair is not None}
    for name, (norm, total) in known.items():
        # a bias of keys has no effect on a softmax: its gradient is rounding alone
        scale = max(norm, 1e-2)
        assert found[name].norm().item() == pytest.approx(norm, abs=2e-5 * scale), name
        assert found[name].sum().item() == pytest.approx(total, abs=2e-5 * scale), name


def reference_loss(case: Case) -> Tensor:
    """Return the loss of which the reference gives the gradient."""
    if case.name == "vit":
        return case.logits().square().mean()
    if case.name == "vit_mae":
        return case.model.loss(case.tensors["in.pixel_values"], case.tensors["in.noise"]).total
    if case.name == "t5":
        return case.model.loss(*case.pair(), case.tensors["in.attention_mask"].bool()).total
    ids = case.tensors["in.input_ids"]
    if case.name == "bert":
        valid = case.tensors["in.attention_mask"].bool()
        labels = torch.where(valid, ids, -100)
        return case.model.loss(ids, torch.zeros_like(ids), labels, valid).total
    return case.model.loss(ids).terms["next_token"]


def test_auxiliary_loss_is_the_published_one(case: Case) -> None:
    assert (case.name in POOLED) == ("aux_loss" in case.meta)
    if case.name in POOLED:
        terms = case.model.loss(case.tensors["in.input_ids"]).terms
        assert terms["switch_balance"].item() == pytest.approx(case.meta["aux_loss"], abs=1e-6)


def test_weights_are_saved_as_they_were_published(case: Case, tmp_path: Path) -> None:
    saved = tmp_path / "model.safetensors"
    case.checkpoint.save(case.model, saved, LAYOUT)
    found, published = load_file(saved), load_file(case.weights)
    assert found.keys() == published.keys()
    assert all(torch.equal(found[name], value) for name, value in published.items())


def test_greedy_tokens_are_the_published_ones(causal: Case) -> None:
    tokens = causal.tensors["in.prompt_ids"]
    state = causal.model.new_state(batch=2)
    logits = causal.model.prefill(tokens, state)
    for _ in range(16):
        chosen = logits[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat((tokens, chosen), dim=1)
        logits = causal.model.step(chosen, state)
    assert torch.equal(tokens, causal.tensors["out.greedy"])


def test_greedy_tokens_of_an_encoder_and_decoder_are_the_published_ones(made: Make) -> None:
    t5 = made("t5")
    generation = importlib.import_module(f"{t5.package.__name__}.generation")
    once = {"source": t5.pair()[0], "source_valid": t5.tensors["in.attention_mask"].bool()}
    begin = torch.zeros(2, 1, dtype=torch.long)
    tokens = generation.generate(t5.model, begin, max_new_tokens=16, temperature=0, once=once)
    assert torch.equal(tokens, t5.tensors["out.greedy"])


def test_normalised_patches_have_mean_0_and_variance_1(made: Make) -> None:
    mae = made("vit_mae", ("normalised", "true"))
    pixels, noise = mae.tensors["in.pixel_values"], mae.tensors["in.noise"]
    given = pixels.view(2, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    deviation = (given.var(-1, keepdim=True) + 1e-6).sqrt()
    wanted = (given - given.mean(-1, keepdim=True)) / deviation
    error = (mae.tensors["out.logits"] - wanted).square().mean(-1)
    left = mae.tensors["out.mask"]
    loss = mae.model.loss(pixels, noise).total.item()
    assert loss == pytest.approx(((error * left).sum() / left.sum()).item(), abs=1e-5)


def test_patches_that_are_left_out_are_the_published_ones(made: Make) -> None:
    mae = made("vit_mae")
    out = mae.model(mae.tensors["in.pixel_values"], mae.tensors["in.noise"])
    assert torch.equal(out.left_out.float(), mae.tensors["out.mask"])


@pytest.mark.parametrize("counts", [(24,), (1,) * 24, (5, 1, 7, 3, 8), (9, 9, 6), (1, 23)], ids=str)
def test_steps_of_any_size_are_the_whole_pass(causal: Case, counts: tuple[int, ...]) -> None:
    assert (causal.splits(*counts) - causal.tensors["out.logits"]).abs().max() < 1e-5


def test_padding_on_the_left_changes_nothing(causal: Case) -> None:
    ids = causal.tensors["in.input_ids"]
    padding = torch.tensor([3, 0])
    padded = torch.zeros(2, 27, dtype=torch.long)
    valid = torch.zeros(2, 27, dtype=torch.bool)
    for row, count in enumerate(padding.tolist()):
        padded[row, count : count + 24] = ids[row]
        valid[row, count : count + 24] = True
    whole = causal.model(padded, valid).text
    for row, count in enumerate(padding.tolist()):
        error = whole[row, count : count + 24] - causal.tensors["out.logits"][row]
        assert error.abs().max() < 1e-5


def test_absorbed_latent_attention_gives_the_same(made: Make) -> None:
    absorbed = made("deepseek_v3", ("absorbed", "1000000"))
    logits = absorbed.tensors["out.logits"]
    assert (absorbed.logits() - logits).abs().max() < 1e-5
    assert (absorbed.splits(5, 1, 1, 17) - logits).abs().max() < 1e-5


def test_experts_have_tensors_of_their_own_in_the_published_files(
    made: Make, tmp_path: Path
) -> None:
    mixtral = made("mixtral")
    mixtral.checkpoint.save(mixtral.model, tmp_path, "hub")
    found, stacked = load_file(tmp_path / "model.safetensors"), load_file(mixtral.weights)
    gate_and_up = stacked["model.layers.1.mlp.experts.gate_up_proj"][4].chunk(2)
    for name, tensor in zip(("w1", "w3"), gate_and_up, strict=True):
        published = found[f"model.layers.1.block_sparse_moe.experts.4.{name}.weight"]
        assert torch.equal(published, tensor)
    again = mixtral.package.Model.from_checkpoint(tmp_path, "hub").eval()
    ids = mixtral.tensors["in.input_ids"]
    assert torch.equal(again(ids).text, mixtral.logits())
