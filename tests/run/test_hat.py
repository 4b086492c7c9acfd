"""HAT: words read whole and written symbol by symbol, and the decoder that follows from it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fixtures.decoding import error, in_steps, worst_padding, worst_split, worst_verb
from tokdsl.driver import build, check_file, check_text
from tokdsl.training.package import import_package, load_package

EXAMPLE = Path(__file__).parents[2] / "examples" / "hat.tok"
LONGEST, HEADS = 6, 2
SIZES = {
    "d": 16, "inner": 24, "char_layers": 2, "char_heads": HEADS, "hidden": 24, "layers": 2,
    "heads": HEADS, "inner_hidden": 32, "longest": LONGEST,
}  # fmt: skip
W, END = 0xC0, 0xC1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The package of the example, small."""
    built = build(EXAMPLE, tmp_path_factory.mktemp("hat"), {k: str(v) for k, v in SIZES.items()})
    assert built.directory is not None, [f.message() for f in built.report]
    return import_package(built.directory)


def drawn(made: ModuleType, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model with parameters large enough that every part counts."""
    model = made.Model().to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def row(*words: str) -> list[int]:
    """Return a stream of words."""
    return [symbol for word in words for symbol in (W, *word.encode())]


def streams(length: int = 27, count: int = 4) -> Tensor:
    """Return rows of random words, out of phase."""
    rows = []
    for _ in range(count):
        found: list[int] = []
        while len(found) < length:
            size = int(torch.randint(1, LONGEST + 1, ()))
            found += [W, *torch.randint(0, 128, (size,)).tolist()]
        rows.append(found[:length])
    return torch.tensor(rows)


# --------------------------------------------------------------------------- the equations


def layer(weights: dict[str, Tensor], x: Tensor, mixer: str, causal: bool) -> Tensor:
    """Return a layer of a transformer over one sequence; x (n, d)."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weights[f"{name}.weight"], eps=1e-5)

    def heads(name: str, x: Tensor) -> Tensor:
        return (x @ weights[f"{mixer}.{name}.weight"].T).unflatten(-1, (HEADS, -1)).transpose(0, 1)

    def turned(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        frequency = 10000.0 ** -(torch.arange(half) / half)
        angle = torch.arange(x.shape[1])[:, None] * frequency
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)

    y = norm("rmsnorm", x)
    q, k, v = turned(heads("q", y)), turned(heads("k", y)), heads("v", y)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    x = x + mixed.transpose(0, 1).flatten(1) @ weights[f"{mixer}.o.weight"].T
    y = norm("rmsnorm_2", x)
    gate, up = (y @ weights[f"swiglu.{name}.weight"].T for name in ("gate", "up"))
    return x + (F.silu(gate) * up) @ weights["swiglu.down.weight"].T


def stack(
    weights: dict[str, Tensor], x: Tensor, path: str, inner: str, mixer: str, causal: bool = True
) -> Tensor:
    """Return what the layers at a path make of a sequence."""
    for i in range(2):
        prefix = f"{path}.{i}.{inner}."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        x = layer(own, x, mixer, causal)
    return x


def by_words(model: Any, ids: list[int]) -> Tensor:
    """Return the logits of one row, word by word: the sheet's equations, nothing batched."""
    w = {k.removeprefix("text."): v for k, v in model.state_dict().items()}
    starts = [t for t, symbol in enumerate(ids) if symbol == W]
    words = [ids[a:b] for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    table = w["symbols.weight"]
    reader = ("read_words.layers", "word_layer", "word_attention", False)
    read = torch.stack([stack(w, table[word], *reader)[0] for word in words])
    coarse = read @ w["read_words.project.weight"].T
    y = stack(w, coarse, "words.layers", "transformer", "gqa")
    y = F.rms_norm(y, y.shape[-1:], w["words.rmsnorm.weight"], eps=1e-5)
    prefix = torch.cat((w["first"][None], y @ w["project.weight"].T))
    logits = []
    for i, word in enumerate(words):
        x = torch.cat((prefix[i : i + 1], table[word[1:]]))
        x = stack(w, x, "layers", "transformer", "gqa")
        x = F.rms_norm(x, x.shape[-1:], w["rmsnorm.weight"], eps=1e-5)
        logits.append(x @ w["unembed.linear.weight"].T)
    return torch.cat(logits)


def test_it_is_the_equations(made: ModuleType) -> None:
    model, ids = drawn(made), streams()
    full = model(ids).text
    for i in range(4):
        assert error(full[i], by_words(model, ids[i].tolist())) < 1e-6
    # a byte per word: the backbone runs on bytes, and the decoder on two positions
    ids = torch.tensor([row(*"abcab")])
    assert error(model(ids).text[0], by_words(model, ids[0].tolist())) < 1e-6


# --------------------------------------------------------------------------- the decoder


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_steps_equal_the_whole(made: ModuleType, dtype: torch.dtype, limit: float) -> None:
    model, ids = drawn(made, dtype), streams()
    full = model(ids).text
    assert worst_split(model, ids, full) < limit
    assert worst_padding(model, ids, "text") < limit
    assert worst_verb(model, ids) < limit


def test_a_batch_is_its_rows_and_documents(made: ModuleType) -> None:
    model, ids = drawn(made), streams()
    full = model(ids).text
    for i in range(4):
        assert error(model(ids[i : i + 1]).text[0], full[i]) < 1e-10
    lengths = (8, 1, 5, 13)
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    alone = torch.cat([model(part).text for part in ids[:1].split(lengths, 1)], dim=1)
    assert error(model(ids[:1], documents=documents).text, alone) < 1e-10


def test_the_backbone_runs_once_per_complete_word(made: ModuleType) -> None:
    model, ids = drawn(made), streams()
    seen: list[int] = []
    model.text.words.layers[0].register_forward_hook(
        lambda _m, given, _o: seen.append(given[0].shape[0] * given[0].shape[1])
    )
    in_steps(model, ids, [1] * 27)
    words = int((ids == W).sum())
    assert sum(seen) == words - 4  # the last word of each of four rows is never read
    seen.clear()
    in_steps(model, ids[:1], [1] * 27)
    assert seen == [1] * (int((ids[:1] == W).sum()) - 1)


def test_the_decoder_keeps_one_word(made: ModuleType) -> None:
    """What it holds of symbols does not grow with the text, and words are few."""
    model = drawn(made)
    state = model.new_state(1)
    held = []
    for symbol in row(*["abc"] * 20):
        model.step(torch.tensor([[symbol]]), state)
        held.append(sum(layer.bytes() for layer in state.text.layers))
    assert held[40] == held[-1]


# --------------------------------------------------------------------------- what depends on what


def test_a_word_is_read_by_itself(made: ModuleType) -> None:
    model = drawn(made)
    found: list[Tensor] = []
    model.text.read_words.register_forward_hook(lambda _m, _i, out: found.append(out[0][0]))
    model(torch.tensor([row("one", "two", "word", "x")]))
    model(torch.tensor([row("six", "two", "wart", "y")]))
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][2], found[1][2])
    # the last symbol of a word counts for its first
    model(torch.tensor([row("one", "twa", "word", "x")]))
    assert error(found[2][1], found[0][1]) > 1e-3


