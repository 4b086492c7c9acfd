"""Values that are there without operands: literals, token positions, validity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tokdsl.ops.base import Code, Op, Operand, op
from tokdsl.ops.bounds import Bounds, Scalars
from tokdsl.ops.tile import Tile
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

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """The number itself, if it is whole, or the truth value."""
        number = self.value.number if isinstance(self.value, Dim) else self.value
        return Bounds(repr(number), repr(number)) if isinstance(number, int) else None

    def torch(self, code: Code) -> str:
        """The literal itself."""
        if isinstance(self.value, Dim):
            return code.size(self.value)
        if self.value == float("inf"):
            return 'float("inf")'
        if self.value == -float("inf"):
            return 'float("-inf")'
        return repr(self.value)

    def tiled(self, tile: Tile) -> str | None:
        """The literal itself."""
        del tile
        if isinstance(self.value, Dim):
            return str(self.value.number) if self.value.is_number else None
        return self.torch(Code({}, {}, self.type()))


class Reading(Ambient):
    """Base of the attributes of the tokens along a token axis."""

    internal: ClassVar[bool] = True
    #: name of the attribute of the package's ``TokenClock``
    attribute: ClassVar[str] = ""

    axis: object = None

    def type(self) -> TensorType:
        """One bit per token and row, where nothing else is said."""
        assert isinstance(self.axis, Axis)
        return TensorType((self.axis,), "bool", batched=True)

    def flows(self) -> dict[str, list[Flow]]:
        """Attributes are given from outside; nothing is read."""
        return {}


@op("position_of")
class Position(Reading):
    """The position of every token along a token axis, counted from the start of its document.

    Shape: -> i64[T].   In decode steps positions go on from those already seen.
    """

    attribute: ClassVar[str] = "position"

    def type(self) -> TensorType:
        """One integer per token, equal for all rows unless prompts are padded on the left."""
        assert isinstance(self.axis, Axis)
        return TensorType((self.axis,), "i64", batched=True)


@op("valid_of")
class Valid(Reading):
    """Whether each token is one (true) or padding (false); None at run time if all are tokens.

    Shape: -> bool[T].
    """

    attribute: ClassVar[str] = "valid"

    def annotation(self) -> str:
        """None at run time without padding."""
        return "Tensor | None"


@op("starts_of")
class Starts(Reading):
    """Whether each token is the first of its document; None at run time if no document begins.

    Shape: -> bool[T].
    """

    attribute: ClassVar[str] = "starts"

    def annotation(self) -> str:
        """None at run time where every row is one document."""
        return "Tensor | None"


@op("batch_of")
class BatchOf(Reading):
    """How many rows there are, where positions and what follows from them are kept once for all.

    Shape: -> i64[].
    """

    attribute: ClassVar[str] = "batch"

    def type(self) -> TensorType:
        """One number."""
        return TensorType((), "i64", batched=False)

    def annotation(self) -> str:
        """A number that is known outside of tensors."""
        return "int"


@op("clock_of")
class ClockOf(Reading):
    """The package's ``TokenClock`` itself, for what reads several attributes of its tokens.

    Shape: -> bool[T], of which nothing is read.
    """

    attribute: ClassVar[str] = "clock"

    def annotation(self) -> str:
        """The package's class."""
        return "TokenClock"


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
