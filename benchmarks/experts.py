"""Times mixtures of experts beside those of Hugging Face transformers and a dense model.

The dense model has one network with the hidden sizes of a token's experts together: as many FLOPs
per token, so it is the floor. The peer has the same weights as ours and runs with whichever of its
implementations of experts is fastest; `batched_mm` copies the matrices of an expert for every
choice, gigabytes of them in a whole pass, and takes part in decoding alone.

All run in the same process, in turns; a ratio is the median of the ratios of turns, so that a busy
machine matters little. `part` says what runs: the whole model, or its mixture alone, with the
router, in one layer. `products_ms` is the time of the matrix products of that mixture alone, on
rows that lie ready, in training with those of the gradients: what is above it is routing, copies,
activations and the sum. It is the floor that the sizes of the experts allow: products of few rows
and columns take longer per FLOP than those of the dense model. A decode step reads every matrix
that it multiplies with: where the floor takes more than half of the peer's time, nothing can take
less.

Ratios of whole models depend on the vocabulary per layer alone: 2 layers with 8000 words have those
of 8 layers with 32000.

Example:
    python -m benchmarks.experts --cases 8 --modes forward --seconds 20
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import (
    EXPERTS,
    MODES,
    Case,
    Clock,
    Package,
    Peer,
    Sizes,
    Work,
    build_peer,
    cpu_name,
    environment,
    interleave,
    load_ours,
    threads,
    works_of,
)

WIDTH = 512
PARTS = ("model", "layer")
#: largest ratio to the dense floor, by mode
FLOOR_LIMITS = {"forward": 1.05, "training": 1.12}
#: largest ratio to the peer, by mode
PEER_LIMITS = {"forward": 1.0, "decode": 0.5}


@dataclass(frozen=True)
class Mixture:
    """Sizes of the mixtures of a model."""

    experts: int
    top: int
    hidden: int

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"{self.experts} top {self.top} x {self.hidden}"

    def case(self, sizes: Sizes) -> Case:
        """Return the model and its peer."""
        peer = {
            "vocab_size": sizes.vocab,
            "hidden_size": WIDTH,
            "intermediate_size": self.hidden,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "num_local_experts": self.experts,
            "num_experts_per_tok": self.top,
            "max_position_embeddings": 4096,
            "output_router_logits": True,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        same = {"experts": self.experts, "top": self.top, "hidden": self.hidden}
        ours = _ours(sizes) | same
        return Case(self.name, "mixtral", peer, "examples/mixtral.tok", ours, sparse=True)

    def floor(self, sizes: Sizes) -> Case:
        """Return the dense model."""
        ours = _ours(sizes) | {"hidden": self.top * self.hidden}
        return Case(self.name, "", {}, "benchmarks/specs/dense.tok", ours)


def _ours(sizes: Sizes) -> dict[str, Any]:
    return {"vocab": sizes.vocab, "d": WIDTH, "layers": sizes.layers, "heads": 8, "kv_heads": 4}


MIXTURES = {m.experts: m for m in (Mixture(8, 2, 1024), Mixture(32, 4, 256), Mixture(64, 8, 128))}


@dataclass(frozen=True)
class Models:
    """The three models of a case; the peer once, its implementation is set before each run."""

    ours: Any
    peer: Any
    floor: Any

    @classmethod
    def of(cls, mixture: Mixture, sizes: Sizes) -> Models:
        """Build all; ours and the peer have the same weights."""
        case = mixture.case(sizes)
        peer = build_peer(case)
        kind = type(load_ours(case))
        ours = kind.from_checkpoint(dict(peer.state_dict()), layout="huggingface")
        return cls(ours, peer, load_ours(mixture.floor(sizes)))

    def difference(self, sizes: Sizes) -> float:
        """Return the largest difference of logits to the peer, as a check of the weights."""
        ids = torch.randint(sizes.vocab, (1, 16))
        with torch.no_grad():
            return float((self.ours(ids).text - self.peer(ids).logits).abs().max())


@dataclass
class Timing:
    """Seconds of every turn of one mode."""

    case: str
    part: str
    mode: str
    batch: int
    threads: int
    layers: int
    vocab: int
    times: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, other: str) -> float:
        """Return the median over all turns of our time over another."""
        pairs = zip(self.times["ours"], self.times[other], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    @property
    def best(self) -> str:
        """The peer's fastest implementation."""
        peers = [name for name in self.times if name in EXPERTS]
        return min(peers, key=lambda name: statistics.median(self.times[name]))

    def row(self) -> dict[str, Any]:
        """Return medians in milliseconds and ratios."""
        median = {name: round(statistics.median(t) * 1e3, 3) for name, t in self.times.items()}
        least = {name: min(t) for name, t in self.times.items()}
        return {
            "mixture": self.case,
            "part": self.part,
            "mode": self.mode,
            "batch": self.batch,
            "threads": self.threads,
            "layers": self.layers,
            "vocab": self.vocab,
            "ours_ms": median["ours"],
            "peer_ms": median[self.best],
            "floor_ms": median["floor"],
            "products_ms": median.get("products", ""),
            "of_floor": round(self.ratio("floor"), 3),
            "of_products": round(self.ratio("products"), 3) if "products" in self.times else "",
            "of_floor_minima": round(least["ours"] / least["floor"], 3),
            "of_peer": round(self.ratio(self.best), 3),
            "of_peer_minima": round(least["ours"] / least[self.best], 3),
            "peer_setting": self.best,
            "turns": len(self.times["ours"]),
            "met": self._met(),
        }

    def _met(self) -> str:
        """Whether the whole model keeps the limits; nothing is asked of a layer alone."""
        if self.part != "model":
            return ""
        peer = PEER_LIMITS.get(self.mode, 1 / 1.15 if self.case.startswith("8 ") else 1.0)
        floor = FLOOR_LIMITS.get(self.mode)
        kept = self.ratio(self.best) <= peer and (floor is None or self.ratio("floor") <= floor)
        return "yes" if kept else "no"


