"""Ragged chunks in the interpreter against their torch forms: values, gradients, edges."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.kernels import check_guards, guarded, load_kernels, scratch_of_nan
from tests.unit.ops.harness import functions

RUNTIME: dict[str, Any] = functions(
    {"chunk_members", "cut_chunks", "pool_chunks", "upsample_chunks"}
)
TIME, CHANNELS = 8, 4
LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3}
KINDS = ("sum", "mean", "max", "first", "last")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have many blocks in few numbers."""
    module = kernels()
    for name, choices in list(module.CONFIGS.items()):
        small = {"BLOCK_T": TIME, "BLOCK_C": CHANNELS}
        small = {key: size for key, size in small.items() if key in choices[0]}
        monkeypatch.setitem(module.CONFIGS, name, [{**choices[0], **small}])
    yield
    check_guards()


def kernels() -> Any:
    """Return the module with the kernels."""
    return load_kernels("segment")


def error(found: Tensor, wanted: Tensor) -> float:
    """Return how far off a result is, relative to its size."""
    found, wanted = found.detach().double(), wanted.detach().double()
    scale = wanted.square().mean().sqrt() if wanted.numel() else 0.0
    return float((found - wanted).square().mean().sqrt() / (scale + 1e-12))


def random_chunks(
    length: int, valid: Tensor | None = None, starts: Tensor | None = None, batch: int = 2
) -> Any:
    """Return chunks of four tokens on average, as the torch form cuts them."""
    flags = torch.rand(batch, length) < 0.25
    return RUNTIME["cut_chunks"](flags, valid=valid, starts=starts)