def test_earlier_words_count_through_their_prediction_alone(made: ModuleType) -> None:
    model = drawn(made)
    ids = torch.tensor([row("one", "two", "word")])
    changed = torch.tensor([row("cat", "two", "word")])
    before, after = model(ids).text, model(changed).text
    assert error(after[:, 8:], before[:, 8:]) > 1e-3
    kept: list[Tensor] = []
    hook = model.text.words.register_forward_hook(lambda _m, _i, out: kept.append(out))
    model(ids)
    hook.remove()
    model.text.words.register_forward_hook(lambda _m, _i, _o: kept[0])
    assert error(model(changed).text[:, 4:], before[:, 4:]) < 1e-12


def test_nothing_later_is_read(made: ModuleType) -> None:
    """Not even how long the word is."""
    model = drawn(made)
    ids = torch.tensor([row("one", "words", "more")])
    full = model(ids).text
    for at in range(1, ids.shape[1]):
        for tail in (W, 65, END):
            changed = ids.clone()
            changed[:, at:] = tail
            assert error(model(changed).text[:, :at], full[:, :at]) < 1e-12


def test_one_word_is_a_model_of_characters(made: ModuleType) -> None:
    model, ids = drawn(made), torch.tensor([row("single")])
    before = model(ids).text
    for part in (model.text.words, model.text.read_words):
        for parameter in part.parameters():
            nn.init.normal_(parameter)
    assert torch.equal(model(ids).text, before)


