"""From a text on disk to token arrays on disk: the split, the tokens, the windows."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import numpy.typing

from tokdsl.files import write_atomic
from tokdsl.training.package import Package
from tokdsl.training.settings import TrainingError

Tokens = numpy.typing.NDArray[numpy.unsignedinteger]
Starts = numpy.typing.NDArray[numpy.int64]
Flags = numpy.typing.NDArray[numpy.bool_]

#: Bytes that are encoded at a time, so that a text of any size fits.
PIECE = 1 << 20


@dataclass(frozen=True)
class Corpus:
    """A text as tokens, mapped from disk.

    Args:
        training: the tokens to train on.
        held_out: the tokens of the end of the text.
        digest: changes with the text, the tokenizer and the split.
        training_beside: what stands beside the training tokens, a column per input (N, k).
        held_out_beside: the same of the held-out tokens.

    Units:
        training_bytes: bytes of the text before the split.
        held_out_bytes: bytes of the text behind it.
    """

    training: Tokens
    held_out: Tokens
    training_bytes: int
    held_out_bytes: int
    digest: str
    training_beside: Flags
    held_out_beside: Flags


def prepare(data: Path, package: Package, folder: Path, held_out: float) -> Corpus:
    """Split a text, encode both parts and keep the tokens in a folder.

    Args:
        data: a file, or a folder whose files are read in the order of their names.
        package: whose tokenizer encodes.
        folder: where the tokens are kept; what is there for the same text is used again.
        held_out: the share of the bytes, at the end of the text, that is held out.

    Raises:
        TrainingError: the text is missing, empty, or cannot be encoded.
    """
    documents = find_documents(data)
    digest = _digest(documents, package, held_out)
    index = folder / "index.json"
    if not _is_prepared(index, digest):
        split = split_documents(documents, held_out)
        folder.mkdir(parents=True, exist_ok=True)
        _write_tokens(split[0], package, folder / "training.bin")
        _write_tokens(split[1], package, folder / "held_out.bin")
        sizes = [sum(part.stop - part.start for part in parts) for parts in split]
        content = {"digest": digest, "training_bytes": sizes[0], "held_out_bytes": sizes[1]}
        write_atomic(index, json.dumps(content, indent=2) + "\n")
    content = json.loads(index.read_text("utf-8"))
    kind = token_type(package.tokenizer.vocab_size)
    files = [folder / "training.bin", folder / "held_out.bin"]
    training, held = (_read(file, kind) for file in files)
    flags: list[Flags] = [_read(_beside(file), numpy.dtype(bool)) for file in files]
    width = len(package.beside())
    return Corpus(
        training,
        held,
        content["training_bytes"],
        content["held_out_bytes"],
        digest,
        flags[0].reshape(len(training), width),
        flags[1].reshape(len(held), width),
    )


@dataclass(frozen=True)
class Part:
    """The bytes of one document from ``start`` to before ``stop``."""

    path: Path
    start: int
    stop: int
    is_end: bool


def find_documents(data: Path) -> list[Path]:
    """Return the files of a text, none of them empty or hidden.

    Raises:
        TrainingError: there are none.
    """
    if not data.exists():
        raise TrainingError(f"there is no text at {data}")
    files = [data]
    if data.is_dir():
        every = sorted(data.rglob("*"))
        files = [f for f in every if f.is_file() and not _is_hidden(f.relative_to(data))]
    files = [file for file in files if file.stat().st_size]
    if not files:
        raise TrainingError(f"the text at {data} is empty")
    return files


def split_documents(documents: Sequence[Path], held_out: float) -> tuple[list[Part], list[Part]]:
    """Split documents laid end to end; a character of UTF-8 is never cut.

    Args:
        documents: the files in order.
        held_out: the share of all bytes that goes to the second part.
    """
    sizes = [document.stat().st_size for document in documents]
    split = sum(sizes) - round(sum(sizes) * held_out)
    first, second, begin = [], [], 0
    for path, size in zip(documents, sizes, strict=True):
        cut = min(max(split - begin, 0), size)
        if 0 < cut < size:
            cut = _character_start(path, cut)
        if cut:
            first.append(Part(path, 0, cut, cut == size))
        if cut < size:
            second.append(Part(path, cut, size, True))
        begin += size
    return first, second


def pieces(part: Part) -> Iterator[tuple[int, bytes]]:
    """Return the bytes of a part in pieces that end with a line or at least a character."""
    with part.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        start = part.start
        while start < part.stop:
            stop = min(start + PIECE, part.stop)
            if stop < part.stop:
                line = view.rfind(b"\n", start, stop) + 1
                stop = line if line > start else min(_character_start(part.path, stop), part.stop)
            yield start, view[start:stop]
            start = stop


def windows(tokens: Tokens, starts: Starts, length: int) -> numpy.typing.NDArray[numpy.int64]:
    """Copy windows out of a token array.

    Shape: tokens (N,), starts (B,) -> (B, T)
    """
    places = starts[:, None] + numpy.arange(length)
    return numpy.asarray(tokens[places], dtype=numpy.int64)


def flag_windows(flags: Flags, starts: Starts, length: int) -> Flags:
    """Copy windows out of what stands beside the tokens.

    Shape: flags (N, k), starts (B,) -> (k, B, T)
    """
    places = starts[:, None] + numpy.arange(length)
    return numpy.ascontiguousarray(numpy.moveaxis(flags[places], -1, 0))


def window_starts(seed: int, step: int, count: int, rows: int) -> Starts:
    """Return where the windows of one step begin, drawn evenly.

    They depend on nothing but the arguments, so a resumed run or another number of ranks trains
    on the same windows.

    Args:
        seed: the seed of the run.
        step: the step, from 0.
        count: how many starts there are.
        rows: how many to draw.
    """
    starts: Starts = numpy.random.default_rng([seed, step]).integers(0, count, size=rows)
    return starts


def token_type(vocabulary: int) -> numpy.dtype[numpy.unsignedinteger]:
    """Return the smallest unsigned type that holds every token."""
    return numpy.dtype(numpy.min_scalar_type(max(vocabulary - 1, 0)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _digest(documents: Sequence[Path], package: Package, held_out: float) -> str:
    given = f"{package.tokenizer_digest()} {held_out!r} {' '.join(package.beside())}"
    digest = hashlib.sha256(given.strip().encode())
    for document in documents:
        with document.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _is_prepared(index: Path, digest: str) -> bool:
    files = [index, index.with_name("training.bin"), index.with_name("held_out.bin")]
    files += map(_beside, files[1:])
    if not all(file.is_file() for file in files):
        return False
    return bool(json.loads(index.read_text("utf-8")).get("digest") == digest)


def _character_start(path: Path, at: int) -> int:
    """Return the first byte from ``at`` on that does not continue a character (at most 3 on)."""
    with path.open("rb") as file:
        file.seek(at)
        following = file.read(3)
    continued = (byte & 0xC0 == 0x80 for byte in following)
    return at + next((i for i, inside in enumerate(continued) if not inside), len(following))


def _write_tokens(parts: Sequence[Part], package: Package, path: Path) -> None:
    tokenizer, width = package.tokenizer, len(package.beside())
    kind = token_type(tokenizer.vocab_size)
    encode = _encoder(package)
    partial = path.with_name(f".{path.name}.partial")
    partial_flags = _beside(partial)
    with partial.open("wb") as file, partial_flags.open("wb") as beside:
        for part in parts:
            for offset, piece in pieces(part):
                tokens, flags = encode(piece, part.path, offset)
                tokens.astype(kind).tofile(file)
                flags.tofile(beside)
            if part.is_end and tokenizer.eos is not None:
                numpy.array([tokenizer.eos], dtype=kind).tofile(file)
                numpy.ones((1, width), dtype=bool).tofile(beside)
    os.replace(partial_flags, _beside(path))
    os.replace(partial, path)


def _beside(path: Path) -> Path:
    """Return where the flags lie that stand beside the tokens of a file."""
    return path.with_suffix(".flags")


def _encoder(package: Package) -> Callable[[bytes, Path, int], tuple[Tokens, Flags]]:
    names, tokenizer = package.beside(), package.tokenizer
    # a bytes tokenizer takes any file as it is, text or not
    is_bytes = hasattr(tokenizer, "encode_bytes")

    def encode(piece: bytes, path: Path, offset: int) -> tuple[Tokens, Flags]:
        try:
            if is_bytes and not names:
                found = numpy.array(tokenizer.encode_bytes(piece), dtype=numpy.uint32)
                return found, numpy.zeros((len(found), 0), dtype=bool)
            text = piece.decode("utf-8", "surrogateescape" if is_bytes else "strict")
            columns = [tokenizer.segments(text, name) for name in names]
            ids = columns[0][0] if columns else tokenizer.encode(text)
        except UnicodeDecodeError as error:
            place = f"byte {offset + error.start}"
            raise TrainingError(f"{path} is not UTF-8 text at {place}") from error
        except ValueError as error:
            raise TrainingError(f"{path} cannot be encoded: {error}") from error
        flags = numpy.array([column[1] for column in columns], dtype=bool)
        return numpy.array(ids, dtype=numpy.uint32), flags.reshape(len(columns), len(ids)).T

    return encode


def _read(path: Path, kind: numpy.dtype[Any]) -> numpy.typing.NDArray[Any]:
    # an empty file cannot be mapped
    if not path.stat().st_size:
        return numpy.zeros(0, dtype=kind)
    return numpy.memmap(path, dtype=kind, mode="r")
