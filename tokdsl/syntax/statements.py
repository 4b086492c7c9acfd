"""Prints statements, definitions and models."""

from __future__ import annotations

from collections.abc import Sequence

from tokdsl.syntax import tree
from tokdsl.syntax.layout import is_statement_word
from tokdsl.syntax.lexer import lex
from tokdsl.syntax.printing import CHOICE, CLOSED, OPEN, ExpressionPrinter, Groups, Room, joined
from tokdsl.syntax.tables import load_tables


class StatementPrinter(ExpressionPrinter):
    """Prints statements and items; how blocks are broken is left to the subclass."""

    # ------------------------------------------------------------------ on one line

    def flat_statement(self, node: tree.Node) -> str | None:
        """Return a statement on one line, or None where it must not stand on one."""
        match node:
            case tree.Step():
                text = self.flat(node.value)
                return None if text is None else guarded(text)
            case tree.Assign() | tree.Aux() | tree.Objective() | tree.WeightRule():
                return joined(self.head(node), self.flat(node.value, self.level(node)))
            case tree.Require():
                first = self.flat(node.conditions[0], self.level(node))
                rest = [joined(", ", self.flat(condition)) for condition in node.conditions[1:]]
                return joined("require ", first, *rest)
            case tree.Repeat():
                count = self.flat(node.count, self.level(node))
                return joined("repeat ", count, index_text(node), " ", self.flat_body(node.body))
            case tree.Residual() | tree.Stage():
                groups = statement_groups(node)
                brackets = joined("(", self.flat_groups(groups), ")") if groups else ""
                return joined(self.head(node), brackets, " ", self.flat_body(node.body))
            case tree.Weights():
                return None
            case _:
                return node.span.text  # a form with a mistake: as it is written

    def head(self, node: tree.Node) -> str:
        """Return what stands before the value or the brackets of a statement."""
        match node:
            case tree.Assign():
                names = ", ".join(self.flat(target) or "" for target in node.targets)
                return f"shared {names} = " if node.shared else f"{names} = "
            case tree.Aux():
                return f"aux {node.name} = "
            case tree.Objective():
                return "objective "
            case tree.WeightRule():
                return f"{', '.join(self.flat(name) or '' for name in node.published)} = "
            case tree.Stage():
                return f"stage {node.name}"
            case _:
                return "residual"

    def level(self, node: tree.Node) -> float:
        """Return how tightly the first value of a statement must bind.

        After `repeat`, `require` and `objective` some signs would make a name of the word.
        """
        if isinstance(node, tree.Repeat):
            return CLOSED if self.begins(node.count, "[-|") else CHOICE
        if isinstance(node, tree.Require):
            return CLOSED if self.begins(node.conditions[0], "[-|") else OPEN
        if isinstance(node, tree.Objective):
            return CLOSED if self.begins(node.value, "[") else OPEN
        return OPEN

    def begins(self, node: tree.Node, signs: str) -> bool:
        """Return whether the text of an expression begins with one of some signs."""
        while isinstance(node, (tree.Binary, tree.Call, tree.Attribute, tree.Index)):
            node = first_inside(node)
        if isinstance(node, tree.ListExpression):
            return "[" in signs
        if isinstance(node, tree.Lambda):
            return "|" in signs
        return isinstance(node, tree.Unary) and node.operator == "-" and "-" in signs

    # ------------------------------------------------------------------ where it fits

    def statement(self, node: tree.Node, indent: int) -> str:
        """Return a statement for a line with an indentation."""
        flat = self.flat(node)
        room = Room(indent, indent)
        if flat is not None and room.fits(flat):
            return flat
        match node:
            case tree.Step():
                return guarded(self.text(node.value, room))
            case tree.Assign() | tree.Aux() | tree.Objective() | tree.WeightRule():
                head = self.head(node)
                if isinstance(node, tree.WeightRule) and isinstance(node.value, tree.Attribute):
                    pad = " " * (indent + 2)  # a path is not broken inside
                    return f"{head.rstrip()}\n{pad}{self.flat(node.value, self.level(node))}"
                return head + self.text(node.value, room.after(head), self.level(node))
            case tree.Require():
                text = "require "
                for place, condition in enumerate(node.conditions):
                    pad = f",\n{' ' * (indent + 8)}" if place else ""
                    level = OPEN if place else self.level(node)
                    text += pad + self.text(condition, Room(indent + 8, indent + 8, 1), level)
                return text
            case tree.Repeat():
                count = self.text(node.count, room.after("repeat "), self.level(node))
                head = f"repeat {count}{index_text(node)} "
                return head + self.block(node.body, room.after(head))
            case tree.Residual() | tree.Stage():
                text = self.head(node)
                groups = statement_groups(node)
                if groups:
                    text += "("
                    inner = room.after(text).before(" {")
                    text += self.bracketed(node, groups, ")", inner)
                return f"{text} {self.block(node.body, room.after(text + ' '))}"
            case tree.Weights():
                body = self.rules(node)
                return f"weights {node.name} {self.broken_body(body, indent)}"
            case _:
                return node.span.text

    def block(self, body: tree.Body, room: Room) -> str:
        """Return a block, on the line of its head where it may stand and fits."""
        flat = self.flat_body(body)
        if flat is not None and room.fits(flat):
            return flat
        return self.broken_body(body, room.indent)

    def rules(self, node: tree.Weights) -> tree.Body:
        """Return the rules of a ``weights`` clause as the block that they stand in."""
        return tree.Body(node.span, node.rules)  # type: ignore[arg-type]

    # ------------------------------------------------------------------ items

    def use(self, node: tree.Use) -> str:
        """Return ``use std.attention { gqa, rope }``."""
        head = f"use {'.'.join(node.module)}"
        if node.alias:
            return f"{head} as {node.alias}"
        if not node.names:
            return head
        head += " { "
        room = Room(len(head), 0, 0)
        text = self.bracketed(node, [node.names], " }", room)
        return head.rstrip() + text if text.startswith("\n") else head + text

    def signature(self, node: tree.Definition) -> str:
        """Return a definition up to its block."""
        head = f"{node.kind} {node.name}("
        result = f" -> {self.flat(node.result)}" if node.result is not None else ""
        room = Room(len(head), 0, len(result) + len(" {"))
        return head + self.bracketed(node, definition_groups(node), ")", room) + result + " "

    def model_head(self, node: tree.Model) -> str:
        """Return a model up to its members."""
        head = f"model {node.name}"
        if node.parameters:
            head += "("
            room = Room(len(head), 0, len(" {"))
            head += self.bracketed(node, [node.parameters], ")", room)
        return head + " "


