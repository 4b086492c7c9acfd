"""Whether a step-by-step decoder can be derived: every operation that mixes tokens has a state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokdsl.checks.causality import NotCausal, Outputs, final, root_of
from tokdsl.checks.constancy import Constancy, Level
from tokdsl.checks.facts import Facts
from tokdsl.checks.reach import of_flow
from tokdsl.checks.timing import varying
from tokdsl.diagnostics import Diagnostic, Label, Report, Severity
from tokdsl.graph.parameters import model_parameters
from tokdsl.graph.program import (
    CallNode,
    Input,
    LoopNode,
    Module,
    Node,
    OpNode,
    Program,
    Value,
)
from tokdsl.source import Span
from tokdsl.types.tensors import Axis, ChunksType, Clock, TensorType
from tokdsl.types.time import EVERYTHING, Flow

ORDER = 20


class NoStepForm(Diagnostic, code="TOK404", name="no-step-form", severity=Severity.ERROR):
    """An operation that mixes tokens cannot be computed step by step.

    `require streaming` asks for a decoder that takes a few tokens at a time. Each operation that
    reads other tokens must then keep what it still needs of them: attention keeps keys and
    values, convolutions and recurrences a small state. An operation over all pairs of tokens
    that is written out as an equation keeps nothing. What is joined with all tokens so far must be
    kept as they are: `cache` both.

    Chunks are handed on when they are complete; those of which only first tokens are read, with
    their first token. Only of these a token can read its own chunk. Where both are made of one
    stream, it is cut twice.

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
    why: str

    def message(self) -> str:
        """Return what was found."""
        return f"`{self.operation}` {self.why}"


def check(program: Program, facts: Facts, report: Report) -> None:
    """Set whether the model can be decoded step by step; report what prevents it if required."""
    clocks = stream_clocks(program, facts)
    decoding = Decoding.of(program, clocks)
    constancy = decoding.constancy(
        [(s.name, s.module, [v.name for v in s.inputs]) for s in program.stages]
    )
    stages = [stage for stage in final(program) if stage.name not in decoding.stages]
    causal = all(facts.causal.get(stage.name, False) for stage in stages)
    blockers = _blockers(program, clocks, constancy, causal)
    facts.tables["no_step_form"] = [node for node, _ in blockers]
    reason = _reason(program, clocks) or _of_other_rows(program, constancy)
    facts.streaming = causal and not blockers and not reason
    facts.tables["decoding"] = decoding
    facts.tables["not_streaming"] = reason
    wanted = next((r for r in program.requirements if r.fact == "streaming"), None)
    if wanted is None:
        return
    # what reads later tokens is reported as such
    known = {found.span for found in report if isinstance(found, NotCausal)}
    for node, why in blockers:
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
                why=why,
                labels=labels,
                help=REPAIRS[why],
            )
        )


#: what stands against a step form, with what to do about it
NO_STATE = "reads other tokens and has no step form"
EARLY = "reads its own chunk, which steps know when it is complete"
UNLIKE = "joins values of which a step has different tokens"
FORGETS = "reads tokens farther back than the window of its cache"
AHEAD = "reads later tokens, which a step does not have, though none reaches the result"
REPAIRS = {
    NO_STATE: "write it with `attend`, `conv1d`, `cumsum`, `ema` or `linear_recurrence`",
    EARLY: "read a chunk before, `lag = 1`, or cut the stream a second time",
    UNLIKE: (
        "write `cache` around each operand, with one `window`, and declare an index of kept tokens "
        "with their axis: `score[i: T, j: S]`"
    ),
    FORGETS: "give `cache` a `window` of all tokens that are read, or hide those before",
    AHEAD: "read the own token and earlier ones only",
}


