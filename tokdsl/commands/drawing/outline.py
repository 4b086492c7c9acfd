"""From the typed graph of a program to the outline of its diagram."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from tokdsl.commands.drawing.parts import (
    Box,
    Column,
    Fan,
    Frame,
    Join,
    Outline,
    Part,
    Skip,
    StageColumn,
)
from tokdsl.commands.drawing.words import box, kind_of_op, shape
from tokdsl.commands.quantities import TIMES, quantity
from tokdsl.graph.definitions import owns
from tokdsl.graph.program import CallNode, LoopNode, Module, Node, OpNode, Program, Value
from tokdsl.types.tensors import RouteType, TensorType

#: kinds of definitions that a reader wants to see even without parameters
SHOWN = ("block", "router", "attention", "reduction", "expansion")


def outline(program: Program, numbers: Mapping[str, float] | None = None) -> Outline:
    """Return the outline of a program.

    Args:
        program: an elaborated model.
        numbers: facts for the line under the title (``params``, ``active_params``).
    """
    names = {id(use.result): use.name for use in program.stages}
    inputs = {id(i.value): i for i in program.inputs}
    several = len(set(program.clocks)) > 1
    stages = []
    for use in program.stages:
        module = use.module
        reads = {
            id(formal): names[id(actual)]
            for formal, actual in zip(module.inputs, use.inputs, strict=True)
            if id(actual) in names
        }
        column = Tracer(module, reads, several).column(module.inputs[0], module.results[0])
        outside = tuple(
            f"{v.name}: {_input_text(inputs[id(v)].classes, v, several)}"
            for v in use.inputs
            if id(v) in inputs
        )
        source = reads.pop(id(module.inputs[0]), "")
        result = shape(module.results[0].type, several)
        stages.append(StageColumn(use.name, outside, source, column, result))
    text = program.objective.span.text if program.objective is not None else ""
    objective = " ".join(text.removeprefix("objective").split())
    return Outline(program.name, _subtitle(numbers or {}), stages, objective)


def _input_text(classes: object, value: Value, several: bool) -> str:
    return f"tokens[{classes}]" if classes is not None else shape(value.type, several)


def _subtitle(numbers: Mapping[str, float]) -> str:
    parts = []
    total, active = numbers.get("params"), numbers.get("active_params")
    if total:
        parts.append(f"{quantity(total)} parameters")
    if total and active and active < total:
        parts.append(f"{quantity(active)} active per token")
    return ", ".join(parts)


class Tracer:
    """Follows the stream through one module's body.

    Args:
        module: the body.
        reads: names of stages by the values that stand for their results in the body.
        several: whether the program has several input clocks.
    """

    def __init__(self, module: Module, reads: Mapping[int, str], several: bool = False) -> None:
        self.module = module
        self.several = several
        self.reads = reads
        self._weights: dict[int, int] = {}
        self._places: dict[int, int] = {}

    def column(self, start: Value, end: Value) -> Column:
        """Return the parts between two values of the body, in order."""
        steps: list[tuple[Value, Part | None, Value]] = []
        value = end
        while value is not start and value.node is not None:
            part, before = self._step(value)
            if before is None:
                if part is not None:
                    steps.append((value, part, value))
                break
            steps.append((value, part, before))
            value = before
        steps.reverse()
        return self._column(value, steps)

    def _column(self, first: Value, steps: list[tuple[Value, Part | None, Value]]) -> Column:
        column, last = Column(), shape(first.type, self.several)
        places = {id(first): 0}
        pending: list[tuple[Value, int]] = []
        for value, part, before in steps:
            if part is not None:
                pending += [(other, len(column.parts)) for other in self._others(value, before)]
                column.parts += _spread(part)
                column.shapes += [""] * (len(column.parts) - len(column.shapes))
            places[id(value)] = len(column.parts)
            text = shape(value.type, self.several)
            if column.parts and text != last:
                column.shapes[-1] = text
            last = text
        for other, at in pending:
            origin = next((places[id(v)] for v in self.spine(other) if id(v) in places), None)
            if origin is not None and origin < at:
                column.skips.append(Skip(origin, at))
        return column

    def _others(self, value: Value, before: Value) -> list[Value]:
        """Return the further streams that a call takes in."""
        node = value.node
        if not isinstance(node, CallNode):
            return []
        return [v for v in node.inputs if v is not before and self._is_stream(v)]

    # ----------------------------------------------------------------- the main way back

    def spine(self, value: Value) -> list[Value]:
        """Return a value and those that the stream came through, the newest first."""
        found = [value]
        while value.node is not None:
            before = self._main(value.node)
            if before is None:
                break
            found.append(before)
            value = before
        return found

    def _main(self, node: Node) -> Value | None:
        """Return the operand through which the stream comes: the one with most work behind it."""
        streams = [v for v in node.inputs if self._is_stream(v)]
        if not streams:
            return None
        if isinstance(node, LoopNode):
            return node.inputs[0]
        return max(streams, key=lambda v: self._weight(v))

    def _is_stream(self, value: Value) -> bool:
        kind = value.type
        if isinstance(kind, RouteType):
            return True
        if not isinstance(kind, TensorType) or not (kind.batched and kind.axes):
            return False
        return kind.is_float or value.node is None

    def _weight(self, value: Value) -> int:
        """Return how much lies behind a value; the module's own stream counts for something."""
        if id(value) in self._weights:
            return self._weights[id(value)]
        self._weights[id(value)] = 0
        node = value.node
        weight = 0
        if node is None:
            weight = 1 if value is self.module.inputs[0] else 0
        else:
            own = 2 if node.attribute or isinstance(node, (CallNode, LoopNode)) else 0
            behind = [self._weight(v) for v in node.inputs if self._is_stream(v)]
            weight = own + max(behind, default=0)
        self._weights[id(value)] = weight
        return weight

    # ----------------------------------------------------------------- one step back

    def _step(self, value: Value) -> tuple[Part | None, Value | None]:
        """Return what made a value, and the value that it was made from."""
        node = value.node
        assert node is not None
        if isinstance(node, OpNode):
            joined = self._join(value, node)
            if joined is not None:
                return joined
            return self._op(node), self._main(node)
        before = self._main(node)
        if isinstance(node, LoopNode):
            return self._loop(node), before
        assert isinstance(node, CallNode)
        return self._call(node), before

    def _join(self, value: Value, node: OpNode) -> tuple[Part | None, Value | None] | None:
        name = node.op.op_name
        if name not in ("add", "multiply") or len(node.inputs) != 2:
            return None
        terms = [v for v in node.inputs if self._is_stream(v)]
        if len(terms) < 2:
            return None
        origin = self._common(terms)
        if origin is None:
            return self._added(terms) if name == "add" else None
        if name == "add":
            terms = self._flat(value, origin)
        branches = [self.column(origin, term) for term in terms if term is not origin]
        drawn = [branch for branch in branches if branch.parts]
        bypass = len(drawn) < len(terms)
        if not drawn or (len(drawn) == 1 and not bypass):
            return None
        return Join(drawn, bypass, "+" if name == "add" else TIMES), origin

    def _flat(self, value: Value, origin: Value) -> list[Value]:
        """Return the terms of a sum all of which come from one value."""
        node = value.node
        if value is origin or not isinstance(node, OpNode) or node.op.op_name != "add":
            return [value]
        terms = [v for v in node.inputs if self._is_stream(v)]
        if len(terms) < 2 or any(origin not in self.spine(v) for v in terms):
            return [value]
        if value.node is not None and self._common(terms) is not origin:
            return [value]
        return [term for v in terms for term in self._flat(v, origin)]

    def _common(self, values: list[Value]) -> Value | None:
        """Return the newest value that all came from."""
        others = [set(map(id, self.spine(v))) for v in values[1:]]
        for value in self.spine(values[0]):
            if all(id(value) in other for other in others):
                return value
        return None

    def _added(self, terms: list[Value]) -> tuple[Part | None, Value | None]:
        """A sum with something that does not come from the stream, as learned positions."""
        main = max(terms, key=self._weight)
        extra = next(v for v in terms if v is not main)
        made = self.column(main, extra).parts
        if made and isinstance(made[-1], Box):
            made[-1].title = f"+ {made[-1].title}"
            return made[-1], main
        return None, main

    # ----------------------------------------------------------------- parts

    def _op(self, node: OpNode) -> Part | None:
        op = node.op
        table = self._table(node)
        if table:
            return Box(table, (), "embedding")
        if op.elementwise or not (op.parameters() or op.state() is not None):
            return None
        title = node.attribute.rstrip("_0123456789") or op.op_name
        return Box(title, (), kind_of_op(op))

    def _table(self, node: OpNode) -> str:
        """Return the name of a parameter that is read by index or multiplied with, or ""."""
        for value in node.inputs:
            made = value.node
            if isinstance(made, OpNode) and made.op.parameters() and not made.inputs:
                main = self._main(node)
                looked_up = main is not None and not main.type.is_float
                if looked_up or node.op.op_name == "dot":
                    return made.attribute
        return ""

    def _readers(self, module: Module, inputs: tuple[Value, ...]) -> dict[int, str]:
        return {
            id(formal): self.reads[id(actual)]
            for formal, actual in zip(module.inputs, inputs, strict=False)
            if id(actual) in self.reads
        }

    def _call(self, node: CallNode) -> Part | None:
        module = node.module
        if module.kind not in (*SHOWN, "stage") and not owns(module):
            return None
        reads = self._readers(module, node.inputs)
        inner = Tracer(module, reads, self.several)
        if module.kind == "stage":
            column = inner.column(module.inputs[0], module.results[0])
            return Frame(module.name, "", "stage", column, _rate(node))
        fan = inner.fan()
        if fan is not None:
            return fan
        if module.kind in ("block", "fn"):
            column = inner.column(module.inputs[0], module.results[0])
            if _is_composed(column):
                return Frame(module.name, "", "block", column)
        made = box(module)
        made.reads = tuple(dict.fromkeys(reads.values()))
        return made

    def fan(self) -> Fan | None:
        """Return router and experts, if this is a mixture."""
        calls = [n for n in self.module.nodes if isinstance(n, CallNode)]
        experts = [n for n in calls if n.module.stack is not None and self.module.stack is None]
        routers = [n for n in calls if isinstance(n.module.results[0].type, RouteType)]
        if not experts:
            return None
        found: list[tuple[Box, int]] = []
        for node in experts:
            assert node.module.stack is not None
            found.append((box(node.module), node.module.stack.size.number or 1))
        router = box(routers[0].module) if routers else None
        chosen = 1
        if routers:
            route = routers[0].module.results[0].type
            assert isinstance(route, RouteType)
            chosen = route.top.size.number or 1
        rest = [n for n in calls if n not in experts and n not in routers and owns(n.module)]
        always = [box(n.module) for n in rest]
        total = sum(count for _, count in found)
        note = f"{chosen} of {total}" if router is not None else f"{total}"
        return Fan(self.module.name, note, router, found, chosen, always)

    def _loop(self, node: LoopNode) -> Part | None:
        if not any(owns(m) or m.nodes for m in node.modules):
            return None
        reads = self._readers(node.modules[0], node.inputs)
        return _repeat(list(node.modules), reads, self.several)


