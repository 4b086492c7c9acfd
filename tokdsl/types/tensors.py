"""Axes, clocks and the types of values in a program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from tokdsl.types.dims import Dim


@dataclass(frozen=True, slots=True)
class Clock:
    """A token resolution: one tick per token.

    Args:
        name: unique in a program (the stage or input that makes the clock).
        parent: the finer clock that this one was reduced from, or None for an input.
        stride: parent tokens per token if that is fixed, else None; a fraction on a clock that is
            finer than the one it was made from.
        ordered: whether a position is a time (false for the patches of an image).
        cut: for ragged chunks of the parent's tokens, which token the boundary is stated at:
            ``"opens"`` (the first of a chunk) or ``"closes"`` (the last one); else "".
        ratio: expected parent tokens per token of a ragged clock; 0 if it is not stated.
        longest: parent tokens in a chunk at most; 0 if there is no limit.
    """

    name: str
    parent: Clock | None = None
    stride: Dim | None = None
    ordered: bool = True
    cut: str = ""
    ratio: float = 0.0
    longest: int = 0

    @property
    def expected(self) -> float:
        """The parent's tokens per token: fixed, as stated for a ragged clock, or 1."""
        if self.stride is not None:
            return 1.0 if self.stride.symbols() else self.stride.evaluate({}) or 1.0
        return self.ratio or 1.0

    @property
    def length(self) -> Dim:
        """The symbolic number of tokens."""
        return Dim.of(f"T_{self.name}")


@dataclass(frozen=True, slots=True)
class Axis:
    """A named axis.

    Args:
        name: the name visible in the definition at hand.
        size: number of entries.
        clock: set on token axes.
        memory: on a token axis, that it also holds the tokens of earlier steps (a cache).
        window: on a memory axis, how many tokens back any query looks (0: all of them).
        block: on a memory axis, that an entry stands for this many neighbouring tokens, and its
            position is that of the last of them.
        group: on the axis of dispatched rows, the axis (experts) by which rows are grouped.
        at_most: the size is the most that there can be: at run time there may be fewer entries.
        pack: the axis stands for any number of leading axes (only while a definition is checked
            for all sizes).
    """

    name: str
    size: Dim
    clock: Clock | None = None
    memory: bool = False
    window: int = 0
    block: int = 0
    group: Axis | None = None
    pack: bool = False
    at_most: bool = False

    def renamed(self, name: str) -> Axis:
        """Return the same axis under another name."""
        return self if name == self.name else replace(self, name=name)

    def same_as(self, other: Axis) -> bool:
        """Whether two axes agree in all but the name."""
        return (
            self.size == other.size
            and self.clock == other.clock
            and (self.group is None) == (other.group is None)
        )

    def __str__(self) -> str:
        if self.pack:
            return "*"
        if self.clock is not None:
            return f"{self.name}@{self.clock.name}"
        return self.name if str(self.size) == self.name else f"{self.name}={self.size}"


#: dtypes in the order of promotion; "float" is the model's working dtype
DTYPES = ("bool", "i64", "float", "bf16", "f16", "f32", "f64")


