"""The plan: what the emitter writes, as plain data. Nothing is decided after it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokdsl.lower.kernels.report import RegionReport
from tokdsl.ops.base import ParameterSpec
from tokdsl.source import Span
from tokdsl.tokenizers import Step

#: what is said of the tokens of an input: ``valid`` and ``documents`` are arguments
ATTRIBUTES = ("valid", "documents", "starts")


@dataclass(frozen=True)
class Statement:
    """One line of a forward: targets, expression, and what the comment beside it says."""

    targets: tuple[str, ...]
    text: str
    shape: str
    span: Span
    indent: int = 0


@dataclass(frozen=True)
class Loop:
    """A ``for`` over layers: the body is one call per layer."""

    attribute: str
    target: str
    call: str
    span: Span
    shape: str
    indexed: bool
    indent: int = 0


@dataclass(frozen=True)
class Owned:
    """An attribute of a class: a layer, a parameter, a submodule or a list of submodules.

    Args:
        kind: ``layer`` (nn.Linear ...), ``parameter``, ``buffer``, ``module``, ``list``.
        constructor: the text after ``self.name =``.
        parameters: specifications for initialisation, names relative to the attribute.
        sizes: what each number in the constructor is the size of.
    """

    name: str
    kind: str
    constructor: str
    span: Span
    parameters: tuple[ParameterSpec, ...] = ()
    stack: int = 0
    classes: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StateField:
    """A field of a class's decode state: a leaf of ``state.py`` or the state of a submodule."""

    name: str
    kind: str
    constructor: str
    annotation: str


@dataclass
class ClassPlan:
    """One nn.Module to emit."""

    name: str
    definition: str
    kind: str
    span: Span
    owned: list[Owned] = field(default_factory=list)
    inputs: list[tuple[str, str, str]] = field(default_factory=list)
    body: list[Statement | Loop] = field(default_factory=list)
    result: str = ""
    returns: str = "Tensor"
    state: list[StateField] = field(default_factory=list)
    collects_aux: bool = False
    decides: bool = False
    stateful: bool = False
    clocks: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    doc: str = ""


@dataclass(frozen=True)
class StagePlan:
    """How the model calls a stage.

    Args:
        clocks: names of the clocks whose positions or validity it reads.
        fixed: whether decode steps do not run it: its result is kept.
        decides: whether it makes decisions that are recorded.
        decision_clock: name of the clock by whose tokens they are kept, or "".
    """

    name: str
    class_name: str
    inputs: tuple[str, ...]
    clocks: tuple[str, ...]
    shape: str
    collects_aux: bool
    stateful: bool
    fixed: bool = False
    decides: bool = False
    decision_clock: str = ""


@dataclass(frozen=True)
class InputPlan:
    """An input of the model.

    Args:
        clock: "" if it has no token axis.
        is_label: whether only the objective reads it, so that `forward` does not take it.
        fixed: whether a decoder reads it once, with the prompt.
    """

    name: str
    clock: str
    shape: str
    is_tokens: bool
    is_label: bool = False
    fixed: bool = False


@dataclass(frozen=True)
class KernelPlan:
    """One use of a kernel template that inlines equations of the program.

    Args:
        template: folder of ``codegen/kernels``.
        name: prefix of its functions, unique in the package.
        pieces: what the template is filled with, besides the name.
    """

    template: str
    name: str
    pieces: dict[str, object]


@dataclass
class FunctionPlan:
    """A function of ``fused.py``: equations of the program that are a kernel on a GPU.

    Args:
        inputs: name, annotation and shape of each argument.
        kernel: condition and call that stand before the torch form, or "".
    """

    name: str
    definition: str
    span: Span
    inputs: list[tuple[str, str, str]]
    body: list[Statement | Loop]
    result: str
    returns: str
    doc: str = ""
    kernel: tuple[str, str] = ("", "")


#: code: text, or a call as (function, argument, ...)
Code = str | tuple["Code", ...]


@dataclass(frozen=True)
class LayoutRow:
    """One published tensor: its name and what it is made of (or which other name it repeats)."""

    published: str
    value: Code


@dataclass(frozen=True)
class LayoutLoop:
    """A loop over an index with the rows inside."""

    variable: str
    values: str
    rows: list[LayoutRow | LayoutLoop]

    @property
    def head(self) -> str:
        """The line that begins the loop."""
        return f"for {self.variable} in {self.values}:"


@dataclass(frozen=True)
class LayoutPlan:
    """A published layout of the parameters.

    Args:
        rows: published names and the parameters they are made of.
        tied: published names and the others that they repeat.
        ignored: regular expressions of names that may be there and are not read.
    """

    name: str
    span: Span
    rows: list[LayoutRow | LayoutLoop]
    tied: list[LayoutRow | LayoutLoop]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class ConfigField:
    """A static parameter of the model: its value for JSON, and as Python text."""

    name: str
    annotation: str
    value: object
    literal: str


@dataclass
class Plan:
    """A package to emit.

    Args:
        classes: callees before callers; the stages are among them.
        functions: names of the ``functional.py`` functions that are used.
        states: names of the ``state.py`` classes that are used.
        model: what the model itself owns: parameters that stages share.
        isolated: whether documents can be packed into a row, so that their borders are taken.
    """

    name: str
    classes: list[ClassPlan] = field(default_factory=list)
    functions: set[str] = field(default_factory=set)
    states: set[str] = field(default_factory=set)
    stages: list[StagePlan] = field(default_factory=list)
    objective: list[Statement] = field(default_factory=list)
    objective_result: str = ""
    terms: list[str] = field(default_factory=list)
    aux: list[str] = field(default_factory=list)
    inputs: list[InputPlan] = field(default_factory=list)
    streaming: bool = False
    isolated: bool = False
    model: ClassPlan | None = None
    digest: str = ""
    parameters: list[ConfigField] = field(default_factory=list)
    tokenizer: tuple[str, dict[str, object]] | None = None
    segments: list[Step] = field(default_factory=list)
    causal: dict[str, bool] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)

    def attributes(self) -> dict[str, dict[str, str]]:
        """Return the variables that hold attributes of tokens: by attribute, then by clock."""
        first: dict[str, str] = {}
        for given in self.inputs:
            if given.clock and not given.is_label:
                first.setdefault(given.clock, given.name)
        # an input may be called so itself
        short = set(ATTRIBUTES) - {i.name for i in self.inputs} if len(first) == 1 else set()
        return {
            attribute: {
                clock: attribute if attribute in short else f"{name}_{attribute}"
                for clock, name in first.items()
            }
            for attribute in ATTRIBUTES
        }

    layouts: list[LayoutPlan] = field(default_factory=list)
    kernels: list[KernelPlan] = field(default_factory=list)
    fused: list[FunctionPlan] = field(default_factory=list)
    regions: list[RegionReport] = field(default_factory=list)
