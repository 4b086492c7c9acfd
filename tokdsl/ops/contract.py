"""Contractions of two values over named axes."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase
from typing import ClassVar

from tokdsl.ops.axes import (
    BATCH,
    aligned,
    dim_text,
    masked_axes,
    names,
    product,
    reduced,
    token_mask,
)
from tokdsl.ops.base import (
    AxisRef,
    Code,
    Companion,
    Cost,
    Fault,
    Op,
    Operand,
    broadcast,
    find_axis,
    op,
    tensor,
)
from tokdsl.ops.precedence import fill, primary
from tokdsl.types.tensors import Axis, TensorType, promote
from tokdsl.types.time import Flow


@op("dot")
class Dot(Op):
    """The sum of products over axes that both have; other axes of one name go together.

    The result has the axes of ``x`` first, then those that only ``y`` has. A sum over tokens
    leaves padding out.

    Shape: [*s, *a, over], [*s, over, *b] -> [*s, *a, *b].   Gradient: smooth.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {"*": {0.0: 0.0}}

    x: Operand
    y: Operand
    over: tuple[AxisRef, ...]
    valid: Companion | None = None

    def type(self) -> TensorType:
        """Return the axes of ``x``, then those of ``y``, without the contracted ones."""
        x, y = tensor(self.x, "x"), tensor(self.y, "y")
        for name in self.over:
            find_axis(x, name, "over")
            find_axis(y, name, "over")
        broadcast(x, y, what="`x` and `y`")
        dtype = promote(x.dtype, y.dtype)
        if dtype == "bool":
            raise Fault("operand-kind", f"`dot` needs numbers, found {x}", "x")
        own = [axis for axis in y.axes if x.axis(axis.name) is None]
        axes = tuple(axis for axis in (*x.axes, *own) if axis.name not in self.over)
        return TensorType(axes, dtype, x.batched or y.batched)

    def wants_valid(self) -> list[Axis]:
        """Return the token axes that are summed over."""
        gone = [find_axis(self.x, name, "over") for name in self.over]
        return [axis for axis in gone if axis.clock is not None and not axis.memory]

    def flows(self) -> dict[str, list[Flow]]:
        """Tokens that are summed over are all read; validity reads no token."""
        return {name: flows for name, flows in super().flows().items() if name != "valid"}

    def gradient(self) -> dict[str, bool]:
        """Smooth in both."""
        return super().gradient() | ({"valid": False} if self.valid is not None else {})

    def cost(self) -> Cost:
        """Two FLOPs per product."""
        gone = [find_axis(self.x, name, "over").size for name in self.over]
        return Cost(self.type().size * product(gone) * 2)

    def torch(self, code: Code) -> str:
        """Return a matrix product where the shapes suit it, else an ``einsum``."""
        x, y = tensor(self.x, "x"), tensor(self.y, "y")
        code = self._without_padding(code)
        if not self.type().is_float:
            return self._products(code)
        first, second = self._same_dtype(code)
        over = list(self.over)
        if len(over) == 1 and names(x)[-1:] == over and not y.batched:
            free = [axis.name for axis in y.axes if axis.name not in over]
            alone = all(x.axis(name) is None for name in free)
            if alone and len(y.axes) <= 2 and names(y)[:1] == over:
                return fill("{x} @ {y}", x=first, y=second)
            if alone and len(y.axes) == 2:
                return fill("{x} @ {y}.T", x=first, y=second)
        letters = _letters([*names(x), *names(y), *names(self.type())])
        terms = ["".join(letters[name] for name in names(k)) for k in (x, y, self.type())]
        return f'torch.einsum("{terms[0]},{terms[1]}->{terms[2]}", {first}, {second})'

    def _without_padding(self, code: Code) -> Code:
        """Return the operands with padding that is summed over replaced by 0 in one of them."""
        # the smaller one, and of two alike the second: in a mix of values it holds the values
        for name, kind in sorted(self._sides(), key=lambda side: len(side[1].axes)):
            over = reduced(kind, self.over)
            mask = token_mask(code, kind, masked_axes(kind, over, self.valid))
            if mask is None:
                continue
            zero = {"bool": "False", "i64": "0"}.get(kind.dtype, "0.0")
            text = f"{code.use('fill_masked')}({code[name]}, {mask}, {zero})"
            filled = Code({**code.operands, name: text}, code.types, code.result, names=code.names)
            filled.imports = code.imports
            return filled
        return code

    def _sides(self) -> list[tuple[str, TensorType]]:
        return [("y", tensor(self.y, "y")), ("x", tensor(self.x, "x"))]

    def _same_dtype(self, code: Code) -> tuple[str, str]:
        """Return both operands in the promoted dtype, which torch wants for products."""
        x, y = code["x"], code["y"]
        if self.x.dtype == self.y.dtype:
            return x, y
        if promote(self.x.dtype, self.y.dtype) == self.x.dtype:
            return x, f"{primary(y)}.to({primary(x)}.dtype)"
        return f"{primary(x)}.to({primary(y)}.dtype)", y

    def _products(self, code: Code) -> str:
        """Return products and a sum: integers have no matrix product on every device."""
        result = self.type()
        gone = tuple(find_axis(self.x, name, "over") for name in self.over)
        full = result.with_axes((*result.axes, *gone))
        pair = fill("{x} * {y}", x=aligned(code, "x", full), y=aligned(code, "y", full))
        return f"({pair}).sum(dim={dim_text(reduced(full, self.over).positions(full))})"


def _letters(dimensions: list[str]) -> dict[str, str]:
    """Return a letter for every name: one of its own where that is free."""
    found: dict[str, str] = {}
    for name in dimensions:
        if name in found:
            continue
        own = "b" if name == BATCH else name.lower()
        wanted = [c for c in own if c in ascii_lowercase]
        taken = set(found.values()) | ({"b"} if BATCH in dimensions and name != BATCH else set())
        found[name] = next(c for c in (*wanted, *ascii_lowercase) if c not in taken)
    return found