def _is_composed(column: Column) -> bool:
    """Whether a body is worth a frame of its own: blocks around a residual stream, or several."""
    if any(isinstance(part, Join | Frame | Fan) for part in column.parts):
        drawn = [b for part in column.parts if isinstance(part, Join) for b in part.branches]
        boxes = [p for b in drawn for p in b.parts]
        return any(not isinstance(p, Box) or p.kind != "embedding" for p in boxes) or not drawn
    return False


def _rate(node: CallNode) -> str:
    """Return what a nested stage's clock is, if it has one of its own."""
    axis = node.module.inputs[0].type.token_axis
    clock = axis.clock if axis is not None else None
    if clock is None or clock.parent is None:
        return ""
    if clock.stride is not None and clock.expected < 1:
        return f"{round(1 / clock.expected)} per one of {clock.parent.name}"
    if clock.stride is not None:
        return f"one per {clock.stride} of {clock.parent.name}"
    return f"learned, coarser than {clock.parent.name}"


def _repeat(modules: list[Module], reads: Mapping[int, str], several: bool) -> Frame:
    """Return the frame of a loop, with the pattern of its layers inside."""
    period = _period(modules)
    times = len(modules) // period
    rest = len(modules) % period
    if rest:
        whole = _repeat(modules[: len(modules) - rest], reads, several)
        last = _repeat(modules[-rest:], reads, several)
        return Frame("", "", "block", _stacked([*_spread(whole), *_spread(last)]))
    runs = [list(group) for _, group in groupby(modules[:period], key=id)]
    if len(runs) == 1:
        count = times * len(runs[0])
        tag = f"{TIMES} {count}" if count > 1 else ""
        only = _layer(runs[0][0], reads, several)
        part = only.parts[0] if len(only.parts) == 1 else None
        if isinstance(part, Frame) and part.style == "block":
            return Frame(part.title, tag, "repeat", part.inner)
        return Frame("", tag, "repeat" if tag else "block", only)
    inner = Column()
    for run in runs:
        column = _layer(run[0], reads, several)
        if len(run) == 1 and len(column.parts) == 1:
            inner.parts.append(column.parts[0])
        else:
            tag = f"{TIMES} {len(run)}" if len(run) > 1 else ""
            inner.parts.append(Frame("", tag, "repeat" if tag else "block", column))
        inner.shapes.append("")
    tag = f"{TIMES} {times}" if times > 1 else ""
    return Frame("", tag, "repeat" if tag else "block", inner)


def _stacked(parts: list[Part]) -> Column:
    return Column(parts, [""] * len(parts))


def _spread(part: Part) -> list[Part]:
    """Return the parts inside a frame that says nothing, or the part itself."""
    if isinstance(part, Frame) and part.style == "block" and not (part.title or part.tag):
        return part.inner.parts
    return [part]


def _layer(module: Module, reads: Mapping[int, str], several: bool) -> Column:
    return Tracer(module, reads, several).column(module.inputs[0], module.results[0])


def _period(modules: list[Module]) -> int:
    """Return the length of the shortest piece that repeats; the last time it may be cut short."""
    total = len(modules)
    for period in range(1, total // 2 + 1):
        if all(modules[i] is modules[i % period] for i in range(total)):
            return period
    return total


__all__ = ["Tracer", "outline"]
