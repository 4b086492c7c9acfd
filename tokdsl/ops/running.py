"""Running totals along an axis: over tokens they read the past only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from tokdsl.ops.axes import (
    is_token,
    product,
    starts_argument,
    state_argument,
    valid_argument,
)
from tokdsl.ops.base import (
    AxisRef,
    Code,
    Companion,
    Cost,
    Fault,
    Op,
    Operand,
    StateSpec,
    find_axis,
    op,
    tensor,
)
from tokdsl.ops.precedence import primary
from tokdsl.ops.tile import Tile
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import PAST, Flow


class Running(Op):
    """Base of the running totals along one axis.

    Over tokens they read the past only, and begin anew with every document.
    """

    x: Operand
    over: AxisRef
    valid: Companion | None = None
    starts: Companion | None = None

    #: torch expression over the operand along a plain axis
    suffix: ClassVar[str] = ""
    #: the package's function along tokens
    function: ClassVar[str] = ""

    def type(self) -> TensorType:
        """Return the operand's type."""
        kind = tensor(self.x, "x")
        find_axis(kind, self.over, "over")
        if kind.dtype == "bool":
            raise Fault(
                "operand-kind",
                f"`{self.op_name}` needs numbers, found {kind}",
                "x",
                help="convert first: `int(x)`",
            )
        return kind

    def axis(self) -> Axis:
        """Return the axis along which the total runs."""
        return find_axis(self.x, self.over, "over")

    def flows(self) -> dict[str, list[Flow]]:
        """All positions up to the own one."""
        flows = super().flows().get("x", [])
        return {
            "x": [Flow(f.source, f.target, PAST) if f.source == self.over else f for f in flows]
        }

    def cost(self) -> Cost:
        """One FLOP per entry."""
        return Cost(self.x.size)

    def state(self) -> StateSpec | None:
        """The total so far, for totals along tokens."""
        if not is_token(self.axis()):
            return None
        sizes = tuple(a.size for a in self.x.axes if a.name != self.over)
        return StateSpec("RecurrentState", elements=product(sizes))

    def torch(self, code: Code) -> str:
        """Return torch's own form, or a function that knows padding and state along tokens."""
        dim = code.dim("x", self.over)
        if not is_token(self.axis()):
            return f"{primary(code['x'])}.{self.suffix.format(dim=dim)}"
        rest = valid_argument(code) + starts_argument(code) + state_argument(code)
        return f"{code.use(self.function)}({code['x']}, dim={dim}{rest})"


@op("cumsum")
class CumulativeSum(Running):
    """The running sum along an axis, the own entry included.

    Shape: [*, over] -> [*, over].   Gradient: smooth.
    """

    suffix: ClassVar[str] = "cumsum(dim={dim})"
    function: ClassVar[str] = "cumulative_sum"

    def tiled(self, tile: Tile) -> str | None:
        """The running sum along a dimension; padded entries come last."""
        tile.size(self.over)
        x = tile.full(tile["x"], self.type())
        return f"tl.cumsum({x}, axis={tile.dim(self.over)})"

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """The running sum from the other end."""
        g = tile.full(tile.filled(gradients[0] or "0.0", [self.over], "0.0"), self.type())
        return {"x": f"tl.cumsum({g}, axis={tile.dim(self.over)}, reverse=True)"}


@op("cumulative_product")
class CumulativeProduct(Running):
    """The running product along an axis, the own entry included.

    Shape: [*, over] -> [*, over].   Gradient: smooth.
    """

    suffix: ClassVar[str] = "cumprod(dim={dim})"
    function: ClassVar[str] = "cumulative_product"


@op("cumulative_max")
class CumulativeMax(Running):
    """The largest entry so far along an axis, the own entry included.

    Shape: [*, over] -> [*, over].   Gradient: to the largest entry so far.
    """

    suffix: ClassVar[str] = "cummax(dim={dim}).values"
    function: ClassVar[str] = "cumulative_max"
