"""What a model costs: parameters, work, memory; in all, per stage, per module and per line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from tokdsl.checks.causality import final, root_of
from tokdsl.checks.constancy import Constancy
from tokdsl.checks.facts import Facts
from tokdsl.checks.streaming import Decoding, decode_constancy
from tokdsl.diagnostics import Report
from tokdsl.graph.parameters import model_parameters
from tokdsl.graph.program import (
    SELECTION,
    CallNode,
    LoopNode,
    Module,
    Node,
    OpNode,
    Program,
    StageUse,
)
from tokdsl.ops.base import Op, operand_fields
from tokdsl.ops.route import Dispatch, SplitRows
from tokdsl.ops.select import TopK
from tokdsl.ops.tokens import Patches
from tokdsl.source import Span
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, Clock, RouteType, TensorType, ValueType

ORDER = 40

#: tokens per example for which numbers are given
LENGTH = 2048

#: bytes per entry; the working dtype is taken to have two
BYTES = {"float": 2, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "i64": 8, "bool": 1, "route": 2}

#: operations whose result is a view, a constant, or is never stored
_NOT_STORED = frozenset(
    ("as_axis", "rename", "order", "split", "merge", "slice", "expand", "cache", "visible")
)

Line = tuple[str, int]
ZERO = Dim(())


@dataclass(frozen=True)
class Amount:
    """What a piece of a model costs for one example.

    Args:
        params: trainable numbers.
        active: those that one token uses.
        cache: bytes kept per past token between decode steps.
        state: bytes kept between decode steps whatever the number of tokens.
        flops: work of a forward pass, in the symbols of the lengths; ``S_*`` is the length of
            what attention looks back on.
        activation: bytes of all results, in the same symbols.
    """

    params: float = 0
    active: float = 0
    cache: float = 0
    state: float = 0
    flops: Dim = ZERO
    activation: Dim = ZERO

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.params + other.params,
            self.active + other.active,
            self.cache + other.cache,
            self.state + other.state,
            self.flops + other.flops,
            self.activation + other.activation,
        )

    def times(self, count: int) -> Amount:
        """Return the cost of several such pieces."""
        return Amount(
            self.params * count,
            self.active * count,
            self.cache * count,
            self.state * count,
            self.flops * count,
            self.activation * count,
        )


@dataclass
class Costs:
    """The cost of one module with all that it calls, once.

    Args:
        own_lines: what each line causes by itself or in the library; the lines add up.
        lines: what each line causes with all that it calls.
    """

    total: Amount = Amount()
    own_lines: dict[Line, Amount] = field(default_factory=dict)
    lines: dict[Line, Amount] = field(default_factory=dict)


class Accountant:
    """Costs of modules, each computed once.

    Args:
        constancy: what decode steps leave out; None for a whole pass.
        stepping: whether decode steps are counted.
    """

    def __init__(self, constancy: Constancy | None = None, stepping: bool = False) -> None:
        self._constancy = constancy
        self._stepping = stepping
        self._known: dict[int, Costs] = {}

    def module(self, module: Module) -> Costs:
        """Return the cost of a module."""
        found = self._known.get(id(module))
        if found is None:
            found = self._module(module)
            self._known[id(module)] = found
        return found

    def _module(self, module: Module) -> Costs:
        found = Costs()
        owned: set[str] = set()
        rows = routes(module)
        unread = _unread(module) | _other_way(module, self._stepping)
        looked_at = _looked_at(module)
        for node in module.nodes:
            if id(node) in unread or self.is_left_out(module, node):
                continue
            for part, lines in self._parts(module, node, owned, rows):
                part = _in_tokens(part, rows)
                if looked_at:
                    part = replace(part, flops=part.flops.substitute(looked_at))  # type: ignore[arg-type]
                found.total += part
                _add(found.lines, (node.span.file.name, node.span.line), part)
                _spread(found, node.span, part, lines, rows)
        return found

    def is_left_out(self, module: Module, node: Node) -> bool:
        """Whether decode steps leave out a node, because its result is kept."""
        known = self._constancy
        return known is not None and known.entered(module) and known.is_fixed(node)

    def _parts(
        self, module: Module, node: Node, owned: set[str], rows: Mapping[str, RouteType]
    ) -> Iterator[tuple[Amount, Costs | None]]:
        """Yield the costs of a node: of a primitive, or of each kind of module that it calls."""
        if isinstance(node, OpNode):
            amount = operation(node)
            if node.attribute and node.attribute in owned:  # a further use of what is shared
                amount = replace(amount, params=0, active=0)
            owned.add(node.attribute)
            if node.stack is not None and module.stack is None:
                amount = replace(amount, active=amount.params * share(node, rows))
            yield amount, None
        elif isinstance(node, CallNode):
            costs = self.module(node.module)
            again = node.shared and node.attribute in owned
            owned.add(node.attribute)
            part = 1.0
            if node.module.stack is not None and module.stack is None:
                part = share(node, rows)
            yield from [_scaled(costs, 0 if again else 1, part, 1)]
        elif isinstance(node, LoopNode):
            counts: dict[int, int] = {}
            for body in node.modules:
                counts[id(body)] = counts.get(id(body), 0) + 1
            for body in dict.fromkeys(node.modules):
                yield _scaled(self.module(body), 1, 1.0, counts[id(body)])


def _scaled(costs: Costs, owned: int, share: float, count: int) -> tuple[Amount, Costs]:
    """Return costs for several uses: parameters only if owned, active ones by their share."""

    def scale(amount: Amount) -> Amount:
        amount = amount.times(count)
        return replace(amount, params=amount.params * owned, active=amount.active * owned * share)

    scaled = Costs(
        scale(costs.total),
        {line: scale(a) for line, a in costs.own_lines.items()},
        {line: scale(a) for line, a in costs.lines.items()},
    )
    return scaled.total, scaled


def _spread(
    found: Costs, span: Span, part: Amount, inner: Costs | None, rows: Mapping[str, RouteType]
) -> None:
    """Add a node's costs to lines: what the library costs belongs to the line that calls it."""
    here = (span.file.name, span.line)
    if inner is None:
        _add(found.own_lines, here, part)
        return
    for line, amount in inner.own_lines.items():
        target = here if line[0].startswith("std/") else line
        _add(found.own_lines, target, _in_tokens(amount, rows))
    for line, amount in inner.lines.items():
        if not line[0].startswith("std/") and line != here:
            _add(found.lines, line, _in_tokens(amount, rows))


