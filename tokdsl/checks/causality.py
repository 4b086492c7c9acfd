"""Whether every output depends only on its own and earlier tokens, and how it fails to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokdsl.checks.facts import Facts
from tokdsl.checks.next_token import Prediction, predictions
from tokdsl.checks.path import Hop, Tracer
from tokdsl.checks.reach import EVERYWHERE, FIRST, Reach, Source
from tokdsl.checks.timing import Body, Timing
from tokdsl.diagnostics import Diagnostic, Label, Report, Severity
from tokdsl.graph.program import Module, OpNode, Program, StageUse
from tokdsl.source import Span
from tokdsl.types.tensors import Axis, Clock
from tokdsl.types.time import INFINITY

ORDER = 10

#: independent causes that are reported for one output
MAX_CAUSES = 8


class NotCausal(Diagnostic, code="TOK401", name="not-causal", severity=Severity.ERROR):
    """An output sees tokens that come after its own.

    A model that is trained to predict later tokens, or that requires `causal`, may read only its
    own and earlier positions: what it saw in training is not there when it generates. The notes
    show the way by which a position saw a later one, from the output back to the input.

    ```tok error
    use std.attention { gqa }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        residual { gqa(heads = 2, mask = full) }
        unembed(256)
      }
      objective next_token(text, ids)
    }
    ```
    ```tok ok
    use std.attention { gqa }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        residual { gqa(heads = 2, mask = causal) }
        unembed(256)
      }
      objective next_token(text, ids)
    }
    ```
    """

    stage: str
    input: str
    sees: str

    def message(self) -> str:
        """Return what was found."""
        return f"`{self.stage}` at position t sees {self.sees} of `{self.input}`"

    def label(self) -> str:
        """Return what the place does."""
        return "reads later tokens"


class CausalityUndecided(
    Diagnostic, code="TOK402", name="causality-undecided", severity=Severity.ERROR
):
    """It cannot be decided whether an output sees later tokens.

    A condition that hides later tokens must compare the two positions, such as `j <= i` or
    `j <= i and i - j < 64`; other conditions may be joined to it with `and`. A position that is
    looked up must come from a choice among earlier ones.

    ```tok error
    use std.attention { gqa }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        residual { gqa(heads = 2, mask = |i, j| j * j <= i * i) }
        unembed(256)
      }
      objective next_token(text, ids)
    }
    ```
    ```tok ok
    use std.attention { gqa }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        residual { gqa(heads = 2, mask = |i, j| j <= i and i - j < 8) }
        unembed(256)
      }
      objective next_token(text, ids)
    }
    ```
    """

    stage: str
    input: str

    def message(self) -> str:
        """Return what was found."""
        return f"it cannot be decided whether `{self.stage}` sees later tokens of `{self.input}`"

    def label(self) -> str:
        """Return what the place does."""
        return "which positions are read here is not known"


class ChoiceOverTokens(
    Diagnostic, code="TOK403", name="choice-over-tokens", severity=Severity.WARNING
):
    """Tokens compete with later tokens for being chosen.

    Whether a token is chosen depends on tokens that come later. Decoding step by step cannot
    know them, so it would choose differently from training.

    ```tok error
    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        residual {
          score = sum(linear(it; one: 1); over = one)
          best, _ = topk(score; k: 4, over = T)
          where(score >= min(best; over = k), it * sigmoid(score), 0.0)
        }
        rmsnorm()
        unembed(256)
      }
    }
    ```
    ```tok ok
    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        residual {
          score = sum(linear(it; one: 1); over = one)
          it * sigmoid(score)
        }
        rmsnorm()
        unembed(256)
      }
    }
    ```
    """

    stage: str

    def message(self) -> str:
        """Return what was found."""
        return f"in `{self.stage}` tokens are chosen among later ones: decoding chooses differently"

    def label(self) -> str:
        """Return what the place does."""
        return "compares all tokens of the sequence"


class ReadsAheadInTraining(
    Diagnostic, code="TOK407", name="reads-ahead-in-training", severity=Severity.WARNING
):
    """A stage that is causal in inference sees later tokens in training.

    `in_training` takes a value that depends on later tokens. The decoder does not contain it, so
    that it is legal; but the model is trained on something that it does not meet when it
    generates. If that is meant, allow it at the line: `# allow reads-ahead-in-training`.

    ```tok error
    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        in_training(it - mean(it; over = T), it)
        unembed(256)
      }
      objective next_token(text, ids)
    }
    ```
    ```tok ok
    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        in_training(it - mean(it; over = T), it)  # allow reads-ahead-in-training
        unembed(256)
      }
      objective next_token(text, ids)
    }
    ```
    """

    stage: str
    input: str

    def message(self) -> str:
        """Return what was found."""
        return f"in training `{self.stage}` sees later tokens of `{self.input}`"

    def label(self) -> str:
        """Return what the place does."""
        return "reads later tokens, in training alone"


@dataclass(frozen=True)
class Violation:
    """An output that may read later tokens of one source."""

    source: Source
    key: str | None
    reach: Reach

    @property
    def is_certain(self) -> bool:
        """Whether a later token is certainly read."""
        return self.reach.sure > 0 or (bool(self.reach.levels) and self.reach.sure == self.reach.hi)


class Outputs:
    """What the stages of a program read of its inputs, under one analysis."""

    def __init__(
        self, program: Program, ignored: frozenset[int] = frozenset(), training: bool = False
    ) -> None:
        self.program = program
        self.timing = Timing(ignored, training)
        root = model_body(program)
        self.body: Body | None = None
        if root is not None:
            self.body = self.timing.root(root, [i.value for i in program.inputs])

    def violations(self, stage: StageUse) -> Iterator[Violation]:
        """Yield the later tokens that a stage's result may read."""
        if self.body is None:
            return
        axes = {axis.name: axis for axis in stage.result.type.axes}
        for source, keys in self.body.reads.get(id(stage.result), {}).items():
            clock = self._clock(source)
            if clock is None or not clock.ordered:
                continue
            shared = [a for a in axes.values() if a.clock is not None and root_of(a.clock) == clock]
            timed = [a for a in axes.values() if a.clock is not None and a.clock.ordered]
            for key, reach in keys.items():
                if self._reads_later(key, reach, axes, clock, bool(shared), bool(timed)):
                    yield Violation(source, key, reach)

    def _reads_later(
        self,
        key: str | None,
        reach: Reach,
        axes: dict[str, Axis],
        clock: Clock,
        shared: bool,
        timed: bool,
    ) -> bool:
        if key == FIRST:
            return False
        if key is EVERYWHERE:
            return shared or not timed
        mine = axes[key].clock
        if mine is None or root_of(mine) != clock:
            return False
        return reach.is_late

    def _clock(self, source: Source) -> Clock | None:
        index, name = source
        axis = self.program.inputs[index].value.type.axes
        found = next((a for a in axis if a.name == name), None)
        return root_of(found.clock) if found is not None and found.clock is not None else None


