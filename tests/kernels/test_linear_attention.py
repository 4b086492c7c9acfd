"""Linear attention in the interpreter against its torch form: values, gradients, edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.kernels import check_guards, guarded, load_kernels, scratch_of_nan
from tests.unit.ops.harness import functions

RUNTIME: dict[str, Any] = functions({"linear_attention"})
linear_attention: Callable[..., Tensor] = RUNTIME["linear_attention"]

#: tokens of a chunk: where every channel decays, two blocks in which pairs are summed one by one
CHUNK, GATED_CHUNK = 16, 32
LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3}


def chunks_of(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small blocks."""
    module = kernels()
    for name, choices in list(module.CONFIGS.items()):
        sizes = {key: 16 for key in choices[0] if key.startswith("BLOCK")}
        if "BLOCK_T" in sizes:
            sizes["BLOCK_T"] = tokens
        monkeypatch.setitem(module.CONFIGS, name, [{**choices[0], **sizes}])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    chunks_of(CHUNK, monkeypatch)
    yield
    check_guards()


def kernels() -> Any:
    """Return the module with the kernels."""
    return load_kernels("linear_attention")


class Kept(SimpleNamespace):
    """What linear attention keeps between steps."""

    def __init__(self, value: Tensor | None) -> None:
        super().__init__(value=value, last=None)

    def keep(self, value: Tensor, tokens: int) -> None:
        self.last = value


def error(found: Tensor, wanted: Tensor) -> float:
    """Return how far off a result is, relative to its size."""
    found, wanted = found.detach().double(), wanted.detach().double()
    scale = wanted.square().mean().sqrt() if wanted.numel() else 0.0
    return float((found - wanted).square().mean().sqrt() / (scale + 1e-12))