def _blockers(
    program: Program, clocks: set[Clock], constancy: Constancy, causal: bool
) -> list[tuple[OpNode, str]]:
    """Return the operations without a step form, with the reason."""
    modules = forward_modules(program)
    whole = reads_whole_chunks(modules)
    found: list[tuple[OpNode, str]] = []
    doubtful: list[OpNode] = []
    forgetful: list[OpNode] = []
    for module in modules:
        for node in used_nodes(module):
            if not isinstance(node, OpNode):
                continue
            if _is_blocking(node, clocks) or _is_misplaced(node, module, clocks, constancy):
                found.append((node, NO_STATE))
            elif _is_unlike(node, clocks):
                found.append((node, UNLIKE))
            elif _is_early(node, whole):
                found.append((node, EARLY))
            elif not constancy.is_fixed(node) and any(_ahead_flows(node, clocks)):
                doubtful.append(node)
            elif any(_old_flows(node, clocks)):
                forgetful.append(node)
    if causal and (doubtful or forgetful):
        timing = Outputs(program).timing
        found += [(node, AHEAD) for node in doubtful if timing.reads_later(node)]
        found += [(node, FORGETS) for node in forgetful if timing.forgets(node)]
    return found


def _old_flows(node: OpNode, clocks: set[Clock]) -> Iterable[Flow]:
    """Yield the flows along which more may be read than a cache with a window keeps."""
    flows = node.op.flows()
    kept = {axis.name for value in node.outputs for axis in value.type.axes}
    for name, value in varying(node):
        for axis in value.type.axes:
            if axis.clock is None or not (axis.memory and axis.window):
                continue
            if root_of(axis.clock) not in clocks:
                continue
            mine = [flow for flow in flows.get(name, ()) if flow.source == axis.name]
            if not mine and axis.name not in kept:
                mine = [Flow(axis.name, None, EVERYTHING)]
            for flow in mine:
                if not flow.is_own and (flow.target is None or flow.interval.lo < 1 - axis.window):
                    yield flow


def _ahead_flows(node: OpNode, clocks: set[Clock]) -> Iterable[Flow]:
    """Yield the flows along which later tokens of the stream may be read."""
    flows = node.op.flows()
    for name, value in varying(node):
        axes = {a.name for a in value.type.axes if a.clock and root_of(a.clock) in clocks}
        for flow in flows.get(name, ()):
            inside = flow.crossing is not None and flow.crossing.kind == "inside"
            ahead = flow.crossing is None and flow.factor == 1 and flow.interval.hi > 0
            ahead = ahead and flow.target is not None
            if flow.source in axes and (inside or ahead):
                yield flow


def _reason(program: Program, clocks: set[Clock]) -> str:
    """Return what about the inputs and outputs stands against a step-by-step decoder, or ""."""
    if not clocks:
        return "no output is a stream of tokens in time"
    apart = [
        given
        for given in read_inputs(program)
        if _is_on(given.value, clocks) and not _is_aligned(given, clocks)
    ]
    if apart or len(clocks) > 1:
        names = ", ".join(f"`{given.name}`" for given in apart or program.inputs)
        return f"a decoder takes one stream of tokens, and what is not on its clock is {names}"
    for given in read_inputs(program):
        axis = given.value.type.token_axis
        if axis is not None and axis.clock in clocks and axis.size.is_number:
            return f"`{given.name}` always has {axis.size} tokens, which come all at once"
    return _late(program)


def _of_other_rows(program: Program, constancy: Constancy) -> str:
    """Return where chunks meet what is read once: a step has chunks of some rows alone."""
    for module in program.modules:
        for node in module.nodes if constancy.entered(module) else ():
            levels = {constancy.level(v) for v in node.inputs if v.type.batched}
            chunked = any(_is_cut(axis) for v in node.inputs for axis in v.type.axes)
            if isinstance(node, OpNode) and chunked and Level.FIXED in levels:
                return (
                    f"`{node.op.op_name}` (line {user_span(program, node).line}) joins chunks, "
                    "which end in some rows alone, with what is read once for all rows"
                )
    return ""


def _is_cut(axis: Axis) -> bool:
    clock = axis.clock
    while clock is not None and not clock.cut:
        clock = clock.parent
    return clock is not None