def _add(into: dict[Line, Amount], line: Line, amount: Amount) -> None:
    into[line] = into[line] + amount if line in into else amount


# --------------------------------------------------------------------------- one operation


def operation(node: OpNode) -> Amount:
    """Return the cost of one use of a primitive."""
    stack = node.stack.size.number or 1 if node.stack is not None else 1
    params = 0
    for spec in node.op.parameters():
        if spec.trainable:
            params += _number(spec.shape) * stack
    cache = state = 0.0
    kept = node.op.state()
    if kept is not None:
        kind = node.inputs[0].type
        rate = _rate(kind)
        cache = (kept.per_token.number or 0) * BYTES.get(kind.dtype, 2) / rate
        state = float((kept.elements.number or 0) * BYTES.get(kind.dtype, 2))
    activation = ZERO
    if not node.op.ambient and node.op.op_name not in _NOT_STORED:
        for value in node.outputs:
            if value.type.batched or any(a.group is not None for a in value.type.axes):
                size = value.type.size * BYTES.get(value.type.dtype, 2)
                activation = activation + size
    flops = _with_past(node.op).cost().flops
    return Amount(params, params, cache, state, flops, activation)


def _number(shape: tuple[Dim, ...]) -> int:
    total = 1
    for size in shape:
        total *= size.number or 0
    return total


def _rate(kind: ValueType) -> float:
    """Return how many tokens of the input there are per token of a value."""
    clock = next((a.clock for a in kind.axes if a.clock is not None), None)
    rate = 1.0
    while clock is not None and clock.parent is not None:
        rate *= clock.expected
        clock = clock.parent
    return rate


def _with_past(op: Op) -> Op:
    """Return an operation whose memory axes have a length of their own: ``S_*``.

    Axes of one name are one axis: where one operand has earlier tokens and another has not (which
    no step can do), it is as long in both.
    """
    kinds = {name: kind for name, kind in vars(op).items() if isinstance(kind, TensorType)}
    added = {a.name for a in operand_fields(type(op)) if a.kind == "companion"}
    shared = {
        axis.name: _past(axis)
        for name, kind in kinds.items()
        for axis in kind.axes
        if axis.memory and name not in added
    }
    changed: dict[str, object] = {}
    for name, kind in kinds.items():
        own = {axis.name: _past(axis) for axis in kind.axes if axis.memory}
        sizes = own if name in added else shared
        axes = tuple(replace(a, size=sizes.get(a.name, a.size)) for a in kind.axes)
        if axes != kind.axes:
            changed[name] = kind.with_axes(axes)
    return type(op)(**{**vars(op), **changed}) if changed else op


