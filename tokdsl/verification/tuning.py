"""Choosing the configurations of a package's kernels by measuring them on this machine's GPU.

A run of the model is recorded: which operations of ``kernels.py`` it calls with which tensors, and
which configurations each of them reads. Then every candidate of a configuration is tried on the
calls that read it, the others being at their best so far.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tokdsl.files import write_atomic

Configuration = dict[str, int]
#: milliseconds of a call
Timer = Callable[[Callable[[], object]], float]

#: the file beside ``kernels.py`` that it reads
FILE = "tuned.json"
#: different calls of one operation that are kept; their tensors stay in memory
KEPT = 4
#: by so much a candidate must be faster than the default, or the default stays
GAIN = 0.02


@dataclass
class Call:
    """An operation with arguments of one shape.

    Attributes:
        operation: what torch calls.
        args: the arguments of the first such call.
        count: how many there were.
        kernels: names of the configurations it reads.
    """

    operation: Callable[..., object]
    args: tuple[Any, ...]
    count: int = 1
    kernels: tuple[str, ...] = ()

    def run(self) -> object:
        """Call it again."""
        return self.operation(*self.args)


@dataclass(frozen=True)
class Choice:
    """What was found for one configuration.

    Attributes:
        times: milliseconds of each candidate over all calls, in their order; None: it cannot run.
        best: the number of the best candidate.
    """

    kernel: str
    candidates: Sequence[Configuration]
    times: Sequence[float | None]
    best: int

    @property
    def gain(self) -> float:
        """How many times faster the best is than the default."""
        default, best = self.times[0], self.times[self.best]
        return default / best if default and best else 1.0


@dataclass
class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    namespace: str
    calls: dict[Any, Call] = field(default_factory=dict)
    per_operation: dict[Any, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.namespace == self.namespace:
            self._keep(func, args)
        return func(*args, **(kwargs or {}))

    def _keep(self, operation: Any, args: tuple[Any, ...]) -> None:
        key = operation, *(_form(x) for x in args)
        if key in self.calls:
            self.calls[key].count += 1
        elif self.per_operation.get(operation, 0) < KEPT:
            self.per_operation[operation] = self.per_operation.get(operation, 0) + 1
            self.calls[key] = Call(operation, args)


def _form(x: object) -> object:
    """Return what makes two arguments alike for a kernel."""
    if isinstance(x, Tensor):
        return tuple(x.shape), tuple(x.stride()), x.dtype
    return tuple(_form(y) for y in x) if isinstance(x, (list, tuple)) else x


def record(kernels: ModuleType, run: Callable[[], object]) -> list[Call]:
    """Return the calls of a module's operations during a run, with what each of them reads.

    Args:
        kernels: the ``kernels.py`` of a package.
        run: uses the model, forward and backward.
    """
    with _Recorder(kernels.NAMESPACE) as recorder:
        run()
    calls = list(recorder.calls.values())
    for call in calls:
        read: dict[str, None] = {}
        with _configured(kernels, {}, read):
            call.run()
        call.kernels = tuple(read)
    return calls


@contextmanager
def _configured(
    kernels: ModuleType, chosen: Mapping[str, Configuration], read: dict[str, None]
) -> Iterator[None]:
    """Let launchers read some configurations, the defaults of the others, and note what they read.

    What was measured before is not used.
    """
    plain = kernels.config

    def config(kernel: str) -> Configuration:
        read[kernel] = None
        return dict(chosen.get(kernel) or kernels.CONFIGS[kernel][0])

    vars(kernels)["config"] = config
    try:
        yield
    finally:
        vars(kernels)["config"] = plain


def choose(
    kernels: ModuleType,
    calls: Sequence[Call],
    timer: Timer,
    show: Callable[[Choice], None] = lambda choice: None,
) -> list[Choice]:
    """Return the best candidate of every configuration that the calls read.

    Args:
        kernels: the ``kernels.py`` of a package.
        calls: what it was seen to do.
        timer: measures a call.
        show: called with each choice as it is known.
    """
    chosen: dict[str, Configuration] = {}
    found = []
    for kernel in dict.fromkeys(name for call in calls for name in call.kernels):
        users = [call for call in calls if kernel in call.kernels]
        candidates = kernels.CONFIGS[kernel]
        times = [
            _time(kernels, users, {**chosen, kernel: candidate}, timer) for candidate in candidates
        ]
        choice = Choice(kernel, candidates, times, _best(times))
        chosen[kernel] = candidates[choice.best]
        found.append(choice)
        show(choice)
    return found


def _best(times: Sequence[float | None]) -> int:
    """Return the fastest candidate; the default if it is as good."""
    able = [(t, i) for i, t in enumerate(times) if t is not None]
    if not able:
        return 0
    fastest, best = min(able)
    default = times[0]
    return 0 if default is not None and default <= fastest * (1 + GAIN) else best


def _time(
    kernels: ModuleType, calls: Iterable[Call], chosen: Mapping[str, Configuration], timer: Timer
) -> float | None:
    """Return the time of calls with some configurations, or None where they cannot run."""
    from triton.errors import TritonError  # type: ignore[import-untyped]

    with _configured(kernels, chosen, {}):
        try:
            return sum(call.count * timer(call.run) for call in calls)
        except TritonError:
            return None  # too little shared memory, too many threads, a shape it refuses


def gpu() -> str | None:
    """Return the name of the GPU, as ``kernels.py`` asks for it, or nothing."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def example_run(package: Any, batch: int, length: int, steps: int) -> Callable[[], object]:
    """Return what trains a package's model on random tokens once and decodes some, on the GPU.

    Args:
        package: a `tokdsl.training.package.Package`.
        batch: sequences.
        length: tokens of each.
        steps: tokens that are decoded one by one after a prompt of this length.

    Raises:
        TrainingError: the model takes more than tokens, and what a tokenizer gives beside them.
    """
    package.check_inputs()
    model = package.module.Model().to("cuda", torch.bfloat16)
    vocabulary = package.tokenizer.vocab_size
    total = length + steps
    ids = torch.randint(vocabulary, (batch, total), device="cuda")
    flags = [torch.rand(batch, total, device="cuda") < 0.25 for _ in package.beside()]
    for flag in flags:
        flag[:, 0] = True

    def run() -> None:
        model.loss(ids[:, :length], *(f[:, :length] for f in flags)).total.backward()
        model.zero_grad()
        if not hasattr(model, "new_state"):
            return
        with torch.no_grad():
            state = model.new_state(batch)
            model.prefill(ids[:, :length], state, *(f[:, :length] for f in flags))
            for t in range(length, total):
                model.step(ids[:, t : t + 1], state, *(f[:, t : t + 1] for f in flags))

    return run


def milliseconds(run: Callable[[], object], repetitions: int = 20) -> float:
    """Return the median time of a call on the GPU, each with a cold cache."""
    for _ in range(3):
        run()
    flushed = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(repetitions):
        flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return float(statistics.median(times))


def store(folder: Path, device: str, choices: Iterable[Choice]) -> Path:
    """Write the best configurations of a device beside ``kernels.py``; other devices' stay.

    Kernels of this device that were not measured now keep what they had.

    Returns:
        The file.
    """
    path = folder / FILE
    known: dict[str, dict[str, Configuration]] = {}
    if path.exists():
        try:
            read = json.loads(path.read_text("utf-8"))
            known = {str(name): dict(found) for name, found in read.items()}
        except (ValueError, AttributeError, TypeError):
            known = {}  # nobody could read it before either
    measured = {choice.kernel: dict(choice.candidates[choice.best]) for choice in choices}
    known[device] = {**known.get(device, {}), **measured}
    ordered = {name: dict(sorted(found.items())) for name, found in sorted(known.items())}
    write_atomic(path, json.dumps(ordered, indent=2) + "\n")
    return path
