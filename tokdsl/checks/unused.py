"""Names that nothing reads: of definitions, of models, and definitions themselves.

The check reads the tree, not the graph: a branch that this model does not take still uses its
names. Names that begin with ``_`` are meant to be unused.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokdsl.diagnostics import Diagnostic, Report, Severity
from tokdsl.resolve.modules import FileScope
from tokdsl.source import Span
from tokdsl.syntax import tree

WARNING = Severity.WARNING


class UnusedName(Diagnostic, code="TOK441", name="unused-name", severity=WARNING):
    """A name is bound and never read.

    It may be a mistake: another name was meant, or a result was forgotten. A name that begins
    with `_` is never reported; several results can be taken as `values, _ = topk(...)`.

    ```tok error
    block f(x: [*, d]; scale: float) -> [*, d] { linear(x; d) }
    ```
    ```tok ok
    block f(x: [*, d]; scale: float) -> [*, d] { scale * linear(x; d) }
    ```
    """

    kind: str
    unused: str

    def message(self) -> str:
        """Return what was found."""
        return f"the {self.kind} `{self.unused}` is never read"


class UnusedDefinition(Diagnostic, code="TOK442", name="unused-definition", severity=WARNING):
    """A definition in a model's file is used by nothing.

    Definitions that other files take are kept in a file without a model.

    ```tok error
    fn double(x: [*, d]) -> [*, d] { 2.0 * x }

    model m(d: int = 8) {
      stage text(ids: tokens[256]) { embed(d); unembed(256) }
    }
    ```
    ```tok ok
    fn double(x: [*, d]) -> [*, d] { 2.0 * x }

    model m(d: int = 8) {
      stage text(ids: tokens[256]) { embed(d); double(); unembed(256) }
    }
    ```
    """

    unused: str

    def message(self) -> str:
        """Return what was found."""
        return f"`{self.unused}` is used by nothing in this file"


class UnusedStage(Diagnostic, code="TOK443", name="unused-stage", severity=WARNING):
    """A stage is used neither by another stage nor by the objective.

    Its parameters are never trained.

    ```tok error
    model m(d: int = 8) {
      stage text(ids: tokens[256]) { embed(d); unembed(256) }
      stage other(ids: tokens[256]) { embed(d); unembed(256) }
      objective next_token(text, ids)
    }
    ```
    ```tok ok
    model m(d: int = 8) {
      stage text(ids: tokens[256]) { embed(d); unembed(256) }
      stage other(ids: tokens[256]) { embed(d); unembed(256) }
      objective next_token(text, ids) + next_token(other, ids)
    }
    ```
    """

    unused: str

    def message(self) -> str:
        """Return what was found."""
        return f"the objective does not depend on the stage `{self.unused}`"


def check_unused_definitions(scope: FileScope, report: Report) -> None:
    """Report the names of a file that nothing reads."""
    if scope.is_library:
        return
    for item in scope.module.items:
        if isinstance(item, tree.Definition):
            _definition(item, report)
        elif isinstance(item, tree.Model):
            _model(item, report)
    _definitions(scope, report)


# --------------------------------------------------------------------------- one definition


def _definition(item: tree.Definition, report: Report) -> None:
    read = set(mentions(item.body)) | set(mentions(item.parameters)) | set(mentions(item.result))
    read |= {name for operand in item.operands for name in mentions(operand.default)}
    sizes = set(mentions(tuple(o.type for o in item.operands)))
    for i, operand in enumerate(item.operands):
        as_stream = i == 0 and _uses_stream(item.body)
        if item.kind != "mask" and not as_stream:
            _name(operand.name, "operand", operand.span, read, report)
    for parameter in item.parameters:
        _name(parameter.name, "parameter", parameter.span, read | sizes, report)
    # the equations of a tokenizer name inputs of the model
    if item.kind != "tokenizer":
        _body(item.body, read, report, has_value=True)


def _uses_stream(body: tree.Body) -> bool:
    """Whether a body has a step that the stream may flow through."""
    for node in walk(body):
        if isinstance(node, tree.Step | tree.Residual | tree.Repeat | tree.Stage):
            return True
        if isinstance(node, tree.Name) and node.id == "it":
            return True
    return False


def _body(body: tree.Body, read: set[str], report: Report, *, has_value: bool) -> None:
    """Report unread equations and loop indices of a body and of the bodies in it."""
    for statement in body.statements:
        is_value = has_value and statement is body.statements[-1]
        if isinstance(statement, tree.Assign):
            for target in statement.targets:
                if not is_value:
                    _name(target.name, "value", target.span, read, report)
        elif isinstance(statement, tree.Repeat):
            index = statement.index
            if index is not None:
                _name(index, "index", statement.span, set(mentions(statement.body)), report)
            _body(statement.body, read, report, has_value=False)
        elif isinstance(statement, tree.Residual | tree.Stage):
            _body(statement.body, read, report, has_value=False)
        for node in walk(statement):
            if isinstance(node, tree.If):
                _body(node.then, read, report, has_value=True)
                if node.otherwise is not None:
                    _body(node.otherwise, read, report, has_value=True)


def _name(name: str, kind: str, span: Span, read: set[str], report: Report) -> None:
    if name not in read and not name.startswith("_"):
        report.add(
            UnusedName(span=span, kind=kind, unused=name, help=f"remove it, or write `_{name}`")
        )


# --------------------------------------------------------------------------- one model


def _model(item: tree.Model, report: Report) -> None:
    read = set(mentions(item.members)) | set(mentions(item.parameters))
    stages = [m for m in item.members if isinstance(m, tree.Stage)]
    for parameter in item.parameters if stages else ():
        _name(parameter.name, "parameter", parameter.span, read, report)
    objective = [m for m in item.members if isinstance(m, tree.Objective)]
    for member in item.members:
        if isinstance(member, tree.Assign) and member.targets[0].name != "tokenizer":
            for target in member.targets:
                _name(target.name, "value", target.span, read, report)
    labels = set(mentions(tuple(objective)))
    for stage in stages:
        inside = set(mentions(stage.body))
        for i, operand in enumerate(stage.inputs):
            as_stream = i == 0 and _uses_stream(stage.body)
            if not as_stream:
                _name(operand.name, "input", operand.span, inside | labels, report)
        _body(stage.body, inside, report, has_value=False)
    if objective:
        _stages(stages, item, report)


def _stages(stages: list[tree.Stage], item: tree.Model, report: Report) -> None:
    """Report the stages that the objective does not depend on."""
    reads: dict[str, set[str]] = {}
    wanted: set[str] = set()
    aux: dict[str, set[str]] = {}
    for member in item.members:
        if isinstance(member, tree.Stage):
            own = set(mentions(member.body)) | {operand.name for operand in member.inputs}
            reads[member.name] = own | set(mentions(member.inputs))
            aux[member.name] = own
        elif isinstance(member, tree.Assign):
            for target in member.targets:
                reads[target.name] = set(mentions(member.value))
        elif isinstance(member, tree.Objective):
            wanted |= set(mentions(member))
    todo = list(wanted)
    while todo:
        for name in reads.get(todo.pop(), set()) - wanted:
            wanted.add(name)
            todo.append(name)
    for stage in stages:
        if stage.name not in wanted and not stage.name.startswith("_"):
            if "aux" in wanted:
                continue  # the stage may give an auxiliary value
            report.add(UnusedStage(span=_head(stage), unused=stage.name))


def _head(stage: tree.Stage) -> Span:
    """Return the span of a stage's first line."""
    start = stage.span.start
    return Span(stage.span.file, start, max(start + 1, stage.body.span.start))


