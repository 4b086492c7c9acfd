"""`tokdsl summary`: what a model is made of, what it costs and what was proved, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tokdsl import driver
from tokdsl.checks.causality import root_of
from tokdsl.checks.cost import LENGTH, Accountant, Amount, lengths, main_clock, routes
from tokdsl.checks.cost import share as share_of
from tokdsl.checks.facts import Facts
from tokdsl.checks.streaming import decode_constancy
from tokdsl.commands.quantities import TIMES, quantity, size
from tokdsl.diagnostics import Report
from tokdsl.graph.definitions import owns
from tokdsl.graph.program import CallNode, LoopNode, Module, Program
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, Clock, RouteType, TensorType, ValueType


@dataclass(frozen=True)
class Row:
    """One line of the table: a stage, a ``repeat`` or a call, with all its repetitions.

    Args:
        name: the attribute in the module, and the definition where that is named otherwise.
        times: how often it stands in the layer or stage above.
        shape: of the result, by axis names.
        clock: the token resolution of the result, "" without one.
        params: trainable numbers; 0 for a further use of shared parameters.
        active: those that one token uses.
        flops: per token, forward over a sequence.
        decode: per decode step after that sequence.
        cache: bytes per past token.
    """

    name: str
    times: int
    shape: str
    clock: str
    params: float
    active: float
    flops: float
    decode: float
    cache: float
    inner: tuple[Row, ...] = ()


@dataclass
class Summary:
    """The whole table of a model, or only the findings if there is none."""

    report: Report
    model: str = ""
    rows: list[Row] = field(default_factory=list)
    numbers: Mapping[str, float] = field(default_factory=dict)
    causal: Mapping[str, bool] = field(default_factory=dict)
    streaming: bool = False
    obstacles: tuple[str, ...] = ()
    formulas: Mapping[str, str] = field(default_factory=dict)
    isolated: bool = False
    mixing: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The table as aligned plain text."""
        return plain(self)

    def as_json(self) -> str:
        """Return the table for machines: numbers without units."""
        content = {
            "model": self.model,
            "length": LENGTH,
            "totals": dict(self.numbers),
            "causal": dict(self.causal),
            "streaming": self.streaming,
            "isolated": self.isolated,
            "formulas": dict(self.formulas),
            "stages": [_plain_row(row) for row in self.rows],
        }
        return json.dumps(content, indent=2) + "\n"


def _plain_row(row: Row) -> dict[str, object]:
    return {
        "name": row.name,
        "times": row.times,
        "shape": row.shape,
        "clock": row.clock,
        "params": row.params,
        "active_params": row.active,
        "flops_per_token": row.flops,
        "decode_flops_per_token": row.decode,
        "cache_per_token": row.cache,
        "inner": [_plain_row(inner) for inner in row.inner],
    }


def summary(path: Path, overrides: Mapping[str, str] | None = None) -> Summary:
    """Return the summary of a spec's model."""
    checked = driver.check_file(path, overrides)
    if checked.report.has_errors or not checked.programs:
        return Summary(checked.report)
    program = checked.programs[0]
    return summarize(program, checked.facts[program.name], checked.report)


def summarize(program: Program, facts: Facts, report: Report) -> Summary:
    """Return the summary of a checked model."""
    walker = Walker(program, facts)
    rows = [
        walker.row(
            use.name,
            use.module,
            1,
            use.result.type,
            Scale(decoded=walker.is_decoded(use.result.type)),
        )
        for use in program.stages
    ]
    blockers = facts.tables.get("no_step_form", [])
    formulas = facts.tables.get("formulas", {})
    mixing = facts.tables.get("mixes_documents", [])
    assert isinstance(blockers, list) and isinstance(formulas, dict) and isinstance(mixing, list)
    return Summary(
        report,
        program.name,
        rows,
        facts.numbers,
        facts.causal,
        facts.streaming,
        tuple(dict.fromkeys(node.op.op_name for node in blockers)),
        formulas,
        facts.isolated,
        tuple(dict.fromkeys(node.op.op_name for node in mixing)),
    )


@dataclass(frozen=True)
class Scale:
    """What turns the cost of one use of a module into that of all uses for one token.

    Args:
        times: repetitions on the way down.
        share: the part of stacked parameters that one token uses.
        rows: what the lengths of dispatched rows are, in tokens.
        owned: 0 for a further use of shared parameters.
        decoded: whether it runs in each decode step; an encoder runs once.
    """

    times: int = 1
    share: float = 1.0
    rows: tuple[tuple[str, Dim], ...] = ()
    owned: int = 1
    decoded: bool = True


