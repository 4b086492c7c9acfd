"""What differs between training and inference."""

from __future__ import annotations

from typing import ClassVar

from tokdsl.ops.base import Code, Op, Operand, broadcast, op
from tokdsl.types.tensors import TensorType


@op("in_training")
class InTraining(Op):
    """One value in training and another one otherwise.

    What is computed for the first value alone is computed in training alone: a decoder contains
    none of it, and it may read later tokens, which is a warning.

    Shape: [*a], [*b] -> [* a and b].   Gradient: smooth in the value that is taken.
    """

    training_operands: ClassVar[tuple[str, ...]] = ("x",)

    x: Operand
    otherwise: Operand

    def type(self) -> TensorType:
        """Return the type of both, axes matched by name."""
        return broadcast(self.x, self.otherwise, what="`in_training`")

    def branches(self, code: Code) -> tuple[str, str]:
        """Return the texts of both values."""
        return code.aligned("x"), code.aligned("otherwise")

    def torch(self, code: Code) -> str:
        """Return a call of the package's function, where nothing is left out of inference."""
        x, otherwise = self.branches(code)
        return f"{code.use('by_phase')}({x}, {otherwise}, self.training)"
