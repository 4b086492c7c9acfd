"""Generation: choices worked by hand, and the steps against the whole forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.packages import loaded

HALF = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return loaded(tmp_path_factory.mktemp("package")).submodule("generation")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(0)
    return loaded(tmp_path_factory.mktemp("package")).module.Model()


def kept(generation: Any, logits: torch.Tensor, **options: Any) -> dict[int, float]:
    probs, tokens = generation.token_probabilities(logits, **options)
    return {int(t): round(float(p), 6) for p, t in zip(probs[0], tokens[0], strict=True) if p > 0}


def test_top_k_keeps_the_k_largest_and_ties_go_to_the_lowest_token(generation: Any) -> None:
    assert kept(generation, HALF, top_k=1) == {0: 1.0}
    assert kept(generation, HALF, top_k=2) == {0: 0.666667, 1: 0.333333}
    # tokens 2 and 3 are equal: the lower one stays
    assert kept(generation, HALF, top_k=3) == {0: 0.571429, 1: 0.285714, 2: 0.142857}
    assert kept(generation, HALF, top_k=99) == {0: 0.5, 1: 0.25, 2: 0.125, 3: 0.125}


def test_top_p_keeps_the_fewest_tokens_that_reach_p(generation: Any) -> None:
    assert kept(generation, HALF, top_p=0.3) == {0: 1.0}
    # the first alone has exactly one half
    assert kept(generation, HALF, top_p=0.5) == {0: 1.0}
    assert kept(generation, HALF, top_p=0.51) == {0: 0.666667, 1: 0.333333}
    assert kept(generation, HALF, top_p=0.8) == {0: 0.571429, 1: 0.285714, 2: 0.142857}
    assert len(kept(generation, HALF, top_p=1.0)) == 4


def test_top_p_counts_what_top_k_left(generation: Any) -> None:
    # after top_k=2 the probabilities are 2/3 and 1/3: the first alone reaches 0.6
    assert kept(generation, HALF, top_k=2, top_p=0.6) == {0: 1.0}
    assert len(kept(generation, HALF, top_k=2, top_p=0.7)) == 2


def test_temperature_divides_the_logits(generation: Any) -> None:
    # squares of 4, 2, 1, 1 for temperature 1/2, roots for temperature 2
    sharp, flat = [16, 4, 1, 1], [2, 2**0.5, 1, 1]
    for temperature, weights in ((0.5, sharp), (2.0, flat)):
        expected = {i: round(w / sum(weights), 6) for i, w in enumerate(weights)}
        assert kept(generation, HALF, temperature=temperature) == expected
    # far below what the quotient could represent
    assert kept(generation, HALF.float() * 1e30, temperature=1e-300) == {0: 1.0}


def test_greedy_takes_the_lowest_of_equal_tokens(generation: Any) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    assert generation.choose(logits, temperature=0).tolist() == [1, 0]


def test_frequencies_follow_the_probabilities(generation: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = generation.choose(HALF.expand(40_000, 4), generator=generator)
    shares = tokens.bincount(minlength=4) / 40_000
    assert torch.allclose(shares, torch.tensor([0.5, 0.25, 0.125, 0.125]), atol=0.01)


def test_a_forbidden_token_is_never_chosen(generation: Any) -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0]]).expand(1000, 4)
    assert set(generation.choose(logits).tolist()) == {1, 3}


def test_logits_that_are_no_numbers_are_refused(generation: Any) -> None:
    with pytest.raises(ValueError, match="not numbers"):
        generation.choose(torch.tensor([[0.0, float("nan")]]))


def test_greedy_steps_are_those_of_the_whole_forward_pass(generation: Any, model: Any) -> None:
    prompt = torch.tensor([[72, 105, 33], [1, 2, 3]])
    found = generation.generate(model, prompt, max_new_tokens=12, temperature=0)
    ids = prompt
    for _ in range(12):
        ids = torch.cat([ids, model(ids).text[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, ids)


def test_the_same_seed_gives_the_same_tokens(generation: Any, model: Any) -> None:
    prompt = torch.tensor([[72, 105]]).expand(4, 2)

    def sample(seed: int | None) -> torch.Tensor:
        return generation.generate(model, prompt, max_new_tokens=20, seed=seed, top_p=0.9)

    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))
    # every row draws for itself
    assert len(set(map(tuple, sample(3).tolist()))) == 4
    torch.manual_seed(5)
    first = sample(None)
    torch.manual_seed(5)
    assert torch.equal(first, sample(None))


class Scripted(torch.nn.Module):
    """Says one given token per row and step, whatever it reads."""

    def __init__(self, rows: list[list[int]]) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)
        self.read: list[list[int]] = []

    def new_state(self, batch: int, *, capacity: int) -> dict[str, int]:
        return {"at": 0, "capacity": capacity}

    def prefill(self, ids: torch.Tensor, state: dict[str, int], /) -> torch.Tensor:
        return self.step(ids, state)

    def step(self, ids: torch.Tensor, state: dict[str, int], /) -> torch.Tensor:
        self.read.append(ids[:, -1].tolist())
        logits = torch.nn.functional.one_hot(self.rows[:, state["at"]], 10) * 50.0
        state["at"] += 1
        return logits[:, None]


def test_each_row_stops_for_itself(generation: Any) -> None:
    model = Scripted([[1, 9, 2, 3, 4], [5, 6, 7, 9, 8]])
    seen: list[list[int]] = []
    found = generation.generate(
        model,
        torch.tensor([[0], [0]]),
        max_new_tokens=5,
        temperature=0,
        stop_tokens=(9,),
        on_token=lambda tokens: seen.append(tokens.tolist()),
    )
    assert found.tolist() == [[0, 1, 9, 9, 9], [0, 5, 6, 7, 9]]
    assert seen == [[1, 5], [9, 6], [9, 7], [9, 9]]
    # a row that has ended is fed its stop token
    assert model.read == [[0, 0], [1, 5], [9, 6], [9, 7]]


def test_the_stream_gives_each_token_before_the_next_is_computed(generation: Any) -> None:
    model = Scripted([[1, 2, 3]])
    steps = generation.stream(model, torch.tensor([[0]]), max_new_tokens=3, temperature=0)
    assert not model.read
    assert next(steps).tolist() == [1]
    assert len(model.read) == 1
    assert [t.tolist() for t in steps] == [[2], [3]]


def test_no_tokens_are_no_steps(generation: Any, model: Any) -> None:
    prompt = torch.tensor([[1, 2]])
    assert torch.equal(generation.generate(model, prompt, max_new_tokens=0), prompt)


def test_the_model_is_left_in_the_mode_it_was_in(generation: Any) -> None:
    model = Scripted([[1, 2, 3]]).train()
    steps = generation.stream(model, torch.tensor([[0]]), max_new_tokens=3, temperature=0)
    next(steps)
    assert torch.is_grad_enabled()
    steps.close()
    assert model.training


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0"),
        ({"temperature": -0.5}, "temperature must be at least 0"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"ids": torch.zeros(1, 0, dtype=torch.long)}, "prompts must be"),
        ({"ids": torch.zeros(3, dtype=torch.long)}, "prompts must be"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    generation: Any, model: Any, wrong: dict[str, Any], message: str
) -> None:
    arguments = {"ids": torch.tensor([[1]]), "max_new_tokens": 2, **wrong}
    with pytest.raises(ValueError, match=message):
        generation.stream(model, **arguments)


def test_generation_needs_nothing_of_the_compiler(tmp_path: Path) -> None:
    package = loaded(tmp_path)
    for file in package.folder.glob("*.py"):
        assert "tokdsl" not in file.read_text("utf-8")