def root_of(clock: Clock) -> Clock:
    """Return the clock of the input that a clock was made from."""
    while clock.parent is not None:
        clock = clock.parent
    return clock


def model_body(program: Program) -> Module | None:
    """Return the module of the model's own statements, which call its stages."""
    return program.stages[0].result.owner if program.stages else None


# --------------------------------------------------------------------------- what must be causal


@dataclass(frozen=True)
class Duty:
    """A stage that must be causal, with the reason; only for one input if that is given."""

    stage: StageUse
    reason: Label
    input: str = ""


def duties(program: Program, predicted: list[Prediction]) -> list[Duty]:
    """Return which stages must be causal, each once per input."""
    found: list[Duty] = []
    by_name = {stage.name: stage for stage in program.stages}
    objective = program.objective.span if program.objective is not None else program.span
    for prediction in predicted:
        text = f"predicts `{prediction.input}` {prediction.ahead} ahead, so it must be causal"
        found.append(Duty(by_name[prediction.stage], Label(objective, text), prediction.input))
    for requirement in program.requirements:
        if requirement.fact not in ("causal", "streaming") or requirement.operator is not None:
            continue
        reason = Label(requirement.span, "required here")
        if requirement.scope:
            stages = [by_name[requirement.scope]] if requirement.scope in by_name else []
        else:
            predicting = {p.stage for p in predicted}
            stages = [s for s in program.stages if s.name in predicting] or final(program)
        found += [Duty(stage, reason) for stage in stages]
    return found