def masks(length: int, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Return padding on the left, in holes and everywhere, and starts of documents."""
    valid = torch.ones(rows, length, dtype=torch.bool)
    valid[0, : length // 2] = False
    valid[1] = torch.rand(length) < 0.6
    valid[2] = False
    return valid, torch.rand(rows, length) < 0.15


# --------------------------------------------------------------------------- boundaries


def check_cut(
    flags: Tensor, valid: Tensor | None, starts: Tensor | None, closes: bool, longest: int
) -> None:
    """Compare every field with that of the torch form."""
    wanted = RUNTIME["cut_chunks"](
        flags, valid=valid, starts=starts, closes=closes, longest=longest
    )
    given = [None if x is None else guarded(x) for x in (flags, valid, starts)]
    with scratch_of_nan():
        found = kernels().cut_segments(*given, closes, longest)
    assert torch.equal(found[0], wanted.number)
    assert torch.equal(found[1], wanted.newest)
    assert torch.equal(found[2], wanted.place)
    assert starts is None or torch.equal(found[3], wanted.floor)
    assert int(found[4].max()) == wanted.handed


@pytest.mark.parametrize("closes", [False, True], ids=["opens", "closes"])
@pytest.mark.parametrize("length", [1, TIME - 1, TIME, TIME + 1, 29])
def test_boundaries(length: int, closes: bool) -> None:
    check_cut(torch.rand(2, length) < 0.3, None, None, closes, 0)


@pytest.mark.parametrize("longest", [0, 1, 3])
@pytest.mark.parametrize("closes", [False, True], ids=["opens", "closes"])
def test_boundaries_with_padding_and_documents(closes: bool, longest: int) -> None:
    valid, starts = masks(19)
    flags = torch.rand(3, 19) < 0.3
    check_cut(flags, valid, None, closes, longest)
    check_cut(flags, valid, starts, closes, longest)


@pytest.mark.parametrize("start", [TIME - 1, TIME, TIME + 1])
def test_documents_at_the_edge_of_a_block(start: int) -> None:
    starts = torch.zeros(1, 2 * TIME + 2, dtype=torch.bool)
    starts[0, start] = True
    for closes in (False, True):
        check_cut(torch.zeros_like(starts), None, starts, closes, 0)


# --------------------------------------------------------------------------- reductions


def compare(x: Tensor, chunks: Any, how: str) -> None:
    """Compare a reduction and its gradient with the torch form's in float32."""
    live = torch.ones_like(chunks.slot, dtype=torch.bool)
    live = live if chunks.clock.valid is None else chunks.clock.valid
    live = live.view(*live.shape, *[1] * (x.dim() - 2))
    with scratch_of_nan():
        found = kernels().pool_segments(x, guarded(chunks.member), chunks.handed, how)
        grad = (torch.randn(found.shape) * live).to(x.dtype)
        (found_grad,) = torch.autograd.grad(found, x, guarded(grad))
    wide = x.detach().float().requires_grad_()
    wanted = RUNTIME["pool_chunks"](wide, chunks, dim=1, how=how)
    (wanted_grad,) = torch.autograd.grad(wanted, wide, grad.float())
    assert found.dtype == x.dtype and found_grad.dtype == x.dtype
    assert error(found * live, wanted * live) < LIMITS[x.dtype]
    assert error(found_grad, wanted_grad) < LIMITS[x.dtype]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers between guards."""
    return guarded(torch.randn(shape).to(dtype).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("how", KINDS)
def test_reductions(how: str, dtype: torch.dtype) -> None:
    compare(random(2, 21, CHANNELS + 1, dtype=dtype), random_chunks(21), how)


@pytest.mark.parametrize("length", [1, TIME - 1, TIME, TIME + 1])
def test_reductions_of_one_long_chunk(length: int) -> None:
    chunks = RUNTIME["cut_chunks"](torch.zeros(1, length, dtype=torch.bool))
    for how in KINDS:
        compare(random(1, length, 2), chunks, how)


@pytest.mark.parametrize("how", KINDS)
def test_reductions_with_padding_and_empty_chunks(how: str) -> None:
    valid, starts = masks(13)
    compare(random(3, 13, 2, 3), random_chunks(13, valid, starts, 3), how)


def test_what_is_no_number_stays() -> None:
    chunks = RUNTIME["cut_chunks"](torch.tensor([[True, False, True, False]]))
    x = torch.tensor([[[1.0], [torch.nan], [2.0], [-torch.inf]]])
    for how in ("max", "sum", "mean"):
        found = kernels().pool_segments(x, chunks.member, 2, how)
        assert found[0, 0].isnan() and not found[0, 1].isnan()


def test_equal_tokens_share_the_gradient_of_a_maximum() -> None:
    x = torch.tensor([[[2.0], [2.0], [1.0], [3.0]]], requires_grad=True)
    found = kernels().pool_segments(x, torch.tensor([[0, 0, 0, 1]]), 3, "max")
    (grad,) = torch.autograd.grad(found, x, torch.ones_like(found))
    assert found.flatten().tolist() == [2.0, 3.0, 0.0]
    assert grad.flatten().tolist() == [0.5, 0.5, 0.0, 1.0]


# --------------------------------------------------------------------------- back to tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("has_start", [False, True], ids=["zeros", "start"])
def test_upsampling(has_start: bool, lag: int, dtype: torch.dtype) -> None:
    valid, starts = masks(19)
    chunks = random_chunks(19, valid, starts, 3)
    y, start = random(3, chunks.handed, 5, dtype=dtype), random(5, dtype=dtype)
    given = (y, start) if has_start else (y,)
    wanted = chunks.number - lag
    index = guarded(torch.where(wanted >= chunks.floor, wanted, -1))
    with scratch_of_nan():
        found = kernels().upsample_segments(y, index, *given[1:])
        grad = torch.randn(found.shape).to(dtype)
        gradients = torch.autograd.grad(found, given, guarded(grad))
    wide = [x.detach().float().requires_grad_() for x in given]
    option = {"start": wide[1]} if has_start else {}
    fine = RUNTIME["upsample_chunks"](wide[0], chunks, dim=1, lag=lag, **option)
    assert error(found, fine) < LIMITS[dtype]
    for one, other in zip(gradients, torch.autograd.grad(fine, wide, grad.float()), strict=True):
        assert one.dtype == dtype and error(one, other) < LIMITS[dtype]


@pytest.mark.parametrize("shape", [(2, 11), (2, 11, 1), (2, 11, 3, 2)])
def test_shapes_of_tokens(shape: tuple[int, ...]) -> None:
    chunks = random_chunks(11)
    x = random(*shape)
    compare(x, chunks, "sum")
    y = kernels().pool_segments(x, chunks.member, chunks.handed, "first")
    fine = kernels().upsample_segments(y, chunks.number)
    assert fine.shape == shape
    assert torch.equal(fine, RUNTIME["upsample_chunks"](y, chunks, dim=1))


def test_members() -> None:
    valid, starts = masks(19)
    chunks = random_chunks(19, valid, starts, 3)
    x = random(3, 19, 5)
    index, length = RUNTIME["chunk_members"].__globals__["chunk_seats"](chunks)
    with scratch_of_nan():
        found = kernels().place_segments(x, guarded(index), chunks.handed * length)
        grad = guarded(torch.randn(found.shape))
        (one,) = torch.autograd.grad(found, x, grad)
    wanted = RUNTIME["chunk_members"](x, chunks, dim=1)
    (other,) = torch.autograd.grad(wanted, x, grad.view(wanted.shape))
    assert torch.equal(found.view(wanted.shape), wanted) and torch.equal(one, other)


# --------------------------------------------------------------------------- all


@pytest.mark.parametrize(("batch", "length", "width"), [(0, 4, 2), (2, 0, 2), (2, 4, 0)])
def test_nothing(batch: int, length: int, width: int) -> None:
    module, index = kernels(), torch.zeros(batch, length, dtype=torch.long)
    assert module.cut_segments(index.bool(), None, None, False, 0)[4].shape == (batch,)
    x = torch.zeros(batch, length, width, requires_grad=True)
    for how in KINDS:
        found = module.pool_segments(x, index, 3, how)
        assert found.shape == (batch, 3, width) and not found.any()
        assert torch.autograd.grad(found.sum(), x)[0].shape == x.shape
    y = torch.zeros(batch, 3, width)
    assert module.upsample_segments(y, index).shape == x.shape
    assert module.place_segments(x, index, 3).shape == (batch, 3, width)
    assert module.pool_segments(x, index, 0, "sum").shape == (batch, 0, width)


def test_torch_forms_in_double_precision() -> None:
    chunks = random_chunks(5, batch=1)
    x = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, chunks.handed, 2, dtype=torch.float64, requires_grad=True)
    start = torch.randn(2, dtype=torch.float64, requires_grad=True)
    for how in KINDS:
        assert torch.autograd.gradcheck(
            lambda x, how=how: RUNTIME["pool_chunks"](x, chunks, dim=1, how=how), x
        )
    up, put = RUNTIME["upsample_chunks"], RUNTIME["chunk_members"]
    assert torch.autograd.gradcheck(lambda y, s: up(y, chunks, dim=1, lag=1, start=s), (y, start))
    assert torch.autograd.gradcheck(lambda x: put(x, chunks, dim=1), x)


def test_torch_forms_call_them(monkeypatch: pytest.MonkeyPatch) -> None:
    valid, starts = masks(11)
    flags, x, start = torch.rand(3, 11) < 0.3, torch.randn(3, 11, 2), torch.randn(2)

    def forms() -> list[Tensor]:
        chunks = RUNTIME["cut_chunks"](flags, valid=valid, starts=starts)
        live = chunks.clock.valid[..., None]
        pooled = [RUNTIME["pool_chunks"](x, chunks, dim=1, how=how) * live for how in KINDS]
        fine = RUNTIME["upsample_chunks"](pooled[1], chunks, dim=1, lag=1, start=start)
        fields = [chunks.number, chunks.newest, chunks.place, chunks.floor, chunks.slot]
        return [*pooled, fine, RUNTIME["chunk_members"](x, chunks, dim=1), *fields]

    wanted = forms()
    monkeypatch.setattr(kernels(), "FORCED", True)
    monkeypatch.setitem(RUNTIME["cut_chunks"].__globals__, "KERNELS", kernels())
    for name in ("chunk_sum", "chunk_maximum", "chunk_edges", "chunk_rows"):
        monkeypatch.setitem(RUNTIME["cut_chunks"].__globals__, name, None)
    for found, expected in zip(forms(), wanted, strict=True):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert error(found, expected) < 1e-6


def test_registration() -> None:
    module = kernels()
    x = torch.randn(1, 3, 1, requires_grad=True)
    y, start = torch.randn(1, 2, 1, requires_grad=True), torch.randn(1, requires_grad=True)
    index, seat = torch.tensor([[0, -1, 1]]), torch.tensor([[1, -1, 0]])
    mask = torch.tensor([[True, False, True]])
    # whole graphs of the others are compiled below: the interpreter takes its time
    some = ("test_schema", "test_faketensor", "test_autograd_registration")
    check = partial(torch.library.opcheck, test_utils=some)
    check(module.cut_segments, (mask, mask, mask, True, 2))
    check(module.segment_columns, (index, 2))
    torch.library.opcheck(module.reduce_segments, (x, index, 2, "mean"))
    check(module.reduce_segments, (x, index, 2, "max"))
    plain, sizes = x.detach(), torch.ones(1, 2, dtype=torch.int32)
    check(module.reduce_segments_gradient, (y.detach(), index, sizes, None, None))
    check(module.reduce_segments_gradient, (y.detach(), index, None, plain, y.detach()))
    check(module.take_segments, (y, index, start, True))
    check(module.put_segments, (x, seat, 2))


def test_compiles_whole() -> None:
    x, index = torch.randn(1, 3, 2, requires_grad=True), torch.tensor([[0, 0, 1]])
    pool, upsample = kernels().pool_segments, kernels().upsample_segments

    def loss(x: Tensor) -> Tensor:
        return upsample(pool(x.sin(), index, 2, "mean"), index).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (found,), (wanted,) = (torch.autograd.grad(form(x), x) for form in (compiled, loss))
    assert error(found, wanted) < 1e-6
