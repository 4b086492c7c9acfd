"""What a condition over positions comes to over a tile: none of its pairs, all, or some.

The bounds of each operation stand in its class (`Op.bounds`); here they are put together, once for
torch, where a tensor holds the bounds of many tiles, and once for Triton.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from tokdsl.graph.program import Module, OpNode, Value
from tokdsl.ops.bounds import PERHAPS, Bounds, Scalars
from tokdsl.ops.precedence import fill, literal
from tokdsl.types.tensors import TensorType

NAME = re.compile(r"[A-Za-z_]\w*")
#: least and greatest positions of queries and keys
ENDS = ("i_least", "i_most", "j_least", "j_most")


class TorchScalars(Scalars):
    """Over tensors."""

    minimum_pattern: ClassVar[str] = "torch.minimum({x}, {y})"
    maximum_pattern: ClassVar[str] = "torch.maximum({x}, {y})"
    choice_pattern: ClassVar[str] = "torch.where({c}, {x}, {y})"
    not_pattern: ClassVar[str] = "~{x}"

    def quotient(self, x: str, y: int) -> str:
        """Torch rounds down by itself."""
        found = super().quotient(x, y)
        return found if literal(x) is not None else fill("{x} // {y}", x=x, y=str(y))

    def minimum(self, x: str, y: str) -> str:
        """Torch has no extreme with a number."""
        return self._clamped(x, y, "max") or super().minimum(x, y)

    def maximum(self, x: str, y: str) -> str:
        """Torch has no extreme with a number."""
        return self._clamped(x, y, "min") or super().maximum(x, y)

    def _clamped(self, x: str, y: str, bound: str) -> str:
        numbers = [literal(text) is not None for text in (x, y)]
        if all(numbers) or not any(numbers):
            return ""
        x, y = (y, x) if numbers[0] else (x, y)
        return fill(f"{{x}}.clamp({bound}={{y}})", x=x, y=y)


class TritonScalars(Scalars):
    """Over scalars or blocks of a kernel, where remainders have the sign of the first operand."""

    minimum_pattern: ClassVar[str] = "tl.minimum({x}, {y})"
    maximum_pattern: ClassVar[str] = "tl.maximum({x}, {y})"
    choice_pattern: ClassVar[str] = "tl.where({c}, {x}, {y})"
    remainder_pattern: ClassVar[str] = "({x} % {y} + {y}) % {y}"
    not_pattern: ClassVar[str] = "{x} == 0"


class Reach(NamedTuple):
    """Statements over `ENDS`, and what they give: whether all pairs are seen, and whether any may.

    Args:
        lines: name and expression of each.
    """

    lines: list[tuple[str, str]]
    every: str
    some: str


def reach(condition: Module, scalars: Scalars) -> Reach | None:
    """Return what a function of positions comes to over a tile; None if that is never known.

    Args:
        condition: its first inputs are positions of queries and of keys; of others nothing is
            known.
        scalars: writes the expressions.
    """
    known: dict[int, Bounds] = {}
    for value, ends in zip(condition.inputs[:2], (ENDS[:2], ENDS[2:]), strict=True):
        known[id(value)] = Bounds(*ends)
    for node in condition.nodes:
        if isinstance(node, OpNode):
            found = _bounds(node, known, scalars)
            if found is not None:
                known[id(node.outputs[0])] = found
    every, some = _known(condition.results[0], known) or PERHAPS
    if (every, some) == PERHAPS:
        return None
    return Reach(_needed(scalars.lines, every, some), every, some)


def _bounds(node: OpNode, known: Mapping[int, Bounds], scalars: Scalars) -> Bounds | None:
    """Return the bounds of a node's result, under names; None if they are not known."""
    value = node.outputs[0]
    if len(node.outputs) > 1 or not isinstance(value.type, TensorType) or value.type.is_float:
        return None
    given = {}
    for name, operand in zip(node.operands, node.inputs, strict=True):
        found = _known(operand, known)
        if found is None:
            return None
        given[name] = found
    bounds = node.op.bounds(given, scalars)
    if bounds is None:
        return None
    hint = value.name or node.op.op_name
    truth = value.type.dtype == "bool"
    ends = ("every", "some") if truth else ("least", "most")
    return Bounds(
        *(scalars.bind(text, f"{hint}_{e}") for text, e in zip(bounds, ends, strict=True))
    )


def _known(value: Value, known: Mapping[int, Bounds]) -> Bounds | None:
    found = known.get(id(value))
    truth = isinstance(value.type, TensorType) and value.type.dtype == "bool"
    return PERHAPS if found is None and truth else found


def _needed(lines: list[tuple[str, str]], *results: str) -> list[tuple[str, str]]:
    """Return the statements that a result is made from."""
    kept: list[tuple[str, str]] = []
    read = set(results)
    for name, text in reversed(lines):
        if name in read:
            kept.append((name, text))
            read |= set(NAME.findall(text))
    return kept[::-1]
