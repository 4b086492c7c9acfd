"""Attention with conditions and changed scores: what it gives, and that it keeps no T x S tensor.

Every case states its equations twice: in the language, and over whole matrices here. Tiles are
made small, so that short sequences have many of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.fixtures.decoding import error, worst_split
from tokdsl.driver import build
from tokdsl.training.package import import_package

HEADS, WIDTH = 2, 8
#: queries of a tile in tests of results, and in tests of memory (as emitted)
FEW, BLOCK = 8, 64
LENGTH = 27

SPEC = """
use std.masks {{ causal, full, sliding, chunked, prefix, neighbourhood }}

attention own(x: [T, d]) -> [T, d] {{
  q     = linear(x; heads: 2, head_dim: 4)
  k     = linear(x; kv_heads: 1, head_dim: 4)
  v     = linear(x; kv_heads: 1, head_dim: 4)
  {before}
  linear(attend(q, k, v; {options}); d, over = [heads, head_dim])
}}
model m(d: int = 8) {{
  stage out(x: [T, d]) {{ own() }}
}}
"""


#: equations that a case has where it reads them
EQUATIONS = {
    "slope": "slope = weight(heads: 2; init = normal(std = 1.0))",
    "table": "table = weight(entries: 6, heads: 2; init = normal(std = 1.0))",
    "gate": "gate = sin(linear(x; heads: 2))",
}


@dataclass(frozen=True)
class Case:
    """One attention.

    Args:
        options: of `attend`.
        seen: which keys a query sees, of positions (B, 1, T, 1) and (B, 1, 1, T).
        score: what becomes of scores (B, H, T, T), of positions, and of the layer and its stream.
        before: further equations.
        decodes: whether a decoder can be derived.
        sinks: whether a logit per head takes weight.
    """

    options: str
    seen: Callable[..., Tensor]
    score: Callable[..., Tensor] = lambda s, i, j, own, x: s
    before: str = ""
    decodes: bool = True
    sinks: bool = False


def past(i: Tensor, j: Tensor, *more: Any) -> Tensor:
    return j <= i


def everything(i: Tensor, j: Tensor, *more: Any) -> Tensor:
    return (i == i) & (j == j)


def slopes(own: Any) -> Tensor:
    slope: Tensor = own.slope.view(-1, 1, 1)
    return slope


def buckets(s: Tensor, i: Tensor, j: Tensor, own: Any, x: Tensor) -> Tensor:
    index = (i - j).abs().clamp(max=5).squeeze(1)
    return s + own.table[index].permute(0, 3, 1, 2)


def forgetting(s: Tensor, i: Tensor, j: Tensor, own: Any, x: Tensor) -> Tensor:
    gate = torch.sin(own.gate(x)).transpose(1, 2)
    return s + gate.unsqueeze(-1) - torch.tanh(gate).unsqueeze(-2)


WORDS = "c = chunks(opens = mean(x; over = d) > 0.2, ratio = 4.0)"


def of_one_word(x: Tensor) -> Tensor:
    number = (x.mean(-1) > 0.2).cumsum(1).unsqueeze(1)
    return number.unsqueeze(-1) == number.unsqueeze(-2)


CASES = {
    "slopes": Case(
        "mask = causal, score = |s, i, j| s - slope * f32(i - j)",
        past,
        lambda s, i, j, own, x: s - slopes(own) * (i - j),
    ),
    "buckets": Case(
        "mask = causal, score = |s, i, j| s + lookup(table, maximum(minimum(i - j, 5), 0))",
        past,
        lambda s, i, j, own, x: (
            s + own.table[(i - j).clamp(min=0, max=5).squeeze(1)].permute(0, 3, 1, 2)
        ),
        before="",
    ),
    "buckets on both sides": Case(
        "mask = full, score = |s, i, j| s + lookup(table, minimum(abs(i - j), 5))",
        everything,
        buckets,
        decodes=False,
    ),
    "limited in a window": Case(
        "mask = sliding(window = 5), score = |s| 3.0 * tanh(s / 3.0)",
        lambda i, j, *more: (j <= i) & (i - j < 5),
        lambda s, i, j, own, x: 3 * torch.tanh(s / 3),
    ),
    "squares of odd pairs": Case(
        "mask = causal, score = |s, i, j| where((i + j) % 2 == 0, s, 0.5 * s * s)",
        past,
        lambda s, i, j, own, x: torch.where((i + j) % 2 == 0, s, 0.5 * s * s),
    ),
    "every third token": Case(
        "mask = |i, j| j <= i and (i - j) % 3 == 0, score = |s, i| s / (1.0 + 0.1 * f32(i))",
        lambda i, j, *more: (j <= i) & ((i - j) % 3 == 0),
        lambda s, i, j, own, x: s / (1 + 0.1 * i),
    ),
    "a reach per head": Case(
        "mask = |i, j| j <= i and f32(i - j) < 4.0 * exp(slope), score = |s| s * slope",
        lambda i, j, own, x: (j <= i) & ((i - j) < 4 * slopes(own).exp()),
        lambda s, i, j, own, x: s * slopes(own),
    ),
    "gates": Case(
        "mask = causal, score = |s, i, j| s + gate - gates",
        past,
        forgetting,
        before="gates = cache(tanh(gate))",
    ),
    "gates with sinks": Case(
        "mask = causal, sinks = slope, score = |s, i, j| s + gate - gates",
        past,
        forgetting,
        before="gates = cache(tanh(gate))",
        sinks=True,
    ),
    "sinks": Case("mask = causal, sinks = slope", past, sinks=True),
    "blocks": Case("mask = chunked(size = 4)", lambda i, j, *more: (j <= i) & (i // 4 == j // 4)),
    "the first and the last": Case(
        "mask = |i, j| j <= i and (j < 3 or i - j < 5)",
        lambda i, j, *more: (j <= i) & ((j < 3) | (i - j < 5)),
    ),
    "gates to the first and the last": Case(
        "mask = |i, j| j <= i and (j < 3 or i - j < 5), score = |s, i, j| s + gate - gates",
        lambda i, j, *more: (j <= i) & ((j < 3) | (i - j < 5)),
        forgetting,
        before="gates = cache(tanh(gate))",
    ),
    "every other block": Case(
        "mask = |i, j| j <= i and (i // 4 - j // 4) % 2 == 0",
        lambda i, j, *more: (j <= i) & ((i // 4 - j // 4) % 2 == 0),
    ),
    "those far away": Case(
        "mask = |i, j| abs(i - j) * 2 > 13 or not (i < 20)",
        lambda i, j, *more: ((i - j).abs() * 2 > 13) | (i >= 20),
        decodes=False,
    ),
    "a prefix": Case(
        "mask = prefix(length = 3)", lambda i, j, *more: (j <= i) | (j < 3), decodes=False
    ),
    "neighbours": Case(
        "mask = neighbourhood(window = 4)",
        lambda i, j, *more: (i - j).abs() < 4,
        decodes=False,
    ),
    "those before": Case("mask = |i, j| j < i", lambda i, j, *more: j < i),
    "words": Case(
        "mask = causal, within = c",
        lambda i, j, own, x: (j <= i) & of_one_word(x),
        before=WORDS,
    ),
    "words with slopes": Case(
        "mask = full, within = c, score = |s, i, j| s - slope * f32(abs(i - j))",
        lambda i, j, own, x: of_one_word(x),
        lambda s, i, j, own, x: s - slopes(own) * (i - j).abs(),
        before=WORDS,
        decodes=False,
    ),
    "tokens of a kind": Case(
        "mask = |i, j| kind[i] == kind[j], score = |s, i, j| s + where(kind[j], 0.5, -s)",
        lambda i, j, own, x: kinds(x).unsqueeze(-1) == kinds(x).unsqueeze(-2),
        lambda s, i, j, own, x: s + torch.where(kinds(x).unsqueeze(-2), 0.5, -s),
        before="kind = mean(x; over = d) > 0.0",
        decodes=False,
    ),
}


def kinds(x: Tensor) -> Tensor:
    return (x.mean(-1) > 0).unsqueeze(1)


@cache
def package(name: str) -> Any:
    """Return the package of a case."""
    case = CASES[name]
    folder = Path(mkdtemp())
    path = folder / "spec.tok"
    read = set(re.findall(r"\w+", f"{case.options} {case.before}"))
    before = "\n  ".join([*(text for n, text in EQUATIONS.items() if n in read), case.before])
    path.write_text(SPEC.format(options=case.options, before=before), "utf-8")
    built = build(path, folder)
    assert built.directory is not None, [d.message() for d in built.report]
    assert not [r for r in built.regions if r.kernel == "attend" and r.reason]
    return import_package(built.directory)


def functional(made: Any) -> Any:
    """Return the module of functions of a package."""
    return sys.modules[f"{made.__name__}.functional"]


def model_of(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """Return a model with parameters that are large enough to matter."""
    torch.manual_seed(0)
    model = package(name).Model().to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@contextmanager
def tiles_of(made: Any, count: int) -> Iterator[None]:
    """Let a tile have this many queries, and keys be left out by half as many."""
    module = functional(made)
    before = module.QUERY_BLOCK, module.KEY_BLOCK
    module.QUERY_BLOCK, module.KEY_BLOCK = count, count // 2
    try:
        yield
    finally:
        module.QUERY_BLOCK, module.KEY_BLOCK = before


# --------------------------------------------------------------------------- results


@dataclass
class Tokens:
    """A batch: its stream, which entries are tokens, and their documents."""

    x: Tensor
    valid: Tensor | None = None
    documents: Tensor | None = None

    def given(self) -> dict[str, Tensor]:
        found = {"valid": self.valid, "documents": self.documents}
        return {name: value for name, value in found.items() if value is not None}

    def hidden_and_positions(self) -> tuple[Tensor, Tensor]:
        """Return which pairs do not belong together (B, 1, T, T), and positions (B, T)."""
        batch, length = self.x.shape[:2]
        every = torch.ones(batch, length, dtype=torch.bool)
        valid = every if self.valid is None else self.valid
        documents = every.long() if self.documents is None else self.documents
        same = documents[:, :, None] == documents[:, None]
        apart = ~(same & valid[:, None])
        order = torch.ones(length, length).tril(-1).bool()
        position = (same & order & valid[:, None]).sum(-1)
        return apart.unsqueeze(1), position


def batches() -> dict[str, Tokens]:
    torch.manual_seed(1)
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    valid = torch.ones(2, LENGTH, dtype=torch.bool)
    valid[0, :11] = False
    lengths = ((5, 1, 12, 9), (2, 9, 13, 3))
    documents = torch.stack([torch.arange(4).repeat_interleave(torch.tensor(n)) for n in lengths])
    return {
        "plain": Tokens(x),
        "padding": Tokens(x, valid),
        "documents": Tokens(x, documents=documents),
        "both": Tokens(x, valid, documents),
        "one query": Tokens(x[:, :1]),
    }


def whole(case: Case, own: Any, tokens: Tokens) -> Tensor:
    """Return what the layer gives, with all pairs at once."""
    x = tokens.x
    q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (own.q, own.k, own.v))
    apart, position = tokens.hidden_and_positions()
    i, j = position[:, None, :, None], position[:, None, None, :]
    scores = case.score(q @ k.transpose(-1, -2) / 2, i, j, own, x)
    hidden = apart | ~case.seen(i, j, own, x)
    weights = scores.masked_fill(hidden, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True)
    if case.sinks:
        total = total + slopes(own).exp()
    mixed = (weights / torch.where(total == 0, 1, total)) @ v
    return output(own)(mixed.transpose(1, 2).flatten(-2))


def output(own: Any) -> Any:
    """Return the last linear map."""
    names = [n for n, m in own.named_children() if isinstance(m, nn.Linear)]
    return getattr(own, names[-1])


def with_gradients(model: Any, tokens: Tokens, y: Tensor) -> list[Tensor]:
    """Return a result at tokens and the gradients of what it depends on."""
    x = tokens.x
    if tokens.valid is not None:  # what stands at padding is nobody's business, if it is a number
        assert y.isfinite().all()
        y = y[tokens.valid]
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).sin().view_as(y)
    leaves = [x, *(p for p in model.parameters())]
    found = torch.autograd.grad((y * weights).sum(), leaves, allow_unused=True)
    return [
        y,
        *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)),
    ]


@pytest.mark.parametrize("which", ["plain", "padding", "documents", "both", "one query"])
@pytest.mark.parametrize("name", CASES)
def test_tiles_give_what_all_pairs_give(name: str, which: str) -> None:
    case, tokens, model = CASES[name], batches()[which], model_of(name)
    tokens.x.requires_grad_()
    with tiles_of(package(name), FEW):
        found = with_gradients(model, tokens, model(tokens.x, **tokens.given()).out)
    wanted = with_gradients(model, tokens, whole(case, model.out.own, tokens))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.decodes])
def test_steps_give_what_a_whole_forward_gives(name: str) -> None:
    model = model_of(name)
    x = torch.randn(4, LENGTH, WIDTH, dtype=torch.float64)
    with torch.no_grad(), tiles_of(package(name), FEW):
        full = model(x).out
        assert worst_split(model, x, full) < 1e-12
        assert error(full, whole(CASES[name], model.out.own, Tokens(x))) < 1e-12


APART = {
    "score = |s| s - max(s; over = S)": "`max` needs the scores of all keys",
    "score = |s| dropout(s; p = 0.5)": "`dropout` is more than an equation",
}


@pytest.mark.parametrize("options", APART)
def test_what_needs_all_pairs_stays_as_it_is(tmp_path: Path, options: str) -> None:
    path = tmp_path / "spec.tok"
    path.write_text(SPEC.format(options=f"mask = causal, {options}", before=""), "utf-8")
    built = build(path, tmp_path)
    assert [r.reason for r in built.regions if r.kernel == "attend"] == [APART[options]]
    model = import_package(built.directory).Model().double().eval()
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    plain = Case("", past, lambda s, i, j, own, x: s)
    assert error(model(x).out, whole(plain, model.out.own, Tokens(x))) < 1e-12


def test_a_query_that_sees_nothing_gives_zero() -> None:
    model = model_of("those before")
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    first = model(x).out[:, 0]
    assert torch.equal(first, torch.zeros_like(first))
    assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()
    alone = model(x[:, :1]).out
    assert torch.equal(alone, torch.zeros_like(alone))


CROSSED = """
attention look(x: [T, d], y: [S, d]) -> [T, d] {
  q = linear(x; heads: 2, head_dim: 4)
  k = linear(y; heads: 2, head_dim: 4)
  v = linear(y; heads: 2, head_dim: 4)
  mixed = attend(q, k, v; mask = |i, j| j != i, score = |s, i, j| s - 0.1 * f32(j) * f32(i))
  linear(mixed; d, over = [heads, head_dim])
}
model m(d: int = 8) {
  stage image(pixels: [channels: 3, height: 8, width: 8]) {
    linear(patches(pixels; 2, pixel: 12); d)
  }
  stage text(ids: tokens[16]) { embed(d) }
  stage image_reads(image: [P, d], text: [T, d]) { look(image, text) }
  stage text_reads(image: [P, d], text: [T, d]) { look(text, image) }
}
"""


def test_positions_where_one_side_has_a_fixed_number(tmp_path: Path) -> None:
    path = tmp_path / "spec.tok"
    path.write_text(CROSSED, "utf-8")
    built = build(path, tmp_path)
    assert built.directory is not None, [d.message() for d in built.report]
    torch.manual_seed(0)
    model = import_package(built.directory).Model().double()
    ids, pixels = torch.randint(16, (2, 20)), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    valid = torch.ones(2, 20, dtype=torch.bool)
    valid[0, :7] = False
    both, alone = model(pixels, ids, valid), model(pixels[:1], ids[:1, 7:])
    assert error(both.image_reads[:1], alone.image_reads) < 1e-12
    assert error(both.text_reads[:1, 7:], alone.text_reads) < 1e-12
    own, (place, other) = model.image_reads.look, (torch.arange(16), torch.arange(13))
    q, k, v = (
        f(x).unflatten(-1, (2, 4)).transpose(1, 2)
        for f, x in ((own.q, alone.image), (own.k, alone.text), (own.v, alone.text))
    )
    scores = q @ k.transpose(-1, -2) / 2 - 0.1 * other.float() * place[:, None].float()
    scores = scores.masked_fill(place[:, None] == other, -torch.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
    assert error(alone.image_reads, own.linear(mixed)) < 1e-12


# --------------------------------------------------------------------------- memory


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and look at what it gives."""
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.itemsize)
        return result


