"""Short convolutions along tokens."""

from __future__ import annotations

from dataclasses import replace

from tokdsl.ops.axes import (
    arrange,
    free_name,
    is_token,
    names,
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
from tokdsl.ops.strided import (
    PADDINGS,
    coarse_axis,
    filter_init,
    fixed_filter,
    is_ragged,
    margins,
    window,
)
from tokdsl.types.dims import Dim, combine
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import INFINITY, Flow, Interval

ONE = Dim.of(1)


@op("conv1d")
class Conv1d(Op):
    """A convolution along tokens: each reads ``kernel`` of them, its own the last if causal.

    It owns ``weight`` (outputs, inputs per group, kernel) and ``bias``. Without ``channels`` it
    keeps the channel axis and is depthwise: every channel has a filter of its own. Tokens of
    another document count as zero, like those before the first one. Given a ``filter`` with these
    three axes it owns nothing and takes channels and kernel from it.

    With ``stride`` the result has a token per ``stride`` of them, on a coarser clock: token t of a
    causal one ends with the last token of its chunk, and a last chunk that is shorter is filled up.
    With ``padding = "reflect"`` the tokens beside the ends stand in mirror order where else zeros
    do: then the first tokens read later ones.

    Args:
        channels: name and size of the output channels.
        kernel: tokens that are read.
        over: the channel axis, by default the last one.
        causal: read the own token and earlier ones; else as many before as after.
        groups: independent groups of channels.
        dilation: distance between the tokens that are read.
        stride: tokens per token of the result.
        padding: ``"zeros"`` or ``"reflect"``.

    Shape: [T, over] -> [T, channels].   Gradient: smooth.
    """

    x: Operand
    filter: Operand | None = None
    channels: NewAxis | None = None
    kernel: Dim = Dim.of(4)
    over: AxisRef | None = None
    causal: bool = True
    groups: Dim = ONE
    dilation: Dim = ONE
    stride: Dim = ONE
    padding: str = "zeros"
    bias: bool = True
    init: Init | None = None
    valid: Companion | None = None
    starts: Companion | None = None

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
        if self.padding not in PADDINGS and self.padding:
            known = " or ".join(f'"{name}"' for name in PADDINGS)
            found = f'`padding` is {known}, found "{self.padding}"'
            raise Fault("argument-type", found, "padding")
        outputs = self.outputs()
        self.margins()
        for size in (inputs.size, outputs.size):
            count, groups = size.number, self.group_count().number
            if count is not None and groups is not None and count % groups:
                raise Fault(
                    "not-divisible",
                    f"{count} channels do not fit in {groups} groups",
                    "groups",
                )
        own = self.tokens()
        new = {inputs.name: outputs, own.name: coarse_axis(own, self.stride)}
        return x.with_axes(tuple(new[a.name] for a in x.axes))

    def outputs(self) -> Axis:
        """Return the channel axis of the result."""
        inputs, made = self.inputs(), self.channels
        if self.filter is not None:
            first = self.filters()[0]
            made = NewAxis(first.name, first.size)
        if made is None:
            return inputs
        return free_name(tensor(self.x, "x"), made, without=(inputs.name,))

    def filters(self) -> tuple[Axis, Axis, Axis]:
        """Return the axes of the filter that is given: outputs, inputs per group, kernel."""
        assert self.filter is not None
        inputs = combine("/", self.inputs().size, self.groups)
        return fixed_filter(self.filter, self.op_name, inputs)

    def taps(self) -> Dim:
        """Return how many tokens are read."""
        return self.kernel if self.filter is None else self.filters()[2].size

    def margins(self) -> tuple[int, int] | None:
        """Return how many tokens are read before and after those of a chunk, if that is known."""
        return margins(self.taps(), self.dilation, self.stride, self.causal)

    def group_count(self) -> Dim:
        """Return the number of groups: without ``channels`` one per channel."""
        depthwise = self.channels is None and self.filter is None
        return self.inputs().size if depthwise else self.groups

    def flows(self) -> dict[str, list[Flow]]:
        """The tokens under the kernel."""
        name, stride = self.tokens().name, self.stride.number
        return {"x": [Flow(name, name, self.interval(), factor=stride or 1)]}

    def isolates(self) -> bool:
        """Zeros stand for other documents; what is mirrored at the ends is taken from the row."""
        return super().isolates() and self.padding != "reflect"

    def repair(self) -> str:
        """How to read no later token."""
        if self.causal and self.padding == "reflect":
            return 'put zeros before the first token: `padding = "zeros"`'
        if self.causal and self.stride != ONE:
            return "read only chunks that are complete: `shift(x; by = 1)` of the result"
        return "read the own token and earlier ones only: `causal = true`"

    def interval(self) -> Interval:
        """Return the offsets that are read."""
        found, stride = self.margins(), self.stride.number
        if found is None or stride is None:
            later = INFINITY if not self.causal or self.padding == "reflect" else 0
            return Interval(-INFINITY, later, exact=False)
        return window(*found, stride, self.padding == "reflect")

    def reach(self) -> Dim:
        """Return how many earlier tokens a causal kernel reads."""
        return (self.taps() - 1) * self.dilation

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """The filters and perhaps a bias, unless filters are given."""
        if self.filter is not None:
            return ()
        inputs = combine("/", self.inputs().size, self.group_count())
        shape = (self.outputs().size, inputs, self.kernel)
        weight = ParameterSpec("weight", shape, self.init or filter_init(inputs))
        if not self.bias:
            return (weight,)
        return (weight, ParameterSpec("bias", (self.outputs().size,), "zeros()"))

    def cost(self) -> Cost:
        """Two FLOPs per weight and token."""
        inputs = combine("/", self.inputs().size, self.group_count())
        return Cost(self.type().size * inputs * self.taps() * 2)

    def state(self) -> StateSpec | None:
        """The tokens that the next ones still read."""
        if not self.causal or self.padding == "reflect" or self.taps() == self.stride == ONE:
            return None
        if self.stride != ONE and is_ragged(self.tokens()):
            return None
        if self.stride != ONE:
            kept = (self.reach() + 1 - self.stride, self.stride)
            return StateSpec("StrideState", kept, elements=self.reach() * self.inputs().size)
        sizes = (self.reach(), self.inputs().size)
        return StateSpec("ConvolutionState", sizes[:1], elements=sizes[0] * sizes[1])

    def module(self) -> str | None:
        """``nn.Conv1d``, of which only the parameters are used."""
        if self.filter is not None:
            return None
        sizes = [self.inputs().size, self.outputs().size, self.kernel]
        options = [f"groups={self.group_count()}"] if self.group_count() != ONE else []
        options += [] if self.bias else ["bias=False"]
        return f"nn.Conv1d({', '.join([*map(str, sizes), *options])})"

    def torch(self, code: Code) -> str:
        """Return a call of the package's function on (batch, tokens, channels)."""
        x, result = tensor(self.x, "x"), self.type()
        tokens = self.tokens().name
        want = ["batch", tokens, self.inputs().name]
        weight, bias = f"{code.attribute}.weight", f"{code.attribute}.bias"
        if self.filter is not None:
            weight, bias = code["filter"], "None"
        arguments = [arrange(code["x"], names(x), want), weight, bias if self.bias else "None"]
        if self.group_count() != ONE:
            arguments.append(f"groups={code.size(self.group_count())}")
        if self.dilation != ONE:
            arguments.append(f"dilation={code.size(self.dilation)}")
        function = "causal_convolution" if self.causal else "centred_convolution"
        if self.stride != ONE or self.padding == "reflect":
            function = "strided_convolution"
            arguments += self.strided(code)
        rest = valid_argument(code) + starts_argument(code)
        rest += state_argument(code) if self.state() is not None else ""
        text = f"{code.use(function)}({', '.join(arguments)}{rest})"
        return arrange(text, ["batch", tokens, self.outputs().name], names(replace(result)))

    def strided(self, code: Code) -> list[str]:
        """Return the arguments of the general form."""
        before, after = self.margins() or (0, 0)
        found = [f"stride={code.size(self.stride)}"] if self.stride != ONE else []
        found += [f"before={before}", *([f"after={after}"] if after else [])]
        return [*found, "reflect=True"] if self.padding == "reflect" else found
