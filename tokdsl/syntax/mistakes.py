"""Findings about sentences: what was expected where something else was found."""

from __future__ import annotations

from tokdsl.diagnostics import Diagnostic, Severity


class UnexpectedToken(Diagnostic, code="TOK101", name="unexpected-token", severity=Severity.ERROR):
    """Something stands where the grammar has no place for it.

    The message says what could stand there. Only the statement is lost: all others are read.

    ```tok error
    fn double(x: [*, d]) -> [*, d] {
      y 2 * x
    }
    ```
    ```tok ok
    fn double(x: [*, d]) -> [*, d] {
      y = 2 * x
    }
    ```
    """

    expected: str
    found: str

    def message(self) -> str:
        """Say what was expected and what was found."""
        return f"expected {self.expected}, found {self.found}"

    def label(self) -> str:
        """Say what was expected."""
        return f"expected {self.expected}"


class MissingValue(Diagnostic, code="TOK102", name="missing-value", severity=Severity.ERROR):
    """A value was not written.

    An operator, a `=` or a comma promises a value that does not follow.

    ```tok error
    fn double(x: [*, d]) -> [*, d] {
      y = 2 *
    }
    ```
    ```tok ok
    fn double(x: [*, d]) -> [*, d] {
      y = 2 * x
    }
    ```
    """

    after: str
    found: str

    def message(self) -> str:
        """Say where the value belongs."""
        place = f" after {self.after}" if self.after else ""
        return f"expected a value{place}, found {self.found}"

    def label(self) -> str:
        """Say it shortly."""
        return "expected a value"


class MissingComma(Diagnostic, code="TOK103", name="missing-comma", severity=Severity.ERROR):
    """Two entries in brackets are not separated.

    Entries are separated by `,`; the static arguments of a call follow a `;`.

    ```tok error
    fn larger(x: [*, d], y: [*, d]) -> [*, d] {
      maximum(x y)
    }
    ```
    ```tok ok
    fn larger(x: [*, d], y: [*, d]) -> [*, d] {
      maximum(x, y)
    }
    ```
    """

    before: str
    found: str

    def message(self) -> str:
        """Say between what the comma belongs."""
        return f"expected `,` between {self.before} and {self.found}"

    def label(self) -> str:
        """Say it shortly."""
        return "expected `,` before this"


class MissingSeparator(
    Diagnostic, code="TOK115", name="missing-separator", severity=Severity.ERROR
):
    """Two statements stand on one line with nothing between them.

    Statements end at a line break or at `;`.

    ```tok error
    fn fourfold(x: [*, d]) -> [*, d] {
      y = x + x z = y + y
    }
    ```
    ```tok ok
    fn fourfold(x: [*, d]) -> [*, d] {
      y = x + x; z = y + y
    }
    ```
    """

    found: str

    def message(self) -> str:
        """Say before what the separator belongs."""
        return f"expected `;` or a new line before {self.found}"

    def label(self) -> str:
        """Say it shortly."""
        return "a second statement begins here"


class MisplacedStatement(
    Diagnostic, code="TOK114", name="misplaced-statement", severity=Severity.ERROR
):
    """A statement stands where its kind does not belong.

    Steps, `repeat` and `residual` belong in a stage or a definition; `objective` and `weights`
    directly in a model; `use`, models and definitions at the top of a file.

    ```tok error
    model small(d: int = 64) {
      embed(d)
    }
    ```
    ```tok ok
    model small(d: int = 64) {
      stage text(ids: tokens[256]) {
        embed(d)
      }
    }
    ```
    """

    what: str
    where: str
    belongs: str

    def message(self) -> str:
        """Say what stands where, and where it belongs."""
        return f"{self.what} cannot stand {self.where}: expected {self.belongs}"

    def label(self) -> str:
        """Say where it belongs."""
        return f"belongs {self.belongs}"


class UnknownWord(Diagnostic, code="TOK117", name="unknown-word", severity=Severity.ERROR):
    """A statement or item begins with a word that is not known.

    It is read as the word that was most likely meant, so that nothing else is lost.

    ```tok error
    blok double(x: [*, d]) -> [*, d] {
      2 * x
    }
    ```
    ```tok ok
    block double(x: [*, d]) -> [*, d] {
      2 * x
    }
    ```
    """

    word: str
    what: str

    def message(self) -> str:
        """Say which word is unknown."""
        return f"unknown {self.what} `{self.word}`"

    def label(self) -> str:
        """Say it shortly."""
        return f"begins no {self.what}"
