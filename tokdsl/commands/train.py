"""The job behind `tokdsl train`."""

from __future__ import annotations

from pathlib import Path

from tokdsl.training.settings import TrainingError, TrainResult, TrainSettings

__all__ = ["TrainResult", "TrainSettings", "TrainingError", "train"]


def train(
    model: Path,
    data: Path,
    out: Path,
    settings: TrainSettings | None = None,
    *,
    is_resumed: bool = False,
    is_silent: bool = False,
) -> TrainResult:
    """Train a model on a text.

    Args:
        model: a built package.
        data: a text file, a folder of them, or for a bytes tokenizer any file.
        out: the folder of the run: checkpoints, ``metrics.csv``, ``loss.svg``, ``loss.png`` and
            ``result.json``.
        settings: how to train.
        is_resumed: go on from the newest checkpoint in ``out``.
        is_silent: show nothing.

    Raises:
        TrainingError: something the user can repair; the text says what. What was saved before
            is intact.
    """
    chosen = (settings or TrainSettings()).checked()
    try:
        from tokdsl.training.loop import run
    except ModuleNotFoundError as error:
        if str(error.name).startswith("tokdsl"):
            raise
        raise TrainingError(f"training needs {error.name}: pip install 'tokdsl[train]'") from error
    return run(model, data, out, chosen, is_resumed=is_resumed, is_silent=is_silent)
