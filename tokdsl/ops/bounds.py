"""Between which values the result of an operation lies over a tile of positions.

Bounds are expressions over the least and greatest positions of the tile: of whole numbers the least
and the greatest value, of truth values whether they surely hold and whether they may. They may be
wider than what is there, and never narrower.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple

from tokdsl.ops.precedence import fill, literal


class Bounds(NamedTuple):
    """The least and the greatest value, as texts."""

    least: str
    most: str


#: what is known of a truth value of which nothing is known
PERHAPS = Bounds("False", "True")


class Scalars:
    """Writes expressions over bounds; what follows from numbers alone becomes a number.

    The patterns are those of one language; all others are Python's.
    """

    minimum_pattern: ClassVar[str] = "min({x}, {y})"
    maximum_pattern: ClassVar[str] = "max({x}, {y})"
    choice_pattern: ClassVar[str] = "{x} if {c} else {y}"
    remainder_pattern: ClassVar[str] = "{x} % {y}"
    not_pattern: ClassVar[str] = "not {x}"

    def __init__(self, taken: Iterable[str] = ()) -> None:
        #: names and texts of the statements so far
        self.lines: list[tuple[str, str]] = []
        self._taken = set(taken)

    def bind(self, text: str, hint: str) -> str:
        """Give an expression a name and return it; names and numbers stay as they are."""
        if text.isidentifier() or literal(text) is not None:
            return text
        for name, known in self.lines:
            if known == text:
                return name
        base = "".join(c if c.isalnum() else "_" for c in hint).strip("_")
        name, number = base, 1
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        self.lines.append((name, text))
        return name

    # ----------------------------------------------------------------- numbers

    def add(self, x: str, y: str) -> str:
        """``x + y``."""
        return self._written(operator.add, "{x} + {y}", x, y)

    def subtract(self, x: str, y: str) -> str:
        """``x - y``."""
        return self._written(operator.sub, "{x} - {y}", x, y)

    def multiply(self, x: str, y: str) -> str:
        """``x * y``."""
        return self._written(operator.mul, "{x} * {y}", x, y)

    def quotient(self, x: str, y: int) -> str:
        """``x // y`` rounded down, of a positive `y`."""
        if literal(x) is not None:
            return repr(operator.floordiv(literal(x), y))
        rest = self.remainder(x, y)
        return fill("({x} - {rest}) // {y}", x=x, rest=rest, y=str(y))

    def remainder(self, x: str, y: int) -> str:
        """``x % y``, not negative, of a positive `y`."""
        return self._written(operator.mod, self.remainder_pattern, x, str(y))

    def minimum(self, x: str, y: str) -> str:
        """The smaller one."""
        return x if x == y else self._written(min, self.minimum_pattern, x, y)

    def maximum(self, x: str, y: str) -> str:
        """The larger one."""
        return x if x == y else self._written(max, self.maximum_pattern, x, y)

    def choice(self, condition: str, x: str, y: str) -> str:
        """`x` where the condition holds, else `y`."""
        if condition in ("True", "False"):
            return x if condition == "True" else y
        return x if x == y else fill(self.choice_pattern, c=condition, x=x, y=y)

    # ----------------------------------------------------------------- truth values

    def less(self, x: str, y: str) -> str:
        """``x < y``."""
        pattern = "{x} < {y}" if literal(x) is None else "{y} > {x}"
        return self._written(operator.lt, pattern, x, y)

    def at_most(self, x: str, y: str) -> str:
        """``x <= y``."""
        pattern = "{x} <= {y}" if literal(x) is None else "{y} >= {x}"
        return self._written(operator.le, pattern, x, y)

    def same(self, x: str, y: str) -> str:
        """``x == y`` of numbers."""
        pattern = "{x} == {y}" if literal(x) is None else "{y} == {x}"
        return self._written(operator.eq, pattern, x, y)

    def both(self, x: str, y: str) -> str:
        """``x and y``."""
        if "False" in (x, y):
            return "False"
        if "True" in (x, y):
            return y if x == "True" else x
        return x if x == y else fill("{x} & {y}", x=x, y=y)

    def either(self, x: str, y: str) -> str:
        """``x or y``."""
        if "True" in (x, y):
            return "True"
        if "False" in (x, y):
            return y if x == "False" else x
        return x if x == y else fill("{x} | {y}", x=x, y=y)

    def inverse(self, x: str) -> str:
        """``not x``."""
        if x in ("True", "False"):
            return "False" if x == "True" else "True"
        return fill(self.not_pattern, x=x)

    def _written(self, function: Callable[..., object], pattern: str, x: str, y: str) -> str:
        numbers = literal(x), literal(y)
        if None not in numbers:
            return repr(function(*numbers))
        return fill(pattern, x=x, y=y)
