"""Arguments of calls: how each is read, and what fits where."""

from __future__ import annotations

from dataclasses import dataclass

from tokdsl.diagnostics import did_you_mean
from tokdsl.graph import statics
from tokdsl.graph.builder import Poison
from tokdsl.graph.expressions import Expressions
from tokdsl.graph.frame import Frame
from tokdsl.graph.program import Value
from tokdsl.graph.statics import AbstractClosure, Closure, Unknown
from tokdsl.ops.base import Argument, AxisRef, NewAxis, Op, arguments
from tokdsl.syntax import tree
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import DTYPES

OPERAND_KINDS = ("operand", "operands", "companion")


@dataclass
class Given:
    """The arguments of a call sorted by how they were written, not yet evaluated."""

    before: list[tree.Argument]
    after: list[tree.Argument]
    named: dict[str, tree.Argument]


class Arguments(Expressions):
    """Reading of static arguments, and what to say when arguments do not fit."""

    def _op_static(
        self, frame: Frame, spec: Argument, node: tree.Expression, axis: str | None = None
    ) -> object:
        """Return a static argument of a primitive, read as its field says."""
        if spec.kind == "new_axis":
            return self._new_axis(frame, spec, node, axis)
        if spec.kind == "new_axes":
            items = node.items if isinstance(node, tree.ListExpression) else (node,)
            return tuple(self._new_axis(frame, spec, item, axis) for item in items)
        if spec.kind == "axis":
            return self._axis(frame, node)
        if spec.kind == "axes":
            items = node.items if isinstance(node, tree.ListExpression) else (node,)
            return tuple(self._axis(frame, item) for item in items)
        if spec.kind == "init":
            return self.initialiser(frame, node)
        if spec.kind in ("any", "predicate") and isinstance(node, tree.Lambda):
            from tokdsl.graph.masks import LambdaClosure

            return LambdaClosure(node, frame)
        value = self.evaluate(frame, node)
        if spec.kind == "sizes":
            return value if isinstance(value, tuple) else (value,)
        if isinstance(value, Unknown) and spec.optional:
            return spec.default
        return self._coerce(frame, spec.kind, value, node, spec.name, spec.optional)

    def initialiser(self, frame: Frame, node: tree.Expression) -> str | None:
        """Return an initialiser such as ``normal(std = 0.02)`` as ``normal(std=0.02)``."""
        from tokdsl.ops.initialisers import INITIALISERS

        if isinstance(node, tree.Nothing):
            return None
        call = node if isinstance(node, tree.Call) else None
        head = call.function if call is not None else node
        if isinstance(head, tree.Name):
            local = frame.find(head.id)
            if local is not None and call is None:
                return local.value if isinstance(local.value, str) else None
            takes = INITIALISERS.get(head.id)
            if takes is not None:
                return self._initialiser_text(frame, head.id, takes, node)
        raise self.fail(
            frame,
            "argument-type",
            node.span,
            f"`{node.span.text}` is no initialiser",
            help="initialisers are " + ", ".join(f"`{name}`" for name in INITIALISERS),
        )

    def _initialiser_text(
        self, frame: Frame, name: str, takes: tuple[str, ...], node: tree.Expression
    ) -> str:
        from tokdsl.ops.initialisers import BARE, POSITIVE

        call = node if isinstance(node, tree.Call) else None
        given: list[str] = []
        for i, argument in enumerate(call.operands if call is not None else ()):
            label = argument.name or (takes[i] if i < len(takes) else "")
            if label not in takes:
                raise self._too_many(frame, name, argument)
            value = self.evaluate(frame, argument.value)
            number = statics.as_float(value)
            if number is None and not isinstance(value, Unknown):
                raise self.fail(
                    frame, "argument-type", argument.span, f"`{label}` must be a number"
                )
            if name in POSITIVE and number is not None and number <= 0:
                raise self.fail(frame, "argument-type", argument.span, f"`{label}` must be above 0")
            given.append(f"{label}={number!r}")
        if name in BARE and len(given) < len(takes):
            raise self.fail(
                frame, "missing-argument", node.span, f"`{name}` needs {' and '.join(takes)}"
            )
        return f"{name}({', '.join(given)})"

    def _axis(self, frame: Frame, node: tree.Expression) -> AxisRef:
        if isinstance(node, tree.Star):
            return AxisRef("*")
        if isinstance(node, tree.Name):
            local = frame.find(node.id)
            if local is not None and isinstance(local.value, AxisRef):
                return local.value
            return AxisRef(node.id)
        raise self.fail(
            frame, "unknown-axis", node.span, f"an axis name is needed, found `{node.span.text}`"
        )

    def _new_axis(
        self, frame: Frame, spec: Argument, node: tree.Expression, axis: str | None
    ) -> NewAxis:
        value = self.evaluate(frame, node)
        if isinstance(value, Unknown):
            value = Dim.of(axis or spec.name)
        if not isinstance(value, Dim):
            raise self.fail(
                frame,
                "argument-type",
                node.span,
                f"the size of an axis must be int, found {describe(value)}",
            )
        number = value.number
        if number is not None and not 0 < number < 2**40:
            raise self.fail(frame, "size-mismatch", node.span, f"an axis cannot have size {number}")
        name = axis or (node.id if isinstance(node, tree.Name) else spec.name)
        return NewAxis(name, value)

    def _coerce(
        self,
        frame: Frame,
        kind: str,
        value: object,
        node: tree.Node,
        name: str,
        optional: bool = False,
    ) -> object:
        """Return a static value as the wanted type.

        Raises:
            Poison: if it does not fit (reported).
        """
        if value is None and optional:
            return None
        if isinstance(value, Unknown):
            return _stand_in(kind, value)
        if kind in ("any", "object", "predicate"):
            return value
        if kind in ("size", "int") and isinstance(value, Dim):
            if kind == "size":
                return value
            return value.number if value.number is not None else 1
        if kind == "float" and isinstance(value, (Dim, float)) and not isinstance(value, bool):
            number = statics.as_float(value)
            return number if number is not None else 1.0
        if kind == "bool" and isinstance(value, bool):
            return value
        if kind == "str" and isinstance(value, str):
            return value
        if kind == "str" and isinstance(value, Closure) and value.name in DTYPES:
            return value.name
        raise self.fail(
            frame,
            "argument-type",
            node.span,
            f"`{name}` must be {'int' if kind == 'size' else kind}, found " + describe(value),
        )

    def parameter_value(
        self, frame: Frame, parameter: tree.Parameter, node: tree.Expression
    ) -> object:
        """Return a static argument as its parameter's type wants it."""
        kind = parameter.type.name if isinstance(parameter.type, tree.NamedType) else "any"
        if kind == "axis":
            return self._axis(frame, node)
        if kind == "init":
            return self.initialiser(frame, node)
        if isinstance(node, tree.Lambda):
            from tokdsl.graph.masks import LambdaClosure

            return LambdaClosure(node, frame)
        value = self.evaluate(frame, node)
        if isinstance(value, Value):
            raise self.fail(
                frame,
                "argument-type",
                node.span,
                f"`{parameter.name}` is a static parameter, found a tensor {value.type}",
                help="tensors go before the `;`",
            )
        return self.check_static(frame, kind, value, node, parameter.name)

    def check_static(
        self, frame: Frame, kind: str, value: object, node: tree.Node, name: str
    ) -> object:
        """Return a value that fits a parameter's type.

        Raises:
            Poison: if it does not (reported).
        """
        if value is None or kind == "any" or isinstance(value, (Unknown, AbstractClosure)):
            return value
        if kind == "float" and isinstance(value, Dim):
            return statics.as_float(value) if value.is_number else Unknown("float")
        found = statics.type_name(value)
        fits = {"list": "list", "dtype": "str"}.get(kind, kind) == found
        if isinstance(value, Closure):
            fits = kind in tree.DEFINITION_KINDS
        if kind == "dtype" and isinstance(value, Closure):
            return value.name
        if not fits:
            raise self.fail(
                frame,
                "argument-type",
                node.span,
                f"`{name}` must be {kind}, found {found} {statics.show(value)}",
            )
        return value

    def _sort(self, frame: Frame, node: tree.Call) -> Given:
        given = Given([], [], {})
        for group, target in ((node.operands, given.before), (node.statics, given.after)):
            for argument in group:
                if argument.name is None:
                    target.append(argument)
                elif argument.name in given.named:
                    raise self.fail(
                        frame,
                        "unknown-argument",
                        argument.span,
                        f"argument `{argument.name}` is given twice",
                    )
                else:
                    given.named[argument.name] = argument
        return given

    def _missing(
        self, cls: type[Op], inputs: dict[str, Value], values: dict[str, object]
    ) -> Argument | None:
        for spec in arguments(cls):
            if spec.optional or spec.kind == "companion":
                continue
            if spec.kind == "operands":
                if not any(key.startswith(spec.name + "_") for key in inputs):
                    return spec
            elif spec.kind == "operand":
                if spec.name not in inputs:
                    return spec
            elif spec.name not in values:
                return spec
        return None

    def _too_many(self, frame: Frame, name: str, argument: tree.Argument) -> Poison:
        return self.fail(
            frame, "unknown-argument", argument.span, f"`{name}` takes no further argument"
        )

    def _unknown_argument(
        self,
        frame: Frame,
        callee: str,
        name: str,
        argument: tree.Argument,
        known: object,
        axes: Argument | None,
    ) -> Poison:
        names = list(known) if isinstance(known, dict) else []
        takes = ", ".join(f"`{n}`" for n in names) or "nothing"
        near = did_you_mean(name, names)
        if near is None and axes is not None:
            near = f"to name a new axis write `{name}: {argument.value.span.text}`"
        return self.fail(
            frame,
            "unknown-argument",
            argument.span,
            f"`{callee}` has no argument `{name}`; it takes {takes}",
            help=near,
        )


def _stand_in(kind: str, value: Unknown) -> object:
    """Return a value of the wanted type for a static that is decided by the caller."""
    if value.type == "dtype":
        return "float"
    return {"size": Dim.of(value.type), "int": 1, "float": 1.0, "bool": False, "str": ""}.get(
        kind, value
    )


def op_owns(op: Op) -> bool:
    """Whether an operation owns parameters or state, and so needs a name."""
    return bool(op.parameters()) or op.state() is not None


def describe(value: object) -> str:
    """Return the type and text of an argument that does not fit."""
    if isinstance(value, Value):
        return f"a tensor {value.type}"
    return f"{statics.type_name(value)} {statics.show(value)}"


def rank(name: str, order: list[str]) -> tuple[int, int]:
    """Return where an operand stands among an operation's fields; variadic ones are numbered."""
    if name in order:
        return order.index(name), 0
    base, _, index = name.rpartition("_")
    return (order.index(base), int(index)) if base in order and index.isdigit() else (99, 0)
