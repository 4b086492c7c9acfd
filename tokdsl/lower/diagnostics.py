"""Findings of lowering (5xx): correct programs that cannot be emitted yet."""

from __future__ import annotations

from tokdsl.diagnostics import Diagnostic, Severity


class NotLowered(Diagnostic, code="TOK501", name="not-lowered", severity=Severity.ERROR):
    """A correct program uses something that cannot be emitted yet.

    The check passes; only the build stops. The message says what is missing.

    ```sh error
    echo 'use std.attention { gqa }' > more.tok
    echo 'model more() { stage text(ids: tokens[8]) { embed(8)' >> more.tok
    echo 'prepend(it, weight(n: 2, d: 8)); gqa(heads = 2, mask = full) } }' >> more.tok
    tokdsl build more.tok
    ```
    ```sh ok
    tokdsl build model.tok
    ```
    """

    what: str

    def message(self) -> str:
        """Say what is missing."""
        return f"this cannot be built yet: {self.what}"
