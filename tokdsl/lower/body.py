"""From a module's nodes to the statements of its forward."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokdsl.checks.constancy import Constancy
from tokdsl.graph.program import SELECTION, AuxNode, CallNode, LoopNode, Module, Node, OpNode, Value
from tokdsl.lower import selection
from tokdsl.lower.chunks import chunks_in, read_clocks, stage_clock, wanted_clocks
from tokdsl.lower.decisions import choices, keeper, place, without_keepers
from tokdsl.lower.experts import MixNode
from tokdsl.lower.fixed import keep_together, kept_field
from tokdsl.lower.kernels.attention import TILE, AttentionNode
from tokdsl.lower.kernels.attention_functions import write_functions
from tokdsl.lower.kernels.fused import Fused
from tokdsl.lower.kernels.index import index_arguments
from tokdsl.lower.kernels.nodes import RegionNode
from tokdsl.lower.names import Names, state_names
from tokdsl.lower.plan import Loop, Statement
from tokdsl.lower.statistics import gather
from tokdsl.lower.training import gather_training, gather_ways, training_alone
from tokdsl.ops.ambient import ClockOf, Constant, Position, Reading, Rename
from tokdsl.ops.base import Code
from tokdsl.ops.phase import InSteps, InTraining
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


class Body:
    """Statements of one forward, in the order of the nodes."""

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

    def run(self) -> str:
        """Fill the statements; return the text of the result."""
        self._enter()
        for at, node in enumerate(self.module.nodes):
            self._at = at
            self._guard(node)
            self._announce(node)
            if isinstance(node, OpNode):
                self._op(node)
            elif isinstance(node, CallNode):
                self._call(node)
            elif isinstance(node, LoopNode):
                self._loop(node)
            elif isinstance(node, RegionNode):
                self._region(node)
            else:
                assert isinstance(node, AuxNode)
                self._aux(node)
        self._at = len(self.module.nodes)
        self._keep(None)
        results = [self.text[id(v)] for v in self.module.results]
        return ", ".join(results)

    def _enter(self) -> None:
        """Begin a stage of ragged chunks: in steps it runs only if a chunk is handed on."""
        clock = stage_clock(self.module)
        if clock is None:
            return
        stream = self.module.inputs[0]
        if not self.shared.streaming:
            return
        chunks, kind = self._here.get(clock.name), self.module.results[0].type
        if chunks is None or not isinstance(kind, TensorType):
            return
        x, name = self.text[id(stream)], self.text[id(chunks)]
        sizes = ["0" if a.clock == clock else str(a.size) for a in kind.axes]
        empty = f"{x}.new_zeros({', '.join([f'{x}.shape[0]', *sizes])})"
        span = self.module.span
        self.statements += [
            Statement((), f"if {name}.handed == 0:", "", span),
            Statement((), f"return {empty}", "", span, 4),
        ]
        if id(self.module) in self.shared.stateful:
            self.states.add("enter_chunks")
            self.statements += [
                Statement((), "if state is not None:", "", span),
                Statement((), f"enter_chunks(state, {name})", "", span, 4),
            ]

    def _announce(self, node: Node) -> None:
        """Tell the decode states of a node which chunks the call is about."""
        if not self.shared.streaming or not self._in_steps(node):
            return
        here = self._here
        if not here:
            return
        own = stage_clock(self.module)
        wanted = wanted_clocks(node) & (here.keys() - {own.name if own is not None else ""})
        if not wanted:
            return
        if len(wanted) > 1:
            raise Unsupported("recurrences over chunks of several kinds in one definition")
        chunks = self.text[id(here[wanted.pop()])]
        state = f"state.{self._state_name(node)}"
        lines = [f"{state}.enter({chunks})"]
        if isinstance(node, CallNode | LoopNode):
            self.states.add("enter_chunks")
            lines = [f"enter_chunks({state}, {chunks})"]
        if isinstance(node, LoopNode):
            part = self.names.take("layer", id(lines))
            lines = [f"for {part} in {state}:", f"    enter_chunks({part}, {chunks})"]
        self.statements.append(Statement((), "if state is not None:", "", node.span, self._indent))
        for line in lines:
            text = line.lstrip()
            indent = self._indent + 4 + len(line) - len(text)
            self.statements.append(Statement((), text, "", node.span, indent))

    def _guard(self, node: Node) -> None:
        """Open or close the block of what only auxiliary values need, or what is kept."""
        self._keep(node)
        block = "if aux is not None:" if id(node) in self._for_aux else ""
        if id(node) in self._for_training:
            block = "if self.training:"
        if isinstance(node, OpNode) and any(home is node for home, _ in self._ways.values()):
            return
        if id(node) in self._ways:
            return self._open_way(node, *self._ways[id(node)])
        if block and self._block != block:
            self.statements.append(Statement((), block, "", node.span))
        self._block = block
        self._indent = 4 if block or id(node) in self._once else 0

    def _open_way(self, node: Node, home: OpNode, operand: str) -> None:
        """Open the block of one of two values before the first node that it alone needs."""
        block = f"{operand} {id(home)}"
        if self._block != block:
            if operand == home.operands[0]:
                self._open_first_way(home)
            else:
                self._close_first_way(home)
                self.statements.append(Statement((), "else:", "", node.span))
        self._block, self._indent = block, 4

    def _open_first_way(self, home: OpNode) -> None:
        assert isinstance(home.op, InSteps)
        result = dict(home.op.operand_types())
        code = Code({}, result, home.outputs[0].type, names=self.sizes)
        self.statements.append(Statement((), f"if {home.op.condition(code)}:", "", home.span))

    def _close_first_way(self, home: OpNode) -> None:
        """Give the first of two values the name of the result, at the end of its block."""
        value = home.outputs[0]
        if id(value) in self.text:
            return
        if not self._block.endswith(str(id(home))):
            self._open_first_way(home)
        self._indent = 4
        self._bind(home, value, self.text[id(home.inputs[0])], self._wanted(home, value))

    def _choose_way(self, node: OpNode, value: Value) -> None:
        """Close the blocks of two values."""
        second = f"{node.operands[1]} {id(node)}"
        opened = self._block == second
        self._close_first_way(node)
        if not opened:
            self.statements.append(Statement((), "else:", "", node.span))
        name, text = self.text[id(value)], self.text[id(node.inputs[1])]
        self.statements.append(
            Statement((name,), text, shape_comment(value.type), self._span(node, value), 4)
        )
        self._block, self._indent = "", 0

    def _keep(self, node: Node | None) -> None:
        """Open the block of what decode steps do not compute again before its first node.

        After its last one what was computed, or kept by an earlier step, gets its names.
        """
        inside = node is not None and id(node) in self._once
        if inside == bool(self._holder):
            return
        held = f"state.{kept_field(self.module, self.shared.constancy)}.values"
        if node is not None and inside:
            self._holder = self.names.take("kept", id(self))
            text = f"None if state is None else {held}"
            self.statements += [
                Statement((self._holder,), text, "", node.span),
                Statement((), f"if {self._holder} is None:", "", node.span),
            ]
            return
        span = self._kept[0].span
        names = list(dict.fromkeys(self.text[id(value)] for value in self._kept))
        several = names if len(names) > 1 else [f"({names[0]},)"]
        self.statements += [
            Statement((self._holder,), ", ".join(several), "", span, 4),
            Statement((), "if state is not None:", "", span, 4),
            Statement((held,), self._holder, "", span, 8),
            Statement(tuple(several), self._holder, "", span),
        ]
        self._holder = ""

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

    def _op(self, node: OpNode) -> None:
        value = node.outputs[0]
        if self._for_training.get(id(node)) is node:
            return self._choose_phase(node, value)
        if any(home is node for home, _ in self._ways.values()):
            return self._choose_way(node, value)
        text = self.expression(node)
        if self._is_plain(node, text):
            self._set_inline(value, text, node.inputs)
            return
        if len(node.outputs) > 1:
            self._bind_all(node, text)
        elif self._inlinable(value, text):
            self._set_inline(value, text, node.inputs)
        else:
            self._bind(node, value, text, self._wanted(node, value))

    def _choose_phase(self, node: OpNode, value: Value) -> None:
        """Close the block of training with its value, and take the other one otherwise."""
        assert isinstance(node.op, InTraining)
        x, otherwise = node.op.branches(self._code(node))
        self._bind(node, value, x, self._wanted(node, value))
        name, span = self.text[id(value)], self._span(node, value)
        if otherwise != name:
            self.statements.append(Statement((), "else:", "", span))
            self.statements.append(Statement((name,), otherwise, "", span, 4))
        self._block, self._indent = "", 0

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

    # ----------------------------------------------------------------- calls

    def _state_name(self, node: Node) -> str:
        """Return the field of this use's state: each use of a shared instance has its own."""
        return self._state_names.get(id(node), node.attribute)

    def _arguments(self, node: CallNode, state: str) -> str:
        module = node.module
        texts = [self.text[id(v)] for v in node.inputs]
        if id(module) in self.shared.collects:
            texts.append("aux")
        if id(module) in self.shared.decides:
            clock = ragged(module.inputs[0].type) if module.inputs else None
            texts.append(place(f'"{self._state_name(node)}"', *self._chunks_of(clock)))
        if self.shared.streaming and id(module) in self.shared.stateful:
            texts.append(state)
        return ", ".join(texts)

    def _chunks_of(self, clock: Clock | None) -> list[str]:
        """Return how decisions by chunk are recorded, unless this is a stage of these chunks."""
        chunks = self._here.get(clock.name) if clock is not None else None
        if chunks is None or clock == stage_clock(self.module):
            return []
        name = self.text[id(chunks)]
        return [f"{name}.clock", f"{name}.slot", f"{name}.seats"]

    def _in_steps(self, node: Node) -> bool:
        return self.shared.in_steps(self.module, node)

    def _mixed(self, node: MixNode) -> str:
        """Return the call that sends tokens through the experts of a route."""
        self.shared.functions.add("mix_experts")
        x, route = (self.text[id(v)] for v in node.inputs)
        experts = f"self.{node.attribute}, {node.experts}"
        return f"mix_experts({x}, {route}.pick, {route}.weight, {experts})"

    def _chosen(self, node: CallNode) -> str:
        """Return the call of a choice among tokens."""
        self.shared.functions |= {"Decisions", "query_blocks"}
        name = self._choices.get(id(node))
        kind = node.outputs[1].type
        assert isinstance(kind, TensorType)
        decision = self._keeper(name, kind) if name else ""
        is_read = id(node.outputs[0]) in self._uses
        kernel = index_arguments(self, node.module, is_read)
        return selection.call(node, [self.text[id(v)] for v in node.inputs], decision, kernel)

    def _call(self, node: CallNode) -> None:
        state = f"state and state.{self._state_name(node)}" if self._in_steps(node) else "None"
        arguments = self._arguments(node, state)
        text = f"self.{node.attribute}({arguments})"
        if isinstance(node, MixNode):
            text = self._mixed(node)
        elif node.module.kind == SELECTION:
            text = self._chosen(node)
        value = node.outputs[0]
        if len(node.outputs) > 1:
            self._bind_all(node, text)
        elif self._inlinable(value, text):
            self._set_inline(value, text, node.inputs)
        else:
            self._bind(node, value, text, self._wanted(node, value))

    def _region(self, node: RegionNode) -> None:
        """Call a function of ``fused.py``, which is written here."""
        decides = (
            bool(node.module.statics.get("choices")) and id(self.module) in self.shared.decides
        )
        if decides:
            self.shared.decides.add(id(node.module))
        name = self.shared.fused.add(self, node, decides)
        arguments = [self.text[id(v)] for v in node.inputs]
        if decides:
            arguments.append("decisions")
        text = f"{name}({', '.join(arguments)})"
        value = node.outputs[0]
        if len(node.outputs) > 1:
            self._bind_all(node, text)
        elif self._inlinable(value, text):
            self._set_inline(value, text, node.inputs)
        else:
            self._bind(node, value, text, self._wanted(node, value))

    def _loop(self, node: LoopNode) -> None:
        stream, result = node.inputs[0], node.outputs[0]
        text = self.text[id(stream)]
        wanted = self._wanted(node, result) if not result.name else result.name
        roots = self._roots_of(stream)
        read_later = any(self._last.get(id(v), 0) > self._at for v in (stream, *roots))
        if not text.isidentifier() or read_later:
            name = self.names.take(wanted, id(result))
            self.statements.append(
                Statement((name,), text, shape_comment(stream.type), stream.span, self._indent)
            )
        else:
            for root in roots:
                self.names.free(id(root))
            name = self.names.take(text, id(result))
        inputs = node.inputs[1:]
        indexed = self.shared.streaming and any(id(m) in self.shared.stateful for m in node.modules)
        texts = [name, *(self.text[id(v)] for v in inputs)]
        if any(id(m) in self.shared.collects for m in node.modules):
            texts.append("aux")
        decides = any(id(m) in self.shared.decides for m in node.modules)
        if decides:
            chunks = self._chunks_of(ragged(stream.type))
            texts.append(place(f'f"{node.attribute}.{{i}}"', *chunks))
        if indexed and not self._in_steps(node):
            texts.append("None")
            indexed = False
        elif indexed:
            texts.append(f"state and state.{node.attribute}[i]")
        self.text[id(result)] = name
        self.statements.append(
            Loop(
                node.attribute,
                name,
                f"layer({', '.join(texts)})",
                node.span,
                shape_comment(result.type),
                indexed or decides,
                self._indent,
            )
        )
        self._release(node)

    def _aux(self, node: AuxNode) -> None:
        value = node.inputs[0]
        text = self.text[id(value)]
        self.statements.append(
            Statement((), f"aux.{node.name}.append({text})", "", node.span, self._indent)
        )
        self._release(node)


def called_by(node: Node) -> tuple[Module, ...]:
    """Return the modules that a node calls."""
    if isinstance(node, CallNode):
        return (node.module,)
    return node.modules if isinstance(node, LoopNode) else ()


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
