"""Ragged chunks of a stream: where they are cut, and what belongs to which."""

from __future__ import annotations

from typing import ClassVar

from tokdsl.ops.axes import state_argument, valid_argument
from tokdsl.ops.base import (
    Code,
    Companion,
    Cost,
    Fault,
    NewAxis,
    Op,
    Operand,
    StateSpec,
    op,
    tensor,
)
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, ChunksType, Clock, TensorType, ValueType
from tokdsl.types.time import PAST, Crossing, Flow, Interval


def chunks_of(kind: ValueType | None, operation: str) -> ChunksType:
    """Return an operand as the chunks of a stream.

    Raises:
        Fault: if it is something else.
    """
    if isinstance(kind, ChunksType):
        return kind
    raise Fault(
        "operand-kind",
        f"`{operation}` needs chunks, found {kind}",
        "chunks",
        help="cut the stream first: `c = chunks(opens = ...)`",
    )


def clock_of(kind: ChunksType) -> Clock:
    """Return the ragged clock of chunks."""
    assert kind.coarse.clock is not None
    return kind.coarse.clock


def fine_axis(x: TensorType, chunks: ChunksType, operation: str) -> Axis:
    """Return the token axis of a stream that was cut into these chunks.

    Raises:
        Fault: if the stream lives on another clock.
    """
    return _axis_on(x, chunks.fine, operation, "is not the stream that was cut")


def coarse_axis(y: TensorType, chunks: ChunksType, operation: str) -> Axis:
    """Return the axis of chunks of a coarser stream.

    Raises:
        Fault: if the stream lives on another clock.
    """
    return _axis_on(y, chunks.coarse, operation, "is not a stream of these chunks")


def _axis_on(x: TensorType, wanted: Axis, operation: str, what: str) -> Axis:
    found = next((a for a in x.axes if a.clock is not None and a.clock == wanted.clock), None)
    if found is None or found.memory:
        clocks = [a.clock.name for a in x.axes if a.clock is not None]
        have = f"lives on `{clocks[0]}`" if clocks else "has no token axis"
        assert wanted.clock is not None
        raise Fault(
            "clock-mismatch",
            f"`{operation}`: {x} {have}, it {what} (`{wanted.clock.name}`)",
            "x",
        )
    return found


def reduced(x: TensorType, chunks: ChunksType, operation: str) -> TensorType:
    """Return the type of one value per chunk."""
    own = fine_axis(x, chunks, operation)
    return x.with_axes(tuple(chunks.coarse if a is own else a for a in x.axes))


def reduction(chunks: ChunksType, whole: bool) -> Crossing:
    """Return how a chunk reads its tokens."""
    return Crossing(clock_of(chunks).name, "reduce", whole)


def own_number(chunks: ChunksType) -> Interval:
    """Return which boundaries say in which chunk a token is: those up to it, or before it."""
    last = -1 if clock_of(chunks).cut == "closes" else 0
    return Interval(last, last)


def extent(chunks: ChunksType, whole: bool) -> Crossing:
    """Return what a chunk reads of the boundaries: those up to where its extent is known."""
    clock = clock_of(chunks)
    late = 1 if whole else 0
    # a boundary is stated at the first token of a chunk, or at the token before it
    return Crossing(clock.name, "reduce", whole, late - (clock.cut == "closes"))


