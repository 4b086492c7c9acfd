"""What an attention reads of pairs of a query and a key: chunks, positions, which keys are seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tokdsl.ops.axes import state_argument
from tokdsl.ops.base import Code, Op, Operand, StateSpec, op, tensor
from tokdsl.ops.bounds import Bounds, Scalars
from tokdsl.ops.chunks import chunks_of, own_number
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import Flow


@op("same_chunk")
class SameChunk(Op):
    """Whether a query and a key are in the same chunk.

    Args:
        window: how many tokens back any query looks; 0 for all of them.

    Shape: chunks[T, C] -> bool [T, S].
    """

    internal: ClassVar[bool] = True

    chunks: Operand
    key: object = None
    window: int = 0

    def type(self) -> TensorType:
        """One bool per query and key."""
        chunks = chunks_of(self.chunks, "attend")
        assert isinstance(self.key, Axis)
        return TensorType((chunks.fine, self.key), "bool", chunks.batched)

    def flows(self) -> dict[str, list[Flow]]:
        """A pair reads the chunks of both."""
        chunks = chunks_of(self.chunks, "attend")
        assert isinstance(self.key, Axis)
        known = own_number(chunks)
        return {
            "chunks": [
                Flow(chunks.fine.name, chunks.fine.name, known),
                Flow(chunks.fine.name, self.key.name, known),
            ]
        }

    def isolates(self) -> bool:
        """Chunks end with their document."""
        return True

    def state(self) -> StateSpec:
        """The chunk numbers of all past tokens, or of the last ``window`` of them."""
        if self.window:
            return StateSpec("WindowCache", (Dim.of(self.window),), elements=Dim.of(self.window))
        return StateSpec("TokenCache", (), per_token=Dim.of(1))

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        return f"{code.use('same_chunk')}({code['chunks']}{state_argument(code)})"


@op("key_chunks")
class KeyChunks(Op):
    """The number of the chunk of each key.

    Args:
        window: how many tokens back any query looks; 0 for all of them.

    Shape: chunks[T, C] -> i64[S].
    """

    internal: ClassVar[bool] = True

    chunks: Operand
    key: object = None
    window: int = 0

    def type(self) -> TensorType:
        """One number per key."""
        assert isinstance(self.key, Axis)
        return TensorType((self.key,), "i64", chunks_of(self.chunks, "attend").batched)

    def state(self) -> StateSpec:
        """The chunk numbers of all past tokens, or of the last ``window`` of them."""
        chunks = chunks_of(self.chunks, "attend")
        return SameChunk(chunks=chunks, key=self.key, window=self.window).state()

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        return f"{code.use('key_chunks')}({code['chunks']}{state_argument(code)})"


@op("pairwise")
class Pairwise(Op):
    """The same values with their axes where those of scores are.

    Shape: the axes of ``x`` in another order, with an axis of size one where there was none.
    """

    internal: ClassVar[bool] = True

    x: Operand
    axes: object = None

    def type(self) -> TensorType:
        """The axes of scores."""
        assert isinstance(self.axes, tuple)
        kind = tensor(self.x, "x")
        return TensorType(self.axes, kind.dtype, kind.batched)

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds:
        """Those of the operand."""
        return given["x"]

    def torch(self, code: Code) -> str:
        """Return the operand, moved."""
        return code.aligned("x")


@op("visible")
class Visible(Op):
    """What is added to scaled scores: nothing where a query may see a key, else a large negative.

    A condition that is exactly causal, a causal window or absent is left to `attend` itself; then
    only padding and other documents are hidden here, and the value is None at run time when there
    are none.

    Args:
        predicate: the condition that is left.
        keys: the clock of the keys.
        queries: the clock of the queries where it is another one: their first documents belong
            together, and so on.
    """

    internal: ClassVar[bool] = True

    predicate: Operand | None = None
    keys: Operand | None = None
    queries: Operand | None = None
    query: object = None
    key: object = None

    def type(self) -> TensorType:
        """One number per query and key."""
        assert isinstance(self.query, Axis) and isinstance(self.key, Axis)
        lead: tuple[Axis, ...] = ()
        if isinstance(self.predicate, TensorType):
            own = (self.query.name, self.key.name)
            lead = tuple(a for a in self.predicate.axes if a.name not in own)
        return TensorType((*lead, self.query, self.key), "f32")

    def flows(self) -> dict[str, list[Flow]]:
        """A condition is over the positions of the result; clocks read no token."""
        return {name: flows for name, flows in super().flows().items() if name == "predicate"}

    def annotation(self) -> str:
        """None at run time where nothing is hidden."""
        return "Tensor | None"

    def gradient(self) -> dict[str, bool]:
        """Conditions have none."""
        return {name: False for name, _ in self.operand_types()}

    def torch(self, code: Code) -> str:
        """A function of the package that gives None where nothing is hidden."""
        clocks = [code[name] for name in ("keys", "queries") if name in code.operands]
        if self.predicate is None:
            return f"{code.use('token_bias')}({', '.join(clocks)})"
        arguments = ", ".join([code.aligned("predicate"), *clocks])
        return f"{code.use('mask_bias')}({arguments})"
