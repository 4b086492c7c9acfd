"""The scan in the interpreter against its torch form: values, gradients, edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.kernels import check_guards, guarded, load_kernels, scratch_of_nan
from tests.unit.ops.harness import functions

RUNTIME: dict[str, Any] = functions({"linear_recurrence", "moving_average"})
linear_recurrence: Callable[..., Tensor] = RUNTIME["linear_recurrence"]
moving_average: Callable[..., Tensor] = RUNTIME["moving_average"]

TIME, CHANNELS = 8, 4
SMALL = {"BLOCK_T": TIME, "BLOCK_C": CHANNELS, "num_warps": 1, "num_stages": 1}
LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have many blocks in few numbers: the interpreter scans number by number."""
    for name in ("scan.forward", "scan.backward"):
        monkeypatch.setitem(kernels().CONFIGS, name, [SMALL])
    yield
    check_guards()


def kernels() -> Any:
    """Return the module with the kernels."""
    return load_kernels("scan")


def error(found: Tensor, wanted: Tensor) -> float:
    """Return how far off a result is, relative to its size."""
    found, wanted = found.detach().double(), wanted.detach().double()
    scale = wanted.square().mean().sqrt() if wanted.numel() else 0.0
    return float((found - wanted).square().mean().sqrt() / (scale + 1e-12))


