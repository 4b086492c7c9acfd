"""Reads source files from disk; whatever lies there gives a text or a finding."""

from __future__ import annotations

import os
from pathlib import Path

from tokdsl.diagnostics import Diagnostic, Severity
from tokdsl.source import SourceFile, Span

#: Bytes that a source file may have.
SIZE_LIMIT = 4 * 2**20


class UnreadableFile(Diagnostic, code="TOK110", name="unreadable-file", severity=Severity.ERROR):
    """A file cannot be read.

    It does not exist, is a folder, or may not be opened.

    ```sh error
    tokdsl check no_such_file.tok
    ```
    ```sh ok
    tokdsl check model.tok
    ```
    """

    path: str
    reason: str

    def message(self) -> str:
        """Say which file and why."""
        return f"cannot read `{self.path}`: {self.reason}"


class FileTooLarge(Diagnostic, code="TOK113", name="file-too-large", severity=Severity.ERROR):
    """A file is larger than any specification.

    Files of up to 4 MiB are read. Divide the definitions among several files and `use` them.

    ```sh error
    tokdsl check huge.tok
    ```
    ```sh ok
    tokdsl check model.tok
    ```
    """

    path: str
    size: int

    def message(self) -> str:
        """Say how large it is and may be."""
        size, limit = self.size / 2**20, SIZE_LIMIT / 2**20
        return f"`{self.path}` is too large: expected at most {limit:.0f} MiB, found {size:.1f} MiB"


def read_source(path: str | os.PathLike[str]) -> tuple[SourceFile, list[Diagnostic]]:
    """Read a file as source text.

    Bytes that are not UTF-8 become U+FFFD, and `parse` reports them together with their place, as
    it reports binary data (TOK111, TOK112). With a finding of its own the text is empty.

    Reports:
        TOK110 when the file cannot be read, TOK113 when it is too large.
    """
    name = os.fspath(path)
    file = Path(path)
    empty = SourceFile(name, "")
    start = Span(empty, 0, 0)
    try:
        if file.is_dir():
            return empty, [_unreadable(name, start, "it is a folder")]
        if file.exists() and not file.is_file():
            return empty, [_unreadable(name, start, "it is no ordinary file")]
        with file.open("rb") as stream:
            content = stream.read(SIZE_LIMIT + 1)
        if len(content) > SIZE_LIMIT:
            size = file.stat().st_size
            return empty, [FileTooLarge(span=start, path=name, size=size)]
    except FileNotFoundError:
        return empty, [_missing(name, file, start)]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return empty, [_unreadable(name, start, reason.lower())]
    text = content.decode("utf-8-sig", errors="replace")
    return SourceFile(name, text.replace("\r\n", "\n")), []


def _unreadable(name: str, span: Span, reason: str) -> Diagnostic:
    return UnreadableFile(span=span, path=name, reason=reason)


def _missing(name: str, file: Path, span: Span) -> Diagnostic:
    """Return the finding about a missing file, with a neighbour of a similar name."""
    from tokdsl.diagnostics import did_you_mean

    try:
        neighbours = [p.name for p in file.parent.iterdir() if p.suffix in (".tok", ".yaml")]
    except OSError:
        neighbours = []
    return UnreadableFile(
        span=span,
        path=name,
        reason="there is no such file",
        help=did_you_mean(file.name, neighbours),
    )
