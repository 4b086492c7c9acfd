"""The log of a run: one row per step, and its picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokdsl.files import write_atomic

HELD_OUT = "held_out_bits_per_byte"
Row = Mapping[str, float | None]


class MetricsLog:
    """A CSV file that is whole after every row.

    Args:
        path: the file; its rows up to ``step`` are kept, later ones are dropped.
        step: how many steps were taken before.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows = [row for row in read_rows(path) if (row["step"] or 0) <= step] if step else []
        self._columns: list[str] = list(self.rows[0]) if self.rows else []
        write_atomic(path, _as_csv(self._columns, self.rows))

    def add(self, row: Row) -> None:
        """Append the numbers of one step."""
        if not self._columns:
            self._columns = list(row)
            write_atomic(self.path, _as_csv(self._columns, []))
        self.rows.append(dict(row))
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_as_csv(self._columns, [row], has_head=False))

    def replace_last(self, row: Row) -> None:
        """Put another row in the place of the last."""
        self.rows[-1] = dict(row)
        write_atomic(self.path, _as_csv(self._columns, self.rows))


def read_rows(path: Path) -> list[dict[str, float | None]]:
    """Return the rows of a log; an empty cell is None."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {name: float(cell) if cell else None for name, cell in row.items()}
            for row in csv.DictReader(file)
        ]


def draw(rows: Sequence[Row], folder: Path, title: str) -> tuple[Path, ...]:
    """Draw the training loss and the held-out bits per byte as SVG and PNG.

    Returns:
        The files; none where matplotlib is missing or there is nothing to draw.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return ()
    if not rows:
        return ()
    steps = [row["step"] or 0 for row in rows]
    losses = [row["loss"] or 0 for row in rows]
    measured = [(row["step"] or 0, row[HELD_OUT]) for row in rows if row.get(HELD_OUT)]
    with matplotlib.rc_context({"svg.hashsalt": "tokdsl", "font.size": 9}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        figure.suptitle(title)
        left, right = figure.subplots(1, 2)
        left.plot(steps, losses, color="0.8", linewidth=0.8, label="each step")
        memory = max(0.0, min(0.98, 1 - 30 / len(losses)))
        left.plot(steps, smoothed(losses, memory), color="C0", label="smoothed")
        left.set(xlabel="step", ylabel="training objective (nats)")
        left.legend(frameon=False)
        at, bits = [step for step, _ in measured], [value for _, value in measured]
        right.plot(at, bits, color="C1", marker="o", markersize=3)
        right.set(xlabel="step", ylabel="held-out bits per byte")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        paths = (folder / "loss.svg", folder / "loss.png")
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=150)
    return paths


def smoothed(values: Sequence[float], memory: float) -> list[float]:
    """Return the running mean that forgets by ``memory`` per step, right from the first value."""
    found, total, weight = [], 0.0, 0.0
    for value in values:
        total = memory * total + value
        weight = memory * weight + 1
        found.append(total / weight)
    return found


def _as_csv(columns: Sequence[str], rows: Sequence[Row], *, has_head: bool = True) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="", extrasaction="ignore")
    if has_head and columns:
        writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
