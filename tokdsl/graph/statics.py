"""Static values: what parameters, conditions and counts are made of while a graph is built.

Integers are `Dim`, so that a definition can be checked for all sizes. A value that is not known
while a definition is checked alone is an `Unknown` of its type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokdsl.source import Span
from tokdsl.types.dims import Dim, combine

if TYPE_CHECKING:
    from tokdsl.graph.program import Value
    from tokdsl.ops.base import Op
    from tokdsl.resolve.modules import DefinitionRef


@dataclass(frozen=True)
class Unknown:
    """A static value of a known type that is decided by the caller."""

    type: str


@dataclass(frozen=True, eq=False)
class Closure:
    """A definition or primitive with some of its arguments given.

    Args:
        target: what is called.
        statics: given static arguments by parameter name.
        operands: given tensor operands by name.
        shared: name of the instance if every call must use the same parameters.
        home: the module that owns the shared instance.
    """

    target: DefinitionRef | type[Op]
    statics: tuple[tuple[str, object], ...]
    operands: tuple[tuple[str, Value], ...]
    span: Span
    shared: str = ""
    home: object = None

    @property
    def name(self) -> str:
        """The name of the definition or primitive."""
        return self.target.op_name if isinstance(self.target, type) else self.target.name

    def key(self) -> object:
        """Return what makes two closures the same program."""
        return (
            id(self.target),
            tuple((name, static_key(value)) for name, value in self.statics),
            tuple((name, id(value)) for name, value in self.operands),
            self.shared,
        )


@dataclass(frozen=True)
class AbstractClosure:
    """A definition parameter whose argument is not known yet: only its kind is."""

    kind: str
    name: str


@dataclass(frozen=True)
class Repeated:
    """``64 of swiglu(...)`` in a list."""

    count: int
    value: object


def static_key(value: object) -> object:
    """Return a hashable key that is equal exactly for equal static values."""
    if isinstance(value, Closure):
        return value.key()
    if isinstance(value, tuple):
        return ("tuple", tuple(static_key(v) for v in value))
    if isinstance(value, Repeated):
        return ("of", value.count, static_key(value.value))
    return (type(value).__name__, value)


def type_name(value: object) -> str:
    """Return the language's word for the type of a static value."""
    if isinstance(value, Dim):
        return "int"
    if isinstance(value, Unknown):
        return value.type
    if isinstance(value, Closure):
        return "fn" if isinstance(value.target, type) else value.target.definition.kind
    if isinstance(value, AbstractClosure):
        return value.kind
    names = {bool: "bool", float: "float", str: "str", tuple: "list", type(None): "none"}
    return names.get(type(value), type(value).__name__)


def show(value: object) -> str:
    """Return a static value as the user would write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(show(v) for v in value) + "]"
    if isinstance(value, Closure):
        inner = ", ".join(f"{name} = {show(v)}" for name, v in value.statics)
        return f"{value.name}({inner})"
    if isinstance(value, Repeated):
        return f"{value.count} of {show(value.value)}"
    if isinstance(value, (Unknown, AbstractClosure)):
        return f"<{type_name(value)}>"
    return str(value)


#: a larger integer has no float
LARGEST = 10**300


def as_float(value: object) -> float | None:
    """Return a static number as a float, or None if it is not a known number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return value
    if isinstance(value, Dim):
        number = value.number
        if number is None:
            return None
        return float(number) if abs(number) < LARGEST else math.copysign(math.inf, number)
    return None


class StaticError(Exception):
    """A static operation that has no value; the text says why."""


def binary(operator: str, left: object, right: object) -> object:
    """Return ``left operator right`` for static values.

    Raises:
        StaticError: for operands that do not fit, a division by zero or an overflow.
    """
    if operator in ("and", "or"):
        return _logic(operator, left, right)
    if operator in ("==", "!="):
        return _equality(operator, left, right)
    for side in (left, right):
        if not isinstance(side, (Dim, float, Unknown)) or isinstance(side, bool):
            raise StaticError(f"`{operator}` needs numbers, found {type_name(side)} {show(side)}")
    if operator in ("<", "<=", ">", ">="):
        return _order(operator, left, right)
    try:
        return _arithmetic(operator, left, right)
    except ZeroDivisionError:
        raise StaticError(f"division by zero in `{show(left)} {operator} {show(right)}`") from None
    except ValueError as error:
        raise StaticError(str(error)) from None
    except (OverflowError, ArithmeticError):
        raise StaticError(f"`{show(left)} {operator} {show(right)}` is too large") from None


def _arithmetic(operator: str, left: object, right: object) -> object:
    if isinstance(left, Dim) and isinstance(right, Dim):
        if operator == "+":
            return left + right
        if operator == "-":
            return left - right
        if operator == "*":
            return left * right
        if operator in ("//", "%"):
            return combine(operator, left, right)
        if operator == "/":
            return _divide(left, right)
        return _power(left, right)
    a, b = as_float(left), as_float(right)
    if a is None or b is None:
        return Unknown("float")
    if operator == "/":
        return a / b
    if operator == "**":
        result = a**b
        if isinstance(result, complex):
            raise StaticError(f"`{show(left)} ** {show(right)}` is not a real number")
        return result
    operations = {"+": a + b, "-": a - b, "*": a * b}
    if operator in operations:
        return operations[operator]
    return math.floor(a / b) if operator == "//" else math.fmod(a, b)


