"""Random models with ragged chunks: cut, pooled and read back in right and in wrong ways."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

#: width of the stream, and length of the sequences that the models are run on
WIDTH = 8
LENGTH = 30

DEFINITIONS = """\
attention near(x: [T, d], c: chunks[T, C]; mask: mask) -> [T, d] {
  q = linear(x; heads: 2, head_dim: 4)
  k = linear(x; heads: 2, head_dim: 4)
  v = linear(x; heads: 2, head_dim: 4)
  linear(attend(q, k, v; mask = mask, within = c); d, over = [heads, head_dim])
}

# What one learned query finds in the tokens of every chunk.
fn found(x: [T, d], c: chunks[T, C]) -> [C, d] {
  query = weight(d; init = normal(std = 1.0))
  share = softmax(dot(members(x, c), query; over = d); over = place, where = inside(c))
  dot(share, members(x, c); over = place)
}

# The tokens of a chunk weighted by their places.
fn placed(x: [T, d], c: chunks[T, C]) -> [C, d] {
  at = cumsum(where(inside(c), 1.0, 0.0); over = place)
  sum(where(inside(c), members(x, c) / precise(at), 0.0); over = place)
}
"""

HOWS = ("mean", "max", "sum", "last", "first")


@dataclass
class Draft:
    """What is known of a program while it is drawn.

    Args:
        definitions: texts of definitions of its own.
        count: blocks of chunks so far, for names.
    """

    definitions: list[str] = field(default_factory=list)
    count: int = 0


@dataclass(frozen=True)
class Place:
    """Where in a program a step stands.

    Args:
        axis: name of the token axis.
        depth: levels of chunks around.
        wild: whether what reads later tokens may come.
    """

    axis: str = "T"
    depth: int = 0
    wild: bool = True

    def inside(self, axis: str = "") -> Place:
        """Return the place in chunks of this stream."""
        return Place(axis or ("C" if self.axis != "C" else "CC"), self.depth + 1, self.wild)


def seldom(draw: st.DrawFn, place: Place, one_in: int = 12) -> bool:
    """Return whether to take a form that is likely to be wrong."""
    return place.wild and draw(st.integers(1, one_in)) == one_in


# ----------------------------------------------------------------------------- boundaries


@st.composite
def flags(draw: st.DrawFn, place: Place, x: str) -> str:
    """Return one bool per token of a stream."""
    axis = place.axis
    if seldom(draw, place):
        return draw(
            st.sampled_from(
                [
                    f"mean(shift({x}; by = -1); over = d) > 0.0",
                    f"mean(conv1d({x}; kernel = 3, causal = false); over = d) > 0.0",
                    f"mean({x}; over = d) > mean({x}; over = [{axis}, d])",
                ]
            )
        )
    own = [
        f"mean({x}; over = d) > 0.0",
        f"mean({x}; over = d) > 0.1",
        f"mean(shift({x}); over = d) > 0.05",
        f"sum({x} * shift({x}); over = d) > 0.01",
        f"mean(ema({x}; decay = 0.5); over = d) > 0.03",
        f"position({axis}) % {draw(st.integers(2, 4))} == {draw(st.integers(0, 1))}",
        f"position({axis}) % 4 == 0 or mean({x}; over = d) > 0.3",
    ]
    return draw(st.sampled_from(own))


@st.composite
def cut(draw: st.DrawFn, place: Place, x: str) -> tuple[str, str]:
    """Return the kind of boundaries, and the expression that makes the chunks."""
    kind = draw(st.sampled_from(["opens", "closes"]))
    longest = draw(st.sampled_from(["", "", "", ", longest = 3"]))
    return kind, f"chunks({kind} = {draw(flags(place, x))}, ratio = 2.0{longest})"


# ----------------------------------------------------------------------------- there and back


@st.composite
def pooled(draw: st.DrawFn, place: Place, x: str, c: str) -> tuple[bool, str]:
    """Return whether whole chunks are read, and one value per chunk."""
    kind = draw(st.integers(0, 9))
    if kind < 3:
        return False, f'pool({x}, {c}, how = "first")'
    if kind == 3:
        return True, f"found({x}, {c})"
    if kind == 4:
        return True, f"placed({x}, {c})"
    if kind == 5:
        by = -1 if seldom(draw, place, 4) else draw(st.integers(1, 2))
        how = draw(st.sampled_from(HOWS))
        return how != "first", f'pool(shift({x}; by = {by}), {c}, how = "{how}")'
    how = draw(st.sampled_from(HOWS[:-1]))
    return True, f'pool({x}, {c}, how = "{how}")'


@st.composite
def read(draw: st.DrawFn, place: Place, kind: str, whole: bool, y: str, c: str) -> str:
    """Return how tokens read chunks: mostly so that these are there."""
    closed = kind == "closes"
    if seldom(draw, place, 6):
        lag, way = draw(st.integers(0, 1)), closed and draw(st.booleans())
    elif not whole:
        lag, way = draw(st.integers(0, 2)), closed and draw(st.booleans())
    else:
        way = closed and draw(st.booleans())
        lag = draw(st.integers(0 if way else 1, 2))
    options = f", lag = {lag}" if lag else ""
    options += ', read = "closed"' if way else ""
    return f"upsample({y}, {c}{options})"


@st.composite
def after(draw: st.DrawFn, place: Place, kind: str, whole: bool, y: str, x: str, c: str) -> str:
    """Return what becomes of chunks on the finer clock."""
    fine = draw(read(place, kind, whole, y, c))
    return draw(
        st.sampled_from(
            [
                fine,
                fine,
                f"where(place({c}) == 0, {fine}, 0.5 * {x})",
                f"{fine} * sigmoid({x})",
                f"shift({fine})",
            ]
        )
    )


# ----------------------------------------------------------------------------- steps


@st.composite
def mixer(draw: st.DrawFn, place: Place) -> str:
    """Return a step that reads other tokens of one clock."""
    if seldom(draw, place, 15):
        return draw(
            st.sampled_from(
                [
                    "rmsnorm(); gqa(heads = 2, mask = full)",
                    "conv1d(it; kernel = 3, causal = false)",
                    "shift(it; by = -1)",
                    f"it * sigmoid(mean(it; over = {place.axis}))",
                ]
            )
        )
    window = draw(st.integers(2, 4))
    return draw(
        st.sampled_from(
            [
                "rmsnorm(); gqa(heads = 2, rotary = rope)",
                f"rmsnorm(); gqa(heads = 2, mask = sliding(window = {window}))",
                f"conv1d(it; kernel = {window})",
                "ema(it; decay = 0.6)",
                "linear_recurrence(sigmoid(linear(it; d)), it)",
                "shift(it)",
                f"shift(shift(it; by = 2); by = {draw(st.sampled_from([-2, -1, 1]))})",
                f"0.1 * cumsum(it; over = {place.axis})",
            ]
        )
    )


@st.composite
def within(draw: st.DrawFn, place: Place, c: str) -> str:
    """Return a step on the finer clock that knows the chunks."""
    choices = [
        f"near(it, {c}; mask = causal)",
        f"near(it, {c}; mask = sliding(window = 2))",
        f"it * cast_like(precise(place({c}) % 2), it)",
        f"it * cast_like(precise(segment({c}) % 3), it)",
    ]
    if seldom(draw, place, 4):
        choices = [f"near(it, {c}; mask = full)", f"near(it, {c}; mask = |i, j| j <= i + 1)"]
    return draw(st.sampled_from(choices))


@st.composite
def block(draw: st.DrawFn, place: Place, draft: Draft) -> list[str]:
    """Return the lines of a stream that is cut into chunks, with steps on these."""
    draft.count += 1
    number = draft.count
    if draw(st.booleans()):
        return draw(stage(place, draft, number))
    c, fine, coarse = f"c{number}", f"fine{number}", f"coarse{number}"
    kind, chunks = draw(cut(place, "it"))
    whole, pool = draw(pooled(place, "it", c))
    lines = [f"{c} = {chunks}", f"{fine} = it"]
    if draw(st.integers(0, 3)) == 3:
        lines.append(f"residual {{ {draw(within(place, c))} }}")
    lines += [pool, *draw(steps(place.inside(), draft, most=2)), f"{coarse} = it"]
    result = draw(after(place, kind, whole, coarse, fine, c))
    if draw(st.integers(0, 3)) == 3:
        # another value of the same chunks, read in another way
        other_whole, other = draw(pooled(place, fine, c))
        result += f" + {draw(read(place, kind, other_whole, f'({other})', c))}"
    lines.append(result)
    if draw(st.integers(0, 4)) == 4:
        lines.append(f"residual {{ {draw(within(place, c))} }}")
    return ["residual {", *(f"  {line}" for line in lines), "}"]


@st.composite
def stage(draw: st.DrawFn, place: Place, draft: Draft, number: int) -> list[str]:
    """Return the lines of a nested stage, and define its reduction and expansion."""
    kind, chunks = draw(cut(Place("T", place.depth, place.wild), "x"))
    whole, pool = draw(pooled(Place("T", place.depth, place.wild), "x", "c"))
    expand = draw(after(place, kind, whole, "y", "x", "c"))
    operand = ", x: [T, d]" if "x" in _words(expand) else ""
    draft.definitions += [
        f"reduction cut{number}(x: [T, d]) -> ([C, d], chunks[T, C]) {{\n"
        f"  c = {chunks}\n  [{pool}, c]\n}}",
        f"expansion back{number}(y: [C, d], c: chunks[T, C]{operand}) -> [T, d] {{ {expand} }}",
    ]
    skip = draw(st.sampled_from(["", ", skip = linear(; d)"]))
    inner = draw(steps(place.inside(f"level{number}"), draft, most=2)) or ["it"]
    head = f"stage level{number}(reduce = cut{number}, expand = back{number}{skip}) {{"
    lines = [head, *(f"  {line}" for line in inner), "}"]
    return lines if skip else ["residual {", *(f"  {line}" for line in lines), "}"]


def _words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())


@st.composite
def step(draw: st.DrawFn, place: Place, draft: Draft) -> list[str]:
    """Return the lines of one step."""
    kind = draw(st.integers(0, 9))
    if kind >= 6 and place.depth < 2:
        return draw(block(place, draft))
    if kind == 5:
        inner = draw(steps(Place(place.axis, 2, place.wild), draft, most=2))
        return ["repeat 2 {", *(f"  {line}" for line in inner), "}"] if inner else []
    if kind < 4:
        return [f"residual {{ {draw(mixer(place))} }}"]
    local = ["rmsnorm(); linear(it; d)", "rmsnorm(); swiglu(hidden = 12)"]
    return [f"residual {{ {draw(st.sampled_from(local))} }}"]


@st.composite
def steps(draw: st.DrawFn, place: Place, draft: Draft, most: int = 3) -> list[str]:
    """Return the lines of a body."""
    found: list[str] = []
    for _ in range(draw(st.integers(0, most))):
        found += draw(step(place, draft))
    return found


@st.composite
def programs(draw: st.DrawFn) -> str:
    """Return the text of a model with at least one stream of chunks."""
    draft = Draft()
    place = Place(wild=draw(st.booleans()))
    body = draw(steps(place, draft, most=1))
    body += draw(block(place, draft))
    body += draw(steps(place, draft, most=2))
    own = "\n\n".join(draft.definitions)
    lines = "\n".join(f"    {line}" for line in body)
    return f"""\
use std.attention {{ gqa }}
use std.ffn {{ swiglu }}
use std.masks {{ sliding }}
use std.rotary {{ rope }}

{DEFINITIONS}
{own}

model random(d: int = {WIDTH}) {{
  stage text(ids: tokens[32]) {{
    embed(d)
{lines}
    rmsnorm()
    unembed(32)
  }}

  objective next_token(text, ids)
}}
"""
