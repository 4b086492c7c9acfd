"""Times every kernel on this machine's GPU, beside what the device can do and beside its peers.

What the device can do is measured in the same run: the fastest product of matrices, and the
fastest copy. The calls are the launches of ``tests/kernels/launches``. They are made once; the
kernels that they launch are then captured and replayed, so that neither the host's work nor the
making of the arguments is timed, each time with a cold cache. A peer is timed in the same way on
tensors of the same shapes; which of them are missing here is said.

The share of the roofline is the time that the operations or the bytes need at least, whichever is
longer, over the time measured.

Example:
    python -m benchmarks.kernels
    python -m benchmarks.kernels attend experts --dtype float16 --repetitions 50
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokdsl.emit.kernels import description, templates

RESULTS = Path(__file__).parent / "results"
#: larger than the cache of any device
FLUSHED = 512 * 2**20


@dataclass(frozen=True)
class Peaks:
    """What a device reaches with plain calls.

    Attributes:
        flops: operations a second in a product of matrices.
        bytes: read and written a second in a copy.
    """

    flops: float
    bytes: float

    def least(self, flops: float, moved: float) -> float:
        """Return the seconds that a computation needs at least."""
        return max(flops / self.flops, moved / self.bytes)


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: a kernel, "all" of a launch's kernels, or a peer.
        tflops: operations of the definition over time, where they are counted.
        gbps: bytes of the definition over time.
        share: of the roofline; of a whole launch only.
        ratio: time of a peer over time of the launch's kernels that do the same.
    """

    template: str
    launch: str
    name: str
    dtype: str
    ms: float
    tflops: float | None = None
    gbps: float | None = None
    share: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Launch:
    """A kernel as a launcher launched it.

    Attributes:
        again: launches it once more.
        tensors: what it was given.
        is_backward: whether autograd was going back.
    """

    kernel: str
    again: Callable[[], object]
    tensors: tuple[Tensor, ...]
    is_backward: bool = False


# --------------------------------------------------------------------------- time


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Yield a list that all launches inside are added to."""
    from triton.runtime.jit import JITFunction

    plain, found = JITFunction.run, list[Launch]()

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **more: Any) -> Any:
        again = partial(plain, self, *args, grid=grid, warmup=warmup, **more)
        tensors = tuple(x for x in (*args, *more.values()) if isinstance(x, Tensor))
        goes_back = torch._C._current_graph_task_id() >= 0
        found.append(Launch(self.fn.__name__, again, tensors, goes_back))
        return again()

    JITFunction.run = run
    try:
        yield found
    finally:
        JITFunction.run = plain


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """Return a call that repeats what another does on the GPU; itself if it waits for the GPU."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            call()
    except RuntimeError:
        torch.cuda.synchronize()
        return call
    return graph.replay


def seconds(call: Callable[[], object], repetitions: int) -> float:
    """Return the median time of a call on the GPU, each time with a cold cache."""
    replay = captured(call)
    flushed = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(repetitions):
        flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def peaks(dtype: torch.dtype, repetitions: int) -> Peaks:
    """Measure the fastest product of matrices and the fastest copy."""
    flops = 0.0
    for size in (4096, 8192):
        a, b = (torch.randn(size, size, dtype=dtype, device="cuda") for _ in range(2))
        flops = max(flops, 2 * size**3 / seconds(lambda a=a, b=b: a @ b, repetitions))
    x = torch.empty(2**30, dtype=torch.int8, device="cuda")
    y = torch.empty_like(x)
    return Peaks(flops, 2 * x.numel() / seconds(lambda: y.copy_(x), repetitions))


# --------------------------------------------------------------------------- rows


def bytes_of(launches: Iterable[Launch]) -> int:
    """Return the bytes of all distinct memory that launches are given."""
    memory = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for launch in launches
        for x in launch.tensors
    }
    return sum(memory.values())


