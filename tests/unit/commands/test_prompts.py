"""Where the text to continue comes from."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tokdsl.commands.generate import TrainingError, read_prompt


def test_a_prompt_is_an_argument_a_file_or_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "start.txt").write_text("Käse\n", "utf-8")
    assert read_prompt("The ", None) == "The "
    assert read_prompt(None, None) == ""
    # nothing is cut off: a line break is part of a text
    assert read_prompt(None, tmp_path / "start.txt") == "Käse\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é".encode())))
    assert read_prompt(None, Path("-")) == "é"


def test_a_prompt_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"ab\xff")
    with pytest.raises(TrainingError, match="not UTF-8 text at byte 2"):
        read_prompt(None, tmp_path / "binary")
    with pytest.raises(TrainingError, match="No such file"):
        read_prompt(None, tmp_path / "none")
    with pytest.raises(TrainingError, match="not both"):
        read_prompt("a", tmp_path / "binary")
