"""Tokenizers: what makes tokens of a text, and the steps that say where segments begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tokdsl.diagnostics import Label, did_you_mean
from tokdsl.graph.builder import Poison
from tokdsl.graph.frame import Frame
from tokdsl.graph.statics import AbstractClosure, Unknown, as_float, show, type_name
from tokdsl.resolve.modules import DefinitionRef
from tokdsl.source import Span
from tokdsl.syntax import tree
from tokdsl.tokenizers import BASES, SEGMENTATIONS, Parameter, Step, special_tokens
from tokdsl.types.dims import Dim

if TYPE_CHECKING:
    from tokdsl.graph.definitions import Definitions

#: other words for one of them
ALSO = {"bpe": "pretrained"}
#: the name of the input that a step without a name fills
STARTS = "starts"


@dataclass
class Pipeline:
    """A tokenizer: its base as (name, arguments, place in the source), and its steps."""

    base: tuple[str, dict[str, object], Span] | None = None
    steps: list[tuple[Step, Span]] = field(default_factory=list)


def read_tokenizer(builder: Definitions, frame: Frame, node: tree.Expression) -> Pipeline:
    """Return the tokenizer that the member ``tokenizer = ...`` of a model names.

    Raises:
        Poison: if it is not a tokenizer (reported).
    """
    found = Pipeline()
    _add(builder, frame, found, node, None)
    if found.base is None:
        raise builder.fail(
            frame,
            "not-callable",
            node.span,
            f"`{node.span.text}` makes no tokens of a text",
            help=f"begin the tokenizer with one of {_listed(BASES)}",
        )
    for step, span in found.steps:
        _check_marking(builder, frame, found.base, step, span)
    return found


def _check_marking(
    builder: Definitions,
    frame: Frame,
    base: tuple[str, dict[str, object], Span],
    step: Step,
    span: Span,
) -> None:
    """Report a step that marks tokens in a way that the tokenizer has not."""
    name, arguments, _ = base
    specials = special_tokens(arguments) if name == "bytes" else []
    if step.marker and step.marker not in specials:
        raise builder.fail(
            frame,
            "argument-type",
            span,
            f'`marker` is a special token of `bytes`, and there is no "{step.marker}"',
            help=f'write `bytes(specials = ["{step.marker}"])`',
        )
    if step.is_late and name not in ("bytes", "chars"):
        raise builder.fail(
            frame,
            "argument-type",
            span,
            f"`{name}` is not read one token at a time, so `flag = known` has no meaning",
        )


def read_body(builder: Definitions, frame: Frame, definition: tree.Definition) -> Pipeline:
    """Return the pipeline of a definition whose parameters are bound in the frame.

    Raises:
        Poison: if a statement is no step (reported).
    """
    found, is_broken = Pipeline(), False
    for statement in definition.body.statements:
        try:
            _read_statement(builder, frame, found, statement)
        except Poison:
            is_broken = True
    if is_broken:
        raise Poison
    return found


def _read_statement(
    builder: Definitions, frame: Frame, found: Pipeline, statement: tree.Statement
) -> None:
    if isinstance(statement, tree.BrokenStatement):
        raise Poison
    if isinstance(statement, tree.Step):
        _add(builder, frame, found, statement.value, None)
    elif isinstance(statement, tree.Assign) and len(statement.targets) == 1:
        _add(builder, frame, found, statement.value, statement.targets[0])
    else:
        raise builder.fail(
            frame,
            "not-callable",
            statement.span,
            "a tokenizer is a list of steps, each a call",
            help=f"write one of {_listed(BASES)}, then any of {_listed(SEGMENTATIONS)}",
        )


def _add(
    builder: Definitions,
    frame: Frame,
    found: Pipeline,
    node: tree.Expression,
    target: tree.Target | None,
) -> None:
    """Add what a call stands for to a pipeline."""
    head = node.function if isinstance(node, tree.Call) else node
    name = head.id if isinstance(head, tree.Name) else ""
    definition = frame.file.find(name)
    if isinstance(definition, DefinitionRef) and definition.definition.kind == "tokenizer":
        _add_definition(builder, frame, found, node, definition, target)
        return
    name = ALSO.get(name, name)
    if not isinstance(node, tree.Call) or name not in (*BASES, *SEGMENTATIONS):
        known = [*BASES, *SEGMENTATIONS]
        raise builder.fail(
            frame,
            "not-callable",
            node.span,
            f"`{node.span.text}` is no tokenizer; there are {_listed(known)}",
            help=did_you_mean(name, known),
        )
    if name in BASES:
        if found.base is not None or found.steps:
            raise builder.fail(
                frame, "not-callable", node.span, f"`{name}` must be the first step of a tokenizer"
            )
        found.base = name, _arguments(builder, frame, node, name, BASES[name]), node.span
        return
    if found.base is None and not frame.active:
        raise builder.fail(
            frame,
            "not-callable",
            node.span,
            f"`{name}` cuts what a tokenizer reads, and there is none before it",
            help="write a definition: `tokenizer mine() { bytes(); " + name + "(...) }`",
        )
    given = _arguments(builder, frame, node, name, SEGMENTATIONS[name].parameters)
    _add_step(builder, frame, found, Step(target.name if target else STARTS, name, given), node)


def _add_step(
    builder: Definitions, frame: Frame, found: Pipeline, step: Step, node: tree.Node
) -> None:
    if any(other.name == step.name for other, _ in found.steps):
        raise builder.fail(
            frame,
            "unknown-argument",
            node.span,
            f"two steps say what `{step.name}` is",
            help="name one of them: `lines = delimiters(...)` fills the input `lines`",
        )
    found.steps.append((step, node.span))


def _add_definition(
    builder: Definitions,
    frame: Frame,
    found: Pipeline,
    node: tree.Expression,
    target: DefinitionRef,
    name: tree.Target | None,
) -> None:
    builder.check_recursion(frame, target, node.span)
    definition = target.definition
    inner = Frame(
        frame.module,
        target.scope,
        trace=(*frame.trace, Label(node.span, f"in `{target.name}`")),
        active=(*frame.active, target),
        symbolic=frame.symbolic,
    )
    given = _given(builder, frame, node, definition.name, [p.name for p in definition.parameters])
    for parameter in definition.parameters:
        argument = given.get(parameter.name)
        if argument is not None:
            value = builder.parameter_value(frame, parameter, argument.value)
        elif parameter.default is not None:
            value = builder.parameter_value(inner, parameter, parameter.default)
        else:
            raise builder.fail(
                frame,
                "missing-argument",
                node.span,
                f"`{definition.name}` needs `{parameter.name}`",
            )
        inner.bind(parameter.name, value, parameter.span, "parameter")
    part = read_body(builder, inner, definition)
    if part.base is not None:
        if found.base is not None or found.steps:
            raise builder.fail(
                frame,
                "not-callable",
                node.span,
                f"`{definition.name}` makes tokens, so it must be the first step",
            )
        # a file is looked for beside the user's own
        place = node.span if target.scope.is_library else part.base[2]
        found.base = (*part.base[:2], place)
    for step, _ in part.steps:
        named = replace(step, name=name.name) if name is not None else step
        _add_step(builder, frame, found, named, node)


def _given(
    builder: Definitions, frame: Frame, node: tree.Expression, name: str, takes: list[str]
) -> dict[str, tree.Argument]:
    """Return the arguments of a call by name; those without a name in order."""
    given: dict[str, tree.Argument] = {}
    if not isinstance(node, tree.Call):
        return given
    for i, argument in enumerate((*node.operands, *node.statics)):
        key = argument.name or (takes[i] if i < len(takes) else "")
        if key not in takes or key in given:
            raise builder.fail(
                frame,
                "unknown-argument",
                argument.span,
                f"`{name}` takes {', '.join(takes) or 'nothing'}, found `{argument.span.text}`",
            )
        given[key] = argument
    return given


def _arguments(
    builder: Definitions, frame: Frame, node: tree.Call, name: str, takes: Mapping[str, Parameter]
) -> dict[str, object]:
    """Return what is given to a tokenizer or step, with the defaults of a step."""
    given = _given(builder, frame, node, name, list(takes))
    values: dict[str, object] = {}
    for key, parameter in takes.items():
        if key in given:
            values[key] = _value(builder, frame, given[key].value, key, parameter)
        elif name in SEGMENTATIONS:
            if parameter.default is None:
                raise builder.fail(frame, "missing-argument", node.span, f"`{name}` needs `{key}`")
            values[key] = parameter.default
    return values


def _value(
    builder: Definitions, frame: Frame, node: tree.Expression, name: str, parameter: Parameter
) -> object:
    """Return an argument; one of several words may stand without quotes."""
    if isinstance(node, tree.Name) and node.id in parameter.choices and not frame.find(node.id):
        return node.id
    value = builder.evaluate(frame, node)
    if isinstance(value, (Unknown, AbstractClosure)):
        return value
    if parameter.choices and value not in parameter.choices:
        raise builder.fail(
            frame,
            "argument-type",
            node.span,
            f"`{name}` is one of {', '.join(parameter.choices)}, found {show(value)}",
        )
    found = type_name(value)
    number = as_float(value) if parameter.kind == "float" else None
    if found != parameter.kind and number is None and not (parameter.kind == "bool" and not value):
        raise builder.fail(
            frame,
            "argument-type",
            node.span,
            f"`{name}` must be {parameter.kind}, found {found} {show(value)}",
        )
    return value if number is None else number


def plain_steps(pipeline: Pipeline) -> list[tuple[Step, Span]]:
    """Return the steps with their arguments as plain numbers and texts."""
    return [
        (replace(step, arguments={n: _plain(v) for n, v in step.arguments.items()}), span)
        for step, span in pipeline.steps
    ]


def _plain(value: object) -> object:
    return value.number if isinstance(value, Dim) else value


def _listed(names: object) -> str:
    assert isinstance(names, (Mapping, list))
    return ", ".join(f"`{name}`" for name in names)
