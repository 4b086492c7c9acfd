"""Times built models beside the same architectures of Hugging Face transformers, on this CPU.

Both run in the same process, in turns, so that a busy machine slows both alike; the table gives the
ratio of medians, ours over the peer's. The peer runs with whichever of its own settings is fastest.

Example:
    python -m benchmarks.peers --models llama mixtral --threads 1 2 --out build/benchmarks
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

MODES = ("forward", "training", "decode")
EXPERTS = ("grouped_mm", "eager", "batched_mm")


@dataclass(frozen=True)
class Case:
    """One architecture at one size.

    Attributes:
        name: name in the table.
        peer_type: model type of the peer, as in its configuration registry.
        peer: configuration values of the peer.
        spec: source of our model, relative to the repository.
        ours: parameters that give our model the same sizes.
        sparse: the peer has a choice of expert implementations.
    """

    name: str
    peer_type: str
    peer: dict[str, Any]
    spec: str
    ours: dict[str, Any]
    sparse: bool = False


@dataclass(frozen=True)
class Sizes:
    """What is run: `batch` x `length` tokens at once, and single steps after `cached` tokens."""

    batch: int = 4
    length: int = 512
    cached: int = 1000
    step_batches: tuple[int, ...] = (1, 4)
    vocab: int = 32000
    layers: int = 8


def cases(sizes: Sizes) -> dict[str, Case]:
    """Return the architectures to compare, at width 512."""
    peer = {
        "vocab_size": sizes.vocab,
        "hidden_size": 512,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    ours = {"vocab": sizes.vocab, "d": 512, "layers": sizes.layers, "heads": 8}

    def mixture(name: str, kind: str, experts: int, top: int, hidden: int) -> Case:
        count = "num_local_experts" if kind == "mixtral" else "num_experts"
        chosen = {count: experts, "num_experts_per_tok": top, "intermediate_size": hidden}
        same = {"experts": experts, "top": top, "hidden": hidden}
        if kind == "olmoe":  # every query head has its own key/value head
            chosen |= {"num_key_value_heads": 8}
        else:
            same |= {"kv_heads": 4}
        return Case(
            name=name,
            peer_type=kind,
            peer=peer | chosen | {"output_router_logits": True},
            spec=f"examples/{kind}.tok",
            ours=ours | same,
            sparse=True,
        )

    dense = Case(
        name="llama",
        peer_type="llama",
        peer=peer | {"intermediate_size": 1408},
        spec="examples/llama.tok",
        ours=ours | {"hidden": 1408, "kv_heads": 4},
    )
    found = (
        dense,
        mixture("mixtral", "mixtral", 8, 2, 1024),
        mixture("olmoe-32", "olmoe", 32, 4, 256),
        mixture("olmoe-64", "olmoe", 64, 8, 128),
    )
    return {case.name: case for case in found}


class Runner(Protocol):
    """What is timed, the same for both sides."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits; ids (B, T) -> (B, T, V)."""

    def loss(self, ids: Tensor) -> Tensor:
        """Return the training objective as a scalar; ids (B, T)."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the trained tensors."""

    def prefill(self, ids: Tensor) -> None:
        """Take a prompt into a new cache; ids (B, S)."""

    def step(self, ids: Tensor) -> Tensor:
        """Take one token of each row; ids (B, 1) -> (B, 1, V)."""

    def rewind(self) -> None:
        """Forget everything after the prompt; not timed."""


