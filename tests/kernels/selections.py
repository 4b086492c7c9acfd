"""Specs that choose among tokens, and what the compiler makes of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.fixtures.kernels import guarded, scratch_of_nan
from tokdsl.driver import build, check_source
from tokdsl.lower.build import lower
from tokdsl.lower.plan import Plan
from tokdsl.source import SourceFile
from tokdsl.training.package import import_package

HEADS, DIM = 4, 8

HEAD = """
model m(heads: int = {heads}, dim: int = {dim}, top: int = {top}, size: int = {size},
        near: int = {near}) {{
  stage out(x: [T, width: heads * dim + heads * dim + heads]) {{
    q = split(slice(x; over = width, stop = heads * dim, into = width); heads, dim, over = width)
    h = split(slice(x; over = width, start = heads * dim, stop = 2 * heads * dim, into = width);
              heads, dim, over = width)
    k = at(h; over = heads, index = 0)
    w = slice(x; over = width, start = 2 * heads * dim, into = heads)
"""
TAIL = """
    rename(f32(keep); i, T)
  }
}
"""
FLAT = """
    score[i: T, j: T] = sum(relu(dot(q[i], k[j]; over = dim)) * w[i]; over = heads)
    best, keep = topk(score; top, over = j, where = j <= i)
"""
BODIES = {
    "flat": FLAT,
    "blocks": """
    score[i: T, j: T] = sum(relu(dot(q[i], k[j]; over = dim)) * w[i]; over = heads)
    means = blocks(k; size)
    coarse[i: T, b: blocks] = sum(relu(dot(q[i], means[b]; over = dim)) * w[i]; over = heads)
    forced[i: T, b: blocks] = where(b >= i, inf, where(b < size, inf, coarse))
    _, parts = topk(forced; near, over = b, where = b < i + size)
    best, keep = topk(score; top, over = j, where = j <= i, among = parts, block = size)
""",
    "tokens of tokens": """
    rough[i: T, j: T] = dot(at(q; over = heads, index = 0)[i], k[j]; over = dim)
    score[i: T, j: T] = sum(relu(dot(q[i], k[j]; over = dim)) * w[i]; over = heads)
    _, parts = topk(rough; near * size, over = j, where = j <= i)
    best, keep = topk(score; top, over = j, where = j <= i, among = parts)
""",
    "each head": """
    score[i: T, j: T] = dot(q[i], h[j]; over = dim) * w[i]
    best, keep = topk(score; top, over = j, where = j <= i)
""",
    "some heads": """
    g = split(q; kind: 2, part: heads // 2, over = heads)
    score[i: T, j: T] = sum(dot(g[i], k[j]; over = dim) ** 2; over = part)
    best, keep = topk(score; top, over = j, where = j <= i)
""",
    "one": """
    score[i: T, j: T] = dot(at(q; over = heads, index = 1)[i], k[j]; over = dim)
    best, keep = topk(score; top, over = j, where = j <= i - 2 or j == i)
""",
    "keys of heads": """
    score[i: T, j: T] = sum(dot(q[i], h[j]; over = dim) * w[i]; over = heads)
    best, keep = topk(score; top, over = j, where = j <= i)
""",
    "two products": """
    one[i: T, j: T] = sum(dot(q[i], k[j]; over = dim); over = heads)
    two[i: T, j: T] = dot(k[i], k[j]; over = dim)
    far[i: T, j: T] = f32(i - j)
    score[i: T, j: T] = abs(one) - 2 * two + far
    best, keep = topk(score; top, over = j, where = j <= i)
""",
}
#: scores that need all keys
OVER_KEYS = {
    "shares of blocks": """
    g = split(q; kind: 2, part: heads // 2, over = heads)
    means = blocks(slice(h; over = heads, stop = 2, into = kind); size)
    score[i: T, b: blocks] = dot(g[i], means[b]; over = dim) * 0.5
    share[i: T, b: blocks] = mean(softmax(score; over = b, where = b <= i); over = part)
    recent[i: T, b: blocks] = b + size >= i
    forced[i: T, b: blocks] = where(recent, inf, where(b < size, inf, share))
    best, keep = topk(forced; near, over = b, where = b < i + size)
""",
    "votes": """
    g = split(q; kind: 2, part: heads // 2, over = heads)
    m = slice(h; over = heads, stop = 2, into = kind)
    score[i: T, j: T] = dot(g[i], m[j]; over = dim)
    gone[i: T, j: T] = j <= i - 1
    between[i: T, j: T] = gone and j >= 2
    ballot[i: T, j: T] = softmax(f32(score) * 0.3; over = j, where = between)
    vote[i: T, j: T] = sum(ballot; over = [kind, part])
    best, keep = topk(vote; top, over = j, where = between)
""",
    "mean vote of some": """
    g = split(q; kind: 2, part: heads // 2, over = heads)
    score[i: T, j: T] = dot(g[i], k[j]; over = dim) * 0.2
    vote[i: T, j: T] = mean(softmax(score; over = j, where = j <= i); over = part)
    best, keep = topk(vote; top, over = j, where = j <= i)
""",
    "surest head": """
    score[i: T, j: T] = dot(q[i], h[j]; over = dim) * 0.2
    sure[i: T, j: T] = log_softmax(score; over = j, where = j <= i)
    vote[i: T, j: T] = max(sure; over = heads) * 2 - f32(i - j) * 0.1
    best, keep = topk(vote; top, over = j, where = j <= i)
""",
    "two of them": """
    own = slice(q; over = heads, stop = 2, into = kind)
    m = slice(h; over = heads, stop = 2, into = kind)
    one[i: T, j: T] = sum(dot(own[i], m[j]; over = dim); over = kind) * 0.1
    two[i: T, j: T] = dot(q[i], k[j]; over = dim) * 0.3
    near[i: T, j: T] = softmax(one; over = j, where = j <= i)
    far[i: T, j: T] = softmax(two * near * 3; over = j, where = j <= i - 2)
    vote[i: T, j: T] = near + sum(far; over = heads)
    best, keep = topk(vote; top, over = j, where = j <= i)
""",
    "shares in blocks": """
    means = blocks(k; size)
    coarse[i: T, b: blocks] = sum(relu(dot(q[i], means[b]; over = dim)) * w[i]; over = heads)
    forced[i: T, b: blocks] = where(b >= i, inf, where(b < size, inf, coarse))
    _, parts = topk(forced; near, over = b, where = b < i + size)
    score[i: T, j: T] = dot(q[i], k[j]; over = dim) * 0.3
    share[i: T, j: T] = softmax(score; over = j, where = j <= i)
    vote[i: T, j: T] = sum(share * w[i]; over = heads)
    best, keep = topk(vote; top, over = j, where = j <= i, among = parts, block = size)
""",
}
REFUSED = {
    "the scores of what it chooses are read, and `softmax` goes over all keys": """
    score[i: T, j: T] = dot(q[i], k[j]; over = dim)
    share[i: T, j: T] = sum(softmax(score; over = j, where = j <= i); over = heads)
    best, keep = topk(share; top, over = j, where = j <= i)
    aux most = mean(where(keep >= 0, best, 0.0))
""",
    "what is summed over axes of keys is summed again": """
    score[i: T, j: T] = dot(q[i], h[j]; over = dim)
    rest[i: T, j: T] = score - mean(score; over = heads)
    _, keep = topk(sum(rest ** 2; over = heads); top, over = j, where = j <= i)
""",
    "`prod` goes over `heads`, which keys have": """
    score[i: T, j: T] = prod(dot(q[i], h[j]; over = dim); over = heads)
    _, keep = topk(score; top, over = j, where = j <= i)
""",
}


def spec(body: str, **sizes: int) -> str:
    """Return a spec whose choice has a body."""
    chosen = {"heads": 4, "dim": 8, "top": 6, "size": 4, "near": 3} | sizes
    return HEAD.format(**chosen) + body + TAIL


def plan_of(body: str, **sizes: int) -> Plan:
    """Return the plan of a spec whose choice has a body."""
    return lowered(spec(body, **sizes))


@cache
def lowered(text: str) -> Plan:
    """Return the plan of a spec."""
    checked = check_source(SourceFile("spec.tok", text), None)
    assert checked.programs, [d.message() for d in checked.report]
    (program,) = checked.programs
    return lower(program, checked.facts[program.name])


def pieces(body: str, at: int = -1, **sizes: int) -> dict[str, Any]:
    """Return what the template of a choice is filled with."""
    return pieces_of(spec(body, **sizes), at)


def pieces_of(text: str, at: int = -1) -> dict[str, Any]:
    """Return what the template of a choice in a spec is filled with."""
    plan = [kernel for kernel in lowered(text).kernels if kernel.template == "index"][at]
    return {"name": plan.name, **plan.pieces}


class Package:
    """A built package whose choices are made twice, and compared."""

    def __init__(self, folder: Path, text: str) -> None:
        path = folder / "spec.tok"
        path.write_text(text, "utf-8")
        built = build(path, folder)
        assert built.directory is not None, [d.message() for d in built.report]
        self.made: Any = import_package(built.directory)
        self.model: Any = self.made.Model().eval()
        self.form = self.made.model.query_blocks
        self.functions = self.made.functional
        self.made.model.query_blocks = self.both
        self.kernels = self.functions.KERNELS
        self.compared = 0
        #: how close scores are that may be taken for one another; 0 if they are exact
        self.near = 0.0

    def both(self, choose: Any, given: Any, dims: Any, clock: Any, **more: Any) -> Any:
        """Choose in torch and by the kernel; return what torch chose."""
        kernel = more.pop("kernel")
        wanted = self.form(choose, given, dims, clock, **more)
        self.kernels.FORCED = True
        safe = tuple(guarded(x) if isinstance(x, Tensor) else x for x in given)
        with scratch_of_nan():
            values, index = self.form(choose, safe, dims, clock, kernel=kernel, **more)
        self.kernels.FORCED = False
        rows = torch.ones_like(index, dtype=torch.bool)
        if clock.valid is not None:
            rows = clock.valid.view(*clock.valid.shape, *[1] * (index.dim() - 2)).expand_as(rows)
        clear = rows if not self.near else rows & apart(wanted[0], self.near)
        assert torch.equal(index[clear], wanted[1][clear])
        assert torch.equal((index < 0)[rows], (wanted[1] < 0)[rows])
        assert torch.equal(values[rows].isinf(), wanted[0][rows].isinf())
        there = rows & values.isfinite()
        near = self.near or 1e-4
        torch.testing.assert_close(values[there], wanted[0][there], rtol=20 * near, atol=near)
        self.compared += 1
        return wanted


def apart(values: Tensor, near: float) -> Tensor:
    """Return which scores in falling order are apart from those beside them; the last is not."""
    # forced ones are all equal: their order is exact
    gaps = torch.nan_to_num(values[..., :-1] - values[..., 1:], nan=1.0) > near
    first = torch.ones_like(gaps[..., :1])
    return torch.cat((first, gaps), dim=-1) & torch.cat((gaps, ~first), dim=-1)


def whole(length: int, batch: int = 1) -> Tensor:
    """Return whole numbers, so that scores are exact and many are equal."""
    return torch.randint(-2, 3, (batch, length, 2 * HEADS * DIM + HEADS)).float()
