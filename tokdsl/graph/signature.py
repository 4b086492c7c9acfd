"""Matching of operands against a signature: which axes its names stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tokdsl.ops.base import Fault
from tokdsl.syntax import tree
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import (
    DTYPES,
    Axis,
    ChunksType,
    Clock,
    RouteType,
    TensorType,
    UnknownType,
    ValueType,
)

Size = Callable[[tree.Expression], Dim | None]

OUTER = "^"


@dataclass
class Matched:
    """The axes that a signature's names are bound to in one instantiation.

    Args:
        axes: formal name -> the caller's axis.
        sizes: formal name -> size.
        made: name in the results -> an axis of chunks that the body made.
    """

    axes: dict[str, Axis] = field(default_factory=dict)
    sizes: dict[str, Dim] = field(default_factory=dict)
    made: dict[str, Axis] = field(default_factory=dict)

    def bind(self, name: str, axis: Axis, operand: str) -> None:
        """Bind a formal name to an axis.

        Raises:
            Fault: if the name already stands for another size or clock.
        """
        size = self.sizes.get(name)
        if size is not None and size != axis.size:
            raise Fault(
                "size-mismatch",
                f"`{name}` is {size} here, but operand `{operand}` has {axis} of size {axis.size}",
                operand,
            )
        first = self.axes.get(name)
        if first is not None and first.clock != axis.clock:
            mine, other = (a.clock.name if a.clock else "no clock" for a in (first, axis))
            raise Fault(
                "clock-mismatch",
                f"`{name}` lives on clock `{mine}`, but operand `{operand}` is on `{other}`",
                operand,
            )
        self.axes.setdefault(name, axis)
        self.sizes[name] = axis.size


#: the words before the bracket of a tensor's type
HEADS = ("tokens", "route", "chunks", "any", *DTYPES)


def is_known(formal: tree.TypeExpression | None) -> bool:
    """Whether a type is that of a tensor with a known word before its axes, if any."""
    return isinstance(formal, tree.TensorType) and (formal.head is None or formal.head in HEADS)


def is_token_name(name: str) -> bool:
    """Whether a formal axis name stands for a token axis: it begins with a capital."""
    return name[:1].isupper()


def match(
    formal: tree.TensorType, actual: ValueType, operand: str, found: Matched, size: Size
) -> ValueType:
    """Return the operand's type as the body sees it: formal names, outer axes prefixed by ``^``.

    Raises:
        Fault: if the operand does not have the axes that the signature states.
    """
    if isinstance(actual, UnknownType):
        return actual
    if isinstance(actual, RouteType):
        if formal.head != "route":
            raise _shape(formal, actual, operand)
        return _match_route(formal, actual, operand, found)
    if isinstance(actual, ChunksType):
        if formal.head != "chunks":
            raise _shape(formal, actual, operand)
        return _match_chunks(formal, actual, operand, found)
    if formal.head in ("route", "chunks"):
        raise _shape(formal, actual, operand)
    if formal.head == "tokens":
        return _match_tokens(formal, actual, operand, found, size)
    if formal.head is not None and formal.head not in ("any", actual.dtype):
        raise Fault(
            "operand-kind", f"operand `{operand}` must be {formal.head}, found {actual}", operand
        )
    return _match_axes(formal, actual, operand, found, size)


def _match_axes(
    formal: tree.TensorType, actual: TensorType, operand: str, found: Matched, size: Size
) -> TensorType:
    star = next((i for i, axis in enumerate(formal.axes) if axis.star), None)
    fixed = len(formal.axes) - (star is not None)
    outer = len(actual.axes) - fixed
    if outer < 0 or (star is None and outer > 0):
        raise _shape(formal, actual, operand)
    axes: list[Axis] = []
    at = 0
    for axis in formal.axes:
        if axis.star:
            for inner in actual.axes[at : at + outer]:
                axes.append(inner.renamed(OUTER + inner.name))
            at += outer
        else:
            axes.append(_match_axis(axis, actual.axes[at], actual, operand, found, size))
            at += 1
    return actual.with_axes(tuple(axes))


def _match_axis(
    formal: tree.AxisType, axis: Axis, actual: TensorType, operand: str, found: Matched, size: Size
) -> Axis:
    name = formal.name or axis.name
    no_tokens = axis.clock is None and axis.group is None
    if formal.name is not None and is_token_name(formal.name) and no_tokens:
        raise Fault(
            "operand-shape",
            f"`{formal.name}` must be a token axis, but operand `{operand}` {actual} has "
            f"`{axis}` there",
            operand,
        )
    wanted = size(formal.size) if formal.size is not None else None
    if wanted is not None and wanted != axis.size:
        raise Fault(
            "size-mismatch",
            f"operand `{operand}` must have size {wanted} along `{name}`, found {axis.size}",
            operand,
        )
    if formal.name is not None:
        found.bind(formal.name, axis, operand)
    return axis.renamed(name)


def _match_tokens(
    formal: tree.TensorType, actual: TensorType, operand: str, found: Matched, size: Size
) -> TensorType:
    if actual.dtype != "i64" or actual.classes is None:
        raise Fault(
            "operand-kind", f"operand `{operand}` must be token ids, found {actual}", operand
        )
    if formal.axes:
        axis = formal.axes[0]
        if axis.name is not None:
            found.bind(axis.name, Axis(axis.name, actual.classes), operand)
        elif axis.size is not None:
            wanted = size(axis.size)
            if wanted is not None and wanted != actual.classes:
                raise Fault(
                    "size-mismatch",
                    f"operand `{operand}` must have {wanted} classes, found {actual.classes}",
                    operand,
                )
    axes = []
    for axis_ in actual.axes:
        if axis_.clock is not None and "T" not in found.axes:
            found.bind("T", axis_, operand)
            axes.append(axis_.renamed("T"))
        elif axis_.clock is not None and found.axes["T"] == axis_:
            axes.append(axis_.renamed("T"))
        else:
            axes.append(axis_.renamed(OUTER + axis_.name))
    return actual.with_axes(tuple(axes))


def _match_route(
    formal: tree.TensorType, actual: RouteType, operand: str, found: Matched
) -> RouteType:
    experts, top = actual.experts, actual.top
    if len(formal.axes) == 2:
        names = [axis.name for axis in formal.axes]
        if names[0]:
            found.bind(names[0], experts, operand)
            experts = experts.renamed(names[0])
        if names[1]:
            found.bind(names[1], top, operand)
            top = top.renamed(names[1])
    tokens = tuple(axis.renamed(OUTER + axis.name) for axis in actual.tokens)
    return replace(actual, tokens=tokens, experts=experts, top=top)


def _match_chunks(
    formal: tree.TensorType, actual: ChunksType, operand: str, found: Matched
) -> ChunksType:
    names = [axis.name or "" for axis in formal.axes]
    if len(names) != 2 or not all(is_token_name(name) for name in names):
        raise _shape(formal, actual, operand)
    found.bind(names[0], actual.fine, operand)
    found.bind(names[1], actual.coarse, operand)
    fine, coarse = actual.fine.renamed(names[0]), actual.coarse.renamed(names[1])
    return replace(actual, fine=fine, coarse=coarse)


def _shape(formal: tree.TensorType, actual: ValueType, operand: str) -> Fault:
    return Fault(
        "operand-shape", f"operand `{operand}` must be {show(formal)}, found {actual}", operand
    )


def show(formal: tree.TypeExpression) -> str:
    """Return a type as it is written in a signature."""
    if isinstance(formal, tree.TensorType):
        axes = ", ".join("*" if a.star else (a.name or _size_text(a.size)) for a in formal.axes)
        return f"{formal.head or ''}[{axes}]"
    if isinstance(formal, tree.TupleType):
        return "(" + ", ".join(show(item) for item in formal.items) + ")"
    inner = ", ".join(show(a) for a in formal.arguments)
    return f"{formal.name}[{inner}]" if inner else formal.name


def _size_text(size: tree.Expression | None) -> str:
    return size.span.text if size is not None else "?"


def outward(kind: ValueType, found: Matched) -> ValueType:
    """Return a result's type as the caller sees it: its own axis names.

    Raises:
        Fault: if two axes get the same name.
    """

    def back(axis: Axis) -> Axis:
        if axis.name.startswith(OUTER):
            return axis.renamed(axis.name[len(OUTER) :])
        bound = found.axes.get(axis.name)
        if bound is not None and bound.same_as(axis):
            return axis.renamed(bound.name)
        # chunks that the definition made are named after their clock
        made = axis.clock is not None and axis.clock.cut
        return axis.renamed(axis.clock.name) if made and axis.clock is not None else axis

    if isinstance(kind, UnknownType):
        return kind
    if isinstance(kind, RouteType):
        return replace(
            kind,
            tokens=tuple(back(a) for a in kind.tokens),
            experts=back(kind.experts),
            top=back(kind.top),
        )
    if isinstance(kind, ChunksType):
        return replace(kind, fine=back(kind.fine), coarse=back(kind.coarse))
    axes = tuple(back(axis) for axis in kind.axes)
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise Fault("axis-taken", f"the result would have two axes named `{name}`: {kind}")
    return kind.with_axes(axes)


def check_result(formal: tree.TypeExpression, kind: ValueType, found: Matched, size: Size) -> None:
    """Check a result against the type after ``->``.

    Raises:
        Fault: if its axes are not the stated ones.
    """
    if not isinstance(formal, tree.TensorType) or isinstance(kind, UnknownType):
        return
    fault = Fault("result-mismatch", f"the result must be {show(formal)}, found {_plain(kind)}")
    if isinstance(kind, RouteType) or formal.head == "route":
        if not (isinstance(kind, RouteType) and formal.head == "route"):
            raise fault
        return
    if isinstance(kind, ChunksType) or formal.head == "chunks":
        if not (isinstance(kind, ChunksType) and formal.head == "chunks"):
            raise fault
        return
    if formal.head is not None and formal.head not in ("any", kind.dtype):
        raise fault
    axes = [axis for axis in kind.axes if not (axis.name.startswith(OUTER) or axis.pack)]
    stated = [axis for axis in formal.axes if not axis.star]
    has_outer = len(axes) != len(kind.axes)
    if len(axes) != len(stated) or (has_outer and len(stated) == len(formal.axes)):
        raise fault
    for axis, want in zip(axes, stated, strict=True):
        if want.name is not None and axis.name != want.name:
            if not _made_here(axis, want.name, found):
                raise fault
            found.made[want.name] = axis
        wanted = size(want.size) if want.size is not None else found.sizes.get(want.name or "")
        if wanted is not None and wanted != axis.size:
            raise fault


def _made_here(axis: Axis, name: str, found: Matched) -> bool:
    """Whether a signature may call an axis of its results so: one of chunks made in the body.

    The names of operands are taken, and one name stands for one axis.
    """
    if axis.clock is None or not axis.clock.cut or not is_token_name(name) or name in found.axes:
        return False
    given = any(bound.clock == axis.clock for bound in found.axes.values())
    first = found.made.get(name)
    return not given and (first is None or first.clock == axis.clock)


def _plain(kind: ValueType) -> str:
    return str(kind).replace(OUTER, "")


def symbolic(formal: tree.TypeExpression | None, name: str, size: Size) -> ValueType:
    """Return the type of an operand while a definition is checked for all sizes."""
    if not is_known(formal):
        return UnknownType()
    assert isinstance(formal, tree.TensorType)
    if formal.head == "tokens":
        clock = Clock("T")
        classes = formal.axes[0] if formal.axes else None
        count = Dim.of(classes.name) if classes is not None and classes.name else None
        if count is None and classes is not None and classes.size is not None:
            count = size(classes.size)
        axis = Axis("T", clock.length, clock)
        return TensorType((axis,), "i64", classes=count or Dim.of("vocab"))
    axes: list[Axis] = []
    for axis_ in formal.axes:
        if axis_.star:
            axes.append(Axis("*", Dim.of("*"), pack=True))
            continue
        label = axis_.name or f"axis_{len(axes)}"
        wanted = size(axis_.size) if axis_.size is not None else None
        clock_ = Clock(label) if axis_.name and is_token_name(axis_.name) else None
        length = clock_.length if clock_ is not None else Dim.of(label)
        axes.append(Axis(label, wanted or length, clock_))
    if formal.head == "route":
        top = axes[1] if len(axes) > 1 else Axis("top", Dim.of("top"))
        pack = Axis("*", Dim.of("*"), pack=True)
        return RouteType((pack,), axes[0], top)
    if formal.head == "chunks":
        fine, coarse = (*axes, Axis("T", Dim.of("T_T"), Clock("T")), Axis("C", Dim.of("T_C")))[:2]
        return ChunksType(fine, coarse)
    dtype = formal.head if formal.head not in (None, "any") else "float"
    return TensorType(tuple(axes), dtype)
