"""Whether what a model requires of itself holds: properties, and limits on what it costs."""

from __future__ import annotations

import operator

from tokdsl.checks.facts import Facts
from tokdsl.diagnostics import Diagnostic, Report, Severity, did_you_mean
from tokdsl.graph.diagnostics import UnknownFact
from tokdsl.graph.program import Program, Requirement

ORDER = 60

PROPERTIES = ("causal", "streaming", "isolated")
COMPARISONS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
#: contributors that a finding names
SHOWN = 3


class RequirementNotMet(
    Diagnostic, code="TOK421", name="requirement-not-met", severity=Severity.ERROR
):
    """A limit that the model sets itself is exceeded.

    The notes show what the number is made of: the lines that contribute most, and the formula in
    the lengths of the streams.

    ```tok error
    model m(d: int = 64) {
      stage text(ids: tokens[256]) { embed(d); unembed(256) }
      require params < 10K
    }
    ```
    ```tok ok
    model m(d: int = 64) {
      stage text(ids: tokens[256]) { embed(d); unembed(256) }
      require params < 100K
    }
    ```
    """

    condition: str
    found: str

    def message(self) -> str:
        """Return what was found."""
        return f"`{self.condition}` does not hold: {self.found}"


def check(program: Program, facts: Facts, report: Report) -> None:
    """Report requirements that do not hold and facts that do not exist."""
    for requirement in program.requirements:
        if requirement.operator is None:
            _property(program, facts, requirement, report)
        else:
            _limit(program, facts, requirement, report)


def _property(program: Program, facts: Facts, requirement: Requirement, report: Report) -> None:
    if not program.stages:
        return
    if requirement.fact not in PROPERTIES:
        numbers = requirement.fact in facts.numbers
        _unknown(
            facts,
            requirement,
            report,
            f"`{requirement.fact}` is a number; compare it: `{requirement.fact} < 1M`"
            if numbers
            else None,
        )
        return
    if not _known_scope(program, requirement, report):
        return
    reason = facts.tables.get("not_streaming")
    if requirement.fact == "streaming" and isinstance(reason, str) and reason:
        report.add(RequirementNotMet(span=requirement.span, condition="streaming", found=reason))


def _limit(program: Program, facts: Facts, requirement: Requirement, report: Report) -> None:
    if not _known_scope(program, requirement, report):
        return
    numbers = facts.numbers
    if requirement.scope:
        stages = facts.tables["stages"]
        assert isinstance(stages, dict)
        numbers = stages[requirement.scope]
    value = numbers.get(requirement.fact)
    if value is None:
        _unknown(facts, requirement, report, None)
        return
    assert requirement.operator is not None and requirement.bound is not None
    if COMPARISONS[requirement.operator](value, requirement.bound):
        return
    report.add(
        RequirementNotMet(
            span=requirement.span,
            condition=requirement.span.text,
            found=_found(requirement, value),
            notes=tuple(_made_of(facts, requirement.fact, value, requirement.scope)),
        )
    )


def _known_scope(program: Program, requirement: Requirement, report: Report) -> bool:
    names = [stage.name for stage in program.stages]
    if not requirement.scope or requirement.scope in names:
        return True
    report.add(
        UnknownFact(
            span=requirement.span,
            text=f"`{requirement.scope}` is no stage of this model",
            help=did_you_mean(requirement.scope, names),
        )
    )
    return False


def _unknown(facts: Facts, requirement: Requirement, report: Report, help: str | None) -> None:
    known = [*PROPERTIES, *facts.numbers]
    listed = ", ".join(f"`{name}`" for name in known)
    report.add(
        UnknownFact(
            span=requirement.span,
            text=f"`{requirement.fact}` is not a fact",
            help=help or did_you_mean(requirement.fact, known),
            notes=(f"facts are {listed}",),
        )
    )


def _found(requirement: Requirement, value: float) -> str:
    text = quantity(requirement.fact, value)
    assert requirement.bound is not None
    over = value - requirement.bound
    if requirement.operator in ("<", "<=") and requirement.bound > 0:
        share = 100 * over / requirement.bound
        return f"it is {text}, {share:.3g} % too much" if share < 1000 else f"it is {text}"
    return f"it is {text}"


def _made_of(facts: Facts, fact: str, value: float, scope: str) -> list[str]:
    """Return the largest contributors and the formula behind a number."""
    notes = []
    lines = facts.tables.get("own_lines")
    if isinstance(lines, dict) and value and not scope:
        parts = sorted(lines.items(), key=lambda item: -item[1].get(fact, 0))
        for (file, line), numbers in parts[:SHOWN]:
            part = numbers.get(fact, 0)
            if part > 0:
                share = f"{100 * part / value:.3g} %"
                notes.append(f"{file}:{line}: {quantity(fact, part)} ({share})")
    formulas = facts.tables.get("formulas")
    if isinstance(formulas, dict) and "flops" in fact:
        length = facts.tables["length"]
        notes.append(f"flops = {formulas['flops']}, given at {length} tokens")
    return notes


def quantity(fact: str, value: float) -> str:
    """Return a number with the unit that its fact is in."""
    if fact.endswith(("bytes", "cache_per_token", "bytes_per_token")):
        return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"), " ")
    return _scaled(value, 1000, ("", "K", "M", "B", "T", "e15"), "")


def _scaled(value: float, step: int, units: tuple[str, ...], gap: str) -> str:
    at = 0
    while abs(value) >= step and at < len(units) - 1:
        value /= step
        at += 1
    return f"{value:.4g}{gap if units[at] else ''}{units[at]}"
