"""Ling 2.6: layers, decays, router and memory against numbers worked by hand."""

from __future__ import annotations

from math import exp
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.decoding import error, worst_padding, worst_split, worst_verb
from tokdsl.driver import build, check_file
from tokdsl.graph.program import LoopNode
from tokdsl.training.package import import_package

EXAMPLE = Path(__file__).parents[2] / "examples" / "ling.tok"
SIZES = {
    "vocab": "32", "d": "16", "layers": "5", "period": "3", "heads": "4", "query_rank": "8",
    "latent": "8", "nope_dim": "8", "rope_dim": "4", "hidden": "24", "expert_hidden": "8",
    "experts": "4", "top": "2", "groups": "2", "keep": "1", "norm_groups": "2",
}  # fmt: skip


def package(folder: Path, spec: Path | str, sizes: dict[str, str] | None = None) -> ModuleType:
    """Return the built package of a spec."""
    folder.mkdir(exist_ok=True)
    path = spec
    if isinstance(spec, str):
        path = folder / "spec.tok"
        path.write_text(spec, "utf-8")
    built = build(Path(path), folder, sizes or {})
    assert built.directory is not None, [d.message() for d in built.report]
    return import_package(built.directory)


def drawn(made: ModuleType) -> Any:
    """Return a float64 model with parameters large enough to matter."""
    torch.manual_seed(0)
    model = made.Model().double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return package(tmp_path_factory.mktemp("ling"), EXAMPLE, SIZES)


def definitions() -> str:
    """Return the definitions of the example without its model."""
    return EXAMPLE.read_text("utf-8").partition("model ling(")[0]


def kinds(made: ModuleType) -> list[str]:
    """Return which attention each layer of the trunk has."""
    layers = made.Model().trunk.layers
    names = [{n for n, _ in layer.named_modules()} for layer in layers]
    return ["full" if any(n.endswith("mla") for n in found) else "linear" for found in names]


def test_decoder_is_the_whole_pass(made: ModuleType) -> None:
    model = drawn(made)
    ids = torch.randint(32, (4, 19))
    with torch.no_grad():
        full = model(ids).text
        assert worst_split(model, ids, full) < 1e-11
        assert worst_padding(model, ids, "text") < 1e-11
        assert worst_verb(model, ids) < 1e-11


def test_remainder_layers_are_full(made: ModuleType) -> None:
    # layers 2 = (2 + 1) % 3, and 3 and 4 from 5 // 3 * 3 on
    assert kinds(made) == ["linear", "linear", "full", "full", "full"]


@pytest.mark.parametrize(
    ("layers", "full"),
    [(32, [7, 15, 23, 31]), (20, [7, 15, 16, 17, 18, 19]), (80, list(range(7, 80, 8)))],
)
def test_layer_pattern(layers: int, full: list[int]) -> None:
    checked = check_file(EXAMPLE, {**SIZES, "layers": str(layers), "period": "8"})
    trunk = next(s.module for s in checked.programs[0].stages if s.name == "trunk")
    loop = next(n for n in trunk.nodes if isinstance(n, LoopNode))
    found = []
    for index, layer in enumerate(loop.modules):
        inner = [m for called in layer.modules() for m in called.modules()]
        if any(m.name == "mla" for m in inner):
            found.append(index)
    assert found == full


def decays(folder: Path, heads: int) -> list[float]:
    """Return the slopes of heads."""
    text = f"""{definitions()}
    model m() {{ stage out(x: [T, d: 2]) {{ mean(it; over = d) * slopes(it; heads = {heads}) }} }}
    """
    found: Tensor = package(folder, text).Model()(torch.ones(1, 1, 2)).out
    return found[0, 0].tolist()


def test_slopes(tmp_path: Path) -> None:
    four = [0.25, 0.0625, 0.015625, 0.00390625]
    assert decays(tmp_path / "4", 4) == pytest.approx(four)
    assert decays(tmp_path / "6", 6) == pytest.approx([*four, 2**-1, 2**-3])
    found = decays(tmp_path / "32", 32)
    assert (found[0], found[-1]) == pytest.approx((0.840896, 0.00390625))


def test_factors_count_layers_from_one_and_are_given_zero(tmp_path: Path) -> None:
    """A published oddity that checkpoints depend on: 1.142867, 1.00001, 0.857153 for 8 layers."""
    made = package(tmp_path, EXAMPLE, {**SIZES, "layers": "8", "period": "8"})
    source = (Path(str(made.__file__)).parent / "model.py").read_text("utf-8")
    for factor in (1 + 1 / 7 + 1e-5, 1.00001, 1 - 1 / 7 + 1e-5):
        assert f"{-factor:.7f}"[:8] in source


def test_recurrence_by_hand(tmp_path: Path) -> None:
    text = """
    model m(rate: float) {
      stage out(x: [T, heads: 1, three: 3]) {
        q = slice(x; over = three, stop = 1, into = key)
        k = slice(x; over = three, start = 1, stop = 2, into = key)
        v = slice(x; over = three, start = 2, into = value)
        linear_attention(q, k, v, rate * (arange(heads: 1) + 1); over = key)
      }
    }
    """

    def run(rate: float, rows: list[tuple[float, float, float]]) -> list[float]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        model = package(folder, text, {"rate": repr(rate)}).Model()
        found: Tensor = model(torch.tensor(rows, dtype=torch.float64).view(1, -1, 1, 3)).out
        return found.flatten().tolist()

    half = run(-0.6931471805599453, [(1, 1, 3), (1, 2, 1), (2, 1, 2)])
    assert half == pytest.approx([3, 3.5, 7.5])
    ones = run(-0.5, [(1, 1, 1), (1, 1, 2), (1, 1, 3)])
    assert ones == pytest.approx([1, 2.606531, 4.580941])
    assert run(-1e-9, [(1, 1, 1), (1, 1, 2), (1, 1, 3)]) == pytest.approx([1, 3, 6])
    assert run(-100.0, [(1, 2, 1), (3, 1, 2), (1, 1, 3)]) == pytest.approx([2, 6, 3])


