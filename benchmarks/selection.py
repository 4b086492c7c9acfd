"""Times the search for the best keys in blocks beside the one through all keys, on this CPU.

A decoder that has read `keys` tokens chooses for a few more, one step for all of them. The search
in blocks scores the means of all blocks and then the tokens of `near` of them; the flat one scores
all tokens. Both are the emitted torch form, run in turns. Keys gather around one centre per block,
as far as `clustered` says (0: independent): the choices are compared by the size of what both chose
over the size of what either did.

Example:
    python -m benchmarks.selection --keys 8192 32768 --seconds 5
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import cpu_name, interleave, threads
from tokdsl.driver import build
from tokdsl.training.package import import_package

SPEC = Path(__file__).parent / "specs" / "selection.tok"
HEADS, DIM, TOP, SIZE, NEAR = 16, 64, 1024, 128, 16


@dataclass(frozen=True)
class Row:
    """One length.

    Attributes:
        faster: ratio of the times.
        scored_flat: products of a query with a key in the flat search.
        scored_blocks: products with a mean or a key in the search in blocks.
        expected: ratio of these.
        same_independent: shared choices over all choices where keys have no centre.
        same_half: where they are half as far from it.
        same_clustered: where they are near it.
    """

    keys: int
    queries: int
    flat_ms: float
    blocks_ms: float
    faster: float
    scored_flat: int
    scored_blocks: int
    expected: float
    same_independent: float
    same_half: float
    same_clustered: float
    runs: int


def searcher(near: int) -> Any:
    """Return the emitted search."""
    folder = Path(tempfile.mkdtemp())
    settings = {"heads": HEADS, "dim": DIM, "top": TOP, "size": SIZE, "near": near}
    built = build(SPEC, folder, {name: str(value) for name, value in settings.items()})
    assert built.directory is not None
    return import_package(built.directory).Model().eval()


def inputs(count: int, keys: Tensor) -> Tensor:
    """Return random queries and weights with the given keys, (1, T, width)."""
    queries, weights = torch.randn(count, HEADS * DIM), torch.rand(count, HEADS)
    return torch.cat((queries, keys, weights), dim=-1).unsqueeze(0)


def keys_of(count: int, clustered: float) -> Tensor:
    """Return keys around one centre per block."""
    centre = torch.randn(-(-count // SIZE), DIM).repeat_interleave(SIZE, 0)[:count]
    return clustered * centre + (1 - clustered) * torch.randn(count, DIM)


def read(model: Any, keys: Tensor) -> Any:
    """Return the state after a text: only keys are kept, so that nothing is chosen on the way."""
    state = model.new_state(1)
    state.clock.length = len(keys)
    state.out.k_kept.append(keys.unsqueeze(0))
    if hasattr(state.out, "means"):
        block = torch.arange(len(keys)).unsqueeze(0) // SIZE
        ones = torch.ones(1, len(keys))
        state.out.means.add(keys.unsqueeze(0), ones, block, -(-len(keys) // SIZE))
    return state


def work(model: Any, state: Any, x: Tensor) -> Callable[[], Tensor]:
    """Return one step after which the state is as before."""
    length = state.clock.length
    means = getattr(state.out, "means", None)
    saved = means.snapshot() if means is not None else None

    def run() -> Tensor:
        found: Tensor = model.step(x, state)
        state.clock.length = length
        state.out.k_kept.crop(length)
        if means is not None:
            means.restore(saved)
        return found

    return run


def _quietly(run: Callable[[], Tensor]) -> None:
    run()


def shared(one: Tensor, other: Tensor) -> float:
    """Return the mean size of what both chose over that of what either did."""
    ratios = []
    for a, b in zip(one[0].tolist(), other[0].tolist(), strict=True):
        mine, theirs = set(a) - {-1.0}, set(b) - {-1.0}
        ratios.append(len(mine & theirs) / len(mine | theirs))
    return statistics.mean(ratios)


def measure(keys: int, queries: int, seconds: float, least: int) -> Row:
    """Time one length and compare the choices."""
    flat, blocks = searcher(0), searcher(NEAR)
    same: list[float] = []
    times: dict[str, list[float]] = {}
    with torch.no_grad():
        for clustered in (0.0, 0.5, 0.8):
            held = keys_of(keys, clustered)
            x = inputs(queries, keys_of(queries, clustered))
            works = {
                name: work(model, read(model, held), x)
                for name, model in (("flat", flat), ("blocks", blocks))
            }
            same.append(shared(works["flat"](), works["blocks"]()))
        times = interleave({n: partial(_quietly, run) for n, run in works.items()}, seconds, least)
    one, other = (statistics.median(times[name]) * 1e3 for name in ("flat", "blocks"))
    every, some = keys + queries, -(-(keys + queries) // SIZE) + NEAR * SIZE
    numbers = (round(one, 2), round(other, 2), round(one / other, 2))
    expected = round(every / some, 2)
    none, half, near = (round(value, 4) for value in same)
    runs = len(times["flat"])
    return Row(keys, queries, *numbers, every, some, expected, none, half, near, runs)


def save(rows: Sequence[Row], count: int, folder: Path) -> None:
    """Write a table; what it was measured on is a comment at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "selection.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in rows)
        load = os.getloadavg()[0]
        file.write(
            f"# {cpu_name()}, {count} thread(s), load {load:.1f}, torch {torch.__version__}; "
            f"{HEADS} heads of {DIM}, top {TOP}, {NEAR} blocks of {SIZE}\n"
        )


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    names = [f.name for f in fields(Row)]
    lines = [names, *([str(getattr(row, name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    for line in lines:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurements from the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.selection", description=__doc__)
    parser.add_argument("--keys", nargs="*", type=int, default=[8192, 32768, 131072])
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each row")
    parser.add_argument("--least", type=int, default=5, help="runs of each search at least")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    with threads(options.threads):
        rows = [measure(n, options.queries, options.seconds, options.least) for n in options.keys]
    show(rows)
    save(rows, options.threads, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
