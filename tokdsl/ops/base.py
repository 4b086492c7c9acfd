"""What a primitive operation is: one class that holds everything the compiler asks about it.

A primitive is a subclass of `Op` with annotated fields. The annotation says how an argument is
read: `Operand` (a tensor, given by its type), `NewAxis`, `AxisRef`, `Dim`, ``int``, ``float``,
``bool``, ``str``. The methods state its type rule, time rule, gradient class, cost, parameters,
state and torch expression.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar, dataclass_transform

from tokdsl.ops.bounds import Bounds, Scalars
from tokdsl.ops.precedence import primary
from tokdsl.ops.tile import Tile, Written
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import (
    Axis,
    ChunksType,
    RouteType,
    TensorType,
    UnknownType,
    ValueType,
    promote,
)
from tokdsl.types.time import EVERYTHING, Flow


class Fault(Exception):
    """A rule of an operation does not hold; becomes a diagnostic at the node's place.

    Args:
        kind: which diagnostic: the ``name`` of a diagnostic class.
        message: expected, then found.
        argument: the argument at fault, so that the span can be as small as possible.
        help: how to repair it.
    """

    def __init__(
        self, kind: str, message: str, argument: str | None = None, help: str | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.text = message
        self.argument = argument
        self.help = help


class NewAxis(NamedTuple):
    """An axis that an operation makes: its name and size."""

    name: str
    size: Dim


class AxisRef(str):
    """The name of an axis of an operand; ``*`` means all leading axes, the batch included."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """A parameter or buffer that an operation owns.

    Args:
        name: below the operation's own name (``weight``, ``bias``).
        shape: sizes in memory order, without the experts axis of a stacked instance.
        init: an initialiser as `name(arguments)` (see ``initialisers.py``).
        trainable: false for buffers.
        saved: whether it is part of the state dict.
        dtype: "float" for the working dtype.
    """

    name: str
    shape: tuple[Dim, ...]
    init: str
    trainable: bool = True
    saved: bool = True
    dtype: str = "float"


#: no elements
NOTHING = Dim(())


@dataclass(frozen=True, slots=True)
class StateSpec:
    """What an operation keeps between steps: a class of ``state.py`` and its arguments.

    Args:
        kind: class name in the emitted ``state.py``.
        arguments: sizes after the batch size.
        bytes_per_token: cache elements per past token (0 for a state of fixed size).
        elements: fixed elements per sequence.
    """

    kind: str
    arguments: tuple[Dim, ...] = ()
    per_token: Dim = NOTHING
    elements: Dim = NOTHING


@dataclass(frozen=True, slots=True)
class Cost:
    """Work of one evaluation per example, in sizes: multiply-adds count as two FLOPs."""

    flops: Dim = NOTHING


class Code:
    """What an operation is given to write its torch expression.

    Args:
        operands: Python text of each operand field.
        types: type of each operand field.
        attribute: Python text of the attribute that owns this operation's parameters
            (``self.gate``).
        state: Python text of this operation's state, or None.
        decision: Python text of the record of this operation's choice, or "" if none is kept.
    """

    def __init__(
        self,
        operands: Mapping[str, str],
        types: Mapping[str, ValueType],
        result: ValueType,
        attribute: str = "",
        state: str = "",
        names: Mapping[str, str] | None = None,
        decision: str = "",
    ) -> None:
        self.operands = operands
        self.types = types
        self.result = result
        self.attribute = attribute
        self.state = state
        self.decision = decision
        self.names = dict(names or {})
        self.imports: set[str] = set()

    def __getitem__(self, operand: str) -> str:
        return self.operands[operand]

    def use(self, function: str) -> str:
        """Note that a function of the package's ``functional.py`` is needed; return its name."""
        self.imports.add(function)
        return function

    def dim(self, operand: str, axis: str) -> int:
        """Return the negative dimension of an operand's axis."""
        kind = self.types[operand]
        assert isinstance(kind, TensorType)
        return kind.position(axis) - len(kind.axes)

    def aligned(self, operand: str) -> str:
        """Return an operand's text with its axes placed where the result has them.

        Missing axes are inserted with size one; the batch axis stays in front.
        """
        kind, result = self.types[operand], self.result
        text = self.operands[operand]
        names = [axis.name for axis in result.axes]
        mine = [axis.name for axis in kind.axes]
        order = sorted(range(len(mine)), key=lambda i: names.index(mine[i]))
        if order != list(range(len(mine))):
            lead = len(mine)
            text = f"{primary(text)}.{_movement(order, kind.batched, lead)}"
        mine = [mine[i] for i in order]
        present = [name in mine for name in names]
        first = 0 if kind.batched else (present.index(True) if True in present else len(names))
        for i in range(len(names) - 1, first - 1, -1):
            if not present[i]:
                text = f"{primary(text)}.unsqueeze({i - len(names)})"
        return text

    def size(self, size: Dim) -> str:
        """Return Python text for a size; token counts are read from their names."""
        number = size.number
        return str(number) if number is not None else self.names.get(str(size), str(size))


