"""Builds the nodes of the tree from the productions of the grammar."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tokdsl.diagnostics import Diagnostic, Severity
from tokdsl.source import SourceFile, Span
from tokdsl.syntax import tree
from tokdsl.syntax.compare import walk
from tokdsl.syntax.engine import Builder, list_builder
from tokdsl.syntax.literals import Literals
from tokdsl.syntax.tables import load_tables

Children = list[Any]
NodeType = TypeVar("NodeType", bound=tree.Node)


class WrongTarget(Diagnostic, code="TOK120", name="wrong-target", severity=Severity.ERROR):
    """Something other than a name stands to the left of `=`.

    An equation defines a name, several names (`values, places = ...`) or a name with its index
    axes (`score[i: T, j: T] = ...`). To compare two values write `==`.

    ```tok error
    fn twice(x: [*, d]) -> [*, d] {
      2 * y = x
    }
    ```
    ```tok ok
    fn twice(x: [*, d]) -> [*, d] {
      y = 2 * x
    }
    ```
    """

    found: str

    def message(self) -> str:
        """Say what cannot be defined."""
        return f"expected a name to the left of `=`, found {self.found}"

    def label(self) -> str:
        """Name the rule."""
        return "only a name can be defined"


class MisplacedAxis(Diagnostic, code="TOK121", name="misplaced-axis", severity=Severity.ERROR):
    """An index is declared outside the left side of an equation.

    `i: T` in square brackets declares the index `i` over the axis `T`. It stands where the
    equation defines its name; everywhere else the index is written alone.

    ```tok error
    fn gram(x: [T, d]) {
      score = dot(x[i: T], x[j: T]; over = d)
    }
    ```
    ```tok ok
    fn gram(x: [T, d]) {
      score[i: T, j: T] = dot(x[i], x[j]; over = d)
    }
    ```
    """

    index: str
    axis: str

    def message(self) -> str:
        """Say which index is declared."""
        return f"index `{self.index}` cannot be declared here"

    def label(self) -> str:
        """Say what to write instead."""
        return f"write `{self.index}` alone"


@dataclass(frozen=True, slots=True, eq=False)
class Declaration(tree.Node):
    """A name with type and default, before it is known to be an operand or a parameter."""

    name: str
    type: tree.TypeExpression | None
    default: tree.Expression | None


@dataclass(frozen=True, slots=True, eq=False)
class Indexing(tree.Missing):
    """``i: T`` in square brackets; outside a target it is a mistake, and then no value."""

    id: str
    axis: str


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a definition that is no node of its own, under the name of its rule."""

    rule: str
    items: tuple[Any, ...]