@op("chunks")
class Chunks(Op):
    """The tokens of a stream cut into chunks at boundaries: a coarser, ragged clock.

    Either ``opens`` says which tokens are the first of a chunk, or ``closes`` which are the last
    one. The first token of a row or document is the first of a chunk in any case. With ``closes``
    a chunk is complete at its last token, with ``opens`` when the next one begins.

    Args:
        ratio: expected tokens per chunk, for costs; unknown if 0.
        longest: tokens in a chunk at most; 0 for no limit.

    Shape: bool [T] -> chunks[T, C].   Gradient: none.
    """

    decision: ClassVar[bool] = True
    hidden: ClassVar[tuple[str, ...]] = ("clock", "whole")

    opens: Operand | None = None
    closes: Operand | None = None
    ratio: float = 0.0
    longest: int = 0
    clock: str = "chunks"
    whole: bool = True
    valid: Companion | None = None
    starts: Companion | None = None
    batch: Companion | None = None

    def flags(self) -> tuple[str, TensorType]:
        """Return the operand that says where the boundaries are.

        Raises:
            Fault: if there is none, or both.
        """
        if (self.opens is None) == (self.closes is None):
            raise Fault(
                "missing-argument", "`chunks` takes `opens = ...` or `closes = ...`", "opens"
            )
        name = "closes" if self.opens is None else "opens"
        return name, tensor(getattr(self, name), name)

    def type(self) -> ChunksType:
        """Return the map from the stream to its chunks."""
        name, flags = self.flags()
        fine = flags.axes[0] if len(flags.axes) == 1 else None
        if fine is None or fine.clock is None or flags.dtype != "bool":
            raise Fault(
                "operand-shape", f"`{name}` must be one bool per token, found {flags}", name
            )
        if self.ratio and self.ratio < 1:
            raise Fault("argument-type", f"`ratio` must be 1 or more, found {self.ratio}", "ratio")
        if self.longest < 0:
            raise Fault(
                "argument-type", f"`longest` must not be negative, found {self.longest}", "longest"
            )
        clock = Clock(
            self.clock,
            fine.clock,
            ordered=fine.clock.ordered,
            cut=name,
            ratio=self.ratio,
            longest=self.longest,
        )
        label = "C" if fine.name != "C" else "CC"
        return ChunksType(fine, Axis(label, clock.length, clock), flags.batched)

    def flows(self) -> dict[str, list[Flow]]:
        """The number of a token's chunk counts the boundaries up to it."""
        name, _ = self.flags()
        kind = self.type()
        fine = Flow(kind.fine.name, kind.fine.name, PAST)
        return {name: [fine]}

    def gradient(self) -> dict[str, bool]:
        """A boundary is there or not."""
        return {name: False for name, _ in self.operand_types()}

    def state(self) -> StateSpec:
        """How many chunks there are, and how old the open one is."""
        return StateSpec("ChunkState", elements=Dim.of(4))

    def choice(self) -> TensorType:
        """The boundaries."""
        return self.flags()[1]

    def annotation(self) -> str:
        """A record of index maps and counts."""
        return "Chunks"

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        name, _ = self.flags()
        code.use("Chunks")
        options = "" if name == "opens" else ", closes=True"
        options += "" if self.whole else ", whole=False"
        options += f", longest={self.longest}" if self.longest else ""
        options += f", batch={code['batch']}" if "batch" in code.operands else ""
        if "starts" in code.operands:
            options += f", starts={code['starts']}"
        options += f", decision={code.decision}" if code.decision else ""
        options += valid_argument(code) + state_argument(code)
        return f"{code.use('cut_chunks')}({code[name]}{options})"


class _Record(Op):
    """Base of what chunks say of the tokens of their stream."""

    chunks: Operand

    def flows(self) -> dict[str, list[Flow]]:
        """A chunk that is cut after its last token is known one token earlier."""
        kind = chunks_of(self.chunks, self.op_name)
        return {"chunks": [Flow(kind.fine.name, kind.fine.name, own_number(kind))]}

    def isolates(self) -> bool:
        """Numbers and places mean the own document's chunks."""
        return True

    def torch(self, code: Code) -> str:
        """Return the field of the record."""
        return f"{code['chunks']}.{FIELDS[self.op_name]}"


@op("segment")
class Segment(_Record):
    """The number of each token's chunk, counted from 0 in every document.

    Shape: chunks[T, C] -> i64[T].
    """

    def type(self) -> TensorType:
        """One number per token."""
        kind = chunks_of(self.chunks, self.op_name)
        return TensorType((kind.fine,), "i64", kind.batched)


@op("place")
class Place(_Record):
    """The place of each token in its chunk, counted from 0.

    Shape: chunks[T, C] -> i64[T].
    """

    def type(self) -> TensorType:
        """One number per token."""
        kind = chunks_of(self.chunks, self.op_name)
        return TensorType((kind.fine,), "i64", kind.batched)


