"""Whatever is done with token axes, the compiler answers: with findings, or with a package."""

from __future__ import annotations

import random

import pytest

from tests.properties.token_axes import Grown
from tokdsl.diagnostics import Severity
from tokdsl.driver import check_source, emit_program
from tokdsl.lower.texts import Unsupported
from tokdsl.resolve import modules
from tokdsl.source import SourceFile

#: what is said of a program that is well typed
ABOUT_TIME = {"not-causal", "no-step-form"}


@pytest.fixture(autouse=True)
def library_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time of checking a small program is that of reading the library."""
    parse, known = modules.parse_any, {}

    def parsed(source: SourceFile) -> object:
        if not source.name.startswith("std/"):
            return parse(source)
        return known.setdefault(source.name, known.get(source.name) or parse(source))

    monkeypatch.setattr(modules, "parse_any", parsed)


def fits(text: str) -> bool:
    """Check a program, and build it if nothing is wrong; return whether it is well typed."""
    checked = check_source(SourceFile("grown.tok", text), None)
    wrong = {d.name for d in checked.report if d.severity is Severity.ERROR}
    if not wrong:
        try:
            emit_program(checked, checked.programs[0], "grown.tok")
        except Unsupported as reason:
            assert str(reason)
    return wrong <= ABOUT_TIME


def grow(seed: int, statements: int, tries: int) -> None:
    choose = random.Random(seed)
    requirement = choose.choice(("", "require streaming", "require causal"))
    assert fits(Grown(choose, requirement).grow(fits, statements, tries))


@pytest.mark.parametrize("seed", range(6))
def test_no_program_over_token_axes_is_an_internal_error(seed: int) -> None:
    grow(seed, statements=5, tries=20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_no_longer_program_over_token_axes_is_an_internal_error(seed: int) -> None:
    grow(seed, statements=9, tries=60)