class Walker:
    """Builds the rows of a program."""

    def __init__(self, program: Program, facts: Facts) -> None:
        self.accountant = Accountant()
        self.stepping = Accountant(decode_constancy(program, facts), stepping=True)
        self.main = main_clock(program, facts)
        self.full, self.decode = lengths(program, LENGTH, self.main)
        self.tokens = self.full.get(f"T_{self.main.name}", 1.0) if self.main is not None else 1.0

    def is_decoded(self, kind: ValueType) -> bool:
        """Whether a stage with this result runs in each decode step."""
        clocks = [root_of(axis.clock) for axis in kind.axes if axis.clock is not None]
        return not clocks or self.main in clocks

    def row(self, name: str, module: Module, times: int, kind: ValueType, scale: Scale) -> Row:
        """Return the row of a module with those of what it calls."""
        amounts = self.accountant.module(module).total, self.stepping.module(module).total
        return self._row(name, times, kind, amounts, scale, tuple(self.inner(module, scale)))

    def _row(
        self,
        name: str,
        times: int,
        kind: ValueType,
        amounts: tuple[Amount, Amount],
        scale: Scale,
        inner: tuple[Row, ...],
    ) -> Row:
        amount, stepped = amounts
        flops = amount.flops.substitute(dict(scale.rows))  # type: ignore[arg-type]
        step = stepped.flops.substitute(dict(scale.rows))  # type: ignore[arg-type]
        return Row(
            name,
            times,
            shape(kind),
            _clock_text(kind),
            amount.params * scale.times * scale.owned,
            amount.active * scale.times * scale.share * scale.owned,
            self._evaluate(flops, self.full) * scale.times / self.tokens,
            self._evaluate(step, self.decode) * scale.times * scale.decoded,
            stepped.cache * scale.times * scale.decoded,
            inner,
        )

    def _evaluate(self, flops: Dim, numbers: Mapping[str, float]) -> float:
        missing = flops.symbols() - numbers.keys()
        return flops.evaluate({**numbers, **dict.fromkeys(missing, float(LENGTH))})

    def inner(self, module: Module, scale: Scale) -> Iterator[Row]:
        """Yield the rows of the calls and loops in a body that own something."""
        sent = routes(module)
        scale = replace(scale, rows=(*scale.rows, *((n, r.rows) for n, r in sent.items())))
        seen: set[str] = set()
        for node in module.nodes:
            own = scale
            if self.stepping.is_left_out(module, node):
                own = replace(scale, decoded=False)
            if isinstance(node, CallNode) and owns(node.module):
                mine = own
                if node.module.stack is not None and module.stack is None:
                    mine = replace(own, share=own.share * share_of(node, sent))
                if node.attribute in seen:
                    mine = replace(mine, owned=0)
                seen.add(node.attribute)
                name, times = _call_name(node, module)
                yield self.row(name, node.module, times, node.outputs[0].type, mine)
            elif isinstance(node, LoopNode) and any(owns(m) for m in node.modules):
                yield self._loop(node, own)

    def _loop(self, node: LoopNode, scale: Scale) -> Row:
        """Return the row of a loop: its layers, or each kind of layer with its own."""
        counts: dict[int, int] = {}
        for module in node.modules:
            counts[id(module)] = counts.get(id(module), 0) + 1
        kinds = list({id(m): m for m in node.modules}.values())
        kind, total, stepped, inner = node.outputs[0].type, Amount(), Amount(), []
        for number, module in enumerate(kinds, start=1):
            count = counts[id(module)]
            total += self.accountant.module(module).total.times(count)
            stepped += self.stepping.module(module).total.times(count)
            deeper = replace(scale, times=scale.times * count)
            if len(kinds) == 1:
                inner = list(self.inner(module, deeper))
            else:
                inner.append(self.row(f"kind {number}", module, count, kind, deeper))
        amounts = total, stepped
        return self._row(node.attribute, len(node.modules), kind, amounts, scale, tuple(inner))


def _call_name(node: CallNode, module: Module) -> tuple[str, int]:
    """Return what a call is called, and how many instances it stands for."""
    name, definition = node.attribute, node.module.name
    plain = name.rstrip("_0123456789")
    label = name if definition in (name, plain) else f"{name}: {definition}"
    stack = node.module.stack
    if stack is not None and module.stack is None:
        return label, stack.size.number or 1
    return label, 1


# --------------------------------------------------------------------------- words


def shape(kind: ValueType) -> str:
    """Return a shape by axis names: ``[T, heads=32, head_dim=128]``."""
    if isinstance(kind, RouteType):
        return f"{kind.top.size} of {kind.experts.size}"
    if not isinstance(kind, TensorType):
        return ""
    return f"[{', '.join(_axis_text(axis) for axis in kind.axes)}]"


