"""The texts of values in one forward: names, expressions of operations, what is inlined."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokdsl.checks.constancy import Constancy
from tokdsl.graph.program import CallNode, LoopNode, Module, Node, OpNode, Value
from tokdsl.lower.chunks import chunks_in, read_clocks, stage_clock
from tokdsl.lower.decisions import choices, keeper, without_keepers
from tokdsl.lower.fixed import keep_together
from tokdsl.lower.kernels.attention import TILE, AttentionNode
from tokdsl.lower.kernels.attention_functions import write_functions
from tokdsl.lower.kernels.fused import Fused
from tokdsl.lower.kernels.nodes import RegionNode
from tokdsl.lower.names import Names, state_names
from tokdsl.lower.plan import Loop, Statement
from tokdsl.lower.statistics import gather
from tokdsl.lower.training import gather_training, gather_ways, training_alone
from tokdsl.ops.ambient import ClockOf, Constant, Position, Reading, Rename
from tokdsl.ops.base import Code
from tokdsl.source import Span
from tokdsl.types.tensors import (
    Axis,
    ChunksType,
    Clock,
    RouteType,
    TensorType,
    ValueType,
    ragged,
)

#: an expression longer than this becomes a statement of its own
LONGEST = 68


class Unsupported(Exception):
    """Something that passed all checks cannot be lowered yet; becomes a diagnostic."""


@dataclass
class Shared:
    """What all bodies of a package have in common.

    Args:
        streaming: whether decode states are emitted.
        stateful: modules that have a state, by identity.
        collects: modules that collect auxiliary values, by identity.
        decides: modules that make decisions which are recorded, by identity.
        functions: ``functional.py`` functions used so far.
        once: names of the inputs and stages that a decoder reads once.
        constancy: which values decode steps need not compute again; None if there are none.
        training: by module, the nodes that training alone runs.
    """

    streaming: bool
    stateful: set[int] = field(default_factory=set)
    collects: set[int] = field(default_factory=set)
    decides: set[int] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    once: set[str] = field(default_factory=set)
    constancy: Constancy | None = None
    training: dict[int, set[int]] = field(default_factory=dict)
    fused: Fused = field(default_factory=Fused)

    def in_steps(self, module: Module, node: Node) -> bool:
        """Whether decode steps run a node, so that it may have a state."""
        if id(module) not in self.training:
            self.training[id(module)] = set(training_alone(module))
        if id(node) in self.training[id(module)]:
            return False
        known = self.constancy
        return known is None or (known.entered(module) and not known.is_fixed(node))


class Texts:
    """What values of a module are called in its forward; `Body` writes the statements."""

    def __init__(self, module: Module, shared: Shared, sizes: dict[str, str]) -> None:
        self.module = module
        self.shared = shared
        self.sizes = sizes
        self.names = Names()
        self.text: dict[int, str] = {}
        self.statements: list[Statement | Loop] = []
        #: the chunks that this body has, by their clock
        self._here = chunks_in(module)
        #: functions and classes of ``state.py`` that the statements need
        self.states: set[str] = set()
        self._roots: dict[int, list[Value]] = {}
        self._indent = 0
        self._holder = ""
        self._state_names = state_names(module)
        #: variable of each clock, and the clocks that were needed
        self.clock_names: dict[str, str] = {}
        self.clocks: set[str] = set()
        #: variables that hold an attribute of a clock's tokens themselves (in the objective)
        self.arguments: dict[tuple[str, str], str] = {}
        #: names of the choices that are recorded, and the clock whose tokens the record counts
        self._choices = choices(module) if id(module) in shared.decides else {}
        self.decision_clock = ""  # stays so in a choice: it is recorded outside
        #: nodes that serve auxiliary values alone
        self._for_aux = gather(module)
        #: nodes that training alone needs, and the operation that takes what they make
        self._for_training = gather_training(module, self._for_aux)
        #: nodes that one of two values alone needs: the operation that takes it, and as what
        self._ways = gather_ways(module, self._for_aux)
        self._block = ""
        #: nodes that are computed once, and what is kept of them between decode steps
        self._once, self._kept = keep_together(module, shared.constancy, self._for_aux)
        self._bound = {id(value) for value in self._kept}
        self._uses = self._count_uses()
        self._last = self._last_uses()
        self._at = 0

    def input(self, value: Value, wanted: str) -> str:
        """Give an input of the forward its name."""
        clock = value.python == "TokenClock" and self.module.kind != "stage"
        tile = self.module.kind == TILE and wanted in ("s", "i", "j")
        name = self.names.take(wanted, id(value), plain=clock or tile)
        self.text[id(value)] = name
        return name

    # ----------------------------------------------------------------- uses

    def _count_uses(self) -> dict[int, int]:
        uses: dict[int, int] = {}
        for node in self.module.nodes:
            weight = 2 if isinstance(node, LoopNode) else 1
            for value in node.inputs:
                uses[id(value)] = uses.get(id(value), 0) + weight
        for value in self.module.results:
            uses[id(value)] = uses.get(id(value), 0) + 1
        return uses

    def _last_uses(self) -> dict[int, int]:
        last: dict[int, int] = {}
        for at, node in enumerate(self.module.nodes):
            for value in node.inputs:
                last[id(value)] = at
        for value in self.module.results:
            last[id(value)] = len(self.module.nodes)
        for value in self._here.values():
            last[id(value)] = len(self.module.nodes)  # its clock may be read anywhere
        return last

    def _release(self, node: Node) -> None:
        """Free the names of values that are read here for the last time."""
        for value in node.inputs:
            for root in self._roots_of(value):
                if self._last.get(id(root), -1) <= self._at:
                    self.names.free(id(root))

    def _roots_of(self, value: Value) -> list[Value]:
        """Return the named values that a value's text mentions."""
        return self._roots.get(id(value), [value])

    def _set_inline(self, value: Value, text: str, inputs: tuple[Value, ...]) -> None:
        """Use an expression where its value is read; its operands live as long."""
        self.text[id(value)] = text
        roots = [root for inner in inputs for root in self._roots_of(inner)]
        self._roots[id(value)] = roots
        for root in roots:
            self._last[id(root)] = max(self._last.get(id(root), 0), self._last.get(id(value), 0))

    # ----------------------------------------------------------------- operations

    def _is_plain(self, node: OpNode, text: str) -> bool:
        """Whether a value is only another name: a literal, an attribute, an operand."""
        if isinstance(node.op, (Constant, Rename, Reading)):
            return True
        if node.attribute and text == f"self.{node.attribute}":
            return True
        return any(text == self.text[id(v)] for v in node.inputs) and text.isidentifier()

    def _inlinable(self, value: Value, text: str) -> bool:
        length = len(without_keepers(text))
        if value.name or self._uses.get(id(value), 0) != 1 or length > LONGEST:
            return False
        if id(value) in self._bound:
            return False
        return not isinstance(value.type, RouteType | ChunksType)

    def _wanted(self, node: Node, value: Value) -> str:
        if value.name:
            return value.name
        if self.module.kind in ("stage", "layer") and self._is_stream(node, value):
            return "x"
        first = self.module.inputs[0] if self.module.inputs else None
        if first is not None and _same_kind(first.type, value.type):
            return first.name or "x"
        if isinstance(node, OpNode):
            return type(node.op).op_name
        if isinstance(node, CallNode):
            return node.attribute or node.module.name
        return "x"

    def _is_stream(self, node: Node, value: Value) -> bool:
        """Whether a value of a stage looks like its stream: float vectors of tokens."""
        if not isinstance(node, OpNode):
            return True
        kind = value.type
        return isinstance(kind, TensorType) and kind.dtype == "float" and len(kind.axes) > 1

    def _bind(self, node: Node, value: Value, text: str, wanted: str) -> None:
        self._release(node)
        name = self.names.take(wanted, id(value))
        self.text[id(value)] = name
        self.statements.append(
            Statement(
                (name,), text, shape_comment(value.type), self._span(node, value), self._indent
            )
        )

    def _bind_all(self, node: Node, text: str) -> None:
        self._release(node)
        names = []
        for value in node.outputs:
            if id(value) not in self._uses and not value.name and not self._reads_clock(value):
                names.append("_")
                continue
            fallback = value.name or "y"
            if isinstance(node, OpNode):
                fallback = value.name or f"{type(node.op).op_name}_{value.index}"
            elif isinstance(value.type, ChunksType):
                fallback = "chunks"
            elif isinstance(node, CallNode):
                fallback = value.name or node.module.results[value.index].name or "y"
            elif isinstance(node, RegionNode) and isinstance(value.node, OpNode):
                fallback = value.name or type(value.node.op).op_name
            names.append(self.names.take(_hidden_name(node, value) or fallback, id(value)))
            self.text[id(value)] = names[-1]
        self.statements.append(
            Statement(
                tuple(names),
                text,
                shape_comment(node.outputs[0].type),
                self._span(node, node.outputs[0]),
                self._indent,
            )
        )

    def _reads_clock(self, value: Value) -> bool:
        """Whether positions or validity are read of chunks that nothing else reads."""
        kind = value.type
        if not isinstance(kind, ChunksType) or kind.coarse.clock is None:
            return False
        return kind.coarse.clock.name in read_clocks(self.module)

    def _span(self, node: Node, value: Value) -> Span:
        return node.span if not value.name else value.span

    def expression(self, node: OpNode) -> str:
        """Return the torch expression of an operation over the texts of its operands."""
        if isinstance(node.op, Reading):
            return self.ambient(node.op)
        code = self._code(node)
        text = node.op.torch(code)
        self.shared.functions |= code.imports
        return text

    def _code(self, node: OpNode) -> Code:
        """Return what an operation writes its expression with."""
        op = node.op
        operands = {
            name: self.text[id(value)]
            for name, value in zip(node.operands, node.inputs, strict=True)
        }
        if isinstance(node, AttentionNode):
            operands |= write_functions(self, node)
        types = dict(op.operand_types())  # under the axis names of the body that it comes from
        state = ""
        if self.shared.streaming and op.state() is not None and self._in_steps(node):
            state = f"state.{self._state_name(node)}"
        attribute = f"self.{node.attribute}" if node.attribute else ""
        chosen = self._choices.get(id(node))
        decision = self._keeper(chosen, op.choice()) if chosen else ""
        result = node.outputs[0].type
        return Code(operands, types, result, attribute, state, self.sizes, decision)

    def _keeper(self, name: str, kind: TensorType | None) -> str:
        chunks = self._chunks_of(ragged(kind)) if kind is not None else []
        return keeper(name, kind, self.decision_clock, chunks)

    def ambient(self, op: Reading) -> str:
        """Return the text of positions, validity or documents; only a stage has a clock."""
        axis = op.axis
        assert isinstance(axis, Axis) and axis.clock is not None
        size = axis.size.number
        if size is not None and isinstance(op, Position):
            device = self.sizes.get("device")
            on = f", device={device}" if device else ""
            return f"torch.arange({size}{on}).unsqueeze(0)"
        if size is not None:
            return "None"
        key = "key_" if axis.block or (axis.memory and self.shared.streaming) else ""
        given = self.arguments.get((axis.clock.name, op.attribute))
        if given is not None:
            if op.attribute == given.rpartition("_")[2] == "starts":
                self.shared.functions.add("document_starts")
            return given
        source, clock = self._clock(axis.clock)
        if clock is None:
            raise Unsupported(
                f"positions along `{axis.name}` of clock `{axis.clock.name}`, which is not the "
                "clock of an input",
            )
        self.clocks.add(source)
        if key and axis.window:
            clock = f"{clock}.last({axis.window})"
        if axis.block:
            self.shared.functions.add("block_clock")
            clock = f"block_clock({clock}, {axis.block})"
        return clock if isinstance(op, ClockOf) else f"{clock}.{key}{op.attribute}"

    def _clock(self, clock: Clock) -> tuple[str, str | None]:
        """Return the name of the input's clock and the text of a clock made from it, if any."""
        if clock.cut:
            chunks = self._here.get(clock.name)
            return "", f"{self.text[id(chunks)]}.clock" if chunks is not None else None
        if clock.name in self.clock_names or clock.parent is None:
            return clock.name, self.clock_names.get(clock.name)
        source, text = self._clock(clock.parent)
        if text is None or clock.stride is None:
            return source, None
        if clock.stride.number is None:  # a fraction: ticks between those of the parent
            return source, f"{text}.fine({round(1 / clock.stride.evaluate({}))})"
        return source, f"{text}.coarse({clock.stride})"

    def _state_name(self, node: Node) -> str:
        """Return the field of this use's state: each use of a shared instance has its own."""
        return self._state_names.get(id(node), node.attribute)

    def _chunks_of(self, clock: Clock | None) -> list[str]:
        """Return how decisions by chunk are recorded, unless this is a stage of these chunks."""
        chunks = self._here.get(clock.name) if clock is not None else None
        if chunks is None or clock == stage_clock(self.module):
            return []
        name = self.text[id(chunks)]
        return [f"{name}.clock", f"{name}.slot", f"{name}.seats"]

    def _in_steps(self, node: Node) -> bool:
        return self.shared.in_steps(self.module, node)


def _hidden_name(node: Node, value: Value) -> str:
    if isinstance(node, OpNode) and node.op.companions and value.index:
        return node.op.companions[value.index - 1]
    return ""


def _same_kind(first: ValueType, second: ValueType) -> bool:
    return (
        isinstance(first, TensorType)
        and isinstance(second, TensorType)
        and first.dtype == second.dtype
        and [a.name for a in first.axes] == [a.name for a in second.axes]
    )


def shape_comment(kind: ValueType) -> str:
    """Return a shape by axis names, ``(B, T, heads, head_dim)``, for a comment."""
    if isinstance(kind, RouteType):
        return f"{kind.top.size} of {kind.experts.size} experts"
    if not isinstance(kind, TensorType):
        return ""
    names = [a.name.replace("^", "") for a in kind.axes]
    inner = ", ".join((["B"] if kind.batched else []) + names)
    return f"({inner})" if inner else "scalar"
