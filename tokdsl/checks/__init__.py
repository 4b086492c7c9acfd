"""Checks of a typed graph: one module per check, all findings of all checks in one report.

A check is a module of this package with ``check(program: Program, facts: Facts, report: Report)``;
they run in the order of their ``ORDER``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from tokdsl.checks.facts import Facts
from tokdsl.diagnostics import Report
from tokdsl.graph.program import Program

Check = Callable[[Program, Facts, Report], None]


def all_checks() -> list[Check]:
    """Return the check functions of this package in order."""
    found: list[tuple[int, str, Check]] = []
    for info in pkgutil.iter_modules(__path__, __name__ + "."):
        module = importlib.import_module(info.name)
        if hasattr(module, "ORDER"):
            found.append((module.ORDER, info.name, module.check))
    return [check for _, _, check in sorted(found, key=lambda row: row[:2])]


def run_checks(program: Program, report: Report) -> Facts:
    """Run every check and return the facts that they established."""
    facts = Facts()
    for check in all_checks():
        check(program, facts, report)
    return facts
