"""Times what runs along tokens beside the least that it could take, on this CPU.

The least is the time of a matrix product of as many FLOPs where a form computes, or of a copy of as
many bytes where it does not: every operand and result moved once. Both are measured in the same
process, in turns with the form itself, so that a busy machine slows all alike. A ratio of one is
the floor.

The gradient of a recurrence goes through the tokens from the last to the first, and no operation of
torch does; `reversed` is a copy of as many bytes with what turning operands round and results back
moves, so it is the floor of what torch can do.

Chunks of a stream have six tokens on average. A single `index_select` of the same rows takes 1.25
of the copy and a single `scatter_reduce` 1.56 (8192 x 512); with 64 channels a copy takes less time
than ten calls of torch. The gradient of a maximum compares every token with it, a further pass.
`cut_chunks` makes about twenty passes over integers, 30 ns per token in all.

Example:
    python -m benchmarks.scans --names linear_recurrence --seconds 5
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Work, cpu_name, environment, interleave, threads

#: bytes of a number
WIDTH = 4
#: rows and width of the matrix product whose speed is the floor of what computes
PRODUCT = (2048, 512)
#: memory is given back to the system only at the end, or new pages would be all that is measured
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes:
        name: the primitive.
        size: what is run, for the table.
        inputs: operands that get a gradient.
        form: the operation on them.
        flops: of the forward and of the backward pass, 0 where memory decides.
        moved: numbers read and written by the forward and by the backward pass.
        turned: further numbers that are moved to run backwards.
    """

    name: str
    size: str
    inputs: tuple[Tensor, ...]
    form: Callable[..., Tensor]
    flops: tuple[float, float] = (0.0, 0.0)
    moved: tuple[int, int] = (0, 0)
    turned: int = 0


def runtime(*names: str) -> dict[str, Any]:
    """Return functions of ``codegen/ops``, as a package has them."""
    from tokdsl.emit.functions import collect, merge

    scope: dict[str, Any] = {}
    exec(compile(merge(collect(set(names))), "functional.py", "exec"), scope)
    return scope


def random(*shape: int, positive: bool = False) -> Tensor:
    """Return an operand that gets a gradient."""
    x = torch.rand(shape) if positive else torch.randn(shape)
    return x.requires_grad_()


def recurrence_cases() -> list[Case]:
    """Return what does one product and one sum per number: memory decides."""
    scope = runtime("linear_recurrence", "moving_average", "cumulative_sum")
    recur, average = scope["linear_recurrence"], scope["moving_average"]
    total = scope["cumulative_sum"]
    found = []
    for batch, length, width in ((4, 512, 512), (4, 2048, 512), (1, 4096, 1024), (16, 512, 1024)):
        shape = (batch, length, width)
        n, size = batch * length * width, f"{batch} x {length} x {width}"
        a, b = random(*shape, positive=True), random(*shape)
        found += [
            # a, b -> h; backwards: gradient, a, h -> two gradients
            Case("linear_recurrence", size, (a, b), lambda a, b: recur(a, b, -2),
                 moved=(3 * n, 5 * n), turned=6 * n),
            Case("ema", size, (b,), lambda b: average(b, 0.9, -2), moved=(2 * n, 2 * n),
                 turned=4 * n),
            Case("cumsum", size, (b,), lambda b: total(b, -2), moved=(2 * n, 2 * n),
                 turned=4 * n),
        ]  # fmt: skip
    return found


