"""The one way to write a program: prints a tree, with the comments of its source."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokdsl.source import SourceFile
from tokdsl.syntax import tree
from tokdsl.syntax.compare import children, same_tree
from tokdsl.syntax.layout import is_statement_word
from tokdsl.syntax.lexer import lex
from tokdsl.syntax.parser import parse
from tokdsl.syntax.printing import WIDTH, ExpressionPrinter, Groups, Remarks, Room, call_groups
from tokdsl.syntax.tables import load_tables

#: Equations one below the other are aligned at their `=` unless their names differ by more.
ALIGN_LIMIT = 10
#: Comments behind lines one below the other are aligned unless the lines differ by more.
REMARK_LIMIT = 30


def format_module(source: SourceFile, module: tree.Module) -> str:
    """Return the text of a module in the usual form, with all comments of its source.

    A text with mistakes is returned as it is.

    Args:
        source: the text that the module was parsed from.
        module: its tree.
    """
    again, found = parse(source)
    if found or not same_tree(again, module):
        return source.text
    text = Formatter(source).module(module)
    check, found = parse(SourceFile(source.name, text))
    if found or not same_tree(check, module):
        return source.text  # never lose or change what somebody wrote
    return text


def print_module(module: tree.Module) -> str:
    """Return the text of a module without regard to where it came from."""
    return Formatter(None).module(module)


@dataclass(slots=True)
class Line:
    """What is printed for one statement: usually one line.

    Args:
        text: the text.
        blank: whether a blank line precedes it.
        target: the length of the names before `=`, when it may be aligned.
        remark: the comment behind it.
    """

    text: str
    blank: bool = False
    target: int = 0
    remark: str = ""

    @property
    def single(self) -> bool:
        """Whether it is one line."""
        return "\n" not in self.text


@dataclass(slots=True)
class Found:
    """The comments of a text and which of them are already printed."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    used: set[int] = field(default_factory=set)

    def between(self, low: int, high: int) -> list[int]:
        """Return the comments in a range that are not used yet."""
        places = range(bisect_left(self.starts, low), bisect_left(self.starts, high))
        return [place for place in places if place not in self.used]