def first_inside(node: tree.Binary | tree.Call | tree.Attribute | tree.Index) -> tree.Node:
    """Return the part of an expression that its text begins with."""
    if isinstance(node, tree.Binary):
        return node.left
    return node.function if isinstance(node, tree.Call) else node.value


def index_text(node: tree.Repeat) -> str:
    """Return the ``as i`` of a ``repeat``."""
    return f" as {node.index}" if node.index else ""


def guarded(text: str) -> str:
    """Put a first word in round brackets that would be read as the word of a statement."""
    words = load_tables().words
    end = next((i for i, c in enumerate(text) if not (c.isalnum() or c == "_")), len(text))
    word = text[:end]
    if word not in words:
        return text
    rest = lex(text[end : end + 80].split("\n")[0]).tokens.kinds
    if is_statement_word(words[word], rest[0] if rest else "_END"):
        return f"({word}){text[end:]}"
    return text


def definition_groups(node: tree.Definition) -> Groups:
    """Return the groups of a definition's brackets, with a ``;`` only where one is needed."""
    operands, parameters = node.operands, node.parameters
    if parameters and (operands or any(isinstance(p.type, tree.TensorType) for p in parameters)):
        return [operands, parameters]
    if all(isinstance(o.type, tree.TensorType) for o in operands):
        return [operands or parameters]
    return [operands, ()]


def statement_groups(node: tree.Residual | tree.Stage) -> list[Sequence[tree.Node]]:
    """Return the groups of a statement's brackets; none when it has no brackets."""
    if isinstance(node, tree.Residual):
        return [node.arguments] if node.arguments else []
    inputs, arguments = node.inputs, node.arguments
    if not inputs and not arguments:
        return []
    if not inputs:
        return [arguments] if all(a.name is not None for a in arguments) else [(), arguments]
    if arguments:
        return [inputs, arguments]
    typed = all(i.type is not None or i.default is None for i in inputs)
    return [inputs] if typed else [inputs, ()]
