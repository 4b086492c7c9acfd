"""The training loop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import DistributedType  # type: ignore[import-untyped]
from torch import Tensor, nn

from tokdsl.files import write_atomic
from tokdsl.training import checkpoint
from tokdsl.training.corpus import Corpus, flag_windows, prepare, window_starts, windows
from tokdsl.training.evaluation import (
    HeldOut,
    bits_per_byte,
    check_vocabulary,
    held_out,
    sum_over_ranks,
)
from tokdsl.training.learning import learn_tokenizer
from tokdsl.training.metrics import HELD_OUT, MetricsLog, draw
from tokdsl.training.package import Package, load_package, new_model
from tokdsl.training.progress import NoProgress, Progress, progress
from tokdsl.training.settings import TrainingError, TrainResult, TrainSettings


class Objective(nn.Module):
    """The model behind one `forward`, which is what a wrapper for several ranks can see.

    Args:
        model: a built model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, is_measured: bool = False, **beside: Tensor) -> Any:
        """Return the loss and its terms, or the model's outputs where they are measured.

        Shape: ids (B, T), beside (B, T)
        """
        if is_measured:
            return self.model(ids, **beside)
        model: Any = self.model
        loss = model.loss(ids, **beside)
        return loss.total, loss.terms


def run(
    folder: Path,
    data: Path,
    out: Path,
    settings: TrainSettings,
    *,
    is_resumed: bool = False,
    is_silent: bool = False,
) -> TrainResult:
    """Train a built package on a text.

    Args:
        folder: the package to train.
        data: a file or a folder of files.
        out: the folder of the run.
        settings: how to train.
        is_resumed: go on from the newest checkpoint in ``out``.
        is_silent: show nothing.

    Raises:
        TrainingError: something the user can repair; what was saved before is intact.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    accelerator = _accelerator(settings)
    rows = _rows_per_part(accelerator, settings)
    last = checkpoint.newest(out)
    if last is not None and not is_resumed:
        raise TrainingError(f"{out} already holds a run: resume it or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with accelerator.main_process_first():
        learn_tokenizer(folder, data, settings.held_out)
        package = load_package(folder)
        package.check_inputs()
        corpus = prepare(data, package, out / "tokens", settings.held_out)
    if len(corpus.training) < settings.length:
        raise TrainingError(
            f"the text has {len(corpus.training)} tokens to train on, "
            f"fewer than a window of {settings.length}"
        )
    torch.manual_seed(settings.seed)
    model = new_model(package)
    check_vocabulary(model, package.tokenizer.vocab_size, package.beside())
    optimizer = adamw(model, settings, is_fused=accelerator.device.type in ("cpu", "cuda"))
    model.to(accelerator.device)
    step = _resume(last, model, optimizer, corpus, settings) if last is not None else 0
    objective, prepared = accelerator.prepare(Objective(model), optimizer)
    shown = progress(settings.steps, step)
    if is_silent or not accelerator.is_main_process:
        shown = NoProgress()
    state = _Run(
        package, out, settings, accelerator, corpus, model, objective, prepared, rows, shown, step
    )
    state.text = held_out(
        corpus.training,
        corpus.held_out,
        settings.length,
        corpus.held_out_bytes,
        package.beside(),
        (corpus.training_beside, corpus.held_out_beside),
    )
    with shown:
        return state.train()


@dataclass
class _Run:
    """One call of `run`, with all that its steps need."""

    package: Package
    out: Path
    settings: TrainSettings
    accelerator: Accelerator
    corpus: Corpus
    model: nn.Module
    objective: nn.Module
    optimizer: Any
    rows: int
    shown: Progress
    step: int
    text: HeldOut = field(init=False)
    saved: int = field(init=False)
    trained: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    def train(self) -> TrainResult:
        """Take the steps, measure and save on the way, and at the end."""
        settings = self.settings
        self.saved = self.step
        self._introduce()
        log = MetricsLog(self.out / "metrics.csv", self.step) if self._is_main else None
        bits: float | None = None
        end = min(settings.steps, settings.stop_at or settings.steps)
        with _interruption() as interruption:
            while self.step < end and not self._is_any(interruption.is_set()):
                row: dict[str, float | None] = self._take_step()
                row[HELD_OUT] = None
                if _is_due(self.step, settings.eval_every) and self.step < settings.steps:
                    row[HELD_OUT] = bits = self._measure_part()
                if log is not None:
                    log.add(row)
                if _is_due(self.step, settings.save_every):
                    self._save()
            self._save()
        if self.step == settings.steps:
            bits = self._measure_all()
            if log is not None and log.rows:
                log.replace_last({**log.rows[-1], HELD_OUT: bits})
        return self._finish(bits, log)

    @property
    def _is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def _introduce(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters())
        tokens = len(self.corpus.training)
        self.shown.say(
            f"{parameters:,} parameters, {tokens:,} training tokens, "
            f"{self.corpus.held_out_bytes:,} bytes held out"
        )
        if self.step:
            self.shown.say(f"resumed after step {self.step}")

    def _take_step(self) -> dict[str, float | None]:
        """Take one optimizer step and return its numbers."""
        settings, began = self.settings, time.perf_counter()
        rate = settings.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.objective.train()
        _seed_step(settings.seed, self.step, self.accelerator.process_index)
        parts = self._parts()
        sums: dict[str, Tensor] = {}
        for index, (ids, beside) in enumerate(parts):
            is_last = index == len(parts) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.objective):
                loss, terms = self.objective(ids, **beside)
                self.accelerator.backward(loss / len(parts))
            for name, value in {"loss": loss, **terms}.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / len(parts)
        found = {name: self._mean(value) for name, value in sums.items()}
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip))
        self._check_finite({**found, "the gradient": norm})
        self.optimizer.step()
        end_step = getattr(self.model, "end_step", None)
        if callable(end_step):  # buffers that wait for the step
            end_step()
        self.optimizer.zero_grad()
        self.step += 1
        count = settings.batch * settings.length
        self.trained += count
        self.seconds += time.perf_counter() - began
        self.shown.step(self.step, found["loss"], self.trained / self.seconds)
        head = {"step": self.step, "tokens": self.step * count, "lr": rate, "gradient_norm": norm}
        return {**head, **found}

    def _parts(self) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Return this rank's share of the windows of the step, in accumulated parts."""
        settings, tokens = self.settings, self.corpus.training
        count = len(tokens) - settings.length + 1
        starts = window_starts(settings.seed, self.step, count, settings.batch)
        share = settings.batch // self.accelerator.num_processes
        first = share * self.accelerator.process_index
        starts = starts[first : first + share]
        ids = windows(tokens, starts, settings.length)
        parts = torch.split(torch.from_numpy(ids).to(self.accelerator.device), self.rows)
        flags = flag_windows(self.corpus.training_beside, starts, settings.length)
        beside = torch.from_numpy(flags).to(self.accelerator.device)
        columns = torch.split(beside, self.rows, dim=1)
        names = self.text.names
        return [
            (part, dict(zip(names, column, strict=True)))
            for part, column in zip(parts, columns, strict=True)
        ]

    def _mean(self, value: Tensor) -> float:
        if self.accelerator.num_processes > 1:
            value = sum_over_ranks(self.accelerator, value) / self.accelerator.num_processes
        return float(value)

    def _check_finite(self, found: dict[str, float]) -> None:
        wrong = [name for name, value in found.items() if not numpy.isfinite(value)]
        if wrong:
            kept = checkpoint.newest(self.out) if self.step else None
            raise TrainingError(
                f"not a finite number at step {self.step + 1}: {', '.join(wrong)}; "
                f"the parameters were not changed and "
                + (f"{kept} is intact" if kept else "nothing was saved yet")
                + "; a lower learning rate or a longer warmup usually helps"
            )

    def _measure_part(self) -> float | None:
        """Measure the beginning of the held-out text, quickly."""
        text, limit = self.text, self.settings.eval_tokens
        ids = text.tokens[text.context :]
        if len(ids) > limit:
            size = self.package.tokenizer.byte_length(map(int, ids[:limit]))
            last = text.context + limit
            flags = None if text.beside is None else text.beside[:last]
            text = HeldOut(text.tokens[:last], text.context, size, text.names, flags)
        bits = self._bits(text, stride=self.settings.length - 1)
        if bits is not None:
            self.shown.say(f"step {self.step}: {bits:.4f} bits per held-out byte")
        return bits

    def _measure_all(self) -> float | None:
        """Measure all of the held-out text; each token has half a window before it."""
        bits = self._bits(self.text, stride=self.settings.length // 2)
        if bits is not None:
            self.shown.say(f"all held-out bytes: {bits:.4f} bits per byte")
        return bits

    def _bits(self, text: HeldOut, stride: int) -> float | None:
        if not text.bytes:
            return None
        return bits_per_byte(
            self.accelerator,
            self.objective,
            text,
            length=self.settings.length,
            stride=stride,
            batch=self.settings.batch,
            vocabulary=self.package.tokenizer.vocab_size,
        )

    def _save(self) -> None:
        if self.step > self.saved and self._is_main:
            saved = checkpoint.Saved(self.step, self.corpus.digest, vars(self.settings))
            folder = checkpoint.folder_of(self.out, self.step)
            checkpoint.save(folder, self.model, _inner(self.optimizer), saved)
            checkpoint.drop_older(self.out, self.settings.keep)
        self.saved = self.step

    def _is_any(self, is_set: bool) -> bool:
        """Whether any rank was interrupted: they must all stop at the same step."""
        if self.accelerator.num_processes == 1:
            return is_set
        return float(sum_over_ranks(self.accelerator, torch.tensor(float(is_set)))) > 0

    def _finish(self, bits: float | None, log: MetricsLog | None) -> TrainResult:
        rows = log.rows if log is not None else []
        result = TrainResult(
            out=self.out,
            steps=self.step,
            is_interrupted=self.step < self.settings.steps,
            checkpoint=checkpoint.folder_of(self.out, self.step),
            parameters=sum(p.numel() for p in self.model.parameters()),
            bits_per_byte=bits,
            tokens_per_second=self.trained / self.seconds if self.seconds else 0.0,
            training_bytes=self.corpus.training_bytes,
            held_out_bytes=self.corpus.held_out_bytes,
            metrics=self.out / "metrics.csv",
            plots=draw(rows, self.out, self.package.folder.resolve().name),
        )
        if self._is_main:
            write_atomic(self.out / "result.json", result.to_json())
        if result.is_interrupted:
            self.shown.say(f"stopped after step {self.step}; resume to go on")
        return result


def adamw(model: nn.Module, settings: TrainSettings, *, is_fused: bool) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and leaves vectors (gains, offsets) alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if p.dim() >= 2],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, fused=is_fused)


