"""Attention to chosen keys in a kernel, against its torch form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.kernels import check_guards, guarded, load_kernels, load_text, scratch_of_nan
from tokdsl.emit import functions

TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3}


@cache
def forms() -> Any:
    """Return the torch forms as a package has them."""
    needed = functions.collect({"attend_selected", "selected_denominators", "token_clock"})
    plain = replace(
        next(f for f in needed if f.name == "on_kernels"),
        body="KERNELS = None\n\n\ndef on_kernels(x):\n    return False",
    )
    return load_text(functions.merge([plain if f.name == plain.name else f for f in needed]))


@dataclass(frozen=True)
class Case:
    """Shapes and settings: B, T, S, H, G, U, chosen entries, widths of keys and values."""

    queries: int = 2
    keys: int = 6
    heads: int = 4
    groups: int = 2
    sets: int = 1
    chosen: int = 6
    width: int = 8
    values: int = 8
    batch: int = 1
    block: int = 1
    first: int = 0
    last: int = 0
    causal: bool = True
    sinks: bool = False
    shared: bool = False
    padded: bool = False
    documents: bool = False
    narrow: bool = False

    def clock(self) -> Any:
        """Return the clock of the last queries."""
        every = torch.zeros(self.batch, self.queries)
        past = self.keys - self.queries
        documents = valid = past_valid = None
        if self.padded:
            seen = torch.ones(self.batch, self.keys, dtype=torch.bool)
            seen[-1, :2] = False
            seen[0, self.keys // 2] = False
            past_valid, valid = seen[:, :past], seen[:, past:]
        if self.documents:
            documents = (torch.arange(self.keys) >= self.keys // 3).long().expand(self.batch, -1)
        return forms().token_clock(every, valid, documents, past, past_valid)

    def select(self) -> Tensor:
        """Return choices of any order with gaps, later keys, and repetitions."""
        count = self.keys
        if self.block > 1:
            table = forms().block_table(self.clock(), self.block)
            count = table[0].shape[1]
        drawn = torch.randint(-2, count, (self.batch, self.queries, self.sets, self.chosen))
        drawn = drawn.clamp_min(-1)
        return drawn.to(torch.int32 if self.narrow else torch.int64)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return q, k, v and sinks."""
        q = torch.randn(self.batch, self.queries, self.heads, self.width)
        k = torch.randn(self.batch, self.keys, self.groups, self.width)
        v = torch.randn(self.batch, self.keys, self.groups, self.values)
        sinks = torch.randn(self.heads).to(dtype) if self.sinks else None
        return q.to(dtype), k.to(dtype), v.to(dtype), sinks

    @property
    def statics(self) -> tuple[int, int, int, bool, float]:
        """The numbers that a launcher takes."""
        return self.block, self.first, self.last, self.causal, self.width**-0.5


CASES = {
    "one": Case(queries=1, keys=1, chosen=1),
    "tokens": Case(),
    "group": Case(sets=2, chosen=17),
    "head": Case(sets=4, groups=2, chosen=5),
    "all heads": Case(heads=3, groups=1, chosen=33, keys=40, queries=2),
    "many heads": Case(heads=19, groups=1, queries=2, chosen=3),
    "ends": Case(first=2, last=3, chosen=2),
    "both ways": Case(causal=False, chosen=16),
    "blocks": Case(block=3, chosen=2, sets=2, keys=11),
    "blocks per head": Case(block=4, chosen=3, sets=4, keys=13, heads=4, groups=2),
    "long blocks": Case(block=35, chosen=2, keys=50, queries=3, groups=1),
    "blocks and ends": Case(block=2, chosen=2, first=1, last=2, queries=3),
    "sinks": Case(sinks=True),
    "narrow": Case(narrow=True),
    "uneven": Case(width=80, values=5, queries=2),
    "wide": Case(queries=1, keys=4, heads=2, groups=1, chosen=3, width=330, values=300),
    "wide latent": Case(
        queries=1, keys=3, heads=2, groups=1, chosen=3, width=320, values=300, shared=True
    ),
    "wide blocks": Case(
        queries=1, keys=4, heads=2, groups=1, chosen=1, width=330, values=300, block=3
    ),
    "latent": Case(groups=1, width=20, values=16, shared=True),
    "padding": Case(batch=2, padded=True, chosen=5, queries=4),
    "padded blocks": Case(batch=2, padded=True, block=3, chosen=2, queries=4, sets=2),
    "padded ends": Case(batch=2, padded=True, first=2, last=2, chosen=2, queries=3),
    "documents": Case(batch=2, documents=True, queries=4, keys=10),
    "document blocks": Case(documents=True, padded=True, block=3, chosen=2, keys=12, batch=2),
    "document ends": Case(documents=True, first=1, last=2, chosen=2, queries=4, keys=12),
}


def by_form(
    case: Case, select: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None
) -> Any:
    """Return result and denominators of the torch form."""
    block, first, last, causal, scale = case.statics
    clock = case.clock()
    column = forms().selected_columns(select.long(), clock, block, first, last, causal)
    mixed = forms().attend_selected(
        q, k, v, select.long(), clock, block=block, first=first, last=last, causal=causal,
        scale=scale, sinks=sinks,
    )  # fmt: skip
    return mixed, forms().selected_denominators(q, k, column, scale, sinks)


