"""Whether a step-by-step decoder can be derived: every operation that mixes tokens has a state."""

from __future__ import annotations

from tokdsl.checks.causality import NotCausal, final, root_of
from tokdsl.checks.facts import Facts
from tokdsl.checks.reach import of_flow
from tokdsl.checks.timing import varying
from tokdsl.diagnostics import Diagnostic, Label, Report, Severity
from tokdsl.graph.program import CallNode, LoopNode, Module, Node, OpNode, Program
from tokdsl.source import Span
from tokdsl.types.tensors import Axis, Clock
from tokdsl.types.time import EVERYTHING, Flow

ORDER = 20


class NoStepForm(Diagnostic, code="TOK404", name="no-step-form", severity=Severity.ERROR):
    """An operation that mixes tokens cannot be computed step by step.

    `require streaming` asks for a decoder that takes a few tokens at a time. Each operation that
    reads other tokens must then keep what it still needs of them: attention keeps keys and
    values, convolutions and recurrences a small state. An operation over all pairs of tokens
    that is written out as an equation keeps nothing.

    ```tok error
    block mix(x: [T, d]) -> [T, d] {
      score[i: T, j: T] = dot(x[i], x[j]; over = d)
      weight[i: T, j: T] = softmax(score; over = j, where = j <= i)
      rename(dot(weight, x[j]; over = j); i, T)
    }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) { embed(d); residual { mix() }; unembed(256) }
      objective next_token(text, ids)
      require streaming
    }
    ```
    ```tok ok
    use std.attention { gqa }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) { embed(d); residual { gqa(heads = 2) }; unembed(256) }
      objective next_token(text, ids)
      require streaming
    }
    ```
    """

    operation: str

    def message(self) -> str:
        """Return what was found."""
        return f"`{self.operation}` reads other tokens and has no step form"


def check(program: Program, facts: Facts, report: Report) -> None:
    """Set whether the model can be decoded step by step; report what prevents it if required."""
    stages = final(program)
    clocks = {
        root_of(axis.clock)
        for stage in stages
        for axis in stage.result.type.axes
        if axis.clock is not None and axis.clock.ordered
    }
    blockers = [
        node
        for module in forward_modules(program)
        for node in used_nodes(module)
        if isinstance(node, OpNode) and _is_blocking(node, clocks)
    ]
    facts.tables["no_step_form"] = blockers
    reason = _reason(program, clocks)
    causal = all(facts.causal.get(stage.name, False) for stage in stages)
    facts.streaming = causal and not blockers and not reason
    facts.tables["not_streaming"] = reason
    wanted = next((r for r in program.requirements if r.fact == "streaming"), None)
    if wanted is None:
        return
    # what reads later tokens is reported as such
    known = {found.span for found in report if isinstance(found, NotCausal)}
    for node in blockers:
        span = user_span(program, node)
        if span in known:
            continue
        labels: tuple[Label, ...] = (Label(wanted.span, "required here"),)
        if span != node.span:
            labels = (*labels, Label(node.span, "here, in the library"))
        report.add(
            NoStepForm(
                span=span,
                operation=node.op.op_name,
                labels=labels,
                help="write it with `attend`, `conv1d`, `cumsum`, `ema` or `linear_recurrence`",
            )
        )


def _reason(program: Program, clocks: set[Clock]) -> str:
    """Return what about the inputs and outputs stands against a step-by-step decoder, or ""."""
    if not clocks:
        return "no output is a stream of tokens in time"
    if len(program.inputs) != 1:
        names = ", ".join(f"`{given.name}`" for given in program.inputs)
        return f"a decoder takes one stream of tokens, the inputs are {names}"
    return ""


def forward_modules(program: Program) -> list[Module]:
    """Return the modules on which the results of stages depend: not those of statistics only."""
    found: dict[int, Module] = {}
    stack = [stage.module for stage in program.stages]
    while stack:
        module = stack.pop()
        if id(module) in found:
            continue
        found[id(module)] = module
        for node in used_nodes(module):
            if isinstance(node, CallNode):
                stack.append(node.module)
            elif isinstance(node, LoopNode):
                stack.extend(node.modules)
    return [m for m in program.modules if id(m) in found]


def used_nodes(module: Module) -> list[Node]:
    """Return the nodes on which a module's results depend, in order."""
    wanted = {id(value) for value in module.results}
    found: list[Node] = []
    for node in reversed(module.nodes):
        if any(id(value) in wanted for value in node.outputs):
            found.append(node)
            wanted |= {id(value) for value in node.inputs}
    return found[::-1]


def _is_blocking(node: OpNode, clocks: set[Clock]) -> bool:
    if node.op.ambient or node.op.state() is not None:
        return False
    flows = node.op.flows()
    kept = {axis.name for value in node.outputs for axis in value.type.axes}
    for name, value in varying(node):
        for axis in value.type.axes:
            if not _streams(axis, clocks):
                continue
            mine = [f for f in flows.get(name, ()) if f.source == axis.name]
            if not mine and axis.name not in kept:
                mine = [Flow(axis.name, None, EVERYTHING)]
            if any(not of_flow(f).is_own or f.target is None for f in mine):
                return True
    return False


def _streams(axis: Axis, clocks: set[Clock]) -> bool:
    return axis.clock is not None and not axis.memory and root_of(axis.clock) in clocks


def user_span(program: Program, wanted: Node) -> Span:
    """Return the place in the user's file through which a node of the library is reached."""
    if not wanted.span.file.name.startswith("std/"):
        return wanted.span
    holders = {id(m) for m in program.modules if any(n is wanted for n in m.nodes)}
    for _ in program.modules:
        for module in program.modules:
            for node in module.nodes:
                called: tuple[Module, ...] = ()
                if isinstance(node, CallNode):
                    called = (node.module,)
                elif isinstance(node, LoopNode):
                    called = node.modules
                if any(id(m) in holders for m in called):
                    if not node.span.file.name.startswith("std/"):
                        return node.span
                    holders.add(id(module))
    return wanted.span
