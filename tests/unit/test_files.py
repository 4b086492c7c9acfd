"""A file or folder is the old one or the new one, never a half."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokdsl.files import replaced_directory, write_atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_makes_folders_and_leaves_nothing_beside(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b.txt", "grün\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "grün\n".encode()
    assert names(tmp_path / "a") == ["b.txt"]


def test_write_replaces_and_keeps_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "run.sh"
    path.write_text("old")
    path.chmod(0o750)
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o750


def test_write_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_failed_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def earlier(folder: Path) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "stale.py").write_text("")
    return folder


def test_folder_is_made(tmp_path: Path) -> None:
    with replaced_directory(tmp_path / "out" / "pkg") as new:
        (new / "model.py").write_text("x")
        assert not (tmp_path / "out" / "pkg").exists()
    assert names(tmp_path / "out") == ["pkg"]
    assert names(tmp_path / "out" / "pkg") == ["model.py"]


def test_earlier_result_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = earlier(tmp_path / "pkg")
    with replaced_directory(target) as new:
        (new / "model.py").write_text("x")
    assert names(target) == ["model.py"]
    assert names(tmp_path) == ["pkg"]


def test_failure_keeps_the_earlier_result(tmp_path: Path) -> None:
    target = earlier(tmp_path / "pkg")
    with pytest.raises(KeyError), replaced_directory(target) as new:
        (new / "model.py").write_text("x")
        raise KeyError
    assert names(target) == ["manifest.json", "stale.py"]
    assert names(tmp_path) == ["pkg"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_not_ours_is_refused(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "thesis"
    if kind == "folder":
        target.mkdir()
        (target / "chapter1.tex").write_text("years of work")
    else:
        target.write_text("years of work")
    with pytest.raises(FileExistsError, match="not built by tokdsl"), replaced_directory(target):
        pass
    assert names(tmp_path) == ["thesis"]
