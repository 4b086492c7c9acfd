"""The one way to write a program: prints a tree, with the comments of its source."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokdsl.source import SourceFile, Span
from tokdsl.syntax import tree
from tokdsl.syntax.compare import children, same_tree
from tokdsl.syntax.lexer import lex
from tokdsl.syntax.parser import parse
from tokdsl.syntax.printing import WIDTH, Remarks, else_if
from tokdsl.syntax.statements import StatementPrinter

#: Equations one below the other are aligned at their `=` unless their names differ by more.
ALIGN_LIMIT = 10
#: Comments behind lines one below the other are aligned unless the lines differ by more.
REMARK_LIMIT = 30
#: Statements that a block holds at most to be put on one line when it is printed from a tree.
FLAT_LIMIT = 3


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
    text = Formatter(source).module(again)
    check, found = parse(SourceFile(source.name, text))
    if found or not same_tree(check, module):
        return source.text  # never lose or change what somebody wrote
    return text


def print_module(module: tree.Module) -> str:
    """Return the text of a module without regard to where it came from."""
    return Formatter(None).module(module)


@dataclass(slots=True)
class Line:
    """What is printed for one statement or comment: usually one line.

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


class Formatter(StatementPrinter):
    """Prints modules.

    Args:
        source: the text that the module was parsed from, whose comments, blank lines and broken
            blocks are kept; or None for a tree from elsewhere.
    """

    def __init__(self, source: SourceFile | None) -> None:
        super().__init__(source)
        comments = lex(source.text).comments if source is not None else []
        self.starts = [start for start, _ in comments]
        self.ends = [end for _, end in comments]
        self.used: set[int] = set()
        self.loose: dict[int, list[str]] = {}
        self._bodies: dict[int, str | None] = {}
        self._made: dict[int, tree.Body] = {}

    # ------------------------------------------------------------------ the source

    def gap(self, low: int, high: int) -> str:
        """Return the source between two places."""
        return self.source.text[low:high] if self.source is not None else ""

    def comments(self, low: int, high: int) -> list[int]:
        """Return the comments in a range that are not printed yet."""
        places = range(bisect_left(self.starts, low), bisect_left(self.starts, high))
        return [place for place in places if place not in self.used]

    def behind(self, low: int, high: int) -> list[int]:
        """Return the comments on the rest of the line at ``low``."""
        if not self.starts or self.source is None:
            return []
        line_end = self.source.text.find("\n", low, max(low, high))
        return self.comments(low, high if line_end < 0 else line_end)

    def remark(self, place: int) -> str:
        """Return a comment and mark it as printed."""
        self.used.add(place)
        return self.gap(self.starts[place], self.ends[place]).rstrip()

    def is_apart(self, low: int, high: int) -> bool:
        """Return whether there is a blank line in a range."""
        return self.gap(low, high).count("\n") > 1

    # ------------------------------------------------------------------ items

    def module(self, module: tree.Module) -> str:
        """Return the text of a module."""
        end = len(self.source.text) if self.source is not None else 0
        text = render(self.sequence(module.items, 0, end, 0), 0)
        return text + "\n" if text else ""

    def item(self, node: tree.Node) -> str:
        """Return the text of an item."""
        doc = ""
        if isinstance(node, (tree.Definition, tree.Model)) and self.source is None and node.doc:
            doc = "".join(f"# {line}".rstrip() + "\n" for line in node.doc.split("\n"))
        match node:
            case tree.Use():
                return self.use(node)
            case tree.Definition():
                text = self.signature(node)
                return doc + text + self.item_body(node, node.body, text)
            case tree.Model():
                text = self.model_head(node)
                return doc + text + self.item_body(node, self.members(node), text)
            case _:
                return node.span.text

    def item_body(self, node: tree.Node, body: tree.Body, head: str) -> str:
        """Return the block of an item: on one line only where it was written so."""
        extra = self.loose.pop(id(node), [])
        if self.source is not None or not body.statements:
            flat = self.flat_body(body)
            column = len(head) - head.rfind("\n") - 1
            if flat is not None and not extra and column + len(flat) <= WIDTH:
                return flat
        return self.broken_body(body, 0, extra)

    def members(self, node: tree.Model) -> tree.Body:
        """Return the members of a model as the block that they stand in."""
        edge = node.parameters[-1].span.end if node.parameters else node.name_span.end
        return self.made_body(node, edge, node.members)

    def rules(self, node: tree.Weights) -> tree.Body:
        """Return the rules of a ``weights`` clause as the block that they stand in."""
        return self.made_body(node, node.span.start, node.rules)

    def made_body(self, node: tree.Node, low: int, inner: tuple[tree.Node, ...]) -> tree.Body:
        """Return what stands in the braces of a node as a block, always the same one."""
        if id(node) not in self._made:
            span = Span(node.span.file, self.opening(low, node.span.end), node.span.end)
            self._made[id(node)] = tree.Body(span, inner)  # type: ignore[arg-type]
        return self._made[id(node)]

    def opening(self, low: int, high: int) -> int:
        """Return the place of the first brace in a range that is not in a comment."""
        if self.source is None:
            return low
        find = self.source.text.find
        place = find("{", low, high)
        while place >= 0:
            inside = bisect_left(self.starts, place) - 1
            if inside < 0 or self.ends[inside] <= place:
                return place
            place = find("{", self.ends[inside], high)
        return low

    # ------------------------------------------------------------------ blocks

    def flat_body(self, body: tree.Body) -> str | None:
        """Return a block on one line, or None where it must not stand on one."""
        key = id(body)
        if key not in self._bodies:
            self._bodies[key] = self._flat_body(body)
        return self._bodies[key]

    def _flat_body(self, body: tree.Body) -> str | None:
        if self.must_break(body):
            return None
        if not body.statements:
            return "{}"
        texts = [self.flat(statement) for statement in body.statements]
        if any(text is None for text in texts):
            return None
        return f"{{ {'; '.join(text for text in texts if text is not None)} }}"

    def must_break(self, body: tree.Body) -> bool:
        """Return whether a block stands over several lines whatever its length."""
        if self.source is None:
            stages = any(isinstance(inner, tree.Stage) for inner in body.statements)
            return stages or len(body.statements) > FLAT_LIMIT
        span = body.span
        if bisect_left(self.starts, span.start) < bisect_left(self.starts, span.end):
            return True
        if not body.statements:
            return False
        return "\n" in self.gap(span.start, body.statements[0].span.start)

    def broken_body(self, body: tree.Body, indent: int, extra: Sequence[str] = ()) -> str:
        """Return a block over several lines, with further comments at its beginning."""
        low, high = body.span.start + 1, body.span.end - 1
        inner = indent + 2
        first = body.statements[0].span.start if body.statements else high
        behind = "".join(f"  {self.remark(place)}" for place in self.behind(low, first))
        lines = [Line(remark) for remark in extra]
        lines += self.sequence(body.statements, low, high, inner)
        text = render(lines, inner)
        return f"{{{behind}\n{text}\n{' ' * indent}}}" if text else f"{{{behind}\n{' ' * indent}}}"

    def sequence(
        self, statements: Sequence[tree.Node], low: int, high: int, indent: int
    ) -> list[Line]:
        """Return the lines of statements and of the comments around them."""
        lines: list[Line] = []
        end = low
        previous: tree.Node | None = None
        may_join = bool(statements) and "\n" in self.gap(low, statements[0].span.start)
        for place, node in enumerate(statements):
            start, count = node.span.start, len(lines)
            end = self.remarks(lines, end, start)
            line = self.line(node, self.is_apart(end, start), indent)
            line.blank = line.blank and bool(lines)
            if previous is not None and needs_blank(previous, node, self.source is None):
                (lines[count] if count < len(lines) else line).blank = True
            loose = self.loose.pop(id(node), [])
            for remark in loose:
                lines.append(Line(remark, line.blank))
                line.blank = False
            if loose or not (may_join and self.joins(lines, line, end, start, indent)):
                lines.append(line)
            end = node.span.end
            following = statements[place + 1].span.start if place + 1 < len(statements) else high
            for behind in self.behind(end, following):
                lines[-1].remark = self.remark(behind)
                end = self.ends[behind]
            previous = node
        self.remarks(lines, end, high)
        return lines

    def line(self, node: tree.Node, blank: bool, indent: int) -> Line:
        """Return the line of one statement or item."""
        self.claim(node)
        if isinstance(node, (tree.Use, tree.Definition, tree.Model, tree.BrokenItem)):
            return Line(self.item(node), blank)
        target = 0
        if isinstance(node, tree.Assign):
            indexed = any(name.indices for name in node.targets)
            target = 0 if indexed or node.shared else len(self.head(node)) - len(" = ")
        return Line(self.statement(node, indent), blank, target)

    def remarks(self, lines: list[Line], low: int, high: int) -> int:
        """Add the comments of a range as lines; return where the last one ends."""
        for place in self.comments(low, high):
            blank = bool(lines) and self.is_apart(low, self.starts[place])
            lines.append(Line(self.remark(place), blank))
            low = self.ends[place]
        return low

    def joins(self, lines: list[Line], line: Line, end: int, start: int, indent: int) -> bool:
        """Put a statement behind the one before it, where it was written so and fits."""
        if not lines or indent == 0 or "\n" in self.gap(end, start):
            return False
        before = lines[-1]
        text = f"{before.text}; {line.text}"
        if before.remark or "\n" in text or indent + len(text) > WIDTH:
            return False
        if before.text.startswith(("#", '"', "'")):  # comments and weight rules
            return False
        before.text, before.target = text, 0
        return True

    # ------------------------------------------------------------------ comments inside

    def claim(self, node: tree.Node) -> None:
        """Give each comment inside a statement to a list in it, or put it before the statement."""
        if not self.comments(node.span.start, node.span.end):
            return
        blocks: list[Span] = []
        waiting = [node]
        while waiting:
            current = waiting.pop()
            if isinstance(current, tree.Body):
                blocks.append(current.span)
                continue
            self.claim_list(current)
            if isinstance(current, tree.Model):
                blocks.append(self.members(current).span)
                waiting.extend(current.parameters)
            elif isinstance(current, tree.Weights):
                blocks.append(self.rules(current).span)
            elif isinstance(current, tree.If):
                inner = else_if(current.otherwise) if current.otherwise is not None else None
                waiting += [current.condition, current.then]
                waiting += [inner] if inner is not None else [current.otherwise or current.then]
            else:
                waiting.extend(children(current))
        rest = [
            place
            for place in self.comments(node.span.start, node.span.end)
            if not any(block.start < self.starts[place] < block.end for block in blocks)
        ]
        if rest:
            self.loose[id(node)] = [self.remark(place) for place in rest]

    def claim_list(self, node: tree.Node) -> None:
        """Take the comments between the entries of a bracketed list."""
        region = self.region(node)
        if region is None:
            return
        low, high, entries = region
        order = sorted(range(len(entries)), key=lambda place: entries[place].span.start)
        begins = [entries[place].span.start for place in order]
        remarks = Remarks()
        for comment in self.comments(low, high):
            at = self.starts[comment]
            after = bisect_left(begins, at)
            before = entries[order[after - 1]] if after else None
            if before is not None and at < before.span.end:
                continue
            text = self.remark(comment)
            if before is not None and "\n" not in self.gap(before.span.end, at):
                remarks.trailing.setdefault(order[after - 1], []).append(text)
            elif after < len(order):
                remarks.leading.setdefault(order[after], []).append(text)
            else:
                remarks.last.append(text)
        if remarks.leading or remarks.trailing or remarks.last:
            self.remarks_in[id(node)] = remarks

    def region(self, node: tree.Node) -> tuple[int, int, Sequence[tree.Node]] | None:
        """Return where the entries of a list stand, and the entries."""
        span = node.span
        entries: tuple[tree.Node, ...] = ()
        low, high = span.start, span.end
        match node:
            case tree.Call():
                low, entries = node.function.span.end, (*node.operands, *node.statics)
            case tree.ListExpression():
                entries = node.items
            case tree.Use():
                entries = node.names
            case tree.Definition():
                low, high = node.name_span.end, node.body.span.start
                entries = (*node.operands, *node.parameters)
            case tree.Model():
                low, high = node.name_span.end, self.members(node).span.start
                entries = node.parameters
            case tree.Stage():
                high, entries = node.body.span.start, (*node.inputs, *node.arguments)
            case tree.Residual():
                high, entries = node.body.span.start, node.arguments
        return (low, high, entries) if entries else None


