"""Findings about names and files (2xx)."""

from __future__ import annotations

from tokdsl.diagnostics import Diagnostic, Severity

ERROR, WARNING = Severity.ERROR, Severity.WARNING


class UnknownModule(Diagnostic, code="TOK201", name="unknown-module", severity=ERROR):
    """A `use` names a file that does not exist.

    `std.x` is looked up in the standard library, any other path beside the file that uses it.

    ```tok error
    use std.atention { gqa }
    ```
    ```tok ok
    use std.attention { gqa }
    attention f(x: [T, d]) -> [T, d] { gqa(x; heads = 2) }
    ```
    """

    module: str
    looked_in: str

    def message(self) -> str:
        """Say what is wrong in one line."""
        return f"no module `{self.module}` in {self.looked_in}"


class UnknownImport(Diagnostic, code="TOK202", name="unknown-import", severity=ERROR):
    """A `use` asks a module for a name that it does not define.

    The message names the nearest definition of that module.

    ```tok error
    use std.ffn { swigloo }
    ```
    ```tok ok
    use std.ffn { swiglu }
    fn f(x: [*, d]) -> [*, d] { swiglu(x; hidden = 8) }
    ```
    """

    module: str
    missing: str

    def message(self) -> str:
        """Say what is wrong in one line."""
        return f"module `{self.module}` has no `{self.missing}`"


class CyclicUse(Diagnostic, code="TOK203", name="cyclic-use", severity=ERROR):
    """Files use each other in a circle.

    Move what both need into a third file.

    ```sh error
    echo 'use two { f }' > one.tok
    echo 'fn g(x: [*, d]) -> [*, d] { f(x) }' >> one.tok
    echo 'use one { g }' > two.tok
    echo 'fn f(x: [*, d]) -> [*, d] { x }' >> two.tok
    tokdsl check one.tok
    ```
    ```sh ok
    tokdsl check model.tok
    ```
    """

    path: str

    def message(self) -> str:
        """Say what is wrong in one line."""
        return f"files use each other in a circle: {self.path}"


class NameTaken(Diagnostic, code="TOK204", name="name-taken", severity=ERROR):
    """Two things in one scope have the same name.

    Rename one of them, or import it under another name: `use std.ffn { swiglu as mlp }`.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { x + 1 }
    fn f(x: [*, d]) -> [*, d] { x + 2 }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { x + 1 }
    fn g(x: [*, d]) -> [*, d] { x + 2 }
    ```
    """

    taken: str

    def message(self) -> str:
        """Say what is wrong in one line."""
        return f"the name `{self.taken}` is already defined"


class UnknownName(Diagnostic, code="TOK205", name="unknown-name", severity=ERROR):
    """A name is not defined in this scope.

    Names are looked up in the body, the file, what it imports, and the common names of the
    standard library. The message suggests the nearest one.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { y + 1 }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { x + 1 }
    ```
    """

    unknown: str

    def message(self) -> str:
        """Say what is wrong in one line."""
        return f"unknown name `{self.unknown}`"


class UnusedImport(Diagnostic, code="TOK206", name="unused-import", severity=WARNING):
    """A name is imported and never used.

    Remove it from the `use`.

    ```tok error
    use std.ffn { swiglu }
    fn f(x: [*, d]) -> [*, d] { x + 1 }
    ```
    ```tok ok
    use std.ffn { swiglu }
    fn f(x: [*, d]) -> [*, d] { swiglu(x; hidden = 8) }
    ```
    """

    unused: str

    def message(self) -> str:
        """Say what is wrong in one line."""
        return f"`{self.unused}` is imported and never used"


class RecursiveDefinition(Diagnostic, code="TOK207", name="recursive-definition", severity=ERROR):
    """A definition calls itself, directly or through others.

    Use `repeat` for depth.

    ```tok error
    fn f(x: [*, d]) -> [*, d] { f(x) + 1 }
    ```
    ```tok ok
    fn f(x: [*, d]) -> [*, d] { repeat 3 { it + 1 } }
    ```
    """

    path: str

    def message(self) -> str:
        """Say what is wrong in one line."""
        return f"definitions call each other without end: {self.path}"
