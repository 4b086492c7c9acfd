"""Comparison, logic and choice, element by element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tokdsl.ops.base import Fault, Operand, broadcast, op, tensor
from tokdsl.ops.bounds import Bounds, Scalars
from tokdsl.ops.elementwise import Binary, Elementwise
from tokdsl.types.tensors import TensorType, promote

# ------------------------------------------------------------------ comparison


class Comparison(Binary):
    """Base of the comparisons: truth values, no gradient."""

    #: the smaller operand, the greater one, and how they are compared
    order: ClassVar[tuple[str, str, str]]

    gives: ClassVar[str] = "bool"
    takes_bool: ClassVar[bool] = True

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """Of the farthest ends, and of the nearest."""
        x, y = (given[name] for name in self.order[:2])
        compared = getattr(scalars, self.order[2])
        ends = (compared(x.most, y.least), compared(x.least, y.most))
        return Bounds(*ends) if self.is_whole else None

    def equality(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """Return the bounds of whether both operands are equal."""
        x, y = given["x"], given["y"]
        if self.is_whole:
            alike = (scalars.same(x.least, y.most), scalars.same(x.most, y.least))
            meet = (scalars.at_most(x.least, y.most), scalars.at_most(y.least, x.most))
            return Bounds(scalars.both(*alike), scalars.both(*meet))
        if not self.x.dtype == self.y.dtype == "bool":
            return None
        hold = scalars.both(x.least, y.least), scalars.both(x.most, y.most)
        fail = [
            scalars.both(*(scalars.inverse(end) for end in ends))
            for ends in ((x.most, y.most), (x.least, y.least))
        ]
        return Bounds(*(scalars.either(a, b) for a, b in zip(hold, fail, strict=True)))


@op("less")
class Less(Comparison):
    """``x < y``, axes matched by name.

    Shape: [*a], [*b] -> bool[* a and b].   Gradient: none.
    """

    order: ClassVar[tuple[str, str, str]] = ("x", "y", "less")
    pattern: ClassVar[str] = "{x} < {y}"


@op("less_equal")
class LessEqual(Comparison):
    """``x <= y``, axes matched by name.

    Shape: [*a], [*b] -> bool[* a and b].   Gradient: none.
    """

    order: ClassVar[tuple[str, str, str]] = ("x", "y", "at_most")
    pattern: ClassVar[str] = "{x} <= {y}"


@op("greater")
class Greater(Comparison):
    """``x > y``, axes matched by name.

    Shape: [*a], [*b] -> bool[* a and b].   Gradient: none.
    """

    order: ClassVar[tuple[str, str, str]] = ("y", "x", "less")
    pattern: ClassVar[str] = "{x} > {y}"


@op("greater_equal")
class GreaterEqual(Comparison):
    """``x >= y``, axes matched by name.

    Shape: [*a], [*b] -> bool[* a and b].   Gradient: none.
    """

    order: ClassVar[tuple[str, str, str]] = ("y", "x", "at_most")
    pattern: ClassVar[str] = "{x} >= {y}"


@op("equal")
class Equal(Comparison):
    """``x == y``, axes matched by name.

    Shape: [*a], [*b] -> bool[* a and b].   Gradient: none.
    """

    pattern: ClassVar[str] = "{x} == {y}"

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """Of single values, and of intervals that meet."""
        return self.equality(given, scalars)


@op("not_equal")
class NotEqual(Comparison):
    """``x != y``, axes matched by name.

    Shape: [*a], [*b] -> bool[* a and b].   Gradient: none.
    """

    pattern: ClassVar[str] = "{x} != {y}"

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """The opposite of equality."""
        equal = self.equality(given, scalars)
        return equal and Bounds(scalars.inverse(equal.most), scalars.inverse(equal.least))


# ------------------------------------------------------------------ logic and choice


def _need_bool(name: str, operands: list[tuple[str, TensorType]]) -> None:
    for argument, kind in operands:
        if kind.dtype != "bool":
            raise Fault(
                "operand-kind",
                f"`{name}` needs truth values, found {kind}",
                argument,
                help="compare first: `x > 0`",
            )


class _Logical(Binary):
    """Base of `LogicalAnd` and `LogicalOr`."""

    #: how bounds are joined
    joined: ClassVar[str]

    gives: ClassVar[str] = "bool"
    takes_bool: ClassVar[bool] = True

    def type(self) -> TensorType:
        """Return the broadcast of two truth values."""
        _need_bool(self.op_name, [("x", tensor(self.x, "x")), ("y", tensor(self.y, "y"))])
        return super().type()

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds:
        """The ends joined."""
        join = getattr(scalars, self.joined)
        return Bounds(*(join(*pair) for pair in zip(given["x"], given["y"], strict=True)))


@op("logical_and")
class LogicalAnd(_Logical):
    """``x and y`` of truth values, axes matched by name.

    Shape: bool[*a], bool[*b] -> bool[* a and b].   Gradient: none.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"*": {0.0: 0.0}}

    joined: ClassVar[str] = "both"
    pattern: ClassVar[str] = "{x} & {y}"


