"""The demo's model: its decoder gives the whole pass, far beyond one window."""

from __future__ import annotations

from pathlib import Path

import torch

from tokdsl.driver import build
from tokdsl.training.package import import_package

SPEC = Path(__file__).parents[2] / "examples" / "byte_moe.tok"
SIZES = {"d": "24", "layers": "2", "hidden": "16", "window": "8"}


def test_steps_beyond_the_window_are_the_whole_pass(tmp_path: Path) -> None:
    built = build(SPEC, tmp_path, SIZES)
    assert built.directory is not None
    model = import_package(built.directory).Model().eval()
    ids = torch.randint(256, (2, 100))
    whole = model(ids).text
    for counts in ((1,) * 100, (3, 30, 1, 66), (100,)):
        state = model.new_state()
        steps = [model.step(part, state) for part in ids.split(counts, dim=1)]
        assert (torch.cat(steps, dim=1) - whole).abs().max() < 1e-5
