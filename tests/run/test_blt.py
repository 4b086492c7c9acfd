"""Patches that end where the next byte is hard to predict: published numbers, and worked ones.

`tests/fixtures/parity/blt` is a tiny model with random weights that the public `transformers`
library ran (see `test_parity.py`). That library cannot decode it step by step; the whole forward is
the reference of steps.
"""

from __future__ import annotations

import importlib
import json
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.fixtures.decoding import error, worst_padding, worst_split, worst_verb
from tokdsl.driver import build, check_file, check_text
from tokdsl.training.package import import_package

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "parity" / "blt"
SIZES = {
    "d": 32, "inner": 48, "layers": 2, "decoder_layers": 2, "heads": 2, "inner_heads": 4,
    "hidden": 64, "inner_hidden": 96, "last": 4, "buckets": 251, "patcher_d": 32,
    "patcher_layers": 1, "patcher_heads": 2, "patcher_hidden": 64, "threshold": 5.11,
}  # fmt: skip
#: of the example in the published code, and the patch that each byte is in and reads
LENGTHS = [1, 1, 3, 2, 3, 5, 3, 2, 1, 1, 3]
INSIDE = [0, 1, 2, 2, 2, 3, 3, 4, 4, 4, *[5] * 5, *[6] * 3, 7, 7, 8, 9, 10, 10]
READ = [0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 5, 5, 5, 6, 6, 7, 8, 9, 9, 9]

PATCH_IDS = """
model m() {
  stage ids(closes: bool[T]) {
    c      = chunks(closes = closes)
    number = f32(segment(c))
    read   = upsample(pool(number, c, how = "last"), c; read = "closed")
    stack(number, read; kind: 2)
  }
  objective mean(ids)
}
"""

HASH = """
use std.embeddings { ngram_hash }
model m() {
  stage hashes(ids: tokens[260]) { f64(ngram_hash(ids; first = 3, last = 5, buckets = 500002)) }
  objective mean(hashes)
}
"""

READING = """
use std.patching { entropy_ends, query_patches }
model m(d: int = 16) {
  stage text(ids: tokens[260], surprise: [T]) {
    embed(ids; d)
    c = chunks(closes = entropy_ends(surprise; threshold = 1.0))
    residual {
      stage patches(reduce = query_patches(c = c; queries = 1, heads = 2),
                    expand = upsample(OPTIONS)) {
        rename(it; width, d)
      }
    }
    unembed(260)
  }
  objective next_token(text, ids)
}
"""


class Case:
    """The tiny model with the published weights, and what it must give."""

    def __init__(self, package: ModuleType) -> None:
        self.package = package
        self.tensors = load_file(FIXTURE / "io.safetensors")
        self.meta = json.loads((FIXTURE / "meta.json").read_text("utf-8"))
        self.ids = self.tensors["in.input_ids"]

    @cached_property
    def model(self) -> Any:
        """The emitted model."""
        model = self.package.Model()
        checkpoint = importlib.import_module(f"{self.package.__name__}.checkpoint")
        checkpoint.load(model, FIXTURE / "weights.safetensors", "huggingface")
        return model.eval()

    def closes(self, ids: Tensor) -> Tensor:
        """Return which bytes end a patch."""
        decisions = self.package.Decisions()
        self.model(ids, decisions=decisions)
        return decisions["text.c"]

    def with_patches(self, ids: Tensor, closes: Tensor) -> Tensor:
        """Return the logits where the patches are given."""
        record = self.package.Decisions.from_dict({"text.c": closes})
        return self.model(ids, decisions=record.replay()).text


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("blt")
    sizes = {name: str(value) for name, value in SIZES.items()}
    built = build(ROOT / "examples" / "blt.tok", folder, sizes)
    assert not [finding.message() for finding in built.report]
    assert built.directory is not None
    return Case(import_package(built.directory))


def emitted(folder: Path, text: str) -> Any:
    """Return the model of a text."""
    (folder / "m.tok").write_text(text, "utf-8")
    built = build(folder / "m.tok", folder)
    assert built.directory is not None, [f.message() for f in built.report]
    return import_package(built.directory).Model()


