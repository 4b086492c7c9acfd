"""The YAML form: the same tree in other clothes.

Structure (items, stages, `repeat`, `residual`, `if`) is YAML; expressions, types and statements
without a block are texts in the syntax of `.tok`, read with the same grammar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from tokdsl.diagnostics import Diagnostic, Report, Severity, did_you_mean
from tokdsl.source import SourceFile, Span
from tokdsl.syntax import tree
from tokdsl.syntax.embedded import Embedded
from tokdsl.syntax.faults import NestedTooDeep, encoding_findings, is_binary
from tokdsl.syntax.layout import SOFT_WORDS
from tokdsl.syntax.lexer import lex
from tokdsl.syntax.parser import NESTING_LIMIT
from tokdsl.syntax.yaml_keys import ITEM_FORMS, RULE_FORM, STATEMENT_FORMS, Form
from tokdsl.syntax.yaml_nodes import YamlNode, read_yaml
from tokdsl.syntax.yaml_text import to_yaml

__all__ = ["parse_yaml", "to_yaml"]


class UnknownKey(Diagnostic, code="TOK131", name="unknown-key", severity=Severity.ERROR):
    """A mapping has a key that its form does not know.

    A statement that holds `: ` is a mapping to YAML; put the whole of it in quotes.

    ```yaml error
    - model: small
      paramters: {d: int = 64}
      body: [require causal]
    ```
    ```yaml ok
    - model: small
      parameters: {d: int = 64}
      body: [require causal]
    ```
    """

    key: str
    form: str
    known: tuple[str, ...]

    def message(self) -> str:
        """Say which key is unknown where."""
        key = self.key if len(self.key) <= 40 else f"{self.key[:36]}..."
        place = f"in `{self.form}`" if self.form else "here"
        return f"unknown key `{key}` {place}"

    def label(self) -> str:
        """Say which keys are known."""
        return f"known keys: {', '.join(self.known)}"


class WrongShape(Diagnostic, code="TOK132", name="wrong-shape", severity=Severity.ERROR):
    """A value has another shape than its place asks for.

    A `body` is a list of statements, `parameters` a mapping of names to types.

    ```yaml error
    - model: small
      body:
        require: causal
    ```
    ```yaml ok
    - model: small
      body:
        - require: causal
    ```
    """

    expected: str
    found_shape: str

    def message(self) -> str:
        """Say what was expected and what was found."""
        return f"expected {self.expected}, found {self.found_shape}"

    def label(self) -> str:
        """Say what was expected."""
        return f"expected {self.expected}"


class MissingKey(Diagnostic, code="TOK135", name="missing-key", severity=Severity.ERROR):
    """A mapping lacks a key that its form needs.

    Every definition, model and stage has a `body`, and an `if` has a `then`.

    ```yaml error
    - model: small
      parameters: {d: int = 64}
    ```
    ```yaml ok
    - model: small
      parameters: {d: int = 64}
      body: [require causal]
    ```
    """

    key: str
    form: str

    def message(self) -> str:
        """Say which key is missing."""
        return f"missing key `{self.key}` in `{self.form}`"

    def label(self) -> str:
        """Say it shortly."""
        return f"has no `{self.key}`"


def parse_yaml(source: SourceFile) -> tuple[tree.Module, list[Diagnostic]]:
    """Read a module from its YAML form; never raises.

    Reports:
        TOK130 to TOK135, and all that `parse` reports, inside texts.
    """
    report = Report()
    report.extend(encoding_findings(source))
    whole = Span(source, 0, len(source.text))
    if is_binary(source):
        return tree.Module(whole, ()), report.sorted()
    top, found = read_yaml(source)
    report.extend(found)
    reader = _Form(source)
    items = reader.items(top) if top is not None else ()
    report.extend(reader.found)
    return tree.Module(whole, items), report.sorted()


class _Form:
    """Turns YAML nodes into the nodes of the tree."""

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self.found: list[Diagnostic] = []
        self.texts = Embedded(source, self.found)
        self.level = 0

    # ------------------------------------------------------------------ shapes

    def wrong(self, node: YamlNode, expected: str) -> None:
        """Report a value of another shape, unless that was done."""
        if node.kind == "alias":
            return None
        self.found.append(WrongShape(span=short(node), expected=expected, found_shape=node.words()))

    def entries(self, node: YamlNode | None, expected: str) -> list[YamlNode]:
        """Return the entries of a list."""
        if node is None or node.is_empty:
            return []
        if node.kind != "list":
            self.wrong(node, expected)
            return []
        return node.items

    def form(
        self, node: YamlNode, forms: dict[str, Form], what: str
    ) -> tuple[str, dict[str, YamlNode]]:
        """Return which form a mapping has, and its values; report wrong and missing keys."""
        keys = [key for key, _ in node.pairs]
        head = next((key.text for key in keys if key.text in forms), "")
        form = forms.get(head)
        if form is None:
            self.unknown(keys[0] if keys else node, tuple(forms), "", what)
            return "", {}
        values = {}
        for key, value in node.pairs:
            if key.kind == "scalar" and key.text in form.names:
                values[key.text] = value
            else:
                self.unknown(key, form.names, head, what)
        for wanted in form.keys:
            if wanted.required and wanted.name not in values:
                self.found.append(MissingKey(span=short(keys[0]), key=wanted.name, form=head))
        return head, values

    def unknown(self, key: YamlNode, known: tuple[str, ...], form: str, what: str) -> None:
        """Report a key that nobody knows."""
        if key.kind != "scalar":
            self.wrong(key, f"{what} with one of the keys {', '.join(known)}")
            return
        advice = did_you_mean(key.text, known)
        if advice is None and not key.text.isidentifier():
            advice = "put the whole text in quotes: `: ` begins a mapping in YAML"
        span = short(key)
        self.found.append(UnknownKey(span=span, key=key.text, form=form, known=known, help=advice))

    # ------------------------------------------------------------------ small values

    def name(self, node: YamlNode | None, expected: str = "a name") -> str:
        """Return a name."""
        if node is None:
            return "_"
        if node.kind != "scalar" or not is_name(node.text):
            self.wrong(node, expected)
            return "_"
        return node.text

    def alias(self, node: YamlNode | None) -> str | None:
        """Return a name that may be absent."""
        return None if node is None else self.name(node)

    def expression(self, node: YamlNode | None, rule: str = "expression") -> tree.Expression:
        """Return an expression."""
        if node is None:
            return tree.Missing(Span(self.source, 0, 0))
        if node.kind != "scalar" or (node.is_empty and not node.text):
            self.wrong(node, "an expression")
            return tree.Missing(node.span)
        value = self.texts.read(node, rule, self.level)
        return tree.Missing(node.span) if value is None else cast(tree.Expression, value)

    def plain(self, node: YamlNode) -> str:
        """Return the text of a scalar as it is."""
        if node.kind != "scalar" or node.is_empty:
            self.wrong(node, "a text")
        return node.text

    def text(self, node: YamlNode | None) -> str:
        """Return a text in words."""
        if node is None or node.is_empty:
            return ""
        if node.kind != "scalar":
            self.wrong(node, "a text")
            return ""
        text = node.text.removesuffix("\n") if node.style in ("|", ">") else node.text
        return "\n".join(line.rstrip() for line in text.split("\n"))

    # ------------------------------------------------------------------ lists of values

    def annotations(self, node: YamlNode | None) -> list[tuple[Span, str, Any, Any]]:
        """Return names with their types and defaults."""
        if node is None or node.is_empty:
            return []
        if node.kind == "list":
            read = [self.declaration(entry) for entry in node.items]
            return [(d.span, d.name, d.type, d.default) for d in read if d is not None]
        if node.kind != "mapping":
            self.wrong(node, "a mapping of names to types")
            return []
        declared = []
        for key, value in node.pairs:
            span = key.span.to(value.span)
            kind, default = None, None
            if value.kind != "scalar":
                hint = 'a type in quotes, such as `"[*, d]"`'
                self.wrong(value, hint)
                default = tree.Missing(value.span)
            elif not value.is_empty:
                part = cast(Any, self.texts.read(value, "annotation", self.level))
                kind, default = part.items if part is not None else (None, None)
            declared.append((span, self.name(key), kind, default))
        return declared

    def declaration(self, node: YamlNode) -> Any:
        """Return a declaration that is written as one text."""
        if node.kind != "scalar" or node.is_empty:
            return self.wrong(node, "a declaration as a text")
        return self.texts.read(node, "declaration", self.level)

    def arguments(self, node: YamlNode | None) -> tuple[tree.Argument, ...]:
        """Return the arguments of a stage or residual."""
        if node is None or node.is_empty:
            return ()
        if node.kind == "mapping":
            return tuple(
                tree.Argument(
                    key.span.to(value.span), self.expression(value, "value"), name=self.name(key)
                )
                for key, value in node.pairs
            )
        arguments = []
        for entry in self.entries(node, "a mapping or a list of arguments"):
            if entry.kind != "scalar" or entry.is_empty:
                self.wrong(entry, "an argument as a text")
                continue
            read = self.texts.read(entry, "argument", self.level)
            if read is not None:
                arguments.append(cast(tree.Argument, read))
        return tuple(arguments)

    # ------------------------------------------------------------------ items

    def items(self, top: YamlNode) -> tuple[tree.Item, ...]:
        """Return the items of a file: a list, or one alone."""
        if top.is_empty:
            return ()
        nodes = [top] if top.kind == "mapping" else self.entries(top, "a list of items")
        return tuple(self.item(node) for node in nodes)

    def item(self, node: YamlNode) -> tree.Item:
        """Return one item."""
        if node.kind != "mapping":
            self.wrong(node, "a mapping with `use`, `model` or the kind of a definition")
            return tree.BrokenItem(node.span)
        head, values = self.form(node, ITEM_FORMS, "an item")
        if not head:
            return tree.BrokenItem(node.span)
        if head == "use":
            return self.use(node, values)
        name = values[head]
        body = self.body(values.get("body"), node, model=head == "model")
        parameters = tuple(tree.Parameter(*d) for d in self.annotations(values.get("parameters")))
        doc = self.text(values.get("doc"))
        if head == "model":
            members = cast(Any, body.statements)
            return tree.Model(node.span, self.name(name), name.span, parameters, members, doc)
        operands = tuple(tree.Operand(*d) for d in self.annotations(values.get("operands")))
        result = values.get("result")
        kind = None
        if result is not None and not result.is_empty:
            kind = cast(Any, self.expression(result, "type"))
        if isinstance(kind, tree.Missing):
            kind = None
        return tree.Definition(
            node.span, head, self.name(name), name.span, operands, parameters, kind, body, doc
        )

    def use(self, node: YamlNode, values: dict[str, YamlNode]) -> tree.Item:
        """Return a ``use``."""
        module = values["use"]
        words = module.text.split(".") if module.kind == "scalar" else [""]
        if not all(is_name(word) for word in words):
            self.wrong(module, "the name of a module such as `std.attention`")
            return tree.BrokenItem(node.span)
        names = []
        for entry in self.entries(values.get("names"), "a list of names"):
            word, mark, alias = entry.text.partition(" as ")
            first = YamlNode(entry.span, entry.kind, word.strip(), entry.style)
            second = YamlNode(entry.span, entry.kind, alias.strip(), entry.style)
            name = self.name(first)
            names.append(tree.Import(entry.span, name, self.name(second) if mark else None))
        return tree.Use(node.span, tuple(words), tuple(names), self.alias(values.get("as")))

    # ------------------------------------------------------------------ statements

    def body(self, node: YamlNode | None, parent: YamlNode, model: bool = False) -> tree.Body:
        """Return the statements of a block."""
        if node is None:
            return tree.Body(Span(self.source, parent.span.end, parent.span.end), ())
        if self.level + 3 > NESTING_LIMIT:
            self.found.append(NestedTooDeep(span=short(node), limit=NESTING_LIMIT))
            return tree.Body(node.span, ())
        self.level += 3
        statements: list[tree.Node] = []
        for entry in self.entries(node, "a list of statements"):
            statements += self.statement(entry, model)
        self.level -= 3
        return tree.Body(node.span, tuple(cast(Any, statements)))

    def statement(self, node: YamlNode, model: bool) -> list[tree.Node]:
        """Return one entry of a block: a form, or a text with one or more statements."""
        if node.kind == "scalar" and node.text.strip():
            return self.texts.statements(node, "member" if model else "statement", self.level)
        if node.kind != "mapping":
            self.wrong(node, "a statement")
            return [tree.BrokenStatement(node.span)]
        head, values = self.form(node, STATEMENT_FORMS, "a statement")
        makers: dict[str, Callable[[YamlNode, dict[str, YamlNode]], tree.Node]] = {
            "stage": self.stage,
            "repeat": self.repeat,
            "residual": self.residual,
            "if": self.choice,
            "weights": self.weights,
            "objective": self.objective,
            "require": self.require,
        }
        if not head:
            return [tree.BrokenStatement(node.span)]
        made = makers[head](node, values)
        belongs = not isinstance(made, (tree.Repeat, tree.Residual, tree.Step))
        if not (belongs if model else head not in ("objective", "weights")):
            self.texts.misplaced(short(node), head, model)
            return [tree.BrokenStatement(node.span)]
        return [made]

    def stage(self, node: YamlNode, values: dict[str, YamlNode]) -> tree.Node:
        """Return a stage."""
        inputs = tuple(tree.Operand(*d) for d in self.annotations(values.get("inputs")))
        arguments = self.arguments(values.get("arguments"))
        body = self.body(values.get("body"), node)
        return tree.Stage(node.span, self.name(values["stage"]), inputs, arguments, body)

    def repeat(self, node: YamlNode, values: dict[str, YamlNode]) -> tree.Node:
        """Return a ``repeat``."""
        count = self.expression(values["repeat"])
        index = self.alias(values.get("as"))
        return tree.Repeat(node.span, count, index, self.body(values.get("body"), node))

    def residual(self, node: YamlNode, values: dict[str, YamlNode]) -> tree.Node:
        """Return a ``residual``."""
        arguments = self.arguments(values.get("arguments"))
        return tree.Residual(node.span, arguments, self.body(values["residual"], node))

    def choice(self, node: YamlNode, values: dict[str, YamlNode]) -> tree.Node:
        """Return an ``if`` as a step."""
        condition = self.expression(values["if"])
        then = self.body(values.get("then"), node)
        otherwise = self.body(values["else"], node) if "else" in values else None
        return tree.Step(node.span, tree.If(node.span, condition, then, otherwise))

    def objective(self, node: YamlNode, values: dict[str, YamlNode]) -> tree.Node:
        """Return an ``objective``."""
        return tree.Objective(node.span, self.expression(values["objective"]))

    def require(self, node: YamlNode, values: dict[str, YamlNode]) -> tree.Node:
        """Return a ``require``: one condition or a list of them."""
        value = values["require"]
        conditions = value.items if value.kind == "list" and value.items else [value]
        return tree.Require(node.span, tuple(self.expression(entry) for entry in conditions))

    def weights(self, node: YamlNode, values: dict[str, YamlNode]) -> tree.Node:
        """Return a ``weights`` clause."""
        rules = []
        for entry in self.entries(values.get("rules"), "a list of rules"):
            if entry.kind != "mapping":
                self.wrong(entry, "a mapping with the keys `published` and `value`")
                continue
            head, parts = self.form(entry, {"published": RULE_FORM}, "a rule")
            if head:
                names = parts["published"]
                several = names.items if names.kind == "list" else [names]
                published = tuple(tree.String(name.span, self.plain(name)) for name in several)
                value = self.expression(parts.get("value"))
                rules.append(tree.WeightRule(entry.span, published, value))
        return tree.Weights(node.span, self.name(values["weights"]), tuple(rules))


def is_name(text: str) -> bool:
    """Return whether a text is one name."""
    tokens = lex(text).tokens
    return tokens.values == [text] and tokens.kinds[0] in ("NAME", *SOFT_WORDS)


def short(node: YamlNode) -> Span:
    """Return the first line of a node."""
    span = node.span
    end = span.file.text.find("\n", span.start, span.end)
    return Span(span.file, span.start, span.end if end < 0 else end)
