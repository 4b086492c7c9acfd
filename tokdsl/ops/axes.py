"""Rules about axes that several families share: what is reduced, masks, memory order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokdsl.ops.base import AxisRef, Code, Fault, NewAxis, Op, find_axis, tensor
from tokdsl.ops.precedence import primary
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, TensorType, ValueType

BATCH = "batch"


def is_token(axis: Axis) -> bool:
    """Whether an axis holds tokens (or the rows of a dispatch)."""
    return axis.clock is not None or axis.group is not None


def is_leading(axis: Axis) -> bool:
    """Whether ``*`` stands for the axis: an outer axis of the caller, or tokens."""
    return axis.pack or axis.name.startswith("^") or is_token(axis)


@dataclass(frozen=True)
class Reduced:
    """Which axes an operation goes over, in memory order, and whether over the batch too."""

    axes: tuple[Axis, ...]
    batch: bool

    @property
    def names(self) -> frozenset[str]:
        """The names of the axes."""
        return frozenset(axis.name for axis in self.axes)

    def kept(self, kind: TensorType) -> tuple[Axis, ...]:
        """Return the axes of a type that are not reduced."""
        return tuple(axis for axis in kind.axes if axis.name not in self.names)

    def names_in(self, kind: TensorType) -> list[str]:
        """Return the names in the memory order of a type."""
        return [axis.name for axis in kind.axes if axis.name in self.names]

    def positions(self, kind: TensorType) -> tuple[int, ...]:
        """Return the dimensions: negative ones, or counted from the front if the batch is one."""
        count = len(kind.axes)
        if self.batch and kind.batched:
            return (0, *(kind.position(axis.name) + 1 for axis in self.axes))
        return tuple(kind.position(axis.name) - count for axis in self.axes)

    def everything(self, kind: TensorType) -> bool:
        """Whether no axis is left."""
        return len(self.axes) == len(kind.axes) and (self.batch or not kind.batched)


def reduced(kind: TensorType, over: Sequence[str] | None, argument: str = "over") -> Reduced:
    """Return the axes that ``over`` stands for; None is all of them and the batch.

    Raises:
        Fault: if an axis does not exist.
    """
    if over is None:
        return Reduced(kind.axes, True)
    names: set[str] = set()
    for name in over:
        if name == "*":
            names |= {axis.name for axis in kind.axes if is_leading(axis)}
        elif name != BATCH:
            names.add(find_axis(kind, name, argument).name)
    axes = tuple(axis for axis in kind.axes if axis.name in names)
    return Reduced(axes, "*" in over or BATCH in over)


def dim_text(dims: Sequence[int]) -> str:
    """Return the value of a ``dim`` argument."""
    return str(dims[0]) if len(dims) == 1 else f"({', '.join(map(str, dims))})"


def names(kind: TensorType) -> list[str]:
    """Return the names of all dimensions, the batch included."""
    return [BATCH] * kind.batched + [axis.name for axis in kind.axes]


def arrange(text: str, have: Sequence[str], want: Sequence[str]) -> str:
    """Return a tensor's text with its dimensions in another order."""
    if list(have) == list(want):
        return text
    order = [list(have).index(name) for name in want]
    moved = [i for i, j in enumerate(order) if i != j]
    if len(moved) == 2:
        first, second = (i - len(order) for i in moved)
        return f"{primary(text)}.transpose({first}, {second})"
    return f"{primary(text)}.permute({', '.join(map(str, order))})"


def aligned(code: Code, operand: str, target: TensorType) -> str:
    """Return an operand's text with its axes placed as another type has them."""
    return Code(code.operands, code.types, target).aligned(operand)


def need_float(kind: ValueType, argument: str, name: str) -> TensorType:
    """Return an operand that must hold floats.

    Raises:
        Fault: if it holds integers or truth values.
    """
    found = tensor(kind, argument)
    if not found.is_float:
        raise Fault(
            "operand-kind",
            f"`{name}` needs floats, found {found}",
            argument,
            help=f"convert first: `{name}(f32({argument}), ...)`",
        )
    return found


def need_bool(kind: ValueType, argument: str, name: str, help: str | None = None) -> TensorType:
    """Return an operand that must hold truth values.

    Raises:
        Fault: if it holds numbers.
    """
    found = tensor(kind, argument)
    if found.dtype != "bool":
        raise Fault(
            "operand-kind",
            f"`{argument}` of `{name}` must be truth values, found {found}",
            argument,
            help,
        )
    return found


def need_integer(kind: ValueType, argument: str, name: str) -> TensorType:
    """Return an operand that must hold indices.

    Raises:
        Fault: if it holds floats or truth values.
    """
    found = tensor(kind, argument)
    if found.dtype != "i64":
        raise Fault(
            "operand-kind", f"`{argument}` of `{name}` must be indices, found {found}", argument
        )
    return found


def free_name(kind: TensorType, axis: NewAxis, without: Sequence[str] = ()) -> Axis:
    """Return a new axis for a type.

    Raises:
        Fault: if the type already has an axis of that name (but for those that go).
    """
    if kind.axis(axis.name) is not None and axis.name not in without:
        raise Fault("axis-taken", f"{kind} already has an axis `{axis.name}`", axis.name)
    return Axis(axis.name, axis.size)


def product(sizes: Sequence[Dim]) -> Dim:
    """Return the product of sizes."""
    total = Dim.of(1)
    for size in sizes:
        total = total * size
    return total


def masked_axes(kind: TensorType, over: Reduced, valid: TensorType | None) -> list[Axis]:
    """Return the token axes whose padding matters when ``over`` is reduced."""
    if valid is None or not kind.batched or valid.token_axis is None:
        return []
    clock = valid.token_axis.clock
    mine = [axis for axis in kind.axes if axis.clock == clock and not axis.memory]
    gone = [axis for axis in mine if axis.name in over.names]
    return gone or (mine[:1] if over.batch else [])


def token_mask(code: Code, kind: TensorType, axes: Sequence[Axis]) -> str | None:
    """Return the text of a mask that broadcasts to a value: true at tokens, None if all are.

    Returns None if the operation was given no validity or no axis needs it.
    """
    if "valid" not in code.operands or not axes:
        return None
    rank = len(kind.axes) + 1
    texts = []
    for axis in axes:
        dim = kind.position(axis.name) + 1
        if rank == 2:
            texts.append(code["valid"])
        else:
            texts.append(f"{code.use('token_mask')}({code['valid']}, {dim}, {rank})")
    return texts[0] if len(texts) == 1 else f"{code.use('all_masks')}({', '.join(texts)})"


def valid_argument(code: Code) -> str:
    """Return ``, valid=...`` for a function that takes it, or nothing."""
    return f", valid={code['valid']}" if "valid" in code.operands else ""


def starts_argument(code: Code) -> str:
    """Return ``, starts=...`` for a function that takes it, or nothing."""
    given = code.operands.get("starts", "None")
    return "" if given == "None" else f", starts={given}"


def state_argument(code: Code) -> str:
    """Return ``, state=...`` for a function that takes it, or nothing.

    A part of a larger state is None with it, outside decoding.
    """
    if not code.state:
        return ""
    root, dot, _ = code.state.partition(".")
    return f", state=None if {root} is None else {code.state}" if dot else f", state={root}"


class Rowwise(Op):
    """Base of what goes along the small axes of a row, such as the experts of a token."""

    def along(self) -> list[str]:
        """Return the names of the axes that it goes along."""
        raise TypeError(f"{type(self).__name__} does not say what it goes along")


__all__ = ["AxisRef", "Reduced", "Rowwise"]
