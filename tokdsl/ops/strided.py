"""Convolutions between clocks: what strided ones share, and the way back to a finer clock."""

from __future__ import annotations

from fractions import Fraction

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
from tokdsl.ops.clock import coarser, tokens_of
from tokdsl.ops.precedence import primary
from tokdsl.types.dims import Dim, combine
from tokdsl.types.tensors import Axis, Clock, TensorType, ValueType
from tokdsl.types.time import INFINITY, Flow, Interval

ONE = Dim.of(1)

#: what stands before the first token and after the last one
PADDINGS = ("zeros", "reflect")


def coarse_axis(axis: Axis, stride: Dim) -> Axis:
    """Return the token axis with one token per ``stride`` of them.

    Raises:
        Fault: if the stride is not positive.
    """
    number = stride.number
    if number is not None and number < 1:
        raise Fault("argument-type", f"`stride` must be positive, found {number}", "stride")
    if stride == ONE or axis.clock is None:
        return axis
    clock = coarser(axis.clock, stride)
    return Axis(axis.name, clock.length, clock)


def finer(clock: Clock, stride: Dim) -> Clock:
    """Return the clock with ``stride`` ticks per tick of another."""
    number = stride.number
    share = Dim.of(Fraction(1, number)) if number else combine("/", ONE, stride)
    return Clock(f"{clock.name}_times_{stride}", clock, share, clock.ordered)


def fixed_filter(
    kind: ValueType, operation: str, inputs: Dim, at: int = 1
) -> tuple[Axis, Axis, Axis]:
    """Return the axes of a filter that is given as a tensor.

    Args:
        kind: its type.
        operation: what it is given to.
        inputs: size that the axis number ``at`` must have.
        at: which of the first two axes holds the input channels.

    Raises:
        Fault: if it has another shape.
    """
    found = need_float(kind, "filter", operation)
    if found.batched or len(found.axes) != 3 or any(is_token(a) for a in found.axes):
        order = "[outputs, inputs, taps]" if at else "[inputs, outputs, taps]"
        raise Fault("operand-shape", f"`filter` must be {order} without a batch", "filter")
    if found.axes[at].size != inputs:
        raise Fault(
            "size-mismatch",
            f"`filter` takes {found.axes[at].size} input channels, `x` has {inputs}",
            "filter",
        )
    return found.axes[0], found.axes[1], found.axes[2]


def is_ragged(axis: Axis) -> bool:
    """Whether a token axis comes from chunks whose lengths differ: rows then step on their own."""
    clock = axis.clock
    while clock is not None and not clock.cut:
        clock = clock.parent
    return clock is not None


def filter_init(inputs: Dim) -> str:
    """Return how filters are drawn: by the number of all that one result reads."""
    number = inputs.number or 1
    return "fan_in_uniform()" if number == 1 else f"fan_in_uniform(scale={number**-0.5:.6g})"


def margins(kernel: Dim, dilation: Dim, stride: Dim, causal: bool) -> tuple[int, int] | None:
    """Return how many tokens are read before and after those of a chunk, if sizes are known.

    Raises:
        Fault: if the kernel is shorter than the stride, so that tokens would be skipped.
    """
    taps, step, every = kernel.number, dilation.number, stride.number
    if taps is None or step is None or every is None:
        return None
    total = (taps - 1) * step + 1 - every
    if total < 0:
        raise Fault(
            "argument-type",
            f"a kernel over {total + every} tokens skips tokens at a stride of {every}",
            "kernel",
        )
    if causal:
        return total, 0
    after = total // 2 if every > 1 else (taps - 1 - taps // 2) * step
    return total - after, after


def window(before: int, after: int, stride: int, reflect: bool) -> Interval:
    """Return the offsets that a token reads, counted from the ends of its chunk.

    The flow of a change of clock adds the chunk itself: ``lo`` is counted from its first token,
    ``hi`` from its last one.
    """
    if not reflect:
        return Interval(-before, after)
    # a place `p` before the first token is token `p`; one after the last one mirrors likewise
    last = stride - 1
    return Interval(min(-before, -after - last), max(after, before - last))