def _accelerator(settings: TrainSettings) -> Accelerator:
    accelerator = Accelerator(mixed_precision=settings.precision)
    sharded = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}
    if accelerator.distributed_type in sharded:
        raise TrainingError(
            f"{accelerator.distributed_type.value} is not supported here: launch with plain "
            "data parallelism"
        )
    return accelerator


def _rows_per_part(accelerator: Accelerator, settings: TrainSettings) -> int:
    parts: int = accelerator.num_processes * settings.accumulate
    if settings.batch % parts:
        raise TrainingError(
            f"a batch of {settings.batch} cannot be shared evenly by {accelerator.num_processes} "
            f"ranks in {settings.accumulate} parts each"
        )
    return settings.batch // parts


def _resume(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    corpus: Corpus,
    settings: TrainSettings,
) -> int:
    saved = checkpoint.read_run(folder)
    differences = settings.differences(saved.settings)
    if saved.corpus != corpus.digest:
        differences.insert(0, "the text, the tokenizer or the split is another one")
    if saved.step > settings.steps:
        differences.append(f"{saved.step} steps were taken, more than {settings.steps}")
    if differences:
        raise TrainingError(f"{folder} cannot be resumed: {'; '.join(differences)}")
    checkpoint.restore(folder, model, optimizer)
    return saved.step


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer that accelerate has wrapped."""
    inner: torch.optim.Optimizer = optimizer.optimizer
    return inner


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Make what a step draws (dropout) follow from seed, step and rank alone."""
    state = numpy.random.SeedSequence([seed, step, rank]).generate_state(1, numpy.uint64)
    torch.manual_seed(int(state[0] >> 1))


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C or a terminate signal sets; a second Ctrl-C stops at once."""
    event = threading.Event()
    # only the main thread may say what signals do
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, stop) for kind in kinds}
    try:
        yield event
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
