"""HAMburger: tokens of a group as one entry, spelled by a small decoder from four taps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fixtures.decoding import error, worst_padding, worst_split, worst_verb
from tokdsl.driver import build, check_source
from tokdsl.source import SourceFile
from tokdsl.training.package import import_package

EXAMPLES = Path(__file__).parents[2] / "examples"
LLAMA = {"vocab": 32, "d": 16, "layers": 8, "heads": 4, "kv_heads": 2, "hidden": 24}
SMALL = {**LLAMA, "fusing_heads": 2}
THETA, EPS = 500000.0, 1e-5
PROMPT = 10


def package(path: Path, name: str, **settings: Any) -> ModuleType:
    """Return the package of an example."""
    built = build(EXAMPLES / f"{name}.tok", path, {k: str(v) for k, v in settings.items()})
    assert built.directory is not None, [f.message() for f in built.report]
    return import_package(built.directory)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The example, small; positions are not scaled."""
    return package(tmp_path_factory.mktemp("small"), "hamburger", **SMALL, factor=1.0)


def drawn(made: ModuleType, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model with parameters that are large enough to matter."""
    model = made.Model().to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def tokens(length: int = 23, batch: int = 4) -> Tensor:
    """Return random token ids."""
    return torch.randint(0, 32, (batch, length))


def ends_of(sizes: Sequence[int]) -> Tensor:
    """Return which tokens end a group; (1, T)."""
    return torch.cat([torch.arange(size) == size - 1 for size in sizes])[None]


class Marked:
    """The model, given ends that follow from the tokens."""

    def __init__(self, model: Any) -> None:
        self.model, self.new_state = model, model.new_state

    def __call__(self, ids: Tensor, valid: Tensor | None = None) -> Any:
        return self.model(ids, ids % 3 == 0, valid)

    def prefill(self, ids: Tensor, state: Any, valid: Tensor | None = None) -> Tensor:
        found: Tensor = self.model.prefill(ids, state, ids % 3 == 0, valid)
        return found

    def step(self, ids: Tensor, state: Any) -> Tensor:
        found: Tensor = self.model.step(ids, state, ids % 3 == 0)
        return found


# --------------------------------------------------------------------------- an own computation


class Layer(NamedTuple):
    """The weights of a layer, in the order in which they are used."""

    norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    norm_2: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return one causal layer over a sequence; x (T, D), positions (T,)."""
        y = normed(x, self.norm)
        q, k, v = ((y @ w.T).view(len(x), -1, 4).transpose(0, 1) for w in (self.q, self.k, self.v))
        k, v = (part.repeat_interleave(len(q) // len(part), dim=0) for part in (k, v))
        mixed = F.scaled_dot_product_attention(
            turned(q, positions), turned(k, positions), v, is_causal=True
        )
        x = x + mixed.transpose(0, 1).reshape(len(x), -1) @ self.o.T
        y = normed(x, self.norm_2)
        return x + (F.silu(y @ self.gate.T) * (y @ self.up.T)) @ self.down.T


def normed(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * gain


def turned(x: Tensor, positions: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    angle = positions.double()[:, None] / THETA ** (torch.arange(half).double() / half)
    cos, sin, a, b = angle.cos(), angle.sin(), x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def macro_layers(model: Any) -> list[Layer]:
    groups = model.spelled.groups
    stacks = (groups.layers, groups.layers_2, groups.layers_3, groups.layers_4)
    inner = [layer.transformer_turned for stack in stacks for layer in stack]
    return [
        Layer(
            b.rmsnorm.weight,
            *(getattr(b.gqa_turned, n).weight for n in "qkvo"),
            b.rmsnorm_2.weight,
            *(getattr(b.swiglu, n).weight for n in ("gate", "up", "down")),
        )
        for b in inner
    ]


def micro_layers(model: Any) -> list[Layer]:
    names = ("norm", "q_of", "k_of", "v_of", "o_of", "norm_2")
    blocks = [getattr(model.spelled, f"spelling_layer{n}") for n in ("", "_2", "_3", "_4")]
    found = []
    for b in blocks:
        inner = [getattr(b.ffn, n).weight for n in ("gate", "up", "down")]
        found.append(Layer._make([*(getattr(b, n).weight for n in names), *inner]))
    return found


def fused(model: Any, embedded: Tensor) -> Tensor:
    """Return a group as one vector; embedded (n, D) -> (D,)."""
    if len(embedded) == 1:
        return embedded[0]
    own, mean = model.spelled.fused, embedded.mean(0)
    placed = torch.cat((embedded, own.places[: len(embedded)]), dim=-1)
    q, k, v = own.q(mean).view(2, 1, 8), own.k(placed), own.v(placed)
    k, v = (part.view(-1, 2, 8).transpose(0, 1) for part in (k, v))
    share = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1)
    found: Tensor = mean + own.o((share @ v).reshape(-1))
    return found


def published(model: Any, ids: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return logits and stop logits of all tokens but those of the first group, one by one.

    Shape: ids (T,)
    """
    embedded = model.table[ids]
    parts = torch.split(embedded, list(sizes))
    x = torch.stack([fused(model, part) for part in parts])
    positions = torch.tensor(sizes).cumsum(0) - 1
    hidden = []
    for layer in macro_layers(model):
        x = layer(x, positions)
        hidden.append(x)
    hidden[-1] = normed(hidden[-1], model.spelled.groups.rmsnorm.weight)
    taps = torch.stack([hidden[i] for i in (1, 3, 5, 7)], dim=1)
    found = []
    for before, part in zip(taps, parts[1:], strict=False):
        y = torch.cat((before, part[:-1]))
        for layer in micro_layers(model):
            y = layer(y, torch.arange(len(y)))
        found += [before[3:], y[4:]]
    vectors = torch.cat(found)
    own = model.stop
    inner = F.silu(own.second(F.silu(own.first(vectors))))
    return vectors @ model.table.T, own.third(inner)[:, 0]


# --------------------------------------------------------------------------- tests


@pytest.mark.parametrize(
    "sizes", [[1] * 9, [1, 1, 3, 1, 2, 4, 4, 1, 2], [2, 3, 4, 1, 4], [1, 4, 4, 4]]
)
def test_logits_are_those_of_the_published_computation(made: ModuleType, sizes: list[int]) -> None:
    ids, ends = tokens(sum(sizes), 1), ends_of(sizes)
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-5)):
        model = drawn(made, dtype)
        output = model(ids, ends)
        text, stop = published(model.double(), ids[0], sizes)
        assert error(output.text[0, sizes[0] - 1 : -1], text) < bound
        assert error(output.stop[0, sizes[0] - 1 : -1], stop) < bound


def test_steps_equal_the_whole(made: ModuleType) -> None:
    model, ids = Marked(drawn(made)), tokens(17)
    assert worst_split(model, ids, model(ids).text) < 1e-10
    assert worst_padding(model, ids, "text") < 1e-10
    assert worst_verb(model, ids) < 1e-10
    packed = torch.repeat_interleave(torch.arange(4), torch.tensor([6, 1, 3, 7]))[None]
    parts = torch.split(ids[:1], [6, 1, 3, 7], dim=1)
    alone = torch.cat([model(part).text for part in parts], dim=1)
    found = model.model(ids[:1], ids[:1] % 3 == 0, documents=packed).text
    assert error(found, alone) < 1e-10


def test_groups_of_one_are_the_base_model(made: ModuleType, tmp_path: Path) -> None:
    model = drawn(made)
    base = package(tmp_path, "llama", **LLAMA).Model().double().eval()
    weights = {
        "text.embed.embedding.weight": model.table,
        "text.unembed.linear.weight": model.table,
    }
    parts = ("rmsnorm", *(f"gqa.{n}" for n in "qkvo"), "rmsnorm_2")
    names = (*parts, *(f"swiglu.{n}" for n in ("gate", "up", "down")))
    for i, layer in enumerate(macro_layers(model)):
        for name, weight in zip(names, layer, strict=True):
            weights[f"text.layers.{i}.{name}.weight"] = weight
    weights["text.rmsnorm.weight"] = model.spelled.groups.rmsnorm.weight
    base.load_state_dict(weights)
    ids = tokens()
    ends = torch.ones_like(ids, dtype=torch.bool)
    assert error(model(ids, ends).text, base(ids).text) < 1e-12
    state = model.new_state(4)
    stepped = [model.step(ids[:, t : t + 1], state, ends[:, :1]) for t in range(ids.shape[1])]
    assert error(torch.cat(stepped, dim=1), base(ids).text) < 1e-10


def test_fusing_depends_on_order_through_the_places_alone(made: ModuleType) -> None:
    model = drawn(made)
    ids, ends = torch.tensor([[5, 6, 7, 8, 9]]), ends_of([1, 4])
    swapped = torch.tensor([[5, 7, 6, 8, 9]])
    assert error(model(swapped, ends).text[:, -1], model(ids, ends).text[:, -1]) > 1e-3
    with torch.no_grad():
        model.spelled.fused.places.zero_()
    assert error(model(swapped, ends).text[:, -1], model(ids, ends).text[:, -1]) < 1e-12


def test_positions_are_those_of_last_tokens(made: ModuleType) -> None:
    model, sizes = drawn(made), [1] * PROMPT + [3, 1, 2]
    ids, ends = tokens(sum(sizes), 1), ends_of(sizes)
    seen: list[Tensor] = []
    # the fastest pair of channels turns by 1 per token
    model.spelled.groups.register_forward_hook(lambda _m, given, _o: seen.append(given[2][..., 0]))
    model(ids, ends)
    assert seen[0].tolist() == [[*range(PROMPT), 12, 13, 15]]
    seen.clear()
    state = model.new_state()
    model.prefill(ids[:, :PROMPT], state, ends[:, :PROMPT])
    for t in range(PROMPT, ids.shape[1]):
        model.step(ids[:, t : t + 1], state, ends[:, t : t + 1])
    assert [part.flatten().tolist() for part in seen if part.numel()][1:] == [[12], [13], [15]]


def test_nothing_later_is_read(made: ModuleType) -> None:
    model, sizes = drawn(made), [1, 1, 3, 4, 2, 4, 1, 2]
    ids, ends = tokens(sum(sizes), 1), ends_of(sizes)
    whole = model(ids, ends)
    every = torch.eye(ids.shape[1], dtype=torch.bool)  # one row per token that is another one
    changed = model(torch.where(every, (ids + 7) % 32, ids), ends.expand(len(every), -1))
    moved = model(ids.expand(len(every), -1), ends ^ every)
    for at in range(1, ids.shape[1]):
        for other in (changed, moved):
            assert error(other.text[at, :at], whole.text[0, :at]) < 1e-12
            assert error(other.stop[at, :at], whole.stop[0, :at]) < 1e-12
        # a group is read by what follows in it and by all that comes after it
        assert error(changed.text[at, at], whole.text[0, at]) > 1e-6


def generated(
    model: Any, prompt: Tensor, count: int, confidence: float, **more: Any
) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Continue prompts; the model itself says where groups end.

    A token is the last of its group if the model's confidence that the group goes on is below
    ``confidence``, or if it is the fourth. The last token is not read any more.

    Returns:
        tokens, which of them end a group, the logits that they were chosen by, the state.
    """
    state = model.new_state(prompt.shape[0])
    ids, ends = prompt, torch.ones_like(prompt, dtype=torch.bool)
    output = model(ids, ends, state=state, **more)
    logits, place = [output.text], torch.zeros(prompt.shape[0], dtype=torch.long)
    while True:
        token = output.text[:, -1:].argmax(-1)
        end = (1 - output.stop[:, -1].sigmoid() < confidence) | (place == 3)
        place = torch.where(end, 0, place + 1)
        ids, ends = torch.cat((ids, token), dim=1), torch.cat((ends, end[:, None]), dim=1)
        if ids.shape[1] == prompt.shape[1] + count:
            return ids, ends, torch.cat(logits, dim=1), state
        output = model(token, end[:, None], state=state, **more)
        logits.append(output.text)


@torch.no_grad()
def test_generation_by_the_own_decision_to_stop(made: ModuleType) -> None:
    model, prompt, count = drawn(made), tokens(PROMPT), 14
    calls: list[int] = []
    layer = model.spelled.groups.layers[0]
    layer.register_forward_hook(lambda _m, given, _o: calls.append(given[0].shape[0]))
    record = made.Decisions()
    ids, ends, logits, state = generated(model, prompt, count, 0.5, decisions=record)
    cache = state.spelled.groups.layers[0].transformer_turned.gqa_turned.keys
    closed = ends[:, PROMPT:-1].sum(1)
    assert len(set(closed.tolist())) > 1
    assert all(PROMPT < PROMPT + n < PROMPT + count - 1 for n in closed.tolist())
    # one entry per token of the prompt and per group; what is not complete is not there
    assert lengths(cache) == (PROMPT + closed).tolist()
    assert sum(calls[1:]) == int(closed.sum())
    # the small decoder keeps what is before the open group and before the next one, no more
    assert state.spelled.spelling_layer.upsample.bytes() == 4 * (2 * 4 * 8 + 1) * 8
    whole = model(ids[:, :-1], ends[:, :-1])
    assert error(logits, whole.text) < 1e-10
    replayed = model(ids[:, :-1], ends[:, :-1], decisions=record.replay())
    assert error(logits, replayed.text) < 1e-10
    # a row goes on as it does alone
    for row in (0, 3):
        alone, alone_ends, _, _ = generated(model, prompt[row : row + 1], count, 0.5)
        assert torch.equal(alone[0], ids[row])
        assert torch.equal(alone_ends[0], ends[row])


def lengths(cache: Any) -> list[int]:
    """Return how many entries the rows of a cache hold."""
    held = cache._slots.buffer
    return [int(row.flatten(1).any(1).sum()) for row in held]


def test_losses(made: ModuleType) -> None:
    model, sizes = drawn(made), [1] * PROMPT + [3, 1, 2, 4]
    ids, ends = tokens(sum(sizes), 2), ends_of(sizes).expand(2, -1)
    response = (torch.arange(sum(sizes)) >= PROMPT).expand(2, -1)
    text, stop = (
        torch.cat([published(model, row, sizes)[i][PROMPT - 1 :] for row in ids]) for i in (0, 1)
    )
    loss = model.loss(ids, ends, response)
    token = F.cross_entropy(text, ids[:, PROMPT:].flatten())
    end = F.binary_cross_entropy_with_logits(stop, ends[:, PROMPT:].flatten().double())
    assert error(loss.terms["response_tokens"], token) < 1e-6
    assert error(loss.terms["group_ends"], end) < 1e-6
    assert error(loss.total, token + 0.5 * end) < 1e-6
    loss.total.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("right", "wrong", "code"),
    [('read = "closed"', 'read = "own"', "TOK401"), ("closes = ends", "opens = ends", "TOK308")],
)
def test_a_group_that_is_not_complete_cannot_be_read(right: str, wrong: str, code: str) -> None:
    source = (EXAMPLES / "hamburger.tok").read_text("utf-8")
    assert right in source
    report = check_source(SourceFile("wrong.tok", source.replace(right, wrong)), None).report
    assert code in [f.code for f in report]
