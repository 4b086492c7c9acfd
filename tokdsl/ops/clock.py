"""Operations that change the resolution of a stream: chunks of tokens and back."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from tokdsl.ops.axes import state_argument, valid_argument
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
from tokdsl.ops.chunks import (
    chunks_of,
    clock_of,
    coarse_axis,
    extent,
    fine_axis,
    open_chunk,
    own_number,
    reduced,
    reduction,
)
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, ChunksType, Clock, TensorType
from tokdsl.types.time import INFINITY, POINTWISE, Crossing, Flow, Interval

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
    """One token per chunk: of ``stride`` tokens, or of those that `chunks` found.

    Chunks of a fixed number of tokens are counted from the first token, padding apart; the last
    one may be shorter. ``how`` is ``mean``, ``max``, ``sum``, ``first`` or ``last``: what a
    chunk's token is made of.

    Shape: [T, *] -> [T on a coarser clock, *], or [T, *], chunks[T, C] -> [C, *].
    Gradient: smooth.
    """

    hidden: ClassVar[tuple[str, ...]] = ("waits",)

    x: Operand
    chunks: Operand | None = None
    stride: Dim = Dim.of(0)
    over: AxisRef | None = None
    how: str = "mean"
    waits: bool = False
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
        if self.chunks is not None:
            return reduced(kind, chunks_of(self.chunks, "pool"), "pool")
        stride = self.stride.number
        if stride is not None and stride < 2:
            raise Fault(
                "argument-type",
                f"`stride` must be 2 or more, found {stride}",
                "stride",
                help="or pool chunks: `pool(x, chunks(opens = ...))`",
            )
        if not kind.is_float or not kind.batched:
            raise Fault("operand-kind", f"`pool` needs a stream of floats, found {kind}", "x")
        assert own.clock is not None
        clock = coarser(own.clock, self.stride)
        coarse = Axis(own.name, clock.length, clock)
        return kind.with_axes(tuple(coarse if a is own else a for a in kind.axes))

    def flows(self) -> dict[str, list[Flow]]:
        """A chunk is made of its own tokens."""
        if self.chunks is not None:
            return self._ragged_flows()
        own, stride = self.axis().name, self.stride.number
        reads = KINDS.get(self.how, "whole")
        flows = super().flows().get("x", [])
        if stride is None:
            anywhere = Interval(-INFINITY, INFINITY, exact=False)
            return {"x": [replace(f, interval=anywhere) if f.source == own else f for f in flows]}
        return {
            "x": [replace(f, factor=stride, reads=reads) if f.source == own else f for f in flows]
        }

    def isolates(self) -> bool:
        """Chunks end with their document."""
        return self.chunks is not None

    def _ragged_flows(self) -> dict[str, list[Flow]]:
        x, chunks = tensor(self.x, "x"), chunks_of(self.chunks, "pool")
        own, coarse = fine_axis(x, chunks, "pool").name, chunks.coarse.name
        whole = self.how != "first"
        kept = [f for f in super().flows().get("x", []) if f.source != own]
        return {
            "x": [Flow(own, coarse, crossing=reduction(chunks, whole)), *kept],
            "chunks": [Flow(chunks.fine.name, coarse, crossing=extent(chunks, whole))],
        }

    def repair(self) -> str:
        """How to read no later token."""
        return "read only chunks that are complete: `upsample(..., lag = 1)`"

    def wants_valid(self) -> list[Axis]:
        """Chunks know the padding themselves."""
        return [] if self.chunks is not None else super().wants_valid()

    def state(self) -> StateSpec | None:
        """The tokens of the open chunk, unless its first token is handed on at once."""
        if self.chunks is None or (self.how == "first" and not self.waits):
            return None
        return open_chunk(tensor(self.x, "x"), chunks_of(self.chunks, "pool"), "pool")

    def gradient(self) -> dict[str, bool]:
        """Smooth."""
        return {name: name == "x" for name, _ in self.operand_types()}

    def cost(self) -> Cost:
        """One FLOP per entry."""
        return Cost(tensor(self.x, "x").size)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        if self.chunks is not None:
            fine = fine_axis(tensor(self.x, "x"), chunks_of(self.chunks, "pool"), "pool")
            options = f'dim={code.dim("x", fine.name)}, how="{self.how}"{state_argument(code)}'
            return f"{code.use('pool_chunks')}({code['x']}, {code['chunks']}, {options})"
        dim = code.dim("x", self.axis().name)
        options = f'dim={dim}, how="{self.how}"{valid_argument(code)}'
        return f"{code.use('pool_tokens')}({code['x']}, {code.size(self.stride)}, {options})"


@op("upsample")
class Upsample(Op):
    """Each token reads the coarse token of its chunk, or of one ``lag`` chunks before.

    The chunks are those of a fixed number of tokens of ``like``, or `chunks`. A chunk is complete
    only with its last token, so that a model that must be causal reads the chunk before
    (``lag = 1``) of what was pooled from whole chunks. Where boundaries are stated at the last
    token (``chunks(closes = ...)``), ``read = "closed"`` reads the newest chunk that is complete,
    the own one at its last token. Where there is no such chunk the result is ``start``, or 0.

    Shape: [coarse T, *], [T, *] -> [T, *], or [C, *], chunks[T, C] -> [T, *].
    Gradient: smooth in ``x`` and ``start``, none in ``like``.
    """

    hidden: ClassVar[tuple[str, ...]] = ("early",)

    x: Operand
    like: Operand
    start: Operand | None = None
    lag: int = 0
    read: str = "own"
    early: bool = False
    valid: Companion | None = None

    def axes(self) -> tuple[Axis, Axis]:
        """Return the coarse and the fine token axis."""
        if isinstance(self.like, ChunksType):
            x = tensor(self.x, "x")
            return coarse_axis(x, self.like, "upsample"), self.like.fine
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
            if clock.stride is None:
                break
            total, clock = total * clock.stride, clock.parent
        if clock is None or clock != fine.clock:
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
        if self.lag < 0:
            raise Fault("argument-type", f"`lag` must not be negative, found {self.lag}", "lag")
        result = x.with_axes(tuple(fine if a is coarse else a for a in x.axes))
        if not isinstance(self.like, ChunksType):
            self.stride()
        self._check_read()
        self._check_start(result, fine)
        return result

    def _check_read(self) -> None:
        if self.read not in ("own", "closed", ""):
            raise Fault(
                "argument-type", f'`read` is "own" or "closed", found "{self.read}"', "read"
            )
        if self.read != "closed":
            return
        cut = clock_of(self.like).cut if isinstance(self.like, ChunksType) else ""
        if not isinstance(self.like, ChunksType) or cut == "opens":
            raise Fault(
                "argument-type",
                'with `read = "closed"` a chunk must state its last token: `chunks(closes = ...)`',
                "read",
                help="read the chunk before: `lag = 1`",
            )

    def _check_start(self, result: TensorType, fine: Axis) -> None:
        if self.start is None:
            return
        start = tensor(self.start, "start")
        wanted = [a for a in result.axes if a is not fine]
        if not isinstance(self.like, ChunksType):
            raise Fault("operand-kind", "`start` needs chunks", "start")
        if [(a.name, a.size) for a in start.axes] != [(a.name, a.size) for a in wanted]:
            raise Fault(
                "operand-shape",
                f"`start` must have the axes of one token of {result}, found {start}",
                "start",
            )

    def flows(self) -> dict[str, list[Flow]]:
        """A token reads one chunk; ``like`` gives the length only."""
        coarse, fine = self.axes()
        kept = [f for f in super().flows().get("x", []) if f.source != coarse.name]
        if isinstance(self.like, ChunksType):
            closed = self.read == "closed"
            crossing = Crossing(clock_of(self.like).name, "expand", closed=closed, lag=self.lag)
            known = POINTWISE if closed else own_number(self.like)
            return {
                "x": [Flow(coarse.name, fine.name, crossing=crossing), *kept],
                "like": [Flow(self.like.fine.name, fine.name, known)],
            }
        stride = self.stride().number
        if stride is None:
            anywhere = Interval(-INFINITY, INFINITY, exact=False)
            return {"x": [Flow(coarse.name, fine.name, anywhere), *kept]}
        lag = Interval(-self.lag, -self.lag)
        return {"x": [Flow(coarse.name, fine.name, lag, factor=-stride), *kept]}

    def repair(self) -> str:
        """How to read no later token."""
        return 'read the last chunk that is complete: `lag = 1`, or pool with `how = "first"`'

    def wants_valid(self) -> list[Axis]:
        """Chunks know the padding themselves."""
        return [] if isinstance(self.like, ChunksType) else super().wants_valid()

    def gradient(self) -> dict[str, bool]:
        """Smooth in the coarse stream."""
        return {name: name in ("x", "start") for name, _ in self.operand_types()}

    def isolates(self) -> bool:
        """A token reads chunks of its own document only."""
        return isinstance(self.like, ChunksType)

    def state(self) -> StateSpec | None:
        """The newest chunks, as far back as a token reads."""
        if not isinstance(self.like, ChunksType):
            return None
        x, (coarse, _) = tensor(self.x, "x"), self.axes()
        width = Dim.of(1)
        for axis in x.axes:
            width = width if axis is coarse else width * axis.size
        # of chunks that are handed on with their first token the newest one may not be closed
        kept = Dim.of(self.lag + (2 if self.early else 1))
        return StateSpec("HoldState", (kept,), elements=width * kept)

    def remembers(self) -> Axis:
        """The tokens that read chunks: their rows are those of a call."""
        return self.axes()[1]

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        coarse, fine = self.axes()
        like, dim = code["like"], code.dim("x", coarse.name)
        if isinstance(self.like, ChunksType):
            options = f"dim={dim}" + (f", lag={self.lag}" if self.lag else "")
            options += ", closed=True" if self.read == "closed" else ""
            options += f", start={code['start']}" if "start" in code.operands else ""
            function = code.use("upsample_chunks")
            return f"{function}({code['x']}, {like}, {options}{state_argument(code)})"
        length = f"{like}.shape[{code.dim('like', fine.name)}]"
        options = f"{length}, dim={dim}, lag={self.lag}{valid_argument(code)}"
        return f"{code.use('upsample_tokens')}({code['x']}, {code.size(self.stride())}, {options})"
