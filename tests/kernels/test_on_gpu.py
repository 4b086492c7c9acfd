"""On a machine with a GPU the tests of kernels run there as they are: none is bound to the CPU."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fixtures.kernels import DEVICE
from tests.kernels import conftest

HERE = Path(__file__).parent
FILES = sorted((*HERE.glob("test_*.py"), *HERE.glob("launches/*.py")))


class Item(SimpleNamespace):
    """A test as pytest collects it."""

    def add_marker(self, mark: Any) -> None:
        self.marks.append(mark.name)


def test_they_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    items: list[Any] = [
        Item(path=HERE / "test_scan.py", marks=[]),
        Item(path=HERE.parent / "run" / "test_load.py", marks=[]),
    ]
    monkeypatch.setattr(conftest, "DEVICE", "cuda")
    conftest.pytest_collection_modifyitems(items)
    assert [item.marks for item in items] == [["cuda"], []]


def test_device_is_where_kernels_run(device: str) -> None:
    assert device == DEVICE


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_file_names_the_cpu(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [k.value for call in calls for k in call.keywords if k.arg == "device"]
    assert not [x.lineno for x in named if isinstance(x, ast.Constant) and x.value == "cpu"]