def _movement(order: list[int], batched: bool, count: int) -> str:
    """Return the call that puts the axes in ``order``: a transpose where two are swapped."""
    moved = [i for i, j in enumerate(order) if i != j]
    if len(moved) == 2:
        return f"transpose({moved[0] - count}, {moved[1] - count})"
    if batched:
        return f"permute({', '.join(str(i) for i in (0, *(j + 1 for j in order)))})"
    return f"permute({', '.join(str(j) for j in order)})"


def _scaled(gradient: str, slope: str) -> str:
    if slope in ("1.0", "-1.0"):
        return gradient if slope == "1.0" else f"-{primary(gradient)}"
    return f"{primary(gradient)} * {primary(slope)}"


def _same(one: Op, other: Op) -> bool:
    return one._values() == other._values()


#: Every primitive by the name it has in the language.
OPS: dict[str, type[Op]] = {}

OpType = TypeVar("OpType", bound="type[Op]")


@dataclass_transform(frozen_default=True)
class Op:
    """Base of all primitives; an instance describes one use (types and static arguments).

    Fields are the annotated names of the class and its bases. Instances are immutable and equal
    by value. The methods are written once here: generated ones, as of `dataclasses`, would take
    most of the time of importing this package.
    """

    #: name in the language
    op_name: ClassVar[str] = ""
    #: element-wise in all operands: fusible, broadcasts by name
    elementwise: ClassVar[bool] = False
    #: result depends only on token positions, validity and constants when there are no operands
    ambient: ClassVar[bool] = False
    #: a parameter or buffer reads as itself (its attribute), not as a call
    random: ClassVar[bool] = False
    #: made by the compiler and never written in a program
    internal: ClassVar[bool] = False
    #: fields that the compiler fills
    hidden: ClassVar[tuple[str, ...]] = ()
    #: names of the results but the first, which later operations find by themselves
    companions: ClassVar[tuple[str, ...]] = ()
    #: operands that are read in training alone
    training_operands: ClassVar[tuple[str, ...]] = ()
    #: operands of which only the dtype is read
    type_operands: ClassVar[tuple[str, ...]] = ()
    #: operands that are read in short calls alone, in the place of others that say the same
    step_operands: ClassVar[tuple[str, ...]] = ()
    #: entries only go to other dimensions: in a kernel no block has those of operand and result
    moves: ClassVar[bool] = False
    #: what `accumulated` gives is divided by the number of rows that count
    averages: ClassVar[bool] = False
    #: what it owns is a value: a stacked instance is read per dispatched row
    per_row: ClassVar[bool] = False
    #: a discrete decision; what `choice` says of it is recorded and replayed
    decision: ClassVar[bool] = False
    #: operand (``*``: any) -> its value -> what the result then is, whatever the other operands are
    absorbing: ClassVar[Mapping[str, Mapping[float, float]]] = {}

    #: names of the fields, in order, set by `op`
    _names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *positional: Any, **given: Any) -> None:
        values = self.__dict__
        values.update(zip(self._names, positional, strict=False))
        values.update(given)
        for name in self._names:
            if name not in values:
                if not hasattr(type(self), name):
                    raise TypeError(f"{type(self).__name__} needs `{name}`")
                values[name] = getattr(type(self), name)
        if len(values) > len(self._names) or not values.keys() <= set(self._names):
            raise TypeError(f"{type(self).__name__} has no field for all of {sorted(values)}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self._names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Op) and type(other) is type(self) and _same(self, other)

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._names)
        return f"{type(self).__name__}({inner})"

    def type(self) -> ValueType | tuple[ValueType, ...]:
        """Return the type of the result, or of each result.

        Raises:
            Fault: if the operands do not fit.
        """
        raise TypeError(f"{type(self).__name__} declares no type rule")

    def flows(self) -> dict[str, list[Flow]]:
        """Return for each operand how its token axes reach the result's (the time rule).

        The default is by name: an axis that the result keeps is read at the own position, one
        that is gone is read everywhere.
        """
        kinds = self.type()
        kept = {
            axis.name
            for kind in (kinds if isinstance(kinds, tuple) else (kinds,))
            for axis in kind.axes
        }
        flows: dict[str, list[Flow]] = {}
        for name, kind in self.operand_types():
            for axis in kind.axes:
                if axis.clock is None and axis.group is None and not axis.pack:
                    continue
                flow = (
                    Flow(axis.name, axis.name)
                    if axis.name in kept
                    else Flow(axis.name, None, EVERYTHING)
                )
                flows.setdefault(name, []).append(flow)
        return flows

    def repair(self) -> str | None:
        """Return how to write this use so that it reads no later token, if that is known."""
        return None

    def gradient(self) -> dict[str, bool]:
        """Return for each operand whether a gradient flows back to it."""
        return {name: kind.is_float for name, kind in self.operand_types()}

    def cost(self) -> Cost:
        """Return the work per example."""
        return Cost()

    def wants_valid(self) -> list[Axis]:
        """Return the token axes whose padding changes the result: what ``valid`` is read for."""
        return [a for _, kind in self.operand_types() for a in kind.axes if a.clock is not None]

    def mixed(self) -> list[Axis]:
        """Return the axes of tokens or rows along which a result reads others than its own."""
        flows, result = self.flows(), self.type()
        kinds = result if isinstance(result, tuple) else (result,)
        kept = {axis.name for kind in kinds for axis in kind.axes}
        hidden = {spec.name for spec in operand_fields(type(self)) if spec.kind == "companion"}
        found = []
        for name, kind in self.operand_types():
            for axis in kind.axes:
                mine = [flow for flow in flows.get(name, ()) if flow.source == axis.name]
                gone = not mine and name not in hidden and axis.name not in kept
                if axis.clock is None and axis.group is None:
                    continue
                if gone or any(not flow.is_own for flow in mine):
                    found.append(axis)
        return found

    def mixes(self, starts: ValueType) -> bool:
        """Return whether tokens are mixed along the axis for which starts of documents are given.

        In a memory axis, which also holds earlier steps, they are not known.
        """
        own = starts.axes[0]
        return not own.memory and any(axis.clock == own.clock for axis in self.mixed())

    def isolates(self) -> bool:
        """Return whether no token reads one of another document that is packed into its row.

        True for what reads the own token alone. What mixes tokens must be told where documents
        start, and a change of clock moves them: who knows documents in another way says so.
        """
        told = any(name == "starts" for name, _ in self.operand_types())
        flows = [flow for found in self.flows().values() for flow in found]
        moved = any(flow.factor != 1 or flow.crossing is not None for flow in flows)
        return (told and not moved) or not self.mixed()

    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Return the parameters and buffers that this use owns."""
        return ()

    def state(self) -> StateSpec | None:
        """Return what must be kept between decode steps."""
        return None

    def choice(self) -> TensorType | None:
        """Return the type of what a decision chooses, which is recorded and replayed.

        An operation that chooses gives ``code.decision`` to its function, which passes its choice
        through ``decision.keep`` and computes the rest of its results from what comes back.
        """
        return None

    def remembers(self) -> Axis | None:
        """Return the token axis of which the state holds earlier tokens."""
        kinds = [kind for _, kind in self.operand_types()]
        return next((a for k in kinds for a in k.axes if a.clock is not None), None)

    def torch(self, code: Code) -> str:
        """Return the torch expression of the result."""
        raise TypeError(f"{type(self).__name__} declares no torch expression")

    def annotation(self) -> str:
        """Return the Python type of the result in emitted code."""
        return "Tensor"

    def module(self) -> str | None:
        """Return the constructor of the nn.Module that owns the parameters, or None."""
        return None

    def triton(self, operands: Mapping[str, str]) -> str | None:
        """Return the Triton expression of an element-wise operation."""
        return None

    def derivative(self, operands: Mapping[str, str]) -> dict[str, str] | None:
        """Return, per operand, d result / d operand as an expression over ``result``."""
        return None

    def tiled(self, tile: Tile) -> Written:
        """Return the Triton expression of each result over blocks, or None if there is none."""
        return self.triton(tile) if self.elementwise else None

    def tiled_gradient(
        self, tile: Tile, gradients: Sequence[str | None]
    ) -> Mapping[str, str] | None:
        """Return the gradient of each operand over blocks, given those of the results.

        A gradient has the axes of operands and results together; what the operand has not is summed
        by the caller (but for what `moves`). None if there is no such form.
        """
        given = gradients[0] if len(gradients) == 1 else None
        if not self.elementwise or given is None:
            return None
        slopes = self.derivative({**tile, "result": tile.outputs[0]})
        if slopes is None:
            return None
        return {name: _scaled(given, slope) for name, slope in slopes.items()}

    def bounds(self, given: Mapping[str, Bounds], scalars: Scalars) -> Bounds | None:
        """Return the bounds of a result of whole numbers or truth values, given the operands'.

        None if nothing is known of it, as of all others.
        """
        return None

    def not_taken(self, stepping: bool) -> tuple[str, ...]:
        """Return the operands that are not read in a whole pass, or in a decode step."""
        return ()

    def accumulated(self, tile: Tile) -> str | None:
        """Return over blocks what each row adds to the result of an operation over all rows.

        None if the result is not such a sum (or, with `averages`, the mean of one).
        """
        return None

    def accumulated_gradient(self, tile: Tile, gradient: str) -> Mapping[str, str] | None:
        """Return the gradient of each operand in a row, given that of the sum."""
        return None

    def operand_types(self) -> list[tuple[str, ValueType]]:
        """Return the operands that are given, in field order; variadic ones are numbered."""
        found: list[tuple[str, ValueType]] = []
        for spec in operand_fields(type(self)):
            value = getattr(self, spec.name)
            if isinstance(value, tuple):
                found += [(f"{spec.name}_{i}", kind) for i, kind in enumerate(value)]
            elif value is not None:
                found.append((spec.name, value))
        return found


class Argument(NamedTuple):
    """How one field of an operation is read from a call.

    ``kind`` is one of ``operand operands axis axes new_axis new_axes size sizes int float bool
    str function any``; ``optional`` says that it may be absent.
    """

    name: str
    kind: str
    optional: bool
    default: object


_KINDS = {
    "Operand": "operand",
    "tuple[Operand, ...]": "operands",
    "Companion": "companion",
    "AxisRef": "axis",
    "tuple[AxisRef, ...]": "axes",
    "NewAxis": "new_axis",
    "tuple[NewAxis, ...]": "new_axes",
    "Dim": "size",
    "tuple[Dim, ...]": "sizes",
    "int": "int",
    "float": "float",
    "bool": "bool",
    "str": "str",
    "Init": "init",
    "Predicate": "predicate",
    "object": "any",
}

#: An expression over positions (``|i, j| j <= i``); the field holds its type once elaborated.
Predicate = TensorType
#: An initialiser as text: ``normal(std=0.02)``; see ``initialisers.py``.
Init = str
#: A tensor operand; the field holds its type.
Operand = TensorType | RouteType | ChunksType | UnknownType
#: An operand that the elaborator finds by itself: ``groups`` (rows per expert) or ``order`` (where
#: each row came from) of the dispatch that made the rows of another operand.
Companion = TensorType


def arguments(cls: type[Op]) -> tuple[Argument, ...]:
    """Return how the fields of an operation are read, in order."""
    return _ARGUMENTS[cls]


def operand_fields(cls: type[Op]) -> tuple[Argument, ...]:
    """Return the operand fields of an operation."""
    return _OPERANDS[cls]


_ARGUMENTS: dict[type[Op], tuple[Argument, ...]] = {}
_OPERANDS: dict[type[Op], tuple[Argument, ...]] = {}


def _field_types(cls: type[Op]) -> dict[str, str]:
    """Return the annotated names of a class and its bases, with the text of their annotations."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for name, text in inspect.get_annotations(base).items():
            if not str(text).startswith("ClassVar"):
                found[name] = str(text)
    return found


