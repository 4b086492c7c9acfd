"""What reads the other examples of the batch as values of their own."""

from __future__ import annotations

from tokdsl.ops.axes import free_name, is_token
from tokdsl.ops.base import AxisRef, Code, Fault, NewAxis, Op, Operand, op, tensor
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import TensorType

#: number of examples in the batch
EXAMPLES = Dim.of("batch")


@op("examples")
class Examples(Op):
    """The values of all examples of the batch side by side on a new axis that each example sees.

    Only reductions go over ``batch``; this gives pairs of examples, as losses that tell them apart
    need them: ``dot(q, examples(p; other); over = d)``.

    Shape: [*] -> [axis, *] without batch.   Gradient: smooth.
    """

    x: Operand
    axis: AxisRef

    def type(self) -> TensorType:
        """Return the type with the batch as its first axis."""
        kind = tensor(self.x, "x")
        if not kind.batched:
            raise Fault("operand-shape", f"`examples` needs a value per example, found {kind}", "x")
        tokens = [axis for axis in kind.axes if is_token(axis)]
        if tokens:
            raise Fault(
                "operand-shape",
                f"`examples` needs one value per example, but {kind} has tokens",
                "x",
                help=f"reduce them first: `mean(x; over = {tokens[0].name})`",
            )
        new = free_name(kind, NewAxis(self.axis, EXAMPLES))
        return TensorType((new, *kind.axes), kind.dtype, False, kind.classes)

    def torch(self, code: Code) -> str:
        """Return the operand: its batch dimension is read as the axis."""
        return code["x"]
