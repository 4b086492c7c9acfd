"""Random well-typed models: steps of many kinds, some that read later tokens, some that do not."""

from __future__ import annotations

from hypothesis import strategies as st

#: width of the stream, and length of the sequences that the models are run on
WIDTH = 8
LENGTH = 34

DEFINITIONS = """\
attention written(x: [T, d]; ahead: int, before: int) -> [T, d] {
  q = linear(x; k: 4)
  k = linear(x; k: 4)
  score[i: T, j: T] = dot(q[i], k[j]; over = k)
  seen[i: T, j: T] = where(j <= i + ahead and i - j <= before, score, -1e9)
  weight = softmax(seen; over = j)
  rename(dot(weight, x[j]; over = j); i, T)
}

attention weighted(x: [T, d]; ahead: int) -> [T, d] {
  near[i: T, j: T] = cast_like(f32(j <= i + ahead), x)
  v = linear(x; d)
  rename(sum(0.1 * near * v[j]; over = j); i, T)
}

block hard_gate(x: [*, d]) -> [*, d] {
  score = sum(linear(x; one: 1); over = one)
  where(score > 0.0, x, 0.5 * x)
}

block soft_gate(x: [*, d]) -> [*, d] { x * sigmoid(linear(x; d)) }

block detached(x: [*, d]) -> [*, d] { x + stop_gradient(linear(x; d)) }
"""

_counts = st.integers(1, 3)


@st.composite
def mask(draw: st.DrawFn) -> str:
    """Return a condition over two positions."""
    kind = draw(st.sampled_from(["causal", "causal", "sliding", "band", "comb", "strict", "open"]))
    before, ahead = draw(st.integers(1, 6)), draw(st.integers(0, 2))
    return {
        "causal": "causal",
        "sliding": f"sliding(window = {before + 1})",
        "band": f"|i, j| j <= i + {ahead} and i - j <= {before}",
        "comb": f"|i, j| j <= i and ((i - j) % {before + 1} == 0 or i - j == 1)",
        "strict": "|i, j| j < i",
        "open": "full",
    }[kind]


@st.composite
def mixer(draw: st.DrawFn) -> str:
    """Return a step that reads other tokens."""
    number, ahead = draw(_counts), draw(st.integers(0, 1))
    shift = draw(st.sampled_from([-2, -1, 1, 2, 3]))
    kinds = [
        f"rmsnorm(); gqa(heads = 2, mask = {draw(mask())})",
        f"conv1d(it; kernel = {number + 1}, causal = {draw(st.sampled_from(['true', 'false']))})",
        f"shift(it; by = {shift})",
        f"shift(shift(it; by = 2); by = {shift})",
        "rmsnorm(); cast_like(cumsum(it; over = T) / f32(position(T) + 1), it)",
        "ema(it; decay = 0.7)",
        f"rmsnorm(); written(ahead = {ahead}, before = {number})",
        f"rmsnorm(); weighted(ahead = {ahead})",
        "it * sigmoid(mean(it; over = T))",
        "0.2 * fft_real(it; over = T)",
        "flip(it; over = T)",
    ]
    # most kinds that read later tokens come rarely, so that long programs can be causal
    weights = [0, 0, 1, 3, 4, 5, 6, 7, *([8, 9, 10] if draw(st.integers(0, 5)) == 5 else [])]
    return kinds[draw(st.sampled_from(weights))]


@st.composite
def local(draw: st.DrawFn) -> str:
    """Return a step in which every token is for itself."""
    kinds = [
        "rmsnorm(); linear(it; d)",
        "soft_gate()",
        "rmsnorm(); swiglu(hidden = 12)",
        "rmsnorm(); moe(experts = 4, expert = swiglu(hidden = 8), router = softmax_topk(top = 2))",
        "hard_gate()",
        "detached()",
    ]
    rare = [4, 5] if draw(st.integers(0, 3)) == 3 else []
    return kinds[draw(st.sampled_from([0, 1, 2, 3, *rare]))]


@st.composite
def step(draw: st.DrawFn, depth: int = 0) -> list[str]:
    """Return the lines of one step, with steps inside it."""
    kind = draw(st.integers(0, 9))
    if kind == 9 and depth < 2:
        stride, lag = draw(st.sampled_from([2, 3])), draw(st.integers(0, 2))
        how = draw(st.sampled_from(["mean", "max", "sum", "first", "last"]))
        inner = draw(steps(depth + 1))
        head = f'reduce = pool(stride = {stride}, how = "{how}"), expand = upsample(lag = {lag})'
        lines = [f"stage level_{depth}({head}) {{", *(f"  {line}" for line in inner), "}"]
        return ["residual {", *(f"  {line}" for line in lines), "}"]
    if kind == 8 and depth < 2:
        inner = draw(steps(depth + 1, most=2))
        return [f"repeat {draw(_counts)} {{", *(f"  {line}" for line in inner), "}"]
    inside = draw(mixer() if kind < 5 else local())
    return [f"residual {{ {inside} }}"]


@st.composite
def steps(draw: st.DrawFn, depth: int = 0, most: int = 4) -> list[str]:
    """Return the lines of a body."""
    parts = draw(st.lists(step(depth), min_size=1, max_size=most))
    return [line for part in parts for line in part]


@st.composite
def programs(draw: st.DrawFn) -> str:
    """Return the text of a model."""
    body = "\n".join(f"    {line}" for line in draw(steps()))
    # names that a program does not use are a matter of other tests
    text = f"""\
use std.attention {{ gqa }}
use std.ffn {{ swiglu }}
use std.routers {{ softmax_topk }}

{DEFINITIONS}
model random(d: int = {WIDTH}) {{
  stage text(ids: tokens[32]) {{
    embed(d)
{body}
    rmsnorm()
    unembed(32)
  }}

  objective next_token(text, ids)
}}
"""
    return text
