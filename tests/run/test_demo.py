"""The demo: the real verbs on the real spec, with few steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_demo_runs_every_verb_and_compares_on_the_same_bytes(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "examples/demo.py", "--out", tmp_path / "demo", "--steps", "3"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    shown = found.stdout
    for verb in ("check", "build", "summary", "graph", "train", "generate"):
        assert f"$ tokdsl {verb} " in shown
    for yardstick in ("byte_moe, ", "order-0 model", "gzip -9, held-out", "xz -9e, after the"):
        assert f"\n  {yardstick}" in shown
    for name in ("summary.txt", "graph.svg", "run/loss.svg", "run/loss.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