def promote(*dtypes: str) -> str:
    """Return the dtype of an element-wise result."""
    return max(dtypes, key=DTYPES.index)


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor: named axes in memory order after an implicit batch axis.

    Args:
        axes: the named axes.
        dtype: one of `DTYPES`.
        batched: whether the tensor has the leading batch axis (parameters and constants have not).
        classes: for ids, the number of classes they index.
    """

    axes: tuple[Axis, ...]
    dtype: str = "float"
    batched: bool = True
    classes: Dim | None = None

    @property
    def is_float(self) -> bool:
        """Whether a gradient can flow through values of this dtype."""
        return self.dtype not in ("bool", "i64")

    def axis(self, name: str) -> Axis | None:
        """Return the axis of that name, or None."""
        for axis in self.axes:
            if axis.name == name:
                return axis
        return None

    def position(self, name: str) -> int:
        """Return the index of the named axis among the named axes (batch not counted)."""
        return next(i for i, axis in enumerate(self.axes) if axis.name == name)

    @property
    def token_axis(self) -> Axis | None:
        """The first axis that belongs to a clock (rows of a dispatch count as one)."""
        for axis in self.axes:
            if axis.clock is not None or axis.group is not None:
                return axis
        return None

    @property
    def size(self) -> Dim:
        """The number of entries per example."""
        total = Dim.of(1)
        for axis in self.axes:
            total = total * axis.size
        return total

    def with_axes(self, axes: tuple[Axis, ...]) -> TensorType:
        """Return the type with other axes."""
        return replace(self, axes=axes)

    def with_dtype(self, dtype: str) -> TensorType:
        """Return the type with another dtype."""
        return replace(self, dtype=dtype)

    def __str__(self) -> str:
        axes = ", ".join(str(axis) for axis in self.axes)
        return f"[{axes}]" if self.dtype == "float" else f"{self.dtype}[{axes}]"


@dataclass(frozen=True, slots=True)
class RouteType:
    """Which experts each token goes to, and with what weight.

    Args:
        tokens: axes of the tokens that were routed.
        experts: the axis that is chosen from.
        top: the axis of choices per token.
        expected: choices that a token is expected to have where some picks are -1, which go
            nowhere; 0 if every pick is a choice.
    """

    tokens: tuple[Axis, ...]
    experts: Axis
    top: Axis
    batched: bool = True
    dtype: str = "route"
    expected: float = 0.0

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of the weights."""
        return (*self.tokens, self.top)

    @property
    def is_float(self) -> bool:
        """Whether a gradient can flow: through the weights."""
        return True

    @property
    def token_axis(self) -> Axis | None:
        """The token axis of what was routed."""
        return TensorType(self.tokens).token_axis

    @property
    def size(self) -> Dim:
        """The number of weights per example."""
        return TensorType(self.axes).size

    @property
    def rows(self) -> Dim:
        """How many choices there are per example, or are expected."""
        if not self.expected:
            return self.size
        return TensorType(self.tokens).size * Fraction(self.expected).limit_denominator(10**6)

    @property
    def share(self) -> float:
        """Which part of the experts a token goes to."""
        top, experts = self.expected or self.top.size.number, self.experts.size.number
        return min(1.0, top / experts) if top and experts else 1.0

    def __str__(self) -> str:
        return f"route[{self.experts}, {self.top}]"


@dataclass(frozen=True, slots=True)
class ChunksType:
    """How the tokens of a stream are cut into chunks: the map between two clocks.

    Args:
        fine: the token axis that is cut.
        coarse: the axis of chunks, on a ragged clock.
    """

    fine: Axis
    coarse: Axis
    batched: bool = True
    dtype: str = "chunks"

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Both token axes."""
        return (self.fine, self.coarse)

    @property
    def is_float(self) -> bool:
        """A map carries no gradient."""
        return False

    @property
    def token_axis(self) -> Axis | None:
        """The axis that is cut."""
        return self.fine

    @property
    def size(self) -> Dim:
        """One number per token."""
        return self.fine.size

    def __str__(self) -> str:
        return f"chunks[{self.fine}, {self.coarse}]"


@dataclass(frozen=True, slots=True)
class UnknownType:
    """The type of a value after an error, or of an unknown definition: silent everywhere."""

    axes: tuple[Axis, ...] = ()
    dtype: str = "float"
    batched: bool = True

    @property
    def is_float(self) -> bool:
        """Unknown values are assumed to carry gradients."""
        return True

    @property
    def token_axis(self) -> Axis | None:
        """Unknown values have no known token axis."""
        return None

    @property
    def size(self) -> Dim:
        """Unknown sizes count as nothing."""
        return Dim.of(0)

    def __str__(self) -> str:
        return "unknown"


ValueType = TensorType | RouteType | ChunksType | UnknownType


def annotation(kind: ValueType, otherwise: str = "Tensor") -> str:
    """Return the Python type of a value in emitted code."""
    return {"route": "Route", "chunks": "Chunks"}.get(kind.dtype, otherwise)


def ragged(kind: ValueType) -> Clock | None:
    """Return the clock of ragged chunks on which a value lives, if it does."""
    if isinstance(kind, ChunksType):
        return None
    return next((a.clock for a in kind.axes if a.clock is not None and a.clock.cut), None)
