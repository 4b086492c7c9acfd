"""Comments that accept a warning on one line: ``# allow <name>``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tokdsl.diagnostics.base import REGISTRY, Diagnostic, Report, Severity, did_you_mean
from tokdsl.source import SourceFile, Span

_STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|(#[^\n]*)')
_ALLOW = re.compile(r"#+[ \t]*allow[ \t]+([\w-]+(?:[ \t]*,[ \t]*[\w-]+)*)[ \t]*(?:[:#].*)?$")
_WORD = re.compile(r"[\w-]+")


class UnusedAllow(Diagnostic, code="TOK190", name="unused-allow", severity=Severity.WARNING):
    """A comment accepts a warning that does not occur.

    `# allow <name>`, at the end of a line or alone on the line above it, accepts the warning of
    that name on that line. A comment that accepts nothing hides the next warning of that name, so
    it is reported. Errors cannot be accepted: what they say about the model is true whether or not
    it is read.

    ```tok error
    block double(x: [*, d]) -> [*, d] {
      x + x  # allow unused-name
    }
    ```

    ```tok ok
    block double(x: [*, d]) -> [*, d] {
      x + x
    }
    ```
    """

    allowed: str
    is_error: bool = False

    def message(self) -> str:
        """Return the one line that stands alone."""
        if self.is_error:
            return f"`{self.allowed}` is an error here and cannot be allowed"
        return f"nothing on this line is reported as `{self.allowed}`"

    def label(self) -> str:
        """Return the short text under the span."""
        return "has no effect"


@dataclass(frozen=True, slots=True)
class Allowance:
    """One name in one comment, and the line on which it accepts that finding."""

    name: str
    line: int
    span: Span

    def covers(self, diagnostic: Diagnostic) -> bool:
        """Whether the comment names this finding, by name or code, on its line."""
        return self.name in (diagnostic.name, diagnostic.code) and (
            diagnostic.span.line == self.line
        )


def allowances(source: SourceFile) -> Iterator[Allowance]:
    """Yield what the comments of a file allow, in source order."""
    if "allow" not in source.text:
        return
    for match in _STRING_OR_COMMENT.finditer(source.text):
        if match[1] is None or not (allow := _ALLOW.match(match[1].rstrip())):
            continue
        line = source.position(match.start())[0]
        if source.line(line).lstrip().startswith("#"):
            line = _next_code_line(source, line)
        offset = match.start() + allow.start(1)
        for word in _WORD.finditer(allow[1]):
            span = Span(source, offset + word.start(), offset + word.end())
            yield Allowance(word[0], line, span)


def _next_code_line(source: SourceFile, line: int) -> int:
    """Return the first line below that is more than a comment."""
    for number in range(line + 1, len(source.line_starts()) + 1):
        if (text := source.line(number).strip()) and not text.startswith("#"):
            return number
    return line


def apply_suppressions(source: SourceFile, report: Report) -> Report:
    """Return the report without the warnings that comments allow, and with the unused comments.

    Args:
        source: the file whose comments count; findings in other files stay.
        report: the findings of all stages. While it has errors, later stages have not run, so
            that only a comment that names an error is called unused.

    Reports:
        TOK190.
    """
    allowed = list(allowances(source))
    if not allowed:
        return report
    used: set[Allowance] = set()
    kept = Report()
    for diagnostic in report.found:
        covering = [a for a in allowed if diagnostic.span.file == source and a.covers(diagnostic)]
        used.update(covering)
        if diagnostic.severity is Severity.ERROR:
            kept.add(diagnostic)
            kept.extend(UnusedAllow(span=a.span, allowed=a.name, is_error=True) for a in covering)
        elif not covering:
            kept.add(diagnostic)
    if not report.has_errors:
        kept.extend(_unused(a) for a in allowed if a not in used)
    return kept


def _unused(allowance: Allowance) -> UnusedAllow:
    known = [cls.name for cls in REGISTRY.values() if cls.severity is not Severity.ERROR]
    near = None if allowance.name in known else did_you_mean(allowance.name, known)
    return UnusedAllow(
        span=allowance.span, allowed=allowance.name, help=near or "remove the comment"
    )
