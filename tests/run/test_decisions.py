"""Discrete choices of emitted models: recorded, and replayed whole, in pieces or by force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tokdsl.driver import build
from tokdsl.ops import OPS, Op
from tokdsl.training.package import import_package

EXAMPLES = Path(__file__).parents[2] / "examples"
LENGTH = 9
SPLITS = ([LENGTH], [1] * LENGTH, [0, 1, 6, 2])

SIZES = {
    "mixtral": "vocab=32 d=16 layers=2 heads=2 kv_heads=1 hidden=8 experts=4 top=2",
    "olmoe": "vocab=32 d=16 layers=2 heads=2 hidden=8 experts=6 top=2",
    "deepseek_v3": "vocab=32 d=16 layers=3 dense_layers=1 heads=2 query_rank=8 latent=8 nope_dim=8"
    " rope_dim=4 hidden=16 expert_hidden=8 experts=8 top=2 groups=4 keep=2",
}
OWN = {
    "conditional": """
      model conditional() {
        stage text(ids: tokens[32]) {
          embed(8)
          score   = linear(it; choices: 6)
          w, pick = topk(score; best: 4, over = choices, where = score > 0)
          table   = weight(choices: 6, 32)
          sum(gather(table, clamp(pick; min = 0); over = choices)
              * where(pick >= 0, sigmoid(w), 0.0); over = best)
        }
        objective next_token(text, ids)
      }""",
    "codes": """
      use std.attention { gqa, rope }
      model codes() {
        stage text(ids: tokens[32]) {
          embed(8)
          residual { gqa(heads = 2, rotary = rope()) }
          score = linear(it; codes: 5)
          code  = argmax(score; over = codes)
          it + embedding(code; d: 8) * gather(score, code; over = codes)
          score = linear(it; codes: 3)
          it + embedding(argmin(score; over = codes); d: 8) * min(score; over = codes)
          unembed(32)
        }
        objective next_token(text, ids)
      }""",
    "shared": """
      use std.ffn { swiglu }
      use std.attention { gqa, rope }
      use std.routers { topk_softmax }
      model shared() {
        stage text(ids: tokens[32]) {
          embed(8)
          shared f = moe(experts = 4, expert = swiglu(hidden = 8), router = topk_softmax(top = 2))
          residual { f() }
          repeat 2 {
            residual { rmsnorm(); gqa(heads = 2, rotary = rope()) }
            residual { rmsnorm(); swiglu(hidden = 8) }
          }
          residual { f() }
          unembed(32)
        }
        objective next_token(text, ids) + 0.01 * mean(aux.balance)
      }""",
    "ragged": """
      use std.attention { gqa, rope }
      use std.chunking { cosine_chunk, smooth }
      use std.ffn { swiglu }
      use std.routers { topk_softmax }
      model ragged() {
        stage text(ids: tokens[32]) {
          embed(8)
          residual { gqa(heads = 2, rotary = rope()) }
          residual {
            stage words(reduce = cosine_chunk(ratio = 2.0), expand = smooth()) {
              residual { gqa(heads = 2, rotary = rope()) }
              residual {
                moe(experts = 4, expert = swiglu(hidden = 8), router = topk_softmax(top = 2))
              }
            }
          }
          unembed(32)
        }
        objective next_token(text, ids) + 0.03 * sum(aux.ratio) + 0.01 * mean(aux.balance)
      }""",
    "heads": """
      model heads() {
        stage text(ids: tokens[32]) {
          embed(8)
          split(it; heads: 2, part: 4, over = d)
          order(it; heads, T, part)
          w, pick = topk(it; best: 2, over = part)
          order(w + f32(pick); T, heads, best)
          unembed(merge(it; d: 4, over = [heads, best]); 32)
        }
        objective next_token(text, ids)
      }""",
}
NAMES = {
    "mixtral": [f"text.layers.{i}.moe.router.pick" for i in (0, 1)],
    "olmoe": [f"text.layers.{i}.moe.router.pick" for i in (0, 1)],
    "deepseek_v3": [
        f"text.layers.{i}.moe.router.{name}" for i in (1, 2) for name in ("w", "kept", "pick")
    ],
    "conditional": ["text.pick"],
    "codes": ["text.code", "text.argmin"],
    "shared": ["text.f.router.pick", "text.f_2.router.pick"],
    "ragged": ["text.cosine_chunk.c", "text.words.moe.router.pick"],
    "heads": ["text.pick"],
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ModuleType]]:
    folder = tmp_path_factory.mktemp("decisions")
    found: dict[str, ModuleType] = {}
    for name, sizes in SIZES.items():
        given = dict(part.split("=") for part in sizes.split())
        found[name] = made(EXAMPLES / f"{name}.tok", folder, given)
    for name, text in OWN.items():
        path = folder / f"{name}.tok"
        path.write_text(text, "utf-8")
        found[name] = made(path, folder, {})
    yield found


def made(path: Path, folder: Path, sizes: dict[str, str]) -> ModuleType:
    """Return the package that is built from a spec."""
    built = build(path, folder, sizes)
    assert built.directory is not None, [d.message() for d in built.report]
    return import_package(built.directory)


@pytest.fixture(params=[*SIZES, *OWN])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def package(packages: dict[str, ModuleType], name: str) -> ModuleType:
    return packages[name]


def pieces(model: Any, ids: Tensor, sizes: list[int], decisions: Any) -> Tensor:
    """Return the logits of a prompt that is read in pieces."""
    state = model.new_state(len(ids))
    steps = [model.step, *[model.step] * len(sizes)]
    steps[0] = model.prefill
    parts = zip(steps, ids.split(sizes, dim=1), strict=False)
    return torch.cat([step(part, state, decisions=decisions) for step, part in parts], dim=1)


def other(recorded: Any, package: ModuleType) -> Any:
    """Return the decisions of the rows in another order."""
    tensors = {key: tensor.roll(1, dims=0) for key, tensor in recorded.to_dict().items()}
    return package.Decisions.from_dict(tensors)


def same(first: Any, second: Any) -> bool:
    """Whether two records are equal."""
    return first.names() == second.names() and all(
        torch.equal(first[key], second[key]) for key in first.names()
    )


def test_recording_changes_nothing_and_replay_gives_the_same(
    package: ModuleType, name: str
) -> None:
    model, ids = package.Model().eval(), torch.randint(32, (3, LENGTH))
    full = model(ids).text
    recorded = package.Decisions()
    assert torch.equal(model(ids, decisions=recorded).text, full)
    assert recorded.names() == NAMES[name]
    assert all(LENGTH in recorded[k].shape[:3] for k in recorded.names() if "words" not in k)
    before = {key: recorded[key].clone() for key in recorded.names()}
    assert torch.equal(model(ids, decisions=recorded.replay()).text, full)
    assert all(torch.equal(before[key], recorded[key]) for key in before)


def test_records_and_replays_in_pieces(package: ModuleType) -> None:
    model, ids = package.Model().eval(), torch.randint(32, (3, LENGTH))
    whole = package.Decisions()
    full = model(ids, decisions=whole).text
    forced = other(whole, package)
    changed = model(ids, decisions=forced.replay()).text
    assert (changed - full).abs().max() > 1e-4
    for sizes in SPLITS:
        pieced = package.Decisions()
        assert (pieces(model, ids, sizes, pieced) - full).abs().max() < 1e-5
        assert same(whole, pieced)
        assert (pieces(model, ids, sizes, forced.replay()) - changed).abs().max() < 1e-5
        assert torch.equal(model(ids, decisions=other(pieced, package).replay()).text, changed)


def test_gradients_under_replay(package: ModuleType, name: str) -> None:
    model, ids = package.Model(), torch.randint(32, (3, LENGTH))
    recorded = package.Decisions()
    found = []
    model(ids, decisions=recorded)
    forced = other(recorded, package)
    for decisions in (None, recorded, recorded.replay(), forced.replay()):
        loss = model.loss(ids, decisions=decisions).total
        found.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
    names = [key for key, _ in model.named_parameters()]
    routers = 0
    for key, *grads in zip(names, *found, strict=True):
        plain, *more, moved = (torch.zeros(1) if g is None else g for g in grads)
        assert all(torch.equal(plain, g) for g in more), key
        if "router" in key or "score" in key:
            assert not torch.equal(plain, moved)
            assert bool(moved.abs().max() > 0)
            routers += 1
    assert routers or name == "heads"


def test_padding_stands_where_it_wants(package: ModuleType) -> None:
    """A prompt padded on the left is replayed without padding, and padded on the right."""
    model, lengths = package.Model().eval(), (6, 2, 4)
    ids = torch.randint(32, (3, 8))
    valid = torch.arange(6) >= 6 - torch.tensor(lengths)[:, None]
    recorded, state = package.Decisions(), model.new_state(3)
    parts = [model.prefill(ids[:, :6], state, valid=valid, decisions=recorded)]
    parts += [model.step(ids[:, t : t + 1], state, decisions=recorded) for t in (6, 7)]
    steps = torch.cat(parts, dim=1)
    loaded = package.Decisions.from_dict(recorded.to_dict())
    right = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        right[row, : length + 2] = ids[row, 6 - length :]
    mask = torch.arange(8) < torch.tensor(lengths)[:, None] + 2
    for decisions in (recorded, loaded):
        again = model(right, mask, decisions=decisions.replay()).text
        for row, length in enumerate(lengths):
            gap = again[row, : length + 2] - steps[row, 6 - length :]
            assert gap.abs().max() < 1e-5
    with pytest.raises(ValueError, match="not recorded for all tokens of all rows"):
        model(right, decisions=recorded.replay())


def test_other_experts_are_used(tmp_path: Path) -> None:
    """Scores 0, ln 2, ln 4, ln 8 and experts that multiply by 1, 10, 100, 1000."""
    path = tmp_path / "forced.tok"
    path.write_text(
        """
        use std.routers { softmax_topk }
        block times(x: [*, d]) -> [*, d] { factor = weight(d); x * factor }
        model forced() {
          stage out(x: [T, d: 1]) {
            moe(experts = 4, expert = times(), router = softmax_topk(top = 2))
          }
          objective mean(out)
        }""",
        "utf-8",
    )
    package = made(path, tmp_path, {})
    model = package.Model()
    with torch.no_grad():
        model.out.moe.router.scores.weight.copy_(torch.tensor([[1.0], [2], [4], [8]]).log())
        model.out.moe.expert.factor.copy_(torch.tensor([[1.0], [10], [100], [1000]]))
    x = torch.ones(1, 2, 1)
    own = package.Decisions()
    # the two largest of 1, 2, 4, 8 are 8 and 4: weights 2/3 and 1/3
    assert model(x, decisions=own).out.flatten().tolist() == pytest.approx([700.0, 700.0])
    assert own["out.moe.router.pick"].tolist() == [[[3, 2], [3, 2]]]
    picks = torch.tensor([[[0, 1], [3, 0]]])
    chosen = package.Decisions.from_dict({"out.moe.router.pick": picks})
    out = model(x, decisions=chosen.replay()).out
    # 1/3 * 1 + 2/3 * 10 and 8/9 * 1000 + 1/9 * 1
    assert out.flatten().tolist() == pytest.approx([7.0, 8001 / 9])
    (grad,) = torch.autograd.grad(out[0, 0, 0], model.out.moe.router.scores.weight)
    # d/ds of 1/3 * 1 + 2/3 * 10 over the chosen two: p0 * p1 * (1 - 10), and its opposite
    assert grad.flatten().tolist() == pytest.approx([-2.0, 2.0, 0.0, 0.0], abs=1e-5)


def test_saved_and_loaded(packages: dict[str, ModuleType], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    package = packages["deepseek_v3"]
    model, ids = package.Model().eval(), torch.randint(32, (2, LENGTH))
    recorded = package.Decisions()
    pieces(model, ids, [4, 3, 2], recorded)
    full = model(ids).text
    save_file(recorded.to_dict(), tmp_path / "decisions.safetensors")
    loaded = package.Decisions.from_dict(load_file(tmp_path / "decisions.safetensors"))
    assert sorted(loaded.names()) == sorted(recorded.names())
    assert torch.equal(model(ids, decisions=loaded.replay()).text, full)


def test_what_does_not_fit(packages: dict[str, ModuleType]) -> None:
    package = packages["mixtral"]
    model, ids = package.Model().eval(), torch.randint(32, (2, LENGTH))
    first, second = NAMES["mixtral"]
    recorded = package.Decisions()
    model(ids, decisions=recorded)
    tensors = recorded.to_dict()

    def refused(given: dict[str, Tensor], words: str, tokens: Tensor = ids) -> None:
        with pytest.raises(ValueError, match=words):
            model(tokens, decisions=package.Decisions.from_dict(given).replay())

    refused({first: tensors[first]}, f"no decision `{second}` to replay; recorded is `{first}`")
    refused({}, f"no decision `{first}` to replay; recorded is nothing")
    refused(
        tensors | {second: tensors[second][..., :1]}, f"`{second}` is recorded as \\(2, 9, 1\\)"
    )
    refused(tensors, f"`{first}` is recorded as \\(2, 9, 2\\), the model makes \\(1,", ids[:1])
    refused(tensors, f"`{first}` is recorded for 9 tokens, not for 18", ids.repeat(1, 2))
    refused({first: tensors[first].float()}, f"`{first}` must be integers or bool")
    # a prompt that was not recorded is missing from what its steps recorded
    state, late = model.new_state(2), package.Decisions()
    model.prefill(ids[:, :4], state)
    model.step(ids[:, 4:], state, decisions=late)
    with pytest.raises(ValueError, match=f"`{first}` is not recorded for all tokens"):
        model(ids, decisions=late.replay())
    state = model.new_state(2)
    model.prefill(ids[:, :4], state)
    model.step(ids[:, 4:], state, decisions=late.replay())


def test_rows_change_places_and_tokens_are_taken_back(packages: dict[str, ModuleType]) -> None:
    package = packages["mixtral"]
    model, index = package.Model().eval(), torch.tensor([2, 0, 0])
    ids, more = torch.randint(32, (3, 5)), torch.randint(32, (3, 4))
    recorded, state = package.Decisions(), model.new_state(3)
    model.prefill(ids, state, decisions=recorded)
    model.step(torch.randint(32, (3, 2)), state, decisions=recorded)
    state.crop(5)
    state.reorder(index)
    recorded.reorder(index)
    model.step(more, state, decisions=recorded)
    whole = package.Decisions()
    model(torch.cat((ids[index], more), dim=1), decisions=whole)
    assert same(whole, recorded)


def test_a_record_begins_anew_with_each_pass(packages: dict[str, ModuleType]) -> None:
    package = packages["mixtral"]
    model, recorded, last = package.Model().eval(), package.Decisions(), package.Decisions()
    for shape in ((3, 9), (2, 4)):
        model(ids := torch.randint(32, shape), decisions=recorded)
    model(ids, decisions=last)
    assert same(recorded, last)


def test_chunks_of_single_rows(packages: dict[str, ModuleType]) -> None:
    """The clock of a coarser stream: rows get chunks at different times."""
    package = packages["mixtral"]
    clock_type = __import__(package.__name__ + ".functional", fromlist=["TokenClock"]).TokenClock
    slot = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2]])
    valid = slot < torch.tensor([[3], [0], [2]])
    fine = clock_type(slot[:1], None, slot[:1], None)
    coarse = clock_type(slot, valid, slot, valid)
    flags = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]).bool()
    whole, steps = package.Decisions(), package.Decisions()
    inner = whole.inside("text", fine).inside("chunks", coarse, slot)
    assert torch.equal(inner.at("open").keep(flags), flags)
    parts = [([0], [[0]]), ([0, 2], [[1], [0]]), ([2, 0], [[1], [2]])]
    for start, (rows, numbers) in enumerate(parts):
        position = torch.arange(start + 1)[None]
        tick = clock_type(position[:, start:], None, position, None)
        slots, index = torch.tensor(numbers), torch.tensor(rows)
        clock = clock_type(slots, None, torch.zeros(len(rows), 3), None)
        for decisions in (steps, whole.replay(), steps.replay()):
            inner = decisions.inside("text", tick).inside("chunks", clock, slots, index)
            kept = inner.at("open").keep(flags[index[:, None], slots])
            assert torch.equal(kept, flags[index[:, None], slots])
    inner = steps.replay().inside("text", fine).inside("chunks", coarse, slot)
    own = torch.ones_like(flags)
    assert torch.equal(inner.at("open").keep(own), torch.where(valid, flags, own))


@pytest.mark.slow
def test_one_graph_without_a_record(packages: dict[str, ModuleType]) -> None:
    model, ids = packages["heads"].Model().eval(), torch.randint(32, (2, 5))
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert (compiled(ids).text - model(ids).text).abs().max() < 1e-5
    torch.compiler.reset()


def test_a_model_without_choices_takes_no_record(tmp_path: Path) -> None:
    path = tmp_path / "plain.tok"
    path.write_text(
        "model plain() { stage text(ids: tokens[8]) { embed(4); unembed(8) }\n"
        "  objective next_token(text, ids) }",
        "utf-8",
    )
    package = made(path, tmp_path, {})
    assert not hasattr(package, "Decisions")
    with pytest.raises(TypeError):
        package.Model()(torch.zeros(1, 2, dtype=torch.long), decisions=None)


def test_statistics_are_not_decisions(tmp_path: Path) -> None:
    """A choice that only the objective hears of changes nothing, and steps do not make it."""
    path = tmp_path / "watched.tok"
    path.write_text(
        """
        model watched() {
          stage text(ids: tokens[8]) {
            embed(4)
            aux usual = mean(f32(argmax(it; over = d)); over = [batch, T])
            unembed(8)
          }
          objective next_token(text, ids) + 0.0 * mean(aux.usual)
        }""",
        "utf-8",
    )
    assert not hasattr(made(path, tmp_path, {}), "Decisions")


def test_every_decision_says_what_it_chooses() -> None:
    silent = [n for n, cls in OPS.items() if cls.decision and cls.choice is Op.choice]
    assert not silent
