"""The recurrences: parallel form, step form and plain loop agree, in values and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.ops.harness import functions
from tokdsl.driver import build
from tokdsl.training.package import import_package

RUNTIME = functions(
    {
        "linear_attention",
        "linear_recurrence",
        "moving_average",
        "cumulative_sum",
        "RecurrentState",
    }
)
linear_attention: Callable[..., Tensor] = RUNTIME["linear_attention"]  # type: ignore[assignment]
chunked: Callable[..., tuple[Tensor, Tensor]] = RUNTIME["chunked_linear_attention"]  # type: ignore[assignment]
linear_recurrence: Callable[..., Tensor] = RUNTIME["linear_recurrence"]  # type: ignore[assignment]
cumulative_sum: Callable[..., Tensor] = RUNTIME["cumulative_sum"]  # type: ignore[assignment]
moving_average: Callable[..., Tensor] = RUNTIME["moving_average"]  # type: ignore[assignment]
RecurrentState: Callable[[], Any] = RUNTIME["RecurrentState"]  # type: ignore[assignment]

CHUNK = 64
LENGTHS = (1, 2, 7, CHUNK - 1, CHUNK, CHUNK + 1, 97, 2 * CHUNK + 1)
HEADS = ((1, 1), (2, 6), (3, 3))  # of queries and keys, of values
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}


def operands(
    length: int, groups: int, heads: int, channels: int, dtype: torch.dtype, seed: int = 0
) -> list[Tensor]:
    """Return q, k, v and logarithms of decays, one per head or one per channel."""
    torch.manual_seed(seed)
    q = torch.randn(2, length, groups, 5, dtype=dtype) / 2
    k = torch.randn(2, length, groups, 5, dtype=dtype) / 2
    v = torch.randn(2, length, heads, 3, dtype=dtype)
    decay = -3.0 * torch.rand(2, length, heads, channels, dtype=dtype)
    return [x.requires_grad_() for x in (q, k, v, decay)]


def loop(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """The definition, token by token."""
    heads = v.shape[2]
    q, k = (x.repeat_interleave(heads // x.shape[2], 2) for x in (q, k))
    state, found = torch.zeros(()).to(v), []
    for t in range(v.shape[1]):
        state = decay[:, t].exp().unsqueeze(-1) * state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(
            -2
        )
        found.append((q[:, t].unsqueeze(-1) * state).sum(-2))
    return torch.stack(found, 1)


def gradients(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Return gradients of a fixed combination of the results."""
    weight = torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).view(y.shape).sin()
    found = torch.autograd.grad((y * weight).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Compare with the largest expected number as the unit."""
    unit = expected.abs().max().clamp(min=1.0)
    assert ((found - expected).abs().max() / unit).item() < LIMITS[expected.dtype]


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_are_the_loop(length: int, dtype: torch.dtype) -> None:
    for (groups, heads), channels in itertools.product(HEADS, (1, 5)):
        given = operands(length, groups, heads, channels, dtype)
        found, expected = linear_attention(*given), loop(*given)
        assert_near(found, expected)
        for mine, other in zip(gradients(found, given), gradients(expected, given), strict=True):
            assert_near(mine, other)


@pytest.mark.parametrize("channels", [1, 5])
def test_all_chunks_at_once_are_the_loop(channels: int) -> None:
    """The form for other devices than the CPU and for compilation."""
    for length in (2, CHUNK, CHUNK + 1, 150):
        given = operands(length, 2, 4, channels, torch.float64)
        found, expected = chunked(*given, None)[0], loop(*given)
        assert_near(found, expected)
        for mine, other in zip(gradients(found, given), gradients(expected, given), strict=True):
            assert_near(mine, other)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("counts", [(1,) * 9, (CHUNK, 1, CHUNK + 3), (5, 0, 131, 1)], ids=str)
def test_steps_are_the_whole(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    for channels in (1, 5):
        given = [x.detach() for x in operands(sum(counts), 2, 4, channels, dtype)]
        state = RecurrentState()
        pieces = zip(*(x.split(list(counts), 1) for x in given), strict=True)
        stepped = torch.cat([linear_attention(*piece, state=state) for piece in pieces], 1)
        assert_near(stepped, loop(*given))


@pytest.mark.parametrize("channels", [1, 5])
def test_padding_leaves_the_state_as_it_is(channels: int) -> None:
    given = [x.detach() for x in operands(100, 2, 4, channels, torch.float64)]
    gaps = [torch.cat((torch.full_like(x[:, :3], 7.0), x, x[:, :2]), 1) for x in given]
    valid = torch.ones(2, 105, dtype=torch.bool)
    valid[:, :3] = valid[:, -2:] = False
    state, alone = RecurrentState(), RecurrentState()
    found = linear_attention(*gaps, valid=valid, state=state)[:, 3:-2]
    assert_near(found, linear_attention(*given, state=alone))
    assert_near(state.value, alone.value)


@pytest.mark.parametrize("channels", [1, 5])
def test_documents_begin_without_a_state(channels: int) -> None:
    given = operands(150, 2, 4, channels, torch.float64)
    starts = torch.zeros(2, 150, dtype=torch.bool)
    starts[:, 0] = starts[0, 70] = starts[1, 64] = True
    found = linear_attention(*given, starts=starts)
    for row, at in ((0, 70), (1, 64)):
        assert_near(found[row : row + 1, at:], loop(*(x[row : row + 1, at:] for x in given)))
        assert_near(found[row : row + 1, :at], loop(*(x[row : row + 1, :at] for x in given)))
    other = [x.detach().clone() for x in given]
    for x in other:
        x[0, :70] = -1.0
    assert torch.equal(linear_attention(*other, starts=starts)[0, 70:], found[0, 70:].detach())
    assert all(bool(g.isfinite().all()) for g in gradients(found, given))


@pytest.mark.parametrize("channels", [1, 2])
def test_gradcheck(channels: int) -> None:
    torch.manual_seed(1)
    q, k = (torch.randn(1, 5, 1, 2, dtype=torch.float64) for _ in range(2))
    v = torch.randn(1, 5, 2, 2, dtype=torch.float64)
    decay = -torch.rand(1, 5, 2, channels, dtype=torch.float64)
    given = [x.requires_grad_() for x in (q, k, v, decay)]
    assert torch.autograd.gradcheck(linear_attention, given)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("rate", [1e-30, 1e-7, 1.0, 60.0, 1e4, float("inf")])
def test_any_decay_is_finite_and_exact(rate: float, channels: int) -> None:
    """From forgetting nothing to forgetting all, with tokens of the other kind in between."""
    given = operands(300, 1, 2, channels, torch.float64)
    decay = torch.full_like(given[3], -rate)
    decay[:, ::7] = -1e-3
    decay[:, 5::50] = -torch.inf
    given[3] = decay.requires_grad_()
    found = linear_attention(*given)
    assert_near(found, loop(*given))
    assert all(bool(g.isfinite().all()) for g in gradients(found, given))
    narrow = [x.detach().float() for x in given]
    assert_near(linear_attention(*narrow), loop(*[x.double() for x in narrow]).float())


@pytest.mark.parametrize("rate", [1e-4, 5.0])
def test_long_texts_stay_exact(rate: float) -> None:
    given = operands(2000, 1, 1, 1, torch.float64)
    given[3] = torch.full_like(given[3], -rate).requires_grad_()
    found, expected = linear_attention(*given), loop(*given)
    assert_near(found, expected)
    for mine, other in zip(gradients(found, given), gradients(expected, given), strict=True):
        assert_near(mine, other)
    narrow = linear_attention(*[x.detach().float() for x in given])
    assert_near(narrow, expected.float())


def recurrence(a: Tensor, b: Tensor) -> Tensor:
    """The definition of the recurrence, token by token."""
    state, found = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        state = a[:, t] * state + b[:, t]
        found.append(state)
    return torch.stack(found, 1)


SHAPES = ((1, 50, 1), (2, 50, 1), (3, 40, 3, 5), (1, 33, 70), (2, 1, 4), (2, 300, 2), (5, 90, 100))


WIDE = ((4, 80, 256), (3, 80, 256), (1, 300, 256))


@pytest.mark.parametrize(
    ("shape", "threads"), [*((s, 1) for s in SHAPES), *((s, 2) for s in WIDE)], ids=str
)
def test_recurrences_are_the_loop(shape: tuple[int, ...], threads: int) -> None:
    """However rows are laid out and divided between threads."""
    torch.manual_seed(2)
    b = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    shared = shape[:2] + (1,) * (len(shape) - 2)
    for a in (torch.rand(shape, dtype=torch.float64), torch.rand(shared, dtype=torch.float64)):
        a.requires_grad_()
        expected, summed = recurrence(a, b), b.cumsum(1)
        wanted = [*gradients(expected, [a, b]), *gradients(summed, [b])]
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found, running = linear_recurrence(a, b, dim=1 - len(shape)), cumulative_sum(b, 1)
            given = [*gradients(found, [a, b]), *gradients(running, [b])]
        finally:
            torch.set_num_threads(before)
        pairs = zip([found, running, *given], [expected, summed, *wanted], strict=True)
        for mine, other in pairs:
            assert_near(mine, other)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 400, 70)], ids=str)
def test_averages_are_the_loop(shape: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for decay in (0.0, 0.3, 0.999):
        found = moving_average(x, decay, 1 - len(shape))
        expected = recurrence(torch.full_like(x, decay), (1 - decay) * x)
        assert_near(found, expected)
        assert_near(gradients(found, [x])[0], gradients(expected, [x])[0])
        state = RecurrentState()
        parts = x.detach().split((shape[1] + 1) // 2, 1)
        stepped = [moving_average(part, decay, 1 - len(shape), state=state) for part in parts]
        assert_near(torch.cat(stepped, 1), expected)


def test_recurrence_has_the_gradient_it_says() -> None:
    torch.manual_seed(3)
    a, b = (torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: linear_recurrence(a, b, dim=1), (a, b))


def test_worked_example() -> None:
    """One head of one channel that keeps a half of its state."""
    q, k, v = (
        torch.tensor(x).view(1, 3, 1, 1)
        for x in ([1.0, 1.0, 2.0], [1.0, 2.0, 1.0], [3.0, 1.0, 2.0])
    )
    state = RecurrentState()
    y = linear_attention(q, k, v, torch.tensor([0.5]).log().view(1, 1), state=state)
    torch.testing.assert_close(y.flatten(), torch.tensor([3.0, 3.5, 7.5]))
    assert state.value.item() == pytest.approx(3.75)


MIXERS = """
use std.attention { rope }
use std.mixers { gated_linear_attention, lightning_attention, mamba2_block, retention }

model mixers(d: int = 32) {
  stage text(ids: tokens[64]) {
    embed(d)
    residual { rmsnorm(); gated_linear_attention(heads = 2) }
    residual { rmsnorm(); retention(heads = 2, rotary = rope()) }
    residual { rmsnorm(); lightning_attention(heads = 4, rate = 0.5) }
    mamba2_block(state = 8, head_dim = 16)
    unembed(64)
  }

  objective next_token(text, ids)

  require causal, streaming, cache_per_token == 0
}
"""


def test_mixers_of_the_library_are_the_same_in_steps(tmp_path: Path) -> None:
    (tmp_path / "mixers.tok").write_text(MIXERS, "utf-8")
    built = build(tmp_path / "mixers.tok", tmp_path)
    assert built.directory is not None, [finding.message() for finding in built.report]
    torch.manual_seed(5)
    model = import_package(built.directory).Model()
    ids = torch.randint(64, (2, 140))
    model.loss(ids).total.backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())
    rates = model.text.mamba2_block.mamba2.a_log.exp()
    steps = torch.nn.functional.softplus(model.text.mamba2_block.mamba2.dt_bias)
    assert bool(((rates >= 1) & (rates <= 16) & (steps >= 1e-3) & (steps <= 0.1)).all())
    whole, state = model.eval()(ids).text, model.new_state(batch=2)
    first, *later = ids.split((70, 1, 1, 68), 1)
    stepped = [model.prefill(first, state), *(model.step(part, state) for part in later)]
    assert (torch.cat(stepped, 1) - whole).abs().max() < 1e-4
