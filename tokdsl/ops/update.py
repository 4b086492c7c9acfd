"""What changes in training without a gradient: buffers that are given new values."""

from __future__ import annotations

from tokdsl.ops.base import Code, Fault, Op, Operand, op, tensor
from tokdsl.types.tensors import TensorType


@op("update")
class Update(Op):
    """In training a buffer takes a new value; the result is what the buffer then holds.

    Outside of training nothing changes and the result is what it holds already. It happens where
    the result is needed: for an ``aux`` value when such values are collected. What is read from
    the buffer itself must be computed before. Where activations are computed a second time, for a
    gradient, nothing changes again.

    What belongs to a step of the optimiser and not to one pass waits for ``Model.end_step()``,
    which a training loop calls after each step: with ``at = "step"`` the buffer takes its value
    only then, the last one if there were several passes; with ``until = "step"`` it takes it at
    once and gets back then what it held before.

    Args:
        at: ``"pass"`` or ``"step"``: when the buffer takes the value.
        until: ``"step"`` if the value is for this step alone.

    Shape: [*a], [*a] -> [*a], without batch.   Gradient: none.
    """

    buffer: Operand
    value: Operand
    at: str = "pass"
    until: str = ""

    def type(self) -> TensorType:
        """Return the buffer's type.

        Raises:
            Fault: if the value has other axes or differs by example.
        """
        if (self.at, self.until) not in (("pass", ""), ("step", ""), ("pass", "step")):
            text = '`update` takes `at = "step"` or `until = "step"`'
            raise Fault("argument-type", text, "at" if self.at != "pass" else "until")
        buffer, value = tensor(self.buffer, "buffer"), tensor(self.value, "value")
        # whether an operand is a buffer is not known while a definition is checked for all sizes
        is_known = all(a.size.is_number for a in buffer.axes)
        if buffer.batched and is_known:
            raise Fault("operand-shape", f"`update` changes a buffer, found {buffer}", "buffer")
        if (value.batched and is_known) or [(a.name, a.size) for a in value.axes] != [
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
        function = "update_buffer"
        if self.at == "step":
            function = "update_at_step"
        elif self.until == "step":
            function = "update_until_step"
        return f"{code.use(function)}({code['buffer']}, {code['value']}, self.training)"


@op("across_ranks")
class AcrossRanks(Op):
    """The sum of a statistic over all processes that are training together.

    Outside of training, and where `torch.distributed` is not initialised, it is the value itself.
    All processes must come to it equally often.

    Shape: [*a] -> [*a], without batch.   Gradient: none.
    """

    x: Operand

    def type(self) -> TensorType:
        """Return the operand's type.

        Raises:
            Fault: if it differs by example.
        """
        x = tensor(self.x, "x")
        if x.batched or any(a.clock is not None for a in x.axes):
            raise Fault(
                "operand-shape",
                f"`across_ranks` sums statistics of a batch, found {x}",
                "x",
                help="reduce it over the batch first: `over = *`",
            )
        if x.dtype == "bool":
            raise Fault("operand-kind", f"`across_ranks` needs numbers, found {x}", "x")
        return x

    def gradient(self) -> dict[str, bool]:
        """None: each process has the gradient of its own tokens."""
        return {"x": False}

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        return f"{code.use('across_ranks')}({code['x']}, self.training)"