class Formatter(ExpressionPrinter):
    """Prints items, statements and blocks."""

    def __init__(self, source: SourceFile | None) -> None:
        super().__init__(source)
        self.comments = Found()
        if source is not None:
            for start, end in lex(source.text).comments:
                self.comments.starts.append(start)
                self.comments.ends.append(end)

    # ------------------------------------------------------------------ the source

    def own(self, text: str) -> str:
        """Return the text of the source, or nothing when there is none."""
        return text if self.source is not None else ""

    def gap(self, low: int, high: int) -> str:
        """Return the source between two places."""
        return self.source.text[low:high] if self.source is not None else ""

    def remark(self, place: int) -> str:
        """Return a comment and mark it as printed."""
        self.comments.used.add(place)
        return self.gap(self.comments.starts[place], self.comments.ends[place]).rstrip()

    def behind(self, low: int, high: int) -> list[int]:
        """Return the comments that stand on the line that ends at ``low``."""
        line_end = self.gap(low, high).find("\n")
        return self.comments.between(low, high if line_end < 0 else low + line_end)

    # ------------------------------------------------------------------ modules

    def module(self, module: tree.Module) -> str:
        """Return the text of a module."""
        end = len(self.source.text) if self.source is not None else 0
        lines = self.sequence(module.items, 0, end, 0)
        text = render(lines, 0)
        return text + "\n" if text else ""

    def item(self, item: tree.Node) -> str:
        """Return the text of an item."""
        if isinstance(item, tree.Use):
            return self.use(item)
        if isinstance(item, tree.Definition):
            return self.definition(item)
        if isinstance(item, tree.Model):
            return self.model(item)
        return item.span.text

    def use(self, use: tree.Use) -> str:
        """Return ``use std.attention { gqa, rope }``."""
        head = f"use {'.'.join(use.module)}"
        if use.alias:
            return f"{head} as {use.alias}"
        if not use.names:
            return head
        head += " {"
        flat = None if id(use) in self.remarks else self.flat_groups([use.names])
        if flat is not None and len(head) + len(flat) + 3 <= WIDTH:
            return f"{head} {flat} }}"
        inner = self.bracketed(use, [use.names], "", Room(WIDTH, -2, 0)).rstrip()
        return f"{head}{inner}\n}}"

    def definition(self, node: tree.Definition) -> str:
        """Return a definition."""
        head = f"{node.kind} {node.name}("
        result = f" -> {self.flat(node.result)}" if node.result is not None else ""
        room = Room(len(head), 0, len(result) + len(" {"))
        head += self.bracketed(node, definition_groups(node), ")", room) + result + " "
        return head + self.block(node.body, Room(0, 0).after(head))

    def model(self, node: tree.Model) -> str:
        """Return a model."""
        head = f"model {node.name}"
        if node.parameters:
            head += "("
            head += self.bracketed(node, [node.parameters], ")", Room(len(head), 0, len(" {")))
        head += " "
        return head + self.block(self.members(node), Room(0, 0).after(head))

    def members(self, node: tree.Model) -> tree.Body:
        """Return the members of a model as the block that they stand in."""
        span = node.span
        if self.source is None:
            return tree.Body(span, node.members)  # type: ignore[arg-type]
        edge = node.parameters[-1].span.end if node.parameters else node.name_span.end
        low = self.opening(edge, span.end)
        return tree.Body(type(span)(span.file, low, span.end), node.members)  # type: ignore[arg-type]

    def opening(self, low: int, high: int) -> int:
        """Return the place of the first brace in a range that is not in a comment."""
        comments = self.comments
        place = self.gap(0, high).find("{", low)
        while place >= 0:
            inside = bisect_left(comments.starts, place) - 1
            if inside < 0 or comments.ends[inside] <= place:
                return place
            place = self.gap(0, high).find("{", comments.ends[inside])
        return low

    # ------------------------------------------------------------------ blocks

    def flat_body(self, body: tree.Body) -> str | None:
        """Return a block on one line, or None where it must not stand on one."""
        if not body.statements:
            return None if self.comments_in(body) else "{}"
        if self.must_break(body):
            return None
        texts = [self.statement(statement, 0) for statement in body.statements]
        text = f"{{ {'; '.join(texts)} }}"
        return None if "\n" in text else text

    def must_break(self, body: tree.Body) -> bool:
        """Return whether a block stands over several lines whatever its length."""
        if self.source is None:
            return len(body.statements) > 3 or any(
                isinstance(inner, (tree.Stage, tree.Weights)) for inner in body.statements
            )
        first = body.statements[0].span.start
        return "\n" in self.gap(body.span.start, first) or self.comments_in(body)

    def comments_in(self, body: tree.Body) -> bool:
        """Return whether a block holds a comment."""
        span = body.span
        starts = self.comments.starts
        return bisect_left(starts, span.start) < bisect_left(starts, span.end)

    def block(self, body: tree.Body, room: Room) -> str:
        """Return a block, on the line of its head where it fits and was written so."""
        flat = self.flat_body(body) if self.source is not None or not body.statements else None
        if flat is not None and room.fits(flat):
            return flat
        return self.broken_body(body, room.indent)

    def broken_body(self, body: tree.Body, indent: int) -> str:
        """Return a block over several lines."""
        low, high = body.span.start + 1, body.span.end - 1
        inner = indent + 2
        first = body.statements[0].span.start if body.statements else high
        opening = "".join(f"  {self.remark(place)}" for place in self.behind(low, first))
        lines = self.sequence(body.statements, low, high, inner)
        text = render(lines, inner)
        return f"{{{opening}\n{text}{chr(10) if text else ''}{' ' * indent}}}"

    def sequence(
        self, statements: Sequence[tree.Node], low: int, high: int, indent: int
    ) -> list[Line]:
        """Return the lines of statements and of the comments around them."""
        lines: list[Line] = []
        end = low
        for place, node in enumerate(statements):
            start, stop = node.span.start, node.span.end
            following = statements[place + 1].span.start if place + 1 < len(statements) else high
            lines += self.remarks_before(end, start, bool(lines))
            end = self.end_of_line(end, start)
            blank = self.is_apart(end, start, statements, place)
            loose = self.claim(node)
            text = self.item(node) if is_item(node) else self.statement(node, indent)
            for remark in loose:
                lines.append(Line(remark, blank and bool(lines)))
                blank = False
            line = Line(text, blank and bool(lines), target_width(node))
            if not (lines and self.same_line(end, start, lines[-1], line, indent)):
                lines.append(line)
            end = stop
            for remark_place in self.behind(stop, following):
                lines[-1].remark += f" {self.remark(remark_place)}" if lines[-1].remark else ""
                lines[-1].remark = lines[-1].remark or self.remark(remark_place)
                end = self.comments.ends[remark_place]
        lines += self.remarks_before(end, high, bool(lines))
        return space_items(lines, statements) if is_item(next(iter(statements), None)) else lines
