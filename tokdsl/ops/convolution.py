"""Short convolutions along tokens."""

from __future__ import annotations

from dataclasses import replace

from tokdsl.ops.axes import arrange, free_name, is_token, names, state_argument, valid_argument
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
from tokdsl.types.dims import Dim, combine
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import INFINITY, Flow, Interval

ONE = Dim.of(1)


@op("conv1d")
class Conv1d(Op):
    """A convolution along tokens: each reads ``kernel`` of them, its own the last if causal.

    It owns ``weight`` (outputs, inputs per group, kernel) and ``bias``. Without ``channels`` it
    keeps the channel axis and is depthwise: every channel has a filter of its own.

    Args:
        channels: name and size of the output channels.
        kernel: tokens that are read.
        over: the channel axis, by default the last one.
        causal: read the own token and earlier ones; else as many before as after.
        groups: independent groups of channels.
        dilation: distance between the tokens that are read.

    Shape: [T, over] -> [T, channels].   Gradient: smooth.
    """

    x: Operand
    channels: NewAxis | None = None
    kernel: Dim = Dim.of(4)
    over: AxisRef | None = None
    causal: bool = True
    groups: Dim = ONE
    dilation: Dim = ONE
    bias: bool = True
    init: Init | None = None
    valid: Companion | None = None

    def inputs(self) -> Axis:
        """Return the channel axis.

        Raises:
            Fault: if it does not exist or holds tokens.
        """
        x = tensor(self.x, "x")
        if self.over is None and not x.axes:
            raise Fault("operand-shape", f"`conv1d` needs a channel axis, found {x}", "x")
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
            raise Fault("operand-shape", f"`conv1d` needs a token axis, found {self.x}", "x")
        return found

    def type(self) -> TensorType:
        """Return the operand's type with the channels replaced."""
        x, inputs = tensor(self.x, "x"), self.inputs()
        if {axis.name for axis in x.axes} != {inputs.name, self.tokens().name} or not x.batched:
            raise Fault(
                "operand-shape", f"`conv1d` takes [T, channels] with a batch, found {x}", "x"
            )
        outputs = self.outputs()
        for size in (inputs.size, outputs.size):
            count, groups = size.number, self.group_count().number
            if count is not None and groups is not None and count % groups:
                raise Fault(
                    "not-divisible",
                    f"{count} channels do not fit in {groups} groups",
                    "groups",
                )
        return x.with_axes(tuple(outputs if a.name == inputs.name else a for a in x.axes))

    def outputs(self) -> Axis:
        """Return the channel axis of the result."""
        inputs = self.inputs()
        if self.channels is None:
            return inputs
        return free_name(tensor(self.x, "x"), self.channels, without=(inputs.name,))

    def group_count(self) -> Dim:
        """Return the number of groups: without ``channels`` one per channel."""
        return self.inputs().size if self.channels is None else self.groups

    def flows(self) -> dict[str, list[Flow]]:
        """The tokens under the kernel."""
        name = self.tokens().name
        return {"x": [Flow(name, name, self.interval())]}

    def repair(self) -> str:
        """How to read no later token."""
        return "read the own token and earlier ones only: `causal = true`"

    def interval(self) -> Interval:
        """Return the offsets that are read."""
        kernel, dilation = self.kernel.number, self.dilation.number
        if kernel is None or dilation is None:
            return Interval(-INFINITY, 0 if self.causal else INFINITY, exact=False)
        if self.causal:
            return Interval(-(kernel - 1) * dilation, 0)
        return Interval(-(kernel // 2) * dilation, (kernel - 1 - kernel // 2) * dilation)

    def reach(self) -> Dim:
        """Return how many earlier tokens a causal kernel reads."""
        return (self.kernel - 1) * self.dilation

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """The filters and perhaps a bias."""
        inputs = combine("/", self.inputs().size, self.group_count())
        shape = (self.outputs().size, inputs, self.kernel)
        weight = ParameterSpec("weight", shape, self.init or "fan_in_uniform()")
        if not self.bias:
            return (weight,)
        return (weight, ParameterSpec("bias", (self.outputs().size,), "zeros()"))

    def cost(self) -> Cost:
        """Two FLOPs per weight and token."""
        inputs = combine("/", self.inputs().size, self.group_count())
        return Cost(self.type().size * inputs * self.kernel * 2)

    def state(self) -> StateSpec | None:
        """The tokens that the next ones still read."""
        if not self.causal or self.kernel == ONE:
            return None
        sizes = (self.reach(), self.inputs().size)
        return StateSpec("ConvolutionState", sizes[:1], elements=sizes[0] * sizes[1])

    def module(self) -> str:
        """``nn.Conv1d``, of which only the parameters are used."""
        sizes = [self.inputs().size, self.outputs().size, self.kernel]
        options = [f"groups={self.group_count()}"] if self.group_count() != ONE else []
        options += [] if self.bias else ["bias=False"]
        return f"nn.Conv1d({', '.join([*map(str, sizes), *options])})"

    def torch(self, code: Code) -> str:
        """Return a call of the package's function on (batch, tokens, channels)."""
        x, result = tensor(self.x, "x"), self.type()
        tokens = self.tokens().name
        want = ["batch", tokens, self.inputs().name]
        arguments = [arrange(code["x"], names(x), want), f"{code.attribute}.weight"]
        arguments.append(f"{code.attribute}.bias" if self.bias else "None")
        if self.group_count() != ONE:
            arguments.append(f"groups={code.size(self.group_count())}")
        if self.dilation != ONE:
            arguments.append(f"dilation={code.size(self.dilation)}")
        function = "causal_convolution" if self.causal else "centred_convolution"
        rest = valid_argument(code) + (state_argument(code) if self.causal else "")
        text = f"{code.use(function)}({', '.join(arguments)}{rest})"
        return arrange(text, ["batch", tokens, self.outputs().name], names(replace(result)))
