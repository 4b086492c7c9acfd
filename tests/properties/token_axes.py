"""Random statements over token axes: renamed, cached, given to definitions, reduced, attended to.

Most of them do not fit what stands before them; a program is grown from those that do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

DEFINITIONS = {
    "other": "attention other(x: [T, d]) -> [T, d] { rename(cache(linear(x; d)); S, T) }",
    "pairs": "fn pairs(x: [T, k], y: [S, k]) -> [T, S] { dot(x, y; over = k) }",
    "keys": "fn keys(x: [S, k]) -> [S, k] { 2.0 * x }",
    "joined": "fn joined(x: [T, *], y: [S, *]) -> [T, *] { x + sum(y; over = S) }",
    "along": "fn along(x: [*, k]) -> [*, k] { softmax(x; over = k) }",
    "moved": "fn moved(x: [T, *]) -> [S, *] { rename(x; T, S) }",
}
TOKENS = ("T", "S", "U")
AXES = (*TOKENS, "i", "j", "k", "d", "two")
MASKS = ("causal", "full", "sliding(window = 3)", "|i, j| j < i and (i - j) % 2 == 1")

#: ``v`` is a value, ``t`` a token axis, ``a`` any axis, ``m`` a mask, ``n`` a number
FORMS = (
    "linear({v}; k: 4)", "linear({v}; d)", "linear({v}; two: 2, k: 4)",
    "rename({v}; {t}, {t})", "rename({v}; {t}, {t})", "rename({v}; {a}, {a})",
    "cache({v})", "cache({v})", "cache({v}; window = {n})",
    "{v} + {v}", "{v} * {v}", "dot({v}, {v}; over = {t})", "dot({v}, {v}; over = k)",
    "where(position({t}) <= position({t}), {v}, -1e9)",
    "where(position({t}) <= position({t}), {v}, {v})",
    "softmax({v}; over = {t})", "sum({v}; over = {t})", "mean({v}; over = {a})",
    "sum({v}; over = [{t}, {a}])", "cumsum({v}; over = {t})", "sort({v}; over = {t})",
    "flip({v}; over = {t})", "shift({v}; by = {n}, over = {t})", "ema({v}; decay = 0.5)",
    "conv1d({v}; kernel = {n}, over = {t})", "attend({v}, {v}, {v}; mask = {m})",
    "attend({v}, {v}, {v}; mask = {m}, score = |s, i, j| s + 0.1 * f32(i - j))",
    "topk({v}; {n}, over = {a})", "blocks({v}; size = {n})", "gather({v}, {v}; over = {t})",
    "pool({v}; stride = 2, how = \"mean\", over = {t})", "upsample({v}, {v}; lag = {n})",
    "merge({v}; over = [{t}, {a}], into = m)", "concat({v}, {v}; over = {a})",
    "slice({v}; over = {a}, start = 0, stop = {n})", "at({v}; over = {a}, index = 0)",
    "argmax({v}; over = {t})", "hold({v}, {v} > 0.0)", "linear_recurrence(sigmoid({v}), {v})",
    "position({t})", "stream({v}; over = {t})", "order({v}; {t}, {a})", "cast_like({v}, {v})",
    "chunks(opens = {v} > 0.0)", "pool({v}, {v}; how = \"mean\")", "members({v}, {v})",
    "in_steps({v}, {v}; tokens = {n})", "in_training({v}, {v})", "stack({v}, {v}; two)",
    "other({v})", "pairs({v}, {v})", "keys({v})", "joined({v}, {v})", "along({v})", "moved({v})",
)  # fmt: skip

#: right sides of ``name[i: T, j: T] = ...``
EQUATIONS = (
    "dot({v}[{i}], {v}[{i}]; over = k)", "{v}[{i}] + {v}[{i}]", "where(j <= i, {v}, -1e9)",
    "softmax({v}; over = {i}, where = j <= i)", "sum({v} * {v}[{i}]; over = {i})",
    "f32(j <= i) * {v}[{i}]",
)  # fmt: skip

#: how a value of any type is made part of the result
CLOSINGS = (
    "{v}", "sum({v}; over = S)", "sum({v}; over = [S, k])", "sum({v}; over = k)",
    "rename({v}; S, T)", "sum({v}; over = j)", "0.0 * mean(f32({v}))",
)  # fmt: skip


@dataclass
class Grown:
    """A definition that grows by statements that fit.

    Args:
        choose: makes every choice.
        requirement: a line of the model.
    """

    choose: random.Random
    requirement: str = ""
    lines: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=lambda: ["x"])

    def statement(self) -> str:
        """Return a further statement, which may not fit."""
        name, choose = f"v{len(self.lines)}", self.choose
        if choose.random() < 0.2:
            first, second = choose.choices(TOKENS[:2], (3, 1), k=2)
            return f"{name}[i: {first}, j: {second}] = {self._filled(EQUATIONS)}"
        return f"{name} = {self._filled(FORMS)}"

    def text(self, *more: str, closing: str = "x") -> str:
        """Return the program with further statements, and the definition's result."""
        body = "\n".join(f"  {line}" for line in (*self.lines, *more, closing))
        used = [text for name, text in DEFINITIONS.items() if f"{name}(" in body]
        return "\n".join(
            (
                *used,
                f"""\
attention grown(x: [T, d]) -> [T, d] {{
{body}
}}

model m(d: int = 8) {{
  stage text(ids: tokens[32]) {{
    embed(d)
    residual {{ grown() }}
    unembed(32)
  }}
  objective next_token(text, ids)
  {self.requirement}
}}
""",
            )
        )

    def grow(self, fits: Callable[[str], bool], statements: int, tries: int) -> str:
        """Add statements that fit; return a program whose result depends on all that can be read.

        Args:
            fits: whether a program is right; it is asked about each that is tried.
            statements: how many, at most.
            tries: of statements, at most.
        """
        for _ in range(tries):
            line = self.statement()
            if len(self.lines) < statements and fits(self.text(line)):
                self.lines.append(line)
                self.names.append(line.split("[")[0].split(" ")[0])
        result = "x"
        for name in reversed(self.names[1:]):
            for closing in CLOSINGS:
                wider = f"({result} + {closing.format(v=name)})"
                if fits(self.text(closing=wider)):
                    result = wider
                    break
        return self.text(closing=result)

    def _filled(self, forms: Sequence[str]) -> str:
        """Return one of some forms with names in it; later values are taken more often."""
        form, near = self.choose.choice(forms), [*self.names[-4:], "x"]
        given = {
            "v": near,
            "t": TOKENS,
            "a": AXES,
            "m": MASKS,
            "n": ("1", "2", "3"),
            "i": ("i", "j"),
        }
        while "{" in form:
            place = form.index("{")
            drawn = self.choose.choice(given[form[place + 1]])
            form = form[:place] + drawn + form[place + 3 :]
        return form