def final(program: Program) -> list[StageUse]:
    """Return the stages whose result no other stage uses."""
    used = {id(v) for stage in program.stages for v in stage.inputs}
    return [stage for stage in program.stages if id(stage.result) not in used] or program.stages


# --------------------------------------------------------------------------- the check


def check(program: Program, facts: Facts, report: Report) -> None:
    """Report outputs that see later tokens; set which stages are causal."""
    outputs = Outputs(program)
    if outputs.body is None:
        return
    for stage in program.stages:
        facts.causal[stage.name] = not any(outputs.violations(stage))
    facts.tables["reads"] = {
        stage.name: outputs.body.reads.get(id(stage.result), {}) for stage in program.stages
    }
    predicted = predictions(program)
    facts.tables["predictions"] = predicted
    must = duties(program, predicted)
    done: set[tuple[str, int]] = set()
    for duty in must:
        _report_causes(program, outputs, duty, done, report)
    held = {duty.stage.name for duty in must}
    _warn_of_choices(program, facts, held, report)
    _warn_of_training(program, facts, report)


def _report_causes(
    program: Program,
    outputs: Outputs,
    duty: Duty,
    done: set[tuple[str, int]],
    report: Report,
) -> None:
    """Report every independent cause: each is taken away and the rest analysed again."""
    ignored: set[int] = set()
    for _ in range(MAX_CAUSES):
        found = [v for v in outputs.violations(duty.stage) if _concerns(program, v, duty)]
        worst = max(found, key=lambda v: (v.reach.sure, v.reach.hi), default=None)
        if worst is None or outputs.body is None:
            return
        tracer = Tracer(outputs.timing, worst.is_certain)
        hops = tracer.trace(outputs.body, duty.stage.result, worst.source, worst.key)
        cause = _cause(program, duty.stage, worst, hops, ignored)
        _report(program, duty, worst, hops, cause, done, report)
        if cause is None or id(cause.node) in ignored:
            return
        ignored.add(id(cause.node))
        outputs = Outputs(program, frozenset(ignored))


def _cause(
    program: Program, stage: StageUse, violation: Violation, hops: list[Hop], ignored: set[int]
) -> Hop | None:
    """Return the operation without which the way would read no later token.

    What reads ahead on one clock counts before a change of clock, which may be right in itself.
    """
    likely = sorted(hops, key=lambda h: (h.adds.hi, h.op is not None), reverse=True)
    if not any(hop.adds.levels for hop in hops):
        return likely[0] if likely else None
    ahead = [hop for hop in likely if hop.adds.hi > 0 and not hop.adds.levels]
    tried = [*ahead, *(hop for hop in likely if hop.adds.levels)][:MAX_CAUSES]
    for hop in tried if len(tried) > 1 else ():
        found = Outputs(program, frozenset({*ignored, id(hop.node)})).violations(stage)
        if not any((v.source, v.key) == (violation.source, violation.key) for v in found):
            return hop
    return likely[0] if likely else None


def _concerns(program: Program, violation: Violation, duty: Duty) -> bool:
    return not duty.input or program.inputs[violation.source[0]].name == duty.input


def _report(
    program: Program,
    duty: Duty,
    violation: Violation,
    hops: list[Hop],
    cause: Hop | None,
    done: set[tuple[str, int]],
    report: Report,
) -> None:
    given = program.inputs[violation.source[0]]
    span = cause.user_span if cause is not None else duty.stage.module.span
    place = (span.file.name, span.start)
    if place in done:
        return
    done.add(place)
    labels = _labels(hops, cause, span, duty)
    trace = cause.trace if cause is not None else ()
    notes = tuple(_path(program, duty.stage, given.name, hops))
    if not violation.is_certain:
        report.add(
            CausalityUndecided(
                span=span,
                stage=duty.stage.name,
                input=given.name,
                labels=labels,
                notes=notes,
                trace=trace,
                help="limit it with a condition on the positions: `... and j <= i`",
            )
        )
        return
    report.add(
        NotCausal(
            span=span,
            stage=duty.stage.name,
            input=given.name,
            sees=_sees(violation.reach),
            labels=labels,
            notes=notes,
            help=cause.op.repair() if cause is not None and cause.op is not None else None,
            trace=trace,
        )
    )


