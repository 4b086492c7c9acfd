"""The job behind `tokdsl tune`: the best configurations of a package's kernels on this GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokdsl.training.settings import TrainingError

if TYPE_CHECKING:
    from tokdsl.verification.tuning import Choice

__all__ = ["Load", "TrainingError", "tune"]


@dataclass(frozen=True)
class Load:
    """What the kernels are tuned for.

    Args:
        batch: sequences at once.
        length: tokens of each.
        steps: tokens that are decoded one by one after a prompt of this length.
    """

    batch: int = 4
    length: int = 2048
    steps: int = 4


def tune(folder: Path, load: Load, show: Callable[[str], None]) -> Path:
    """Measure every candidate of every kernel's configuration; keep the best for this device.

    The model is trained for a step and decodes some tokens, with random weights and tokens; the
    calls of its kernels are recorded and measured with each candidate.

    Args:
        folder: a built package.
        load: the sizes of the run.
        show: called with a line for each configuration as it is known.

    Returns:
        The file with the best configurations, which the package reads from now on.

    Raises:
        TrainingError: there is no GPU, the package has no kernels, or its model takes more than
            tokens.
    """
    from tokdsl.training.package import load_package
    from tokdsl.verification import tuning

    device = tuning.gpu()
    if device is None:
        raise TrainingError("kernels are tuned on a GPU, and torch sees none here")
    if not (folder / "kernels.py").is_file():
        raise TrainingError(f"{folder} has no kernels.py: nothing to tune")
    package = load_package(folder)
    kernels = package.submodule("kernels")
    run = tuning.example_run(package, load.batch, load.length, load.steps)
    calls = tuning.record(kernels, run)
    choices = tuning.choose(kernels, calls, tuning.milliseconds, lambda choice: show(line(choice)))
    return tuning.store(folder, device, choices)


def line(choice: Choice) -> str:
    """Return a configuration's result as text."""
    best = " ".join(f"{name}={value}" for name, value in choice.candidates[choice.best].items())
    able = sum(time is not None for time in choice.times)
    return (
        f"{choice.kernel}: {best or 'nothing to set'} "
        f"({choice.gain:.2f} times the default, {able} of {len(choice.times)} candidates ran)"
    )
