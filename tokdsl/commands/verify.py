"""`tokdsl verify`: build a spec at a small size and test by running it what was proved about it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tokdsl import CompileError, driver
from tokdsl.commands.load import import_folder, package_files
from tokdsl.diagnostics import Report
from tokdsl.verification.result import CheckResult, Verdict, failed, passed
from tokdsl.verification.shrink import Sizes, shrink

if TYPE_CHECKING:
    from types import ModuleType

#: seconds that the second build may take
PATIENCE = 120


@dataclass
class Verified:
    """The outcome of a verification.

    Args:
        report: the compiler's findings; with errors there is nothing to run.
        model: the name of the model.
        sizes: the settings under which it was run, where they differ from the spec's.
        results: one per check.
    """

    report: Report
    model: str = ""
    sizes: dict[str, str] = field(default_factory=dict)
    results: list[CheckResult] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the model could be run and no check failed."""
        return bool(self.results) and not any(result.failed for result in self.results)

    @property
    def text(self) -> str:
        """The report as aligned lines."""
        return lines(self)

    def as_json(self) -> str:
        """Return the report for machines."""
        rows = [
            {
                "group": r.group,
                "name": r.name,
                "verdict": r.verdict.value,
                "text": r.text,
                "value": _finite(r.value),
                "limit": r.limit,
            }
            for r in self.results
        ]
        content = {
            "model": self.model,
            "passed": self.passed,
            "sizes": self.sizes,
            "checks": rows,
        }
        return json.dumps(content, indent=2) + "\n"


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) != float("inf") else None


def verify(
    path: Path,
    overrides: Mapping[str, str] | None = None,
    *,
    with_compile: bool = False,
    seed: int = 0,
) -> Verified:
    """Build a spec in a temporary folder and run the contract on it.

    Args:
        path: the spec.
        overrides: parameter settings as text; without any, small ones are derived.
        with_compile: also trace the model as one graph, which takes some seconds.
        seed: of weights and inputs.
    """
    overrides = dict(overrides or {})
    checked = driver.check_file(path, overrides)
    if checked.report.has_errors or not checked.programs:
        return Verified(checked.report)
    if not overrides:
        overrides = {name: str(n) for name, n in small_settings(path, checked).items()}
        if overrides:
            checked = driver.check_file(path, overrides)
    program = checked.programs[0]
    facts = checked.facts[program.name]
    try:
        files = package_files(checked, path)
    except CompileError:
        return Verified(checked.report)
    from tokdsl.verification.contract import verify_package

    with tempfile.TemporaryDirectory() as folder:
        module = _imported(Path(folder), program.name, files)
        try:
            results = verify_package(module, program, facts, seed=seed, with_compile=with_compile)
        finally:
            _forget(module)
    results.append(_same_bytes(path, overrides, files))
    return Verified(checked.report, program.name, overrides, results)


def small_settings(path: Path, checked: driver.Checked) -> Sizes:
    """Return settings that make the model small."""
    program = checked.programs[0]
    parameters = checked.facts[program.name].numbers.get("params", 0.0)

    def count(sizes: Sizes) -> float | None:
        found = driver.check_file(path, {name: str(n) for name, n in sizes.items()})
        if found.report.has_errors or not found.programs:
            return None
        return found.facts[found.programs[0].name].numbers.get("params", 0.0)

    return shrink(program, parameters, count)


def _imported(folder: Path, name: str, files: Mapping[str, str]) -> ModuleType:
    place = folder / name
    for relative, text in files.items():
        file = place / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    return import_folder(place, f"verified_{name}_{os.urandom(4).hex()}")


def _forget(module: ModuleType) -> None:
    name = module.__name__
    for known in [known for known in sys.modules if f"{known}.".startswith(f"{name}.")]:
        del sys.modules[known]


# --------------------------------------------------------------------------- determinism

_BUILD_AGAIN = """
import json, sys
from pathlib import Path
from tokdsl.commands.verify import digest, emitted
print(digest(emitted(Path(sys.argv[1]), json.loads(sys.argv[2]))))
"""


def emitted(path: Path, overrides: Mapping[str, str]) -> dict[str, str]:
    """Return the files of a spec's package, compiled anew."""
    checked = driver.check_file(path, overrides)
    return package_files(checked, path)


def digest(files: Mapping[str, str]) -> str:
    """Return a digest of names and contents."""
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{files[name]}\0".encode("utf-8", "surrogatepass"))
    return whole.hexdigest()


def _same_bytes(path: Path, overrides: Mapping[str, str], files: Mapping[str, str]) -> CheckResult:
    """Compile again in another process, in which sets are ordered otherwise."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", _BUILD_AGAIN, str(path), json.dumps(dict(overrides))],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if done.returncode:
        last = (done.stderr.strip() or "no message").split("\n")[-1]
        return failed("determinism", "build", f"the second build failed: {last}")
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in files.values())
    if done.stdout.strip() == digest(files):
        text = f"{len(files)} files, {size} bytes, the same in another process"
        return passed("determinism", "build", text, size)
    return failed("determinism", "build", "another process writes other bytes")


# --------------------------------------------------------------------------- text

MARKS = {Verdict.PASSED: "ok", Verdict.FAILED: "FAILED", Verdict.NOT_APPLICABLE: "n/a"}


def lines(verified: Verified) -> str:
    """Return a report as aligned lines: verdict, contract, check, what was measured."""
    sizes = ", ".join(f"{name}={value}" for name, value in verified.sizes.items())
    head = f"{verified.model} at {sizes}" if sizes else f"{verified.model} at its own size"
    rows = [(MARKS[r.verdict], r.group, r.name, r.text) for r in verified.results]
    widths = [max(len(row[i]) for row in rows) for i in range(3)] if rows else [0, 0, 0]
    body = [
        "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]))
        for row in rows
    ]
    counts = {verdict: 0 for verdict in Verdict}
    for result in verified.results:
        counts[result.verdict] += 1
    tail = f"{counts[Verdict.PASSED]} passed, {counts[Verdict.FAILED]} failed"
    if counts[Verdict.NOT_APPLICABLE]:
        tail += f", {counts[Verdict.NOT_APPLICABLE]} do not apply"
    return "\n".join([head, "", *body, "", tail]) + "\n"


__all__ = ["Verified", "digest", "emitted", "lines", "verify"]
