"""Writing files so that nobody ever sees a half-written one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and rename it into place.

    Args:
        path: where; its folder is made when it is missing. A link stays a link.
        content: text is written as UTF-8 with the line breaks it has.

    Raises:
        OSError: the file cannot be written; what was there before is still there.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    try:
        with open(beside, "xb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replaced_directory(path: Path, *, marker: str = "manifest.json") -> Iterator[Path]:
    """Yield a new empty folder that takes the place of ``path`` when the block ends well.

    Args:
        path: the folder to make or replace; its parent is made when it is missing.
        marker: a file that an earlier result has. A folder without it is somebody's own.

    Raises:
        FileExistsError: ``path`` holds something that is not an earlier result.
        OSError: the folder cannot be written; what was there before is still there.
    """
    path = path.resolve()
    if path.exists() and not _is_replaceable(path, marker):
        raise FileExistsError(f"{path} exists and has no {marker}: it was not built by tokdsl")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    beside.mkdir()
    try:
        yield beside
        _swap(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _is_replaceable(path: Path, marker: str) -> bool:
    return path.is_dir() and ((path / marker).is_file() or not any(path.iterdir()))


def _swap(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; what was at ``path`` goes, or comes back when that fails."""
    if not path.exists():
        os.replace(new, path)
        return
    old = _beside(path)
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
