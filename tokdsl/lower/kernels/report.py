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
        part: which part of something larger it is, or "".
    """

    kernel: str
    module: str
    operations: tuple[str, ...]
    span: Span
    name: str = ""
    reason: str = ""
    part: str = ""

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
        where = f"{self.module}, {self.part}" if self.part else self.module
        if self.fused:
            return f"fused: {where}: {what} -> {self.kernel} `{self.name}` ({self.at})"
        return f"not fused: {where}: {what}, because {self.reason}, at {self.at}"


def plain(report: RegionReport) -> dict[str, object]:
    """Return a report as data for ``manifest.json``."""
    found: dict[str, object] = {
        "kernel": report.kernel,
        "module": report.module,
        "operations": list(report.operations),
        "at": report.at,
        "fused": report.fused,
    }
    if report.part:
        found["part"] = report.part
    if report.fused:
        found["function"] = report.name
    else:
        found["reason"] = report.reason
    return found