def _labels(hops: list[Hop], cause: Hop | None, span: Span, duty: Duty) -> tuple[Label, ...]:
    found = [duty.reason]
    if cause is not None and cause.span != span:
        found.append(Label(cause.span, "here, in the library"))
    places = {(span.file.name, span.start)}
    for hop in hops:
        place = (hop.user_span.file.name, hop.user_span.start)
        if hop is not cause and place not in places and len(found) < 6:
            places.add(place)
            found.append(Label(hop.user_span, hop.text))
    return tuple(found)


def _path(program: Program, stage: StageUse, given: str, hops: list[Hop]) -> Iterator[str]:
    """Yield one line per operation on the way, from the output back to the input."""
    yield f"the way from position t of `{stage.name}` back to `{given}`:"
    for hop in hops:
        inside = "".join(f" {label.text}" for label in hop.trace[-1:])
        yield f"  {hop.span.file.name}:{hop.span.line}{inside}: {hop.text}"


def _sees(reach: Reach) -> str:
    if reach.sure == INFINITY:
        return "every later position"
    if reach.levels:
        return "later tokens of its own chunk"
    if reach.rate > 1:
        return f"up to {round(reach.sure):g} positions past its first token"
    return f"position t+{max(1, round(reach.sure)):g}"


def _warn_of_choices(program: Program, facts: Facts, held: set[str], report: Report) -> None:
    """Warn where only a choice among all tokens keeps a stage from being causal."""
    loose = [s for s in program.stages if s.name not in held and not facts.causal[s.name]]
    if not loose:
        return
    choices = [
        node
        for module in program.modules
        for node in module.nodes
        if isinstance(node, OpNode) and node.op.decision and _over_tokens(node)
    ]
    if not choices:
        return
    without = Outputs(program, frozenset(_with_lookups(program, choices)))
    for stage in loose:
        if not any(without.violations(stage)):
            report.add(
                ChoiceOverTokens(
                    span=choices[0].span,
                    stage=stage.name,
                    help="let every token choose for itself, or compare with a learned threshold",
                )
            )


def _warn_of_training(program: Program, facts: Facts, report: Report) -> None:
    """Warn of causal stages that read later tokens in training."""
    nodes = [n for m in program.modules for n in m.nodes if isinstance(n, OpNode)]
    if not any(node.op.training_operands for node in nodes):
        return
    outputs = Outputs(program, training=True)
    places: set[Span] = set()
    for stage in program.stages:
        for found in outputs.violations(stage) if facts.causal[stage.name] else ():
            assert outputs.body is not None
            tracer = Tracer(outputs.timing, found.is_certain)
            hops = tracer.trace(outputs.body, stage.result, found.source, found.key)
            cause = max(hops, key=lambda h: (h.adds.hi, h.op is not None), default=None)
            span = cause.user_span if cause is not None else stage.module.span
            if span in places:
                continue
            places.add(span)
            given = program.inputs[found.source[0]].name
            report.add(
                ReadsAheadInTraining(
                    span=span,
                    stage=stage.name,
                    input=given,
                    labels=(Label(cause.span, "here"),) if cause and cause.span != span else (),
                    notes=tuple(_path(program, stage, given, hops)),
                    trace=cause.trace if cause is not None else (),
                )
            )


def _over_tokens(node: OpNode) -> bool:
    kinds = [v.type for v in node.outputs]
    return any(
        a.clock is not None and a.clock.ordered and all(k.axes and a not in k.axes for k in kinds)
        for v in node.inputs
        for a in v.type.axes
    )


def _with_lookups(program: Program, choices: list[OpNode]) -> set[int]:
    """Return the choices and what looks up or puts back the tokens that they chose."""
    found = {id(node) for node in choices}
    for module in program.modules:
        later = {id(v) for node in module.nodes if id(node) in found for v in node.outputs}
        for node in module.nodes:
            if any(id(v) in later for v in node.inputs):
                later |= {id(v) for v in node.outputs}
                if isinstance(node, OpNode) and "index" in node.operands:
                    found.add(id(node))
    return found


__all__ = ["Duty", "Outputs", "Violation", "check", "final", "model_body"]