def operands(
    length: int,
    groups: int = 1,
    heads: int = 1,
    keys: int = 3,
    width: int = 2,
    gates: int = 1,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Return q, k, v and logarithms of decays."""
    q, k = (torch.randn(batch, length, groups, keys) / 2 for _ in range(2))
    v = torch.randn(batch, length, heads, width)
    found = [x.to(dtype) for x in (q, k, v)]
    if gates:
        found.append(-2.0 * torch.rand(batch, length, heads, gates))
    return [guarded(x.requires_grad_()) for x in found]


def compare(
    given: list[Tensor],
    valid: Tensor | None = None,
    starts: Tensor | None = None,
    first: Tensor | None = None,
) -> None:
    """Compare results and gradients with those of the torch form in float32."""
    limit = LIMITS[given[0].dtype]
    decay = given[3:] or [None]
    with scratch_of_nan():
        y, last = kernels().linear_attention(*given[:3], *decay, valid, starts, first)
        grad = guarded(torch.randn(y.shape).to(y.dtype))
        found = torch.autograd.grad(y, given, grad)
    assert y.dtype == given[2].dtype and last.dtype == torch.float32
    wide = [x.detach().float().requires_grad_() for x in given]
    kept = Kept(first)
    wanted = linear_attention(*wide[:3], *(wide[3:] or [None]), valid, starts, kept)
    assert error(y, wanted) < limit
    assert error(last, kept.last) < limit
    gradients = torch.autograd.grad(wanted, wide, grad.float(), materialize_grads=True)
    for x, one, other in zip(given, found, gradients, strict=True):
        assert one.shape == x.shape and one.dtype == x.dtype
        assert error(one, other) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("length", [2, CHUNK - 1, CHUNK, CHUNK + 1, 37])
def test_lengths(length: int, dtype: torch.dtype) -> None:
    compare(operands(length, dtype=dtype))


@pytest.mark.parametrize("length", [GATED_CHUNK - 1, GATED_CHUNK, GATED_CHUNK + 1])
def test_decays_of_channels(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(GATED_CHUNK, monkeypatch)
    dtype = torch.float16 if length == GATED_CHUNK else torch.float32
    compare(operands(length, gates=3, dtype=dtype))


@pytest.mark.parametrize(("keys", "width"), [(15, 16), (16, 17), (17, 1), (1, 15)])
def test_channels(keys: int, width: int) -> None:
    compare(operands(CHUNK + 3, keys=keys, width=width))


@pytest.mark.parametrize(("keys", "width"), [(16, 17), (19, 16)])
def test_channels_that_decay(keys: int, width: int) -> None:
    compare(operands(CHUNK + 3, keys=keys, width=width, gates=keys))


@pytest.mark.parametrize(("groups", "heads"), [(1, 4), (2, 4), (3, 3)])
def test_heads_share_keys(groups: int, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(operands(CHUNK + 1, groups, heads, batch=2))
    monkeypatch.setattr(kernels(), "LINEAR_PROGRAMS", 1)
    compare(operands(CHUNK + 1, groups, heads))


def test_no_decay() -> None:
    compare(operands(CHUNK + 5, 1, 2, gates=0))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 1, 4, 1), (2, 19, 2, 1), (2, 19, 1, 3), (4, 1), (4, 3)]
)
def test_decays_that_are_shared(shape: tuple[int, ...]) -> None:
    q, k, v = operands(19, 2, 4, batch=2, gates=0)
    compare([q, k, v, guarded((-torch.rand(shape)).requires_grad_())])


def test_layouts_are_read_as_they_are() -> None:
    both = torch.randn(2, 19, 2, 8)
    q, k, v = (x.detach().requires_grad_() for x in both.split((3, 3, 2), dim=-1))
    decay = -torch.rand(2, 2, 19, 1).transpose(1, 2)
    compare([q, k, v, decay.requires_grad_()])


@pytest.mark.parametrize("gates", [1, 3])
@pytest.mark.parametrize("start", [CHUNK - 1, CHUNK, CHUNK + 1])
def test_documents_at_the_edge_of_a_chunk(start: int, gates: int) -> None:
    starts = torch.zeros(1, CHUNK + 5, dtype=torch.bool)
    starts[:, 0] = starts[:, start] = True
    given = operands(CHUNK + 5, gates=gates)
    compare(given, starts=guarded(starts))
    y, _ = kernels().linear_attention(*given, None, starts)
    alone, _ = kernels().linear_attention(*(x[:, start:] for x in given))
    assert error(y[:, start:], alone) < 1e-6


@pytest.mark.parametrize("gates", [0, 1, 3])
def test_padding_and_state(gates: int) -> None:
    length = CHUNK + 3
    valid = torch.ones(3, length, dtype=torch.bool)
    valid[0, : CHUNK + 1] = False
    valid[1] = torch.rand(length) < 0.5
    valid[2] = False
    starts = torch.zeros(3, length, dtype=torch.bool)
    starts[1, 4] = starts[1, 5] = True
    given = operands(length, heads=2, gates=gates, batch=3)
    compare(given, guarded(valid), guarded(starts), guarded(torch.randn(3, 2, 3, 2)))


def test_a_token_that_forgets_all_takes_nothing_from_the_others() -> None:
    q, k, v, decay = operands(CHUNK + 9)
    sharp = decay.detach().clone()
    sharp[:, 3], sharp[:, 7] = -1e6, -torch.inf
    compare([q, k, v, guarded(sharp.requires_grad_())])


def test_a_text_in_two_steps() -> None:
    given = operands(CHUNK + 9, heads=2)
    whole, last = kernels().linear_attention(*given)
    one, state = kernels().linear_attention(*(x[:, :7] for x in given))
    two, end = kernels().linear_attention(*(x[:, 7:] for x in given), first=state)
    assert error(torch.cat((one, two), 1), whole) < 1e-6
    assert error(end, last) < 1e-6


@pytest.mark.parametrize("gates", [1, 3])
def test_gradient_of_the_state(gates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, decay = (x.detach().requires_grad_() for x in operands(CHUNK + 2, gates=gates))
    first = torch.randn(1, 1, 3, 2, requires_grad=True)
    y, last = kernels().linear_attention(q, k, v, decay, first=first)
    weight, given = torch.randn_like(last), (q, k, v, decay, first)
    found = torch.autograd.grad(y.sum() + (weight * last).sum(), given)
    monkeypatch.setitem(linear_attention.__globals__, "has_cpu_form", lambda x: False)
    kept = Kept(first)
    wanted = linear_attention(q, k, v, decay, None, None, kept)
    wanted = torch.autograd.grad(wanted.sum() + (weight * kept.last).sum(), given)
    assert max(error(x, y) for x, y in zip(found, wanted, strict=True)) < 1e-5


@pytest.mark.parametrize("shape", [(2, 0, 1, 3), (0, 4, 1, 3), (1, 4, 1, 0)])
def test_nothing(shape: tuple[int, ...]) -> None:
    q, k = torch.zeros(*shape[:3], 2), torch.zeros(*shape[:3], 2)
    v = torch.zeros(shape, requires_grad=True)
    y, last = kernels().linear_attention(q, k, v)
    assert y.shape == shape and last.shape == (shape[0], 1, 2, shape[3]) and not last.any()
    assert torch.autograd.grad(y.sum(), v)[0].shape == shape


@pytest.mark.parametrize("gates", [1, 2])
def test_torch_form_in_double_precision(gates: int) -> None:
    q, k, v = (torch.randn(1, 5, 1, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    decay = -torch.rand(1, 5, 1, gates, dtype=torch.float64)
    valid = torch.tensor([[1, 1, 0, 1, 1]]).bool()
    starts = torch.tensor([[0, 0, 0, 1, 0]]).bool()

    def form(*given: Tensor) -> Tensor:
        return linear_attention(*given, valid, starts)

    assert torch.autograd.gradcheck(form, (q, k, v, decay.requires_grad_()))


def test_torch_form_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = operands(5)
    plain, kept = Kept(None), Kept(None)
    wanted = linear_attention(*given, None, None, plain)
    monkeypatch.setattr(kernels(), "FORCED", True)
    monkeypatch.setitem(linear_attention.__globals__, "KERNELS", kernels())
    monkeypatch.setitem(linear_attention.__globals__, "tiled_linear_attention", None)
    monkeypatch.setitem(linear_attention.__globals__, "chunked_linear_attention", None)
    assert error(linear_attention(*given, None, None, kept), wanted) < 1e-5
    assert error(kept.last, plain.last) < 1e-5


@pytest.mark.parametrize("gates", [0, 1, 2])
def test_registration(gates: int) -> None:
    q, k, v, *decay = operands(2, keys=2, width=1, gates=gates)
    first = torch.randn(1, 1, 2, 1, requires_grad=True)
    arguments = (*(decay or [None]), torch.tensor([[True, False]]), None, first)
    # whole graphs are compiled once: the interpreter takes its time
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    checks = (*checks, "test_aot_dispatch_dynamic") if gates == 0 else checks
    torch.library.opcheck(kernels().linear, (q, k, v, *arguments), test_utils=checks)
    plain = [None if x is None else x.detach() for x in (v, None, q, k, v, *arguments)]
    torch.library.opcheck(kernels().linear_gradient, plain, test_utils=checks[:2])


def test_compiles_whole() -> None:
    q, k, v, decay = operands(3)
    attention = kernels().linear_attention

    def loss(q: Tensor, v: Tensor, decay: Tensor) -> Tensor:
        return attention(q.sin(), k, v, -decay.exp())[0].square().sum()

    given = (q, v, decay)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, wanted = (torch.autograd.grad(form(*given), given) for form in (compiled, loss))
    assert max(error(x, y) for x, y in zip(found, wanted, strict=True)) < 1e-6