def test_linear_layer_is_its_parallel_form(tmp_path: Path) -> None:
    """``o[t] = sum q[t] k[s] e^{g (t - s)} v[s] / sqrt(d)``, normalised in groups and gated."""
    text = f"""{definitions()}
    model m() {{ stage out(x: [T, d: 16]) {{
      lightning(heads = 4, factor = 1.2, norm_groups = 2, theta = 100.0) }} }}
    """
    model = drawn(package(tmp_path, text))
    layer = model.out.lightning
    x = torch.randn(2, 37, 16, dtype=torch.float64)
    q, k, v = (f(x).unflatten(-1, (4, 4)) for f in (layer.q, layer.k, layer.v))

    def norm(y: Tensor, gain: Tensor) -> Tensor:
        return y * (y.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * gain

    angle = torch.arange(37.0, dtype=torch.float64)[:, None]  # one pair: 2 of 4 channels

    def turn(y: Tensor) -> Tensor:
        cos, sin = angle.cos(), angle.sin()
        a, b = y[..., 0], y[..., 1]
        return torch.stack((a * cos - b * sin, b * cos + a * sin, y[..., 2], y[..., 3]), -1)

    q = turn(norm(q, layer.q_norm.weight)) / 2
    k = turn(norm(k, layer.k_norm.weight))
    slope = torch.tensor([2.0 ** -(2 * (h + 1)) for h in range(4)], dtype=torch.float64)
    gap = (torch.arange(37)[:, None] - torch.arange(37)).double()
    decay = torch.exp(-1.2 * slope[:, None, None] * gap) * (gap >= 0)
    scores = torch.einsum("bthk,bshk->bhts", q, k) * decay
    y = torch.einsum("bhts,bshv->bthv", scores, v).flatten(2)
    parts = y.unflatten(-1, (2, 8))
    scaled = norm(parts, torch.ones(())).flatten(2) * layer.norm
    wanted = layer.o(scaled * torch.sigmoid(layer.gate(x)))
    assert error(model(x).out, wanted) < 1e-6  # angles are in float32


def test_router_by_hand(tmp_path: Path) -> None:
    logits = [2.0, 1.0, 0.0, -1.0, 0.5, 0.4, -2.0, 3.0]
    text = """
    use std.routers { sigmoid_grouped }
    model m() { stage out(x: [T, d: 8]) {
      r = sigmoid_grouped(it; experts = 8, top = 3, groups = 4, keep = 2, scaling = 2.5)
      stack(r.weight, f32(r.pick); both: 2)
    } }
    """
    model = package(tmp_path, text).Model()

    def route(bias: list[float]) -> tuple[list[float], list[int]]:
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.eye(8))
            for b in model.buffers():
                b.copy_(torch.tensor(bias))
        both = model(torch.tensor([[logits]])).out[0, 0]
        return both[:, 0].tolist(), both[:, 1].long().tolist()

    weights, picks = route([0.0] * 7 + [-0.6])
    assert picks == [0, 1, 4]
    assert weights == pytest.approx([0.985534, 0.817990, 0.696477], abs=1e-6)
    assert sum(weights) == pytest.approx(2.5)
    # the best expert of all is in a group that is left out
    assert route([0.0] * 8)[1] == [0, 1, 4]
    assert 1 / (1 + exp(-3)) == pytest.approx(0.952574, abs=1e-6)
    assert route([5.0] * 7 + [4.4])[0] == pytest.approx(weights)


def test_latents_attended_to_are_keys_and_values_attended_to(
    tmp_path: Path, made: ModuleType
) -> None:
    model = drawn(made)
    other = drawn(package(tmp_path, EXAMPLE, {**SIZES, "absorbed": "1000000"}))
    other.load_state_dict(model.state_dict())
    ids = torch.randint(32, (2, 19))
    assert error(other(ids).text, model(ids).text) < 1e-12


def test_second_prediction(made: ModuleType) -> None:
    """It reads the trunk one token back and the own token, and its loss leaves out the first."""
    model = drawn(made)
    ids = torch.randint(32, (1, 12))
    output = model(ids)
    logits = output.ahead[:, 1:-1]
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[0, 2:])
    terms = model.loss(ids).terms
    found = next(value for name, value in terms.items() if "later" in name)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 1) % 32
    assert not torch.allclose(model(other).ahead[:, 1], output.ahead[:, 1])


def test_sizes_of_the_published_model() -> None:
    numbers = check_file(EXAMPLE, {}).facts["ling"].numbers
    # 104B in all, 7.4B active; the layer that predicts the second token is extra
    assert numbers["params"] == pytest.approx(104e9 + 3.3e9, rel=0.01)
    # 4 layers and the one ahead keep 512 + 64 numbers per token
    assert numbers["cache_per_token"] == pytest.approx(5 * 1152, rel=0.01)


def test_documents_are_alone(made: ModuleType) -> None:
    model, lengths = drawn(made), (5, 9, 2, 3)
    ids = torch.randint(32, (2, 19))
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]).expand(2, -1)
    with torch.no_grad():
        packed = model(ids, documents=numbers)
        alone = [model(part) for part in ids.split(lengths, dim=1)]
    for name in ("text", "ahead"):
        wanted = torch.cat([getattr(a, name) for a in alone], dim=1)
        assert error(getattr(packed, name), wanted) < 1e-9
