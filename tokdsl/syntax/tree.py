"""The syntax tree: one frozen class per form of the language, a span on every node.

Text (`grammar/tok.lark`) and YAML give the same tree; after it nobody knows which was used.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokdsl.source import Span


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """Any node of the tree."""

    span: Span


# --------------------------------------------------------------------------- expressions


@dataclass(frozen=True, slots=True, eq=False)
class Name(Node):
    """A name: ``experts``."""

    id: str


@dataclass(frozen=True, slots=True, eq=False)
class Number(Node):
    """A number with its unit already multiplied in: ``6.0``, ``1e-6``, ``13B``, ``128KiB``.

    ``unit`` is the suffix as written (``K M B T`` powers of 1000, ``KiB MiB GiB`` of 1024) or "".
    """

    value: int | float
    unit: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class String(Node):
    """A string literal."""

    value: str


@dataclass(frozen=True, slots=True, eq=False)
class Boolean(Node):
    """``true`` or ``false``."""

    value: bool


@dataclass(frozen=True, slots=True, eq=False)
class Nothing(Node):
    """``none``: an absent optional value."""


@dataclass(frozen=True, slots=True, eq=False)
class ListExpression(Node):
    """``[a, b, 64 of swiglu(hidden = 1408)]``."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Repeated(Node):
    """``64 of swiglu(...)`` inside a list."""

    count: Expression
    value: Expression


@dataclass(frozen=True, slots=True, eq=False)
class Star(Node):
    """``*`` as an axis: all leading axes, the batch included."""


@dataclass(frozen=True, slots=True, eq=False)
class Unary(Node):
    """``-x``, ``not x``."""

    operator: str
    operand: Expression


@dataclass(frozen=True, slots=True, eq=False)
class Binary(Node):
    """``+ - * / // % ** < <= > >= == != and or``."""

    operator: str
    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True, eq=False)
