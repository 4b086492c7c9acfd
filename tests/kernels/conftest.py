"""Kernels run in Triton's interpreter, or for real where there is a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.fixtures.kernels import DEVICE, forget_guards

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DEVICE == "cuda":
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.cuda)


@pytest.fixture
def device() -> str:
    """Where tensors of a kernel's test are: "cpu" with the interpreter, else "cuda"."""
    return DEVICE


@pytest.fixture(autouse=True)
def _tensors_where_kernels_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make new tensors on the GPU, so that the tests of the interpreter run there as they are."""
    forget_guards()
    if DEVICE == "cpu":
        yield
        return
    monkeypatch.setattr(torch, "Generator", partial(torch.Generator, DEVICE))
    with torch.device(DEVICE):
        yield
