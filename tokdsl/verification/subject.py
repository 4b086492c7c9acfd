"""The model under test: its inputs, its results, and how alike two results are."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tokdsl.checks.cost import clocks, main_clock
from tokdsl.checks.facts import Facts
from tokdsl.checks.streaming import Decoding
from tokdsl.graph.program import Input, OpNode, Program, StageUse
from tokdsl.types.tensors import Axis, Clock, TensorType

#: how much two results may differ, relative to the largest entry, by dtype of the model
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-6}
#: the longest probe; a window or chunk that is longer is not seen from both sides
LONGEST = 48
SHORTEST = 14
#: entries along token axes of inputs that are not on the main clock
OTHER_LENGTH = 5

#: primitives whose result is a choice
CHOOSING = ("topk", "route", "argmax", "sort", "dispatch")

Inputs = dict[str, Tensor]
#: words of several lengths and scripts
SAMPLE = (
    "The quick brown fox, 3.14 times as fast, jumps over a dog.\n"
    "Une forêt dorée; ein schöner Tag! 你好,世界。 def f(x_1): return x_1 ** 2\n"
)


@dataclass
class Subject:
    """A built model with random weights, and what the compiler knows about it.

    The weights are drawn and then disturbed, so that parameters that start at zero or one take
    part in what is measured.

    Args:
        package: the imported package, with ``Model``.
        program: its graph.
        facts: what the checks established.
        seed: of weights and inputs.
    """

    package: ModuleType
    program: Program
    facts: Facts
    seed: int = 0
    model: Any = field(init=False)
    limit: float = field(init=False)
    #: tokens of a text, for models whose chunks hang on what a text looks like
    text: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Draw the weights."""
        torch.manual_seed(self.seed)
        self.model = self.package.Model().eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        self.limit = TOLERANCE[torch.float32]
        self.random = torch.Generator().manual_seed(self.seed)
        self.text = _text(self.package, self.program)

    # ----------------------------------------------------------------- what the graph says

    @property
    def clock(self) -> Clock | None:
        """The clock of the tokens that the model is about."""
        return main_clock(self.program, self.facts)

    def main_inputs(self) -> list[Input]:
        """Return the inputs on the main clock."""
        return [i for i in self.program.inputs if _token_axis(i, self.clock) is not None]

    def read_once(self) -> tuple[str, ...]:
        """Return the names of inputs that a decoder reads with the prompt alone."""
        decoding = self.facts.tables.get("decoding")
        return decoding.inputs if isinstance(decoding, Decoding) else ()

    def stages(self, causal: bool = True) -> list[StageUse]:
        """Return the stages on the main clock that are causal, or those that are not."""
        return [
            s
            for s in self.program.stages
            if s.result.type.axes
            and s.result.type.axes[0].clock == self.clock
            and self.facts.causal.get(s.name, False) is causal
        ]

    def reaches(self) -> list[int]:
        """Return the windows and strides of the program, each once, the smallest first."""
        found: set[int] = set()
        for module in self.program.modules:
            for node in module.nodes:
                for value in node.outputs:
                    for axis in value.type.axes:
                        found |= _reach(axis)
        return sorted(n for n in found if n > 1)

    @property
    def length(self) -> int:
        """How long a probe is: long enough to see a window from both sides, if that is short."""
        longest = max((n for n in self.reaches() if 2 * n + 3 <= LONGEST), default=0)
        return max(SHORTEST, 2 * longest + 3)

    @property
    def takes_state(self) -> bool:
        """Whether the package can be run step by step."""
        return hasattr(self.model, "new_state")

    @property
    def has_objective(self) -> bool:
        """Whether the package computes a loss."""
        return hasattr(self.model, "loss")

    def valid_name(self) -> str | None:
        """Return the argument that says which tokens are padding."""
        names = inspect.signature(self.model.forward).parameters
        for wanted in ("valid", *(f"{i.name}_valid" for i in self.main_inputs())):
            if wanted in names:
                return wanted
        return None

    # ----------------------------------------------------------------- running

    def inputs(self, batch: int, length: int, other: int = OTHER_LENGTH) -> Inputs:
        """Return random inputs; ``other`` is the length along clocks besides the main one."""
        return {i.name: self._input(i, batch, length, other) for i in self.program.inputs}

    def _input(self, given: Input, batch: int, length: int, other: int) -> Tensor:
        kind = given.value.type
        assert isinstance(kind, TensorType)
        sizes = [batch]
        for axis in kind.axes:
            own = axis.clock is not None and axis.clock == self.clock
            size = axis.size.number
            sizes.append(length if own else size if size is not None else other)
        if given.classes is not None and self.text is not None:
            starts = torch.randint(len(self.text) - length, (batch,), generator=self.random)
            return torch.stack([self.text[at : at + length] for at in starts.tolist()])
        if given.classes is not None:
            return torch.randint(given.classes.number or 2, sizes, generator=self.random)
        if kind.dtype == "bool":
            return torch.rand(sizes, generator=self.random) < 0.5
        if kind.dtype == "i64":
            return torch.randint(2, sizes, generator=self.random)
        return torch.randn(sizes, generator=self.random)

    def axis(self, given: Input) -> int:
        """Return the dimension of an input's tokens on the main clock."""
        axis = _token_axis(given, self.clock)
        assert axis is not None
        return 1 + given.value.type.axes.index(axis)

    def piece(self, inputs: Inputs, start: int, stop: int) -> Inputs:
        """Return the tokens from ``start`` to ``stop``; other inputs stay whole."""
        cut = dict(inputs)
        for given in self.main_inputs():
            tensor = inputs[given.name]
            cut[given.name] = tensor.narrow(self.axis(given), start, stop - start)
        return cut

    def run(self, inputs: Inputs, **more: object) -> Inputs:
        """Return the result of every stage."""
        output = self.model(**self.taken(inputs), **more)
        return {s.name: getattr(output, s.name) for s in self.program.stages}

    def taken(self, inputs: Inputs) -> Inputs:
        """Return the inputs that the forward takes; labels are for the loss alone."""
        names = inspect.signature(self.model.forward).parameters
        return {name: tensor for name, tensor in inputs.items() if name in names}

    def loss(self, inputs: Inputs, **more: object) -> Tensor:
        """Return the objective."""
        total: Tensor = self.model.loss(**inputs, **more).total
        return total

    @property
    def has_decisions(self) -> bool:
        """Whether the model chooses, so that a rounding can change a result by much."""
        return any(
            isinstance(node, OpNode) and (node.op.decision or node.op.op_name in CHOOSING)
            for module in self.program.modules
            for node in module.nodes
        )


