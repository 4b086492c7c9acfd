"""From the tokens of a text to statements: brackets, line breaks and the words that begin them.

What this pass gives on is always well formed: every bracket is closed (missing ones are added,
those without a partner are left out, each with its finding), `_END` stands between two statements,
and a word such as `stage` is a keyword only where it begins a statement. So a mistake in one
statement cannot change how the next one is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

from tokdsl.syntax.lexer import Lexed, Tokens

#: Brackets deeper than this are refused, so that no later pass can run out of stack.
DEPTH_LIMIT = 100

#: Lines inside each other that look like new statements before a bracket is taken as unclosed.
STOP_LIMIT = 4

CLOSER = {"LPAR": "RPAR", "LSQB": "RSQB", "LBRACE": "RBRACE"}
OPENER = {closer: opener for opener, closer in CLOSER.items()}
SIGN = {"LPAR": "(", "RPAR": ")", "LSQB": "[", "RSQB": "]", "LBRACE": "{", "RBRACE": "}"}

_OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "FLOORDIV", "PERCENT", "POWER", "COMPARE"}
_OPERATORS |= {"AND", "OR"}
#: After these a line break does not end the statement.
GOES_ON_AFTER = _OPERATORS | {
    "COMMA", "EQUAL", "__ANON_0", "DOT", "COLON", "NOT", "IF", "ELSE", "VBAR",
    "LPAR", "LSQB", "SEMICOLON", "USE", "MODEL", "KIND", "STAGE", "REPEAT", "SHARED", "AUX",
    "OBJECTIVE", "WEIGHTS", "REQUIRE",
}  # fmt: skip
#: Before these a line break does not end the statement (`- * [ |` may begin one).
GOES_ON_BEFORE = (_OPERATORS - {"MINUS", "STAR"}) | {
    "DOT", "COMMA", "EQUAL", "__ANON_0", "COLON", "ELSE", "LBRACE", "SEMICOLON",
}  # fmt: skip

VALUE_STARTS = {
    "NAME", "NUMBER", "STRING", "TRUE", "FALSE", "NONE", "NOT", "IF", "LPAR", "LSQB", "MINUS",
    "VBAR",
}  # fmt: skip
VALUE_ENDS = {"NAME", "NUMBER", "STRING", "TRUE", "FALSE", "NONE", "RPAR", "RSQB", "RBRACE"}

ITEM_WORDS = {"USE", "MODEL", "KIND"}
#: What may follow a word for it to begin a statement; anything else makes it a name.
STATEMENT_WORDS = {
    "STAGE": {"NAME", "LBRACE"},
    "REPEAT": (VALUE_STARTS | {"LBRACE"}) - {"MINUS", "VBAR", "LSQB"},
    "RESIDUAL": {"LBRACE", "LPAR"},
    "SHARED": {"NAME"},
    "AUX": {"NAME"},
    "REQUIRE": VALUE_STARTS - {"LSQB", "MINUS", "VBAR"},
    "OBJECTIVE": VALUE_STARTS - {"LSQB"},
    "WEIGHTS": {"NAME", "LBRACE"},
}
#: Words that are keywords in some places and names in all others.
SOFT_WORDS = ITEM_WORDS | STATEMENT_WORDS.keys() | {"AS", "OF"}
#: Words whose statement ends with a block.
BLOCK_HEADS = {"MODEL", "KIND", "STAGE", "REPEAT", "RESIDUAL", "WEIGHTS", "IF"}
_WORDLIKE = SOFT_WORDS | {"NAME"}
#: What may begin a line inside brackets although the line before it looked complete.
_INSIDE_BEFORE = GOES_ON_BEFORE | _OPERATORS | {"RPAR", "RSQB", "RBRACE", "VBAR"}


@dataclass(slots=True)
class Frame:
    """An open bracket.

    Args:
        kind: its terminal, or nothing for the file itself.
        raw: its place among the tokens of the text.
        block: whether it holds statements.
        head: the first token of the present statement, or nothing before it.
        ifs: how many ``if`` and ``else`` still wait for their brace.
        lead: where the present statement starts.
        indent: how far the line of the statement that opened it is indented.
        stop: the first line inside it that seems to lie outside of it (of brackets: one that looks
            like a new statement; of a block: one that is not indented), as a state to go back to.
        added: whether its bracket was not written.
        opened: whether the present statement has a block.
    """

    kind: str
    raw: int
    block: bool
    head: str = ""
    ifs: int = 0
    lead: int = 0
    indent: int = -1
    stop: State | None = None
    added: bool = False
    opened: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """A point of the scan to which it can go back."""

    raw: int
    size: int
    faults: int
    stack: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """A bracket without a partner, or brackets that are too deep.

    ``kind`` is ``unclosed``, ``stray``, ``foreign`` (opens where nothing can be opened),
    ``unopened`` (a block without its brace) or ``deep``; ``start`` is the bracket and ``at`` the
    place where its partner was missed; ``others`` are brackets that were left open with it.
    """

    kind: str
    sign: str
    start: int
    at: int
    others: tuple[int, ...] = ()


@dataclass(slots=True)
class LaidOut:
    """Well-formed tokens, where each item ends among them, and what was mended."""

    tokens: Tokens
    items: list[tuple[int, int]]
    faults: list[Fault] = field(default_factory=list)


def lay_out(text: str, lexed: Lexed, within: str | None = None) -> LaidOut:
    """Arrange the tokens of a text into statements; linear time, no recursion.

    Args:
        text: the text.
        lexed: its tokens.
        within: nothing for a file; ``statement`` for a text that stands in a block, and
            ``expression`` for one that stands in a statement.
    """
    layout = _Layout(text, lexed, outside=within is None)
    if within == "expression":
        layout.stack[0].head = "NAME"
    return layout.run()


def is_statement_word(kind: str, follow: str) -> bool:
    """Return whether a word begins a statement, given the terminal that follows it."""
    if kind not in STATEMENT_WORDS:
        return False
    if follow in _WORDLIKE:
        return "NAME" in STATEMENT_WORDS[kind]
    if follow in ("_END", "SEMICOLON"):
        return kind in ("REQUIRE", "OBJECTIVE")
    return follow in STATEMENT_WORDS[kind]


class _Layout:
    """The scan over the tokens of one text."""

    def __init__(self, text: str, lexed: Lexed, outside: bool) -> None:
        self.outside = outside
        self.text = text
        self.raw = lexed.tokens
        self.first = lexed.first
        self.out = Tokens()
        self.stack = [Frame("", -1, True)]
        self.bounds: list[int] = []
        self.faults: list[Fault] = []
        self.late: State | None = None
        self.early: State | None = None
        self.late_frame = -1
        self.item_column = 0
        self.budget = 20 * len(lexed.tokens) + 1000

    def run(self) -> LaidOut:
        """Scan everything and return the result."""
        at, size = 0, len(self.raw)
        while at < size or len(self.stack) > 1:
            at = self.scan(at) if at < size else self.close_all(size)
        return LaidOut(self.out, self.items(), self.faults)

    def items(self) -> list[tuple[int, int]]:
        """Return the range of each item."""
        edges = [-1, *self.bounds, len(self.out)]
        return [(low + 1, high) for low, high in pairwise(edges) if high > low + 1]

    # ------------------------------------------------------------------ the scan

    def scan(self, at: int) -> int:
        """Lay out tokens from ``at`` on until something is wrong; return where to go on."""
        raw, first, out, stack = self.raw, self.first, self.out, self.stack
        kinds, size = raw.kinds, len(raw)
        add = out.add
        while at < size:
            kind = kinds[at]
            top = stack[-1]
            if first[at] and kind in ITEM_WORDS and len(stack) > 1 and self.is_item(at):
                return self.close_all(at)
            if top.block:
                if kind == "SEMICOLON":
                    self.end_statement(top, at)
                    at += 1
                    continue
                if top.added and first[at] and self.ends_added(top, at):
                    continue
                if top.head and first[at] and out.kinds and not self.goes_on(top, at):
                    if top.head in BLOCK_HEADS and self.lacks_block(top, at):
                        self.add_opener(top, at)
                        continue
                    self.end_statement(top, at)
                if not top.head and kind != "RBRACE":
                    kind = self.begin_statement(top, at)
                elif kind in SOFT_WORDS:
                    kind = self.inner_word(at)
            else:
                if first[at] and top.stop is None and self.is_suspicious(at):
                    stop, frame = self.mark_stop(at)
                    if stop is not None and self.may_go_back(stop.raw, at):
                        return self.go_back(stop, frame.raw)
                if kind in SOFT_WORDS:
                    kind = self.inner_word(at)
            if kind in CLOSER:
                if not self.opens(at, kind):
                    return self.refuse(at)
            elif kind in OPENER:
                if kind == "RBRACE" and top.head in BLOCK_HEADS and self.ends_unopened(top, at):
                    at += 1
                    continue
                if stack[-1].kind != OPENER[kind]:
                    return self.mismatch(at, kind)
                self.close(at, kind)
            elif kind == "IF" or kind == "ELSE":
                top.ifs += 1
            add(kind, raw.values[at], raw.starts[at], raw.ends[at])
            at += 1
        return at

    def begin_statement(self, frame: Frame, at: int) -> str:
        """Start a statement and return what its first word is."""
        raw = self.raw
        kind = raw.kinds[at]
        out = self.out.kinds
        if out and out[-1] not in ("_END", "LBRACE"):
            self.add_end(at)
        if len(self.stack) == 1:
            self.item_column = self.column(raw.starts[at])
            if kind in ITEM_WORDS:
                self.late = self.early = None
        if kind in SOFT_WORDS:
            follow = self.following(at)
            if kind in ITEM_WORDS:
                outside = self.outside and len(self.stack) == 1
                is_word = follow not in ("EQUAL", "DOT") if outside else follow in _WORDLIKE
            else:
                is_word = is_statement_word(kind, follow)
            kind = kind if is_word else "NAME"
        frame.head = kind
        frame.ifs = 0
        frame.opened = False
        frame.lead = raw.starts[at]
        may_stop = self.first[at] and frame.stop is None and frame.indent >= 0
        if may_stop and self.column(raw.starts[at]) <= frame.indent:
            frame.stop = self.state(at)
        return kind

    def following(self, at: int) -> str:
        """Return the kind of the next token on the line, or of a brace on the next one."""
        if at + 1 >= len(self.raw):
            return "_END"
        kind = self.raw.kinds[at + 1]
        return "_END" if self.first[at + 1] and kind != "LBRACE" else kind

    def inner_word(self, at: int) -> str:
        """Return what a word is that does not begin a statement."""
        kind = self.raw.kinds[at]
        if kind not in ("AS", "OF") or not self.out.kinds or self.out.kinds[-1] not in VALUE_ENDS:
            return "NAME"
        follow = self.following(at)
        begins = follow in _WORDLIKE if kind == "AS" else follow in VALUE_STARTS | _WORDLIKE
        return kind if begins else "NAME"

    def add_end(self, at: int) -> None:
        """Add the end of a statement before the token at ``at``."""
        here = self.out.ends[-1]
        if len(self.stack) == 1:
            self.bounds.append(len(self.out))
        self.out.add("_END", "", here, here)

    def end_statement(self, frame: Frame, at: int) -> None:
        """Note that the present statement is over."""
        frame.head = ""
        frame.ifs = 0

    def goes_on(self, frame: Frame, at: int) -> bool:
        """Return whether the line that begins at ``at`` continues the statement."""
        kind = self.raw.kinds[at]
        if kind in GOES_ON_BEFORE:
            return True
        before = self.out.kinds[-1]
        if before not in GOES_ON_AFTER:
            return False
        if before == "COMMA" and frame.head != "REQUIRE":
            return True
        return not self.looks_like_statement(at)

    def looks_like_statement(self, at: int) -> bool:
        """Return whether a line can only be the beginning of a statement."""
        kinds = self.raw.kinds
        kind = kinds[at]
        if kind not in _WORDLIKE or at + 1 >= len(self.raw):
            return False
        follow = kinds[at + 1]
        if follow == "EQUAL":
            return True
        if kind in ITEM_WORDS and self.outside and len(self.stack) == 1:
            return follow in _WORDLIKE and not self.first[at + 1]
        if follow == "LSQB":
            return kinds[at + 3 : at + 4] == ["COLON"]
        if self.first[at + 1] or follow == "LPAR":  # more likely the call of a function
            return False
        return is_statement_word(kind, follow)

    # ------------------------------------------------------------------ brackets

    def opens(self, at: int, kind: str) -> bool:
        """Push a bracket; return false where it cannot stand."""
        stack = self.stack
        top = stack[-1]
        block = kind == "LBRACE"
        if block and not top.block:
            if not top.ifs:
                return False
            top.ifs -= 1
        elif block and top.head == "USE":
            block = False
        if len(stack) > DEPTH_LIMIT:
            return False
        stack.append(Frame(kind, at, block))
        top.opened |= block
        if block:
            outer = next(frame for frame in reversed(stack[:-1]) if frame.block)
            stack[-1].indent = self.indent(outer.lead)
        return True

    def close(self, at: int, kind: str) -> None:
        """Pop a bracket that has found its partner."""
        stack = self.stack
        frame = stack[-1]
        if frame.block and self.first[at] and self.late is None and self.early is None:
            column = self.column(self.raw.starts[at])
            if column < frame.indent:
                self.late = frame.stop or self.state(at)
                self.late_frame = frame.raw
            elif column > frame.indent:
                self.early = self.state(at)
        stack.pop()

    def refuse(self, at: int) -> int:
        """Deal with an opening bracket that cannot stand; return where to go on."""
        if len(self.stack) <= DEPTH_LIMIT and self.closes_later(at):
            start = self.raw.starts[at]
            self.faults.append(Fault("foreign", SIGN[self.raw.kinds[at]], start, start))
            return at + 1
        if len(self.stack) > DEPTH_LIMIT:
            for frame in self.stack:
                if frame.stop and not frame.block and self.may_go_back(frame.stop.raw, at):
                    return self.go_back(frame.stop, frame.raw)
            return self.too_deep(at)
        run = self.bracket_run()
        return self.close_run(run, at)

    def mismatch(self, at: int, kind: str) -> int:
        """Deal with a closing bracket whose partner is not the last one opened."""
        wanted = OPENER[kind]
        inside = self.bracket_run() < len(self.stack)
        if kind == "RBRACE" and inside and not self.first[at] and self.closes_later(at):
            start = self.raw.starts[at]
            self.faults.append(Fault("stray", SIGN[kind], start, start))
            return at + 1
        for depth in range(len(self.stack) - 1, 0, -1):
            frame = self.stack[depth]
            if frame.kind == wanted:
                return self.close_run(depth + 1, at)
            if frame.block and wanted != "LBRACE":
                break
        if kind == "RBRACE" and self.early is not None and self.may_go_back(self.early.raw, at):
            state = self.early
            self.restore(state)
            at = state.raw
        start = self.raw.starts[at]
        self.faults.append(Fault("stray", SIGN[kind], start, start))
        return at + 1

    def closes_later(self, at: int) -> bool:
        """Return whether the rest of the line closes more brackets than it opens."""
        depth = 0
        for place in range(at + 1, len(self.raw)):
            kind = self.raw.kinds[place]
            if self.first[place]:
                return False
            depth += (kind in ("LPAR", "LSQB")) - (kind in ("RPAR", "RSQB"))
            if depth < 0:
                return True
        return False

    def lacks_block(self, frame: Frame, at: int) -> bool:
        """Return whether a statement ended without its block, and an indented line follows."""
        before = self.out.kinds[-2:]
        if before[-1] == "RBRACE" or before[0] == "KIND" or self.raw.kinds[at] == "RBRACE":
            return False
        return self.column(self.raw.starts[at]) > self.indent(frame.lead)

    def ends_unopened(self, frame: Frame, at: int) -> bool:
        """Return whether a brace ends the block of a statement whose opening brace is missing.

        It does when the block around the statement was not opened on the same line; the statement
        is then reported because of its missing brace, and this one closes nothing else.
        """
        if frame.opened or self.first[at]:
            return False
        start = self.raw.starts[frame.raw] if frame.raw >= 0 else 0
        return "\n" in self.text[start : self.raw.starts[at]]

    def add_opener(self, frame: Frame, at: int) -> None:
        """Begin the block of a statement that has none: its brace was forgotten."""
        here = self.out.ends[-1]
        self.faults.append(Fault("unopened", "{", here, here))
        self.out.add("LBRACE", "{", here, here)
        frame.opened = True
        indent = self.indent(frame.lead)
        self.stack.append(Frame("LBRACE", at - 1, True, indent=indent, added=True))

    def ends_added(self, frame: Frame, at: int) -> bool:
        """Close a block without a brace before a line that is not indented."""
        is_out = self.column(self.raw.starts[at]) <= frame.indent
        if not is_out or self.raw.kinds[at] == "RBRACE":
            return False
        here = self.out.ends[-1]
        self.out.add("RBRACE", "}", here, here)
        self.stack.pop()
        return True

    def bracket_run(self) -> int:
        """Return the depth at which the brackets begin that are open on top of a block."""
        depth = len(self.stack)
        while depth > 1 and not self.stack[depth - 1].block:
            depth -= 1
        return depth

    def close_run(self, depth: int, at: int) -> int:
        """Close all brackets from ``depth`` on; the first one has no partner."""
        frame = self.stack[depth]
        if frame.stop is not None and self.may_go_back(frame.stop.raw, at):
            return self.go_back(frame.stop, frame.raw)
        self.add_closers(depth)
        return at

    def go_back(self, state: State, raw: int) -> int:
        """Close the bracket that was opened at ``raw`` before the line where it seems to end."""
        depth = next(i for i, frame in enumerate(state.stack) if frame.raw == raw)
        self.restore(state)
        self.add_closers(depth)
        return state.raw

    def add_closers(self, depth: int) -> None:
        """Report the bracket at ``depth`` as unclosed and close it and all inside it."""
        here = self.out.ends[-1]
        starts = [self.raw.starts[frame.raw] for frame in self.stack[depth:]]
        if not self.stack[depth].added:
            sign = SIGN[self.stack[depth].kind]
            self.faults.append(Fault("unclosed", sign, starts[0], here, tuple(starts[1:])))
        while len(self.stack) > depth:
            closer = CLOSER[self.stack.pop().kind]
            self.out.add(closer, SIGN[closer], here, here)

    def close_all(self, at: int) -> int:
        """Close what is open at the end of the file or before a new item."""
        run = self.bracket_run()
        if run < len(self.stack):
            return self.close_run(run, at)
        if self.late is not None and self.may_go_back(self.late.raw, at):
            return self.go_back(self.late, self.late_frame)
        self.add_closers(1)
        self.stack[0].head = ""
        return at

    def too_deep(self, at: int) -> int:
        """Report brackets that are too deep and leave out the rest of the item."""
        start = self.raw.starts[at]
        self.faults.append(Fault("deep", self.text[start], start, start))
        while at < len(self.raw) and not (
            self.first[at] and self.raw.kinds[at] in ITEM_WORDS and self.is_item(at)
        ):
            at += 1
        here = self.out.ends[-1]
        while len(self.stack) > 1:
            closer = CLOSER[self.stack.pop().kind]
            self.out.add(closer, SIGN[closer], here, here)
        self.stack[0].head = ""
        return at

    # ------------------------------------------------------------------ where things are

    def is_item(self, at: int) -> bool:
        """Return whether a line inside brackets can only be the beginning of a new item."""
        kinds = self.raw.kinds
        follow = kinds[at + 1 : at + 3]
        if not follow or follow[0] not in _WORDLIKE or self.first[at + 1]:
            return False
        named = kinds[at] == "USE" or follow[1:] in (["LPAR"], ["LBRACE"])
        return named and self.column(self.raw.starts[at]) <= self.item_column

    def is_suspicious(self, at: int) -> bool:
        """Return whether a line inside brackets looks like a new statement."""
        if self.out.kinds[-1] in GOES_ON_AFTER:
            return False
        return self.raw.kinds[at] not in _INSIDE_BEFORE

    def mark_stop(self, at: int) -> tuple[State | None, Frame]:
        """Remember a line that looks like a new statement, for all brackets of the run.

        Returns the first bracket of the run, and its stop when there are so many such lines that it
        must be unclosed.
        """
        state = self.state(at)
        run = self.stack[self.bracket_run() :]
        for frame in run:
            if frame.stop is None:
                frame.stop = state
        stops = {id(frame.stop) for frame in run}
        return (run[0].stop if len(stops) > STOP_LIMIT else None), run[0]

    def state(self, at: int) -> State:
        """Return the present state, before the token at ``at``."""
        copies = tuple(replace(frame) for frame in self.stack)
        return State(at, len(self.out), len(self.faults), copies)

    def may_go_back(self, to: int, at: int) -> bool:
        """Return whether going back is still allowed: the whole work stays linear."""
        self.budget -= at - to + 1
        return self.budget > 0

    def restore(self, state: State) -> None:
        """Go back to a state."""
        self.out.cut(state.size)
        while self.bounds and self.bounds[-1] >= state.size:
            self.bounds.pop()
        del self.faults[state.faults :]
        self.stack[:] = [replace(frame) for frame in state.stack]
        self.late = self.early = None

    def column(self, start: int) -> int:
        """Return how far a place is from the beginning of its line."""
        return start - (self.text.rfind("\n", 0, start) + 1)

    def indent(self, start: int) -> int:
        """Return the indentation of the line of a place."""
        begin = self.text.rfind("\n", 0, start) + 1
        line = self.text[begin:start]
        return len(line) - len(line.lstrip())
