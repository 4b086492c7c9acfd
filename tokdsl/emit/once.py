"""The lines of ``model.py`` for inputs that a decoder reads once, with the prompt."""

from __future__ import annotations

from tokdsl.emit.classes import INDENT
from tokdsl.emit.wrap import wrap
from tokdsl.lower.plan import InputPlan, Plan

#: the classes of ``state.py`` that hold results and clocks between steps
KEPT, KEPT_CLOCK = "Kept", "KeptClock"

Clock = dict[str, str]


def inputs(plan: Plan) -> list[InputPlan]:
    """Return the inputs that are read once."""
    return [given for given in plan.inputs if given.fixed]


def answer(plan: Plan) -> str:
    """Return the stage whose result a step gives: the last one that is run in steps."""
    stages = [stage.name for stage in plan.stages if not stage.fixed]
    return stages[-1] if stages else ""


def states(plan: Plan, clocks: list[Clock]) -> set[str]:
    """Return the classes that the state of the whole model needs for them."""
    found = {KEPT} if inputs(plan) else set()
    return found | {KEPT_CLOCK for clock in clocks if clock["kept"]}


def state_clocks(clocks: list[Clock]) -> list[Clock]:
    """Return the clocks that are part of the state, each with the class that holds it."""
    return [
        {"variable": clock["variable"], "state": KEPT_CLOCK if clock["kept"] else "ClockState"}
        for clock in clocks
        if clock["needed"] and (clock["kept"] or not clock["fixed"])
    ]


def keep_lines(plan: Plan, clocks: list[Clock]) -> list[str]:
    """Return the statements of ``forward`` that keep what steps read."""
    if not (plan.streaming and inputs(plan)):
        return []
    pad = " " * INDENT
    lines = [f"{pad}if state is not None:", f"{pad}    state.read_anew()"]
    values = _values(plan)
    lines += wrap(f"state.read_once.values = ({', '.join(values)}{_comma(values)})", INDENT + 4)
    for clock in clocks:
        if clock["kept"]:
            lines.append(f"{pad}    state.{clock['variable']}.clock = {clock['variable']}")
    return lines


def step_lines(plan: Plan, clocks: list[Clock], calls: dict[str, str]) -> list[str]:
    """Return the body of ``step``: the stages of the stream, with what was kept of the others."""
    if not (plan.streaming and inputs(plan)):
        return []
    pad = " " * INDENT
    lines = []
    if any(stage.collects_aux for stage in plan.stages if not stage.fixed):
        lines.append(f"{pad}aux = None")
    for clock in clocks:
        name = clock["variable"]
        if clock["kept"]:
            lines.append(f"{pad}{name} = state.{name}.read()")
        elif clock["needed"] and not clock["fixed"]:
            lines += wrap(f"{name} = state.{name}.advance({clock['input']}, None)", INDENT)
    values = _values(plan)
    if values:
        left = f"({values[0]},)" if len(values) == 1 else ", ".join(values)
        lines += wrap(f"{left} = state.read_once.read()", INDENT)
    for stage in plan.stages:
        if not stage.fixed:
            lines += wrap(f"{stage.name} = self.{stage.name}({calls[stage.name]})", INDENT)
    return [*lines, f"{pad}return {answer(plan)}"]


def _values(plan: Plan) -> list[str]:
    """Return the inputs and results that the stages of the stream read at every step."""
    given = {i.name for i in inputs(plan)} | {s.name for s in plan.stages if s.fixed}
    read = [name for s in plan.stages if not s.fixed for name in s.inputs if name in given]
    return list(dict.fromkeys(read))


def _comma(values: list[str]) -> str:
    return "," if len(values) == 1 else ""
