"""What a run shows while it works: a bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self


class Progress(Protocol):
    """Something that shows a run."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing."""

    def say(self, line: str) -> None:
        """Show a line that stays."""

    def step(self, step: int, loss: float, speed: float) -> None:
        """Show that a step was taken; ``speed`` in tokens per second."""


class NoProgress:
    """Shows nothing; for ranks other than the first, and for tests."""

    def __enter__(self) -> Self:
        """Begin to show."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def step(self, step: int, loss: float, speed: float) -> None:
        """Show nothing."""


class PlainProgress(NoProgress):
    """Prints lines.

    Args:
        steps: the last step.
        every: steps between two lines.
    """

    def __init__(self, steps: int, every: int) -> None:
        self._steps, self._every = steps, max(1, every)

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, flush=True)

    def step(self, step: int, loss: float, speed: float) -> None:
        """Print a line for some of the steps."""
        if step % self._every == 0 or step == self._steps:
            self.say(f"step {step}/{self._steps}  loss {loss:.4f}  {speed:,.0f} tokens/s")


class BarProgress(NoProgress):
    """Draws a bar with the loss, the speed and the time that is left.

    Args:
        steps: the last step.
        start: the steps taken before.
    """

    def __init__(self, steps: int, start: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("train", total=steps, completed=start, loss=0.0, speed=0.0)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop drawing."""
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(line, markup=False, highlight=False)

    def step(self, step: int, loss: float, speed: float) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step, loss=loss, speed=speed)


def progress(steps: int, start: int) -> Progress:
    """Return a bar on a terminal and plain lines elsewhere."""
    from rich.console import Console

    if Console().is_terminal:
        return BarProgress(steps, start)
    return PlainProgress(steps, every=max(1, steps // 20))
