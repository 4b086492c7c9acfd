"""What all tests share: fixed seeds, golden files, no network."""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.golden_files import Golden, GoldenStore

SEED = 20260


def _has_gpu() -> bool:
    """Whether kernels can run for real; torch is asked only where a driver is installed."""
    if not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
        return False
    import torch

    return torch.cuda.is_available()


# Triton's own functions decide at import whether they are interpreted
if not _has_gpu():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite golden files and rendered pages from what the compiler says now",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[GoldenStore.KEY] = GoldenStore(
        Path(__file__).parent / "golden", update=config.getoption("--update-golden")
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Iterator[Golden]:
    """Compare text with files under ``tests/golden/``; see `tests.golden_files`."""
    store = request.config.stash[GoldenStore.KEY]
    yield Golden(store)


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(SEED)
    # tests that need no torch must not pay for importing it
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections that leave this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        local = self.family not in (socket.AF_INET, socket.AF_INET6)
        if not local and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):  # type: ignore[index]
            raise RuntimeError(f"a test tried to reach {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
