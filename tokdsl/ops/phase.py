"""What differs between training and inference."""

from __future__ import annotations

from typing import ClassVar

from tokdsl.ops.base import Code, Fault, Op, Operand, broadcast, op, tensor
from tokdsl.ops.cast import cast_text
from tokdsl.types.tensors import TensorType


class TwoWays(Op):
    """Base of the operations that take one of two values of the same axes."""

    x: Operand
    otherwise: Operand

    def type(self) -> TensorType:
        """Return the type of both.

        Raises:
            Fault: if they have different axes.
        """
        x, otherwise = tensor(self.x, "x"), tensor(self.otherwise, "otherwise")
        kind = broadcast(x, otherwise, what=f"`{self.op_name}`")
        # while a definition is checked for all sizes, buffers look like values of an example
        is_known = all(axis.size.is_number or axis.clock is not None for axis in kind.axes)
        differ = any(len(kind.axes) != len(k.axes) for k in (x, otherwise))
        if differ or (is_known and x.batched != otherwise.batched):
            raise Fault(
                "operand-shape",
                f"`{self.op_name}` needs two values with the same axes, found {x} and {otherwise}",
                "otherwise",
            )
        return kind

    def branches(self, code: Code) -> tuple[str, str]:
        """Return the texts of both values."""
        kind = self.type()
        x, otherwise = (
            text if self.dtype_of(name) == kind.dtype else cast_text(code, text, kind.dtype)
            for name in ("x", "otherwise")
            for text in [code.aligned(name)]
        )
        return x, otherwise

    def dtype_of(self, operand: str) -> str:
        """Return the dtype of an operand."""
        return str(getattr(self, operand).dtype)


@op("in_training")
class InTraining(TwoWays):
    """One value in training and another one otherwise.

    What is computed for the first value alone is computed in training alone: a decoder contains
    none of it, and it may read later tokens, which is a warning.

    Shape: [*a], [*a] -> [*a].   Gradient: smooth in the value that is taken.
    """

    training_operands: ClassVar[tuple[str, ...]] = ("x",)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function, where nothing is left out of inference."""
        x, otherwise = self.branches(code)
        return f"{code.use('by_phase')}({x}, {otherwise}, self.training)"


@op("in_steps")
class InSteps(TwoWays):
    """One value in calls of at most ``tokens`` tokens, as decode steps are, and another otherwise.

    Both must be the same function of what they read, in two forms of which each is faster in its
    place. What is computed for one of them alone is computed in its place alone.

    Args:
        tokens: in how long a call the first value is taken.

    Shape: [T, *a], [T, *a] -> [T, *a].   Gradient: smooth in the value that is taken.
    """

    step_operands: ClassVar[tuple[str, ...]] = ("x",)

    tokens: int = 1

    def not_taken(self, stepping: bool) -> tuple[str, ...]:
        """The second value in decode steps, the first one in a whole pass."""
        return ("otherwise",) if stepping and self.tokens > 0 else ("x",)

    def condition(self, code: Code) -> str:
        """Return the text of the condition of the first value.

        Raises:
            Fault: if the values have no tokens.
        """
        axis = next((a for a in self.type().axes if a.clock is not None), None)
        if axis is None:
            raise Fault("operand-shape", f"`in_steps` needs a token axis, found {self.type()}", "x")
        return f"{code.size(axis.size)} <= {self.tokens}"

    def torch(self, code: Code) -> str:
        """Return the choice between the two, where both are there anyway."""
        x, otherwise = self.branches(code)
        return f"{x} if {self.condition(code)} else {otherwise}"