def needs_blank(before: tree.Node, node: tree.Node, anew: bool) -> bool:
    """Return whether a blank line stands between two nodes even if none was written.

    Args:
        before: the first node.
        node: the second node.
        anew: whether the text is made from the tree alone.
    """
    if isinstance(node, (tree.Definition, tree.Model)):
        return True
    if isinstance(node, tree.Use):
        return not isinstance(before, tree.Use)
    large = (tree.Stage, tree.Weights, tree.Objective)
    return anew and (isinstance(node, large) or isinstance(before, large))


def render(lines: list[Line], indent: int) -> str:
    """Return lines as text, with equations and comments aligned."""
    align_targets(lines, indent)
    align_remarks(lines)
    texts = []
    for line in lines:
        blank = "\n" if line.blank else ""
        remark = f"  {line.remark}" if line.remark else ""
        texts.append(f"{blank}{' ' * indent}{line.text}{remark}")
    return "\n".join(texts)


def align_targets(lines: list[Line], indent: int) -> None:
    """Align equations that stand one below the other."""
    for run in runs(lines, lambda line: line.target > 0):
        widest = max(line.target for line in run)
        spread = widest - min(line.target for line in run)
        longest = max(indent + len(line.text) + widest - line.target for line in run)
        if 0 < spread <= ALIGN_LIMIT and longest <= WIDTH:
            for line in run:
                pad = " " * (widest - line.target)
                line.text = line.text[: line.target] + pad + line.text[line.target :]


def align_remarks(lines: list[Line]) -> None:
    """Align comments that stand behind lines one below the other."""
    for run in runs(lines, lambda line: bool(line.remark)):
        widest = max(len(line.text) for line in run)
        if widest - min(len(line.text) for line in run) <= REMARK_LIMIT:
            for line in run:
                line.remark = " " * (widest - len(line.text)) + line.remark


def runs(lines: list[Line], belongs: Callable[[Line], bool]) -> list[list[Line]]:
    """Return the longest runs of single lines that belong together, without blank lines."""
    found: list[list[Line]] = []
    goes_on = False
    for line in lines:
        fits = "\n" not in line.text and belongs(line)
        if fits and goes_on and not line.blank:
            found[-1].append(line)
        elif fits:
            found.append([line])
        goes_on = fits
    return found