def attention_cases() -> list[Case]:
    """Return what multiplies matrices: FLOPs decide."""
    scope = runtime("linear_attention")
    attend, tile = scope["linear_attention"], scope["TILE"]
    found = []
    for batch, length, groups, heads, key, value in (
        (2, 1024, 1, 16, 128, 64),  # one key for all heads
        (2, 1024, 8, 8, 64, 64),  # a key for each head
        (2, 1024, 8, 8, 128, 128),
    ):
        tokens = batch * length
        # with the state: read and written, and in both directions; inside of a chunk: scores and
        # their use, and the gradients of both with the scores again
        states = 4 * heads * key * value
        chunk = 2 * tile * (groups * key + heads * value)
        back = 2 * states + 2 * tile * (3 * groups * key + 2 * heads * value)
        q, k = random(batch, length, groups, key), random(batch, length, groups, key)
        v, step = random(batch, length, heads, value), random(batch, length, heads, positive=True)

        def form(q: Tensor, k: Tensor, v: Tensor, step: Tensor) -> Tensor:
            result: Tensor = attend(q, k, v, -0.1 * step.unsqueeze(-1))
            return result

        size = f"{batch} x {length}, {groups}/{heads} heads, {key} x {value}"
        flops = (float(tokens * (states + chunk)), float(tokens * back))
        found.append(Case("linear_attention", size, (q, k, v, step), form, flops))
    return found


def chunk_cases() -> list[Case]:
    """Return what goes between the tokens of a stream and their chunks: memory decides."""
    scope = runtime("cut_chunks", "pool_chunks", "upsample_chunks", "chunk_members")
    found = []
    for batch, length, width in ((4, 2048, 512), (16, 512, 512), (4, 2048, 64)):
        flags = torch.rand(batch, length) < 1 / 6
        chunks = scope["cut_chunks"](flags, longest=16)
        tokens, slots = batch * length, batch * chunks.handed
        size = f"{batch} x {length} x {width}"
        n, m = tokens * width, slots * width

        def pool(x: Tensor, how: str, chunks: Any = chunks) -> Tensor:
            result: Tensor = scope["pool_chunks"](x, chunks, dim=-2, how=how)
            return result

        def hold(y: Tensor, chunks: Any = chunks) -> Tensor:
            result: Tensor = scope["upsample_chunks"](y, chunks, dim=-2)
            return result

        def seat(x: Tensor, chunks: Any = chunks) -> Tensor:
            result: Tensor = scope["chunk_members"](x, chunks, dim=-2)
            return result

        x, y = random(batch, length, width), random(batch, chunks.handed, width)
        seats = seat(x).numel()
        found += [
            Case("pool_mean", size, (x,), partial(pool, how="mean"), moved=(n + m, n + m)),
            # backwards: the tokens and the maxima once more, to see which of them won
            Case("pool_max", size, (x,), partial(pool, how="max"), moved=(n + m, 2 * n + 2 * m)),
            Case("pool_first", size, (x,), partial(pool, how="first"), moved=(2 * m, n + m)),
            Case("upsample_chunks", size, (y,), hold, moved=(n + m, n + m)),
            Case("chunk_members", size, (x,), seat, moved=(n + seats, 2 * n)),
        ]
    for batch, length in ((16, 512), (16, 65536)):
        flags = torch.rand(batch, length) < 1 / 6

        def cut(flags: Tensor) -> Tensor:
            result: Tensor = scope["cut_chunks"](flags).number
            return result

        # a byte becomes three integers: number, newest chunk and place
        moved = batch * length * (1 + 3 * 8) // WIDTH
        found.append(Case("cut_chunks", f"{batch} x {length}", (flags,), cut, moved=(moved, 0)))
    return found


def all_cases() -> list[Case]:
    """Return every case; further primitives along tokens add their own list here."""
    return [*recurrence_cases(), *attention_cases(), *chunk_cases()]


def forward_of(case: Case) -> Work:
    """Return a run of the form alone."""

    def work() -> None:
        with torch.no_grad():
            case.form(*case.inputs)

    return work


def training_of(case: Case) -> Work:
    """Return a run of the form and its gradients."""
    given = torch.randn_like(case.form(*case.inputs))

    def work() -> None:
        torch.autograd.grad(case.form(*case.inputs), case.inputs, given)

    return work


def quick(work: Callable[[], object]) -> Work:
    """Return a run whose result is dropped."""

    def run() -> None:
        work()

    return run