def model_works(models: Models, mode: str, batch: int, sizes: Sizes) -> dict[str, Work]:
    """Return the runs of whole models."""
    works = {
        "ours": works_of(mode, Package(models.ours), batch, sizes),
        "floor": works_of(mode, Package(models.floor), batch, sizes),
    }
    for name in _implementations(mode):
        models.peer.set_experts_implementation(name)
        run = works_of(mode, Peer(models.peer), batch, sizes)
        works[name] = partial(_with_experts, models.peer, name, run)
    return works


def layer_works(models: Models, mode: str, batch: int, sizes: Sizes) -> dict[str, Work]:
    """Return the runs of the first layer's mixture."""
    x = torch.randn(batch, 1 if mode == "decode" else sizes.length, WIDTH)
    moe = models.ours.text.layers[0].moe
    theirs = models.peer.model.layers[0].mlp
    dense = models.floor.text.layers[0].swiglu
    works = {
        "ours": partial(_run, lambda x: moe(x, None, None), x, mode, list(moe.parameters())),
        "floor": partial(_run, dense, x, mode, list(dense.parameters())),
        "products": products(moe, x, mode == "training"),
    }
    for name in _implementations(mode):
        run = partial(_run, theirs, x, mode, list(theirs.parameters()))
        works[name] = partial(_with_experts, models.peer, name, run)
    return works


def products(moe: Any, x: Tensor, training: bool) -> Work:
    """Return the matrix products of the experts that some tokens go to, on random rows.

    In training also those of the gradients: of the rows and of all matrices. Everything lies ready
    and every result has its place.
    """
    with torch.no_grad():
        picks = moe.router(x, None, None).pick.flatten().bincount().tolist()
    expert = moe.expert
    *first, last = [m.weight.detach() for m in (expert.gate, expert.up, expert.down)]
    hit = [(e, count) for e, count in enumerate(picks) if count]
    width, hidden = first[0].shape[2], first[0].shape[1]
    rows = [torch.randn(count, width) for _, count in hit]
    between = [[torch.randn(count, hidden) for _ in first] for _, count in hit]
    out = [torch.empty(count, width) for _, count in hit]
    grads = [torch.empty_like(m) for m in (*first, last)] if training else []

    def forward(e: int, row: Tensor, inner: list[Tensor], y: Tensor) -> None:
        # a few rows read a matrix faster when it stands on the left
        if len(row) < 8:
            for matrix in first:
                torch.mm(matrix[e], row.t())
            torch.mm(last[e], inner[0].t())
            return
        for matrix, h in zip(first, inner, strict=True):
            torch.mm(row, matrix[e].t(), out=h)
        torch.mm(inner[0], last[e].t(), out=y)

    def backward(e: int, row: Tensor, inner: list[Tensor], y: Tensor) -> None:
        torch.mm(y, last[e], out=inner[0])
        torch.mm(y.t(), inner[0], out=grads[-1][e])
        for grad, h in zip(grads, inner, strict=False):
            torch.mm(h.t(), row, out=grad[e])
        torch.mm(inner[0], first[0][e], out=y)
        for matrix, h in zip(first[1:], inner[1:], strict=True):
            y.addmm_(h, matrix[e])

    @torch.no_grad()
    def run() -> None:
        for step in (forward, backward) if training else (forward,):
            for (e, _), row, inner, y in zip(hit, rows, between, out, strict=True):
                step(e, row, inner, y)

    return run


