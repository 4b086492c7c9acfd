"""Trains two hierarchical byte models beside a flat one of equal compute per byte, on this CPU.

The text is what ships with every Python: the docstrings of the standard library, then the topics
of its help, each paragraph once. All models see the same windows in the same order with the same
learning rates, and take their steps in turns, so that a busy machine slows all alike. The specs are
`benchmarks/specs/*.tok`: `flat` is a transformer over bytes, `words` runs its wide layers where
words begin, `learned` where it finds a boundary itself.

Compute is what `FlopCounterMode` counts. By the compiler's own analysis at the stated ratio the
models agree within five percent; so do `flat` and `words` in windows one by one, where nothing is
padded. A batch pads every row to the row with most chunks: that, and the ratio that `learned`
really has, are in the training FLOPs that the curves stand over.

The results beside this file are of a short run (`--steps 300`, 0.6 million bytes, a busy machine):
`flat` is ahead at every point, with 2.642 bits per held-out byte after 4.3 TFLOPs; `learned` has
2.869 after 6.8, with 5.1 bytes per chunk at the end where 6.6 are stated, and `words` 2.946 after
5.4. They say nothing about longer training.

Example:
    python -m benchmarks.hierarchy --threads 2 --out benchmarks/results
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import environment, threads
from examples.demo import manual
from tokdsl.training.corpus import Tokens, window_starts, windows
from tokdsl.training.evaluation import bits_per_byte, held_out
from tokdsl.training.loop import Objective, adamw
from tokdsl.training.settings import TrainSettings

SPECS = Path(__file__).with_name("specs")
NAMES = ("flat", "learned", "words")
#: folders of the library that hold no text of its own, or much of the same
SKIPPED = frozenset({"site-packages", "test", "tests", "idle_test", "__pycache__"})
#: what ends a word
SPACES = (9, 10, 32)
#: windows that are counted one by one
COUNTED = 32
#: chunks per row by which a step may differ from one whose work was counted
NEAR = 5


# --------------------------------------------------------------------------- the text


def corpus() -> bytes:
    """Return the text: docstrings in the order of their files, then the topics of the help."""
    seen: dict[str, str] = {}
    for text in docstrings():
        for paragraph in text.split("\n\n"):
            seen.setdefault(" ".join(paragraph.split()), paragraph)
    return "\n\n".join([*seen.values(), manual()]).encode("utf-8", "replace")


def docstrings() -> Iterator[str]:
    """Yield the docstrings of the standard library, without tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(root.rglob("*.py")):
        if SKIPPED.intersection(path.relative_to(root).parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                tree = ast.parse(path.read_bytes())
            except SyntaxError:  # an example of wrong code
                continue
        for node in ast.walk(tree):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield text


def word_starts(ids: Tensor) -> Tensor:
    """Tell which bytes come first in a word; (B, T) -> (B, T)."""
    space = torch.isin(ids, torch.tensor(SPACES))
    before = torch.nn.functional.pad(space, (1, 0))[:, :-1]
    return before & ~space


def word_ends(ids: Tensor) -> Tensor:
    """Tell which bytes come first behind a word; (B, T) -> (B, T)."""
    space = torch.isin(ids, torch.tensor(SPACES))
    before = torch.nn.functional.pad(space, (1, 0), value=True)[:, :-1]
    return space & ~before


# --------------------------------------------------------------------------- one model


@dataclass
class Seen:
    """What the stage of chunks was given in the last pass.

    Attributes:
        width: chunks per row, padding included; 0 for a model without chunks.
        opens: which tokens were first in a chunk; (B, T).
    """

    width: int = 0
    opens: Tensor | None = None

    def watch(self, _module: nn.Module, given: tuple[Any, ...]) -> None:
        """Take the operands of the stage; a hook."""
        chunks = next(value for value in given if hasattr(value, "handed"))
        self.width = chunks.handed
        self.opens = chunks.place == 0


@dataclass
class Runner:
    """One model in training.

    Attributes:
        flops: of all steps so far.
        seconds: of all steps so far, counting left out.
        curve: what was measured on the held-out text.
        ratios: tokens per chunk in the batch of each step.
        widths: chunks per row of each step, padding included.
        work: FLOPs of a step by chunks per row, counted where no near number was counted before.
    """

    name: str
    settings: TrainSettings
    model: Any
    optimizer: torch.optim.Optimizer
    seen: Seen
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    work: dict[int, int] = field(default_factory=dict)

    def step(self, number: int, ids: Tensor) -> None:
        """Take one step on a batch; ids (B, T)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(number)
        began = time.perf_counter()
        loss = self.model.loss(ids).total
        self.seconds += time.perf_counter() - began
        self.widths.append(self.seen.width)
        if all(abs(width - self.seen.width) > NEAR for width in self.work):
            self.work[self.seen.width] = self._products(ids)
        if self.seen.opens is not None:
            self.ratios.append(ids.numel() / float(self.seen.opens.sum()))
        began = time.perf_counter()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds += time.perf_counter() - began

    @property
    def flops(self) -> int:
        """FLOPs of all steps so far: between two counted widths they lie on a line."""
        widths = sorted(self.work)
        counts = [self.work[width] for width in widths]
        return int(numpy.interp(self.widths, widths, counts).sum()) if self.widths else 0

    def _products(self, ids: Tensor) -> int:
        """Count a step's work."""
        with FlopCounterMode(display=False) as counter:
            self.model.loss(ids).total.backward()
        self.optimizer.zero_grad()
        return int(counter.get_total_flops())

    def measure(self, step: int, text: Any, stride: int) -> None:
        """Add the bits per held-out byte to the curve."""
        bits = bits_per_byte(
            Accelerator(cpu=True),
            Objective(self.model),
            text,
            length=self.settings.length,
            stride=stride,
            batch=self.settings.batch,
            vocabulary=256,
        )
        self.model.train()
        assert bits is not None
        trained = step * self.settings.batch * self.settings.length
        self.curve.append({"step": step, "bytes": trained, "flops": self.flops, "bits": bits})

    def boundaries(self, ids: Tensor) -> dict[str, float]:
        """Say how chunks lie beside words on a text; ids (B, T)."""
        with torch.no_grad():
            self.model(ids)
        opens = self.seen.opens
        if opens is None:
            return {}
        # the first token of a row opens a chunk in any case
        chunk, word = opens[:, 1:], word_starts(ids)[:, 1:]
        end = word_ends(ids)[:, 1:]
        both = float((chunk & word).sum())
        chunks, words = max(1.0, float(chunk.sum())), max(1.0, float(word.sum()))
        return {
            "bytes_per_chunk": chunk.numel() / chunks,
            "chunk_starts_at_word_starts": both / chunks,
            "word_starts_that_open": both / words,
            "chunk_starts_at_word_ends": float((chunk & end).sum()) / chunks,
            "bytes_at_word_starts": float(word.float().mean()),
        }


def build(name: str, settings: TrainSettings) -> Runner:
    """Build one model and watch its stage of chunks."""
    import tokdsl

    torch.manual_seed(settings.seed)
    model = tokdsl.load(SPECS / f"{name}.tok")
    seen = Seen()
    stage = getattr(model.text, "chunks", None)
    if stage is not None:
        stage.register_forward_pre_hook(seen.watch)
    return Runner(name, settings, model, adamw(model, settings, is_fused=True), seen)


# --------------------------------------------------------------------------- what it costs


def analysed(name: str, length: int) -> float:
    """Return the compiler's FLOPs per byte of a forward pass, at the ratio that the spec states."""
    from tokdsl import driver
    from tokdsl.checks.cost import Accountant, lengths, main_clock

    checked = driver.check_file(SPECS / f"{name}.tok", {})
    program = checked.programs[0]
    known, _ = lengths(program, length, main_clock(program, checked.facts[program.name]))
    accountant = Accountant()
    flops = [accountant.module(stage.module).total.flops for stage in program.stages]
    return sum(found.evaluate(known) for found in flops) / length


def products(model: Any, ids: Tensor) -> float:
    """Return the counted FLOPs per byte of a forward pass; ids (B, T)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    return float(counter.get_total_flops() / ids.numel())


def counted(runner: Runner, ids: Tensor) -> float:
    """Return the counted FLOPs per byte of windows one by one, so that nothing is padded."""
    return sum(products(runner.model, row[None]) for row in ids) / len(ids)


# --------------------------------------------------------------------------- the run


def batch_of(tokens: Tokens, settings: TrainSettings, step: int) -> Tensor:
    """Return the windows of a step; (B, T)."""
    count = len(tokens) - settings.length + 1
    starts = window_starts(settings.seed, step, count, settings.batch)
    return torch.from_numpy(windows(tokens, starts, settings.length))


def race(names: Sequence[str], text: bytes, settings: TrainSettings, out: Path) -> dict[str, Any]:
    """Train the models in turns; write what is known after every measurement."""
    split = len(text) - round(len(text) * settings.held_out)
    tokens = numpy.frombuffer(text, dtype=numpy.uint8)
    training, held = tokens[:split], tokens[split:]
    part = held_out(training, held[: settings.eval_tokens], settings.length, settings.eval_tokens)
    whole = held_out(training, held, settings.length, len(held))
    runners = [build(name, settings) for name in names]
    content: dict[str, Any] = {
        "environment": {**environment(), "threads": torch.get_num_threads()},
        "text": {
            "sha256": hashlib.sha256(text).hexdigest(),
            "training_bytes": split,
            "held_out_bytes": len(held),
        },
        "settings": vars(settings),
    }
    for step in range(settings.steps):
        if step % settings.eval_every == 0:
            record(runners, step, part, content, out)
        ids = batch_of(training, settings, step)
        for runner in runners[step % len(runners) :] + runners[: step % len(runners)]:
            runner.step(step, ids)
    record(runners, settings.steps, part, content, out)
    starts = numpy.arange(COUNTED) * (len(held) // COUNTED)
    ids = torch.from_numpy(windows(held, starts, settings.length))
    content["models"] = {r.name: result(r, ids, whole) for r in runners}
    save(content, out)
    return content


def record(
    runners: Sequence[Runner], step: int, part: Any, content: dict[str, Any], out: Path
) -> None:
    """Measure every model on a part of the held-out text and write it down."""
    for runner in runners:
        runner.measure(step, part, runner.settings.length - 1)
    content["models"] = {r.name: progress(r) for r in runners}
    save(content, out)
    bits = "  ".join(f"{r.name} {r.curve[-1]['bits']:.3f}" for r in runners)
    print(f"step {step:5}  {runners[0].seconds:6.0f} s  {bits}", flush=True)


def progress(runner: Runner) -> dict[str, Any]:
    """Return what is known of a model during the run."""
    every = runner.settings.eval_every
    groups = [runner.ratios[at : at + every] for at in range(0, len(runner.ratios), every)]
    return {
        "parameters": sum(p.numel() for p in runner.model.parameters()),
        "seconds": round(runner.seconds, 1),
        "curve": runner.curve,
        # chunks are what counts, so the mean is that of chunks per token
        "bytes_per_chunk": [len(g) / sum(1 / ratio for ratio in g) for g in groups],
    }


def result(runner: Runner, ids: Tensor, whole: Any) -> dict[str, Any]:
    """Return all that is known of a trained model; ids are held-out windows (B, T)."""
    settings = runner.settings
    trained = settings.steps * settings.batch * settings.length
    found = progress(runner)
    runner.measure(settings.steps, whole, settings.length // 2)
    last = runner.curve.pop()
    return {
        **found,
        "flops_per_byte": {
            "forward_by_analysis": analysed(runner.name, settings.length),
            "forward_of_one_window": counted(runner, ids),
            "training_with_padding": runner.flops / trained,
        },
        "training_flops": runner.flops,
        "held_out_bits_per_byte": last["bits"],
        "boundaries": runner.boundaries(ids),
    }


# --------------------------------------------------------------------------- what is shown


def save(content: Mapping[str, Any], folder: Path) -> None:
    """Write `hierarchy.json`, `hierarchy.svg` and `hierarchy.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hierarchy.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    draw(content, folder)


def draw(content: Mapping[str, Any], folder: Path) -> None:
    """Draw bits per byte over compute, and bytes per chunk over steps."""
    import matplotlib
    from matplotlib.figure import Figure

    every = content["settings"]["eval_every"]
    with matplotlib.rc_context({"svg.hashsalt": "tokdsl", "font.size": 9}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, model in content["models"].items():
            curve = [point for point in model["curve"] if point["flops"]]
            work = [point["flops"] / 1e12 for point in curve]
            left.plot(
                work, [point["bits"] for point in curve], marker="o", markersize=3, label=name
            )
            ratios = model["bytes_per_chunk"]
            right.plot([every * (i + 1) for i in range(len(ratios))], ratios, label=name)
        left.set(xlabel="training TFLOPs", ylabel="held-out bits per byte")
        left.legend(frameon=False)
        right.set(xlabel="step", ylabel="bytes per chunk", ylim=(0, 12))
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / "hierarchy.svg", metadata={"Date": None})
        figure.savefig(folder / "hierarchy.png", dpi=150)


def show(content: Mapping[str, Any]) -> None:
    """Print one line per model."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="forward FLOPs per byte, training, bits per held-out byte")
    columns = ("model", "parameters", "analysis", "one window", "training TFLOPs", "bits per byte")
    for column in (*columns, "bytes per chunk", "at word starts", "at word ends", "seconds"):
        table.add_column(column)
    for name, model in content["models"].items():
        work, lies = model["flops_per_byte"], model["boundaries"]
        table.add_row(
            name,
            f"{model['parameters']:,}",
            f"{work['forward_by_analysis'] / 1e6:.2f} M",
            f"{work['forward_of_one_window'] / 1e6:.2f} M",
            f"{model['training_flops'] / 1e12:.2f}",
            f"{model['held_out_bits_per_byte']:.4f}",
            f"{lies['bytes_per_chunk']:.2f}" if lies else "",
            f"{lies['chunk_starts_at_word_starts']:.1%}" if lies else "",
            f"{lies['chunk_starts_at_word_ends']:.1%}" if lies else "",
            f"{model['seconds']:.0f}",
        )
    Console(width=150).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison from the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.hierarchy", description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in ("steps", "batch", "length", "lr", "seed")}
    every = max(1, options.steps // 10)
    settings = replace(
        TrainSettings(**given, threads=options.threads),
        eval_every=every,
        eval_tokens=16_000,
        held_out=0.03,
    )
    with threads(options.threads):
        content = race(options.models, corpus(), settings.checked(), options.out)
    show(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
