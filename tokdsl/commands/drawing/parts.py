"""What a diagram is made of: an outline as plain data, without places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "attention", "feed-forward", "router", "norm", "embedding", "clock", "other", "objective"
]
#: how a box is drawn: a clock change narrows or widens the stream
Form = Literal["plain", "narrow", "widen"]


@dataclass(eq=False)
class Box:
    """One step.

    Args:
        title: its name in the source.
        details: key sizes, one line each.
        reads: names of the stages that it reads beside the stream.
    """

    title: str
    details: tuple[str, ...] = ()
    kind: Kind = "other"
    form: Form = "plain"
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skip:
    """A value that goes around the parts ``first`` up to ``last``, which takes it in."""

    first: int
    last: int


@dataclass(eq=False)
class Column:
    """Parts in the order in which the stream passes them.

    Args:
        shapes: after each part the shape of the stream where it changed, else "".
    """

    parts: list[Part] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)


@dataclass(eq=False)
class Frame:
    """A titled frame around parts: a stage, a ``repeat`` (``x 32``) or a block of blocks."""

    title: str
    tag: str
    style: Literal["stage", "repeat", "block"]
    inner: Column
    note: str = ""


@dataclass(eq=False)
class Join:
    """Branches of one stream that meet again in a sum or a product.

    Args:
        bypass: whether the stream itself is one of them.
        sign: ``+`` or ``x``.
    """

    branches: list[Column]
    bypass: bool
    sign: str = "+"


@dataclass(eq=False)
class Fan:
    """A router and the experts that it chooses from.

    Args:
        experts: a box and how many of its kind, per kind.
        chosen: how many each token goes to.
        always: parts that every token goes to.
    """

    title: str
    note: str
    router: Box | None
    experts: list[tuple[Box, int]]
    chosen: int
    always: list[Box] = field(default_factory=list)


Part = Box | Frame | Join | Fan


@dataclass(eq=False)
class StageColumn:
    """A stage with its name, inputs and result.

    Args:
        inputs: texts of the inputs that come from outside.
        source: the stage whose result is its stream, or "".
        result: the shape of its result.
    """

    name: str
    inputs: tuple[str, ...]
    source: str
    column: Column
    result: str


@dataclass(eq=False)
class Outline:
    """The whole diagram."""

    title: str
    subtitle: str
    stages: list[StageColumn]
    objective: str = ""