def _implementations(mode: str) -> list[str]:
    return [name for name in EXPERTS if mode == "decode" or name != "batched_mm"]


def _with_experts(model: Any, name: str, run: Work) -> None:
    model.set_experts_implementation(name)
    run()


def _run(
    form: Callable[[Tensor], Tensor], x: Tensor, mode: str, parameters: Sequence[nn.Parameter] = ()
) -> None:
    if mode != "training":
        with torch.no_grad():
            form(x)
        return
    x = x.detach().requires_grad_()
    form(x).sum().backward()  # type: ignore[no-untyped-call]
    for parameter in parameters:
        parameter.grad = None


def measure(
    mixture: Mixture,
    sizes: Sizes,
    parts: Sequence[str],
    modes: Sequence[str],
    thread_counts: Sequence[int],
    seconds: float,
    clock: Clock,
) -> list[Timing]:
    """Time one mixture: every part, mode, batch and number of threads.

    Raises:
        ValueError: if our model is not the peer's.
    """
    models = Models.of(mixture, sizes)
    if (error := models.difference(sizes)) > 1e-3:
        raise ValueError(f"logits differ from the peer's by {error}")
    timings = []
    for part in parts:
        make = model_works if part == "model" else layer_works
        for mode in modes:
            for batch in sizes.step_batches if mode == "decode" else (sizes.batch,):
                works = make(models, mode, batch, sizes)
                for count in thread_counts:
                    with threads(count):
                        times = race(works, seconds, clock)
                    what = (mixture.name, part, mode, batch, count, sizes.layers, sizes.vocab)
                    timings.append(Timing(*what, times))
                for model in (models.ours, models.peer, models.floor):
                    model.zero_grad(set_to_none=True)
    return timings


def race(works: dict[str, Work], seconds: float, clock: Clock) -> dict[str, list[float]]:
    """Find the peer's fastest implementation with a quarter of the time, then race it with ours."""
    peers = {name: work for name, work in works.items() if name in EXPERTS}
    trial = interleave(peers, seconds / 4, 2, clock)
    best = min(trial, key=lambda name: min(trial[name]))
    others = {name: work for name, work in works.items() if name not in EXPERTS or name == best}
    return interleave(others, seconds * 3 / 4, 5, clock)


def save(timings: Sequence[Timing], sizes: Sizes, clock: str, folder: Path) -> None:
    """Write `experts.json` (with every single time) and `experts.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "environment": environment() | {"load": os.getloadavg()[0]},
        "clock": clock,
        "sizes": asdict(sizes),
        "rows": [timing.row() for timing in timings],
        "seconds": [asdict(timing) for timing in timings],
    }
    (folder / "experts.json").write_text(json.dumps(content, indent=1), "utf-8")
    with (folder / "experts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(timings[0].row()), lineterminator="\n")
        writer.writeheader()
        writer.writerows(timing.row() for timing in timings)


def show(timings: Sequence[Timing]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"mixtures of experts, {cpu_name()}")
    for column in timings[0].row():
        table.add_column(column)
    for timing in timings:
        row = timing.row()
        style = {"yes": "green", "no": "red"}.get(row["met"], "")
        table.add_row(*(str(value) for value in row.values()), style=style)
    Console(width=190).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison from the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.experts", description=__doc__)
    parser.add_argument("--cases", nargs="*", type=int, default=list(MIXTURES), choices=MIXTURES)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    parser.add_argument("--threads", nargs="*", type=int, default=[1])
    parser.add_argument("--layers", type=int, default=Sizes.layers)
    parser.add_argument("--vocab", type=int, default=Sizes.vocab)
    parser.add_argument("--seconds", type=float, default=40.0, help="time for each row")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time: for one thread on a busy machine",
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args(arguments)
    sizes = Sizes(layers=options.layers, vocab=options.vocab)
    clock = time.process_time if options.processor_time else time.perf_counter
    torch.manual_seed(0)
    timings: list[Timing] = []
    for experts in options.cases:
        timings += measure(
            MIXTURES[experts],
            sizes,
            options.parts,
            options.modes,
            options.threads,
            options.seconds,
            clock,
        )
        show(timings)
        save(timings, sizes, clock.__name__, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