class Peer:
    """A model of transformers with its own cache."""

    def __init__(self, model: Any, static_cache: bool = False) -> None:
        """Take a built model."""
        self.model, self.static_cache = model, static_cache
        self._cache: Any = None
        self._prompt = 0

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits

    def loss(self, ids: Tensor) -> Tensor:
        """Return the model's own loss, balance terms included."""
        loss: Tensor = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        return loss

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the trained tensors."""
        return list(self.model.parameters())

    def prefill(self, ids: Tensor) -> None:
        """Take a prompt into a new cache."""
        from transformers import DynamicCache, StaticCache

        config = self.model.config
        if self.static_cache:
            self._cache = StaticCache(config=config, max_cache_len=ids.shape[1] + 24)
        else:
            self._cache = DynamicCache(config=config)
        with self._plain_experts():
            self.model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._prompt = ids.shape[1]

    @contextmanager
    def _plain_experts(self) -> Iterator[None]:
        """Run the loop over experts: the batched form would copy a matrix for each prompt token."""
        chosen = self.model.config._experts_implementation
        if chosen is None:
            yield
            return
        self.model.set_experts_implementation("eager")
        yield
        self.model.set_experts_implementation(chosen)

    def step(self, ids: Tensor) -> Tensor:
        """Take one token of each row."""
        output = self.model(input_ids=ids, past_key_values=self._cache, use_cache=True)
        logits: Tensor = output.logits
        return logits

    def rewind(self) -> None:
        """Forget the token after the prompt; a static cache has no verb for it."""
        if self.static_cache:
            for layer in self._cache.layers:
                layer.cumulative_length.fill_(self._prompt)
        else:
            self._cache.crop(-1)


class Package:
    """A built model."""

    def __init__(self, model: Any) -> None:
        """Take a model of an emitted package."""
        self.model = model
        self._state: Any = None
        self._prompt = 0

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of the first stage."""
        logits: Tensor = self.model(ids)[0]
        return logits

    def loss(self, ids: Tensor) -> Tensor:
        """Return the objective."""
        total: Tensor = self.model.loss(ids).total
        return total

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the trained tensors."""
        return list(self.model.parameters())

    def prefill(self, ids: Tensor) -> None:
        """Take a prompt into a new state."""
        self._prompt = ids.shape[1]
        self._state = self.model.new_state(ids.shape[0], capacity=self._prompt + 24)
        self.model.prefill(ids, self._state)

    def step(self, ids: Tensor) -> Tensor:
        """Take one token of each row."""
        logits: Tensor = self.model.step(ids, self._state)
        return logits

    def rewind(self) -> None:
        """Forget everything after the prompt."""
        self._state.crop(self._prompt)


def build_peer(case: Case, attention: str = "sdpa", experts: str = "eager") -> Any:
    """Build the model of transformers for a case, with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(case.peer_type, **case.peer)
    torch.manual_seed(0)
    options = {"experts_implementation": experts} if case.sparse else {}
    build: Any = AutoModelForCausalLM.from_config
    return build(config, attn_implementation=attention, **options)


def load_ours(case: Case) -> Any:
    """Load our model of a case through the compiler."""
    import tokdsl

    load: Any = tokdsl.load
    return load(case.spec, **case.ours)


@dataclass
class Timing:
    """Times of one mode, in seconds; `peer` holds one list for every setting of the peer."""

    case: str
    mode: str
    batch: int
    threads: int
    ours: list[float] = field(default_factory=list)
    peer: dict[str, list[float]] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The setting with which the peer is fastest."""
        return min(self.peer, key=lambda setting: statistics.median(self.peer[setting]))

    def row(self) -> dict[str, Any]:
        """Return the medians in milliseconds, the ratio and the spread."""
        ours = statistics.median(self.ours) * 1e3
        peer = statistics.median(self.peer[self.best]) * 1e3
        return {
            "model": self.case,
            "mode": self.mode,
            "batch": self.batch,
            "threads": self.threads,
            "ours_ms": round(ours, 3),
            "peer_ms": round(peer, 3),
            "ratio": round(ours / peer, 3),
            "ratio_of_minima": round(min(self.ours) / min(self.peer[self.best]), 3),
            "peer_setting": self.best,
            "repeats": len(self.ours),
        }


Work = Callable[[], None]
Clock = Callable[[], float]


def interleave(
    works: dict[str, Work], seconds: float, least: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Run the works in turns until the time is used up and each was run `least` times.

    Args:
        works: what to time; each is run once before, untimed.
        seconds: time to spend on the whole.
        least: smallest number of runs of each.
        clock: wall time, or processor time where the machine is busy with something else.

    Returns:
        Seconds of every run, by name.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    names, end = list(works), time.perf_counter() + seconds
    while len(times[names[0]]) < least or time.perf_counter() < end:
        for name in names:
            start = clock()
            works[name]()
            times[name].append(clock() - start)
        names.append(names.pop(0))  # nobody always runs after the same neighbour
    return times


def forward_work(runner: Runner, ids: Tensor) -> Work:
    """Return a run of the forward pass alone."""

    def work() -> None:
        with torch.no_grad():
            runner.forward(ids)

    return work


def training_work(runner: Runner, ids: Tensor) -> Work:
    """Return a run of objective and gradients."""
    parameters = list(runner.parameters())

    def work() -> None:
        torch.autograd.backward(runner.loss(ids))
        for parameter in parameters:
            parameter.grad = None

    return work


def decode_work(runner: Runner, prompt: Tensor, ids: Tensor) -> Work:
    """Return a run of one step after the prompt; ids (B, 1)."""
    with torch.no_grad():
        runner.prefill(prompt)

    def work() -> None:
        with torch.no_grad():
            runner.step(ids)
        runner.rewind()

    return work


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settings_of(case: Case, mode: str) -> dict[str, Runner]:
    """Build the peer with each setting that may be its fastest in this mode."""
    experts: tuple[str, ...] = EXPERTS if case.sparse else ("",)
    if mode != "decode":  # the batched form copies a matrix for every row
        experts = tuple(name for name in experts if name != "batched_mm")
    found: dict[str, Runner] = {}
    first = build_peer(case)
    for name in experts:
        model = first
        if name:
            model = build_peer(case, experts=name)
            model.load_state_dict(first.state_dict(), assign=True)  # one copy of the weights
        found[" ".join(filter(None, ("sdpa", name)))] = Peer(model)
        if mode == "decode":
            found[" ".join(filter(None, ("sdpa", name, "static cache")))] = Peer(model, True)
    if mode != "decode":
        model = build_peer(case, attention="eager", experts="grouped_mm")
        model.load_state_dict(first.state_dict(), assign=True)
        found["eager"] = Peer(model)
    return found


def works_of(mode: str, runner: Runner, batch: int, sizes: Sizes) -> Work:
    """Return the run of one mode."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(sizes.vocab, (batch, max(sizes.length, sizes.cached)), generator=generator)
    if mode == "forward":
        return forward_work(runner, ids[:, : sizes.length])
    if mode == "training":
        return training_work(runner, ids[:, : sizes.length])
    return decode_work(runner, ids[:, : sizes.cached], ids[:, :1])


