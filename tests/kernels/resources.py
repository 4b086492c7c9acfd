"""The table of what every kernel occupies on every target: ``resources.csv``.

It is made without a GPU: each launch of ``tests/kernels/launches`` is compiled ahead of time. Rows
whose kernel did not change are kept, since compiling all takes minutes.

Example:
    python -m tests.kernels.resources
    python -m tests.kernels.resources scan --all
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import triton

from tests.fixtures.targets import Resources, template_resources
from tokdsl.emit.kernels import description, templates

TABLE = Path(__file__).with_name("resources.csv")


@dataclass(frozen=True, order=True)
class Row:
    """A kernel as one launch specialises it.

    Attributes:
        registers: of a thread.
        spills: bytes of a thread that found no register.
        shared: bytes of a block.
        digest: of the kernel's source and its specialisation.
        triton: the version that compiled it.
    """

    template: str
    launch: str
    kernel: str
    dtype: str
    target: str
    digest: str
    registers: int
    spills: int
    shared: int
    triton: str

    @classmethod
    def of(cls, template: str, found: Resources) -> Row:
        """Return the row of what was compiled."""
        return cls(
            template,
            found.launch,
            found.kernel,
            found.dtype,
            found.target,
            found.digest,
            found.registers,
            found.spills,
            found.shared,
            triton.__version__,
        )

    def resources(self) -> Resources:
        """Return what was compiled."""
        return Resources(
            self.kernel,
            self.target,
            self.dtype,
            self.registers,
            self.spills,
            self.shared,
            self.digest,
            launch=self.launch,
        )

    @property
    def key(self) -> str:
        """Return what a compilation is known by."""
        return f"{self.target} {self.digest}"


def read() -> list[Row]:
    """Return the committed rows."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        rows = csv.DictReader(file)
        return [
            Row(**{f.name: int(r[f.name]) if f.type == "int" else r[f.name] for f in fields(Row)})  # type: ignore[arg-type]
            for r in rows
        ]


def write(rows: Sequence[Row]) -> None:
    """Write rows in a fixed order."""
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(f.name for f in fields(Row))
        writer.writerows(astuple(row) for row in sorted(rows))


def launched(
    template: str, *, known: Mapping[str, Row], is_compiled: bool = True
) -> tuple[list[Row], list[Resources]]:
    """Return the rows of a template, and what does not compile.

    Args:
        known: rows that need not be compiled, by `Row.key`.
        is_compiled: whether those that are not known are.

    Raises:
        RuntimeError: a launcher failed.
    """
    dtypes = description(template)["dtypes"]
    found = template_resources(template, dtypes, is_compiled=is_compiled, known=known.keys())
    rows = []
    for each in found:
        row = Row.of(template, each)
        if row.key in known:
            old = known[row.key]
            more = (old.registers, old.spills, old.shared, old.triton)
            row = Row(*astuple(row)[:6], *more)
        rows.append(row)
    return [r for r, e in zip(rows, found, strict=True) if not e.error], [
        e for e in found if e.error
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, and say what may not be shipped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("templates", nargs="*", help="only these; the other rows are kept")
    parser.add_argument("--all", action="store_true", help="compile what did not change too")
    options = parser.parse_args(arguments)
    faults = 0
    for name in options.templates or templates():
        old = [row for row in read() if row.template == name]
        rows, refused = launched(name, known={} if options.all else {r.key: r for r in old})
        # read again: several templates may be compiled at the same time
        write([*(row for row in read() if row.template != name), *rows])
        print(f"{name}: {len(rows)} rows", file=sys.stderr)
        for each in (*refused, *(row.resources() for row in rows)):
            if each.fault():
                faults += 1
                print(f"{each.kernel} ({each.launch}, {each.dtype}, {each.target}) {each.fault()}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
