"""The job behind `tokdsl generate`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokdsl.training.settings import TrainingError

__all__ = ["Sampling", "TrainingError", "generate", "read_prompt"]


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens.

    Args:
        max_new_tokens: how many at most.
        temperature: divides the logits; 0 always takes the most likely token.
        top_k: choose only among so many most likely tokens.
        top_p: choose only among the fewest that together have this probability.
        seed: makes the text repeatable.
        stop: texts of one token each that end the text, besides the tokenizer's end token.
    """

    max_new_tokens: int = 256
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


def generate(
    package: Path,
    checkpoint: Path,
    prompt: str,
    show: Callable[[str], None],
    sampling: Sampling | None = None,
    *,
    threads: int | None = None,
) -> str:
    """Continue a text with a trained model and show it as it comes.

    Args:
        package: a built package.
        checkpoint: a run's folder, one of its checkpoints, or a ``.safetensors`` file.
        prompt: the text to continue; nothing begins a new text.
        show: called with each piece of new text, never with half a character.
        sampling: how to choose tokens.
        threads: CPU threads; None leaves it to torch.

    Returns:
        The new text, without the prompt.

    Raises:
        TrainingError: something the user can repair; the text says what.
    """
    try:
        from tokdsl.training.sampling import continue_text
    except ModuleNotFoundError as error:
        if str(error.name).startswith("tokdsl"):
            raise
        raise TrainingError(f"generating needs {error.name}: pip install tokdsl") from error
    from tokdsl.training.package import load_package

    chosen = sampling or Sampling()
    loaded = load_package(package)
    return continue_text(loaded, checkpoint, prompt, show, vars(chosen), threads=threads)


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """Return the text to continue: an argument, a file (``-`` is standard input), or nothing.

    Raises:
        TrainingError: both are given, or the file is not a text.
    """
    if prompt is not None and file is not None:
        raise TrainingError("give the prompt either as text or as a file, not both")
    if file is None:
        return prompt or ""
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return content.decode("utf-8")
    except OSError as error:
        raise TrainingError(f"cannot read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TrainingError(f"{file} is not UTF-8 text at byte {error.start}") from error
