"""T-Free HAT: words pooled by one learned query, guides of the word before, late boundaries."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.fixtures.decoding import error, in_steps, worst_padding, worst_split, worst_verb
from tokdsl.driver import build, check_file
from tokdsl.training.package import import_package, load_package

EXAMPLE = Path(__file__).parents[2] / "examples" / "tfree_hat.tok"
D, INNER, HEADS, WINDOW = 16, 24, 2, 5
SIZES = {
    "d": D, "inner": INNER, "encoder_layers": 2, "decoder_layers": 2, "heads": HEADS,
    "hidden": 24, "window": WINDOW, "layers": 2, "inner_heads": HEADS, "kv_heads": 1,
    "inner_hidden": 32, "longest": 12,
}  # fmt: skip
#: texts by whether a word in them begins with a character of several bytes
PLAIN = "für den naïve reader, 3.14 howAreYou"
LATE = "foo 你好世界 bar 日本語テスト"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The package of the example, small."""
    built = build(EXAMPLE, tmp_path_factory.mktemp("tfree"), {k: str(v) for k, v in SIZES.items()})
    assert built.directory is not None, [f.message() for f in built.report]
    return import_package(built.directory)


@pytest.fixture(scope="module")
def tokenizer(made: ModuleType) -> Any:
    """The tokenizer of the example."""
    return load_package(Path(str(made.__file__)).parent).tokenizer


