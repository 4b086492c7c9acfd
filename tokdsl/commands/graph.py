"""`tokdsl graph`: a diagram of a model, as SVG and as Mermaid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokdsl import driver
from tokdsl.diagnostics import Report
from tokdsl.files import write_atomic
from tokdsl.graph.program import Program

ENDINGS = (".svg", ".mmd")


@dataclass
class Drawn:
    """The outcome: findings, and the files that were written."""

    report: Report
    files: list[Path] = field(default_factory=list)


def graph(path: Path, out: Path | None, overrides: Mapping[str, str] | None = None) -> Drawn:
    """Draw a model.

    Args:
        path: the spec.
        out: the file to write; its ending says in which form. None writes both forms beside each
            other in the current folder, named after the model.
        overrides: parameter settings as text.

    Raises:
        ValueError: the ending of ``out`` is none of `ENDINGS`.
    """
    if out is not None and out.suffix not in ENDINGS:
        raise ValueError(f"`{out}` ends in none of {', '.join(ENDINGS)}")
    checked = driver.check_file(path, overrides)
    drawn = Drawn(checked.report)
    if checked.report.has_errors or not checked.programs:
        return drawn
    program = checked.programs[0]
    facts = checked.facts.get(program.name)
    texts = draw(program, facts.numbers if facts is not None else {})
    targets = [out] if out is not None else [Path(program.name + end) for end in ENDINGS]
    for target in targets:
        write_atomic(target, texts[target.suffix])
        drawn.files.append(target)
    return drawn


def draw(program: Program, numbers: Mapping[str, float]) -> dict[str, str]:
    """Return the text of each form by its ending."""
    from tokdsl.commands.drawing.layout import lay_out
    from tokdsl.commands.drawing.mermaid import mermaid
    from tokdsl.commands.drawing.outline import outline
    from tokdsl.commands.drawing.svg import svg

    made = outline(program, numbers)
    return {".svg": svg(lay_out(made), f"The model {program.name}"), ".mmd": mermaid(made)}
