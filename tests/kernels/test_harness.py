"""The harness of kernels: what is wrong with a kernel is reported."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from tests.fixtures.kernels import (
    check_guards,
    compile_launches,
    forget_guards,
    guarded,
    load_text,
    rendered,
    scratch_of_nan,
)
from tests.fixtures.targets import TARGETS, Resources

ADD = """

@triton.jit
def add_kernel(x, y, length, STORED: tl.constexpr, LOADED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < length + LOADED).to(tl.float32) + 1
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < length + STORED)


def add(x: torch.Tensor, stored: int = 0, loaded: int = 0) -> torch.Tensor:
    y = torch.empty_like(x)
    add_kernel[(triton.cdiv(x.numel(), 16),)](x, y, x.numel(), stored, loaded, BLOCK=16)
    return y


@triton.jit
def sum_kernel(x, y, length, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at)
    tl.store(y, tl.sum(value))


def sum_whole_blocks(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty(1)
    sum_kernel[(1,)](x, y, x.numel(), BLOCK=triton.next_power_of_2(x.numel()))
    return y
"""

GREEDY = """

@triton.jit
def share_kernel(x, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at)
    tl.store(x + at, value / tl.sum(value))


def share(x: torch.Tensor) -> None:
    share_kernel[(1,)](x, BLOCK=x.numel(), num_warps=1)


@triton.jit
def product_kernel(x, out, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    row, column = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for i in range(16):
        a = tl.load(x + i * BLOCK * WIDTH + row[:, None] * WIDTH + column[None, :])
        total = tl.dot(a, tl.trans(a), total)
    tl.store(out + row[:, None] * BLOCK + row[None, :], total)


def product(x: torch.Tensor, block: int, width: int) -> None:
    out = torch.empty(block, block)
    product_kernel[(1,)](x, out, BLOCK=block, WIDTH=width, num_warps=4, num_stages=12)
"""


def module(text: str) -> ModuleType:
    return load_text(rendered() + text)


@pytest.mark.parametrize("target", TARGETS)
def test_a_plain_kernel_is_cheap(target: str) -> None:
    (found,) = compile_launches(module(ADD).add, torch.empty(1000), target=target)
    assert (found.kernel, found.target, found.dtype) == ("add_kernel", target, "float32")
    assert 0 < found.registers < 32 and not found.fault()


def test_arguments_are_specialised_as_at_run_time() -> None:
    add = module(ADD).add
    (even,) = compile_launches(add, torch.empty(1024))
    (other,) = compile_launches(add, torch.empty(2048))
    (odd,) = compile_launches(add, torch.empty(1001))
    (half,) = compile_launches(add, torch.empty(1024, dtype=torch.float16))
    assert even.digest == other.digest
    assert len({even.digest, odd.digest, half.digest}) == 3


@pytest.mark.parametrize("target", ["cuda:90", pytest.param("hip:gfx942", marks=pytest.mark.slow)])
def test_spills_are_reported(target: str) -> None:
    x = torch.empty(32768 if target == "hip:gfx942" else 16384)
    (found,) = compile_launches(module(GREEDY).share, x, target=target)
    assert found.spills > 0 and "spills" in found.fault()


def test_too_much_shared_memory_is_reported() -> None:
    x = torch.empty(16 * 64 * 256, dtype=torch.float16)
    (found,) = compile_launches(module(GREEDY).product, x, 64, 256)
    assert found.shared > TARGETS["cuda:90"].shared and "shared memory" in found.fault()


def test_what_does_not_compile_is_reported() -> None:
    text = ADD.replace("tl.sum(value)", "value + tl.arange(0, 2 * BLOCK)")
    (found,) = compile_launches(module(text).sum_whole_blocks, torch.empty(100))
    assert "does not compile" in found.fault()


def test_faults_follow_the_target() -> None:
    assert Resources("k", "hip:gfx942", "float16", shared=65537).fault()
    assert not Resources("k", "cuda:80", "float16", shared=65537).fault()
    assert Resources("k", "cuda:80", "float16", spills=36).fault()


def test_guards_catch_a_store_outside(device: str) -> None:
    add = module(ADD).add
    x = guarded(torch.randn(37))
    with scratch_of_nan():
        assert torch.equal(add(x), x + 1)
    with (
        pytest.raises(AssertionError, match="2 elements written outside of a scratch"),
        scratch_of_nan(),
    ):
        add(x, stored=2)


def test_guards_show_a_load_outside(device: str) -> None:
    sums = module(ADD).sum_whole_blocks
    full, ragged = guarded(torch.ones(32)), guarded(torch.ones(29))
    assert sums(full) == 32
    assert sums(ragged).isnan()
    check_guards()


def test_memory_that_nobody_wrote_is_nan() -> None:
    with scratch_of_nan():
        assert torch.empty(3, 4).isnan().all()
        assert torch.empty((3, 4), dtype=torch.float16).isnan().all()
        assert torch.ones(2).new_empty(5).isnan().all()
        assert torch.empty_like(torch.ones(2, 3)).isnan().all()
        assert torch.empty(3, dtype=torch.int32).min() > 2**29


def test_guarded_keeps_what_a_tensor_is() -> None:
    for x in (torch.randn(3, 4).T, torch.arange(5), torch.zeros(0, 3), torch.ones(2).expand(3, 2)):
        y = guarded(x)
        assert torch.equal(x, y) and y.dtype == x.dtype
    assert guarded(torch.randn(3, 4).T).stride() == (1, 4)
    assert guarded(torch.randn(3, requires_grad=True)).requires_grad
    forget_guards()
