"""Saving a run and going on from it, exactly.

A checkpoint is a folder ``step-00000200`` with the parameters, the moments of the optimizer and
a small JSON file. The learning rate, the windows and the random numbers of a step follow from
the seed and the step, so the number of steps is all that has to be kept of them.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokdsl.files import replaced_directory
from tokdsl.training.settings import TrainingError

MODEL, OPTIMIZER, RUN = "model.safetensors", "optimizer.safetensors", "run.json"


@dataclass(frozen=True)
class Saved:
    """What a checkpoint says of its run."""

    step: int
    corpus: str
    settings: dict[str, Any]


def folder_of(out: Path, step: int) -> Path:
    """Return the folder of the checkpoint after so many steps."""
    return out / "checkpoints" / f"step-{step:08d}"


def newest(out: Path) -> Path | None:
    """Return the newest checkpoint of a run; half-written ones have other names."""
    return max((out / "checkpoints").glob("step-*"), default=None)


def find_parameters(place: Path) -> Path:
    """Return the file of parameters that a file, a checkpoint or a run's folder stands for.

    Raises:
        TrainingError: there is none.
    """
    if place.is_file():
        return place
    for folder in (place, newest(place)):
        if folder is not None and (folder / MODEL).is_file():
            return folder / MODEL
    raise TrainingError(f"there is no checkpoint at {place}")


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    saved: Saved,
) -> None:
    """Write a checkpoint; an older one of the same name stays until the new one is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replaced_directory(folder, marker=RUN) as beside:
        save_parameters(model, beside / MODEL)
        save_file(_moments(model, optimizer), beside / OPTIMIZER)
        (beside / RUN).write_text(json.dumps(asdict(saved), indent=2) + "\n", "utf-8")
        for file in beside.iterdir():
            _reach_disk(file)


def drop_older(out: Path, keep: int) -> None:
    """Remove all but the newest checkpoints of a run."""
    for folder in sorted((out / "checkpoints").glob("step-*"))[:-keep]:
        shutil.rmtree(folder)
    # what a killed run left half-written
    for folder in (out / "checkpoints").glob(".step-*"):
        shutil.rmtree(folder)


def read_run(folder: Path) -> Saved:
    """Return what a checkpoint says of its run.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        return Saved(**json.loads((folder / RUN).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{folder} is not a checkpoint: {error}") from error


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read a checkpoint back into a model and its optimizer.

    Raises:
        TrainingError: the tensors are not those of the model; all differences are listed.
    """
    load_parameters(model, folder / MODEL)
    parameters = dict(model.named_parameters())
    for place, value in load_file(folder / OPTIMIZER).items():
        name, _, moment = place.rpartition(".")
        parameter = parameters[name]
        # the count of steps stays where torch keeps it; copies, for the file may go
        device = value.device if moment == "step" else parameter.device
        optimizer.state[parameter][moment] = value.to(device, copy=True)


def save_parameters(model: nn.Module, path: Path) -> None:
    """Write all parameters and buffers; a tensor with two names is written once."""
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in names:
            aliases[name] = names[place]
        else:
            names[place] = name
            tensors[name] = tensor.detach().contiguous()
    save_file(tensors, path, metadata={"format": "pt", **aliases})


def load_parameters(model: nn.Module, path: Path) -> None:
    """Read parameters and buffers; nothing may be missing, left over or of another shape.

    Raises:
        TrainingError: something is; everything is listed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            for name, kept in (file.metadata() or {}).items():
                if kept in tensors:
                    tensors[name] = tensors[kept]
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be read: {error}") from error
    own = model.state_dict()
    wrong = [f"missing {name}" for name in own if name not in tensors]
    wrong += [f"unknown {name}" for name in tensors if name not in own]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if wrong:
        raise TrainingError(f"{path} does not belong to this model: {'; '.join(wrong)}")
    model.load_state_dict(tensors)


def _reach_disk(file: Path) -> None:
    """Wait until the content is on disk: a rename may otherwise outlive what it names."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.detach().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
