"""Rotary position encodings: turning channel pairs by angles that grow with the position."""

from __future__ import annotations

from tokdsl.ops.base import AxisRef, Code, Cost, Fault, Op, Operand, find_axis, op, tensor
from tokdsl.types.tensors import TensorType

#: how channels are paired
LAYOUTS = ("half", "neighbours")


@op("rotation")
class Rotation(Op):
    """Cosines and sines of angles, ready for `rotate`; computed once where angles are positions.

    ``pairs = "half"`` turns the pairs (i, i + R/2), ``"neighbours"`` the pairs (2i, 2i + 1).

    Shape: f32 [T, R/2] -> f32 [T, R/2].   Gradient: smooth.
    Source: Su et al. 2021, section 3.4.
    """

    angle: Operand
    pairs: str = "half"

    def type(self) -> TensorType:
        """One turn per token and pair."""
        angle = tensor(self.angle, "angle")
        if self.pairs not in LAYOUTS:
            raise Fault(
                "static-value",
                f"`pairs` must be one of {', '.join(LAYOUTS)}, found `{self.pairs}`",
                "pairs",
            )
        if len(angle.axes) < 2:
            raise Fault("operand-shape", f"`rotation` needs [T, pairs], found {angle}", "angle")
        return angle.with_dtype("f32")

    def annotation(self) -> str:
        """A pair of tables, or complex turns."""
        return "Rotation" if self.pairs == "half" else "Tensor"

    def cost(self) -> Cost:
        """A sine and a cosine."""
        return Cost(tensor(self.angle, "angle").size * 2)

    def torch(self, code: Code) -> str:
        """The table of the layout."""
        name = "rotation_half" if self.pairs == "half" else "rotation_neighbours"
        return f"{code.use(name)}({code['angle']})"


@op("rotate")
class Rotate(Op):
    """Channel pairs turned by a `rotation`; channels beyond the turned ones pass unchanged.

    Shape: [T, *, over], f32 [T, R/2] -> [T, *, over].   Gradient: smooth.
    """

    x: Operand
    rotation: Operand
    over: AxisRef
    pairs: str = "half"

    def type(self) -> TensorType:
        """The operand's type."""
        x, rotation = tensor(self.x, "x"), tensor(self.rotation, "rotation")
        axis = find_axis(x, self.over, "over")
        if x.axes[-1] is not axis:
            raise Fault("operand-shape", f"`{self.over}` must be the last axis of {x}", "over")
        own, turned = axis.size.number, rotation.axes[-1].size.number
        if own is not None and turned is not None and 2 * turned > own:
            raise Fault(
                "size-mismatch", f"{turned} pairs do not fit in `{axis.name}` of size {own}", "over"
            )
        if own is not None and own % 2 and turned is not None and 2 * turned > own - 1:
            raise Fault("not-divisible", f"`{axis.name}` of size {own} has no pairs", "over")
        return x

    def cost(self) -> Cost:
        """Three FLOPs per channel."""
        return Cost(tensor(self.x, "x").size * 3)

    def torch(self, code: Code) -> str:
        """A call of the layout's rotation."""
        name = "rotate_half" if self.pairs == "half" else "rotate_neighbours"
        return f"{code.use(name)}({code['x']}, {code['rotation']})"
