"""Reads YAML into plain nodes that know their place; never raises, and builds no objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tokdsl.diagnostics import Diagnostic, Label, Severity
from tokdsl.source import SourceFile, Span
from tokdsl.syntax.faults import NestedTooDeep

#: Lists and mappings inside each other that are read.
DEPTH_LIMIT = 150


class YamlMistake(Diagnostic, code="TOK130", name="yaml-mistake", severity=Severity.ERROR):
    """The file is not well-formed YAML.

    Nothing behind the place is read.

    ```yaml error
    - model: small
      body: [require causal
    ```
    ```yaml ok
    - model: small
      body: [require causal]
    ```
    """

    problem: str

    def message(self) -> str:
        """Say what the YAML reader found."""
        return f"not well-formed YAML: {self.problem}"

    def label(self) -> str:
        """Say where."""
        return "the reader stopped here"


class DuplicateKey(Diagnostic, code="TOK133", name="duplicate-key", severity=Severity.ERROR):
    """A mapping has the same key twice.

    The first one counts.

    ```yaml error
    - model: small
      body: [require causal]
      body: [require streaming]
    ```
    ```yaml ok
    - model: small
      body: [require causal, require streaming]
    ```
    """

    key: str

    def message(self) -> str:
        """Say which key."""
        return f"key `{self.key}` is given twice"

    def label(self) -> str:
        """Say which one this is."""
        return "the second one"


class YamlReference(Diagnostic, code="TOK134", name="yaml-reference", severity=Severity.ERROR):
    """The file uses an anchor, an alias, a tag or several documents.

    The YAML form is a plain tree: it has no references, so that a small file stays small. To use
    something twice give it a name (`shared f = ...`) or a definition.

    ```yaml error
    - model: small
      parameters: {d: &size int = 64, hidden: *size}
      body: [require causal]
    ```
    ```yaml ok
    - model: small
      parameters: {d: int = 64, hidden: int = 64}
      body: [require causal]
    ```
    """

    what: str

    def message(self) -> str:
        """Say what is used."""
        return f"{self.what} cannot be used in the YAML form"

    def label(self) -> str:
        """Say it shortly."""
        return "write the value itself"


@dataclass(slots=True)
class YamlNode:
    """A scalar, a list or a mapping.

    Args:
        span: where it stands.
        kind: ``scalar``, ``list``, ``mapping``, or ``alias`` for one that is not read.
        text: the value of a scalar.
        style: the sign that begins a scalar: a quote, ``|``, ``>`` or nothing.
        items: the entries of a list; of a mapping keys and values in turn.
    """

    span: Span
    kind: str
    text: str = ""
    style: str = ""
    items: list[YamlNode] = field(default_factory=list)

    @property
    def pairs(self) -> list[tuple[YamlNode, YamlNode]]:
        """The keys and values of a mapping."""
        return list(zip(self.items[::2], self.items[1::2], strict=True))

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written."""
        return self.kind == "scalar" and not self.style and self.text in ("", "~", "null")

    def words(self) -> str:
        """Return what it is, for a message."""
        return "nothing" if self.is_empty else {"scalar": "a text"}.get(self.kind, f"a {self.kind}")


def read_yaml(source: SourceFile) -> tuple[YamlNode | None, list[Diagnostic]]:
    """Read a YAML text as nodes; nothing for an empty one.

    Reports:
        TOK109, TOK130, TOK133, TOK134.
    """
    reader = _Reader(source)
    return reader.document(), reader.found


