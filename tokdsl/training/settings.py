"""What a training run is told, and what it hands back; no torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import cos, pi
from pathlib import Path
from typing import Any, Literal

Precision = Literal["no", "bf16", "fp16"]


class TrainingError(Exception):
    """Something the user can repair stops a run; the text is for the user."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Args:
        steps: optimizer steps in total; the learning rate falls over all of them.
        batch: windows per step, over all ranks and accumulated parts together.
        length: tokens per window.
        accumulate: into how many parts each rank splits its windows of a step.
        lr: the highest learning rate.
        warmup: steps over which it rises.
        final_lr: what the learning rate falls to, as a share of ``lr``.
        weight_decay: pulls matrices (never vectors) to zero.
        clip: the largest norm of all gradients together.
        beta1: AdamW's decay of the mean of the gradient.
        beta2: AdamW's decay of the mean of its square.
        seed: makes initial parameters, windows and dropout repeatable.
        eval_every: steps between two measurements on the held-out text; 0 measures at the end.
        save_every: steps between two checkpoints; 0 saves at the end.
        keep: how many checkpoints stay.
        held_out: the share of the text, at its end, that is never trained on.
        threads: CPU threads; None leaves it to torch.
        precision: what accelerate computes the products in.
        stop_at: end after this step as if interrupted; for splitting a run into parts.

    Units:
        eval_tokens: held-out tokens measured during the run; the end measures all of them.
    """

    steps: int = 1000
    batch: int = 16
    length: int = 256
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int = 50
    final_lr: float = 0.05
    weight_decay: float = 0.1
    clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    seed: int = 0
    eval_every: int = 100
    eval_tokens: int = 50_000
    save_every: int = 200
    keep: int = 2
    held_out: float = 0.05
    threads: int | None = None
    precision: Precision = "no"
    stop_at: int | None = None

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step (from 0): a linear rise, then half a cosine."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        falling = 0.5 * (1 + cos(pi * min(1.0, done)))
        return self.lr * (self.final_lr + (1 - self.final_lr) * falling)

    def checked(self) -> TrainSettings:
        """Return the settings, or refuse values that mean nothing.

        Raises:
            TrainingError: a value is out of range; all of them are listed.
        """
        at_least = {"steps": 1, "batch": 1, "length": 2, "accumulate": 1, "keep": 1}
        at_least |= {"warmup": 0, "eval_every": 0, "save_every": 0, "seed": 0, "eval_tokens": 1}
        wrong = [
            f"{name} must be at least {least}, not {getattr(self, name)}"
            for name, least in at_least.items()
            if getattr(self, name) < least
        ]
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                wrong.append(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        for name in ("held_out", "final_lr"):
            if not 0 <= getattr(self, name) < 1:
                wrong.append(f"{name} must be from 0 to below 1, not {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            wrong.append(f"threads must be at least 1, not {self.threads}")
        if wrong:
            raise TrainingError("; ".join(wrong))
        return self

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """Return how a saved run differs in what a resumed run must repeat."""
        free = {"steps", "eval_every", "eval_tokens", "save_every", "keep", "threads", "stop_at"}
        return [
            f"{field.name} was {saved[field.name]}, now {getattr(self, field.name)}"
            for field in fields(self)
            if field.name not in free
            and field.name in saved
            and saved[field.name] != getattr(self, field.name)
        ]


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Args:
        out: the folder of the run.
        steps: optimizer steps that were taken in total.
        is_interrupted: whether the run ended before its last step.
        checkpoint: the newest checkpoint.
        parameters: how many parameters the model has.
        bits_per_byte: what the model needs for each byte of the held-out text; None where
            nothing is held out or the model does not predict its input.
        tokens_per_second: training speed of this call, measurements and saving not counted.
        metrics: a row for each step.
        plots: the drawn losses.

    Units:
        training_bytes: bytes of the text that were trained on; the held-out ones follow.
        held_out_bytes: bytes of the text that were held out.
    """

    out: Path
    steps: int
    is_interrupted: bool
    checkpoint: Path
    parameters: int
    bits_per_byte: float | None
    tokens_per_second: float
    training_bytes: int
    held_out_bytes: int
    metrics: Path
    plots: tuple[Path, ...]

    def to_json(self) -> str:
        """Return the result as a JSON object."""
        return json.dumps(asdict(self), indent=2, default=str) + "\n"