def work_of(
    template: str, launch: str, dtype: torch.dtype, launches: Sequence[Launch]
) -> tuple[float, float]:
    """Return operations and bytes: what the launch's module says, or the bytes it is given."""
    module = importlib.import_module(f"tests.kernels.launches.{template}")
    stated: Mapping[str, tuple[float, float]] = getattr(module, "work", dict)()
    if launch not in stated:
        return 0.0, float(bytes_of(launches))
    flops, moved = stated[launch]
    return flops, moved * dtype.itemsize / 2


def launch_row(
    key: tuple[str, str, str], time: float, work: tuple[float, float], limits: Peaks
) -> Row:
    """Return the row of all kernels of a launch."""
    flops, moved = work
    return Row(
        *(key[0], key[1], "all", key[2]),
        ms=time * 1e3,
        tflops=flops / time / 1e12 if flops else None,
        gbps=moved / time / 1e9,
        share=limits.least(flops, moved) / time,
    )


def measure(template: str, dtype: torch.dtype, limits: Peaks, repetitions: int) -> list[Row]:
    """Return the rows of a template's launches."""
    rows = []
    kind = str(dtype).removeprefix("torch.")
    module = importlib.import_module(f"tests.kernels.launches.{template}")
    for name, launch in module.launches().items():
        torch.manual_seed(0)
        with torch.device("cuda"), recorded() as found:
            launch(dtype)
        torch.cuda.synchronize()

        def everything(found: list[Launch] = found) -> None:
            for each in found:
                each.again()

        work = work_of(template, name, dtype, found)
        rows.append(
            launch_row((template, name, kind), seconds(everything, repetitions), work, limits)
        )
        by_kernel: dict[str, float] = {}
        for each in found:
            time = seconds(each.again, repetitions)
            by_kernel[each.kernel] = by_kernel.get(each.kernel, 0.0) + time
        rows += [Row(template, name, k, kind, t * 1e3) for k, t in by_kernel.items()]
    return rows


def text(row: Row) -> str:
    """Return a row for a terminal."""
    more = [
        f"{row.tflops:8.1f} TFLOP/s" if row.tflops is not None else " " * 16,
        f"{row.gbps:8.0f} GB/s" if row.gbps is not None else " " * 13,
        f"{100 * row.share:4.0f}% of the roofline" if row.share is not None else "",
        f"{row.ratio:.2f} times ours" if row.ratio is not None else "",
    ]
    what = f"{row.template}/{row.launch} {row.name}"
    return f"{what:<60} {row.dtype:<9} {row.ms:9.4f} ms {' '.join(more)}".rstrip()


def write(rows: Sequence[Row], limits: Mapping[str, Peaks], missing: Sequence[str]) -> Path:
    """Write the results of a device, with what they were measured with; return the CSV file."""
    import triton

    device = torch.cuda.get_device_name()
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    table = RESULTS / f"kernels.{name}.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    content = {
        "device": device,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "peaks": {dtype: asdict(each) for dtype, each in limits.items()},
        "missing_peers": list(missing),
        "rows": [asdict(row) for row in rows],
    }
    table.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; without a GPU say so."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("templates", nargs="*", help="only these")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    parser.add_argument("--repetitions", type=int, default=30)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.kernels times kernels on a GPU, and torch sees none", file=sys.stderr)
        return 2
    from benchmarks import kernel_peers

    rows: list[Row] = []
    limits = {d: peaks(getattr(torch, d), options.repetitions) for d in options.dtype}
    for dtype, peak in limits.items():
        print(f"{dtype}: {peak.flops / 1e12:.0f} TFLOP/s, {peak.bytes / 1e9:.0f} GB/s measured")
    for template in options.templates or templates():
        for dtype in options.dtype:
            if dtype not in description(template)["dtypes"]:
                continue
            kind = getattr(torch, dtype)
            found = measure(template, kind, limits[dtype], options.repetitions)
            found += kernel_peers.measure(template, kind, options.repetitions)
            for row in found:
                print(text(row), flush=True)
            rows += found
    missing = kernel_peers.missing()
    for line in missing:
        print(f"not compared: {line}")
    print(f"wrote {write(rows, limits, missing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