def compare(
    case: Case,
    ours: Runner,
    sizes: Sizes,
    thread_counts: Sequence[int] = (1, 2),
    modes: Sequence[str] = MODES,
    seconds: float = 20.0,
    clock: Clock = time.perf_counter,
) -> list[Timing]:
    """Time one model beside its peer in every mode.

    Args:
        case: the architecture.
        ours: our model, at the sizes of the case.
        sizes: batch, lengths.
        thread_counts: numbers of threads, one row of the table each.
        modes: which of `MODES`.
        seconds: time for each row.
        clock: as in `interleave`.

    Returns:
        One timing per mode, batch and number of threads.
    """
    timings = []
    for mode in modes:
        peers = settings_of(case, mode)
        for batch in sizes.step_batches if mode == "decode" else (sizes.batch,):
            works = {name: works_of(mode, peer, batch, sizes) for name, peer in peers.items()}
            works["ours"] = works_of(mode, ours, batch, sizes)
            for count in thread_counts:
                with threads(count):
                    timing = Timing(case.name, mode, batch, count)
                    _race(timing, works, seconds, clock)
                    timings.append(timing)
    return timings


def _race(timing: Timing, works: dict[str, Work], seconds: float, clock: Clock) -> None:
    """Find the peer's fastest setting with a third of the time, then race it against ours."""
    peers = {name: work for name, work in works.items() if name != "ours"}
    trial = interleave(peers, seconds / 3, 3, clock)
    best = min(trial, key=lambda name: statistics.median(trial[name]))
    times = interleave({"ours": works["ours"], best: works[best]}, seconds * 2 / 3, 7, clock)
    timing.ours, timing.peer = times["ours"], {best: times[best]}


def cpu_name() -> str:
    """Return the name of the processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Return what the numbers depend on."""
    import transformers

    return {
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def save(timings: Sequence[Timing], sizes: Sizes, folder: Path) -> None:
    """Write `peers.json` (with every single time) and `peers.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "environment": environment(),
        "sizes": asdict(sizes),
        "rows": [timing.row() for timing in timings],
        "seconds": [asdict(timing) for timing in timings],
    }
    (folder / "peers.json").write_text(json.dumps(content, indent=1), "utf-8")
    with (folder / "peers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(timings[0].row()))
        writer.writeheader()
        writer.writerows(timing.row() for timing in timings)


def show(timings: Sequence[Timing]) -> None:
    """Print the table; a ratio below one means that ours is faster."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"ours / transformers, {cpu_name()}")
    for column in timings[0].row():
        table.add_column(column)
    for timing in timings:
        row = timing.row()
        style = "green" if row["ratio"] <= 1 else "red"
        table.add_row(*(str(value) for value in row.values()), style=style)
    Console(width=140).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison from the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.peers", description=__doc__)
    parser.add_argument("--models", nargs="*", help="names of cases; all without it")
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=MODES)
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--layers", type=int, default=Sizes.layers)
    parser.add_argument("--vocab", type=int, default=Sizes.vocab)
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each row")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time: for one thread on a busy machine",
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args(arguments)
    sizes = replace(Sizes(), layers=options.layers, vocab=options.vocab)
    known = cases(sizes)
    clock = time.process_time if options.processor_time else time.perf_counter
    timings: list[Timing] = []
    for name in options.models or known:
        case, ours = known[name], Package(load_ours(known[name]))
        timings += compare(
            case, ours, sizes, options.threads, options.modes, options.seconds, clock
        )
        show(timings)
    save(timings, sizes, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
