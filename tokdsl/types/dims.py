"""Sizes: integers, or polynomials in named symbols with exact rational arithmetic.

A division that is not exact by algebra becomes a symbol of its own (``d / heads``) that carries
its meaning, so it is decided when numbers are substituted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

#: An atom of a monomial: a named symbol, or an operation that algebra could not remove.
Atom = "str | Residue"


@dataclass(frozen=True, slots=True)
class Residue:
    """``left op right`` where op is ``/`` (exact), ``//``, ``%``, ``min`` or ``max``."""

    operator: str
    left: Dim
    right: Dim

    def __str__(self) -> str:
        if self.operator in ("min", "max"):
            return f"{self.operator}({self.left}, {self.right})"
        return f"({self.left} {self.operator} {self.right})"

    def value(self, numbers: Mapping[str, int]) -> Dim:
        """Return the operation with numbers substituted for symbols."""
        return combine(self.operator, self.left.substitute(numbers), self.right.substitute(numbers))


#: whole wherever possible: fractions are slow
Coefficient = int | Fraction
Monomial = tuple[tuple[str | Residue, int], ...]


def _key(atom: str | Residue) -> str:
    return atom if isinstance(atom, str) else str(atom)


@dataclass(frozen=True, slots=True)
class Dim:
    """A polynomial: ``terms`` maps monomials to non-zero coefficients, sorted."""

    terms: tuple[tuple[Monomial, Coefficient], ...]

    @staticmethod
    def of(value: int | Fraction | str | Residue | Dim) -> Dim:
        """Return a size from a number, a symbol name or a size."""
        if isinstance(value, Dim):
            return value
        if isinstance(value, (str, Residue)):
            return Dim(((((value, 1),), 1),))
        return Dim((((), value),)) if value else Dim(())

    @property
    def number(self) -> int | None:
        """The value if no symbol is left and it is whole, else None."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and not self.terms[0][0]:
            coefficient = self.terms[0][1]
            if isinstance(coefficient, int):
                return coefficient
            return int(coefficient) if coefficient.denominator == 1 else None
        return None

    @property
    def is_number(self) -> bool:
        """Whether no symbol is left."""
        return self.number is not None

    def symbols(self) -> set[str]:
        """Return the names of all symbols."""
        found: set[str] = set()
        for monomial, _ in self.terms:
            for atom, _power in monomial:
                if isinstance(atom, str):
                    found.add(atom)
                else:
                    found |= atom.left.symbols() | atom.right.symbols()
        return found

    def substitute(self, numbers: Mapping[str, int]) -> Dim:
        """Return the size with the given symbols replaced by numbers."""
        total = Dim(())
        for monomial, coefficient in self.terms:
            part = Dim.of(coefficient)
            for atom, power in monomial:
                if isinstance(atom, Residue):
                    factor = atom.value(numbers)
                else:
                    factor = Dim.of(numbers[atom]) if atom in numbers else Dim.of(atom)
                for _ in range(power):
                    part = part * factor
            total = total + part
        return total

    def evaluate(self, numbers: Mapping[str, float]) -> float:
        """Return the value as a float for estimates; every symbol must be given."""
        total = 0.0
        for monomial, coefficient in self.terms:
            part = float(coefficient)
            for atom, power in monomial:
                if isinstance(atom, str):
                    part *= numbers[atom] ** power
                else:
                    left, right = atom.left.evaluate(numbers), atom.right.evaluate(numbers)
                    part *= _float_operation(atom.operator, left, right) ** power
            total += part
        return total

    def __add__(self, other: Dim | int) -> Dim:
        sums = dict(self.terms)
        for monomial, coefficient in Dim.of(other).terms:
            sums[monomial] = sums.get(monomial, 0) + coefficient
        return _dim(sums)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return Dim(tuple((monomial, -coefficient) for monomial, coefficient in self.terms))

    def __sub__(self, other: Dim | int) -> Dim:
        return self + (-Dim.of(other))

    def __rsub__(self, other: int) -> Dim:
        return Dim.of(other) - self

    def __mul__(self, other: Dim | int | Fraction) -> Dim:
        other = Dim.of(other)
        if len(self.terms) == 1 == len(other.terms):
            (first, a), (second, b) = self.terms[0], other.terms[0]
            return Dim(((_multiply(first, second), a * b),))
        products: dict[Monomial, Coefficient] = {}
        for first, a in self.terms:
            for second, b in other.terms:
                monomial = _multiply(first, second)
                products[monomial] = products.get(monomial, 0) + a * b
        return _dim(products)

    __rmul__ = __mul__

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        text = ""
        for monomial, coefficient in self.terms:
            factors = [
                _key(atom) if power == 1 else f"{_key(atom)}^{power}" for atom, power in monomial
            ]
            magnitude = abs(coefficient)
            if magnitude != 1 or not factors:
                factors.insert(0, str(magnitude))
            sign = "-" if coefficient < 0 else "+"
            part = "*".join(factors)
            text += (f" {sign} " if text else ("-" if sign == "-" else "")) + part
        return text


def _multiply(first: Monomial, second: Monomial) -> Monomial:
    if not first:
        return second
    if not second:
        return first
    powers = dict(first)
    for atom, power in second:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: _key(item[0])))


def _dim(terms: dict[Monomial, Coefficient]) -> Dim:
    kept = [(monomial, c) for monomial, c in terms.items() if c]
    if len(kept) > 1:
        kept.sort(key=lambda t: (-sum(p for _, p in t[0]), [_key(a) for a, _ in t[0]]))
    return Dim(tuple(kept))


def _float_operation(operator: str, left: float, right: float) -> float:
    if operator == "/":
        return left / right
    if operator == "//":
        return left // right
    if operator == "%":
        return left % right
    return min(left, right) if operator == "min" else max(left, right)


def combine(operator: str, left: Dim, right: Dim) -> Dim:
    """Return ``left operator right`` for the operations that leave the polynomials.

    Raises:
        ZeroDivisionError: if the right side is the number zero.
        ValueError: if an exact division of numbers has a remainder.
    """
    a, b = left.number, right.number
    if operator in ("/", "//", "%") and b == 0:
        raise ZeroDivisionError
    if a is not None and b is not None:
        if operator == "/":
            if a % b:
                raise ValueError(f"{a} is not divisible by {b}")
            return Dim.of(a // b)
        if operator == "//":
            return Dim.of(a // b)
        if operator == "%":
            return Dim.of(a % b)
        return Dim.of(min(a, b) if operator == "min" else max(a, b))
    exact = _exact_quotient(left, right)
    if exact is not None:
        if operator == "%":
            return Dim(())
        if operator in ("/", "//"):
            return exact
    if left == right and operator in ("min", "max"):
        return left
    return Dim.of(Residue(operator, left, right))


def _exact_quotient(left: Dim, right: Dim) -> Dim | None:
    """Return left / right when every term of left is divisible by a one-term right."""
    if left == right:
        return Dim.of(1)
    if len(right.terms) != 1:
        return None
    divisor, scale = right.terms[0]
    terms: dict[Monomial, Coefficient] = {}
    for monomial, coefficient in left.terms:
        powers = dict(monomial)
        for atom, power in divisor:
            if powers.get(atom, 0) < power:
                return None
            powers[atom] -= power
            if not powers[atom]:
                del powers[atom]
        quotient = Fraction(coefficient) / scale
        if quotient.denominator != 1:
            return None
        whole = int(quotient)
        terms[tuple(sorted(powers.items(), key=lambda item: _key(item[0])))] = whole
    return _dim(terms)