@op("conv_transpose1d")
class ConvTranspose1d(Op):
    """A transposed convolution along tokens: each gives ``stride`` tokens of a finer clock.

    The way back from ``conv1d`` with the same stride: every token adds ``kernel`` tokens, of which
    ``stride`` are its own. If causal the others come after these, else half of them before; what
    stands outside of the sequence is cut off. The result lives on the clock of ``like``, whose
    length it takes, or without it on a new clock with ``stride`` tokens per token.

    It owns ``weight`` (inputs, outputs per group, kernel) and ``bias``, or takes a ``filter`` with
    these three axes.

    Args:
        channels: name and size of the output channels.
        kernel: tokens of the result to which a token adds.
        stride: tokens of the result per token.
        over: the channel axis, by default the last one.
        causal: a token adds to its own and later tokens only.
        groups: independent groups of channels.

    Shape: [coarse T, over] -> [T, channels].   Gradient: smooth, none in ``like``.
    Source: Zeiler et al. 2010, section 2 (there: deconvolution).
    """

    x: Operand
    filter: Operand | None = None
    like: Operand | None = None
    channels: NewAxis | None = None
    kernel: Dim = Dim.of(4)
    stride: Dim = Dim.of(2)
    over: AxisRef | None = None
    causal: bool = True
    groups: Dim = ONE
    bias: bool = True
    init: Init | None = None
    valid: Companion | None = None
    starts: Companion | None = None

    def inputs(self) -> Axis:
        """Return the channel axis.

        Raises:
            Fault: if it does not exist or holds tokens.
        """
        x = need_float(self.x, "x", self.op_name)
        if self.over is None and not x.axes:
            raise Fault("operand-shape", f"`{self.op_name}` needs a channel axis, found {x}", "x")
        axis = find_axis(x, self.over if self.over is not None else x.axes[-1].name, "over")
        if is_token(axis) or axis.pack:
            raise Fault("operand-shape", f"`{axis.name}` holds tokens, not channels", "over")
        return axis

    def tokens(self) -> Axis:
        """Return the token axis of the operand."""
        return tokens_of(tensor(self.x, "x"), None, self.op_name, "x")

    def filters(self) -> tuple[Axis, Axis, Axis]:
        """Return the axes of the filter that is given: inputs, outputs per group, kernel."""
        assert self.filter is not None
        return fixed_filter(self.filter, self.op_name, self.inputs().size, at=0)

    def taps(self) -> Dim:
        """Return to how many tokens a token adds."""
        return self.kernel if self.filter is None else self.filters()[2].size

    def outputs(self) -> Axis:
        """Return the channel axis of the result: by default as many channels as before."""
        inputs = self.inputs()
        made = self.channels
        if self.filter is not None:
            second = self.filters()[1]
            made = NewAxis(second.name, second.size * self.groups)
        if made is None:
            return inputs
        return free_name(tensor(self.x, "x"), made, without=(inputs.name,))

    def fine(self) -> Axis:
        """Return the token axis of the result.

        Raises:
            Fault: if ``like`` is not ``stride`` times as fine.
        """
        own = self.tokens()
        assert own.clock is not None
        if self.like is None:
            clock = finer(own.clock, self.stride)
            return Axis(own.name, clock.length, clock)
        fine = tokens_of(tensor(self.like, "like"), None, self.op_name, "like")
        total, at = ONE, own.clock
        while at != fine.clock and at.parent is not None and at.stride is not None:
            total, at = total * at.stride, at.parent
        known = self.stride.is_number  # else decided where the definition is used
        if known and (at != fine.clock or total != self.stride):
            assert fine.clock is not None
            raise Fault(
                "clock-mismatch",
                f"`x` lives on clock `{own.clock.name}`, which does not have one token per "
                f"{self.stride} of `{fine.clock.name}`, the clock of `like`",
                "like",
            )
        return fine

    def type(self) -> TensorType:
        """Return the operand's type on the finer clock with the channels replaced."""
        x, inputs, own = tensor(self.x, "x"), self.inputs(), self.tokens()
        if {axis.name for axis in x.axes} != {inputs.name, own.name} or not x.batched:
            raise Fault(
                "operand-shape",
                f"`{self.op_name}` takes [T, channels] with a batch, found {x}",
                "x",
            )
        number = self.stride.number
        if number is not None and number < 2:
            raise Fault("argument-type", f"`stride` must be 2 or more, found {number}", "stride")
        self.margins()
        new = {inputs.name: self.outputs(), own.name: self.fine()}
        return x.with_axes(tuple(new[axis.name] for axis in x.axes))

    def margins(self) -> tuple[int, int] | None:
        """Return how many tokens of the whole result are cut off on the left and on the right."""
        found = margins(self.taps(), ONE, self.stride, self.causal)
        return found[::-1] if found is not None and self.causal else found

    def flows(self) -> dict[str, list[Flow]]:
        """A token reads those whose filters reach it; ``like`` gives the length only."""
        own, target, stride = self.tokens(), self.fine(), self.stride.number
        cut, taps = self.margins(), self.taps().number
        if stride is None or cut is None or taps is None:
            anywhere = Interval(-INFINITY, 0 if self.causal else INFINITY, exact=False)
            return {"x": [Flow(own.name, target.name, anywhere)]}
        before, places = cut[0], range(stride)
        later = max((place + before) // stride - place / stride for place in places)
        earlier = min(-((taps - 1 - before - place) // stride) - place / stride for place in places)
        reads = Interval(earlier + (stride - 1) / stride, later)
        return {"x": [Flow(own.name, target.name, reads, factor=-stride)]}

    def repair(self) -> str:
        """How to read no later token."""
        return "let a token add to its own and later tokens only: `causal = true`"

    def gradient(self) -> dict[str, bool]:
        """Smooth in the tokens and the filter."""
        return {name: name in ("x", "filter") for name, _ in self.operand_types()}

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """The filters and perhaps a bias, unless the filters are given."""
        if self.filter is not None:
            return ()
        outputs = combine("/", self.outputs().size, self.groups)
        shape = (self.inputs().size, outputs, self.kernel)
        weight = ParameterSpec("weight", shape, self.init or filter_init(self.inputs().size))
        if not self.bias:
            return (weight,)
        return (weight, ParameterSpec("bias", (self.outputs().size,), "zeros()"))

    def cost(self) -> Cost:
        """Two FLOPs per weight and token of the operand."""
        outputs = combine("/", self.outputs().size, self.groups)
        return Cost(tensor(self.x, "x").size * outputs * self.taps() * 2)

    def state(self) -> StateSpec | None:
        """What the last tokens add to those that come."""
        if not self.causal or self.like is not None or is_ragged(self.tokens()):
            return None
        sizes = (self.taps() - self.stride, self.outputs().size)
        return StateSpec("OverlapState", sizes[:1], elements=sizes[0] * sizes[1])

    def module(self) -> str | None:
        """``nn.ConvTranspose1d``, of which only the parameters are used."""
        if self.filter is not None:
            return None
        sizes = [self.inputs().size, self.outputs().size, self.kernel]
        options = [f"groups={self.groups}"] if self.groups != ONE else []
        options += [] if self.bias else ["bias=False"]
        return f"nn.ConvTranspose1d({', '.join([*map(str, sizes), *options])})"

    def torch(self, code: Code) -> str:
        """Return a call of the package's function on (batch, tokens, channels)."""
        x, result = tensor(self.x, "x"), self.type()
        want = ["batch", self.tokens().name, self.inputs().name]
        arguments = [arrange(code["x"], names(x), want)]
        if self.filter is not None:
            arguments += [code["filter"], "None"]
        else:
            arguments.append(f"{code.attribute}.weight")
            arguments.append(f"{code.attribute}.bias" if self.bias else "None")
        before, _ = self.margins() or (0, 0)
        arguments.append(f"stride={code.size(self.stride)}")
        arguments += [f"before={before}"] if before else []
        if self.groups != ONE:
            arguments.append(f"groups={code.size(self.groups)}")
        if self.like is not None:
            fine = self.fine().name
            like = primary(code["like"])
            arguments.append(f"length={like}.shape[{code.dim('like', fine)}]")
        rest = valid_argument(code) + starts_argument(code)
        rest += state_argument(code) if self.state() is not None else ""
        text = f"{code.use('transposed_convolution')}({', '.join(arguments)}{rest})"
        have = ["batch", self.fine().name, self.outputs().name]
        return arrange(text, have, names(result))