def _late(program: Program) -> str:
    """Return which input a decoder cannot be given, because it follows from the whole text."""
    names = {given.name for given in read_inputs(program)}
    for step, _ in program.segments:
        if step.name in names and step.source in ("whole", "tokens"):
            return f"`{step.name}` is known only when the whole text is (`{step.segmentation}`)"
    return ""


def stream_clocks(program: Program, facts: Facts) -> set[Clock]:
    """Return the clocks of the streams that are generated: those of what the objective predicts.

    Without such an objective they are the clocks of the last results.
    """
    predicted = facts.tables.get("predictions")
    names = {p.stage for p in predicted} if isinstance(predicted, list) else set()
    stages = [stage for stage in program.stages if stage.name in names] or final(program)
    return {
        root_of(axis.clock)
        for stage in stages
        for axis in stage.result.type.axes
        if axis.clock is not None and axis.clock.ordered
    }


@dataclass(frozen=True)
class Decoding:
    """What a decoder reads step by step, and what it reads once.

    Args:
        clocks: the clocks of the stream.
        inputs: names of the inputs that are read once, with the prompt.
        stages: names of the stages that are run once.
        parameters: names of the parameters that stages share.
    """

    clocks: frozenset[Clock]
    inputs: tuple[str, ...]
    stages: tuple[str, ...]
    parameters: tuple[str, ...] = ()

    @classmethod
    def of(cls, program: Program, clocks: set[Clock]) -> Decoding:
        """Divide the inputs and stages of a program."""
        streamed = {id(i.value) for i in program.inputs if _is_on(i.value, clocks)}
        stages: list[str] = []
        for stage in program.stages:
            if any(id(value) in streamed for value in stage.inputs):
                streamed.add(id(stage.result))
            else:
                stages.append(stage.name)
        inputs = [i.name for i in read_inputs(program) if id(i.value) not in streamed]
        shared = [node.outputs[0].name for node in model_parameters(program)]
        return cls(frozenset(clocks), tuple(inputs), tuple(stages), tuple(shared))

    def constancy(self, stages: list[tuple[str, Module, list[str]]]) -> Constancy:
        """Return which values of stages, given with their operands' names, are computed once."""
        known = dict.fromkeys((*self.inputs, *self.stages), Level.FIXED)
        found = Constancy(set(self.clocks))
        if not known:
            return found
        known |= dict.fromkeys(self.parameters, Level.FREE)
        found.run(
            (module, [known.get(name, Level.STREAMED) for name in operands])
            for name, module, operands in stages
            if name not in self.stages
        )
        return found


def decode_constancy(program: Program, facts: Facts) -> Constancy | None:
    """Return what decode steps leave out, if there is something."""
    decoding = facts.tables.get("decoding")
    if not facts.streaming or not isinstance(decoding, Decoding) or not decoding.inputs:
        return None
    return decoding.constancy(
        [(s.name, s.module, [v.name for v in s.inputs]) for s in program.stages]
    )


def _is_on(value: Value, clocks: set[Clock]) -> bool:
    axes = value.type.axes
    return any(axis.clock is not None and root_of(axis.clock) in clocks for axis in axes)


def read_inputs(program: Program) -> list[Input]:
    """Return the inputs that stages read; what only the objective reads are labels."""
    read = {id(v) for m in program.modules for node in m.nodes for v in node.inputs}
    read |= {id(v) for m in program.modules for v in m.results}
    used = {
        id(outer)
        for stage in program.stages
        for outer, formal in zip(stage.inputs, stage.module.inputs, strict=True)
        if id(formal) in read
    }
    return [given for given in program.inputs if id(given.value) in used]


def _is_aligned(given: Input, clocks: set[Clock]) -> bool:
    """Whether an input has one entry per token of the stream, and no other token axis."""
    ticks = [axis.clock is not None for axis in given.value.type.axes]
    return ticks[:1] == [True] and not any(ticks[1:]) and given.value.type.axes[0].clock in clocks


