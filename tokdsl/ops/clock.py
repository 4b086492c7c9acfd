"""Operations that change the resolution of a stream: chunks of tokens and back."""

from __future__ import annotations

from dataclasses import replace

from tokdsl.ops.axes import valid_argument
from tokdsl.ops.base import (
    AxisRef,
    Code,
    Companion,
    Cost,
    Fault,
    Op,
    Operand,
    find_axis,
    op,
    tensor,
)
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, Clock, TensorType
from tokdsl.types.time import INFINITY, Flow, Interval

#: how the tokens of a chunk become one, and which of them it is made of
KINDS = {"mean": "whole", "max": "whole", "sum": "whole", "first": "first", "last": "last"}


def tokens_of(kind: TensorType, name: str | None, operation: str, argument: str) -> Axis:
    """Return the token axis of a stream.

    Raises:
        Fault: if there is none, or the named axis holds no tokens.
    """
    if name is not None:
        axis = find_axis(kind, name, "over")
    else:
        axis = next((a for a in kind.axes if a.clock is not None), Axis("", Dim.of(1)))
    if axis.clock is None or axis.memory:
        raise Fault(
            "operand-shape", f"`{operation}` goes along a token axis, found {kind}", argument
        )
    return axis


def coarser(clock: Clock, stride: Dim) -> Clock:
    """Return the clock with one tick per ``stride`` ticks of another."""
    return Clock(f"{clock.name}_by_{stride}", clock, stride, clock.ordered)


@op("pool")
class Pool(Op):
    """One token per chunk of ``stride`` tokens; the last chunk may be shorter.

    Chunks are counted from the first token, padding apart. ``how`` is ``mean``, ``max``, ``sum``,
    ``first`` or ``last``: what a chunk's token is made of.

    Shape: [T, *] -> [T on a coarser clock, *].   Gradient: smooth.
    """

    x: Operand
    stride: Dim
    over: AxisRef | None = None
    how: str = "mean"
    valid: Companion | None = None

    def axis(self) -> Axis:
        """Return the token axis."""
        return tokens_of(tensor(self.x, "x"), self.over, "pool", "x")

    def type(self) -> TensorType:
        """Return the operand's type on the coarser clock."""
        kind, own = tensor(self.x, "x"), self.axis()
        if self.how not in KINDS and self.how:
            known = ", ".join(f'"{name}"' for name in KINDS)
            raise Fault("argument-type", f'`how` is one of {known}, found "{self.how}"', "how")
        stride = self.stride.number
        if stride is not None and stride < 2:
            raise Fault("argument-type", f"`stride` must be 2 or more, found {stride}", "stride")
        if not kind.is_float or not kind.batched:
            raise Fault("operand-kind", f"`pool` needs a stream of floats, found {kind}", "x")
        assert own.clock is not None
        clock = coarser(own.clock, self.stride)
        coarse = Axis(own.name, clock.length, clock)
        return kind.with_axes(tuple(coarse if a is own else a for a in kind.axes))

    def flows(self) -> dict[str, list[Flow]]:
        """A chunk is made of its own tokens."""
        own, stride = self.axis().name, self.stride.number
        reads = KINDS.get(self.how, "whole")
        flows = super().flows().get("x", [])
        if stride is None:
            anywhere = Interval(-INFINITY, INFINITY, exact=False)
            return {"x": [replace(f, interval=anywhere) if f.source == own else f for f in flows]}
        return {
            "x": [replace(f, factor=stride, reads=reads) if f.source == own else f for f in flows]
        }

    def repair(self) -> str:
        """How to read no later token."""
        return "read only chunks that are complete: `upsample(..., lag = 1)`"

    def gradient(self) -> dict[str, bool]:
        """Smooth."""
        return {name: name == "x" for name, _ in self.operand_types()}

    def cost(self) -> Cost:
        """One FLOP per entry."""
        return Cost(tensor(self.x, "x").size)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        dim = code.dim("x", self.axis().name)
        options = f'dim={dim}, how="{self.how}"{valid_argument(code)}'
        return f"{code.use('pool_tokens')}({code['x']}, {code.size(self.stride)}, {options})"


@op("upsample")
class Upsample(Op):
    """Each token of ``like`` reads the coarse token of its chunk, or of one ``lag`` chunks before.

    A chunk is complete only with its last token, so that a model that must be causal reads the
    chunk before (``lag = 1``) of what was pooled from whole chunks. Where there is no such chunk
    the result is 0.

    Shape: [coarse T, *], [T, *] -> [T, *].   Gradient: smooth in ``x``, none in ``like``.
    """

    x: Operand
    like: Operand
    lag: int = 0
    valid: Companion | None = None

    def axes(self) -> tuple[Axis, Axis]:
        """Return the coarse and the fine token axis."""
        coarse = tokens_of(tensor(self.x, "x"), None, "upsample", "x")
        return coarse, tokens_of(tensor(self.like, "like"), None, "upsample", "like")

    def stride(self) -> Dim:
        """Return the fine tokens per coarse one.

        Raises:
            Fault: if the coarse clock was not made from the fine one by fixed strides.
        """
        coarse, fine = self.axes()
        total, clock = Dim.of(1), coarse.clock
        while clock is not None and clock != fine.clock:
            if clock.parent is not None and clock.stride is not None:
                total = total * clock.stride
            clock = clock.parent
        if clock is None:
            names = [axis.clock.name for axis in (coarse, fine) if axis.clock is not None]
            raise Fault(
                "clock-mismatch",
                f"`x` lives on clock `{names[0]}`, which was not made from `{names[1]}` of `like`",
                "x",
            )
        return total

    def type(self) -> TensorType:
        """Return the operand's type on the finer clock."""
        x, (coarse, fine) = tensor(self.x, "x"), self.axes()
        self.stride()
        if self.lag < 0:
            raise Fault("argument-type", f"`lag` must not be negative, found {self.lag}", "lag")
        return x.with_axes(tuple(fine if a is coarse else a for a in x.axes))

    def flows(self) -> dict[str, list[Flow]]:
        """A token reads one chunk; ``like`` gives the length only."""
        coarse, fine = self.axes()
        stride = self.stride().number
        kept = [f for f in super().flows().get("x", []) if f.source != coarse.name]
        if stride is None:
            anywhere = Interval(-INFINITY, INFINITY, exact=False)
            return {"x": [Flow(coarse.name, fine.name, anywhere), *kept]}
        lag = Interval(-self.lag, -self.lag)
        return {"x": [Flow(coarse.name, fine.name, lag, factor=-stride), *kept]}

    def repair(self) -> str:
        """How to read no later token."""
        return 'read the last chunk that is complete: `lag = 1`, or pool with `how = "first"`'

    def gradient(self) -> dict[str, bool]:
        """Smooth in the coarse stream."""
        return {name: name == "x" for name, _ in self.operand_types()}

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        coarse, fine = self.axes()
        like, dim = code["like"], code.dim("x", coarse.name)
        length = f"{like}.shape[{code.dim('like', fine.name)}]"
        options = f"{length}, dim={dim}, lag={self.lag}{valid_argument(code)}"
        return f"{code.use('upsample_tokens')}({code['x']}, {code.size(self.stride())}, {options})"