@op("logical_or")
class LogicalOr(_Logical):
    """``x or y`` of truth values, axes matched by name.

    Shape: bool[*a], bool[*b] -> bool[* a and b].   Gradient: none.
    """

    joined: ClassVar[str] = "either"
    pattern: ClassVar[str] = "{x} | {y}"


@op("logical_not")
class LogicalNot(Elementwise):
    """``not x`` of truth values.

    Shape: bool[*a] -> bool[*a].   Gradient: none.
    """

    x: Operand
    pattern: ClassVar[str] = "~{x}"
    takes_bool: ClassVar[bool] = True

    def type(self) -> TensorType:
        """Return the type of the truth values."""
        _need_bool("not", [("x", tensor(self.x, "x"))])
        return super().type()

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds:
        """The opposite ends."""
        every, some = given["x"]
        return Bounds(scalars.inverse(some), scalars.inverse(every))


@op("where")
class Where(Elementwise):
    """``x`` where the condition holds, else ``y``; axes matched by name.

    Shape: bool[*c], [*a], [*b] -> [* a, b and c].   Gradient: to the value that is chosen.
    """

    condition: Operand
    x: Operand
    y: Operand
    pattern: ClassVar[str] = "torch.where({condition}, {x}, {y})"
    kernel: ClassVar[str | None] = "tl.where({condition}, {x}, {y})"
    slopes: ClassVar[Mapping[str, str]] = {
        "x": "tl.where({condition}, 1.0, 0.0)",
        "y": "tl.where({condition}, 0.0, 1.0)",
    }
    takes_bool: ClassVar[bool] = True

    def type(self) -> TensorType:
        """Return the broadcast of all three in the dtype of the values."""
        _need_bool("where", [("condition", tensor(self.condition, "condition"))])
        dtype = promote(self.x.dtype, self.y.dtype)
        return broadcast(self.x, self.y, self.condition).with_dtype(dtype)

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """Those of the value that is surely chosen, else of both."""
        (every, some), x, y = given["condition"], given["x"], given["y"]
        if self.x.dtype != self.y.dtype or self.type().is_float:
            return None
        if self.x.dtype == "bool":
            no = scalars.inverse(some), scalars.inverse(every)
            sure = scalars.both(every, x.least), scalars.both(no[0], y.least)
            possible = scalars.both(some, x.most), scalars.both(no[1], y.most)
            always = scalars.both(x.least, y.least)
            return Bounds(scalars.either(always, scalars.either(*sure)), scalars.either(*possible))
        wide = scalars.minimum(x.least, y.least)
        least = scalars.choice(every, x.least, scalars.choice(some, wide, y.least))
        wide = scalars.maximum(x.most, y.most)
        most = scalars.choice(every, x.most, scalars.choice(some, wide, y.most))
        return Bounds(least, most)
