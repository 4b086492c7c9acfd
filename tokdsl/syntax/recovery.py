"""Reads an item that has mistakes: each statement by itself, with the same tables.

The blocks of the item are read from the inside out. A statement sees a block inside it as one token
(`BODY`), so it is read from its own start rule whatever is wrong elsewhere, and every token is read
once. In a broken statement a missing value or comma is filled in where that makes it fit; what
cannot be mended becomes a `BrokenStatement` with one finding.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokdsl.diagnostics import Diagnostic, Edit, Fix, did_you_mean
from tokdsl.source import SourceFile, Span
from tokdsl.syntax import tree
from tokdsl.syntax.build import Build
from tokdsl.syntax.engine import Builder, Stacks, accepts, begin, finish, run
from tokdsl.syntax.expected import expected_words, one_of
from tokdsl.syntax.layout import ITEM_WORDS, STATEMENT_WORDS, VALUE_ENDS, VALUE_STARTS
from tokdsl.syntax.lexer import Tokens
from tokdsl.syntax.mistakes import (
    MisplacedStatement,
    MissingComma,
    MissingSeparator,
    MissingValue,
    UnexpectedToken,
    UnknownWord,
)
from tokdsl.syntax.tables import END, load_tables

#: Gaps that are filled in one statement before it is given up.
REPAIR_LIMIT = 20

_BLOCK_RULES = {"MODEL": "member", "WEIGHTS": "weight_rule"}
_PLACES = {
    "statement": ("in a stage or definition", "directly in a model"),
    "member": ("directly in a model", "in a stage or definition"),
}


@dataclass(slots=True)
class Block:
    """A block that is being read: its finished statements and the tokens of the present one."""

    rule: str
    start: int
    nodes: list[tree.Node] = field(default_factory=list)
    tokens: Tokens = field(default_factory=Tokens)
    brackets: int = 0
    listing: int = 0
    mark: int = 0
    fitted: bool = False
    misplaced: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a statement stopped to fit: the parse up to there, and the tokens."""

    stacks: Stacks
    tokens: Tokens
    place: int

    @property
    def kind(self) -> str:
        """The terminal that does not fit."""
        return self.tokens.kinds[self.place] if self.place < len(self.tokens) else END

    @property
    def before(self) -> str:
        """The terminal before it."""
        return self.tokens.kinds[self.place - 1] if self.place else ""