def _read_arguments(cls: type[Op]) -> tuple[Argument, ...]:
    found = []
    for name, text in _field_types(cls).items():
        optional = text.endswith(" | None") or hasattr(cls, name)
        kind = _KINDS.get(text.removesuffix(" | None"))
        if kind is None:
            raise TypeError(f"{cls.__name__}.{name}: no argument kind for {text!r}")
        found.append(Argument(name, kind, optional, getattr(cls, name, None)))
    return tuple(found)


def op(name: str) -> Callable[[OpType], OpType]:
    """Register a primitive under its name in the language.

    Raises:
        TypeError: if the name is taken or a field has an unknown kind.
    """

    def register(cls: OpType) -> OpType:
        if name in OPS:
            raise TypeError(f"operation {name} is declared twice")
        OPS[name] = cls
        cls.op_name = name
        _ARGUMENTS[cls] = _read_arguments(cls)
        cls._names = tuple(argument.name for argument in _ARGUMENTS[cls])
        _OPERANDS[cls] = tuple(
            a
            for a in _ARGUMENTS[cls]
            if a.kind in ("operand", "operands", "companion", "predicate")
        )
        return cls

    return register


# ------------------------------------------------------------------ rules that many share


def tensor(kind: ValueType, argument: str) -> TensorType:
    """Return the operand as a tensor type.

    Raises:
        Fault: if it is a route or another record.
    """
    if isinstance(kind, TensorType):
        return kind
    raise Fault("operand-kind", f"`{argument}` must be a tensor, found {kind}", argument)


