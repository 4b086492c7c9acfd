"""Text from a trained model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from tokdsl.training.checkpoint import find_parameters, load_parameters
from tokdsl.training.package import Package, Tokenizer, new_model
from tokdsl.training.settings import TrainingError


def continue_text(
    package: Package,
    checkpoint: Path,
    prompt: str,
    show: Callable[[str], None],
    options: Mapping[str, Any],
    *,
    threads: int | None = None,
) -> str:
    """Continue a text and show it as it comes; see `tokdsl.commands.generate.generate`.

    Raises:
        TrainingError: the checkpoint or an option does not fit.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    model = new_model(package)
    load_parameters(model, find_parameters(checkpoint))
    model.to(_device()).eval()
    unread = [name for name in missing_inputs(model) if name not in package.beside()]
    if unread:
        names = ", ".join(f"`{name}`" for name in unread)
        raise TrainingError(
            f"the model reads {names} beside the text, which only a program can give: "
            "`generation.generate(model, ids, once={...})` of the package"
        )
    tokenizer = package.tokenizer
    ids = torch.tensor([prompt_tokens(tokenizer, prompt)], device=_device())
    chosen = {**options, "stop_tokens": stop_tokens(tokenizer, options["stop"])}
    del chosen["stop"]
    chosen |= _beside(package)
    decoder = tokenizer.stream_decoder()
    pieces = []
    try:
        steps = package.submodule("generation").stream(model, ids, **chosen)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    for tokens in steps:
        token = int(tokens[0])
        if token in chosen["stop_tokens"]:
            break
        pieces.append(decoder.feed(token))
        show(pieces[-1])
    pieces.append(decoder.flush())
    show(pieces[-1])
    return "".join(pieces)


def missing_inputs(model: Any) -> list[str]:
    """Return what a model's ``prefill`` takes besides tokens and state, and must be given."""
    if not hasattr(model, "prefill"):
        return []
    given = list(inspect.signature(model.prefill).parameters.values())[2:]
    return [p.name for p in given if p.default is inspect.Parameter.empty]


def _beside(package: Package) -> dict[str, Any]:
    """Return what gives the inputs beside the tokens, for a model that takes some.

    Raises:
        TrainingError: they are known only when the whole text is.
    """
    names = package.beside()
    if not names:
        return {}
    try:
        splitters = {name: [package.tokenizer.splitter(name)] for name in names}
    except (AttributeError, ValueError) as error:
        raise TrainingError(f"{names[0]} cannot be told one token at a time: {error}") from error
    return {"beside": package.submodule("generation").Beside(splitters)}


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the tokens to begin with: never none, for a model continues something.

    Raises:
        TrainingError: the tokenizer does not know a character.
    """
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    try:
        ids = [*begin, *tokenizer.encode(prompt)]
        # without a token for the beginning, a text begins as a new line does
        return ids or tokenizer.encode("\n")
    except ValueError as error:
        raise TrainingError(f"the prompt cannot be encoded: {error}") from error


def stop_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, ...]:
    """Return the tokens that end a text.

    Raises:
        TrainingError: a text is not one token.
    """
    found = [] if tokenizer.eos is None else [tokenizer.eos]
    for text in texts:
        ids = tokenizer.encode(text)
        if len(ids) != 1:
            raise TrainingError(f"{text!r} is {len(ids)} tokens: a stop text must be one")
        found += ids
    return tuple(found)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
