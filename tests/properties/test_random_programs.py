"""Random programs: what the checks say of time and gradients is what the models do."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, note, settings

from tests.fixtures.emitted import Emitted, emitted
from tests.properties.programs import LENGTH, programs

#: findings that a random program may have
EXPECTED = {
    "not-causal",
    "dead-parameter",
    "detached-parameter",
    "unused-import",
    "unused-definition",
    "unused-name",
}
EXACT = 1e-9

quiet = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@settings(quiet, max_examples=60)
@given(programs())
def test_programs_are_decided(text: str) -> None:
    from tokdsl.driver import check_source
    from tokdsl.source import SourceFile

    note(text)
    checked = check_source(SourceFile("random.tok", text), None)
    assert {d.name for d in checked.report} <= EXPECTED
    facts = checked.facts["random"]
    assert facts.numbers["params"] >= facts.numbers["active_params"] > 0
    rejected = any(d.name == "not-causal" for d in checked.report)
    assert rejected == (not facts.causal["text"])


def agree(text: str) -> None:
    """Check what is said of one program against what its model does."""
    note(text)
    with tempfile.TemporaryDirectory() as folder:
        made = emitted(text, Path(folder))
        leak = made.leak("text", LENGTH)
        assert (leak < EXACT) == made.facts.causal["text"], f"leak of {leak}"
        # long enough that two nested lags of two chunks leave more than one key to attend to
        dead = made.without_gradient(3 * LENGTH)
        assert dead == _stated(made)


def _stated(made: Emitted) -> set[str]:
    """Return the parameters of the model that the checks call unreached."""
    names = made.facts.tables["gradients"]
    assert isinstance(names, tuple)
    patterns = [re.escape(name).replace(r"\*", r"\d+") for name in names]
    have = [name for name, _ in made.model.named_parameters()]
    return {name for name in have if any(re.fullmatch(p, name) for p in patterns)}


@settings(quiet, max_examples=12)
@given(programs())
def test_verdicts_are_true(text: str) -> None:
    agree(text)


@pytest.mark.slow
@settings(quiet, max_examples=300, derandomize=False)
@given(programs())
def test_more_verdicts_are_true(text: str) -> None:
    agree(text)
