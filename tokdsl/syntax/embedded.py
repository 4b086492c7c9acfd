"""Reads pieces of `.tok` text that stand inside another file, with their true places."""

from __future__ import annotations

from tokdsl.diagnostics import Diagnostic
from tokdsl.source import SourceFile, Span
from tokdsl.syntax import tree
from tokdsl.syntax.build import Build
from tokdsl.syntax.faults import NestedTooDeep, fault_findings, mistake_findings
from tokdsl.syntax.layout import Fault, lay_out
from tokdsl.syntax.lexer import Mistake, Tokens, lex
from tokdsl.syntax.mistakes import MisplacedStatement
from tokdsl.syntax.parser import NESTING_LIMIT, deepest, tainted_places
from tokdsl.syntax.recovery import Recovery
from tokdsl.syntax.yaml_nodes import YamlNode, offsets


class Embedded:
    """Reads the texts of one file.

    Args:
        source: the file that holds the texts.
        found: the list that findings are added to.
    """

    def __init__(self, source: SourceFile, found: list[Diagnostic]) -> None:
        self.source = source
        self.found = found
        self.build = Build(source, found, lambda start: "")
        self.recovery = Recovery(source, self.build, self.build.builders(), set())
        self.recovery.embedded = True

    def read(self, node: YamlNode, rule: str, level: int) -> object | None:
        """Read a text from a start rule, or return nothing when it has a mistake.

        Args:
            node: the scalar that holds the text.
            rule: the start rule.
            level: how deep it is nested already.
        """
        pieces = self.pieces(node, "expression", level)
        if not pieces:
            return None
        whole = pieces[0]
        for piece in pieces[1:]:
            whole.add("_END", "", whole.ends[-1], whole.ends[-1])
            for token in zip(piece.kinds, piece.values, piece.starts, piece.ends, strict=True):
                whole.add(*token)
        read = self.recovery.piece(whole, rule)[0]
        return None if isinstance(read, tree.BrokenStatement) else read

    def statements(self, node: YamlNode, rule: str, level: int) -> list[tree.Node]:
        """Read a text as statements."""
        read: list[tree.Node] = []
        for piece in self.pieces(node, "statement", level):
            read += self.recovery.piece(piece, rule)
        return read or [tree.BrokenStatement(node.span)]

    def pieces(self, node: YamlNode, within: str, level: int) -> list[Tokens]:
        """Return the tokens of each statement of a text; report what is wrong before reading."""
        lexed = lex(node.text)
        laid = lay_out(node.text, lexed, within)
        places = offsets(node)
        mistakes = [Mistake(m.kind, places[m.start], places[m.end], m.text) for m in lexed.mistakes]
        faults = [
            Fault(f.kind, f.sign, places[f.start], places[f.at], tuple(places[o] for o in f.others))
            for f in laid.faults
        ]
        self.found.extend(mistake_findings(self.source, mistakes))
        self.found.extend(fault_findings(self.source, faults, NESTING_LIMIT))
        self.recovery.tainted = sorted(tainted_places(mistakes, faults))
        tokens = laid.tokens
        tokens.starts = [places[start] for start in tokens.starts]
        tokens.ends = [places[end] for end in tokens.ends]
        deep = deepest(tokens, 0, len(tokens), level)
        if deep is not None:
            if not faults:
                span = Span(self.source, tokens.starts[deep], tokens.ends[deep])
                self.found.append(NestedTooDeep(span=span, limit=NESTING_LIMIT))
            return []
        pieces = [tokens.part(low, high) for low, high in laid.items]
        if not pieces and not mistakes and not faults:
            self.found.append(nothing(node.span))
        return pieces

    def misplaced(self, span: Span, word: str, model: bool) -> None:
        """Report a form that stands in the wrong kind of block."""
        places = ("directly in a model", "in a stage or definition")
        where, belongs = places if model else places[::-1]
        self.found.append(
            MisplacedStatement(span=span, what=f"`{word}`", where=where, belongs=belongs)
        )


def nothing(span: Span) -> Diagnostic:
    """Return the finding about a text without anything in it."""
    from tokdsl.syntax.mistakes import MissingValue

    return MissingValue(span=span, after="", found="nothing")