def _text(package: ModuleType, program: Program) -> Tensor | None:
    """Return the tokens of a text, if the model cuts chunks and its package reads text."""
    found = importlib.util.find_spec(f"{package.__name__}.tokenizer")
    if found is None or not any(clock.cut for clock in clocks(program)):
        return None
    module = importlib.import_module(f"{package.__name__}.tokenizer")
    folder = Path(str(package.__file__)).parent
    try:
        return torch.tensor(module.Tokenizer.load(folder).encode(SAMPLE * 4))
    except ValueError:  # its alphabet is not that of a text
        return None


def _token_axis(given: Input, clock: Clock | None) -> Axis | None:
    return next(
        (a for a in given.value.type.axes if a.clock is not None and a.clock == clock), None
    )


def _reach(axis: Axis) -> set[int]:
    """Return how far back attention looks, and how many tokens of the input make one of these."""
    found = {axis.window} if axis.window else set()
    clock, tokens = axis.clock, 1.0
    while clock is not None and clock.parent is not None:
        if clock.stride is not None:
            tokens *= clock.expected
            found.add(round(tokens))
        clock = clock.parent
    return found


def rows(inputs: Inputs, index: Tensor) -> Inputs:
    """Return the batch rows ``index``."""
    return {name: tensor.index_select(0, index) for name, tensor in inputs.items()}


def gap(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference relative to the largest entry; infinite where one is NaN."""
    if not wanted.numel():
        return 0.0
    difference = (found.double() - wanted.double()).abs().max()
    scale = wanted.double().abs().max().clamp(min=1.0)
    value = float(difference / scale)
    return value if value == value else float("inf")


def gaps(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Return the largest gap of several results."""
    return max((gap(found[name], wanted[name]) for name in wanted), default=0.0)
