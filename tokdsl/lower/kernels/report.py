"""What was decided about each region that could be a kernel."""

from __future__ import annotations

from dataclasses import dataclass

from tokdsl.source import Span


@dataclass
class RegionReport:
    """One region: which kernel it became, or why it runs in torch.

    Args:
        kernel: the template.
        module: the definition in which the region stands.
        operations: what is in it, in order.
        span: where it begins.
        name: the emitted function, or "" if it is not fused.
        reason: why it is not fused, or "".
    """

    kernel: str
    module: str
    operations: tuple[str, ...]
    span: Span
    name: str = ""
    reason: str = ""

    @property
    def fused(self) -> bool:
        """Whether there is a kernel."""
        return bool(self.name)

    @property
    def at(self) -> str:
        """File and line of its beginning."""
        return f"{self.span.file.name.rsplit('/', 1)[-1]}:{self.span.line}"

    def __str__(self) -> str:
        what = ", ".join(self.operations)
        if self.fused:
            return f"fused: {self.module}: {what} -> {self.kernel} `{self.name}` ({self.at})"
        return f"not fused: {self.module}: {what}, because {self.reason}, at {self.at}"


def plain(report: RegionReport) -> dict[str, object]:
    """Return a report as data for ``manifest.json``."""
    found: dict[str, object] = {
        "kernel": report.kernel,
        "module": report.module,
        "operations": list(report.operations),
        "at": report.at,
        "fused": report.fused,
    }
    if report.fused:
        found["function"] = report.name
    else:
        found["reason"] = report.reason
    return found
