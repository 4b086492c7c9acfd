"""The golden fixture fails when it must."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden_files import Golden, GoldenStore

Failed = pytest.fail.Exception


def golden(root: Path, *, update: bool = False) -> Golden:
    return Golden(GoldenStore(root, update))


def test_same_text_passes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    golden(tmp_path).check("a.txt", "one\n")


def test_other_text_fails_with_the_difference(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    with pytest.raises(Failed, match=r"-one\n\+two"):
        golden(tmp_path).check("a.txt", "two\n")


def test_line_breaks_count(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\n")
    with pytest.raises(Failed, match="line breaks differ"):
        golden(tmp_path).check("a.txt", "one\n")


def test_missing_file_fails(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="missing"):
        golden(tmp_path).check("a.txt", "one\n")


def test_orphan_fails(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "model.py").write_text("x\n")
    (tmp_path / "pkg" / "old.py").write_text("x\n")
    with pytest.raises(Failed, match=r"orphan: .*old\.py"):
        golden(tmp_path).check_tree("pkg", {"model.py": "x\n"})


def test_update_writes_and_removes(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "old.py").write_text("x\n")
    golden(tmp_path, update=True).check_tree("pkg", {"model.py": "x\n", "ops/a.py": "y\n"})
    golden(tmp_path).check_tree("pkg", {"model.py": "x\n", "ops/a.py": "y\n"})
    assert not (tmp_path / "pkg" / "old.py").exists()


def test_orphan_folder_fails(tmp_path: Path) -> None:
    (tmp_path / "mixtral").mkdir()
    (tmp_path / "gone").mkdir()
    golden(tmp_path).check_names("", {"mixtral", "gone"})
    with pytest.raises(Failed, match="gone"):
        golden(tmp_path).check_names("", {"mixtral"})