#: what each of these is called in emitted code
FIELDS = {"segment": "segment", "place": "place"}


def seats(chunks: ChunksType, axis: NewAxis | None) -> Axis:
    """Return the axis of the places in a chunk: as long as the longest chunk at hand."""
    clock = clock_of(chunks)
    size = Dim.of(clock.longest) if clock.longest else Dim.of(f"L_{clock.name}")
    return Axis(axis.name if axis is not None else "place", size, at_most=True)


@op("members")
class Members(Op):
    """The tokens of each chunk in order, with zeros behind the last (`inside` says which).

    Shape: [T, *], chunks[T, C] -> [C, place, *].   Gradient: smooth in ``x``.
    """

    x: Operand
    chunks: Operand

    def type(self) -> TensorType:
        """Return the operand's type with the token axis split in two."""
        x, chunks = tensor(self.x, "x"), chunks_of(self.chunks, self.op_name)
        own = fine_axis(x, chunks, self.op_name)
        at = x.axes.index(own)
        split = (chunks.coarse, seats(chunks, None))
        return x.with_axes((*x.axes[:at], *split, *x.axes[at + 1 :]))

    def flows(self) -> dict[str, list[Flow]]:
        """A chunk is made of all its tokens."""
        x, chunks = tensor(self.x, "x"), chunks_of(self.chunks, self.op_name)
        own = fine_axis(x, chunks, self.op_name)
        kept = [f for f in super().flows().get("x", []) if f.source != own.name]
        coarse = chunks.coarse.name
        return {
            "x": [Flow(own.name, coarse, crossing=reduction(chunks, True)), *kept],
            "chunks": [Flow(chunks.fine.name, coarse, crossing=extent(chunks, True))],
        }

    def repair(self) -> str:
        """How to read no later token."""
        return "read only chunks that are closed: `upsample(..., lag = 1)`"

    def gradient(self) -> dict[str, bool]:
        """Smooth in the stream."""
        return {name: name == "x" for name, _ in self.operand_types()}

    def isolates(self) -> bool:
        """Chunks end with their document."""
        return True

    def state(self) -> StateSpec:
        """The tokens of the open chunk."""
        x, chunks = tensor(self.x, "x"), chunks_of(self.chunks, self.op_name)
        return open_chunk(x, chunks, self.op_name)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        x, chunks = tensor(self.x, "x"), chunks_of(self.chunks, self.op_name)
        dim = code.dim("x", fine_axis(x, chunks, self.op_name).name)
        options = f"dim={dim}{state_argument(code)}"
        return f"{code.use('chunk_members')}({code['x']}, {code['chunks']}, {options})"


def open_chunk(x: TensorType, chunks: ChunksType, operation: str) -> StateSpec:
    """Return the state that keeps the tokens of the open chunk."""
    own, clock = fine_axis(x, chunks, operation), clock_of(chunks)
    width = Dim.of(1)
    for axis in x.axes:
        width = width if axis is own else width * axis.size
    tokens = Dim.of(clock.longest or max(1, round(clock.ratio)))
    return StateSpec("OpenChunkState", elements=width * tokens)


@op("inside")
class Inside(Op):
    """Which places of `members` hold a token.

    Shape: chunks[T, C] -> bool [C, place].
    """

    chunks: Operand

    def type(self) -> TensorType:
        """One bool per place."""
        kind = chunks_of(self.chunks, self.op_name)
        return TensorType((kind.coarse, seats(kind, None)), "bool", kind.batched)

    def flows(self) -> dict[str, list[Flow]]:
        """Where a chunk ends is known with its last token, or the one after it."""
        kind = chunks_of(self.chunks, self.op_name)
        return {
            "chunks": [
                Flow(kind.fine.name, kind.coarse.name, crossing=extent(kind, True)),
            ]
        }

    def repair(self) -> str:
        """How to read no later token."""
        return "ask only of chunks that are closed: `upsample(..., lag = 1)`"

    def isolates(self) -> bool:
        """Chunks end with their document."""
        return True

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        return f"{code.use('inside_chunks')}({code['chunks']})"


__all__ = ["Chunks", "Cost", "Inside", "Members", "Place", "Segment"]
