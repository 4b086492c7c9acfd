"""Values that are there without operands: literals, token positions, validity."""

from __future__ import annotations

from typing import ClassVar

from tokdsl.ops.base import Code, Op, Operand, op
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import Flow


class Ambient(Op):
    """Base of the operations that depend on nothing but the clock: computed once per forward."""

    ambient: ClassVar[bool] = True


@op("literal")
class Constant(Ambient):
    """A number written in the program; it takes the dtype of what it meets."""

    internal: ClassVar[bool] = True

    value: object = None  # annotation kind "any": only the elaborator makes literals

    def type(self) -> TensorType:
        """A scalar without batch."""
        value = self.value
        dtype = "float"
        if isinstance(value, bool):
            dtype = "bool"
        elif isinstance(value, Dim):
            dtype = "i64"
        return TensorType((), dtype, batched=False)

    def torch(self, code: Code) -> str:
        """The literal itself."""
        if isinstance(self.value, Dim):
            return code.size(self.value)
        if self.value == float("inf"):
            return 'float("inf")'
        if self.value == -float("inf"):
            return 'float("-inf")'
        return repr(self.value)


@op("position_of")
class Position(Ambient):
    """The position of every token along a token axis, counted from the start of the sequence.

    Shape: -> i64[T].   In decode steps positions go on from those already seen.
    """

    internal: ClassVar[bool] = True

    axis: object = None

    def type(self) -> TensorType:
        """One integer per token, equal for all rows unless prompts are padded on the left."""
        assert isinstance(self.axis, Axis)
        return TensorType((self.axis,), "i64", batched=True)


@op("valid_of")
class Valid(Ambient):
    """Whether each token is one (true) or padding (false); None at run time if all are tokens.

    Shape: -> bool[T].
    """

    internal: ClassVar[bool] = True

    axis: object = None

    def type(self) -> TensorType:
        """One bool per token and row."""
        assert isinstance(self.axis, Axis)
        return TensorType((self.axis,), "bool", batched=True)

    def annotation(self) -> str:
        """None at run time without padding."""
        return "Tensor | None"

    def flows(self) -> dict[str, list[Flow]]:
        """Padding is given from outside; nothing is read."""
        return {}


@op("as_axis")
class Rename(Op):
    """The same tensor with a token axis under an index name (``x[i]``); costs nothing."""

    internal: ClassVar[bool] = True

    x: Operand
    old: str
    axis: object = None

    def type(self) -> TensorType:
        """The operand's type with one axis renamed."""
        assert isinstance(self.x, TensorType) and isinstance(self.axis, Axis)
        return self.x.with_axes(tuple(self.axis if a.name == self.old else a for a in self.x.axes))

    def flows(self) -> dict[str, list[Flow]]:
        """Positions keep their place under the new name."""
        assert isinstance(self.axis, Axis)
        return {
            "x": [
                Flow(a.name, self.axis.name if a.name == self.old else a.name)
                for a in self.x.axes
                if a.clock is not None or a.pack
            ]
        }

    def torch(self, code: Code) -> str:
        """Names cost nothing."""
        return code["x"]