def test_default_sizes_are_those_of_the_released_model() -> None:
    """4,633,127,680 by the library's defaults, whose encoder is 2730 wide where it is 2816."""
    checked = check_file(ROOT / "examples" / "blt.tok")
    assert not list(checked.report)
    assert checked.facts["blt"].numbers["params"] == 4_633_127_680 + 3 * 1024 * (2816 - 2730)


def test_logits_are_the_published_ones(case: Case) -> None:
    assert (case.model(case.ids).text - case.tensors["out.logits"]).abs().max() < 1e-5


def test_patches_are_the_published_ones(case: Case) -> None:
    lengths = []
    for row in case.closes(case.ids):
        ends = [at for at, last in enumerate(row.tolist()) if last] + [47]
        lengths.append([b - a for a, b in zip([-1, *ends], ends, strict=False)])
    assert lengths == case.tensors["out.patch_lengths"].tolist()


def test_loss_and_gradients_are_the_published_ones(case: Case) -> None:
    case.model.zero_grad()
    loss = case.model.loss(case.ids).total
    assert loss.item() == pytest.approx(case.meta["ce_loss"], abs=2e-6)
    loss.backward()
    parameters = dict(case.model.named_parameters())
    own = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    frozen = set(parameters) - set(own)
    assert frozen == {name for name in parameters if name.startswith("text.patcher.")}
    own |= {name: torch.zeros_like(parameters[name]) for name in frozen}
    layouts = importlib.import_module(f"{case.package.__name__}.layouts")
    rows = layouts.LAYOUTS["huggingface"].tensors(own)
    found = {name: layouts.whole(target) for name, target in rows}
    assert found.keys() == case.meta["grad_l2_sum"].keys()
    for name, pair in case.meta["grad_l2_sum"].items():
        norm, total = pair or (0.0, 0.0)
        scale = max(norm, 1e-2)
        assert found[name].norm().item() == pytest.approx(norm, abs=2e-5 * scale), name
        assert found[name].sum().item() == pytest.approx(total, abs=2e-5 * scale), name


def test_weights_are_saved_as_they_were_published(case: Case, tmp_path: Path) -> None:
    case.model.save(tmp_path / "model.safetensors", layout="huggingface")
    found = load_file(tmp_path / "model.safetensors")
    published = load_file(FIXTURE / "weights.safetensors")
    assert found.keys() == published.keys()
    assert all(torch.equal(found[name], value) for name, value in published.items())


def test_greedy_bytes_are_the_published_ones(case: Case) -> None:
    ids = case.tensors["in.prompt_ids"]
    state = case.model.new_state(batch=2)
    logits = case.model.prefill(ids, state)
    for _ in range(16):
        chosen = logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat((ids, chosen), dim=1)
        logits = case.model.step(chosen, state)
    assert torch.equal(ids, case.tensors["out.greedy"])


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_steps_are_the_whole_pass(case: Case, dtype: torch.dtype, limit: float) -> None:
    torch.manual_seed(0)
    model = case.package.Model().to(dtype).eval()
    model.load_state_dict(case.model.state_dict())
    ids = torch.cat((case.ids[:, :24], torch.randint(4, 260, (2, 24))))
    with torch.no_grad():
        assert worst_split(model, ids, model(ids).text) < limit
        assert worst_padding(model, ids, "text") < limit
        assert worst_verb(model, ids) < limit


def test_documents_of_a_row_are_kept_apart(case: Case) -> None:
    lengths = (5, 1, 18, 24)
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).expand(2, -1)
    with torch.no_grad():
        packed = case.model(case.ids, documents=documents).text
        alone = [case.model(part).text for part in case.ids.split(lengths, dim=1)]
    assert error(packed, torch.cat(alone, dim=1)) < 1e-5


