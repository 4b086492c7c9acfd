"""Tokenizers: what goes in comes out, also in pieces, and sizes are known without a library."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.packages import load_runtime
from tokdsl.tokenizers import (
    TokenizerFileError,
    bytes_vocabulary,
    character_vocabulary,
    vocabulary,
    vocabulary_size,
)

TEXT = "the cat sat on the mat; die Katze saß auf der Matte 🐈‍⬛ — the end.\n" * 20
BYTES: Any = load_runtime("tokenizer_bytes")
CHARACTERS: Any = load_runtime("tokenizer_characters")
LIBRARY: Any = load_runtime("tokenizer_library")


def byte_pairs() -> Any:
    return LIBRARY.Tokenizer.train([TEXT], 300, ("bos", "eos"))


PAIRS = byte_pairs()
ALL = [
    BYTES.Tokenizer(),
    BYTES.Tokenizer(("bos", "eos", "pad")),
    CHARACTERS.Tokenizer.train(TEXT, ("eos",)),
    PAIRS,
]


def streamed(tokenizer: Any, ids: list[int]) -> list[str]:
    decoder = tokenizer.stream_decoder()
    return [*map(decoder.feed, ids), decoder.flush()]


@pytest.mark.parametrize("tokenizer", ALL)
def test_text_comes_back(tokenizer: Any) -> None:
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.byte_length(ids) == len(TEXT.encode())
    assert max(ids) < tokenizer.vocab_size
    assert "".join(streamed(tokenizer, ids)) == TEXT
    # half a character is never shown
    assert not any("\ufffd" in piece for piece in streamed(tokenizer, ids))


@pytest.mark.parametrize("tokenizer", ALL)
def test_saving_and_loading_changes_nothing(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = type(tokenizer).load(tmp_path)
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    for name in ("vocab_size", "bos", "eos", "pad"):
        assert getattr(again, name) == getattr(tokenizer, name)
    # the compiler sees the same size without the library
    assert vocabulary_size(tmp_path) == tokenizer.vocab_size
    assert vocabulary_size(tmp_path / "tokenizer.json") == tokenizer.vocab_size


def test_bytes_are_numbered_by_their_value() -> None:
    tokenizer = BYTES.Tokenizer(("eos", "pad"))
    assert tokenizer.encode("Aé") == [65, 0xC3, 0xA9]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (None, 256, 257)
    assert tokenizer.vocab_size == bytes_vocabulary(("eos", "pad")).size == 258
    assert tokenizer.decode([65, 256, 66]) == "AB"
    assert tokenizer.byte_length([65, 256, 0xC3]) == 2


def test_half_a_character_waits_for_its_other_half() -> None:
    tokenizer = BYTES.Tokenizer()
    assert streamed(tokenizer, list("a🐈b".encode())) == ["a", "", "", "", "🐈", "b", ""]
    # bytes that can never become a character are shown as soon as that is known
    assert streamed(tokenizer, [0xFF, 65, 0xC3]) == ["\ufffd", "A", "", "\ufffd"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=12))
def test_any_bytes_stream_to_their_text(ids: list[int]) -> None:
    assert "".join(streamed(BYTES.Tokenizer(), ids)) == BYTES.Tokenizer().decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_any_text_comes_back_from_byte_pairs(text: str) -> None:
    ids = PAIRS.encode(text)
    assert PAIRS.decode(ids) == text
    assert "".join(streamed(PAIRS, ids)) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, PAIRS.vocab_size - 1), max_size=12))
def test_any_byte_pairs_stream_to_their_text(ids: list[int]) -> None:
    assert "".join(streamed(PAIRS, ids)) == PAIRS.decode(ids)


def test_characters_are_numbered_in_the_order_of_the_alphabet() -> None:
    tokenizer = CHARACTERS.Tokenizer.train("banana", ("bos", "unknown"))
    assert tokenizer.alphabet == "abn"
    assert tokenizer.encode("nab?") == [2, 0, 1, 4]
    assert tokenizer.decode([3, 2, 0, 4]) == "na\ufffd"
    assert tokenizer.vocab_size == character_vocabulary("abn", ("bos", "unknown")).size == 5


def test_a_character_outside_the_alphabet_is_named() -> None:
    with pytest.raises(ValueError, match="not in the alphabet: '!', 'z'"):
        CHARACTERS.Tokenizer("abc").encode("az!")
    with pytest.raises(ValueError, match="occurs twice"):
        CHARACTERS.Tokenizer("aba")


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    for tokenizer in (BYTES.Tokenizer(), CHARACTERS.Tokenizer("abc")):
        for token in (-1, tokenizer.vocab_size):
            with pytest.raises(ValueError, match="outside the vocabulary"):
                tokenizer.decode([token])


def test_learning_byte_pairs_is_repeatable() -> None:
    assert byte_pairs().library.to_str() == PAIRS.library.to_str()
    assert (PAIRS.bos, PAIRS.eos, PAIRS.pad) == (0, 1, None)
    assert 258 < PAIRS.vocab_size <= 300
    # longer tokens than bytes were learned
    assert len(PAIRS.encode(TEXT)) < len(TEXT.encode()) / 1.3


def test_the_size_of_a_published_form_counts_added_tokens_and_gaps() -> None:
    added = [
        {"id": 3, "content": "<s>", "special": True},
        {"id": 9, "content": "word", "special": False},
    ]
    found = vocabulary(
        {"added_tokens": added, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}
    )
    assert (found.size, found.entries, found.kind) == (10, 4, "BPE")
    assert found.specials == {"<s>": 3}
    pieces = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]]}}
    assert vocabulary_size(pieces) == 2
    assert vocabulary_size({"model": {"vocab": {"[UNK]": 0, "the": 1, "##s": 2}}}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: .* line 1"),
        ("[]", "holds no JSON object"),
        ("{}", "neither `kind` nor `model.vocab`"),
        ('{"model": {"vocab": 3}}', "neither an object nor a list"),
        ('{"model": {"vocab": {"a": "b"}}}', "no whole number"),
        ('{"model": {"vocab": {"a": -1}}}', "no whole number"),
        ('{"model": {"vocab": {}}, "added_tokens": [{"content": "x"}]}', "no `id`"),
        ('{"kind": "characters", "alphabet": "aa", "specials": []}', "twice in the alphabet: 'a'"),
        ('{"kind": "bytes", "specials": ["eos", "eos"]}', "listed twice"),
        ("[" * 100_000, "is not a JSON file"),
    ],
)
def test_what_is_no_tokenizer_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerFileError, match=message):
        vocabulary_size(tmp_path)


def test_a_missing_or_binary_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(TokenizerFileError, match="No such file"):
        vocabulary_size(tmp_path / "none.json")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00junk")
    with pytest.raises(TokenizerFileError, match="not a JSON file"):
        vocabulary_size(tmp_path)


@pytest.mark.parametrize("module", [BYTES, CHARACTERS, LIBRARY])
def test_the_file_of_another_kind_is_refused(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"kind": "other"}))
    with pytest.raises(ValueError, match="is not a"):
        module.Tokenizer.load(tmp_path)
