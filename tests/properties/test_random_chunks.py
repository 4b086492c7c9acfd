"""Random models with ragged chunks: what the checks say of clocks is what the models do."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from torch import Tensor

from tests.fixtures.decoding import error, worst_padding, worst_split
from tests.fixtures.emitted import Emitted, emitted
from tests.properties.chunked import LENGTH, programs

#: findings that a random program may have
EXPECTED = {
    "not-causal",
    "causality-undecided",
    "dead-parameter",
    "detached-parameter",
    "unused-import",
    "unused-definition",
    "unused-name",
}
#: what no later token may change, relative to nothing; and what steps and packing may change by
#: operations that compute in float32
EXACT, CLOSE = 1e-9, 1e-6
#: drawings of the parameters among which one must show a leak
DRAWINGS = 6
#: share of programs said to read later tokens of which no drawing shows it
CONSERVATIVE = 0.1
DOCUMENTS = (5, 1, 7, LENGTH - 13)

quiet = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@settings(quiet, max_examples=40)
@given(programs())
def test_chunked_programs_are_decided(text: str) -> None:
    from tokdsl.driver import check_source
    from tokdsl.source import SourceFile

    note(text)
    checked = check_source(SourceFile("random.tok", text), None)
    names = {d.name for d in checked.report}
    assert names <= EXPECTED
    facts = checked.facts["random"]
    assert bool(names & {"not-causal", "causality-undecided"}) == (not facts.causal["text"])
    assert facts.causal["text"] or not facts.streaming
    for finding in checked.report:
        if finding.name == "not-causal":
            assert len(finding.notes) > 1, "no way from the output to the input"


def draw(made: Emitted, seed: int) -> None:
    """Draw other parameters."""
    torch.manual_seed(seed)
    for parameter in made.model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)


def largest_leak(made: Emitted, drawings: int) -> float:
    """Return the largest change by later tokens, of several drawings until one shows."""
    worst = 0.0
    for seed in range(drawings):
        draw(made, seed)
        worst = max(worst, made.leak("text", LENGTH))
        if worst > EXACT:
            break
    return worst


def packed(made: Emitted) -> float:
    """Return how much packed documents differ from the same documents alone."""
    ids = torch.randint(0, 32, (1, LENGTH))
    documents = torch.arange(len(DOCUMENTS)).repeat_interleave(torch.tensor(DOCUMENTS))[None]
    found: Tensor = made.model(ids, documents=documents).text
    alone = [made.model(part).text for part in ids.split(DOCUMENTS, dim=1)]
    return error(found, torch.cat(alone, dim=1))


def agree(text: str, seen: Counter[str]) -> None:
    """Check what is said of one program against what its model does; count what was checked."""
    note(text)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        made = emitted(text, Path(folder))
        facts, names = made.facts, {d.name for d in made.report}
        if facts.causal["text"]:
            seen["causal"] += 1
            assert largest_leak(made, 2) < EXACT
        else:
            kind = "late" if "not-causal" in names else "undecided"
            seen[kind] += 1
            seen[f"{kind}, not shown"] += largest_leak(made, DRAWINGS) < EXACT
        draw(made, DRAWINGS)
        ids = torch.randint(0, 32, (4, LENGTH))
        if facts.streaming:
            seen["streaming"] += 1
            assert worst_split(made.model, ids, made.model(ids).text) < CLOSE
            assert worst_padding(made.model, ids, "text") < CLOSE
        if facts.isolated:
            seen["isolated"] += 1
            assert packed(made) < CLOSE


def run(count: int, derandomize: bool) -> Counter[str]:
    """Check so many programs; return how many of each kind there were."""
    seen: Counter[str] = Counter()

    @settings(quiet, max_examples=count, derandomize=derandomize, database=None)
    @given(programs())
    def sweep(text: str) -> None:
        agree(text, seen)

    sweep()
    return seen


def test_chunked_verdicts_are_true() -> None:
    seen = run(12, derandomize=True)
    assert seen["causal"] and seen["streaming"] and seen["isolated"]


@pytest.mark.slow
def test_more_chunked_verdicts_are_true() -> None:
    seen = run(300, derandomize=False)
    assert seen["late, not shown"] <= CONSERVATIVE * seen["late"] + 1, seen
    print(dict(seen))
