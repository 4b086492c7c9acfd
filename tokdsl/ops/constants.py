"""Constant tensors: counts along an axis, and one value everywhere."""

from __future__ import annotations

from tokdsl.ops.ambient import Ambient
from tokdsl.ops.base import Code, Fault, NewAxis, op
from tokdsl.ops.elementwise import number
from tokdsl.ops.tile import Tile
from tokdsl.types.tensors import DTYPES, Axis, TensorType

_DTYPES = {
    "bool": "torch.bool",
    "i64": "torch.long",
    "bf16": "torch.bfloat16",
    "f16": "torch.float16",
    "f32": "torch.float32",
    "f64": "torch.float64",
}


def placement(code: Code, dtype: str) -> str:
    """Return the ``device`` and ``dtype`` arguments of a factory, as far as they are known."""
    name = code.names.get("dtype") if dtype == "float" else _DTYPES.get(dtype)
    device = code.names.get("device")
    text = f", dtype={name}" if name else ""
    return text + (f", device={device}" if device else "")


@op("arange")
class Arange(Ambient):
    """0, 1, 2, ... along a new axis.

    Shape: -> i64[axis].   Gradient: none.
    """

    axis: NewAxis

    def type(self) -> TensorType:
        """Return integers without batch."""
        axis = Axis(self.axis.name, self.axis.size)
        return TensorType((axis,), "i64", batched=False, classes=axis.size)

    def tiled(self, tile: Tile) -> str | None:
        """The numbers along the dimension."""
        return f"{tile.index(self.axis.name)}.to(tl.int64)"

    def torch(self, code: Code) -> str:
        """Return ``torch.arange``."""
        return f"torch.arange({code.size(self.axis.size)}{placement(code, '')})"


class Filled(Ambient):
    """Base of the constants with one value."""

    axes: tuple[NewAxis, ...]

    def filling(self) -> float:
        """Return the value."""
        return 0.0

    def dtype_name(self) -> str:
        """Return the dtype."""
        return "float"

    def type(self) -> TensorType:
        """Return the axes without batch."""
        if self.dtype_name() not in DTYPES:
            raise Fault(
                "argument-type",
                f"`dtype` must be one of {', '.join(DTYPES)}, found `{self.dtype_name()}`",
                "dtype",
            )
        names = [axis.name for axis in self.axes]
        if len(set(names)) != len(names):
            raise Fault("axis-taken", f"two axes of {', '.join(names)} have one name", "axes")
        axes = tuple(Axis(axis.name, axis.size) for axis in self.axes)
        return TensorType(axes, self.dtype_name(), batched=False)

    def tiled(self, tile: Tile) -> str | None:
        """A block with one value."""
        kind, value = self.type(), self.filling()
        if kind.dtype == "bool":
            return None
        text = number(value) if kind.is_float else str(int(value))
        dtype = "tl.float32" if kind.is_float else "tl.int64"
        return f"tl.full({tile.shape(kind)}, {text}, {dtype})"

    def torch(self, code: Code) -> str:
        """Return ``torch.full`` or its short forms."""
        sizes = ", ".join(code.size(axis.size) for axis in self.axes)
        where = placement(code, self.dtype_name())
        if self.filling() in (0.0, 1.0):
            return f"torch.{'ones' if self.filling() else 'zeros'}({sizes}{where})"
        comma = "," if len(self.axes) == 1 else ""
        value = number(self.filling()) if self.type().is_float else str(int(self.filling()))
        return f"torch.full(({sizes}{comma}), {value}{where})"


@op("zeros")
class Zeros(Filled):
    """0 everywhere.

    Shape: -> [axes].   Gradient: none.
    """


@op("ones")
class Ones(Filled):
    """1 everywhere.

    Shape: -> [axes].   Gradient: none.
    """

    def filling(self) -> float:
        """One."""
        return 1.0


@op("full")
class Full(Filled):
    """One value everywhere.

    Shape: -> dtype[axes].   Gradient: none.
    """

    value: float = 0.0
    dtype: str = "float"

    def filling(self) -> float:
        """Return the value."""
        return self.value

    def dtype_name(self) -> str:
        """Return the dtype."""
        return self.dtype
