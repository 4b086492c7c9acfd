"""Prints expressions, types and argument lists: on one line where they fit, else over several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokdsl.source import SourceFile
from tokdsl.syntax import tree
from tokdsl.syntax.literals import number_text, string_text

#: Columns of a line.
WIDTH = 100
#: An argument list that would begin further right starts on a line of its own instead.
HANG_LIMIT = 60

#: How tightly a form binds; a looser one inside a tighter one needs round brackets.
OPEN, CHOICE, NEGATED, COMPARED, SUM, PRODUCT, SIGNED, POWER, POSTFIX, ATOM, CLOSED = range(11)
CONJUNCTION = 1.5
_BINARY: dict[str, tuple[float, float, float]] = {
    "or": (CHOICE, CHOICE, CONJUNCTION),
    "and": (CONJUNCTION, CONJUNCTION, NEGATED),
    **dict.fromkeys(("<", "<=", ">", ">=", "==", "!="), (COMPARED, SUM, SUM)),
    **dict.fromkeys(("+", "-"), (SUM, SUM, PRODUCT)),
    **dict.fromkeys(("*", "/", "//", "%"), (PRODUCT, PRODUCT, SIGNED)),
    "**": (POWER, POSTFIX, SIGNED),
}

#: One group of entries, and further ones behind a ``;``.
Groups = Sequence[Sequence[tree.Node]]


@dataclass(slots=True)
class Remarks:
    """The comments inside a bracketed list: before each entry, behind it, and at the end."""

    leading: dict[int, list[str]] = field(default_factory=dict)
    trailing: dict[int, list[str]] = field(default_factory=dict)
    last: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Room:
    """Where a text is put.

    Args:
        column: the column of its first character.
        indent: the indentation of the line that it belongs to.
        tail: how many characters follow it on its last line.
    """

    column: int
    indent: int
    tail: int = 0

    def after(self, text: str) -> Room:
        """Return the room behind a text."""
        line_break = text.rfind("\n")
        column = self.column + len(text) if line_break < 0 else len(text) - line_break - 1
        return Room(column, self.indent, self.tail)

    def before(self, text: str) -> Room:
        """Return the room in front of a text that must follow on the line."""
        return Room(self.column, self.indent, self.tail + len(text))

    def fits(self, text: str | None) -> bool:
        """Return whether a text can stand here on one line."""
        return text is not None and self.column + len(text) + self.tail <= WIDTH


def binding(node: tree.Node) -> float:
    """Return how tightly a form binds."""
    if isinstance(node, (tree.Lambda, tree.If, tree.Repeated)):
        return OPEN
    if isinstance(node, tree.Binary):
        return _BINARY[node.operator][0]
    if isinstance(node, tree.Unary):
        return NEGATED if node.operator == "not" else SIGNED
    if isinstance(node, (tree.Call, tree.Attribute, tree.Index)):
        return POSTFIX
    return ATOM


class ExpressionPrinter(ABC):
    """Prints expressions and everything they consist of.

    Args:
        source: the file whose numbers and strings are kept as they are written, if any.
    """

    def __init__(self, source: SourceFile | None) -> None:
        self.source = source
        self.remarks_in: dict[int, Remarks] = {}
        self._flat: dict[int, str | None] = {}

    @abstractmethod
    def flat_body(self, body: tree.Body) -> str | None:
        """Return a block on one line, or None where it must not stand on one."""

    @abstractmethod
    def flat_statement(self, node: tree.Node) -> str | None:
        """Return a statement on one line, or None where it must not stand on one."""

    @abstractmethod
    def broken_body(self, body: tree.Body, indent: int) -> str:
        """Return a block over several lines."""

    # ------------------------------------------------------------------ on one line

    def flat(self, node: tree.Node, level: float = OPEN) -> str | None:
        """Return a node on one line, or None where it must not stand on one."""
        key = id(node)
        if key not in self._flat:
            self._flat[key] = None if key in self.remarks_in else self._flat_text(node)
        text = self._flat[key]
        if text is not None and binding(node) < level:
            return f"({text})"
        return text

    def _flat_text(self, node: tree.Node) -> str | None:
        match node:
            case tree.Name():
                return node.id
            case tree.Number():
                return self.literal(node) or number_text(node.value, node.unit)
            case tree.String():
                return self.literal(node) or string_text(node.value)
            case tree.Boolean():
                return "true" if node.value else "false"
            case tree.Nothing():
                return "none"
            case tree.Star():
                return "*"
            case tree.Binary():
                _, left, right = _BINARY[node.operator]
                return joined(
                    self.flat(node.left, left), f" {node.operator} ", self.flat(node.right, right)
                )
            case tree.Unary():
                sign = "not " if node.operator == "not" else node.operator
                level = NEGATED if node.operator == "not" else SIGNED
                return joined(sign, self.flat(node.operand, level))
            case tree.Call() | tree.ListExpression() | tree.Index():
                head, groups, opener, closer = self.parts(node)
                return joined(head, opener, self.flat_groups(groups), closer)
            case tree.Attribute():
                return joined(self.flat(node.value, POSTFIX), ".", node.name)
            case tree.Repeated():
                return joined(self.flat(node.count, CHOICE), " of ", self.flat(node.value))
            case tree.Lambda():
                return joined(f"|{', '.join(node.parameters)}| ", self.flat(node.body))
            case tree.If():
                return self._flat_if(node)
            case tree.Argument():
                return joined(argument_head(node), self.flat(node.value))
            case _:
                return self._flat_declared(node)

    def _flat_if(self, node: tree.If) -> str | None:
        head = joined("if ", self.flat(node.condition, CHOICE), " ", self.flat_body(node.then))
        if node.otherwise is None:
            return head
        inner = else_if(node.otherwise)
        rest = self.flat(inner) if inner is not None else self.flat_body(node.otherwise)
        return joined(head, " else ", rest)

    def _flat_declared(self, node: tree.Node) -> str | None:
        match node:
            case tree.Operand() | tree.Parameter():
                text: str | None = node.name
                if node.type is not None:
                    text = joined(text, ": ", self.flat(node.type))
                if node.default is not None:
                    text = joined(text, " = ", self.flat(node.default))
                return text
            case tree.TensorType():
                return joined(node.head or "", "[", self.flat_groups([node.axes]), "]")
            case tree.NamedType():
                if not node.arguments:
                    return node.name
                return joined(node.name, "[", self.flat_groups([_bare(node.arguments)]), "]")
            case tree.TupleType():
                return joined("(", self.flat_groups([node.items]), ")")
            case tree.AxisType():
                if node.star:
                    return "*"
                if node.size is None:
                    return node.name
                head = f"{node.name}: " if node.name else ""
                return joined(head, self.flat(node.size))
            case tree.IndexDeclaration():
                return f"{node.name}: {node.axis}"
            case tree.Target():
                if not node.indices:
                    return node.name
                return joined(node.name, "[", self.flat_groups([node.indices]), "]")
            case tree.Import():
                return f"{node.name} as {node.alias}" if node.alias else node.name
            case _:
                return self.flat_statement(node)

    def flat_groups(self, groups: Groups) -> str | None:
        """Return the entries of a list with their separators."""
        parts = []
        for group in groups:
            texts = [self.flat(entry) for entry in group]
            if any(text is None for text in texts):
                return None
            parts.append(", ".join(text for text in texts if text is not None))
        text = parts[0]
        for part in parts[1:]:
            text += f"; {part}" if part else ";"
        return text

    def literal(self, node: tree.Node) -> str:
        """Return a number or string as it is written, when it is from this source."""
        return node.span.text if node.span.file is self.source else ""

    # ------------------------------------------------------------------ over several lines

    def text(self, node: tree.Node, room: Room, level: float = OPEN) -> str:
        """Return a node for a place: on one line where it fits."""
        flat = self.flat(node, level)
        if flat is not None and room.fits(flat):
            return flat
        if binding(node) < level:
            return f"({self._broken(node, room.after('(').before(')'))})"
        return self._broken(node, room)

    def _broken(self, node: tree.Node, room: Room) -> str:
        match node:
            case tree.Call() | tree.ListExpression() | tree.Index():
                _, groups, opener, closer = self.parts(node)
                value = node.function if isinstance(node, tree.Call) else None
                value = node.value if isinstance(node, tree.Index) else value
                head = "" if value is None else self.text(value, room.before(opener), POSTFIX)
                head += opener
                return head + self.bracketed(node, groups, closer, room.after(head))
            case tree.Binary():
                return self._broken_binary(node, room)
            case tree.Unary():
                sign = "not " if node.operator == "not" else node.operator
                level = NEGATED if node.operator == "not" else SIGNED
                return sign + self.text(node.operand, room.after(sign), level)
            case tree.Attribute():
                return f"{self.text(node.value, room.before('.' + node.name), POSTFIX)}.{node.name}"
            case tree.Repeated():
                head = f"{self.text(node.count, room, CHOICE)} of "
                return head + self.text(node.value, room.after(head))
            case tree.Lambda():
                head = f"|{', '.join(node.parameters)}| "
                return head + self.text(node.body, room.after(head))
            case tree.If():
                return self._broken_if(node, room)
            case tree.Argument():
                head = argument_head(node)
                return head + self.text(node.value, room.after(head))
            case tree.Operand() | tree.Parameter() if node.default is not None:
                head = node.name + (f": {self.flat(node.type)}" if node.type else "") + " = "
                return head + self.text(node.default, room.after(head))
            case _:
                return self.flat(node) or ""

    def _broken_binary(self, node: tree.Binary, room: Room) -> str:
        """Break after an operator: a line that ends with one goes on."""
        _, left_level, right_level = _BINARY[node.operator]
        left = self.text(node.left, room.before(f" {node.operator}"), left_level)
        head = f"{left} {node.operator} "
        behind = room.after(head)
        flat = self.flat(node.right, right_level)
        if behind.fits(flat):
            return f"{head}{flat}"
        below = Room(room.column, room.indent, room.tail)
        return f"{head.rstrip()}\n{' ' * room.column}{self.text(node.right, below, right_level)}"

    def _broken_if(self, node: tree.If, room: Room) -> str:
        head = f"if {self.text(node.condition, room.after('if ').before(' {'), CHOICE)} "
        text = head + self.broken_body(node.then, room.indent)
        if node.otherwise is None:
            return text
        text += " else "
        inner = else_if(node.otherwise)
        if inner is not None:
            return text + self._broken_if(inner, room.after(text))
        return text + self.broken_body(node.otherwise, room.indent)

    def parts(self, node: tree.Node) -> tuple[str | None, Groups, str, str]:
        """Return what stands before a bracketed list, its groups and its brackets."""
        if isinstance(node, tree.Call):
            return self.flat(node.function, POSTFIX), call_groups(node), "(", ")"
        if isinstance(node, tree.Index):
            return self.flat(node.value, POSTFIX), [node.indices], "[", "]"
        assert isinstance(node, tree.ListExpression)
        return "", [node.items], "[", "]"

    def bracketed(self, owner: tree.Node, groups: Groups, closer: str, room: Room) -> str:
        """Return the entries of a list and its closing bracket, from behind the opening one."""
        flat = None if id(owner) in self.remarks_in else self.flat_groups(groups)
        if flat is not None and room.before(closer).fits(flat):
            return flat + closer
        if not groups[0] and len(groups) > 1:
            rest = self.bracketed(owner, groups[1:], closer, room.after("; "))
            return f";{rest}" if rest.startswith("\n") else f"; {rest}"
        entries = separated(groups)
        if id(owner) in self.remarks_in:
            return self._remarked(entries, self.remarks_in[id(owner)], closer, room)
        widest = max((len(self.flat(entry) or "") for entry, _ in entries), default=0)
        if room.column > HANG_LIMIT or room.column + widest + 1 + room.tail > WIDTH:
            indent = room.indent + 4
            inner = self._filled(entries, Room(indent, indent, room.tail + len(closer)))
            return f"\n{' ' * indent}{inner}{closer}"
        hanging = Room(room.column, room.column, room.tail + len(closer))
        return self._filled(entries, hanging) + closer

    def _filled(self, entries: list[tuple[tree.Node, str]], room: Room) -> str:
        """Put as many entries on each line as fit."""
        start = room.column
        text, broke = "", False
        for place, (entry, mark) in enumerate(entries):
            tail = len(mark) + (room.tail if place == len(entries) - 1 else 0)
            gap = " " if text else ""
            here = Room(room.after(text).column + len(gap), room.indent, tail)
            if text and (broke or not here.fits(self.flat(entry))):
                gap, here = "\n" + " " * start, Room(start, room.indent, tail)
            piece = self.text(entry, here)
            broke = "\n" in piece
            text += gap + piece + mark
        return text

    def _remarked(
        self, entries: list[tuple[tree.Node, str]], remarks: Remarks, closer: str, room: Room
    ) -> str:
        """Put each entry on its own line, with its comments."""
        indent = room.indent + 2
        pad = "\n" + " " * indent
        text = ""
        for place, (entry, mark) in enumerate(entries):
            for remark in remarks.leading.get(place, ()):
                text += pad + remark
            text += pad + self.text(entry, Room(indent, indent, len(mark))) + mark
            for remark in remarks.trailing.get(place, ()):
                text += "  " + remark
        for remark in remarks.last:
            text += pad + remark
        return f"{text}\n{' ' * room.indent}{closer.strip()}"


def joined(*parts: str | None) -> str | None:
    """Return parts as one text, or None where one of them is None."""
    if any(part is None for part in parts):
        return None
    return "".join(part for part in parts if part is not None)


def separated(groups: Groups) -> list[tuple[tree.Node, str]]:
    """Return all entries of a list, each with the mark that follows it."""
    entries: list[tuple[tree.Node, str]] = []
    for place, group in enumerate(groups):
        if place and entries:
            entries[-1] = (entries[-1][0], ";")
        entries += [(entry, ",") for entry in group[:-1]]
        entries += [(entry, "") for entry in group[-1:]]
    return entries


def argument_head(node: tree.Argument) -> str:
    """Return what stands before the value of an argument."""
    if node.axis is not None:
        return f"{node.axis}: "
    return f"{node.name} = " if node.name is not None else ""


def call_groups(node: tree.Call) -> Groups:
    """Return the groups of a call's arguments."""
    return [node.operands, node.statics] if node.separated else [node.operands]


def else_if(body: tree.Body) -> tree.If | None:
    """Return the ``if`` that alone makes up an ``else``."""
    if len(body.statements) == 1:
        only = body.statements[0]
        if isinstance(only, tree.Step) and isinstance(only.value, tree.If):
            return only.value
    return None


def _bare(items: tuple[tree.TypeExpression, ...]) -> Sequence[tree.Node]:
    """Return the entries of ``list[...]``; a lone axis with a size stands without brackets."""
    return [
        item.axes[0]
        if isinstance(item, tree.TensorType)
        and item.head is None
        and len(item.axes) == 1
        and item.axes[0].name is not None
        and item.axes[0].size is not None
        else item
        for item in items
    ]