def test_positions_restart_in_every_word(made: ModuleType) -> None:
    """The same word with the same prediction before it is spelled the same anywhere."""
    model = drawn(made)
    model.text.words.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out))
    full = model(torch.tensor([row("a", "word", "longer", "word")])).text
    assert error(full[:, 14:], full[:, 2:7]) < 1e-6


# --------------------------------------------------------------------------- loss and text


def test_everything_is_trained(made: ModuleType) -> None:
    model = drawn(made)
    model.loss(streams()).total.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_loss_terms(made: ModuleType, tmp_path: Path) -> None:
    """Five bytes and two ends of words."""
    tokenizer = load_package(Path(str(made.__file__)).parent).tokenizer
    ids = [*tokenizer.encode("Hi yo"), W]
    assert ids == [W, *b"Hi", W, *b" yo", W]
    model = drawn(made)
    logits = model(torch.tensor([ids])).text[0, :-1]
    wanted = torch.tensor([*b"Hi", W, *b" yo", W])
    assert len(logits) == len(wanted) == 7
    loss = model.loss(torch.tensor([ids])).total
    assert error(loss, F.cross_entropy(logits, wanted)) < 1e-6


def test_text_to_ids_and_back(made: ModuleType) -> None:
    tokenizer = load_package(Path(str(made.__file__)).parent).tokenizer
    text = "Hello, für howAreYou 你好"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    words = "".join(map(chr, ids)).split(chr(W))[1:]
    assert max(map(len, words)) <= LONGEST
    assert tokenizer.encode_bytes(text.encode()) == ids
    ended = tokenizer.encode("a eos", with_specials=True)
    assert ended[-2:] == [W, END] and tokenizer.eos == END


def test_generation_ends_words_by_itself(made: ModuleType) -> None:
    model = drawn(made)
    generation = made.__name__ + ".generation"
    generate = __import__(generation, fromlist=["generate"]).generate
    prompt = torch.tensor([row("Hi", "yo")])
    ids = generate(model, prompt, max_new_tokens=30, temperature=0, stop_tokens=(END,))
    wanted = model(ids).text[0, prompt.shape[1] - 1 : -1].argmax(-1)
    assert ids[0, prompt.shape[1] :].tolist() == wanted.tolist()


# --------------------------------------------------------------------------- what the compiler says


def test_published_sizes() -> None:
    """23M and 1.1B, 24M and 4.3B, 55M and 9.2B."""
    for scale, chars, backbone in (
        ({}, 23e6, 1.1e9),
        ({"layers": 28, "heads": 28, "inner": 3584, "inner_hidden": 9557}, 24e6, 4.3e9),
        ({"layers": 36, "heads": 36, "inner": 4608, "inner_hidden": 12288, "d": 1024,
          "hidden": 2731, "char_layers": 4, "char_heads": 8}, 55e6, 9.2e9),
    ):  # fmt: skip
        sizes = {k: str(v) for k, v in scale.items()}
        checked = check_file(EXAMPLE, sizes)
        own = check_file(EXAMPLE, {**sizes, "layers": "0"}).facts["hat"].numbers["params"]
        whole = checked.facts["hat"].numbers["params"]
        assert own / 2 == pytest.approx(chars, rel=0.02)
        assert whole - own == pytest.approx(backbone, rel=0.05)


def test_the_form_without_the_lag_is_rejected() -> None:
    source = EXAMPLE.read_text("utf-8").replace("lag = 1, ", "")
    (found,) = [f for f in check_text(source) if f.code == "TOK401"]
    notes = "\n".join(found.notes)
    assert "`upsample` reads the chunk of the token" in notes
    assert "in `read_words`: `members` reads" in notes


def test_both_directions_over_the_stream_itself_are_rejected() -> None:
    """Symbols that read the rest of their word, and are read before it is complete."""
    source = EXAMPLE.read_text("utf-8").replace("sliding(window = longest + 1)", "full")
    report = check_text(source.replace("use std.masks { sliding }\n", ""))
    errors = [f for f in report if f.severity.name == "ERROR"]
    assert {f.code for f in errors} == {"TOK401"}
    assert any("`attend` reads the whole chunk" in note for f in errors for note in f.notes)
