"""Conversions between dtypes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from tokdsl.ops.base import Code, Cost, Fault, Op, Operand, op, tensor
from tokdsl.ops.bounds import Bounds, Scalars
from tokdsl.ops.precedence import primary
from tokdsl.ops.tile import Tile
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import DTYPES, TensorType
from tokdsl.types.time import Flow

_METHODS = {
    "bool": "bool()",
    "i64": "long()",
    "bf16": "bfloat16()",
    "f16": "half()",
    "f32": "float()",
    "f64": "double()",
}
_TRITON = {
    "bool": "int1",
    "i64": "int64",
    "bf16": "bfloat16",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
}


def cast_text(code: Code, text: str, dtype: str) -> str:
    """Return Python text that converts a tensor."""
    method = _METHODS.get(dtype)
    if method is None:
        method = f"to({code.names.get('dtype', 'torch.get_default_dtype()')})"
    return f"{primary(text)}.{method}"


class Cast(Op):
    """Base of the conversions; one that changes nothing costs nothing."""

    elementwise: ClassVar[bool] = True
    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {
        "x": {0.0: 0.0, -math.inf: -math.inf}
    }
    #: dtype of the result
    target: ClassVar[str] = ""

    x: Operand

    def type(self) -> TensorType:
        """Return the operand's type in the other dtype."""
        return tensor(self.x, "x").with_dtype(self.target)

    def gradient(self) -> dict[str, bool]:
        """A gradient passes between floats."""
        return {"x": self.x.is_float and self.type().is_float}

    def cost(self) -> Cost:
        """Memory traffic only."""
        return Cost(Dim(()))

    def torch(self, code: Code) -> str:
        """Return the conversion, or the operand itself if it has that dtype."""
        dtype = self.type().dtype
        return code["x"] if self.x.dtype == dtype else cast_text(code, code["x"], dtype)

    def triton(self, operands: Mapping[str, str]) -> str | None:
        """Return the conversion; the working dtype has no fixed name."""
        name = _TRITON.get(self.type().dtype)
        return f"{primary(operands['x'])}.to(tl.{name})" if name else None

    def tiled(self, tile: Tile) -> str | None:
        """The conversion; floats stay as they are in a kernel, a store rounds."""
        if self.x.is_float and self.type().is_float:
            return tile["x"]
        dtype = "float32" if self.type().is_float else _TRITON.get(self.type().dtype)
        return f"{primary(tile['x'])}.to(tl.{dtype})" if dtype else None

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient itself between floats."""
        return {"x": gradients[0] or "0.0"}

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """Those of the operand, if it has that dtype."""
        return given["x"] if self.x.dtype == self.type().dtype else None

    def derivative(self, operands: Mapping[str, str]) -> dict[str, str]:
        """One between floats."""
        return {"x": "1.0"} if self.gradient()["x"] else {}


@op("f64")
class F64(Cast):
    """``x`` in 64-bit floating point.

    Shape: [*a] -> f64[*a].   Gradient: smooth.
    """

    target: ClassVar[str] = "f64"


@op("f32")
class F32(Cast):
    """``x`` in 32-bit floating point.

    Shape: [*a] -> f32[*a].   Gradient: smooth.
    """

    target: ClassVar[str] = "f32"


@op("precise")
class Precise(Cast):
    """``x`` in 32-bit floating point, or in 64-bit if it is so already.

    What `f32` cannot say: sums over long sequences stay exact in a model in float64.

    Shape: [*a] -> f32[*a].   Gradient: smooth.
    """

    target: ClassVar[str] = "f32"

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        return f"{code.use('precise')}({code['x']})"


@op("f16")
class F16(Cast):
    """``x`` in 16-bit floating point.

    Shape: [*a] -> f16[*a].   Gradient: smooth.
    """

    target: ClassVar[str] = "f16"


@op("bf16")
class BF16(Cast):
    """``x`` in bfloat16.

    Shape: [*a] -> bf16[*a].   Gradient: smooth.
    """

    target: ClassVar[str] = "bf16"


@op("int")
class Int(Cast):
    """``x`` as a 64-bit integer, cut towards zero.

    Shape: [*a] -> i64[*a].   Gradient: none.
    """

    target: ClassVar[str] = "i64"


@op("bool")
class Bool(Cast):
    """Whether ``x`` is not zero.

    Shape: [*a] -> bool[*a].   Gradient: none.
    """

    target: ClassVar[str] = "bool"


@op("to")
class To(Cast):
    """``x`` in the dtype that is named; ``"float"`` is the model's working dtype.

    Shape: [*a] -> dtype[*a].   Gradient: smooth between floats, else none.
    """

    dtype: str

    def type(self) -> TensorType:
        """Return the operand's type in the named dtype."""
        dtype = {"int": "i64"}.get(self.dtype, self.dtype)
        if dtype not in DTYPES:
            raise Fault(
                "argument-type",
                f"`dtype` must be one of {', '.join(DTYPES)}, found `{self.dtype}`",
                "dtype",
            )
        return tensor(self.x, "x").with_dtype(dtype)


@op("cast_like")
class CastLike(Op):
    """``x`` in the dtype of another value.

    Shape: [*a], [*b] -> [*a].   Gradient: smooth to ``x``, none to ``like``.
    """

    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = Cast.absorbing
    type_operands: ClassVar[tuple[str, ...]] = ("like",)

    x: Operand
    like: Operand

    def type(self) -> TensorType:
        """Return the operand's type in the dtype of ``like``."""
        return tensor(self.x, "x").with_dtype(tensor(self.like, "like").dtype)

    def tiled(self, tile: Tile) -> str | None:
        """Floats stay as they are in a kernel; a store rounds."""
        return tile["x"] if self.x.is_float and self.like.is_float else None

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The gradient itself."""
        return {"x": gradients[0] or "0.0"}

    def flows(self) -> dict[str, list[Flow]]:
        """Only ``x`` is read."""
        return {"x": super().flows().get("x", [])}

    def gradient(self) -> dict[str, bool]:
        """A gradient passes between floats."""
        return {"x": self.x.is_float and self.like.is_float, "like": False}

    def torch(self, code: Code) -> str:
        """Return the conversion."""
        if self.x.dtype == self.like.dtype and self.x.dtype != "float":
            return code["x"]
        return f"{primary(code['x'])}.to({primary(code['like'])}.dtype)"
