"""What changes in training without a gradient: buffers that are given new values."""

from __future__ import annotations

from tokdsl.ops.base import Code, Fault, Op, Operand, op, tensor
from tokdsl.types.tensors import TensorType


@op("update")
class Update(Op):
    """In training a buffer takes a new value; the result is what the buffer then holds.

    Outside of training nothing changes and the result is what it holds already. It happens where
    the result is needed: for an ``aux`` value when such values are collected. What is read from
    the buffer itself must be computed before.

    Shape: [*a], [*a] -> [*a], without batch.   Gradient: none.
    """

    buffer: Operand
    value: Operand

    def type(self) -> TensorType:
        """Return the buffer's type.

        Raises:
            Fault: if the value has other axes or differs by example.
        """
        buffer, value = tensor(self.buffer, "buffer"), tensor(self.value, "value")
        if buffer.batched:
            raise Fault("operand-shape", f"`update` changes a buffer, found {buffer}", "buffer")
        if value.batched or [(a.name, a.size) for a in value.axes] != [
            (a.name, a.size) for a in buffer.axes
        ]:
            raise Fault(
                "operand-shape",
                f"the buffer is {buffer}, its new value {value}"
                + (" differs by example" if value.batched else ""),
                "value",
                help="reduce it over the batch: `over = *`" if value.batched else None,
            )
        return buffer

    def gradient(self) -> dict[str, bool]:
        """None: what a buffer holds is no part of the graph."""
        return {"buffer": False, "value": False}

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        return f"{code.use('update_buffer')}({code['buffer']}, {code['value']}, self.training)"