def drawn(made: ModuleType, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model with parameters large enough that every part counts."""
    model = made.Model().to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def rows(count: int = 4, length: int = 27) -> tuple[Tensor, Tensor]:
    """Return bytes and where words begin, out of phase."""
    return torch.randint(0, 256, (count, length)), torch.rand(count, length) < 0.3


def segmented(tokenizer: Any, text: str) -> tuple[Tensor, Tensor]:
    """Return a text as a batch of one row."""
    ids, starts = tokenizer.segments(text)
    return torch.tensor([ids]), torch.tensor([starts])


def sized(**changes: object) -> dict[str, str]:
    """Return the sizes with changes."""
    return {name: str(value) for name, value in {**SIZES, **changes}.items()}


# --------------------------------------------------------------------------- the equations


def turned(x: Tensor, at: Tensor, theta: float) -> Tensor:
    """Return heads turned by positions; x (n, heads, k), at (n,)."""
    half = x.shape[-1] // 2
    angle = at[:, None, None] * theta ** -(torch.arange(half, dtype=torch.float64) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def pooled(w: dict[str, Tensor], h: Tensor, starts: list[int]) -> Tensor:
    """Return the words: the query turns with the word, keys with the byte."""
    query = (w["latent"] @ w["q.weight"].T).view(1, HEADS, -1)
    position = torch.arange(len(h))
    keys = turned((h @ w["k.weight"].T).unflatten(-1, (HEADS, -1)), position, 10000.0)
    values = (h @ w["v.weight"].T).unflatten(-1, (HEADS, -1))
    found = []
    for i, (a, b) in enumerate(zip(starts, [*starts[1:], len(h)], strict=True)):
        q = turned(query, torch.tensor([i]), 10000.0)
        parts = (x.transpose(0, 1) for x in (q, keys[a:b], values[a:b]))
        found.append(F.scaled_dot_product_attention(*parts).flatten())
    return torch.stack(found) @ w["o.weight"].T


def test_pooling_is_the_equation(made: ModuleType) -> None:
    model, (ids, starts) = drawn(made), rows(1)
    seen: list[Any] = []
    model.text.latent_words.register_forward_hook(lambda _m, given, out: seen.append((given, out)))
    model(ids, starts)
    (h, *_), (words, _) = seen[0]
    begun = sorted({0, *starts[0].nonzero()[:, 0].tolist()})
    assert (
        error(words[0], pooled(dict(model.text.latent_words.named_parameters()), h[0], begun))
        < 1e-5
    )


def test_attention_with_one_key_is_the_guide(made: ModuleType) -> None:
    """Whatever queries and keys are, and they get no gradient."""
    model = drawn(made)
    says = model.text.layers_2[0].guide.says
    y, hidden = torch.randn(9, INNER).double(), torch.randn(9, D).double()
    q_proj, k_proj = (torch.randn(D, n).double().requires_grad_() for n in (D, INNER))
    norm = says.norm(y)
    q, k, v = (
        x.view(9, 1, HEADS, -1).transpose(1, 2)
        for x in (hidden @ q_proj.T, norm @ k_proj.T, says.v(norm))
    )
    mixed = says.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(9, D))
    assert error(mixed, says(y)) < 1e-12
    grads = torch.autograd.grad(mixed.square().sum(), (q_proj, k_proj))
    assert max(float(g.abs().max()) for g in grads) < 1e-12


def test_words_before_and_window(made: ModuleType) -> None:
    """An edit in word w changes words from w on, and bytes in later words or within the window."""
    model, (ids, _) = drawn(made), rows(1, 60)
    starts = torch.arange(60)[None] % 5 == 0
    found: list[Tensor] = []
    model.text.words.register_forward_hook(lambda _m, _i, out: found.append(out[0]))
    before = model(ids, starts).text
    changed = ids.clone()
    changed[0, 22] += 1
    after = model(changed % 256, starts).text
    assert torch.equal(found[0][:4], found[1][:4])
    assert float((found[0] - found[1])[4:].detach().abs().amax(-1).min()) > 1e-6
    moved = (after - before).abs().amax(-1)[0] > 1e-9
    assert moved.nonzero()[:, 0].tolist() == list(range(22, 60))
    # without guides an edit goes as far as two windows of encoder and two of decoder reach
    for layer in model.text.layers_2:
        nn.init.zeros_(layer.guide.says.o.weight)
    gone = (model(changed % 256, starts).text - model(ids, starts).text).abs().amax(-1)[0]
    assert gone.nonzero()[:, 0].tolist() == list(range(22, 22 + 4 * (WINDOW - 1) + 1))


def test_everything_is_trained(made: ModuleType) -> None:
    model = drawn(made)
    model.loss(*rows()).total.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_nothing_later_is_read(made: ModuleType) -> None:
    model, (ids, starts) = drawn(made), rows(2)
    full = model(ids, starts).text
    for at in range(1, 27, 2):
        changed, other = ids.clone(), starts.clone()
        changed[:, at:], other[:, at:] = 7, ~other[:, at:]
        assert error(model(changed, starts).text[:, :at], full[:, :at]) < 1e-12
        assert error(model(changed, other).text[:, :at], full[:, :at]) < 1e-12


def test_equal_words_are_equal_without_positions(tmp_path: Path) -> None:
    built = build(EXAMPLE, tmp_path, sized(window=1))
    assert built.directory is not None
    package = import_package(built.directory)
    model = drawn(package)
    found: list[Tensor] = []
    model.text.latent_words.register_forward_hook(lambda _m, _i, out: found.append(out[0][0]))
    ids = torch.tensor([[*b"ab", *b"cde", *b"ab"]])
    starts = torch.tensor([[True, False, True, False, False, True, False]])
    model(ids, starts)
    assert error(found[0][2], found[0][0]) > 1e-4
    importlib.import_module(f"{package.__name__}.model").rotate_half = lambda x, _turn: x
    model(ids, starts)
    assert error(found[1][2], found[1][0]) < 1e-12


# --------------------------------------------------------------------------- the decoder


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_steps_equal_the_whole(made: ModuleType, dtype: torch.dtype, limit: float) -> None:
    model, (ids, starts) = drawn(made, dtype), rows()
    full = model(ids, starts).text
    assert worst_split(model, ids, full, starts) < limit
    assert worst_padding(model, ids, "text", starts) < limit
    assert worst_verb(model, ids, starts) < limit


def test_a_batch_is_its_rows_and_documents(made: ModuleType) -> None:
    model, (ids, starts) = drawn(made), rows()
    full = model(ids, starts).text
    for i in range(4):
        assert error(model(ids[i : i + 1], starts[i : i + 1]).text[0], full[i]) < 1e-10
    lengths = (8, 1, 5, 13)
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    parts = zip(ids[:1].split(lengths, 1), starts[:1].split(lengths, 1), strict=True)
    alone = torch.cat([model(*part).text for part in parts], dim=1)
    assert error(model(ids[:1], starts[:1], documents=documents).text, alone) < 1e-10


def test_the_backbone_runs_once_per_complete_word(made: ModuleType) -> None:
    model, (ids, starts) = drawn(made), rows()
    seen: list[int] = []
    model.text.words.layers[0].register_forward_hook(
        lambda _m, given, _o: seen.append(given[0].shape[0] * given[0].shape[1])
    )
    in_steps(model, ids, [1] * 27, starts)
    # the first byte begins a word in any case, and the last word of a row is never read
    assert sum(seen) == int(starts[:, 1:].sum())
    # a text without a complete word never calls it, and steps go on from there
    seen.clear()
    state = model.new_state(1)
    one = torch.zeros(1, 3, dtype=torch.bool)
    model.prefill(ids[:1, :3], state, one)
    assert not seen
    got = model.step(ids[:1, 3:6], state, ~one)
    wanted = model(ids[:1, :6], torch.cat((one, ~one), 1)).text[:, 3:]
    assert error(got, wanted) < 1e-10


# --------------------------------------------------------------------------- boundaries


def test_texts_and_steps_use_the_late_rule(made: ModuleType, tokenizer: Any) -> None:
    """A word is said to begin with the byte that tells so, in a text as byte by byte."""
    ids, starts = tokenizer.segments("a 你好")
    # the space opens " 你"; the last byte of the next character tells that it begins a word
    assert [at for at, opens in enumerate(starts) if opens] == [0, 1, 7]
    model = drawn(made)
    for text in (PLAIN, LATE):
        ids, starts = segmented(tokenizer, text)
        full = model(ids, starts).text
        splitter, state, found = tokenizer.splitter(), model.new_state(1), []
        for token in ids[0].tolist():
            opens = torch.tensor([[splitter.push(token)]])
            assert splitter.behind == 0
            found.append(model.step(torch.tensor([[token]]), state, opens))
        assert error(torch.cat(found, 1), full) < 1e-10


def test_true_boundaries_are_another_function(made: ModuleType, tokenizer: Any) -> None:
    """Equal where words begin with one byte; elsewhere what was read must be read again."""
    model = drawn(made)
    segments = importlib.import_module(f"{made.__name__}.segments")
    for text, differs in ((PLAIN, False), (LATE, True)):
        ids, late = segmented(tokenizer, text)
        true = torch.zeros_like(late)
        true[0, segments.Words(SIZES["longest"]).cuts(text.encode())] = True
        far = error(model(ids, late).text, model(ids, true).text)
        assert far > 1e-2 if differs else far == 0


def test_true_boundaries_need_a_second_reading(made: ModuleType) -> None:
    """Back to the first byte of the character, then again under the new guide (protocol R)."""
    model, state = drawn(made), made.Model().new_state(1)
    segments = importlib.import_module(f"{made.__name__}.segments")
    data = LATE.encode()
    rule = segments.Words(SIZES["longest"])
    ids = torch.tensor([list(data)])
    true = torch.tensor([[at in rule.cuts(data) for at in range(len(data))]])
    splitter, found, twice = rule.splitter(), [], 0
    first, before = 0, state.snapshot()
    for at, byte in enumerate(data):
        if byte & 0xC0 != 0x80:
            first, before = at, state.snapshot()
        known = splitter.push(byte)
        again = min([at, *known])
        if again < at:
            assert again == first
            state.restore(before)
            twice += at - again
        flags = torch.tensor([[t in known for t in range(again, at + 1)]])
        found[again:] = list(model.step(ids[:, again : at + 1], state, flags)[0])
    assert error(torch.stack(found), model(ids, true).text[0]) < 1e-10
    # two bytes more for every word that begins with a character of three
    assert twice == 2 * sum(bool(true[0, at]) and data[at] >= 0xE0 for at in range(len(data)))


def test_special_tokens_are_words(tokenizer: Any) -> None:
    text = "für<|eot_id|>you"
    ids, starts = tokenizer.segments(text, with_specials=True)
    assert tokenizer.eos == 0xC0
    at = len("für".encode())
    assert ids[at] == tokenizer.numbers["<|eot_id|>"] == 0xC1
    assert starts == [True, *[False] * (at - 1), True, True, False, False]
    assert tokenizer.decode(ids) == "füryou"
    assert tokenizer.decode(ids, with_specials=True) == text


def test_generation(made: ModuleType, tokenizer: Any) -> None:
    model = drawn(made)
    generation = importlib.import_module(f"{made.__name__}.generation")
    prompt = torch.tensor([tokenizer.encode(LATE)])
    beside = generation.Beside({"starts": [tokenizer.splitter()]})
    ids = generation.generate(model, prompt, max_new_tokens=12, temperature=0, beside=beside)
    splitter = tokenizer.splitter()
    starts = torch.tensor([[splitter.push(token) for token in ids[0].tolist()]])
    wanted = model(ids, starts).text[0, prompt.shape[1] - 1 : -1].argmax(-1)
    assert ids[0, prompt.shape[1] :].tolist() == wanted.tolist()


# --------------------------------------------------------------------------- weights


def test_published_size() -> None:
    """The converted 8B model: all parameters here, and those without effect there."""
    inner, d, layers = 4096, 1024, 4
    dead = layers * (d * d + d * inner + d)
    found = check_file(EXAMPLE).facts["tfree_hat"].numbers["params"]
    assert found + dead == 7_192_495_104
    byte_layer = 4 * d * d + 3 * d * 2816 + 2 * d
    guides = layers * (2 * d * d + 2 * d * inner + d + inner)
    parts = (
        256 * d + 6 * byte_layer,
        inner + 2 * inner * inner + 2 * inner * d,
        32 * (2 * inner * inner + 2 * inner * 1024 + 3 * inner * 14336 + 2 * inner),
        inner,
        layers * byte_layer + guides + d + 256 * d,
    )
    assert parts == (77_344_768, 41_947_136, 6_979_584_000, 4_096, 93_615_104)
    assert sum(parts) == found + dead


def test_published_layout(made: ModuleType, tmp_path: Path) -> None:
    model = drawn(made, torch.float32)
    model.save(tmp_path / "model.safetensors", layout="published")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["encoder_connector.latent_query"].shape == (1, 1, INNER)
    assert not any("query_norm" in name for name in stored)
    for i in range(2):
        prefix = f"decoder.decoder_layers.{i}"
        stored[f"{prefix}.query_norm.weight"] = torch.ones(D)
        stored[f"{prefix}.cross_attention.q_proj.weight"] = torch.ones(D, D)
        stored[f"{prefix}.cross_attention.k_proj.weight"] = torch.ones(D, INNER)
    checkpoint = importlib.import_module(f"{made.__name__}.checkpoint")
    again = drawn(made, torch.float32)
    checkpoint.load(again, stored, "published")
    ids, starts = rows()
    assert torch.equal(again(ids, starts).text, model(ids, starts).text)
    stored["decoder.other"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"unknown: decoder\.other"):
        checkpoint.load(again, stored, "published")


def test_the_form_without_the_lag_is_rejected(tmp_path: Path) -> None:
    source = EXAMPLE.read_text("utf-8").replace(
        "it + guide(words, first, c; d, eps = eps)",
        "it + upsample(linear(words; d), c)",
    )
    (tmp_path / "m.tok").write_text(source)
    checked = check_file(tmp_path / "m.tok")
    (found,) = [f for f in checked.report if f.code == "TOK401"]
    assert "in `latent_words`: `members` reads" in "\n".join(found.notes)
