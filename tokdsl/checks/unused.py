"""Unused parameters, operands and values of definitions."""

from __future__ import annotations

from tokdsl.diagnostics import Report
from tokdsl.graph.program import Module
from tokdsl.resolve.modules import FileScope


def check_unused_definitions(scope: FileScope, modules: list[Module], report: Report) -> None:
    """Report names of a file's definitions that nothing reads."""
    del scope, modules, report
