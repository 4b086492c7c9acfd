"""Tiled attention against the full matrix: scores, masks, documents, padding, sinks, parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.kernels import check_guards, guarded, load_kernels, scratch_of_nan

#: error of results as a share of their size, by type
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}
Score = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A score and a mask: as lines of the kernel, and over the full matrix.

    `given` maps an operand to its sizes by name of dimension; a table ends in "entries".
    """

    score: Score | None = None
    mask: Score | None = None
    forward: tuple[str, ...] = ()
    backward: tuple[str, ...] = ()
    mask_lines: tuple[str, ...] = ()
    gradients: dict[str, Any] = field(default_factory=dict)
    given: dict[str, tuple[str, ...]] = field(default_factory=dict)
    integers: tuple[str, ...] = ()
    lo: int | None = None
    hi: int | None = None

    def pieces(self, name: str) -> dict[str, Any]:
        """What the template is rendered with."""
        given = [
            {
                "name": operand,
                "dims": [d for d in dims if d != "entries"],
                "dtype": "int" if operand in self.integers else "float",
                "table": "entries" in dims,
                "gradient": operand in self.gradients,
            }
            for operand, dims in self.given.items()
        ]
        score = mask = None
        if self.forward:
            score = {
                "forward": self.forward,
                "result": "r",
                "backward": self.backward,
                "upstream": "d_r",
                "d_s": "d_s",
                "gradients": self.gradients,
            }
        if self.mask_lines:
            mask = {"forward": self.mask_lines, "result": "m"}
        return {"name": name, "given": given, "score": score, "mask": mask}


