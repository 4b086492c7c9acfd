"""What one check of a built model found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a check ended."""

    PASSED = "ok"
    FAILED = "failed"
    NOT_APPLICABLE = "n/a"


@dataclass(frozen=True)
class CheckResult:
    """One line of a report.

    Args:
        group: the part of the contract: ``prefix``, ``padding``, ``isolation``, ``batch``,
            ``step``, ``state``, ``chunks``, ``gradients``, ``replay``, ``facts``,
            ``round trip``, ``determinism``, ``forms``.
        name: what was tested.
        verdict: how it ended.
        text: what was measured, or why the check does not apply.
        value: the measured number, if it is one.
        limit: what the number must not exceed.
    """

    group: str
    name: str
    verdict: Verdict
    text: str
    value: float | None = None
    limit: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the model does not do what was promised."""
        return self.verdict is Verdict.FAILED


def counted(number: float) -> str:
    """Return a count with its thousands apart."""
    return f"{number:,.0f}".replace(",", " ")


def attempt(group: str, name: str, check: Callable[[], CheckResult]) -> CheckResult:
    """Run a check; one that raises has failed, whatever the model did wrong."""
    try:
        return check()
    except Exception as error:
        first = str(error).strip().split("\n", 1)[0]
        return failed(group, name, f"{type(error).__name__}: {first}")


def passed(group: str, name: str, text: str, value: float | None = None) -> CheckResult:
    """Return a passed check."""
    return CheckResult(group, name, Verdict.PASSED, text, value)


def failed(group: str, name: str, text: str, value: float | None = None) -> CheckResult:
    """Return a failed check."""
    return CheckResult(group, name, Verdict.FAILED, text, value)


def skipped(group: str, name: str, why: str) -> CheckResult:
    """Return a check that does not apply, with the reason."""
    return CheckResult(group, name, Verdict.NOT_APPLICABLE, why)


def bounded(
    group: str, name: str, value: float, limit: float, what: str = "largest difference"
) -> CheckResult:
    """Return a check that passes while a measured number is at most ``limit``."""
    good = value <= limit  # false for NaN
    verdict = Verdict.PASSED if good else Verdict.FAILED
    sign = "<=" if good else ">"
    return CheckResult(group, name, verdict, f"{what} {value:.1e} {sign} {limit:.0e}", value, limit)