class Recovery:
    """Reads items with mistakes.

    Args:
        source: the file.
        build: builds the nodes and holds the list of findings.
        builders: the builder of every rule.
        tainted: places whose mistake is already reported; statements that hold one stay silent.

    Attributes:
        embedded: whether the tokens are from a text inside another one (a value in YAML).
    """

    def __init__(
        self, source: SourceFile, build: Build, builders: Sequence[Builder], tainted: set[int]
    ) -> None:
        self.source = source
        self.build = build
        self.builders = builders
        self.tainted = sorted(tainted)
        self.tables = load_tables()
        self.found = build.found
        self.after_junk = False
        self.embedded = False
        self.hopeless: list[tuple[int, int, int]] = []

    # ------------------------------------------------------------------ blocks

    def item(self, tokens: Tokens) -> tree.Node:
        """Read one item from its well-formed tokens."""
        return self.finish_item(self.fold(tokens))

    def piece(self, tokens: Tokens, rule: str) -> list[tree.Node]:
        """Read the tokens of another start rule."""
        return self.statement(self.fold(tokens), rule)

    def fold(self, tokens: Tokens) -> Tokens:
        """Read the blocks of a text and put one token in the place of each."""
        self.hopeless.clear()
        blocks = [Block("", tokens.starts[0])]
        for place, kind in enumerate(tokens.kinds):
            block = blocks[-1]
            own = block.tokens
            if kind == "LBRACE" and own.kinds[:1] == ["USE"]:
                block.listing += 1
                self.take(block, tokens, place)
            elif kind == "RBRACE" and block.listing:
                block.listing -= 1
                self.take(block, tokens, place)
            elif kind == "LBRACE":
                rule = _BLOCK_RULES.get(own.kinds[0], "statement") if own.kinds else "statement"
                rule = "statement" if block.brackets else rule
                blocks.append(Block(rule, tokens.starts[place], mark=len(self.found)))
            elif kind == "RBRACE":
                self.end_statement(block)
                blocks.pop()
                end = tokens.ends[place]
                body = tree.Body(Span(self.source, block.start, end), tuple(block.nodes))  # type: ignore[arg-type]
                if not block.fitted:
                    self.hopeless.append((block.start, block.mark, len(self.found)))
                blocks[-1].tokens.add("BODY", body, block.start, end)
            elif kind == "_END" and len(blocks) > 1:
                self.end_statement(block)
            else:
                self.take(block, tokens, place)
        return blocks[0].tokens

    def take(self, block: Block, tokens: Tokens, place: int) -> None:
        """Add a token to the present statement of a block."""
        kind, own = tokens.kinds[place], block.tokens
        if kind in ("LPAR", "LSQB"):
            block.brackets += 1
        elif kind in ("RPAR", "RSQB"):
            block.brackets -= 1
        if (
            block.rule == "weight_rule"
            and kind == "STRING"
            and own.kinds
            and own.kinds[-1] in VALUE_ENDS
            and not block.brackets
        ):
            self.end_statement(block)
            own = block.tokens
        own.add(kind, tokens.values[place], tokens.starts[place], tokens.ends[place])

    def end_statement(self, block: Block) -> None:
        """Read the statement that a block has collected."""
        if len(block.tokens):
            before = len(self.found)
            nodes = self.statement(block.tokens, block.rule)
            block.nodes.extend(nodes)
            block.fitted |= len(self.found) == before
            misplaced = any(isinstance(f, MisplacedStatement) for f in self.found[before:])
            if misplaced and block.misplaced:
                self.found.pop()  # of several in a row only the first is reported
            block.misplaced = misplaced
        block.tokens = Tokens()
        block.brackets = block.listing = 0

    def finish_item(self, tokens: Tokens) -> tree.Node:
        """Read the item itself, now that its blocks are read."""
        if tokens.kinds[0] in ITEM_WORDS:
            self.after_junk = False
            nodes = self.statement(tokens, "item")
            broken = isinstance(nodes[0], tree.BrokenStatement)
            return self.broken_item(tokens) if broken else nodes[0]
        node = self.renamed(tokens, "item", "definition")
        if node is None:
            if not self.after_junk and not self.is_tainted(tokens):
                self.found.append(self.junk(tokens))
            self.after_junk = True
        return node or self.broken_item(tokens)

    def junk(self, tokens: Tokens) -> Diagnostic:
        """Return the finding about a text between the items that is none."""
        span = self.token_span(tokens, 0)
        if self.attempt(tokens, "statement") or self.attempt(tokens, "member"):
            return MisplacedStatement(
                span=span,
                what=statement_words(tokens),
                where="at the top of a file",
                belongs="in a model or definition",
            )
        expected = "`use`, `model` or a definition"
        return UnexpectedToken(
            span=span,
            expected=expected,
            found=self.found_words(tokens, 0),
            help="a definition begins with its kind: `block name(x: [*, d]) { ... }`",
        )

    def broken_item(self, tokens: Tokens) -> tree.BrokenItem:
        """Return the node that stands for an item without a tree."""
        return tree.BrokenItem(Span(self.source, tokens.starts[0], tokens.ends[-1]))

    # ------------------------------------------------------------------ statements

    def attempt(self, tokens: Tokens, rule: str) -> tree.Node | None:
        """Read tokens from a start rule; leave no trace if they do not fit."""
        before = len(self.found)
        stacks = begin(self.tables, rule)
        size = len(tokens)
        if run(self.tables, self.builders, stacks, tokens, 0, size) == size:
            done, node = finish(self.tables, self.builders, stacks, rule)
            if done:
                return node  # type: ignore[return-value]
        del self.found[before:]
        self.build.declared.clear()
        return None

    def statement(self, tokens: Tokens, rule: str) -> list[tree.Node]:
        """Read one statement; mend what can be mended."""
        node = self.attempt(tokens, rule)
        if node is not None:
            self.build.check_declared()
            return [node]
        before = len(self.found)
        nodes = self.mend(tokens, rule)
        if self.is_tainted(tokens):
            del self.found[before:]
        if isinstance(nodes[0], tree.BrokenStatement):
            self.forget_blocks(tokens.starts[0], before)
        return nodes

    def forget_blocks(self, start: int, before: int) -> None:
        """Drop the findings in blocks of a broken statement in which nothing fitted.

        What such a block holds was most likely meant for another kind of statement.
        """
        while self.hopeless and self.hopeless[-1][0] >= start:
            _, low, high = self.hopeless.pop()
            if high <= before:
                del self.found[low:high]
                before -= high - low

    def mend(self, tokens: Tokens, rule: str) -> list[tree.Node]:
        """Read a statement that does not fit, filling its gaps."""
        before = len(self.found)
        failure = self.advance(Failure(begin(self.tables, rule), tokens, 0), rule)
        for _ in range(REPAIR_LIMIT):
            filler = self.filler(failure)
            if filler is None:
                break
            at = tokens.ends[failure.place - 1] if failure.place else tokens.starts[0]
            gap = Tokens()
            gap.add(filler, ",", at, at)
            run(self.tables, self.builders, failure.stacks, gap, 0, 1)
            failure = self.advance(failure, rule)
            if failure.place > len(tokens):
                return [failure.stacks.values[-1]]  # type: ignore[list-item]
        if len(self.found) > before:
            return [self.broken(tokens)]
        return self.diagnose(failure, rule)

    def advance(self, failure: Failure, rule: str) -> Failure:
        """Read on to the next token that does not fit; beyond the end when all is read."""
        tokens, low, high = failure.tokens, failure.place, len(failure.tokens)
        before, trial = len(self.found), failure.stacks.copy()
        place = run(self.tables, self.builders, trial, tokens, low, high)
        if place == high and finish(self.tables, self.builders, trial, rule)[0]:
            self.build.check_declared()
            return Failure(trial, tokens, high + 1)
        del self.found[before:]
        run(self.tables, self.builders, failure.stacks, tokens, low, place)
        return Failure(failure.stacks, tokens, place)

    def filler(self, failure: Failure) -> str | None:
        """Return the token that fills a gap, after reporting it."""
        states, kind = failure.stacks.states, failure.kind
        if accepts(self.tables, states, ("MISSING", kind)):
            self.found.append(self.missing_value(failure))
            return "MISSING"
        listed = open_brackets(failure) or failure.tokens.kinds[0] in ("REQUIRE", "USE")
        if listed and kind in VALUE_STARTS and failure.before in VALUE_ENDS:  # noqa: SIM102
            if accepts(self.tables, states, ("COMMA", kind)):
                self.found.append(self.missing_comma(failure))
                return "COMMA"
        return None

    def missing_value(self, failure: Failure) -> Diagnostic:
        """Return the finding about a value that was not written."""
        tokens, place = failure.tokens, failure.place
        at_end = place == len(tokens) or tokens.starts[place] > self.line_end(tokens, place - 1)
        return MissingValue(
            span=self.token_span(tokens, place - 1 if at_end and place else place),
            after=self.token_words(tokens, place - 1) if place else "",
            found=self.found_words(tokens, place),
        )

    def missing_comma(self, failure: Failure) -> Diagnostic:
        """Return the finding about two entries without a comma."""
        tokens, place = failure.tokens, failure.place
        here = Span(self.source, tokens.ends[place - 1], tokens.ends[place - 1])
        return MissingComma(
            span=self.token_span(tokens, place),
            before=self.token_words(tokens, place - 1),
            found=self.token_words(tokens, place),
            fix=Fix("insert `,`", (Edit(here, ","),)),
        )

    # ------------------------------------------------------------------ what is wrong

    def diagnose(self, failure: Failure, rule: str) -> list[tree.Node]:
        """Report a statement that cannot be mended by filling a gap."""
        tokens, place = failure.tokens, failure.place
        misplaced = self.misplaced(tokens, rule)
        if misplaced is not None:
            return misplaced
        if place <= 2 and rule in _PLACES:
            node = self.renamed(tokens, rule, "statement")
            if node is not None:
                return [node]
        parted = self.parted(failure, rule)
        if parted is not None:
            return parted
        states = failure.stacks.states
        kinds = [k for k in self.tables.actions[states[-1]] if k[0] in "$_" or k.isupper()]
        fitting = {k for k in kinds if accepts(self.tables, states, (k,))}
        if rule in _PLACES and fitting >= {"COMMA", "EQUAL"}:
            # more targets of an equation are hardly meant
            fitting -= {"COMMA"} if place == 1 else {"COMMA", "EQUAL"}
        words = expected_words(fitting)
        if self.embedded:
            words = ["the end of the text" if word == "a new line" else word for word in words]
        self.found.append(
            UnexpectedToken(
                span=self.token_span(tokens, min(place, len(tokens) - 1)),
                expected=one_of(words),
                found=self.found_words(tokens, place),
                help=advice(failure) if rule in (*_PLACES, "item") else None,
            )
        )
        return [self.broken(tokens)]

    def misplaced(self, tokens: Tokens, rule: str) -> list[tree.Node] | None:
        """Report a statement that would fit in another place."""
        if rule not in _PLACES:
            return None
        where, elsewhere = _PLACES[rule]
        if tokens.kinds[0] in ITEM_WORDS and self.attempt(tokens, "item"):
            elsewhere = "at the top of the file"
        elif not self.attempt(tokens, "member" if rule == "statement" else "statement"):
            return None
        self.found.append(
            MisplacedStatement(
                span=self.token_span(tokens, 0),
                what=statement_words(tokens),
                where=where,
                belongs=elsewhere,
            )
        )
        return [self.broken(tokens)]

    def renamed(self, tokens: Tokens, rule: str, what: str) -> tree.Node | None:
        """Read a statement whose first word is nearly one that fits, and report the word."""
        if tokens.kinds[0] != "NAME" or len(tokens) < 2:
            return None
        words = self.tables.words
        allowed = ITEM_WORDS if rule == "item" else STATEMENT_WORDS.keys()
        candidates = [word for word, kind in words.items() if kind in allowed]
        word = str(tokens.values[0])
        help_ = did_you_mean(word, candidates)
        if help_ is None:
            return None
        near = help_.split("`")[1]
        changed = tokens.part(0, len(tokens))
        changed.kinds[0], changed.values[0] = words[near], near
        node = self.attempt(changed, rule)
        if node is not None:
            span = self.token_span(tokens, 0)
            fix = Fix(f"write `{near}`", (Edit(span, near),))
            self.found.append(UnknownWord(span=span, word=word, what=what, help=help_, fix=fix))
        return node

    def parted(self, failure: Failure, rule: str) -> list[tree.Node] | None:
        """Read two statements on one line, if that is what a text is."""
        tokens, place = failure.tokens, failure.place
        complete = accepts(self.tables, failure.stacks.states, (END,))
        if not complete or rule not in _PLACES or not 0 < place < len(tokens):
            return None
        rest = tokens.part(place, len(tokens))
        word = self.tables.words.get(str(rest.values[0]), "")
        if word in STATEMENT_WORDS:
            rest.kinds[0] = word
        elif place == 1:
            return None  # a name and a value: more likely a missing `=`
        second = self.attempt(rest, rule)
        first = self.attempt(tokens.part(0, place), rule)
        if first is None or second is None:
            return None
        here = Span(self.source, tokens.ends[place - 1], tokens.ends[place - 1])
        self.found.append(
            MissingSeparator(
                span=self.token_span(tokens, place),
                found=self.token_words(tokens, place),
                fix=Fix("insert `;`", (Edit(here, ";"),)),
            )
        )
        return [first, second]

    # ------------------------------------------------------------------ places and words

    def broken(self, tokens: Tokens) -> tree.BrokenStatement:
        """Return the node that stands for a statement without a tree."""
        return tree.BrokenStatement(Span(self.source, tokens.starts[0], tokens.ends[-1]))

    def is_tainted(self, tokens: Tokens) -> bool:
        """Return whether a mistake in these tokens is already reported."""
        low, high = tokens.starts[0], tokens.ends[-1]
        inner = [
            (tokens.starts[i], tokens.ends[i]) for i, k in enumerate(tokens.kinds) if k == "BODY"
        ]
        near = self.tainted[bisect_left(self.tainted, low) : bisect_right(self.tainted, high)]
        return any(not any(a < place < b for a, b in inner) for place in near)

    def line_end(self, tokens: Tokens, place: int) -> int:
        """Return where the line of a token ends."""
        at = tokens.ends[place] if place >= 0 else tokens.starts[0]
        end = self.source.text.find("\n", at)
        return end if end >= 0 else len(self.source.text)

    def token_span(self, tokens: Tokens, place: int) -> Span:
        """Return the span of a token; of a block only its brace."""
        start, end = tokens.starts[place], tokens.ends[place]
        if tokens.kinds[place] == "BODY":
            end = start + 1
        return Span(self.source, start, end)

    def token_words(self, tokens: Tokens, place: int) -> str:
        """Return a token as a message shows it."""
        if tokens.kinds[place] == "BODY":
            return "`{`" if place else "a block"
        text = str(tokens.values[place])
        if not text:
            return "the end of the line"
        return f"`{text}`" if len(text) <= 32 else f"`{text[:28]}...`"

    def found_words(self, tokens: Tokens, place: int) -> str:
        """Return what was found as a message shows it, also at the end of a statement."""
        if place < len(tokens):
            return self.token_words(tokens, place)
        if self.embedded:
            return "the end of the text"
        rest = self.source.text[tokens.ends[-1] : self.line_end(tokens, len(tokens) - 1)].lstrip()
        if rest[:1] in (";", "}", ")", "]"):
            return f"`{rest[0]}`"
        at_end = not self.source.text[tokens.ends[-1] :].strip()
        return "the end of the file" if at_end else "the end of the line"


