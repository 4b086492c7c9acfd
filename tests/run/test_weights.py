"""Layouts of checkpoints: published tensors come in and go out bit by bit, or nothing does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokdsl.driver import build, check_file
from tokdsl.graph.parameters import parameter_table
from tokdsl.training.package import import_package

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.tok"))

MIXED = """
block ffn(x: [*, d]; hidden: int) -> [*, d] {
  gate = linear(x; hidden)
  up = linear(x; hidden)
  down = linear(silu(gate) * up; d)
}

router biased(x: [*, d]; experts: int, top: int) -> route[experts, top] {
  scores = linear(x; experts)
  bias = buffer(experts; init = zeros)
  w, pick = topk(sigmoid(f32(scores)) + bias; top, over = experts)
  route(pick, cast_like(w, x))
}

block mixture(x: [*, d]; experts: int, hidden: int) -> [*, d] {
  r = biased(x; experts = experts, top = 2)
  expert = each(ffn(hidden = hidden), dispatch(x, r))
  combine(expert, r)
}

attention attention(x: [T, d]; heads: int) -> [T, d] {
  q = linear(x; heads, head_dim: d // heads)
  k = linear(x; heads, head_dim: d // heads)
  v = linear(x; heads, head_dim: d // heads, bias = true)
  o = linear(attend(q, k, v; mask = causal); d, over = [heads, head_dim])
}

model mixed(d: int = 8, layers: int = 4, dense: int = 1, heads: int = 2) {
  stage text(ids: tokens[16]) {
    embed(d)
    repeat layers as i {
      residual { rmsnorm(); attention(heads = heads) }
      residual {
        rmsnorm()
        if i < dense { ffn(hidden = 12) } else { mixture(experts = 3, hidden = 6) }
      }
    }
    rmsnorm()
    unembed(16)
  }

  objective next_token(text, ids)

  weights published {
    "embed.weight" = text.embed.embedding.weight
    "h.{i}.norm1" = reshape(text.layers[i].rmsnorm.weight; 1, 1, d)
    "h.{i}.qkv" = transpose(
      fuse(text.layers[i].attention.q.weight, text.layers[i].attention.k.weight,
        text.layers[i].attention.v.weight; dim = 0)
    )
    "h.{i}.v.bias" = text.layers[i].attention.v.bias
    "h.{i}.o" = interleave(text.layers[i].attention.o.weight; heads = heads, dim = 1)
    "h.{i}.norm2" = text.layers[i].rmsnorm_2.weight
    "dense.{i}.gate_up" = reshape(
      fuse(reshape(text.layers[i].ffn.gate.weight; 3, 4, d),
        reshape(text.layers[i].ffn.up.weight; 3, 4, d); dim = 1); 24, d
    )
    "dense.{i}.down.a", "dense.{i}.down.b" = split(text.layers[i].ffn.down.weight;
      dim = 1, sizes = [4, 8])
    "sparse.{i - dense}.router" = transpose(text.layers[i].mixture.r.scores.weight)
    "sparse.{i - dense}.bias" = text.layers[i].mixture.r.bias
    "sparse.{i - dense}.gate_up" = fuse(text.layers[i].mixture.expert.gate.weight,
      text.layers[i].mixture.expert.up.weight; dim = 1)
    "sparse.{i - dense}.experts.{e}.down" = transpose(
      text.layers[i].mixture.expert.down.weight[e])
    "norm" = deinterleave(text.rmsnorm.weight)
    "head" = permute(text.unembed.linear.weight; 1, 0)
    "embed.copy" = tied("embed.weight")
    "h.{i}.norm2.copy" = tied("h.{i}.norm2")
    "rotary.{i}.inv_freq" = ignore
    "*.counter" = ignore
  }

  weights other {
    "embed.{k}" = text.embed.embedding.weight[k]
    "even.{i // 2}.norm" = if i % 2 == 0 { text.layers[i].rmsnorm.weight }
    "odd.{i}.norm" = if i % 2 == 1 { text.layers[i].rmsnorm.weight }
    "first.q" = text.layers[0].attention.q.weight
    "later.{i}.q" = text.layers[i + 1].attention.q.weight
    "h.{i}.k" = text.layers[i].attention.k.weight
    "h.{i}.v1", "h.{i}.v2" = split(text.layers[i].attention.v.weight; dim = 0)
    "h.{i}.b" = text.layers[i].attention.v.bias
    "h.{i}.o" = text.layers[i].attention.o.weight
    "h.{i}.norm" = text.layers[i].rmsnorm_2.weight
    "h.{i}.gate" = interleave(text.layers[i].ffn.gate.weight; heads = 2, skip = 2)
    "h.{i}.mlp" = fuse(text.layers[i].ffn.up.weight, transpose(text.layers[i].ffn.down.weight))
    "h.{i}.scores" = text.layers[i].mixture.r.scores.weight
    "h.{i}.bias" = text.layers[i].mixture.r.bias
    "h.{i}.{e}.all" = fuse(text.layers[i].mixture.expert.gate.weight[e],
      text.layers[i].mixture.expert.up.weight[e])
    "h.{i}.{e}.down" = if i < layers { text.layers[i].mixture.expert.down.weight[e] }
    "norm" = text.rmsnorm.weight
    "head" = text.unembed.linear.weight
  }
}
"""


def built(folder: Path, text: str) -> ModuleType:
    """Build a spec and import its package."""
    (folder / "spec.tok").write_text(text)
    made = build(folder / "spec.tok", folder / "out")
    assert made.directory is not None, [d.message() for d in made.report]
    return import_package(made.directory)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return built(tmp_path_factory.mktemp("mixed"), MIXED)


@pytest.fixture
def model(package: ModuleType) -> Any:
    made = package.Model()
    generator = torch.Generator().manual_seed(3)
    for tensor in made.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return made


def pairs(halves: Tensor, heads: int) -> Tensor:
    """Return rows (heads, 2, half) as (heads, half, 2), written out one by one."""
    width = halves.shape[0] // heads
    half = width // 2
    order = [h * width + r * half + j for h in range(heads) for j in range(half) for r in (0, 1)]
    return halves[order]


def published(own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what the layout `published` holds, in plain torch."""
    found = {"embed.weight": own["text.embed.embedding.weight"]}
    for i in range(4):
        layer = {k.removeprefix(f"text.layers.{i}."): v for k, v in own.items()}
        found[f"h.{i}.norm1"] = layer["rmsnorm.weight"][None, None]
        qkv = [layer[f"attention.{part}.weight"] for part in "qkv"]
        found[f"h.{i}.qkv"] = torch.cat(qkv).T
        found[f"h.{i}.v.bias"] = layer["attention.v.bias"]
        found[f"h.{i}.o"] = pairs(layer["attention.o.weight"].T, 2).T
        found[f"h.{i}.norm2"] = layer["rmsnorm_2.weight"]
    gate, up = own["text.layers.0.ffn.gate.weight"], own["text.layers.0.ffn.up.weight"]
    blocks = [part[4 * g : 4 * g + 4] for g in range(3) for part in (gate, up)]
    found["dense.0.gate_up"] = torch.cat(blocks)
    found["dense.0.down.a"] = own["text.layers.0.ffn.down.weight"][:, :4]
    found["dense.0.down.b"] = own["text.layers.0.ffn.down.weight"][:, 4:]
    for i in range(1, 4):
        part = {k.removeprefix(f"text.layers.{i}.mixture."): v for k, v in own.items()}
        found[f"sparse.{i - 1}.router"] = part["r.scores.weight"].T
        found[f"sparse.{i - 1}.bias"] = part["r.bias"]
        both = [part["expert.gate.weight"], part["expert.up.weight"]]
        found[f"sparse.{i - 1}.gate_up"] = torch.cat(both, 1)
        for e in range(3):
            found[f"sparse.{i - 1}.experts.{e}.down"] = part["expert.down.weight"][e].T
    norm = own["text.rmsnorm.weight"]
    found["norm"] = norm[[0, 2, 4, 6, 1, 3, 5, 7]]
    found["head"] = own["text.unembed.linear.weight"].T
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


# --------------------------------------------------------------------------- parameter table


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_parameter_table_is_the_state_dict(path: Path, tmp_path: Path) -> None:
    checked = check_file(path)
    table = parameter_table(checked.programs[0])
    made = build(path, tmp_path)
    assert made.directory is not None, [d.message() for d in made.report]
    with torch.device("meta"):
        model = import_package(made.directory).Model()
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: info.shape for name, info in table.items()} == own
    trainable = {name for name, _ in model.named_parameters()}
    assert {name for name, info in table.items() if info.trainable} == trainable


# --------------------------------------------------------------------------- both ways


def test_published_layout_holds_what_the_clause_says(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "a.safetensors", layout="published")
    assert same(load_file(tmp_path / "a.safetensors"), published(model.state_dict()))


def test_skipped_channels_stay_and_conditions_choose(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "a.safetensors", layout="other")
    found, own = load_file(tmp_path / "a.safetensors"), model.state_dict()
    gate = own["text.layers.0.ffn.gate.weight"]
    assert torch.equal(found["h.0.gate"], gate[[0, 1, 2, 4, 3, 5, 6, 7, 8, 10, 9, 11]])
    for i in range(4):
        name = f"even.{i // 2}.norm" if i % 2 == 0 else f"odd.{i}.norm"
        assert torch.equal(found[name], own[f"text.layers.{i}.rmsnorm.weight"])
    assert "even.1.norm" in found and "odd.0.norm" not in found
    assert torch.equal(found["later.0.q"], own["text.layers.1.attention.q.weight"])
    assert torch.equal(found["embed.5"], own["text.embed.embedding.weight"][5])


@pytest.mark.parametrize("layout", ["own", "published", "other"])
@pytest.mark.parametrize("place", ["a.safetensors", "folder"])
def test_round_trip_is_exact(
    package: ModuleType, model: Any, tmp_path: Path, layout: str, place: str
) -> None:
    model.save(tmp_path / place, layout=layout)
    again = package.load(tmp_path / place, layout=layout)
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    assert all(p.requires_grad for p in again.parameters())
    ids = torch.arange(12).reshape(2, 6)
    assert torch.equal(again(ids).text, model(ids).text)


def test_a_mapping_is_read_and_takes_the_dtype_of_the_model(
    package: ModuleType, model: Any
) -> None:
    tensors = published(model.state_dict())
    again = package.Model.from_checkpoint(tensors, layout="published", dtype=torch.bfloat16)
    assert {t.dtype for t in again.state_dict().values()} == {torch.bfloat16}
    own = model.state_dict()
    assert all(torch.equal(t, own[k].bfloat16()) for k, t in again.state_dict().items())
    assert torch.get_default_dtype() == torch.float32


def test_shards_are_read_and_replaced(package: ModuleType, model: Any, tmp_path: Path) -> None:
    save = sys.modules[f"{package.__name__}.checkpoint"].save
    (tmp_path / "config.json").write_text("{}")
    for shard_bytes in (1000, 3000, 1 << 30, 1000):
        model.text.rmsnorm.weight.data += 1
        save(model, tmp_path, layout="published", shard_bytes=shard_bytes)
        files = sorted(file.name for file in tmp_path.iterdir())
        assert "config.json" in files and not any(name.startswith(".") for name in files)
        assert ("model.safetensors" in files) == (shard_bytes == 1 << 30)
        again = package.load(tmp_path, layout="published")
        assert same(dict(again.state_dict()), dict(model.state_dict()))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(published(model.state_dict()))
    assert set(index["weight_map"].values()) == {n for n in files if n.startswith("model-")}
    total = sum(t.nbytes for t in model.state_dict().values())
    assert index["metadata"]["total_size"] == total
    again = package.load(tmp_path / "model.safetensors.index.json", layout="published")
    assert same(dict(again.state_dict()), dict(model.state_dict()))


def test_an_interrupted_save_leaves_the_old_file(
    package: ModuleType, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = sys.modules[f"{package.__name__}.checkpoint"]
    model.save(tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()

    def broken(tensors: Any, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", broken)
    model.text.rmsnorm.weight.data += 1
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_nothing_is_drawn(package: ModuleType, model: Any) -> None:
    before = torch.get_rng_state()
    package.load(published(model.state_dict()), layout="published")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_buffer_that_is_not_saved_has_its_first_value(tmp_path: Path) -> None:
    text = """
model small(d: int = 4) {
  stage text(ids: tokens[8]) {
    embed(d)
    scaled()
  }
  weights published { "in" = text.embed.embedding.weight }
}
block scaled(x: [*, d]) -> [*, d] {
  scale = buffer(d; init = ones, saved = false)
  x * scale
}
"""
    package = built(tmp_path, text)
    table = torch.randn(8, 4)
    model = package.load({"in": table}, layout="published")
    assert torch.equal(model(torch.arange(8)[None]).text[0], table)


# --------------------------------------------------------------------------- what does not fit


def failure(package: ModuleType, load: Callable[[], object]) -> Any:
    error = sys.modules[f"{package.__name__}.checkpoint"].CheckpointError
    with pytest.raises(error) as caught:
        load()
    return caught.value


def test_all_that_does_not_fit_is_listed_and_nothing_is_read(
    package: ModuleType, model: Any, tmp_path: Path
) -> None:
    checkpoint = sys.modules[f"{package.__name__}.checkpoint"]
    tensors = {k: v.clone() for k, v in published(model.state_dict()).items()}
    tensors["surplus"] = tensors.pop("h.1.qkv")
    tensors["another"] = tensors.pop("sparse.0.experts.2.down")
    tensors["norm"] = torch.zeros(9)
    tensors["head"] = tensors["head"].T
    tensors["embed.copy"] = torch.zeros(16, 8)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "a.safetensors")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for source in (tensors, tmp_path / "a.safetensors"):
        error = failure(package, lambda s=source: checkpoint.load(model, s, "published"))  # type: ignore[misc]
        assert error.missing == ["h.1.qkv", "sparse.0.experts.2.down"]
        assert sorted(error.extra) == ["another", "surplus"]
        assert sorted(error.misshapen) == [
            "head is (16, 8), not (8, 16)",
            "norm is (9,), not (8,)",
        ]
        assert error.differing == ["embed.copy and embed.weight"]
        for name in (*error.missing, *error.extra, *error.misshapen, *error.differing):
            assert name in str(error)
        assert same(dict(model.state_dict()), before)


def test_a_layout_does_not_read_another(package: ModuleType, model: Any) -> None:
    error = failure(package, lambda: package.load(published(model.state_dict())))
    assert len(error.missing) == len(model.state_dict())
    with pytest.raises(
        ValueError, match="unknown layout 'public'; there are own, published, other"
    ):
        package.load({}, layout="public")


def test_repeated_and_ignored_tensors_may_be_there(package: ModuleType, model: Any) -> None:
    tensors = published(model.state_dict())
    tensors["embed.copy"] = tensors["embed.weight"].clone()
    tensors["h.3.norm2.copy"] = tensors.pop("h.3.norm2")
    tensors["rotary.3.inv_freq"] = torch.ones(2)
    tensors["h.0.counter"] = torch.ones(())
    again = package.load(tensors, layout="published")
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    tensors["rotary.x.inv_freq"] = torch.ones(2)
    assert failure(package, lambda: package.load(tensors, layout="published")).extra == [
        "rotary.x.inv_freq"
    ]


def test_a_folder_without_a_checkpoint(package: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        package.load(tmp_path)


# --------------------------------------------------------------------------- emitted code


def test_emitted_code_is_clean(package: ModuleType) -> None:
    assert package.__file__ is not None
    code = Path(package.__file__).parent / "layouts.py"
    settings = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for command in (["check", *settings], ["format", "--check", *settings]):
        ran = subprocess.run(
            [sys.executable, "-m", "ruff", *command, code], capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
def test_emitted_code_is_typed(package: ModuleType, tmp_path: Path) -> None:
    assert package.__file__ is not None
    folder = Path(package.__file__).parent
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, folder.name],
        cwd=folder.parent,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout


def test_layers_are_loops(package: ModuleType) -> None:
    assert package.__file__ is not None
    code = (Path(package.__file__).parent / "layouts.py").read_text()
    assert "    for i in range(4):\n" in code
    assert "    for i in range(1, 4):\n" in code
    assert 'f"sparse.{i - 1}.experts.{e}.down"' in code
    assert "for i in range(0, 3, 2):" in code or "for i in (0, 2):" in code