class Build:
    """One method per rule or alias of the grammar; each gets its children and its range.

    Args:
        source: the file that the spans point into.
        found: the list that findings are added to.
        doc: gives the comment block above an offset.
    """

    def __init__(
        self, source: SourceFile, found: list[Diagnostic], doc: Callable[[int], str]
    ) -> None:
        self.source = source
        self.found = found
        self.doc = doc
        self.literals = Literals(source, found)
        self.declared: dict[int, Indexing] = {}

    def builders(self) -> Sequence[Builder]:
        """Return the builder of every rule of the tables."""
        return [
            list_builder if rule.builder.startswith("__") else getattr(self, rule.builder, same)
            for rule in load_tables().rules
        ]

    def span(self, start: int, end: int) -> Span:
        """Return the span of a range."""
        return Span(self.source, start, end)

    # ------------------------------------------------------------------ expressions

    def name(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Name`."""
        return tree.Name(Span(self.source, start, end), children[0])

    def number(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Number`."""
        return self.literals.number(children[0], self.span(start, end))

    def string(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `String`."""
        return self.literals.string(children[0], self.span(start, end))

    def true(self, children: Children, start: int, end: int) -> tree.Node:
        """Build ``true``."""
        return tree.Boolean(self.span(start, end), True)

    def false(self, children: Children, start: int, end: int) -> tree.Node:
        """Build ``false``."""
        return tree.Boolean(self.span(start, end), False)

    def nothing(self, children: Children, start: int, end: int) -> tree.Node:
        """Build ``none``."""
        return tree.Nothing(self.span(start, end))

    def missing(self, children: Children, start: int, end: int) -> tree.Node:
        """Build the place of a value that was not written."""
        return tree.Missing(self.span(start, end))

    def star(self, children: Children, start: int, end: int) -> tree.Node:
        """Build ``*`` as an axis."""
        return tree.Star(self.span(start, end))

    def parenthesised(self, children: Children, start: int, end: int) -> object:
        """Build what stands in round brackets: they leave no trace."""
        return children[0]

    def list_expression(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `ListExpression`."""
        return tree.ListExpression(self.span(start, end), tuple(children))

    def repeated(self, children: Children, start: int, end: int) -> tree.Node:
        """Build ``64 of value``."""
        return tree.Repeated(self.span(start, end), children[0], children[2])

    def unary(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Unary`."""
        return tree.Unary(self.span(start, end), children[0], children[1])

    def binary(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Binary`."""
        left, operator, right = children
        return tree.Binary(self.span(start, end), operator, left, right)

    def attribute(self, children: Children, start: int, end: int) -> tree.Node:
        """Build an `Attribute`."""
        return tree.Attribute(self.span(start, end), children[0], children[1])

    def index(self, children: Children, start: int, end: int) -> tree.Node:
        """Build an `Index`."""
        return tree.Index(self.span(start, end), children[0], tuple(children[1:]))

    def index_declaration(self, children: Children, start: int, end: int) -> tree.Node:
        """Build ``i: T``, whose place is checked when its statement is complete."""
        node = Indexing(self.span(start, end), children[0], children[1])
        self.declared[start] = node
        return node

    def check_declared(self) -> None:
        """Report index declarations that no equation has taken.

        Reports:
            TOK121 for each.
        """
        for node in self.declared.values():
            self.found.append(MisplacedAxis(span=node.span, index=node.id, axis=node.axis))
        self.declared.clear()

    def lambda_(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Lambda`."""
        return tree.Lambda(self.span(start, end), tuple(children[:-1]), children[-1])

    def conditional(self, children: Children, start: int, end: int) -> tree.Node:
        """Build an `If`."""
        otherwise = children[4] if len(children) > 3 else None
        return tree.If(self.span(start, end), children[1], children[2], otherwise)

    def otherwise(self, children: Children, start: int, end: int) -> tree.Node:
        """Build the `Body` of an ``else``; ``else if`` is a body of one step."""
        child = children[0]
        if isinstance(child, tree.Body):
            return child
        span = self.span(start, end)
        return tree.Body(span, (tree.Step(span, child),))

    # ------------------------------------------------------------------ calls

    def call(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Call`."""
        function, (operands, statics, separated) = children
        return tree.Call(self.span(start, end), function, operands, statics, separated)

    def call_arguments(self, children: Children, start: int, end: int) -> object:
        """Part the arguments of a call at its ``;``."""
        before, after, separated = _parted(children)
        return before, after, separated

    def arguments(self, children: Children, start: int, end: int) -> Part:
        """Collect arguments."""
        return Part("arguments", tuple(children))

    def argument(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a positional `Argument`."""
        return tree.Argument(self.span(start, end), children[0])

    def named_argument(self, children: Children, start: int, end: int) -> tree.Node:
        """Build ``name = value``."""
        return tree.Argument(self.span(start, end), children[1], name=children[0])

    def axis_argument(self, children: Children, start: int, end: int) -> tree.Node:
        """Build ``name: size``."""
        return tree.Argument(self.span(start, end), children[1], axis=children[0])

    # ------------------------------------------------------------------ types

    def tensor_type(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `TensorType`, or a `NamedType` for ``list[int]``."""
        headed = children[0] != "["
        head = children[0] if headed else None
        axes = tuple(children[2 if headed else 1 :])
        span = self.span(start, end)
        if head == "list":
            return tree.NamedType(span, head, tuple(type_of_axis(axis) for axis in axes))
        return tree.TensorType(span, head, axes)

    def named_type(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `NamedType`."""
        return tree.NamedType(self.span(start, end), children[0])

    def tuple_type(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `TupleType`."""
        return tree.TupleType(self.span(start, end), tuple(children))

    def sized_axis(self, children: Children, start: int, end: int) -> tree.Node:
        """Build ``channels: 3``."""
        return tree.AxisType(self.span(start, end), children[0], children[1])

    def plain_axis(self, children: Children, start: int, end: int) -> tree.Node:
        """Build ``d``, ``3`` or ``4 * d``."""
        size = children[0]
        if isinstance(size, tree.Name):
            return tree.AxisType(self.span(start, end), size.id, None)
        return tree.AxisType(self.span(start, end), None, size)

    def star_axis(self, children: Children, start: int, end: int) -> tree.Node:
        """Build ``*``."""
        return tree.AxisType(self.span(start, end), None, None, star=True)

    # ------------------------------------------------------------------ statements

    def body(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Body`."""
        return tree.Body(self.span(start, end), tuple(children))

    def parsed_body(self, children: Children, start: int, end: int) -> object:
        """Pass on a block that was parsed by itself."""
        return children[0]

    def assign(self, children: Children, start: int, end: int) -> tree.Node:
        """Build an `Assign`."""
        targets = tuple(self.target(child) for child in children[:-1])
        return tree.Assign(self.span(start, end), targets, children[-1])

    def shared(self, children: Children, start: int, end: int) -> tree.Node:
        """Build ``shared f = value``."""
        return tree.Assign(self.span(start, end), tuple(children[1:-1]), children[-1], shared=True)

    def shared_name(self, children: Children, start: int, end: int) -> tree.Node:
        """Build the target of a ``shared``."""
        return tree.Target(self.span(start, end), children[0])

    def aux(self, children: Children, start: int, end: int) -> tree.Node:
        """Build an `Aux`."""
        return tree.Aux(self.span(start, end), children[1], children[2])

    def require(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Require`."""
        return tree.Require(self.span(start, end), tuple(children[1:]))

    def repeat(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Repeat`."""
        index = children[3] if len(children) > 3 else None
        return tree.Repeat(self.span(start, end), children[1], index, children[-1])

    def residual(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Residual`."""
        arguments = children[1].items if len(children) > 2 else ()
        return tree.Residual(self.span(start, end), arguments, children[-1])

    def stage(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Stage`."""
        inputs, arguments = children[2] if len(children) > 3 else ((), ())
        return tree.Stage(self.span(start, end), children[1], inputs, arguments, children[-1])

    def stage_signature(self, children: Children, start: int, end: int) -> object:
        """Part a stage's brackets into inputs and arguments."""
        before, after, separated = _parted(children)
        inputs, arguments = [], []
        for d in before:
            if separated or d.type or d.default is None:
                inputs.append(_operand(d))
            else:
                arguments.append(tree.Argument(d.span, d.default, name=d.name))
        return tuple(inputs), (*arguments, *after)

    def step(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Step`."""
        return tree.Step(self.span(start, end), children[0])

    def target(self, node: tree.Node) -> tree.Target:
        """Turn the expression left of ``=`` into a `Target`."""
        indices: tuple[tree.IndexDeclaration, ...] = ()
        value = node
        if isinstance(node, tree.Index) and all(isinstance(i, Indexing) for i in node.indices):
            indices = tuple(self.take(i) for i in node.indices if isinstance(i, Indexing))
            value = node.value
        if isinstance(value, tree.Name):
            return tree.Target(node.span, value.id, indices)
        if not any(isinstance(inner, tree.Missing) for inner in walk(value)):
            self.found.append(WrongTarget(span=node.span, found=describe_node(node)))
        return tree.Target(node.span, "", ())

    def take(self, index: Indexing) -> tree.IndexDeclaration:
        """Turn an index of a target into its declaration."""
        self.declared.pop(index.span.start, None)
        return tree.IndexDeclaration(index.span, index.id, index.axis)

    # ------------------------------------------------------------------ items

    def module(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Module`."""
        return tree.Module(self.span(start, end), tuple(children))

    def use(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Use`."""
        rest = children[2:]
        names = rest[0].items if rest and isinstance(rest[0], Part) else ()
        alias = rest[1] if len(rest) == 2 else None
        return tree.Use(self.span(start, end), children[1].items, names, alias)

    def dotted(self, children: Children, start: int, end: int) -> Part:
        """Collect the words of a module's name."""
        return Part("dotted", tuple(children))

    def use_names(self, children: Children, start: int, end: int) -> Part:
        """Collect the names of a ``use``."""
        return Part("use_names", tuple(children))

    def import_(self, children: Children, start: int, end: int) -> tree.Node:
        """Build an `Import`."""
        alias = children[2] if len(children) > 1 else None
        return tree.Import(self.span(start, end), children[0], alias)

    def definition(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Definition`."""
        kind, name, signature = children[:3]
        operands, parameters = signature.items
        result = children[3].items[0] if len(children) > 4 else None
        return tree.Definition(
            self.span(start, end), kind, name, self.name_span(start, kind, name),
            operands, parameters, result, children[-1], self.doc(start),
        )  # fmt: skip

    def signature(self, children: Children, start: int, end: int) -> Part:
        """Part a signature into operands and parameters."""
        before, after, separated = _parted(children)
        operands, parameters = [], []
        for d in before:
            if separated or isinstance(d.type, tree.TensorType):
                operands.append(_operand(d))
            else:
                parameters.append(_parameter(d))
        parameters += [_parameter(d) for d in after]
        return Part("signature", (tuple(operands), tuple(parameters)))

    def result(self, children: Children, start: int, end: int) -> Part:
        """Mark the type behind ``->``."""
        return Part("result", (children[-1],))

    def declarations(self, children: Children, start: int, end: int) -> Part:
        """Collect declarations."""
        return Part("declarations", tuple(children))

    def declaration(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a declaration of an operand or a parameter."""
        annotation = self.annotation(children[1:], start, end)
        return Declaration(self.span(start, end), children[0], *annotation.items)

    def annotation(self, children: Children, start: int, end: int) -> Part:
        """Tell the type and the default of a declaration apart."""
        declared, default = None, None
        for child in children:
            if isinstance(child, (tree.TensorType, tree.NamedType, tree.TupleType)):
                declared = child
            else:
                default = child
        return Part("annotation", (declared, default))

    def model(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Model`."""
        parameters: tuple[tree.Parameter, ...] = ()
        if len(children) > 3:
            operands, declared = children[2].items
            both = [*(_parameter(operand) for operand in operands), *declared]
            parameters = tuple(sorted(both, key=lambda parameter: parameter.span.start))
        word, name = children[:2]
        return tree.Model(
            self.span(start, end), name, self.name_span(start, word, name),
            parameters, children[-1].statements, self.doc(start),
        )  # fmt: skip

    def name_span(self, start: int, word: str, name: str) -> Span:
        """Return the span of the name that follows the first word of an item."""
        at = self.source.text.find(name, start + len(word))
        return self.span(at, at + len(name)) if at >= 0 else self.span(start, start)

    def members(self, children: Children, start: int, end: int) -> tree.Node:
        """Collect the members of a model."""
        return tree.Body(self.span(start, end), tuple(children))

    def objective(self, children: Children, start: int, end: int) -> tree.Node:
        """Build an `Objective`."""
        return tree.Objective(self.span(start, end), children[1])

    def weights(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `Weights`."""
        return tree.Weights(self.span(start, end), children[1], children[2].statements)

    def rules(self, children: Children, start: int, end: int) -> tree.Node:
        """Collect the rules of a ``weights`` clause."""
        return tree.Body(self.span(start, end), tuple(children))

    def weight_rule(self, children: Children, start: int, end: int) -> tree.Node:
        """Build a `WeightRule`."""
        return tree.WeightRule(self.span(start, end), tuple(children[:-1]), children[-1])


# `lambda` and `import` are words of Python
setattr(Build, "lambda", Build.lambda_)
setattr(Build, "import", Build.import_)


def same(children: Children, start: int, end: int) -> object:
    """Pass on the one child of a rule without a node of its own."""
    return children[0] if children else None


def _parted(children: Children) -> tuple[tuple[Any, ...], tuple[Any, ...], bool]:
    """Part what stands in brackets at its ``;``."""
    before: tuple[Any, ...] = ()
    after: tuple[Any, ...] = ()
    separated = False
    for child in children:
        if child == ";":
            separated = True
        elif separated:
            after = child.items
        else:
            before = child.items
    return before, after, separated


def _operand(declared: Declaration) -> tree.Operand:
    return tree.Operand(declared.span, declared.name, declared.type, declared.default)


def _parameter(declared: Declaration | tree.Operand) -> tree.Parameter:
    return tree.Parameter(declared.span, declared.name, declared.type, declared.default)


def type_of_axis(axis: tree.AxisType) -> tree.TypeExpression:
    """Read what stands in ``list[...]`` as a type."""
    size = axis.size
    if isinstance(size, tree.Index) and isinstance(size.value, tree.Name):
        inner = tuple(type_of_axis(_axis_of(index)) for index in size.indices)
        if size.value.id == "list":
            return tree.NamedType(axis.span, "list", inner)
        return tree.TensorType(
            axis.span, size.value.id, tuple(_axis_of(index) for index in size.indices)
        )
    if isinstance(size, tree.ListExpression):
        return tree.TensorType(axis.span, None, tuple(_axis_of(item) for item in size.items))
    if axis.name is not None and size is None:
        return tree.NamedType(axis.span, axis.name)
    return tree.TensorType(axis.span, None, (axis,))


def _axis_of(node: tree.Node) -> tree.AxisType:
    if isinstance(node, tree.Star):
        return tree.AxisType(node.span, None, None, star=True)
    if isinstance(node, Indexing):
        return tree.AxisType(node.span, node.id, tree.Name(node.span, node.axis))
    if isinstance(node, tree.Name):
        return tree.AxisType(node.span, node.id, None)
    return tree.AxisType(node.span, None, node)  # type: ignore[arg-type]


_DESCRIBED = re.compile(r"(?<=[a-z])(?=[A-Z])")


def describe_node(node: tree.Node) -> str:
    """Return a node's form in words: ``a call``, ``a number``."""
    words = {"Binary": "an expression", "Unary": "an expression", "If": "an `if`"}
    kind = type(node).__name__
    if kind in words:
        return words[kind]
    noun = _DESCRIBED.sub(" ", kind).lower()
    return ("an " if noun[0] in "aeiou" else "a ") + noun