def find_axis(kind: ValueType, name: str, argument: str) -> Axis:
    """Return the named axis of a tensor.

    Raises:
        Fault: if there is none, with the axes that exist.
    """
    found = tensor(kind, argument).axis(name)
    if found is None:
        have = ", ".join(f"`{axis.name}`" for axis in kind.axes) or "none"
        raise Fault("unknown-axis", f"no axis `{name}` in {kind}; its axes are {have}", argument)
    return found


def broadcast(*kinds: ValueType, what: str = "operands") -> TensorType:
    """Return the type of an element-wise combination: axes matched by name.

    Raises:
        Fault: if axes of one name have different sizes, or token axes of different clocks meet.
    """
    axes: list[Axis] = []
    batched = False
    for kind in kinds:
        if not isinstance(kind, TensorType):
            raise Fault("operand-kind", f"{what} must be tensors, found {kind}")
        batched |= kind.batched
        axes = _merge(axes, kind.axes, what)
    return TensorType(tuple(axes), promote(*(kind.dtype for kind in kinds)), batched)


def _merge(axes: list[Axis], more: tuple[Axis, ...], what: str) -> list[Axis]:
    if not axes:
        return list(more)
    names = {axis.name: axis for axis in axes}
    result = list(axes)
    for i, axis in enumerate(more):
        if axis.name in names:
            _check_same(names[axis.name], axis, what)
            continue
        _check_clocks(result, axis, what)
        after = next((names[a.name] for a in more[i + 1 :] if a.name in names), None)
        result.insert(result.index(after) if after is not None else len(result), axis)
    return result


def _check_same(mine: Axis, axis: Axis, what: str) -> None:
    if mine.clock is not None and axis.clock is not None and mine.clock != axis.clock:
        raise Fault(
            "clock-mismatch",
            f"{what} live on different clocks: `{mine.clock.name}` and `{axis.clock.name}`",
        )
    if mine.size != axis.size:
        raise Fault(
            "size-mismatch",
            f"axis `{axis.name}` has size {mine.size} on one side and {axis.size} on the other",
        )


def _check_clocks(axes: list[Axis], axis: Axis, what: str) -> None:
    if axis.clock is None:
        return
    for other in axes:
        if other.clock is not None and other.clock != axis.clock and other.name.startswith("^"):
            raise Fault(
                "clock-mismatch",
                f"{what} live on different clocks: `{other.clock.name}` and `{axis.clock.name}`",
            )


def elements(kind: ValueType | tuple[ValueType, ...]) -> Dim:
    """Return the number of entries of a result per example."""
    first = kind[0] if isinstance(kind, tuple) else kind
    return first.size
