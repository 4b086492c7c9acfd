"""From a module's nodes to the statements of its forward."""

from __future__ import annotations

from tokdsl.graph.program import SELECTION, AuxNode, CallNode, LoopNode, Module, Node, OpNode, Value
from tokdsl.lower import selection
from tokdsl.lower.chunks import stage_clock, wanted_clocks
from tokdsl.lower.decisions import place
from tokdsl.lower.fixed import kept_field
from tokdsl.lower.kernels.index import index_arguments
from tokdsl.lower.kernels.nodes import RegionNode
from tokdsl.lower.networks import MixNode
from tokdsl.lower.plan import Loop, Statement
from tokdsl.lower.texts import Texts, Unsupported, shape_comment
from tokdsl.ops.base import Code
from tokdsl.ops.phase import InSteps, InTraining
from tokdsl.types.tensors import (
    TensorType,
    ragged,
)

#: an expression longer than this becomes a statement of its own
LONGEST = 68


class Body(Texts):
    """Statements of one forward, in the order of the nodes."""

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

    # ----------------------------------------------------------------- calls

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

    def _mixed(self, node: MixNode) -> str:
        """Return the call that sends tokens through the experts of a route."""
        x, route = (self.text[id(v)] for v in node.inputs)
        if (network := node.network) is not None:
            function = "mix_some_networks" if node.drops else "mix_networks"
            self.shared.functions.add(function)
            first = "".join(f"self.{node.attribute}.{name}, " for name in network.first)
            first = first if len(network.first) == 1 else first.rstrip(", ")
            middle = self.shared.fused.add(self, network.middle, False)
            last = f"self.{node.attribute}.{network.last}"
            chosen = f"{x}, {route}.pick, {route}.weight"
            start = f", start={node.start}" if node.start else ""
            return f"{function}({chosen}, ({first.rstrip()}), {middle}, {last}{start})"
        self.shared.functions.add("mix_experts")
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