def open_brackets(failure: Failure) -> int:
    """Return how many brackets are open before the failure."""
    kinds = failure.tokens.kinds[: failure.place]
    opened = kinds.count("LPAR") + kinds.count("LSQB")
    return opened - kinds.count("RPAR") - kinds.count("RSQB")


def statement_words(tokens: Tokens) -> str:
    """Return what kind of statement begins with these tokens."""
    kind = tokens.kinds[0]
    if kind in STATEMENT_WORDS or kind in ITEM_WORDS:
        return f"`{tokens.values[0]}`"
    return "an equation" if "EQUAL" in tokens.kinds[1:2] else "a step"


def advice(failure: Failure) -> str | None:
    """Return how to repair what people often write."""
    tokens, place, kind = failure.tokens, failure.place, failure.kind
    text = str(tokens.values[place]) if place < len(tokens) else ""
    before = str(tokens.values[place - 1]) if place else ""
    if kind == "EQUAL":
        return "`==` compares two values; `=` defines a name"
    if kind == "COMPARE" and "COMPARE" in tokens.kinds[:place]:
        return "comparisons do not chain: write `a < b and b < c`"
    if text == "elif" or before == "elif":
        return "write `else if`"
    if kind in ("IF", "ELSE", "TRUE", "FALSE", "NONE", "AND", "OR", "NOT"):
        return f"`{text}` is a word of the language and cannot be a name"
    if "lambda" in (text, before):
        return "a function of positions is written `|i, j| value`"
    if kind == "COLON":
        return "a block stands in braces: `{ ... }`"
    if place == 1 and failure.before == "NAME" and kind in VALUE_STARTS:
        return f"to define `{before}`, write `{before} = ...`"
    return None
