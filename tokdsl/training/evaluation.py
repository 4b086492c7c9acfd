"""How many bits a model needs for each byte of a held-out text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import log
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn

from tokdsl.training.corpus import Flags, Tokens, flag_windows, windows
from tokdsl.training.settings import TrainingError


@dataclass(frozen=True)
class HeldOut:
    """The held-out text as one row behind the training tokens that come before it.

    Args:
        tokens: context and held-out tokens.
        context: how many of them are context, which is read but not counted.
        names: of the inputs that stand beside the tokens.
        beside: what they hold, (N, k).

    Units:
        bytes: bytes of text that the counted tokens stand for.
    """

    tokens: Tokens
    context: int
    bytes: int
    names: tuple[str, ...] = ()
    beside: Flags | None = None


def held_out(
    training: Tokens,
    tokens: Tokens,
    length: int,
    size: int,
    names: tuple[str, ...] = (),
    beside: tuple[Flags, Flags] | None = None,
) -> HeldOut:
    """Put as much of the training tokens in front as a window can read.

    Args:
        training: the tokens before the split.
        tokens: the held-out tokens.
        length: tokens per window.
        size: bytes of the held-out text.
        names: of the inputs that stand beside the tokens.
        beside: what stands beside the training tokens and the held-out ones.
    """
    first = max(0, len(training) - (length - 1))
    flags = None if beside is None else numpy.concatenate([beside[0][first:], beside[1]])
    whole = numpy.concatenate([training[first:], tokens])
    return HeldOut(whole, len(training) - first, size, names, flags)


@torch.no_grad()
def bits_per_byte(
    accelerator: Accelerator,
    objective: nn.Module,
    text: HeldOut,
    *,
    length: int,
    stride: int,
    batch: int,
    vocabulary: int,
) -> float | None:
    """Measure the code length of a text under a model that predicts its next token.

    Every counted token is predicted once, from at least ``length - stride`` tokens before it
    where there are so many. All of a token's bits count, whatever the tokenizer, and are divided
    by the bytes of the text. A first token with nothing before it costs as much as a blind guess.

    Args:
        accelerator: shares the windows out to the ranks.
        objective: the prepared module; ``objective(ids, is_measured=True)`` gives the outputs.
        text: what to measure.
        length: tokens per window.
        stride: tokens counted per window.
        batch: windows at a time.
        vocabulary: the tokenizer's.

    Returns:
        None where no output predicts the input's tokens.
    """
    nats = torch.zeros((), dtype=torch.float64)
    objective.eval()
    for index, (ids, beside, counted) in enumerate(_batches(text, length, stride, batch)):
        if index % accelerator.num_processes != accelerator.process_index:
            continue
        given = {name: flags.to(accelerator.device) for name, flags in beside.items()}
        output = objective(ids.to(accelerator.device), is_measured=True, **given)
        logits = _prediction(output, ids.shape, vocabulary)
        if logits is None:
            return None
        losses = F.cross_entropy(
            logits[:, :-1].float().flatten(0, 1),
            ids[:, 1:].flatten().to(logits.device),
            reduction="none",
        ).double()
        nats += losses[counted[:, 1:].flatten().to(losses.device)].sum().cpu()
    if accelerator.num_processes > 1:
        # not every device adds in float64
        nats = sum_over_ranks(accelerator, nats)
    blind = 0.0 if text.context else log(vocabulary)
    return (float(nats) + blind) / log(2) / text.bytes


def sum_over_ranks(accelerator: Accelerator, value: Tensor) -> Tensor:
    """Add a number over all ranks."""
    found: Any = accelerator.reduce(value.to(accelerator.device), reduction="sum")
    return torch.as_tensor(found).cpu()


def _batches(
    text: HeldOut, length: int, stride: int, batch: int
) -> Iterator[tuple[Tensor, dict[str, Tensor], Tensor]]:
    """Return windows (B, T), what stands beside them, and which of their tokens count (B, T)."""
    total = len(text.tokens)
    length = min(length, total)
    # the first token of a window is never predicted
    stride = min(stride, length - 1)
    firsts = numpy.arange(max(text.context, 1), total, stride)
    stops = numpy.minimum(firsts + stride, total)
    starts = numpy.maximum(stops - length, 0)
    for at in range(0, len(firsts), batch):
        rows = slice(at, at + batch)
        place = starts[rows, None] + numpy.arange(length)
        counted = (place >= firsts[rows, None]) & (place < stops[rows, None])
        ids = windows(text.tokens, starts[rows], length)
        beside = {}
        if text.beside is not None:
            flags = flag_windows(text.beside, starts[rows], length)
            beside = dict(zip(text.names, torch.from_numpy(flags), strict=True))
        yield torch.from_numpy(ids), beside, torch.from_numpy(counted)


def _prediction(output: Iterable[Any], shape: torch.Size, vocabulary: int) -> Tensor | None:
    """Return the first output that has a score per position and token."""
    for value in output:
        if (
            isinstance(value, Tensor)
            and value.dim() == 3
            and value.shape[:2] == shape
            and value.shape[2] >= vocabulary
        ):
            return value
    return None


def check_vocabulary(model: nn.Module, vocabulary: int, names: Iterable[str] = ()) -> None:
    """Refuse a tokenizer whose tokens the model has no row for.

    Raises:
        TrainingError: reading the highest token fails.
    """
    ids = torch.full((1, 2), vocabulary - 1)
    beside = dict.fromkeys(names, torch.ones(1, 2, dtype=torch.bool))
    try:
        with torch.no_grad():
            model(ids, **beside)
    except IndexError as error:
        raise TrainingError(
            f"the tokenizer has {vocabulary} tokens, more than the model's embedding"
        ) from error