def _divide(left: Dim, right: Dim) -> object:
    """Integer sizes divide exactly; a remainder gives a float (``1 / 2``)."""
    a, b = left.number, right.number
    if a is not None and b is not None:
        return Dim.of(a // b) if a % b == 0 else a / b
    return combine("/", left, right)


def _power(left: Dim, right: Dim) -> object:
    a, b = left.number, right.number
    if b is None or (a is None and not 0 <= b <= 16):
        return Unknown("float")
    if a is not None:
        if b < 0:
            return float(a) ** b
        if abs(a) > 1 and b * math.log2(abs(a)) > 4096:
            raise OverflowError
        return Dim.of(a**b)
    result = Dim.of(1)
    for _ in range(b):
        result = result * left
    return result


def _order(operator: str, left: object, right: object) -> object:
    a, b = as_float(left), as_float(right)
    if a is None or b is None:
        return Unknown("bool")
    return {"<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[operator]


def _equality(operator: str, left: object, right: object) -> object:
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        return Unknown("bool")
    if isinstance(left, AbstractClosure) or isinstance(right, AbstractClosure):
        return Unknown("bool")
    sizes = isinstance(left, Dim) and isinstance(right, Dim)
    if sizes and left != right and None in (as_float(left), as_float(right)):
        return Unknown("bool")
    a, b = as_float(left), as_float(right)
    equal = a == b if a is not None and b is not None else static_key(left) == static_key(right)
    return equal if operator == "==" else not equal


def _logic(operator: str, left: object, right: object) -> object:
    for side in (left, right):
        if not isinstance(side, (bool, Unknown)):
            raise StaticError(f"`{operator}` needs bool, found {type_name(side)}")
    if operator == "and":
        if left is False or right is False:
            return False
        return True if left is True and right is True else Unknown("bool")
    if left is True or right is True:
        return True
    return False if left is False and right is False else Unknown("bool")


def negate(value: object) -> object:
    """Return ``-value``.

    Raises:
        StaticError: if it is not a number.
    """
    if isinstance(value, Dim):
        return -value
    if isinstance(value, float):
        return -value
    if isinstance(value, Unknown):
        return value
    raise StaticError(f"`-` needs a number, found {type_name(value)}")


#: functions on static numbers; the same names are primitives on tensors where both exist
FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log2": math.log2,
    "sin": math.sin,
    "cos": math.cos,
    "floor": math.floor,
    "ceil": math.ceil,
    "round": round,
    "abs": abs,
}

#: functions from a number to a whole one
WHOLE: dict[str, Callable[[float], int]] = {
    "int": int,
    "floor": math.floor,
    "ceil": math.ceil,
    "round": round,
}

CONSTANTS: dict[str, object] = {"pi": math.pi, "inf": math.inf}


def call(name: str, values: list[object]) -> object:
    """Return a function of static numbers (``min``, ``max``, ``sqrt``, ``int``, ``len`` ...).

    Raises:
        StaticError: if the arguments do not fit.
    """
    if name == "len" and len(values) == 1 and isinstance(values[0], tuple):
        return Dim.of(sum(v.count if isinstance(v, Repeated) else 1 for v in values[0]))
    if any(not isinstance(v, (Dim, float, Unknown)) for v in values) or not values:
        raise StaticError(f"`{name}` needs numbers")
    if name in ("min", "max"):
        return _extreme(name, values)
    if len(values) != 1:
        raise StaticError(f"`{name}` takes one number, found {len(values)}")
    number = as_float(values[0])
    if name in ("int", "floor", "ceil", "round"):
        if number is None:
            return values[0] if isinstance(values[0], Dim) else Unknown("int")
        try:
            return Dim.of(WHOLE[name](number))
        except (ValueError, OverflowError) as error:
            raise StaticError(f"`{name}({show(values[0])})`: {error}") from None
    if name == "float":
        return Unknown("float") if number is None else number
    if number is None:
        return Unknown("float")
    try:
        return float(FUNCTIONS[name](number))
    except (ValueError, OverflowError) as error:
        raise StaticError(f"`{name}({show(values[0])})`: {error}") from None


def _extreme(name: str, values: list[object]) -> object:
    if all(isinstance(v, Dim) for v in values):
        result = values[0]
        for value in values[1:]:
            assert isinstance(result, Dim) and isinstance(value, Dim)
            result = combine(name, result, value)
        return result
    numbers = [as_float(v) for v in values]
    known = [n for n in numbers if n is not None]
    if len(known) < len(numbers):
        return Unknown("float")
    return min(known) if name == "min" else max(known)


STATIC_CALLS = {*FUNCTIONS, "min", "max", "int", "float", "len"}
