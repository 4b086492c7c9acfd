"""Values, nodes and modules: the typed graph of a program.

A program is hierarchical: every instantiated definition and every body of a ``repeat`` is one
`Module`, built once per distinct instantiation, so the graph grows with the source and not with
the number of layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokdsl.source import Span
from tokdsl.tokenizers import Step
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, Clock, ValueType

if TYPE_CHECKING:
    from tokdsl.ops.base import Op


#: kind of the modules that choose among tokens: run on some queries at a time
SELECTION = "selection"


@dataclass(eq=False, slots=True)
class Value:
    """One tensor in a module's body.

    Args:
        type: axes, dtype, clock.
        span: the expression that made it.
        name: the name an equation gave it, or "".
        node: its producer, or None for an input of the module.
        index: which result of the producer.
        owner: the module whose body it belongs to.
        python: the annotation of the value in emitted code.
    """

    type: ValueType
    span: Span
    name: str = ""
    node: Node | None = None
    index: int = 0
    owner: Module | None = None
    python: str = "Tensor"

    def __repr__(self) -> str:
        return f"{self.name or '_'}: {self.type}"


@dataclass(eq=False, slots=True)
class Node:
    """One step of a module's body: a primitive, a call of a module, or a loop.

    Args:
        inputs: operands, in the order of the operation's fields (or of the module's inputs).
        outputs: results.
        attribute: name of what the node owns in the module (parameters, a submodule), or "".
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    span: Span
    attribute: str = ""


@dataclass(eq=False, slots=True)
class OpNode(Node):
    """Use of a primitive; ``operands`` names the input of each operand field."""

    op: Op = field(kw_only=True)
    operands: tuple[str, ...] = field(kw_only=True)
    stack: Axis | None = field(default=None, kw_only=True)


@dataclass(eq=False, slots=True)
class CallNode(Node):
    """Call of an instantiated definition; ``shared`` if several calls use one instance."""

    module: Module = field(kw_only=True)
    shared: bool = field(default=False, kw_only=True)


@dataclass(eq=False, slots=True)
class LoopNode(Node):
    """``repeat``: one module per iteration (the same object where bodies are alike).

    The first input is the stream; the others are passed unchanged to every iteration.
    """

    modules: tuple[Module, ...] = field(kw_only=True)


@dataclass(eq=False, slots=True)
class AuxNode(Node):
    """``aux name = value``: the input is collected under ``name``."""

    name: str = field(kw_only=True)


@dataclass(eq=False, slots=True)
class Module:
    """An instantiated definition, stage or loop body.

    Args:
        name: the definition's or stage's name.
        kind: ``block``, ``router``, ..., ``stage``, ``layer`` (loop body), ``objective``.
        span: the definition's header.
        inputs: formal operands, then captured values of the surrounding body.
        nodes: in order of evaluation.
        results: what a call returns.
        stack: the experts axis over which all parameters are stacked, or None.
        statics: the static arguments, for summaries and names.
        doc: the definition's comment.
    """

    name: str
    kind: str
    span: Span
    inputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    results: tuple[Value, ...] = ()
    stack: Axis | None = None
    statics: dict[str, object] = field(default_factory=dict)
    broken: bool = False
    doc: str = ""

    def modules(self) -> Iterator[Module]:
        """Yield the modules called directly, each once, in order."""
        seen: set[int] = set()
        for node in self.nodes:
            called: tuple[Module, ...] = ()
            if isinstance(node, CallNode):
                called = (node.module,)
            elif isinstance(node, LoopNode):
                called = node.modules
            for module in called:
                if id(module) not in seen:
                    seen.add(id(module))
                    yield module

    def __repr__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(eq=False, slots=True)
class Input:
    """An input of the model: its value, and the number of classes of a token input."""

    name: str
    value: Value
    classes: Dim | None


@dataclass(eq=False, slots=True)
class StageUse:
    """A top-level stage in a model: its module, operands and result in the model's body."""

    name: str
    module: Module
    inputs: tuple[Value, ...]
    result: Value


@dataclass(eq=False, slots=True)
class Requirement:
    """One condition of a ``require`` clause: a fact's name, or a comparison with a number."""

    fact: str
    operator: str | None
    bound: float | None
    span: Span
    scope: str = ""
    unit: str = ""


@dataclass(eq=False, slots=True)
class Program:
    """A model after elaboration: everything that checks and lowering need.

    Args:
        parameters: the model's static parameters, resolved.
        aux: the type of every auxiliary value by name.
        objective: a module over stage results, inputs and ``aux.*``; None without a clause.
        objective_inputs: what its inputs are: ``stage:NAME``, ``input:NAME``, ``aux:NAME``.
        tokenizer: the closure of the ``tokenizer`` member as (name, arguments), or None.
        segments: the steps of the tokenizer that fill inputs beside the tokens.
    """

    name: str
    span: Span
    parameters: dict[str, object]
    inputs: list[Input] = field(default_factory=list)
    stages: list[StageUse] = field(default_factory=list)
    aux: dict[str, ValueType] = field(default_factory=dict)
    objective: Module | None = None
    objective_inputs: list[str] = field(default_factory=list)
    requirements: list[Requirement] = field(default_factory=list)
    tokenizer: tuple[str, dict[str, object], Span] | None = None
    segments: list[tuple[Step, Span]] = field(default_factory=list)
    clocks: list[Clock] = field(default_factory=list)
    weights: list[object] = field(default_factory=list)
    modules: list[Module] = field(default_factory=list)

    def all_modules(self) -> list[Module]:
        """Return every module of the program, callees before callers, each once."""
        order: list[Module] = []
        seen: set[int] = set()
        roots = [stage.module for stage in self.stages]
        if self.objective is not None:
            roots.append(self.objective)
        for root in roots:
            stack: list[tuple[Module, bool]] = [(root, False)]
            while stack:
                module, done = stack.pop()
                if done:
                    order.append(module)
                elif id(module) not in seen:
                    seen.add(id(module))
                    stack.append((module, True))
                    stack.extend((m, False) for m in reversed(list(module.modules())))
        return order