class _Reader:
    """Puts the events of the YAML parser together, without recursion."""

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self.found: list[Diagnostic] = []
        self.open: list[YamlNode] = []
        self.top: YamlNode | None = None

    def document(self) -> YamlNode | None:
        """Read the first document."""
        documents = 0
        for name, event in self.events():
            span = self.span(event)
            if name == "DocumentStart":
                documents += 1
                if documents > 1:
                    self.report(YamlReference(span=span, what="a second document"))
                    break
            elif name == "Alias":
                self.report(YamlReference(span=span, what=f"the alias `*{event.anchor}`"))
                self.add(YamlNode(span, "alias"))
            elif name == "Scalar":
                self.check(event, span)
                self.add(YamlNode(span, "scalar", event.value, event.style or ""))
            elif name in ("SequenceStart", "MappingStart"):
                self.check(event, span)
                if len(self.open) >= DEPTH_LIMIT:
                    self.report(NestedTooDeep(span=span, limit=DEPTH_LIMIT))
                    break
                node = YamlNode(span, "list" if name == "SequenceStart" else "mapping")
                self.add(node)
                self.open.append(node)
            elif name in ("SequenceEnd", "MappingEnd"):
                self.close(span)
        while self.open:
            self.close(self.open[-1].span)
        return self.top

    def events(self) -> Iterator[tuple[str, Any]]:
        """Return the parser's events; a mistake in the text ends them with a finding."""
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            for event in yaml.parse(self.source.text, Loader=loader):
                yield type(event).__name__.removesuffix("Event"), event
        except yaml.YAMLError as error:
            self.report(self.mistake(error))
        except (ValueError, RecursionError) as error:
            span = Span(self.source, 0, 0)
            self.report(YamlMistake(span=span, problem=str(error)))

    def mistake(self, error: Any) -> Diagnostic:
        """Return the finding for an error of the YAML parser."""
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        size = len(self.source.text)
        at = mark.index if mark is not None else getattr(error, "position", 0)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        context = getattr(error, "context", None)
        start = getattr(error, "context_mark", None)
        labels: tuple[Label, ...] = ()
        if context and start is not None:
            place = Span(self.source, min(start.index, size), min(start.index + 1, size))
            labels = (Label(place, context),)
        at = min(at, size)
        problem = str(problem).split("\n")[0]
        return YamlMistake(
            span=Span(self.source, at, min(at + 1, size)), problem=problem, labels=labels
        )

    def span(self, event: Any) -> Span:
        """Return the span of an event."""
        size = len(self.source.text)
        start, end = min(event.start_mark.index, size), min(event.end_mark.index, size)
        return Span(self.source, start, max(start, end))

    def report(self, diagnostic: Diagnostic) -> None:
        """Add a finding."""
        self.found.append(diagnostic)

    def check(self, event: Any, span: Span) -> None:
        """Report anchors and tags."""
        if event.anchor:
            self.report(YamlReference(span=span, what=f"the anchor `&{event.anchor}`"))
        elif event.tag and event.tag != "!":
            self.report(YamlReference(span=span, what=f"the tag `{event.tag}`"))

    def add(self, node: YamlNode) -> None:
        """Add a node to the list or mapping that is open."""
        if self.open:
            self.open[-1].items.append(node)
        elif self.top is None:
            self.top = node

    def close(self, end: Span) -> None:
        """Close a list or mapping: its span ends with its last character."""
        node = self.open.pop()
        text = self.source.text
        last = max(end.end if end.end > end.start else end.start, node.span.start)
        last = node.span.start + len(text[node.span.start : last].rstrip())
        node.span = Span(self.source, node.span.start, last)
        if node.kind == "mapping":
            if len(node.items) % 2:
                node.items.append(YamlNode(Span(self.source, last, last), "scalar"))
            self.check_keys(node)

    def check_keys(self, node: YamlNode) -> None:
        """Report keys that are given twice; the first one counts."""
        seen: dict[str, YamlNode] = {}
        kept: list[YamlNode] = []
        for key, value in node.pairs:
            first = seen.get(key.text) if key.kind == "scalar" else None
            if first is not None:
                label = Label(first.span, "the first one")
                self.report(DuplicateKey(span=key.span, key=key.text, labels=(label,)))
                continue
            seen[key.text] = key
            kept += [key, value]
        node.items = kept


def offsets(node: YamlNode) -> list[int] | range:
    """Return where each character of a scalar stands in the file, and where it ends."""
    text, span, value = node.span.file.text, node.span, node.text
    quoted = 1 if node.style in ('"', "'") else 0
    start, end = span.start + quoted, span.end - quoted
    if node.style not in ("|", ">") and text[start:end] == value:
        return range(start, end + 1)
    if node.style in ("|", ">"):
        start = text.find("\n", start, end) + 1 or start
    places: list[int] = []
    at = start
    for character in value:
        at = _find(text, at, end, character, node.style)
        places.append(min(at, end))
        at += _width(text, at, character, node.style)
    places.append(min(at, end))
    return places


def _find(text: str, at: int, end: int, character: str, style: str) -> int:
    """Return where a character of a value was written, at or after a place."""
    if character.isspace() or at >= end:
        return at
    if style == '"':
        while at < end and (text[at].isspace() or text[at : at + 2] == "\\\n"):
            at += 2 if text[at] == "\\" else 1
        return at
    found = text.find(character, at, end)
    return found if found >= 0 else at


def _width(text: str, at: int, character: str, style: str) -> int:
    """Return how many characters of the file make up one of a value."""
    here = text[at : at + 1]
    if style == '"' and here == "\\":
        return {"x": 4, "u": 6, "U": 10}.get(text[at + 1 : at + 2], 2)
    if style == "'" and character == "'":
        return 2
    if character.isspace():
        return 1 if here == character else 0
    return 1
