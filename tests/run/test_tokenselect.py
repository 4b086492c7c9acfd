"""TokenSelect: votes, windows and numbered places against an independent form and hand numbers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.decoding import error, worst_padding, worst_split, worst_verb
from tokdsl.driver import build
from tokdsl.training.package import import_package

EXAMPLE = Path(__file__).parents[2] / "examples" / "tokenselect.tok"
SIZES = {
    "vocab": "32", "d": "16", "layers": "2", "heads": "4", "kv_heads": "2", "hidden": "16",
    "first": "2", "last": "3", "top": "4",
}  # fmt: skip
ALONE = """
use std.sparse {{ token_select }}
use std.attention {{ gqa, rope }}
model m() {{ stage out(x: [T, d: 16]) {{ {call} }} }}
"""


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


def drawn(made: ModuleType, std: float = 0.5) -> Any:
    """Return a float64 model with parameters large enough to matter."""
    torch.manual_seed(0)
    model = made.Model().double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return package(tmp_path_factory.mktemp("tokenselect"), EXAMPLE, SIZES)


@pytest.fixture(scope="module")
def reusing(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    folder = tmp_path_factory.mktemp("reusing")
    return package(folder, EXAMPLE, {**SIZES, "similar": "0.3"})


def alone(folder: Path, more: str = "") -> Any:
    """Return one layer of attention."""
    call = f"token_select(heads = 4, kv_heads = 2, first = 2, last = 3, top = 4{more})"
    return drawn(package(folder, ALONE.format(call=call)))


def turn(x: Tensor, place: Tensor) -> Tensor:
    """Turn the channel pairs (i, i + 2) of (..., 4) by their place at theta 1e6."""
    rate = torch.tensor([1.0, 1e6**-0.5], dtype=torch.float64)
    angle = place.double().unsqueeze(-1) * rate
    a, b = x[..., :2], x[..., 2:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def by_token(
    layer: Any, x: Tensor, sets: list[list[int]] | None = None
) -> tuple[Tensor, list[Any]]:
    """Decode token by token as the published code does, one row; x (T, 16) -> (T, 16)."""
    first, last, top = 2, 3, 4
    q, k, v = (f(x).unflatten(-1, (-1, 4)) for f in (layer.q, layer.k, layer.v))
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)  # head h reads group h // 2
    results, chosen = [], []
    for t in range(len(x)):
        count = t + 1
        index = list(range(count))
        if first + top + last < count:
            voter = turn(q[t], torch.tensor(last))
            between = k[first : count - last]
            votes = torch.einsum("hd,nhd->hn", voter, between).softmax(-1)
            assert votes.sum().item() == pytest.approx(4)
            best = (votes.sum(0).topk(top).indices + first).sort().values.tolist()
            if sets is not None:
                best = sets[t]
            index = [*range(first), *best, *range(count - last, count)]
        chosen.append(index)
        keys = turn(k[index], torch.arange(len(index)).unsqueeze(-1))
        query = turn(q[t], torch.tensor(len(index) - 1))
        probs = (torch.einsum("hd,nhd->hn", query, keys) / 2).softmax(-1)
        results.append(torch.einsum("hn,nhd->hd", probs, v[index]).flatten())
    return layer.o(torch.stack(results)), chosen


def test_decoder_is_the_whole_pass(made: ModuleType, reusing: ModuleType) -> None:
    ids = torch.randint(32, (4, 23))
    for package_ in (made, reusing):
        model = drawn(package_)
        with torch.no_grad():
            full = model(ids).text
            assert worst_split(model, ids, full) < 1e-11
            assert worst_padding(model, ids, "text") < 1e-11
            assert worst_verb(model, ids) < 1e-11


def test_documents_are_alone(reusing: ModuleType) -> None:
    model, lengths = drawn(reusing), (5, 13, 2, 11)
    ids = torch.randint(32, (2, 31))
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)]).expand(2, -1)
    with torch.no_grad():
        packed = model(ids, documents=numbers).text
        wanted = torch.cat([model(part).text for part in ids.split(lengths, dim=1)], dim=1)
    assert error(packed, wanted) < 1e-11


def test_layer_is_the_published_step(tmp_path: Path) -> None:
    model = alone(tmp_path)
    x = torch.randn(3, 29, 16, dtype=torch.float64)
    with torch.no_grad():
        found = model(x).out
        for row in range(3):
            wanted, chosen = by_token(model.out.token_select, x[row])
            assert len(chosen[-1]) == 9
            assert error(found[row], wanted) < 1e-6  # angles are in float32


def test_all_tokens_read_is_plain_attention(tmp_path: Path) -> None:
    """Up to `first + top + last` tokens places are positions, and nothing is left out."""
    some = alone(tmp_path / "some")
    call = "gqa(heads = 4, kv_heads = 2, rotary = rope(theta = 1e6))"
    full = drawn(package(tmp_path / "full", ALONE.format(call=call)))
    weights = some.state_dict()
    full.load_state_dict({n: weights[n.replace("gqa", "token_select")] for n in full.state_dict()})
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    with torch.no_grad():
        assert error(some(x).out[:, :9], full(x).out[:, :9]) < 1e-6
        assert error(some(x).out[:, 12:], full(x).out[:, 12:]) > 1e-3


def test_votes_by_hand(tmp_path: Path) -> None:
    text = """
    model m(soft: bool = true) {
      stage out(x: [T, heads: 2]) {
        like = f32(x)
        score[i: T, j: T] = like[j] + 0.0 * like[i]
        ballot[i: T, j: T] = if soft { softmax(score; over = j, where = j <= i) } else { score }
        vote[i: T, j: T] = sum(ballot; over = heads)
        best, keep = topk(vote; 3, over = j, where = j <= i)
        rename(stack(best, f32(keep); both: 2); i, T)
      }
    }
    """
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [1.0, 1.5]]])
    soft = package(tmp_path / "soft", text).Model()(logits).out[0, 2]
    assert soft[:, 1].tolist() == [0, 1, 2]
    assert soft[:, 0].tolist() == pytest.approx([0.743, 0.664, 0.593], abs=6e-4)
    assert float(soft[:, 0].sum()) == pytest.approx(2)
    raw = package(tmp_path / "raw", text, {"soft": "false"}).Model()(logits).out[0, 2]
    assert raw[:, 1].tolist() == [2, 0, 1]
    # a constant per head is no vote, a factor is one, a flat head moves all alike
    model = package(tmp_path / "more", text).Model()
    moved = model(logits + torch.tensor([3.0, -1.0])).out[0, 2]
    assert torch.allclose(moved, soft, atol=1e-6)
    assert not torch.allclose(model(2 * logits).out[0, 2, :, 0], soft[:, 0], atol=1e-2)
    flat = logits.clone()
    flat[..., 1] = 7.0
    one = model(flat).out[0, 2]
    assert one[:, 1].tolist() == [0, 2, 1]
    assert one[:, 0].tolist() == pytest.approx(
        [0.665 + 1 / 3, 0.245 + 1 / 3, 0.09 + 1 / 3], abs=1e-3
    )


def test_choice_is_kept_while_queries_look_alike(tmp_path: Path) -> None:
    never = alone(tmp_path / "never", ", similar = -1.1")
    always = alone(tmp_path / "always", ", similar = 1.1")
    some = alone(tmp_path / "some", ", similar = 0.9")
    plain = alone(tmp_path / "plain")
    x = torch.randn(1, 29, 16, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(always(x).out, plain(x).out)
        assert not torch.allclose(never(x).out[:, 12:], plain(x).out[:, 12:])
        same = x[:, :1].expand(-1, 29, -1)
        assert torch.allclose(some(same).out, never(same).out)
        # the choice of the first token, that there is none, stays: windows alone are read
        layer = never.out.token_select
        _, chosen = by_token(layer, x[0], [[]] * 29)
        wanted, _ = by_token(layer, x[0], [[]] * 29)
        assert [len(c) for c in chosen[9:]] == [5] * 20
        assert error(never(x).out[0, 9:], wanted[9:]) < 1e-6


def test_reuse_is_recorded(reusing: ModuleType) -> None:
    model, ids = drawn(reusing), torch.randint(32, (2, 30))
    record = reusing.Decisions()
    with torch.no_grad():
        full = model(ids, decisions=record).text
        novel = record[next(n for n in record.names() if n.endswith("novel"))]
        assert 0.1 < novel[:, 1:].float().mean() < 0.95
        assert bool(novel[:, 0].all())
        assert error(model(ids, decisions=record.replay()).text, full) < 1e-12
        other = record.to_dict()
        key = next(n for n in record.names() if n.endswith("novel"))
        other[key] = torch.ones_like(other[key])
        forced = model(ids, decisions=reusing.Decisions.from_dict(other).replay()).text
        assert not torch.allclose(forced, full)


def test_no_later_token_is_read(made: ModuleType) -> None:
    model, ids = drawn(made), torch.randint(32, (2, 30))
    other = ids.clone()
    other[:, 20:] = torch.randint(32, (2, 10))
    with torch.no_grad():
        assert torch.equal(model(ids).text[:, :20], model(other).text[:, :20])