def test_the_global_model_runs_once_per_closed_patch(case: Case) -> None:
    rows: list[int] = []
    layer = case.model.text.patches.layers[0]
    hook = layer.register_forward_hook(lambda _m, given, _o: rows.append(given[0].shape[0]))
    state = case.model.new_state(batch=2)
    for t in range(48):
        case.model.step(case.ids[:, t : t + 1], state)
    hook.remove()
    closes = case.closes(case.ids)
    assert sum(rows) == int(closes.sum()) == 26
    assert len(rows) == int(closes.any(0).sum())


def test_a_prefix_alone_gives_the_same(case: Case) -> None:
    with torch.no_grad():
        whole = case.model(case.ids).text
        for t in (1, 2, 5, 17, 31, 47):
            assert error(case.model(case.ids[:, :t]).text, whole[:, :t]) < 1e-5


def test_a_byte_changes_nothing_before_it(case: Case) -> None:
    """With the same patches not even by rounding."""
    closes = case.closes(case.ids)
    assert closes[:, 0].all()
    with torch.no_grad():
        whole = case.with_patches(case.ids, closes)
        assert torch.equal(whole, case.model(case.ids).text)
        for t in (1, 9, 30, 47):
            changed = case.ids.clone()
            changed[:, t] = 259 - changed[:, t] + 4
            found = case.with_patches(changed, closes)
            assert torch.equal(found[:, :t], whole[:, :t])
            assert not torch.equal(found[:, t], whole[:, t])


def test_the_open_patch_at_the_end_is_not_read(case: Case) -> None:
    closes = case.closes(case.ids)
    assert not closes[:, -1].any()
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _given: object, found: Tensor) -> None:
        found.retain_grad()
        kept.append(found)

    hook = case.model.text.patches.register_forward_hook(keep)
    case.model.loss(case.ids).total.backward()
    hook.remove()
    norm = kept[0].grad.norm(dim=-1)
    assert norm.shape == (2, 14)
    assert torch.equal(norm[:, -1], torch.zeros(2))
    assert (norm[:, :-1] > 0).all()


def test_the_hash_wraps_in_64_bits(tmp_path: Path) -> None:
    """105 * 1000000007 ** 2 wraps to -5680462972257304551; without wrapping it were 118449."""
    model = emitted(tmp_path, HASH)
    assert model(torch.tensor([[0, 0, 105]])).hashes[0, 2, 0] == 197435
    ids = torch.randint(0, 260, (2, 20))
    found = model(ids).hashes.long()
    for row, values in enumerate(ids.tolist()):
        for t in range(len(values)):
            for place, size in enumerate((3, 4, 5)):
                gram = [values[i] if i >= 0 else 0 for i in range(t - size + 1, t + 1)]
                total = sum(value * 1000000007**k for k, value in enumerate(gram))
                wrapped = (total + 2**63) % 2**64 - 2**63
                assert found[row, t, place] == wrapped % 500002
    padded = torch.cat((torch.full((2, 3), 7), ids), dim=1)
    valid = torch.arange(23).expand(2, -1) >= 3
    assert torch.equal(model(padded, valid).hashes[:, 3:].long(), found)


def test_patches_that_bytes_are_in_and_read(tmp_path: Path) -> None:
    model = emitted(tmp_path, PATCH_IDS)
    closes = torch.zeros(24, dtype=torch.bool)
    closes[torch.tensor(LENGTHS).cumsum(0)[:-1] - 1] = True
    every = torch.ones(24, dtype=torch.bool)
    fixed = torch.arange(24) % 4 == 0  # the first patch is one byte
    found = model(torch.stack((closes, every, fixed))).ids.long()
    assert found[0].T.tolist() == [INSIDE, READ]
    assert found[1].T.tolist() == [list(range(24))] * 2
    assert found[2, :, 1].tolist() == [t // 4 for t in range(24)]


def test_reading_the_own_patch_is_rejected() -> None:
    closed = check_text(READING.replace("OPTIONS", 'read = "closed"'))
    assert not [f.message() for f in closed if f.code != "TOK411"]
    found = [f for f in check_text(READING.replace("OPTIONS", "")) if f.code == "TOK401"]
    assert len(found) == 1
    notes = "\n".join(found[0].notes)
    assert "`upsample` reads the chunk of the token" in notes