def _past(axis: Axis) -> Dim:
    """Return the length of a memory axis."""
    if axis.clock is None:
        return axis.size
    size = Dim.of(f"S_{axis.clock.name}")
    return size * Fraction(1, axis.block) if axis.block else size


# --------------------------------------------------------------------------- choices among tokens


def _unread(module: Module) -> set[int]:
    """Return the equations over pairs that nothing reads: the choices have them of their own."""
    if not any(called.kind == SELECTION for called in module.modules()):
        return set()
    read = {id(v) for v in module.results}
    found: set[int] = set()
    for node in reversed(module.nodes):
        if isinstance(node, OpNode) and not any(id(v) in read for v in node.outputs):
            found.add(id(node))
        else:
            read.update(id(v) for v in node.inputs)
    return found


def _other_way(module: Module, stepping: bool) -> set[int]:
    """Return what serves values alone that are not taken: in short calls, or in the others."""
    not_taken = {
        (id(node), name)
        for node in module.nodes
        if isinstance(node, OpNode)
        for name in node.op.not_taken(stepping)
    }
    if not not_taken:
        return set()
    read = {id(v) for v in module.results}
    found: set[int] = set()
    for node in reversed(module.nodes):
        is_read = any(id(v) in read for v in node.outputs) or not node.outputs
        if not is_read and isinstance(node, OpNode) and not node.op.parameters():
            found.add(id(node))
            continue
        names = node.operands if isinstance(node, OpNode) else tuple("" for _ in node.inputs)
        pairs = zip(names, node.inputs, strict=True)
        read.update(id(v) for name, v in pairs if (id(node), name) not in not_taken)
    return found


def _looked_at(module: Module) -> dict[str, Dim | int]:
    """Return how many keys a choice looks at where it does not look at all of them."""
    if module.kind != SELECTION:
        return {}
    node = next(n for n in module.nodes if isinstance(n, OpNode) and isinstance(n.op, TopK))
    op, key = node.op, module.statics["key"]
    assert isinstance(op, TopK) and isinstance(key, Axis) and key.clock is not None
    if op.among is None:
        return {}
    return {f"S_{key.clock.name}": op.among.axes[-1].size * op.block}


# --------------------------------------------------------------------------- experts


def routes(module: Module) -> dict[str, RouteType]:
    """Return the route behind each axis of dispatched rows in a body, by the axis's size."""
    found: dict[str, RouteType] = {}
    for node in module.nodes:
        if isinstance(node, OpNode) and isinstance(node.op, Dispatch | SplitRows):
            found |= node.op.sent()
    return found


def share(node: Node, rows: Mapping[str, RouteType]) -> float:
    """Return which share of stacked parameters one token uses."""
    for value in node.inputs:
        for axis in value.type.axes:
            route = rows.get(str(axis.size))
            if axis.group is not None and route is not None:
                return route.share
    return 1.0


def _in_tokens(amount: Amount, rows: Mapping[str, RouteType]) -> Amount:
    """Return a cost with the rows of dispatches replaced by tokens times choices."""
    if not rows:
        return amount
    known = {name: route.rows for name, route in rows.items()}
    return replace(
        amount,
        flops=amount.flops.substitute(known),  # type: ignore[arg-type]
        activation=amount.activation.substitute(known),  # type: ignore[arg-type]
    )


# --------------------------------------------------------------------------- the check


def check(program: Program, facts: Facts, report: Report) -> None:
    """Set the numbers and tables of costs."""
    accountant = Accountant()
    total = Amount()
    lines: dict[Line, Amount] = {}
    own_lines: dict[Line, Amount] = {}
    stages: dict[str, dict[str, float]] = {}
    counted: set[int] = set()
    main = main_clock(program, facts)
    full, decode = lengths(program, LENGTH, main)
    decoded = Amount()
    constancy = decode_constancy(program, facts)
    stepping = Accountant(constancy, stepping=True)
    for stage in program.stages:
        costs = accountant.module(stage.module)
        stepped = stepping.module(stage.module)
        stages[stage.name] = _joined(costs, stepped, full, decode, main)
        total += costs.total
        if _is_decoded(stage, main):
            decoded += stepped.total
        if id(stage.module) not in counted:
            counted.add(id(stage.module))
            for line, amount in costs.lines.items():
                _add(lines, line, amount)
            for line, amount in costs.own_lines.items():
                _add(own_lines, line, amount)
    for node in model_parameters(program):
        amount = operation(node)
        total += amount
        for table in (lines, own_lines):
            _add(table, (node.span.file.name, node.span.line), amount)
    facts.numbers.update(_joined(Costs(total), Costs(decoded), full, decode, main))
    facts.tables["length"] = LENGTH
    facts.tables["stages"] = stages
    facts.tables["modules"] = {
        id(m): _joined(accountant.module(m), stepping.module(m), full, decode, main)
        for m in program.modules
    }
    facts.tables["lines"] = {k: _numbers(a, full, decode, main) for k, a in lines.items()}
    facts.tables["own_lines"] = {k: _numbers(a, full, decode, main) for k, a in own_lines.items()}
    facts.tables["formulas"] = {
        "flops": str(total.flops),
        "activation_bytes": str(total.activation),
    }


