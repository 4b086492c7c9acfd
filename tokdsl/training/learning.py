"""Learning a tokenizer that a spec only describes, from the text that is trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tokdsl.files import write_atomic
from tokdsl.training.corpus import Part, find_documents, pieces, split_documents
from tokdsl.training.package import import_package, tokenizer_class
from tokdsl.training.settings import TrainingError

FILE = "tokenizer.json"


def learn_tokenizer(folder: Path, data: Path, held_out: float) -> bool:
    """Learn the tokenizer of a package whose ``tokenizer.json`` only says what to learn.

    That file is ``{"kind": "byte_bpe", "vocab": 4096, "specials": ["eos"]}``; the learned one
    takes its place. Only the part of the text that is trained on is read.

    Args:
        folder: a built package.
        data: a text file or a folder of them.
        held_out: the share of the text, at its end, that is held out.

    Returns:
        Whether there was anything to learn.

    Raises:
        TrainingError: the text is not UTF-8, or the described size is too small.
    """
    wanted = _wanted(folder / FILE)
    if wanted is None:
        return False
    learner = tokenizer_class(import_package(folder))
    parts, _ = split_documents(find_documents(data), held_out)
    try:
        learned = learner.train(_texts(parts), wanted[0], wanted[1])
    except ValueError as error:
        raise TrainingError(f"the tokenizer cannot be learned: {error}") from error
    with TemporaryDirectory() as beside:
        learned.save(beside)
        content = Path(beside, FILE).read_text("utf-8")
    write_atomic(folder / FILE, content)
    return True


def _wanted(file: Path) -> tuple[int, list[str]] | None:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        # whoever loads the tokenizer says what is wrong with it
        return None
    if isinstance(content, dict) and content.get("kind") == "byte_bpe":
        return content["vocab"], content["specials"]
    return None


def _texts(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        for offset, piece in pieces(part):
            try:
                yield piece.decode("utf-8")
            except UnicodeDecodeError as error:
                place = f"byte {offset + error.start}"
                raise TrainingError(f"{part.path} is not UTF-8 text at {place}") from error