def by_kernel(
    case: Case, select: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None
) -> Any:
    """Return the same of the kernel."""
    tables = [
        None if x is None else guarded(x) for x in forms().selected_tables(case.clock(), case.block)
    ]
    kernel = load_kernels("choice", "attend_selected").attend_selected
    return kernel(q, k, v, guarded(select), *tables, sinks, *case.statics)


def rms(x: Tensor, wanted: Tensor) -> float:
    """Return the error of a tensor relative to what is wanted."""
    size = float(wanted.double().pow(2).mean().sqrt())
    return float((x.double() - wanted.double()).pow(2).mean().sqrt()) / max(size, 1e-6)


def drawn(case: Case, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return choices, q, k, v and sinks; the latent ones share memory."""
    torch.manual_seed(0)
    q, k, v, sinks = case.tensors(dtype)
    q, k = guarded(q), guarded(k)
    v = k[..., : case.values] if case.shared else guarded(v)
    return case.select(), q, k, v, sinks  # type: ignore[return-value]


#: what differs in nothing that the gradient does
FORWARD = ("one", "narrow", "many heads", "padding", "documents", "padded ends", "both ways")
HALF = ("tokens", "blocks", "latent", "ends")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in CASES] + [(name, torch.float16) for name in HALF],
    ids=[*CASES, *(f"{name} in half" for name in HALF)],
)
def test_kernel_is_the_form(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    select, q, k, v, sinks = drawn(case, dtype)
    with scratch_of_nan():
        mixed, size = by_kernel(case, select, q, k, v, sinks)
    exact = [None if x is None else x.double() for x in (q, k, v, sinks)]
    wanted, wanted_size = by_form(case, select, *exact)
    assert not mixed.isnan().any()
    assert torch.equal(size.isinf(), wanted_size.isinf())
    assert rms(mixed, wanted) < TOLERANCE[dtype]
    there = wanted_size.isfinite()
    assert torch.allclose(size[there].double(), wanted_size[there], atol=5 * TOLERANCE[dtype])
    assert not mixed[wanted_size == float("-inf")].any()


@pytest.mark.parametrize("name", [n for n in CASES if n not in FORWARD])
def test_gradients_are_those_of_the_form(name: str) -> None:
    case = CASES[name]
    select, q, k, v, sinks = drawn(case, torch.float32)
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v, sinks) if x is not None]
    d_mixed = torch.randn(case.batch, case.queries, case.heads, case.values)
    d_size = torch.randn(case.batch, case.queries, case.heads)

    def gradients(by: Any, given: list[Tensor]) -> tuple[Tensor, ...]:
        own = [*given, None][:4] if sinks is None else given
        if case.shared:
            own[2] = own[1][..., : case.values]
            given = [x for i, x in enumerate(given) if i != 2]
        mixed, size = by(case, select, *own)
        there = size.isfinite()
        total = (mixed * d_mixed).sum() + (size[there] * d_size[there]).sum()
        return torch.autograd.grad(total, given)

    with scratch_of_nan():
        found = gradients(by_kernel, list(leaves))
    wanted = gradients(by_form, [x.detach().double().requires_grad_() for x in leaves])
    for mine, right in zip(found, wanted, strict=True):
        assert rms(mine, right) < 5e-5
    check_guards()


def test_form_has_the_gradients_of_its_result() -> None:
    case = Case(queries=3, keys=5, chosen=3, first=1, last=1, sinks=True, width=3, values=2)
    select, *given = drawn(case, torch.float64)
    given = [x.clone().requires_grad_() for x in given]
    assert torch.autograd.gradcheck(lambda *x: by_form(case, select, *x), given)


def test_no_tokens_and_no_choices() -> None:
    for case in (Case(queries=0, keys=4), Case(chosen=0), Case(batch=0)):
        select, q, k, v, _ = drawn(case, torch.float32)
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        mixed, size = by_kernel(case, select, *leaves, None)
        assert mixed.shape == (case.batch, case.queries, case.heads, case.values)
        assert not mixed.any() and bool((size == float("-inf")).all())
        for gradient in torch.autograd.grad(mixed.sum(), leaves):
            assert not gradient.any()


def test_large_scores() -> None:
    case = Case()
    select, q, k, v, _ = drawn(case, torch.float32)
    mixed, _ = by_kernel(case, select, q * 1e4, k, v, None)
    wanted, _ = by_form(case, select, q * 1e4, k, v, None)
    assert rms(mixed, wanted) < 1e-4


def test_gradients_of_some_queries_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(sets=2, queries=4)
    select, q, k, v, _ = drawn(case, torch.float32)
    kernels = load_kernels("choice", "attend_selected")
    found = []
    for size in (2**20, 2 * 2 * 6 * 16):
        monkeypatch.setattr(kernels, "ATTEND_SELECTED_PAIRS", size)
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        mixed, _ = by_kernel(case, select, *leaves, None)
        found.append(torch.autograd.grad(mixed.pow(2).sum(), leaves))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_registration() -> None:
    case = Case(queries=2, sinks=True)
    select, q, k, v, sinks = drawn(case, torch.float32)
    assert sinks is not None
    tables = forms().selected_tables(case.clock(), 1)
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    operation = load_kernels("choice", "attend_selected").attend_selected
    args = (*leaves, select, *tables, sinks.requires_grad_(), *case.statics)
    torch.library.opcheck(operation, args)
    compiled = torch.compile(lambda *x: operation(*x)[0], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), operation(*args)[0])
