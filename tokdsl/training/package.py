"""Importing a built package from its folder."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from tokdsl.training.settings import TrainingError


class StreamDecoder(Protocol):
    """Turns tokens into text as they arrive."""

    def feed(self, token: int) -> str:
        """Return the text that is complete now."""

    def flush(self) -> str:
        """Return what is left at the end."""


class Tokenizer(Protocol):
    """What every emitted tokenizer can do."""

    vocab_size: int
    bos: int | None
    eos: int | None
    pad: int | None

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of tokens."""

    def encode_bytes(self, data: bytes) -> list[int]:
        """Return the tokens of any bytes; only a tokenizer of bytes has it."""

    def segments(self, text: str, name: str) -> tuple[list[int], list[bool]]:
        """Return tokens and which of them begin a segment; only where segments are found."""

    def splitter(self, name: str) -> Any:
        """Return what finds segments one token at a time; only where segments are found."""

    def byte_length(self, ids: Iterable[int]) -> int:
        """Return how many bytes of text the tokens stand for."""

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder for tokens that arrive one by one."""


@dataclass(frozen=True)
class Package:
    """A built package, imported.

    Args:
        folder: where it lies.
        module: the package itself, with ``Model`` and ``Config``.
        tokenizer: its tokenizer.
    """

    folder: Path
    module: ModuleType
    tokenizer: Tokenizer

    def submodule(self, name: str) -> ModuleType:
        """Import one module of the package.

        Raises:
            TrainingError: the package has no such module.
        """
        try:
            return importlib.import_module(f"{self.module.__name__}.{name}")
        except ModuleNotFoundError as error:
            raise TrainingError(f"{self.folder} has no {name}.py: {error.msg}") from error

    def beside(self) -> tuple[str, ...]:
        """Return the inputs that the model takes beside the tokens and the tokenizer gives."""
        given = getattr(self.tokenizer, "beside", ())
        return tuple(name for name in self._wanted() if name in given)

    def check_inputs(self) -> None:
        """Refuse a model that takes more than a text can give.

        Raises:
            TrainingError: the model takes an input that the tokenizer does not give.
        """
        given = self.beside()
        others = [name for name in self._wanted() if name not in given][1:]
        if others:
            known = ", ".join(getattr(self.tokenizer, "beside", ())) or "nothing"
            raise TrainingError(
                f"the model takes {' and '.join(others)} beside the tokens, "
                f"and the tokenizer gives {known}"
            )

    def _wanted(self) -> list[str]:
        parameters = inspect.signature(self.module.Model.forward).parameters.values()
        return [p.name for p in list(parameters)[1:] if p.default is p.empty]

    def tokenizer_digest(self) -> str:
        """Return a digest that changes with the tokenizer."""
        file = self.folder / "tokenizer.json"
        content = file.read_bytes() if file.is_file() else b""
        if getattr(self.tokenizer, "beside", ()):
            # where segments begin is said in its code
            content += (self.folder / "tokenizer.py").read_bytes()
        return hashlib.sha256(content).hexdigest()[:16]


def load_package(folder: Path) -> Package:
    """Import the package in a folder and read its tokenizer.

    Raises:
        TrainingError: the folder is not a built package, it needs a library that is missing, or
            its tokenizer cannot be read.
    """
    module = import_package(folder)
    try:
        tokenizer = tokenizer_class(module).load(folder)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{folder}: the tokenizer cannot be read: {error}") from error
    return Package(folder, module, tokenizer)


def tokenizer_class(module: ModuleType) -> Any:
    """Return the class of an imported package's tokenizer.

    Raises:
        TrainingError: the package has no tokenizer, or it needs a library that is missing.
    """
    try:
        return importlib.import_module(f"{module.__name__}.tokenizer").Tokenizer
    except ModuleNotFoundError as error:
        raise TrainingError(f"the package needs a tokenizer: {error.msg}") from error


def import_package(folder: Path) -> ModuleType:
    """Import the package in a folder under a name of its own, anew at each call.

    Raises:
        TrainingError: the folder is not a built package, or it needs a library that is missing.
    """
    start = folder / "__init__.py"
    if not start.is_file():
        raise TrainingError(f"{folder} is not a built package: it has no __init__.py")
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    name = f"built_{folder.resolve().name}_{digest}"
    for known in [known for known in sys.modules if f"{known}.".startswith(f"{name}.")]:
        del sys.modules[known]
    spec = importlib.util.spec_from_file_location(
        name, start, submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise TrainingError(f"{folder} needs something that is missing: {error.msg}") from error
    return module


def new_model(package: Package) -> Any:
    """Return the model with its resolved parameters, freshly initialised."""
    return package.module.Model()