def copy_of(numbers: int) -> Work:
    """Return a copy that reads and writes this many numbers in all."""
    source, target = torch.randn(numbers // 2), torch.empty(numbers // 2)
    return quick(lambda: target.copy_(source))


def product_of() -> Work:
    """Return one matrix product."""
    rows, width = PRODUCT
    x, y, z = torch.randn(rows, width), torch.randn(width, width), torch.empty(rows, width)
    return quick(lambda: torch.mm(x, y, out=z))


@dataclass
class Row:
    """One line of the table."""

    case: Case
    mode: str
    ours: float
    floor: float
    kind: str
    turned: float | None = None

    def cells(self) -> dict[str, str]:
        """Return the line as text."""
        return {
            "primitive": self.case.name,
            "size": self.case.size,
            "mode": self.mode,
            "ours_ms": f"{self.ours * 1e3:.3f}",
            "floor": self.kind,
            "floor_ms": f"{self.floor * 1e3:.3f}",
            "ratio": f"{self.ours / self.floor:.2f}",
            "ratio_reversed": f"{self.ours / self.turned:.2f}" if self.turned else "",
        }


def measure(case: Case, mode: str, seconds: float, clock: Callable[[], float]) -> Row:
    """Time one case beside its floor; medians of runs in turns."""
    training = mode == "training"
    flops = sum(case.flops) if training else case.flops[0]
    moved = sum(case.moved) if training else case.moved[0]
    works: dict[str, Work] = {"ours": training_of(case) if training else forward_of(case)}
    if flops:
        works["floor"] = product_of()
    else:
        works["floor"] = copy_of(moved)
        if training:
            works["turned"] = copy_of(moved + case.turned)
    times = interleave(works, seconds, 7, clock)
    medians = {name: statistics.median(found) for name, found in times.items()}
    floor = medians["floor"]
    if flops:
        rows, width = PRODUCT
        floor *= flops / (2 * rows * width * width)
    kind = "matrix product" if flops else "copy"
    return Row(case, mode, medians["ours"], floor, kind, medians.get("turned"))


def show(rows: Sequence[Row], count: int) -> None:
    """Print the table; a ratio of one is the floor."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"time / floor, {count} thread(s), {cpu_name()}")
    for column in rows[0].cells():
        table.add_column(column)
    for row in rows:
        table.add_row(
            *row.cells().values(), style="green" if row.ours <= 1.5 * row.floor else "red"
        )
    Console(width=140).print(table)


def save(rows: Sequence[Row], count: int, folder: Path) -> None:
    """Write `scans.json` (with what the numbers depend on) and `scans.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "environment": {**environment(), "threads": count},
        "rows": [row.cells() for row in rows],
    }
    (folder / "scans.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    with (folder / "scans.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0].cells()))
        writer.writeheader()
        writer.writerows(row.cells() for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurements from the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.scans", description=__doc__)
    parser.add_argument("--names", nargs="*", help="primitives; all without it")
    parser.add_argument("--modes", nargs="*", default=["forward", "training"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each row")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time: for one thread on a busy machine",
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args(arguments)
    clock = time.process_time if options.processor_time else time.perf_counter
    torch.manual_seed(0)
    with threads(options.threads):
        chosen = [c for c in all_cases() if not options.names or c.name in options.names]
        rows = [
            measure(case, mode, options.seconds, clock)
            for case in chosen
            for mode in options.modes
            if mode == "forward" or case.inputs[0].requires_grad
        ]
    show(rows, options.threads)
    save(rows, options.threads, options.out)
    return 0


def again() -> None:
    """Start again with an allocator that keeps memory; it reads its settings at the start only."""
    if not os.environ.keys() >= KEEP_MEMORY.keys():
        os.environ.update(KEEP_MEMORY)
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.scans", *sys.argv[1:]])


if __name__ == "__main__":
    again()
    sys.exit(main())
