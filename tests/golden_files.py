"""Golden files: text that the compiler must write again, byte for byte.

A missing file fails, and so does an orphan: a file in a folder that a test compares as a whole and
that is no longer written. Files are rewritten by ``--update-golden`` only.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

LONGEST_DIFFERENCE = 80


@dataclass(frozen=True)
class GoldenStore:
    """The folder of golden files and whether they are rewritten."""

    KEY: ClassVar[pytest.StashKey[GoldenStore]] = pytest.StashKey()

    root: Path
    update: bool


@dataclass(frozen=True)
class Golden:
    """The fixture's value."""

    store: GoldenStore

    def check(self, path: str, text: str) -> None:
        """Require that ``tests/golden/<path>`` holds exactly this text."""
        complaint = self._compare(self.store.root / path, text)
        if complaint:
            pytest.fail(complaint, pytrace=False)

    def check_tree(self, path: str, files: Mapping[str, str]) -> None:
        """Require that the folder ``tests/golden/<path>`` holds exactly these files."""
        folder = self.store.root / path
        complaints = [self._compare(folder / name, text) for name, text in sorted(files.items())]
        wanted = {folder / name for name in files}
        for orphan in sorted(_files(folder) - wanted):
            if self.store.update:
                orphan.unlink()
            else:
                complaints.append(f"orphan: {orphan} is no longer written")
        found = [complaint for complaint in complaints if complaint]
        if found:
            pytest.fail("\n\n".join(found), pytrace=False)

    def check_names(self, path: str, names: Collection[str]) -> None:
        """Require that the folder ``tests/golden/<path>`` holds entries of these names only."""
        folder = self.store.root / path
        orphans = sorted({p.name for p in folder.iterdir()} - set(names)) if folder.is_dir() else []
        if orphans:
            pytest.fail(f"orphans in {folder}: {', '.join(orphans)}", pytrace=False)

    def _compare(self, file: Path, text: str) -> str | None:
        if self.store.update:
            if not file.is_file() or file.read_text("utf-8") != text:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(text.encode("utf-8"))
            return None
        if not file.is_file():
            return f"missing: {file} (written by `make golden`)"
        return _difference(file, file.read_bytes().decode("utf-8"), text)


def _difference(file: Path, expected: str, actual: str) -> str | None:
    if expected == actual:
        return None
    lines = list(
        difflib.unified_diff(
            expected.splitlines(), actual.splitlines(), str(file), "now", lineterm=""
        )
    ) or [f"{file}: line breaks differ"]
    if len(lines) > LONGEST_DIFFERENCE:
        lines[LONGEST_DIFFERENCE:] = [f"... {len(lines) - LONGEST_DIFFERENCE} more lines"]
    return "\n".join(lines)


def _files(folder: Path) -> set[Path]:
    if not folder.is_dir():
        return set()
    return {p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