def _axis_text(axis: Axis) -> str:
    name = axis.name.replace("^", "")
    if axis.clock is not None:
        return name
    if axis.group is not None:
        return "rows"
    return name if str(axis.size) == name else f"{name}={axis.size}"


def _clock_text(kind: ValueType) -> str:
    clock = next((a.clock for a in kind.axes if a.clock is not None), None)
    if clock is None:
        return ""
    return clock.name if clock.parent is None else f"{clock.name} ({_rate(clock)})"


def _rate(clock: Clock) -> str:
    if clock.stride is not None and clock.expected < 1:
        return f"{round(1 / clock.expected)}/1"
    return f"1/{clock.stride}" if clock.stride is not None else "learned"


HEADS = ("", "output", "clock", "params", "active", "FLOPs/token", "decode FLOPs", "cache/token")


def cells(summary: Summary) -> list[tuple[str, ...]]:
    """Return the table line by line: the tree in the first column, then numbers with units."""
    found: list[tuple[str, ...]] = []
    for row in summary.rows:
        _add(found, row, "", "")
    return found


def _add(found: list[tuple[str, ...]], row: Row, lead: str, below: str) -> None:
    name = f"{row.name} {TIMES} {row.times}" if row.times > 1 else row.name
    found.append(
        (
            lead + name,
            row.shape,
            row.clock,
            quantity(row.params) if row.params else "",
            quantity(row.active) if row.active else "",
            quantity(row.flops) if row.flops else "",
            quantity(row.decode) if row.decode else "",
            size(row.cache) if row.cache else "",
        )
    )
    for i, inner in enumerate(row.inner):
        last = i == len(row.inner) - 1
        _add(found, inner, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))


def total_cells(summary: Summary) -> tuple[str, ...]:
    """Return the last line of the table."""
    numbers = summary.numbers
    return (
        "total",
        "",
        "",
        quantity(numbers.get("params", 0)),
        quantity(numbers.get("active_params", 0)),
        quantity(numbers.get("flops_per_token", 0)),
        quantity(numbers.get("decode_flops_per_token", 0)),
        size(numbers.get("cache_per_token", 0)),
    )


def notes(summary: Summary) -> list[tuple[str, str]]:
    """Return what is said under the table, each with its name."""
    numbers = summary.numbers
    lookback = {True: "yes", False: "no, it reads later tokens"}
    found = [(f"causal: {name}", lookback[proved]) for name, proved in summary.causal.items()]
    why = f"no: no step form of {', '.join(summary.obstacles)}" if summary.obstacles else "no"
    found.append(("streaming", "yes" if summary.streaming else why))
    mixing = f"no: mixed by {', '.join(summary.mixing)}"
    found.append(("isolated documents", "yes" if summary.isolated else mixing))
    if state := numbers.get("state_bytes"):
        found.append(("state of fixed size", f"{size(state)} per sequence"))
    if activation := numbers.get("activation_bytes_per_token"):
        found.append(("activations", f"{size(activation)} per token in training"))
    if cache := numbers.get("cache_per_token"):
        found.append(("cache", f"{size(cache * LENGTH)} for {LENGTH} tokens"))
    if formula := summary.formulas.get("flops"):
        found.append(("forward FLOPs", formula))
    found.append(
        ("counted", f"all repetitions together; 2 bytes per number; after {LENGTH} tokens")
    )
    return found


def plain(summary: Summary) -> str:
    """Return the table as aligned text, one line per row."""
    rows = cells(summary)
    total = total_cells(summary)
    widths = [max(len(line[i]) for line in (HEADS, *rows, total)) for i in range(len(HEADS))]

    def align(line: tuple[str, ...]) -> str:
        left = [cell.ljust(width) for cell, width in zip(line[:3], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(line[3:], widths[3:], strict=True)]
        return "  ".join((*left, *right)).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    table = [align((summary.model, *HEADS[1:])), rule, *map(align, rows), rule, align(total)]
    said = notes(summary)
    wide = max(len(name) for name, _ in said)
    return "\n".join([*table, "", *(f"{name.ljust(wide)}  {text}" for name, text in said)]) + "\n"


def print_rich(summary: Summary) -> None:
    """Write the table to a terminal, with colours."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=summary.model, title_justify="left", show_footer=True)
    total = total_cells(summary)
    styles = ("bold", "cyan", "green", *[""] * 5)
    for i, head in enumerate(HEADS):
        justify: Literal["left", "right"] = "left" if i < 3 else "right"
        table.add_column(
            head,
            footer=total[i],
            justify=justify,
            style=styles[i],
            no_wrap=i == 0,
        )
    for line in cells(summary):
        table.add_row(*(Text(cell) for cell in line))
    console = Console()
    console.print(table)
    for name, text in notes(summary):
        console.print(Text(f"{name}: ", style="bold"), Text(text), sep="", highlight=False)