TABLE = {"value": "d_t", "index": "at", "entries": 6}
DISTANCE = "at = tl.minimum(tl.maximum(i - j, 0), 5)"
CASES = {
    "none": Case(),
    "causal": Case(hi=0),
    "window": Case(lo=-4, hi=0),
    "ahead": Case(lo=1, hi=3),
    "slopes": Case(
        hi=0,
        score=lambda s, i, j, head, slopes: s - slopes * (i - j).abs(),
        forward=("r = s - slopes * tl.abs(i - j).to(tl.float32)",),
        backward=("d_s = d_r",),
        given={"slopes": ("head",)},
    ),
    "soft cap": Case(
        score=lambda s, i, j, head: 2 * torch.tanh(s / 2),
        forward=("e = tl.exp(s)", "c = (e - 1) / (e + 1)", "r = 2 * c"),
        backward=("d_s = d_r * (1 - c * c)",),
    ),
    "prefix": Case(
        mask=lambda i, j, head, prefix: (j <= i) | (j < prefix),
        mask_lines=("m = (j <= i) | (j < prefix)",),
        given={"prefix": ("batch",)},
        integers=("prefix",),
    ),
    "checkerboard": Case(
        mask=lambda i, j, head: (i // 3 + j // 3 + head) % 2 == 0,
        mask_lines=("m = (i // 3 + j // 3 + head) % 2 == 0",),
        hi=0,
    ),
    "learned distance": Case(
        score=lambda s, i, j, head, decay, base: s - decay * (i - j).abs().sqrt() + base,
        forward=("far = tl.sqrt(tl.abs(i - j).to(tl.float32))", "r = s - decay * far + base"),
        backward=(
            "d_s = d_r",
            "d_decay = tl.sum(-d_r * far, axis=1, keep_dims=True)",
            "d_base = d_r",
        ),
        gradients={"decay": "d_decay", "base": "d_base"},
        given={"decay": ("head",), "base": ()},
        hi=0,
    ),
    "buckets": Case(
        score=lambda s, i, j, head, table: (
            s
            + torch.gather(
                table[..., 0, :].expand(*s.shape[:3], 6), 3, (i - j).clamp(0, 5).expand(s.shape)
            )
        ),
        forward=(DISTANCE, "r = s + tl.load(table + at).to(tl.float32)"),
        backward=("d_s = d_r", "d_t = d_r"),
        gradients={"table": TABLE},
        given={"table": ("head", "entries")},
        hi=0,
    ),
    "logits by distance": Case(
        score=lambda s, i, j, head, table: (
            s
            * torch.gather(
                table[..., 0, :].expand(*s.shape[:3], 6), 3, (i - j).clamp(0, 5).expand(s.shape)
            )
        ),
        forward=(DISTANCE, "t = tl.load(table + at).to(tl.float32)", "r = s * t"),
        backward=("d_s = d_r * t", "d_t = d_r * s"),
        gradients={"table": TABLE},
        given={"table": ("batch", "head", "query", "entries")},
        hi=0,
    ),
    "forgetting": Case(
        score=lambda s, i, j, head, past, at: s + past - at,
        forward=("r = s + past - at",),
        backward=("d_s = d_r", "d_past = d_r", "d_at = -d_r"),
        gradients={"past": "d_past", "at": "d_at"},
        given={"past": ("batch", "head", "query"), "at": ("batch", "head", "key")},
        hi=0,
    ),
    "bias of pairs": Case(
        score=lambda s, i, j, head, bias, weight: s * torch.sigmoid(bias) + weight,
        forward=("g = 1 / (1 + tl.exp(-bias))", "r = s * g + weight"),
        backward=("d_s = d_r * g", "d_bias = d_r * s * g * (1 - g)", "d_weight = d_r"),
        gradients={"bias": "d_bias", "weight": "d_weight"},
        given={"bias": ("query", "key"), "weight": ("key",)},
    ),
    # every third head hears in steps that widen with the distance, and the louder the nearer
    "ripples": Case(
        score=lambda s, i, j, head, pitch, ebb: torch.where(
            head % 3 == 0, s * torch.cos(pitch * (i - j)), s - ebb * torch.log1p((i - j).abs())
        ),
        mask=lambda i, j, head: ((i - j).abs() < 4) | ((i - j) % 4 == head % 4),
        forward=(
            "d = (i - j).to(tl.float32)",
            "wave = tl.cos(pitch * d)",
            "far = tl.log(1 + tl.abs(d))",
            "third = head % 3 == 0",
            "r = tl.where(third, s * wave, s - ebb * far)",
        ),
        backward=(
            "d_s = tl.where(third, d_r * wave, d_r)",
            "d_pitch = tl.where(third, -d_r * s * tl.sin(pitch * d) * d, 0.0)",
            "d_ebb = tl.where(third, 0.0, -d_r * far)",
        ),
        mask_lines=("m = (tl.abs(i - j) < 4) | ((i - j + 64) % 4 == head % 4)",),
        gradients={"pitch": "d_pitch", "ebb": "d_ebb"},
        given={"pitch": ("head",), "ebb": ("batch", "query")},
    ),
}


@dataclass
class Inputs:
    """One call: operands, the operands of the lines, what hides keys."""

    q: Tensor
    k: Tensor
    v: Tensor
    given: dict[str, Tensor]
    options: dict[str, Any]

    def differentiable(self, case: Case) -> list[Tensor]:
        """What gets gradients."""
        sinks = self.options.get("sinks")
        own = [self.given[name] for name in case.gradients]
        return [self.q, self.k, self.v, *own, *([] if sinks is None else [sinks])]


def kernels(case: str, monkeypatch: pytest.MonkeyPatch, **blocks: int) -> tuple[ModuleType, Any]:
    """The module and launcher of a case, with tiles so small that there are some."""
    name = "attend_" + case.replace(" ", "_")
    module = load_kernels("attend_parts", "attend", **CASES[case].pieces(name))
    plain = module.config
    sizes = {"BLOCK_M": 16, "BLOCK_N": 16, **blocks}
    monkeypatch.setattr(
        module, "config", lambda kernel: plain(kernel) if "parts" in kernel else dict(sizes)
    )
    return module, getattr(module, name)


def inputs(
    case: Case,
    shape: tuple[int, ...] = (2, 7, 11, 4, 2, 8, 6),
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Inputs:
    """Operands of shape (batch, queries, keys, heads, groups, width of keys, of values)."""
    torch.manual_seed(sum(shape))
    batch, queries, keys, heads, groups, width, wide = shape
    q = torch.randn(batch, queries, heads, width)
    k = torch.randn(batch, groups, keys, width).transpose(1, 2)
    v = torch.randn(batch, groups, keys, wide).transpose(1, 2)
    sizes = {"batch": batch, "head": heads, "query": queries, "key": keys}
    given = {}
    for name, dims in case.given.items():
        size = [sizes[d] if d in dims else 1 for d in sizes] + [6] * ("entries" in dims)
        given[name] = torch.rand(size)
        if name in case.integers:
            given[name] = torch.randint(0, 5, size)
    found = Inputs(
        *(guarded(x.to(dtype)).requires_grad_() for x in (q, k, v)),
        {
            n: guarded(x.to(dtype)).requires_grad_() if n in case.gradients else guarded(x)
            for n, x in given.items()
        },
        {n: guarded(x) if isinstance(x, Tensor) else x for n, x in options.items()},
    )
    if found.options.get("sinks") is not None:
        found.options["sinks"].requires_grad_()
    return found


def plain(case: Case, call: Inputs, lo: int | None, hi: int | None) -> tuple[Tensor, Tensor]:
    """Attention with the whole matrix, in float64."""
    q, k, v = (x.double().transpose(1, 2) for x in (call.q, call.k, call.v))
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    given = {n: x.double() if x.is_floating_point() else x for n, x in call.given.items()}
    queries, keys = q.shape[2], k.shape[2]
    o = call.options
    i, j = o.get("positions"), o.get("key_positions")
    i = torch.arange(queries)[None] + keys - queries if i is None else i
    j = torch.arange(keys)[None] if j is None else j
    i, j, head = i[:, None, :, None], j[:, None, None], torch.arange(q.shape[1])[:, None, None]
    s = q @ k.transpose(-1, -2) * call.options.get("scale", 0.5)
    if case.score is not None:
        s = case.score(s, i, j, head, **given)
    visible = torch.ones_like(s, dtype=torch.bool)
    visible &= torch.ones_like(j - i, dtype=torch.bool) if lo is None else j - i >= lo
    visible &= torch.ones_like(j - i, dtype=torch.bool) if hi is None else j - i <= hi
    if case.mask is not None:
        visible &= case.mask(i, j, head, **{n: x for n, x in given.items() if case.score is None})
    if o.get("valid") is not None:
        visible &= o["valid"][:, None, :, None]
    if o.get("key_valid") is not None:
        visible &= o["key_valid"][:, None, None]
    if o.get("documents") is not None:
        visible &= o["documents"][:, None, :, None] == o["key_documents"][:, None, None]
    s = torch.where(visible, s, -torch.inf)
    peak = s.new_zeros(*s.shape[:3], 1)
    if keys:
        peak = torch.where(visible.any(-1, keepdim=True), s.amax(-1, keepdim=True), peak)
    p = torch.where(visible, torch.exp(s - peak), 0.0)
    total = p.sum(-1, keepdim=True)
    lse = torch.where(total > 0, peak + torch.log(torch.where(total > 0, total, 1.0)), -torch.inf)
    if o.get("sinks") is not None:
        total = total + torch.exp(o["sinks"].double()[:, None, None] - peak)
    out = p / torch.where(total > 0, total, 1.0) @ v
    return out.transpose(1, 2), lse[..., 0]


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype, label: str = "") -> None:
    """Compare by the size of the error, infinities exactly."""
    assert found.shape == wanted.shape, label
    finite = wanted.isfinite()
    assert torch.equal(found.isfinite(), finite), label
    error = torch.where(finite, found.double() - wanted, 0.0).square().sum().sqrt()
    size = torch.where(finite, wanted, 0.0).square().sum().sqrt()
    assert error <= TOLERANCE[dtype] * (size + 1e-2 * finite.sum() ** 0.5), (label, error, size)


def check(
    case: str, call: Inputs, module: ModuleType, launch: Any, *, backward: bool = True
) -> None:
    """Compare a launch with the whole matrix: results, log-sums, gradients of both."""
    kind = CASES[case]
    lo, hi = call.options.pop("lo", kind.lo), call.options.pop("hi", kind.hi)
    options = {"scale": 0.5, **call.options}
    with scratch_of_nan():
        out, lse = launch(call.q, call.k, call.v, *call.given.values(), lo=lo, hi=hi, **options)
    wanted, wanted_lse = plain(kind, call, lo, hi)
    dtype = call.q.dtype
    assert out.dtype == dtype and lse.dtype == torch.float32
    close(out, wanted, dtype, "out")
    close(lse, wanted_lse, dtype, "lse")
    if not backward:
        return
    torch.manual_seed(1)
    direction, lse_direction = torch.randn(out.shape), torch.randn(lse.shape)
    seen = wanted_lse.isfinite()
    tensors = call.differentiable(kind)
    with scratch_of_nan():
        loss = (out * direction).sum() + torch.where(seen, lse, 0.0).mul(lse_direction).sum()
        found = torch.autograd.grad(loss, tensors)
    loss = (wanted * direction).sum() + torch.where(seen, wanted_lse, 0.0).mul(lse_direction).sum()
    for n, (one, other) in enumerate(zip(found, torch.autograd.grad(loss, tensors), strict=True)):
        assert one.dtype == tensors[n].dtype
        close(one, other, dtype, f"gradient {n}")


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, torch.float32) for case in CASES),
        ("window", torch.float16),
        ("learned distance", torch.float16),
    ],
)
def test_scores_and_masks_agree_with_the_whole_matrix(
    case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = inputs(CASES[case], (1, 9, 19, 4, 2, 8, 6), dtype)
    check(case, call, *kernels(case, monkeypatch))
    check_guards()


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1, 1, 1),
        (1, 15, 15, 1, 1, 16, 16),
        (1, 16, 16, 1, 1, 16, 17),
        (1, 17, 33, 1, 1, 24, 3),
        (1, 5, 7, 6, 2, 40, 20),
        (1, 3, 18, 3, 1, 72, 33),
    ],
)
def test_sizes_need_no_powers_of_two(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    check("causal", inputs(CASES["causal"], shape), *kernels("causal", monkeypatch))


def test_tiles_of_rows_and_keys_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows, keys in (32, 16), (16, 32):
        call = inputs(CASES["window"], (1, 23, 40, 3, 1, 8, 6), lo=-7, hi=2)
        check("window", call, *kernels("window", monkeypatch, BLOCK_M=rows, BLOCK_N=keys))


@pytest.mark.parametrize("case", ["causal", "ripples"])
def test_sinks_take_weight_and_get_gradients(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = inputs(CASES[case], (1, 6, 9, 4, 2, 8, 6), sinks=torch.randn(4))
    check(case, call, *kernels(case, monkeypatch))
    check_guards()


def test_a_sink_alone_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions before all keys see none; a far greater or smaller sink breaks no other."""
    call = inputs(CASES["ahead"], (1, 5, 5, 4, 2, 8, 6), sinks=torch.tensor([0.5, 90, -90, 2]))
    check("ahead", call, *kernels("ahead", monkeypatch))


def packed(*lengths: int) -> Tensor:
    """Document numbers of one row."""
    return torch.cat([torch.full((n,), d + 1) for d, n in enumerate(lengths)])


def places(*lengths: int) -> Tensor:
    """Positions that begin again in every document."""
    return torch.cat([torch.arange(n) for n in lengths])


@pytest.mark.parametrize("case", ["window", "learned distance", "checkerboard"])
def test_documents_are_apart(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their borders lie one before, on and one after those of a tile of 16 keys."""
    lengths = (15, 1, 1, 15, 5)
    document, position = packed(*lengths)[None], places(*lengths)[None]
    facts = {"positions": position, "key_positions": position}
    facts |= {"documents": document, "key_documents": document}
    call = inputs(CASES[case], (1, 37, 37, 1, 1, 8, 6), **facts)
    check(case, call, *kernels(case, monkeypatch))
    check_guards()


def test_padding_on_the_left_is_not_seen_and_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    valid = torch.arange(20) >= torch.tensor([[17], [0]])
    position = (valid.cumsum(1) - 1).clamp(min=0)
    facts = {"valid": valid[:, -9:], "key_valid": valid}
    facts |= {"positions": position[:, -9:], "key_positions": position}
    call = inputs(CASES["causal"], (2, 9, 20, 2, 1, 8, 6), **facts)
    check("causal", call, *kernels("causal", monkeypatch))


def test_hidden_keys_beside_tiles_that_are_seen_wholly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of 16 keys are hidden from all queries, of which tiles see the rest wholly."""
    valid = torch.arange(40)[None] >= 5
    call = inputs(CASES["causal"], (1, 40, 40, 1, 1, 8, 6), key_valid=valid)
    check("causal", call, *kernels("causal", monkeypatch))
    call = inputs(CASES["none"], (1, 40, 40, 1, 1, 8, 6), valid=valid, key_valid=valid)
    check("none", call, *kernels("none", monkeypatch))


def test_padding_with_contiguous_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    valid = torch.arange(20) < torch.tensor([[0], [18]])
    call = inputs(CASES["causal"], (2, 20, 20, 1, 1, 8, 6), key_valid=valid)
    check("causal", call, *kernels("causal", monkeypatch))


def test_positions_may_run_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    facts = {"positions": torch.randperm(21)[None], "key_positions": torch.randint(40, (1, 37))}
    call = inputs(CASES["window"], (2, 21, 37, 1, 1, 8, 6), **facts)
    check("window", call, *kernels("window", monkeypatch))


@pytest.mark.parametrize(
    "shape", [(2, 0, 3, 2, 1, 8, 6), (2, 3, 0, 2, 1, 8, 6), (0, 3, 3, 2, 1, 8, 6)]
)
@pytest.mark.parametrize("case", ["causal", "learned distance"])
def test_no_tokens(case: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, inputs(CASES[case], shape), *kernels(case, monkeypatch))


@pytest.mark.parametrize("case", ["window", "slopes", "ripples"])
def test_keys_are_split_where_queries_are_few(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, launch = kernels(case, monkeypatch)
    monkeypatch.setattr(module, "attention_parts", lambda *_: 3)
    call = inputs(CASES[case], (1, 1, 70, 4, 2, 8, 6), sinks=torch.randn(4))
    check(case, call, module, launch, backward=case == "slopes")
    valid = torch.arange(70) >= torch.tensor([[66], [0]])
    call = inputs(CASES[case], (2, 1, 70, 2, 1, 8, 6), key_valid=valid)
    check(case, call, module, launch, backward=False)
    check_guards()


def test_as_many_shares_of_keys_as_processors_are_free() -> None:
    module = load_kernels("attend_parts", "attend", **CASES["none"].pieces("attend_none"))
    cpu = torch.device("cpu")
    assert module.attention_parts(4, 100_000, 64, cpu) == 1
    module.attention_processors, own = lambda device: 132, module.attention_processors
    try:
        assert module.attention_parts(8, 100_000, 64, cpu) == 16
        assert module.attention_parts(8, 1024, 64, cpu) == 4
        assert module.attention_parts(8, 100, 64, cpu) == 1
        assert module.attention_parts(200, 100_000, 64, cpu) == 1
        assert module.attention_parts(1, 10**6, 64, cpu) == 64
    finally:
        module.attention_processors = own


@pytest.mark.parametrize("width", [(24, 16), (80, 64)])
def test_values_that_begin_the_keys_are_read_with_them(
    width: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, launch = kernels("causal", monkeypatch)
    call = inputs(CASES["causal"], (1, 5, 21, 6, 1, *width))
    shared = Inputs(call.q, call.k, call.k[..., : width[1]], {}, {"shared_values": True})
    wanted = plain(CASES["causal"], shared, None, 0)[0]
    out, _ = launch(shared.q, shared.k, shared.v, scale=0.5, hi=0, shared_values=True)
    close(out, wanted, torch.float32)
    direction = torch.randn(out.shape)
    pairs = (torch.autograd.grad((x * direction).sum(), (call.q, call.k)) for x in (out, wanted))
    for found, other in zip(*pairs, strict=True):
        close(found, other, torch.float32)


def test_tiles_that_nobody_sees_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tile of 16 keys holds does not matter where no query of a tile may see it."""
    _, launch = kernels("window", monkeypatch)
    call = inputs(CASES["window"], (1, 16, 64, 1, 1, 16, 16), lo=-15, hi=0)
    k, v = call.k.detach(), call.v.detach()
    k[:, :32] = torch.nan
    v[:, :32] = torch.nan
    # queries are at 48 to 63, and so reach 33
    out, _ = launch(call.q, k, v, scale=0.5, lo=-15, hi=0)
    assert out.isfinite().all()
    position = torch.arange(64)[None] + 1000
    options = {"positions": position[:, -16:], "key_positions": position}
    assert launch(call.q, k, v, scale=0.5, lo=-15, hi=0, **options)[0].isfinite().all()
    document = torch.arange(64)[None] // 32
    options = {"documents": document[:, -16:], "key_documents": document}
    assert launch(call.q, k, v, scale=0.5, **options)[0].isfinite().all()
    valid = torch.arange(64)[None] >= 32
    assert launch(call.q, k, v, scale=0.5, key_valid=valid)[0].isfinite().all()
    # and backward: rows that cannot see a tile of keys are not read for it
    q = inputs(CASES["window"], (1, 64, 64, 1, 1, 16, 16)).q.detach()
    q[:, 32:] = torch.nan
    out = launch(q, k := torch.randn(1, 64, 1, 16).requires_grad_(), k, scale=0.5, lo=-15, hi=0)[0]
    out[:, :32].sum().backward()
    assert k.grad is not None
    assert k.grad[:, :16].isfinite().all()


def test_parts_merge_by_their_sums() -> None:
    module = load_kernels("attend_parts")
    torch.manual_seed(2)
    parts = guarded(torch.randn(3, 2, 5, 4, 6)).requires_grad_()
    lse = torch.randn(3, 2, 4, 5) * 3
    lse[1, 0] = -torch.inf
    lse[:, 1, 2] = -torch.inf
    lse[0, 1, 3] = 200.0
    lse = guarded(lse).requires_grad_()
    sinks = torch.randn(4).requires_grad_()
    for sink in (None, sinks):
        with scratch_of_nan():
            out, joint = module.merge_attention(parts, lse, sink)
        seen = (lse > -torch.inf).any(0)
        base = torch.where(seen, torch.logsumexp(lse.double(), 0), -torch.inf)
        full = base if sink is None else torch.logaddexp(base, sink.double()[:, None])
        weight = torch.exp(lse.double() - full.clamp(min=-1e30))
        wanted = (weight.transpose(2, 3).unsqueeze(-1) * parts.double()).sum(0)
        close(out, wanted, torch.float32)
        close(joint, base, torch.float32)
        tensors = [parts, lse, *([] if sink is None else [sink])]
        direction = torch.randn(out.shape)
        found = torch.autograd.grad((out * direction).sum() + joint[seen].sum(), tensors)
        other = torch.autograd.grad((wanted * direction).sum() + base[seen].sum(), tensors)
        for one, two in zip(found, other, strict=True):
            close(one, torch.where(two.isnan(), 0.0, two), torch.float32)
    check_guards()


def test_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch sees through: schema, shapes without data, gradients, graphs."""
    module, launch = kernels("learned distance", monkeypatch)
    call = inputs(CASES["learned distance"], (1, 5, 7, 2, 1, 8, 6))
    operation = module._attend_learned_distance_op
    given = [x.detach().requires_grad_() for x in (call.q, call.k, call.v, *call.given.values())]
    sinks = torch.randn(2).requires_grad_()
    torch.library.opcheck(operation, (*given, sinks, *[None] * 6, 0.5, None, 0, False))
    parts, lse = torch.randn(2, 1, 3, 2, 4).requires_grad_(), torch.randn(2, 1, 2, 3)
    torch.library.opcheck(module.merge_attention, (parts, lse.requires_grad_(), sinks))

    def forward(*tensors: Tensor) -> Tensor:
        return launch(*tensors, scale=0.5, hi=0)[0].square().sum()

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    pairs = (torch.autograd.grad(f(*given), given) for f in (compiled, forward))
    for found, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(found, wanted)
