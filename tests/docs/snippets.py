"""Runs the blocks of a Markdown page in order, in one folder, as a reader would.

```` ```tok ````               a whole spec, checked: no findings but those its comments announce
                           (``# error: [name]``, see `tests.language.literate`)
```` ```tok file=a.tok ````    the same, and written to that file
```` ```tok file=a.tok wrong ````   written, not checked: a console block shows the rest
```` ```console ````           lines after ``$`` are commands, the lines below are what they print
```` ```console fails ````     the same, and the last command ends with an error
```` ```python ````            runs in one namespace per page, in the folder of the page
```` ```output ````            what the Python block above prints
```` ```python from=a.py ````  an excerpt of a file, which must hold it

In output and excerpts ``...`` stands for anything: alone on a line for any number of lines, inside
a line for any text. Other languages (``text``, ``sh``) are not run. ``--update-golden`` rewrites
output that has no such dots, and formats specs.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.language.literate import disagreements

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 120
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Mismatch(AssertionError):
    """A block does not do what its page says."""


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        words: what follows the language, such as ``file=a.tok``.
        line: of its first line of content in the page.
        start: offset of its content in the page.
    """

    language: str
    words: tuple[str, ...]
    text: str
    line: int
    start: int = 0

    def value(self, key: str) -> str | None:
        """Return what follows ``key=`` after the language."""
        found = [word.partition("=")[2] for word in self.words if word.startswith(f"{key}=")]
        return found[0] if found else None


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page in order."""
    text = page.read_text("utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        yield Block(match[1], tuple(match[2].split()), match[3], line, match.start(3))


@dataclass
class Reader:
    """Somebody who follows a page.

    Args:
        folder: where files are written and commands run.
        is_editor: whether output that differs is corrected in the page.
    """

    folder: Path
    is_editor: bool = False
    names: dict[str, object] = field(default_factory=dict)
    printed: str = ""

    def follow(self, page: Path) -> None:
        """Run every block of a page.

        Raises:
            Mismatch: at the first block that does not do what the page says.
        """
        self._install()
        new, done = "", 0
        old = page.read_text("utf-8")
        with self._at_home():
            for block in blocks(page):
                try:
                    text = self._run(block)
                except Mismatch as error:
                    raise Mismatch(f"{page}:{block.line}: {error}") from None
                new += old[done : block.start] + text
                done = block.start + len(block.text)
        new += old[done:]
        if new != old:
            page.write_text(new, "utf-8")

    def _run(self, block: Block) -> str:
        """Run a block and return what it should hold."""
        match block.language:
            case "tok":
                return self._spec(block)
            case "console":
                return self._console(block)
            case "output":
                return self._compare(block.text, self.printed)
            case "python" if name := block.value("from"):
                if not matches(f"...\n{block.text}...\n", (self.folder / name).read_text("utf-8")):
                    raise Mismatch(f"{name} does not hold\n{block.text}")
            case "python":
                self._python(block)
        return block.text

    def _compare(self, expected: str, actual: str) -> str:
        """Return what a page should show for this output."""
        if self.is_editor and "..." not in expected:
            return "".join(f"{line.rstrip()}\n" for line in actual.rstrip("\n").splitlines())
        require(expected, actual)
        return expected

    # ----------------------------------------------------------------- surroundings

    def _install(self) -> None:
        """Put ``tokdsl`` and ``python`` on the path of the commands."""
        programs = self.folder.parent / f"{self.folder.name}_programs"
        programs.mkdir()
        for name, call in (("tokdsl", "-m tokdsl"), ("python", "")):
            script = programs / name
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {call} "$@"\n')
            script.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TOKDSL_CACHE": str(programs / "cache"),
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
        }

    @contextlib.contextmanager
    def _at_home(self) -> Iterator[None]:
        """Stay in the folder; forget afterwards what was imported from it."""
        before, path = set(sys.modules), list(sys.path)
        cache = os.environ.get("TOKDSL_CACHE")
        os.environ["TOKDSL_CACHE"] = self.environment["TOKDSL_CACHE"]
        sys.path.insert(0, str(self.folder))
        try:
            with contextlib.chdir(self.folder):
                yield
        finally:
            sys.path[:] = path
            os.environ.pop("TOKDSL_CACHE")
            if cache is not None:
                os.environ["TOKDSL_CACHE"] = cache
            for name in set(sys.modules) - before:
                if str(self.folder.parent) in str(getattr(sys.modules[name], "__file__", "")):
                    del sys.modules[name]

    # ----------------------------------------------------------------- kinds of blocks

    def _spec(self, block: Block) -> str:
        from tokdsl.commands.fmt import format_text
        from tokdsl.driver import check_source
        from tokdsl.source import SourceFile

        name = block.value("file")
        text = format_text(block.text, "page").text if self.is_editor else block.text
        if name is not None:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        if "wrong" in block.words:
            return text
        source = SourceFile(name or "example.tok", text)
        complaints = disagreements(text, check_source(source, self.folder).report.sorted())
        if complaints:
            raise Mismatch("\n".join(["the spec has other findings", *complaints]))
        return text

    def _console(self, block: Block) -> str:
        text = ""
        pairs = commands(block.text)
        for number, (command, expected) in enumerate(pairs, 1):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=LONGEST_SECONDS,
            )
            is_failing = "fails" in block.words and number == len(pairs)
            if (done.returncode != 0) != is_failing:
                raise Mismatch(f"`{command}` ended with {done.returncode}:\n{done.stdout}")
            text += f"$ {command}\n"
            if expected:
                text += self._compare(expected, done.stdout)
        return text

    def _python(self, block: Block) -> None:
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.text, "page", "exec")
        with contextlib.redirect_stdout(printed):
            try:
                exec(code, self.names)
            except Exception as error:
                raise Mismatch(f"{type(error).__name__}: {error}") from error
        self.printed = printed.getvalue()


def commands(text: str) -> list[tuple[str, str]]:
    """Return the commands of a console block, each with the output that is shown below it."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif found and found[-1][0].endswith("\\\n") and not found[-1][1]:
            found[-1] = (found[-1][0] + line, "")
        elif found:
            found[-1] = (found[-1][0], found[-1][1] + line)
    return [(command.strip(), output) for command, output in found]


def require(expected: str, actual: str) -> None:
    """Compare output with what a page shows.

    Raises:
        Mismatch: they differ.
    """
    if not matches(expected, actual):
        raise Mismatch(f"the page shows\n{expected}\nbut there is\n{actual}")


def matches(expected: str, actual: str) -> bool:
    """Whether a text is what a page shows, in which dots stand for anything."""
    lines = [line.rstrip() for line in expected.rstrip("\n").splitlines()]
    pattern = "".join(_line_pattern(line) for line in lines)
    found = "".join(f"{line.rstrip()}\n" for line in actual.rstrip("\n").splitlines())
    return re.fullmatch(pattern, found) is not None


def _line_pattern(line: str) -> str:
    if line.strip() == "...":
        return r"(?:[^\n]*\n)*?"
    return "[^\n]*?".join(re.escape(part) for part in line.split("...")) + "\n"