# --------------------------------------------------------------------------- one file


def _definitions(scope: FileScope, report: Report) -> None:
    """Report definitions that no model of the file comes to; only where there is a model."""
    models = [item for item in scope.module.items if isinstance(item, tree.Model)]
    own = {i.name: i for i in scope.module.items if isinstance(i, tree.Definition)}
    if not models:
        return
    wanted = {name for model in models for name in mentions(model)} & own.keys()
    todo = list(wanted)
    while todo:
        for name in (set(mentions(own[todo.pop()])) & own.keys()) - wanted:
            wanted.add(name)
            todo.append(name)
    for name, item in own.items():
        if name not in wanted and not name.startswith("_"):
            report.add(UnusedDefinition(span=item.name_span, unused=name))


def mentions(node: object) -> Iterator[str]:
    """Yield the names that a piece of the tree reads, axis names in types included."""
    for item in walk(node):
        if isinstance(item, tree.Name):
            yield item.id
        elif isinstance(item, tree.AxisType) and item.name is not None:
            yield item.name


def walk(node: object) -> Iterator[tree.Node]:
    """Yield a piece of the tree and all that is in it."""
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, tuple):
            stack.extend(item)
        elif isinstance(item, tree.Node):
            yield item
            for name in type(item).__slots__:
                if name != "span":
                    stack.append(getattr(item, name))