LONG = 1024


def largest(model: Any, tokens: Tokens) -> tuple[int, int]:
    """Return the numbers in the largest tensor of a training step, and of all that it keeps."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.itemsize
        return x

    x = tokens.x.float().requires_grad_()
    with Largest() as seen:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            y = model(x, **tokens.given()).out
        y.sum().backward()
    return seen.numel, sum(kept.values())


def long_tokens(which: str) -> Tokens:
    x = torch.randn(1, LONG, WIDTH)
    documents = (torch.arange(LONG) // 128).unsqueeze(0)
    valid = torch.arange(LONG).unsqueeze(0) >= 300
    return {
        "plain": Tokens(x),
        "padding": Tokens(x, valid=valid),
        "documents": Tokens(x, documents=documents),
    }[which]


#: the keys that a tile reads at most, of 1024
REACH = {
    ("limited in a window", "plain"): 5 + BLOCK,
    ("neighbours", "plain"): 2 * 4 + BLOCK,
    ("slopes", "documents"): 128,
    ("sinks", "documents"): 128,
    ("buckets on both sides", "documents"): 128,
    ("words", "plain"): BLOCK + 2 * 64,  # words are shorter than 64
    ("words with slopes", "plain"): BLOCK + 2 * 64,
}
RUNS = [(name, "plain") for name in CASES] + [
    ("slopes", "padding"),
    ("slopes", "documents"),
    ("sinks", "documents"),
    ("buckets on both sides", "documents"),
    ("blocks", "documents"),
]


@pytest.mark.parametrize(("name", "which"), RUNS)
def test_no_tensor_is_over_all_pairs(name: str, which: str) -> None:
    module, model = functional(package(name)), model_of(name, torch.float32)
    module_limit, module.SAVED_PROBS_LIMIT = module.SAVED_PROBS_LIMIT, 0
    try:
        most, kept = largest(model, long_tokens(which))
    finally:
        module.SAVED_PROBS_LIMIT = module_limit
    reach = REACH.get((name, which), LONG)
    assert most <= max(HEADS * BLOCK * reach, LONG * 2 * WIDTH)  # of 2 * 1024 * 1024
    assert kept <= LONG * 16 * WIDTH  # what goes with the tokens alone


@pytest.mark.parametrize(("name", "which"), RUNS)
def test_all_pairs_at_once_would_be_found(
    monkeypatch: pytest.MonkeyPatch, name: str, which: str
) -> None:
    monkeypatch.setattr(functional(package(name)), "has_cpu_form", lambda x: False)
    most, _ = largest(model_of(name, torch.float32), long_tokens(which))
    assert most >= LONG * LONG


SELECTION = """
attention own(x: [T, d]) -> [T, d] {
  q    = linear(x; heads: 2, head_dim: 4)
  k    = linear(x; kv_heads: 1, head_dim: 4)
  v    = linear(x; kv_heads: 1, head_dim: 4)
  near[i: T, j: T] = dot(x[i], x[j]; over = d)
  _, index = topk(near; 8, over = j, where = j <= i)
  linear(attend(q, k, v; select = index); d, over = [heads, head_dim])
}
model m(d: int = 8) {
  stage out(x: [T, d]) { own() }
}
"""
#: numbers at a time, of which there are 2**22 where nothing else is said
AT_A_TIME = 2**15


def test_chosen_keys_are_looked_for_and_read_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "spec.tok"
    path.write_text(SELECTION, "utf-8")
    built = build(path, tmp_path)
    assert built.directory is not None, [d.message() for d in built.report]
    made = import_package(built.directory)
    most, kept = {}, {}
    for count in (AT_A_TIME, 2**30):
        functional(made).SCORES = functional(made).GATHERED = count
        torch.manual_seed(0)
        most[count], kept[count] = largest(made.Model(), long_tokens("plain"))
    assert most[AT_A_TIME] <= 2 * AT_A_TIME
    assert most[2**30] >= LONG * LONG
