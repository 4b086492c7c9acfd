"""What the checker needs to know of a tokenizer: how many rows an embedding must have.

Neither torch nor the tokenizers library is imported; a ``tokenizer.json`` is read as plain JSON.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The values that one byte can have.
BYTES = 256
#: how many of them are in no text of UTF-8
UNUSED = 13


class TokenizerFileError(ValueError):
    """A tokenizer file is missing or is not what it should be; the text is one line."""


@dataclass(frozen=True)
class Parameter:
    """An argument of a tokenizer or of one of its steps.

    Args:
        kind: ``int``, ``float``, ``str``, ``bool`` or ``list``.
        default: what counts if it is not given; None if it must be given.
        choices: the words that it can be, if it is one of some.
    """

    kind: str
    default: object = None
    choices: tuple[str, ...] = ()


_NAMES, _ROLE = Parameter("list", ()), Parameter("bool", False)

#: what makes tokens of a text, by its name in a spec, with what it takes
BASES: dict[str, dict[str, Parameter]] = {
    "bytes": {
        "bos": _ROLE,
        "eos": _ROLE,
        "pad": _ROLE,
        "specials": _NAMES,
        "place": Parameter("str", "after", ("after", "before", "unused")),
    },
    "chars": {"alphabet": Parameter("str")},
    "pretrained": {"file": Parameter("str", "tokenizer.json")},
    "byte_bpe": {"vocab": Parameter("int"), "specials": _NAMES},
}


@dataclass(frozen=True)
class Segmentation:
    """A step of a tokenizer that says which tokens begin a segment.

    Args:
        forms: the class of the emitted package that does it; by the first argument where it
            chooses one.
        parameters: what it takes, in order.
        source: what it reads: the ``text`` up to a character, the ``whole`` text, the ``tokens``
            of a batch, or the ``entropies`` of a language model.
    """

    forms: Mapping[str, str]
    parameters: Mapping[str, Parameter]
    source: str = "text"


SEGMENTATIONS: dict[str, Segmentation] = {
    "words": Segmentation(
        {"unicode": "Words", "spaces": "Spaces"},
        {
            "rule": Parameter("str", "unicode", ("unicode", "spaces")),
            "max_bytes": Parameter("int", 0),
            "flag": Parameter("str", "first", ("first", "known")),
            "marker": Parameter("str", ""),
        },
    ),
    "delimiters": Segmentation(
        {"": "Delimiters"},
        {
            "of": Parameter("str", ""),
            "at": Parameter("str", "start", ("start", "after")),
            "first": Parameter("int", 0),
        },
    ),
    "units": Segmentation(
        {"python": "Units"}, {"lexer": Parameter("str", "python", ("python",))}, "whole"
    ),
    "batch_merge": Segmentation(
        {"frequency": "Merges"},
        {
            "pairs": Parameter("str", "frequency", ("frequency",)),
            "merges": Parameter("int"),
            "boundary": Parameter("str", "word", ("pretoken", "word", "word_hyphen", "sentence")),
            "scope": Parameter("str", "batch", ("batch", "sample")),
        },
        "tokens",
    ),
    "entropy_groups": Segmentation(
        {"": "entropy_groups"},
        {
            "low": Parameter("float", 0.05),
            "share": Parameter("float", 0.3),
            "longest": Parameter("int", 4),
        },
        "entropies",
    ),
}


#: arguments that say how tokens are marked, and not where segments begin
MARKING = ("flag", "marker")


@dataclass(frozen=True)
class Step:
    """A use of a segmentation.

    Args:
        name: of the input that it fills, beside the tokens.
        segmentation: the step's name in the spec.
        arguments: what is given to it, plain values.
    """

    name: str
    segmentation: str
    arguments: Mapping[str, Any]

    @property
    def source(self) -> str:
        """What the step reads."""
        return SEGMENTATIONS[self.segmentation].source

    @property
    def form(self) -> str:
        """The class or function of the emitted package that does it."""
        forms = SEGMENTATIONS[self.segmentation].forms
        return forms.get("") or forms[str(self.arguments[self._choosing])]

    @property
    def is_late(self) -> bool:
        """Whether a segment is said to begin only where that is known."""
        return self.arguments.get("flag") == "known"

    @property
    def marker(self) -> str:
        """The special token that stands before every segment; "" for none."""
        return str(self.arguments.get("marker", ""))

    @property
    def settings(self) -> dict[str, object]:
        """The arguments of that class or function: what is not as usual."""
        parameters = SEGMENTATIONS[self.segmentation].parameters
        return {
            name: value
            for name, value in self.arguments.items()
            if name not in (self._choosing, *MARKING) and value != parameters[name].default
        }

    @property
    def _choosing(self) -> str:
        """The argument that chooses the form; "" if there is one form."""
        found = SEGMENTATIONS[self.segmentation]
        return "" if "" in found.forms else next(iter(found.parameters))


@dataclass(frozen=True)
class Vocabulary:
    """The numbers of a tokenizer.

    Args:
        size: the highest token number plus one, so many rows an embedding needs.
        entries: how many different tokens there are; less than ``size`` where numbers have gaps.
        specials: special tokens by their text.
        kind: the model of the tokenizer, such as ``BPE``, ``Unigram``, ``bytes``.
    """

    size: int
    entries: int
    specials: Mapping[str, int]
    kind: str


def bytes_vocabulary(specials: Iterable[str] = (), place: str = "after") -> Vocabulary:
    """Return the vocabulary of the bytes tokenizer; special tokens follow from 256.

    Args:
        specials: the special tokens in order.
        place: ``before`` gives them the first numbers, ``unused`` those of bytes that no text has.

    Raises:
        TokenizerFileError: a special token is there twice, or there is no place for it.
    """
    names = tuple(specials)
    if place == "unused":
        if len(names) > UNUSED:
            raise TokenizerFileError(
                f"{UNUSED} bytes are in no text, too few for {len(names)} special tokens"
            )
        unused = (0xC0, 0xC1, *range(0xF5, BYTES))
        found = _with_specials(0, names, "bytes").specials
        return Vocabulary(BYTES, BYTES, {n: unused[at] for n, at in found.items()}, "bytes")
    found_ = _with_specials(BYTES, names, "bytes")
    if place == "before":
        return Vocabulary(found_.size, found_.size, {n: i for i, n in enumerate(names)}, "bytes")
    return found_


def character_vocabulary(alphabet: str, specials: Iterable[str] = ()) -> Vocabulary:
    """Return the vocabulary of the characters of an alphabet; special tokens follow them.

    Raises:
        TokenizerFileError: a character occurs twice.
    """
    twice = sorted(character for character, n in Counter(alphabet).items() if n > 1)
    if twice:
        raise TokenizerFileError(f"twice in the alphabet: {', '.join(map(repr, twice))}")
    return _with_specials(len(alphabet), specials, "characters")


def byte_pair_vocabulary(size: int, specials: Iterable[str] = ()) -> Vocabulary:
    """Return the vocabulary of byte-level BPE that is to be learned; special tokens come first.

    Raises:
        TokenizerFileError: the size does not even hold every byte.
    """
    names = tuple(specials)
    if size < BYTES + len(names):
        raise TokenizerFileError(f"byte-level BPE has at least {BYTES + len(names)} tokens")
    return Vocabulary(size, size, {name: index for index, name in enumerate(names)}, "byte_bpe")


def description(name: str, arguments: Mapping[str, object]) -> dict[str, object]:
    """Return the content of the ``tokenizer.json`` of a tokenizer that a spec describes.

    Args:
        name: ``bytes``, ``chars`` or ``byte_bpe``, as in the spec.
        arguments: what the spec gives to it.
    """
    match name:
        case "bytes":
            content: dict[str, object] = {"kind": "bytes", "specials": special_tokens(arguments)}
            place = arguments.get("place", "after")
            return content if place == "after" else {**content, "place": place}
        case "chars":
            return {"kind": "characters", "alphabet": arguments["alphabet"], "specials": []}
        case "byte_bpe":
            given = arguments.get("specials") or ()
            assert isinstance(given, Iterable)
            return {"kind": name, "vocab": arguments["vocab"], "specials": list(given)}
    raise ValueError(f"{name} is not described but read from a file")


def special_tokens(arguments: Mapping[str, object]) -> list[str]:
    """Return the special tokens of a bytes tokenizer in the order of their numbers."""
    roles = [role for role in ("bos", "eos", "pad") if arguments.get(role)]
    given = arguments.get("specials") or ()
    assert isinstance(given, Iterable)
    return [*roles, *map(str, given)]


def vocabulary_size(source: str | Path | Mapping[str, Any]) -> int:
    """Return how many rows an embedding needs for a ``tokenizer.json``.

    Args:
        source: the path of the file or of its folder, or the parsed content.

    Raises:
        TokenizerFileError: the file cannot be read or is not a tokenizer.
    """
    content = source if isinstance(source, Mapping) else read_tokenizer_file(Path(source))
    return vocabulary(content).size


def read_tokenizer_file(path: Path) -> dict[str, Any]:
    """Return the parsed content of a ``tokenizer.json``.

    Raises:
        TokenizerFileError: the file cannot be read, is not JSON, or is not an object.
    """
    if path.is_dir():
        path = path / "tokenizer.json"
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise TokenizerFileError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise TokenizerFileError(f"{path} is not a JSON file") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise TokenizerFileError(f"{path} is not JSON: {error.msg} at {place}") from error
    if not isinstance(content, dict):
        raise TokenizerFileError(f"{path} is not a tokenizer: it holds no JSON object")
    return content


def vocabulary(content: Mapping[str, Any]) -> Vocabulary:
    """Return the vocabulary of the parsed content of a ``tokenizer.json``.

    Both the form of the tokenizers library and the short form of byte and character tokenizers
    are understood, and the description of byte pairs that are still to be learned.

    Raises:
        TokenizerFileError: the content is not a tokenizer.
    """
    match content:
        case {"kind": "bytes", "specials": [*named]}:
            return bytes_vocabulary(map(str, named), str(content.get("place", "after")))
        case {"kind": "characters", "alphabet": str(alphabet), "specials": [*named]}:
            return character_vocabulary(alphabet, map(str, named))
        case {"kind": "byte_bpe", "vocab": int(size), "specials": [*named]}:
            return byte_pair_vocabulary(size, map(str, named))
        case {"model": {"vocab": vocab, **model}}:
            kind = str(model.get("type") or _model_kind(vocab))
            return _library_vocabulary(kind, vocab, content.get("added_tokens") or [])
    raise TokenizerFileError("not a tokenizer: there is neither `kind` nor `model.vocab`")


def _library_vocabulary(kind: str, vocab: object, added: object) -> Vocabulary:
    numbers = _model_numbers(vocab)
    specials: dict[str, int] = {}
    for token in added if isinstance(added, list) else [added]:
        match token:
            case {"id": int(number), "content": str(text), **rest} if number >= 0:
                numbers.add(number)
                if rest.get("special"):
                    specials[text] = number
            case _:
                raise TokenizerFileError(f"an added token has no `id` or `content`: {token!r:.60}")
    return Vocabulary(max(numbers, default=-1) + 1, len(numbers), specials, kind)


def _model_numbers(vocab: object) -> set[int]:
    """Return the token numbers of the model; pieces of a list are numbered by their place."""
    if isinstance(vocab, list):
        return set(range(len(vocab)))
    if not isinstance(vocab, dict):
        raise TokenizerFileError("`model.vocab` is neither an object nor a list")
    numbers = set(vocab.values())
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise TokenizerFileError("a token in `model.vocab` has no whole number")
    return numbers


def _model_kind(vocab: object) -> str:
    return "Unigram" if isinstance(vocab, list) else "BPE"


def _with_specials(base: int, specials: Iterable[str], kind: str) -> Vocabulary:
    names = tuple(specials)
    if len(set(names)) < len(names):
        raise TokenizerFileError(f"a special token is listed twice: {', '.join(names)}")
    numbers = {name: base + index for index, name in enumerate(names)}
    return Vocabulary(base + len(names), base + len(names), numbers, kind)
