"""What the checks say of a spec against what its model does: causality, gradients, parameters."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fixtures.emitted import Emitted, emitted
from tests.language.literate import expectations

LANGUAGE = Path(__file__).parents[1] / "language"
#: nothing of a later token may come through; sums in another order may differ in the last bits
EXACT = 1e-9
LENGTH = 21


def _specs(folder: str, *names: str) -> list[Path]:
    """Return the specs of a folder that have a model, and one of these findings if any is given."""
    found = []
    for path in sorted((LANGUAGE / folder).glob("*.tok")):
        text = path.read_text("utf-8")
        mine = {e.name for e in expectations(text)}
        if re.search(r"^model ", text, re.MULTILINE) and (not names or mine & set(names)):
            found.append(path)
    return found


ACCEPTED = _specs("accept")
#: parameters that change nothing: a softmax does not see what is added to all its scores
WITHOUT_EFFECT = {"pairs_of_a_batch": {"pair.readout.score.bias"}}
LEAKING = [
    path
    for path in _specs("reject", "not-causal", "causality-undecided")
    # its model has no stream at the end; looks up positions that may not exist; is not emitted yet
    if path.stem
    not in ("pooled_output", "permuted_tokens", "gather_anywhere", "centred_codec_encoder")
]
DEAD = [
    path
    for path in _specs("reject", "dead-parameter", "router-without-gradient", "constant-share")
    if path.stem != "gather_anywhere"
]


def _model(path: Path, folder: Path) -> Emitted:
    text = path.read_text("utf-8")
    # many layers take long to run and tell no more than a few
    return emitted(re.sub(r"repeat \d{3,}", "repeat 3", text), folder, path.name)


def _streams(made: Emitted) -> list[str]:
    """Return the stages whose results are streams of tokens in time."""
    return [
        stage.name
        for stage in made.program.stages
        if any(a.clock is not None and a.clock.ordered for a in stage.result.type.axes)
    ]


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_accepted_specs_do_what_the_checks_say(path: Path, tmp_path: Path) -> None:
    made = _model(path, tmp_path)
    for stage in _streams(made):
        # a whole number of frames for what makes frames of samples
        leak = made.leak(stage, 32 if path.stem == "causal_codec_encoder" else LENGTH)
        assert (leak < EXACT) == made.facts.causal[stage], f"{stage}: {leak}"
    count = sum(parameter.numel() for parameter in made.model.parameters())
    assert count == made.facts.numbers["params"]
    if made.program.objective is not None:
        length = 80 if path.stem == "two_levels" else LENGTH  # two whole chunks of chunks
        dead = made.without_gradient(length)
        assert dead == WITHOUT_EFFECT.get(path.stem, set()), "called reached, but has no gradient"


@pytest.mark.parametrize("path", LEAKING, ids=lambda path: path.stem)
def test_specs_rejected_for_time_leak(path: Path, tmp_path: Path) -> None:
    made = _model(path, tmp_path)
    leaks = {stage: made.leak(stage, LENGTH) for stage in _streams(made)}
    assert any(leak > EXACT for leak in leaks.values())
    assert {s for s, leak in leaks.items() if leak > EXACT} == {
        stage for stage in leaks if not made.facts.causal[stage]
    }


@pytest.mark.parametrize("path", DEAD, ids=lambda path: path.stem)
def test_specs_rejected_for_gradients_have_none(path: Path, tmp_path: Path) -> None:
    made = _model(path, tmp_path)
    stated = made.facts.tables["gradients"]
    assert isinstance(stated, tuple)
    have = {name for name, _ in made.model.named_parameters()}
    dead = made.without_gradient(LENGTH)
    assert dead == set(stated) & have  # what nothing reads is not emitted at all
