"""Axes, clocks and the types of values in a program."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokdsl.types.dims import Dim


@dataclass(frozen=True, slots=True)
class Clock:
    """A token resolution: one tick per token.

    Args:
        name: unique in a program (the stage or input that makes the clock).
        parent: the finer clock that this one was reduced from, or None for an input.
        stride: parent tokens per token if that is fixed, else None.
        ordered: whether a position is a time (false for the patches of an image).
    """

    name: str
    parent: Clock | None = None
    stride: Dim | None = None
    ordered: bool = True

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
        group: on the axis of dispatched rows, the axis (experts) by which rows are grouped.
        pack: the axis stands for any number of leading axes (only while a definition is checked
            for all sizes).
    """

    name: str
    size: Dim
    clock: Clock | None = None
    memory: bool = False
    window: int = 0
    group: Axis | None = None
    pack: bool = False

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
    """

    tokens: tuple[Axis, ...]
    experts: Axis
    top: Axis
    batched: bool = True
    dtype: str = "route"

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

    def __str__(self) -> str:
        return f"route[{self.experts}, {self.top}]"


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


ValueType = TensorType | RouteType | UnknownType