def forward_modules(program: Program, training: bool = False) -> list[Module]:
    """Return the modules on which the results of stages depend: not those of statistics only.

    With ``training`` those count that run in training alone.
    """
    found: dict[int, Module] = {}
    stack = [stage.module for stage in program.stages]
    while stack:
        module = stack.pop()
        if id(module) in found:
            continue
        found[id(module)] = module
        for node in used_nodes(module, training):
            if isinstance(node, CallNode):
                stack.append(node.module)
            elif isinstance(node, LoopNode):
                stack.extend(node.modules)
    return [m for m in program.modules if id(m) in found]


def used_nodes(module: Module, training: bool = False) -> list[Node]:
    """Return the nodes on which a module's results depend, in order.

    With ``training`` those count that run in training alone.
    """
    wanted = {id(value) for value in module.results}
    found: list[Node] = []
    for node in reversed(module.nodes):
        if any(id(value) in wanted for value in node.outputs):
            found.append(node)
            left_out: tuple[str, ...] = ()
            if isinstance(node, OpNode) and not training:
                left_out = node.op.training_operands + node.op.step_operands
            names = node.operands if left_out and isinstance(node, OpNode) else ()
            apart = {id(v) for n, v in zip(names, node.inputs, strict=False) if n in left_out}
            wanted |= {id(value) for value in node.inputs} - apart
    return found[::-1]


def _is_blocking(node: OpNode, clocks: set[Clock]) -> bool:
    if node.op.ambient or node.op.state() is not None:
        return False
    flows = node.op.flows()
    kept = {axis.name for value in node.outputs for axis in value.type.axes}
    for name, value in varying(node):
        if isinstance(value.type, ChunksType):
            continue  # the state of `chunks` counts them
        for axis in value.type.axes:
            if not _streams(axis, clocks):
                continue
            mine = [f for f in flows.get(name, ()) if f.source == axis.name]
            if not mine and axis.name not in kept:
                mine = [Flow(axis.name, None, EVERYTHING)]
            if any(_reads_others(f) for f in mine):
                return True
    return False


def _is_unlike(node: OpNode, clocks: set[Clock]) -> bool:
    """Whether an axis has earlier tokens in one operand, and in another it has not as many."""
    found: dict[str, tuple[bool, int]] = {}
    for _, value in varying(node, training=True):
        for axis in value.type.axes if isinstance(value.type, TensorType) else ():
            if axis.clock is not None and root_of(axis.clock) in clocks:
                kept = (axis.memory, axis.window)
                if found.setdefault(axis.name, kept) != kept:
                    return True
    return False


def _is_misplaced(node: OpNode, module: Module, clocks: set[Clock], constancy: Constancy) -> bool:
    """Whether a state would grow along tokens that do not come step by step."""
    if node.op.state() is None or not constancy.entered(module) or constancy.is_fixed(node):
        return False
    axes = [axis for _, value in varying(node) for axis in value.type.axes]
    return not any(axis.clock is not None and root_of(axis.clock) in clocks for axis in axes)


def _is_early(node: OpNode, whole: set[str]) -> bool:
    """Whether tokens read their own chunk where chunks are handed on when they are complete."""
    crossings = [flow.crossing for flows in node.op.flows().values() for flow in flows]
    return any(
        c is not None and c.kind == "expand" and c.clock in whole and not (c.closed or c.lag)
        for c in crossings
    )


def _reads_others(flow: Flow) -> bool:
    """Whether a flow reads other tokens than the own one, so that they must be kept."""
    crossing = flow.crossing
    if crossing is not None and crossing.kind == "reduce":
        return crossing.whole  # a chunk's first token is handed on as it comes
    return not of_flow(flow).is_own or flow.target is None


def reads_whole_chunks(modules: Iterable[Module]) -> set[str]:
    """Return the ragged clocks of which some operation reads more than the first tokens."""
    found: set[str] = set()
    for module in modules:
        for node in used_nodes(module):
            if isinstance(node, OpNode):
                for flows in node.op.flows().values():
                    for flow in flows:
                        crossing = flow.crossing
                        if crossing and crossing.kind == "reduce" and crossing.whole:
                            found.add(crossing.clock)
    return found


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
