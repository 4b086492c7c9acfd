"""Specs that choose among tokens, and what the compiler makes of them."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokdsl.driver import check_source
from tokdsl.lower.build import lower
from tokdsl.lower.plan import Plan
from tokdsl.source import SourceFile

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
    "two products": """
    one[i: T, j: T] = sum(dot(q[i], k[j]; over = dim); over = heads)
    two[i: T, j: T] = dot(k[i], k[j]; over = dim)
    far[i: T, j: T] = f32(i - j)
    score[i: T, j: T] = abs(one) - 2 * two + far
    best, keep = topk(score; top, over = j, where = j <= i)
""",
}
REFUSED = {
    "goes over all keys": """
    score[i: T, j: T] = dot(q[i], k[j]; over = dim)
    share[i: T, j: T] = sum(softmax(score; over = j, where = j <= i); over = heads)
    best, keep = topk(share; top, over = j, where = j <= i)
""",
    "over which scores are summed": """
    score[i: T, j: T] = sum(dot(q[i], h[j]; over = dim); over = heads)
    best, keep = topk(score; top, over = j, where = j <= i)
""",
}


def spec(body: str, **sizes: int) -> str:
    """Return a spec whose choice has a body."""
    chosen = {"heads": 4, "dim": 8, "top": 6, "size": 4, "near": 3} | sizes
    return HEAD.format(**chosen) + body + TAIL


@cache
def plan_of(body: str, **sizes: int) -> Plan:
    """Return the plan of a spec."""
    checked = check_source(SourceFile("spec.tok", spec(body, **sizes)), None)
    assert checked.programs, [d.message() for d in checked.report]
    (program,) = checked.programs
    return lower(program, checked.facts[program.name])


def pieces(body: str, at: int = -1, **sizes: int) -> dict[str, Any]:
    """Return what the template of a choice is filled with."""
    plan = plan_of(body, **sizes).kernels[at]
    return {"name": plan.name, **plan.pieces}
