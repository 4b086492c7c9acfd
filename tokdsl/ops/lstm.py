"""Recurrences that are not linear in what they keep, which no scan over pairs computes."""

from __future__ import annotations

from tokdsl.ops.axes import (
    arrange,
    free_name,
    is_token,
    names,
    need_float,
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
    Init,
    NewAxis,
    Op,
    Operand,
    ParameterSpec,
    StateSpec,
    find_axis,
    op,
    tensor,
)
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import PAST, Flow


@op("lstm")
class Lstm(Op):
    """One layer of long short-term memory along tokens, from zeros.

    ``c[t] = f * c[t - 1] + i * g`` and ``h[t] = o * tanh(c[t])``, where ``i``, ``f``, ``o``
    (sigmoid) and ``g`` (tanh) are linear in ``x[t]`` and ``h[t - 1]``. It owns ``weight_ih`` and
    ``weight_hh`` with the gates i, f, g, o one after the other and, with ``bias``, ``bias_ih`` and
    ``bias_hh``, as published files have them. Padding leaves ``h`` and ``c`` as they are; a
    document begins from zeros.

    Args:
        channels: name and size of the result's channels, by default those of ``x``.
        over: the channel axis, by default the last one.

    Shape: [T, over] -> [T, channels].   Gradient: smooth.
    Source: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000, section 3.
    """

    x: Operand
    channels: NewAxis | None = None
    over: AxisRef | None = None
    bias: bool = True
    init: Init | None = None
    valid: Companion | None = None
    starts: Companion | None = None

    def inputs(self) -> Axis:
        """Return the channel axis.

        Raises:
            Fault: if it does not exist or holds tokens.
        """
        x = need_float(self.x, "x", "lstm")
        if self.over is None and not x.axes:
            raise Fault("operand-shape", f"`lstm` needs a channel axis, found {x}", "x")
        axis = find_axis(x, self.over if self.over is not None else x.axes[-1].name, "over")
        if is_token(axis) or axis.pack:
            raise Fault("operand-shape", f"`{axis.name}` holds tokens, not channels", "over")
        return axis

    def tokens(self) -> Axis:
        """Return the token axis.

        Raises:
            Fault: if there is none.
        """
        found = next((axis for axis in self.x.axes if axis.clock is not None), None)
        if found is None:
            raise Fault("operand-shape", f"`lstm` needs a token axis, found {self.x}", "x")
        return found

    def outputs(self) -> Axis:
        """Return the channel axis of the result."""
        inputs = self.inputs()
        if self.channels is None:
            return inputs
        return free_name(tensor(self.x, "x"), self.channels, without=(inputs.name,))

    def type(self) -> TensorType:
        """Return the operand's type with the channels replaced."""
        x, inputs = tensor(self.x, "x"), self.inputs()
        if {axis.name for axis in x.axes} != {inputs.name, self.tokens().name} or not x.batched:
            raise Fault("operand-shape", f"`lstm` takes [T, channels] with a batch, found {x}", "x")
        new = self.outputs()
        return x.with_axes(tuple(new if a.name == inputs.name else a for a in x.axes))

    def flows(self) -> dict[str, list[Flow]]:
        """All positions up to the own one."""
        name = self.tokens().name
        return {"x": [Flow(name, name, PAST)]}

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Both matrices and perhaps both biases, drawn as wide as the hidden size says."""
        inputs, size = self.inputs().size, self.outputs().size
        number = size.number
        bound = f"{(number or 1) ** -0.5:.6g}"
        init = self.init or f"uniform(low=-{bound}, high={bound})"
        found = [
            ParameterSpec("weight_ih", (size * 4, inputs), init),
            ParameterSpec("weight_hh", (size * 4, size), init),
        ]
        if self.bias:
            found += [ParameterSpec(name, (size * 4,), init) for name in ("bias_ih", "bias_hh")]
        return tuple(found)

    def cost(self) -> Cost:
        """Two FLOPs per weight and token, and the gates."""
        inputs, size = self.inputs().size, self.outputs().size
        return Cost(self.type().size * (inputs + size) * 8 + self.type().size * 30)

    def state(self) -> StateSpec:
        """Hidden vector and cell of the last token."""
        return StateSpec("RecurrentState", elements=self.outputs().size * 2)

    def module(self) -> str:
        """``nn.LSTMCell``, of which only the parameters are used."""
        bias = "" if self.bias else ", bias=False"
        return f"nn.LSTMCell({self.inputs().size}, {self.outputs().size}{bias})"

    def torch(self, code: Code) -> str:
        """Return a call of the package's function on (batch, tokens, channels)."""
        x, own = tensor(self.x, "x"), self.tokens().name
        text = arrange(code["x"], names(x), ["batch", own, self.inputs().name])
        at = code.attribute
        biases = f"({at}.bias_ih, {at}.bias_hh)" if self.bias else "None"
        rest = valid_argument(code) + starts_argument(code) + state_argument(code)
        text = f"{code.use('lstm')}({text}, ({at}.weight_ih, {at}.weight_hh), {biases}{rest})"
        return arrange(text, ["batch", own, self.outputs().name], names(self.type()))