class Argument(Node):
    """One argument of a call.

    ``name = value`` has ``name`` set; ``name: value`` (an axis and its size) has ``axis`` set.
    """

    value: Expression
    name: str | None = None
    axis: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Call(Node):
    """``f(operands; statics)``.

    Without ``;`` all arguments are in ``operands`` and ``separated`` is false.
    """

    function: Expression
    operands: tuple[Argument, ...]
    statics: tuple[Argument, ...] = ()
    separated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Attribute(Node):
    """``value.name``."""

    value: Expression
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Index(Node):
    """``value[i, j]``: axes renamed to indices, or an element of a list."""

    value: Expression
    indices: tuple[Expression, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Lambda(Node):
    """``|i, j| j <= i``."""

    parameters: tuple[str, ...]
    body: Expression


@dataclass(frozen=True, slots=True, eq=False)
class If(Node):
    """``if c { a } else { b }``; as a step its branches are pipelines."""

    condition: Expression
    then: Body
    otherwise: Body | None


@dataclass(frozen=True, slots=True, eq=False)
class Missing(Node):
    """A value that was not written; its diagnostic is already reported."""


Expression = (
    Name
    | Number
    | String
    | Boolean
    | Nothing
    | ListExpression
    | Repeated
    | Star
    | Unary
    | Binary
    | Call
    | Attribute
    | Index
    | Lambda
    | If
    | Missing
)

# --------------------------------------------------------------------------- statements


@dataclass(frozen=True, slots=True, eq=False)
class IndexDeclaration(Node):
    """``i: T`` in ``score[i: T, j: T] = ...``."""

    name: str
    axis: str


@dataclass(frozen=True, slots=True, eq=False)
class Target(Node):
    """A name that an equation defines, with the index axes it declares."""

    name: str
    indices: tuple[IndexDeclaration, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Assign(Node):
    """``a, b = value``; ``shared f = ...`` makes one instance that every later use shares."""

    targets: tuple[Target, ...]
    value: Expression
    shared: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Aux(Node):
    """``aux balance = value``: collected by the model under its path."""

    name: str
    value: Expression


@dataclass(frozen=True, slots=True, eq=False)
class Step(Node):
    """A bare expression: applied to the stream, or the value that becomes the stream."""

    value: Expression


@dataclass(frozen=True, slots=True, eq=False)
class Repeat(Node):
    """``repeat n as i { ... }``."""

    count: Expression
    index: str | None
    body: Body


@dataclass(frozen=True, slots=True, eq=False)
class Residual(Node):
    """``residual { ... }``: the body's result is added to what came in."""

    arguments: tuple[Argument, ...]
    body: Body


@dataclass(frozen=True, slots=True, eq=False)
class Stage(Node):
    """``stage name(inputs; arguments) { ... }``, at the top of a model or inside a stage."""

    name: str
    inputs: tuple[Operand, ...]
    arguments: tuple[Argument, ...]
    body: Body


@dataclass(frozen=True, slots=True, eq=False)
class Require(Node):
    """``require causal, active_params < 13B``."""

    conditions: tuple[Expression, ...]


@dataclass(frozen=True, slots=True, eq=False)
class BrokenStatement(Node):
    """Text that did not parse; its diagnostic is already reported."""


Statement = Assign | Aux | Step | Repeat | Residual | Stage | Require | BrokenStatement


@dataclass(frozen=True, slots=True, eq=False)
class Body(Node):
    """The statements between two braces."""

    statements: tuple[Statement, ...]


# --------------------------------------------------------------------------- types


@dataclass(frozen=True, slots=True, eq=False)
class AxisType(Node):
    """One axis in a type: ``*`` (star), ``d``, ``channels: 3``, ``3`` or ``4 * d``."""

    name: str | None
    size: Expression | None
    star: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TensorType(Node):
    """``[*, d]``, ``i64[T]``, ``tokens[vocab]``, ``route[experts, top]``.

    ``head`` is the word before the bracket (a dtype, ``tokens`` or a record such as ``route``)
    or None.
    """

    head: str | None
    axes: tuple[AxisType, ...]


@dataclass(frozen=True, slots=True, eq=False)
class NamedType(Node):
    """A static type: ``int``, ``float``, ``bool``, ``str``, ``block``, ``list[int]``."""

    name: str
    arguments: tuple[TypeExpression, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class TupleType(Node):
    """``([*, d], [*, k])``: several results."""

    items: tuple[TypeExpression, ...]


TypeExpression = TensorType | NamedType | TupleType

# --------------------------------------------------------------------------- definitions


@dataclass(frozen=True, slots=True, eq=False)
class Operand(Node):
    """A tensor that a definition or stage takes: ``x: [*, d]``; optional with a ``default``."""

    name: str
    type: TypeExpression | None
    default: Expression | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Parameter(Node):
    """A static parameter: ``top: int = 2``; ``type`` None means any static value."""

    name: str
    type: TypeExpression | None
    default: Expression | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Import(Node):
    """One name of a ``use``: ``gqa as attention``."""

    name: str
    alias: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Use(Node):
    """``use std.attention { gqa, rope }``; without braces the module itself is bound."""

    module: tuple[str, ...]
    names: tuple[Import, ...]
    alias: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Definition(Node):
    """``block swiglu(x: [*, d]; hidden: int) -> [*, d] { ... }``; ``kind`` is its first word."""

    kind: str
    name: str
    name_span: Span
    operands: tuple[Operand, ...]
    parameters: tuple[Parameter, ...]
    result: TypeExpression | None
    body: Body
    doc: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Objective(Node):
    """``objective next_token(text, ids) + 0.02 * mean(aux.balance)``."""

    value: Expression


@dataclass(frozen=True, slots=True, eq=False)
class WeightRule(Node):
    """One line of a ``weights`` clause: ``"published.{i}.name" = layers[i].q.weight``.

    ``published`` holds one pattern, or several for ``"a", "b" = split(...)``.
    """

    published: tuple[String, ...]
    value: Expression


@dataclass(frozen=True, slots=True, eq=False)
class Weights(Node):
    """``weights huggingface { ... }``: a published layout of the parameters."""

    name: str
    rules: tuple[WeightRule, ...]


ModelMember = Assign | Aux | Stage | Objective | Require | Weights | BrokenStatement


@dataclass(frozen=True, slots=True, eq=False)
class Model(Node):
    """``model mixtral(vocab: int = 32000) { ... }``; ``tokenizer = ...`` is an `Assign`."""

    name: str
    name_span: Span
    parameters: tuple[Parameter, ...]
    members: tuple[ModelMember, ...]
    doc: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class BrokenItem(Node):
    """A top-level piece of text that did not parse; its diagnostic is already reported."""


Item = Use | Definition | Model | BrokenItem


@dataclass(frozen=True, slots=True, eq=False)
class Module(Node):
    """One file."""

    items: tuple[Item, ...]


#: The words that begin a definition.
DEFINITION_KINDS = (
    "block",
    "router",
    "attention",
    "reduction",
    "expansion",
    "loss",
    "mask",
    "tokenizer",
    "fn",
)