def operands(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return factors in 0 .. 1, and what is added."""
    return (
        guarded(torch.rand(a_shape).to(dtype).requires_grad_()),
        guarded(torch.randn(b_shape).to(dtype).requires_grad_()),
    )


def compare(
    a: Tensor,
    b: Tensor,
    dim: int,
    valid: Tensor | None = None,
    starts: Tensor | None = None,
    first: Tensor | None = None,
) -> None:
    """Compare results and gradients with those of the torch form in float32."""
    limit = LIMITS[b.dtype]
    given = [x for x in (a, b) if x.requires_grad]
    with scratch_of_nan():
        h, last = kernels().linear_recurrence(a, b, dim, valid, starts, first)
        grad = guarded(torch.randn(h.shape).to(h.dtype))
        found = torch.autograd.grad(h, given, grad)
    kept = Kept(first)
    wide = {id(x): x.detach().float().requires_grad_(x.requires_grad) for x in (a, b)}
    wanted = linear_recurrence(wide[id(a)], wide[id(b)], dim, valid, starts, kept)
    assert h.dtype == torch.promote_types(a.dtype, b.dtype) and last.dtype == torch.float32
    assert error(h, wanted) < limit
    assert error(last, kept.last) < limit
    operands = [wide[id(x)] for x in given]
    gradients = torch.autograd.grad(wanted, operands, grad.float(), materialize_grads=True)
    for x, one, other in zip(given, found, gradients, strict=True):
        assert one.shape == x.shape and one.dtype == x.dtype
        assert error(one, other) < limit


class Kept(SimpleNamespace):
    """What a recurrence keeps between steps."""

    def __init__(self, value: Tensor | None) -> None:
        super().__init__(value=value, last=None)

    def keep(self, value: Tensor, tokens: int) -> None:
        self.last = value.detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("length", [1, TIME - 1, TIME, TIME + 1, 19])
def test_lengths(length: int, dtype: torch.dtype) -> None:
    shape = (2, length, CHANNELS + 1)
    compare(*operands(shape, shape, dtype), 1)


@pytest.mark.parametrize("width", [1, CHANNELS - 1, CHANNELS, 7])
def test_widths(width: int) -> None:
    shape = (1, 9, width)
    compare(*operands(shape, shape), 1)


@pytest.mark.parametrize(
    ("a_shape", "b_shape", "dim"),
    [
        ((2, 9, 1), (2, 9, 5), 1),  # one factor for all channels
        ((1, 1, 1), (2, 9, 3), 1),  # a constant
        ((2, 1, 3), (2, 9, 3), 1),  # a constant per channel
        ((2, 3, 9, 1), (2, 1, 9, 3), 2),  # both are repeated
        ((1, 2, 9), (2, 2, 9), 2),  # tokens last
        ((2, 9), (2, 9), 1),  # a number per token
        ((2, 9, 2, 1), (2, 9, 2, 3), 1),  # a factor per head
    ],
)
def test_broadcasts(a_shape: tuple[int, ...], b_shape: tuple[int, ...], dim: int) -> None:
    compare(*operands(a_shape, b_shape), dim)


@pytest.mark.parametrize("dim", [1, 2])
def test_other_layouts(dim: int) -> None:
    a, b = operands((2, 9, 5), (2, 9, 5))
    compare(a.transpose(1, 2).detach().requires_grad_(), b.transpose(1, 2), dim)


@pytest.mark.parametrize("start", [TIME - 1, TIME, TIME + 1])
def test_documents_at_the_edge_of_a_block(start: int) -> None:
    starts = torch.zeros(2, 19, dtype=torch.bool)
    starts[:, 0] = starts[0, start] = True
    a, b = operands((2, 19, 2), (2, 19, 2))
    compare(a, b, 1, starts=guarded(starts))
    h, _ = kernels().linear_recurrence(a, b, 1, starts=starts)
    alone, _ = kernels().linear_recurrence(a[:1, start:], b[:1, start:], 1)
    assert error(h[:1, start:], alone) < 1e-6


@pytest.mark.parametrize("side", ["left", "right", "holes", "all"])
def test_padding_and_state(side: str) -> None:
    valid = torch.ones(2, 19, dtype=torch.bool)
    if side == "left":
        valid[0, : TIME + 1] = False
    elif side == "right":
        valid[0, TIME - 1 :] = False
    elif side == "holes":
        valid = torch.rand(2, 19) < 0.6
    else:
        valid[1] = False
    starts = torch.rand(2, 19) < 0.1
    a, b = operands((2, 19, 3), (2, 19, 3))
    compare(a, b, 1, guarded(valid), guarded(starts), guarded(torch.randn(2, 3)))


def test_masks_of_heads() -> None:
    valid, starts = torch.rand(2, 9) < 0.8, torch.rand(2, 9) < 0.2
    compare(*operands((2, 3, 9, 2), (2, 3, 9, 2)), 2, valid, starts, torch.randn(2, 3, 2))


@pytest.mark.parametrize("length", [32, 61, 64])
def test_parts_of_a_long_text(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels(), "SCAN_PART", TIME)
    valid, starts = torch.rand(1, length) < 0.9, torch.rand(1, length) < 0.03
    a, b = operands((1, length, 2), (1, length, 2))
    assert kernels()._scan_parts(1, length, 2, SMALL)[1] >= 4
    compare(a, b, 1, valid, starts, torch.randn(1, 2))


def test_a_text_in_two_steps() -> None:
    a, b = operands((2, 19, 3), (2, 19, 3))
    whole, last = kernels().linear_recurrence(a, b, 1)
    one, state = kernels().linear_recurrence(a[:, :7], b[:, :7], 1)
    two, end = kernels().linear_recurrence(a[:, 7:], b[:, 7:], 1, first=state)
    assert error(torch.cat((one, two), 1), whole) < 1e-6
    assert error(end, last) < 1e-6


def test_gradient_of_the_state() -> None:
    a, b = operands((2, 9, 3), (2, 9, 3))
    a = a.detach()
    first = torch.randn(2, 3, requires_grad=True)
    valid, starts = torch.rand(2, 9) < 0.8, torch.zeros(2, 9, dtype=torch.bool)
    starts[0, 4] = True
    h, last = kernels().linear_recurrence(a, b, 1, valid, starts, first)
    found = torch.autograd.grad(h.sum() + (3 * last).sum(), (b, first))
    state, total = first, torch.zeros(())
    for t in range(9):
        kept = valid[:, t, None]
        factor = torch.where(kept, a[:, t], 1.0) * ~starts[:, t, None]
        state = factor * state + torch.where(kept, b[:, t], 0.0)
        total = total + state.sum()
    wanted = torch.autograd.grad(total + 3 * state.sum(), (b, first))
    assert max(error(x, y) for x, y in zip(found, wanted, strict=True)) < 1e-5


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 4, 3), (2, 4, 0)])
def test_nothing(shape: tuple[int, ...]) -> None:
    a, b = operands(shape, shape)
    h, last = kernels().linear_recurrence(a, b, 1)
    assert h.shape == shape and last.shape == (shape[0], shape[2]) and not last.any()
    assert torch.autograd.grad(h.sum(), b)[0].shape == shape


def test_torch_form_in_double_precision() -> None:
    a = torch.rand(1, 5, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    valid, starts = torch.tensor([[0, 1, 1, 0, 1]]).bool(), torch.tensor([[0, 0, 1, 0, 0]]).bool()
    assert torch.autograd.gradcheck(lambda a, b: linear_recurrence(a, b, 1, valid, starts), (a, b))


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the torch forms call the kernels."""
    monkeypatch.setattr(kernels(), "FORCED", True)
    monkeypatch.setitem(linear_recurrence.__globals__, "KERNELS", kernels())


@pytest.mark.usefixtures("forced")
def test_torch_forms_call_it(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = operands((2, 9, 1), (2, 9, 3))
    valid, kept, plain = torch.rand(2, 9) < 0.8, Kept(None), Kept(None)
    h = linear_recurrence(a, b, 1, valid, None, kept)
    mean = moving_average(b.half(), 0.9, 1, valid, None, None)
    assert mean.dtype == torch.float16
    monkeypatch.setattr(kernels(), "FORCED", False)
    assert error(h, linear_recurrence(a, b, 1, valid, None, plain)) < 1e-5
    assert error(kept.last, plain.last) < 1e-5
    assert error(mean, moving_average(b, 0.9, 1, valid)) < 5e-3


def test_registration() -> None:
    a, b = (torch.rand(1, 2, 1).requires_grad_() for _ in range(2))
    valid, first = torch.rand(1, 2) < 0.8, torch.randn(1, 1, requires_grad=True)
    module = kernels()
    torch.library.opcheck(module.scan, (a, b, valid, valid, first, 1.0, torch.float32))
    rest = (a.detach(), b.detach(), valid, None, first.detach(), 1.0, torch.float16, True)
    torch.library.opcheck(module.scan_gradient, (b.detach(), None, *rest))


def test_compiles_whole() -> None:
    a, b = operands((1, 3, 1), (1, 3, 2))
    recurrence = kernels().linear_recurrence

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return recurrence(a.exp(), b, 1)[0].square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, wanted = (torch.autograd.grad(form(a, b), (a, b)) for form in (compiled, loss))
    assert max(error(x, y) for x, y in zip(found, wanted, strict=True)) < 1e-6
