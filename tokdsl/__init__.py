"""tokdsl: a declarative language and compiler for models over token streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from tokdsl.diagnostics import Diagnostic

__version__ = "0.1.0"
__all__ = ["CompileError", "__version__", "build", "check", "load"]


class CompileError(Exception):
    """A spec does not compile; the text is the findings as the command line shows them.

    Args:
        text: the rendered findings.
        findings: the same as values.
    """

    def __init__(self, text: str, findings: Sequence[Diagnostic] = ()) -> None:
        super().__init__(text)
        self.findings = tuple(findings)


def load(path: str | os.PathLike[str], /, **overrides: object) -> Any:
    """Compile a spec and return its model, freshly initialised: ``load("mixtral.tok", d=512)``.

    The package is kept in a cache (``$TOKDSL_CACHE``, else ``~/.cache/tokdsl``) under a digest of
    everything that it was made of, so the same spec is compiled once.

    Args:
        path: a ``.tok`` or ``.tok.yaml`` file.
        overrides: parameters of the model.

    Returns:
        An instance of the emitted ``Model``, an ``nn.Module``.

    Raises:
        CompileError: the spec has errors.
    """
    return _commands().load(path, overrides)


def build(
    path: str | os.PathLike[str], out: str | os.PathLike[str] = "build", /, **overrides: object
) -> Path:
    """Write the package of a spec to ``out``/NAME and return that folder.

    Raises:
        CompileError: the spec has errors; nothing is written.
    """
    folder: Path = _commands().build(path, out, overrides)
    return folder


def check(path: str | os.PathLike[str], /, **overrides: object) -> tuple[Diagnostic, ...]:
    """Return the findings on a spec in source order; nothing is written and torch not imported."""
    found: tuple[Diagnostic, ...] = _commands().check(path, overrides)
    return found


def _commands() -> Any:
    """Import the commands at their first use: `import tokdsl` alone costs nothing."""
    from importlib import import_module

    return import_module("tokdsl.commands.load")