def _joined(
    whole: Costs,
    stepped: Costs,
    full: dict[str, float],
    decode: dict[str, float],
    main: Clock | None,
) -> dict[str, float]:
    """Return the numbers of a whole pass, and of its decode steps."""
    found = _numbers(whole.total, full, decode, main)
    kept = _numbers(stepped.total, full, decode, main)
    names = ("cache_per_token", "state_bytes", "decode_flops_per_token")
    return found | {name: kept[name] for name in names}


def main_clock(program: Program, facts: Facts) -> Clock | None:
    """Return the clock of the tokens that the model is about: of the stream that it writes."""
    decoding = facts.tables.get("decoding")
    if isinstance(decoding, Decoding) and len(decoding.clocks) == 1:
        return next(iter(decoding.clocks))
    for stage in (*final(program), *program.stages):
        for axis in stage.result.type.axes:
            if axis.clock is not None:
                return root_of(axis.clock)
    for given in program.inputs:
        for axis in given.value.type.axes:
            if axis.clock is not None:
                return axis.clock
    return None


def _is_decoded(stage: StageUse, main: Clock | None) -> bool:
    clocks = [root_of(a.clock) for a in stage.result.type.axes if a.clock is not None]
    return not clocks or main in clocks


def lengths(
    program: Program, length: int, main: Clock | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the lengths of all clocks for a whole sequence, and for one decode step after it."""
    full: dict[str, float] = {}
    decode: dict[str, float] = {}
    for clock in clocks(program):
        tokens = float(length)
        at: Clock | None = clock
        while at is not None and at.parent is not None:
            tokens /= at.expected
            at = at.parent
        full[f"T_{clock.name}"] = full[f"S_{clock.name}"] = tokens
        same = root_of(clock) == main
        decode[f"T_{clock.name}"] = tokens / length if same else tokens
        decode[f"S_{clock.name}"] = tokens
        if clock.cut:
            # places of a chunk: as many as its longest, or twice the expected number
            places = float(clock.longest or 2 * clock.expected)
            full[f"L_{clock.name}"] = decode[f"L_{clock.name}"] = places
    for module in program.modules:
        for node in module.nodes:
            if isinstance(node, OpNode) and isinstance(node.op, Patches):
                count = node.op.count().number
                for table in (full, decode):
                    table["T_patches"] = float(count or length)
    return full, decode


def clocks(program: Program) -> list[Clock]:
    """Return every clock of a program."""
    found: dict[Clock, None] = dict.fromkeys(program.clocks)
    for module in program.modules:
        for node in module.nodes:
            for value in node.outputs:
                for axis in value.type.axes:
                    if axis.clock is not None:
                        found[axis.clock] = None
    return list(found)


def _numbers(
    amount: Amount, full: dict[str, float], decode: dict[str, float], main: Clock | None
) -> dict[str, float]:
    tokens = full.get(f"T_{main.name}", 1.0) if main is not None else 1.0
    flops = _evaluate(amount.flops, full)
    return {
        "params": amount.params,
        "active_params": amount.active,
        "flops": flops,
        "flops_per_token": flops / tokens,
        "decode_flops_per_token": _evaluate(amount.flops, decode),
        "cache_per_token": amount.cache,
        "state_bytes": amount.state,
        "activation_bytes_per_token": _evaluate(amount.activation, full) / tokens,
    }


def _evaluate(size: Dim, numbers: dict[str, float]) -> float:
    missing = size.symbols() - numbers.keys()
    return size.evaluate({**numbers, **dict.fromkeys(missing, float(LENGTH))})


__all__ = ["LENGTH", "Accountant", "Amount", "Costs", "check", "lengths", "main_clock", "operation"]
