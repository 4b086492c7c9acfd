"""Regions that read several dtypes: no kernel runs where one of their inputs is in float64."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.kernels import DEVICE
from tests.kernels.test_packages import launched
from tests.run.test_decoding import EXAMPLES
from tokdsl.driver import build, check_file, emit_program
from tokdsl.training.package import import_package

#: the running total stays in float32 in a model in float64, and is the first input of the region
SPEC = """
model m() {
  stage out(x: [T, experts: 5]) {
    total = cumsum(f32(it); over = T)
    p = softmax(total; over = experts)
    q = cast_like(p, it) * softmax(it; over = experts)
    q / sum(q; over = experts)
  }
  objective mean(out)
}
"""


@pytest.fixture
def package(tmp_path: Path) -> Any:
    path = tmp_path / "spec.tok"
    path.write_text(SPEC, "utf-8")
    built = build(path, tmp_path)
    assert built.directory is not None, [d.message() for d in built.report]
    assert any(region.kernel == "rows" and region.fused for region in built.regions)
    return import_package(built.directory)


def test_a_region_with_an_input_in_float64_is_computed_in_float64(
    package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    functional = importlib.import_module(f"{package.__name__}.functional")
    kernels = functional.KERNELS
    names = launched(kernels)
    model = package.Model().to(DEVICE)
    x = torch.randn(2, 3, 5)
    monkeypatch.setattr(functional, "KERNELS", None)
    wanted = model(x.double()).out
    monkeypatch.setattr(functional, "KERNELS", kernels)
    monkeypatch.setattr(kernels, "FORCED", True)
    found = model(x.double()).out
    assert found.dtype == torch.float64
    assert torch.equal(found, wanted)
    assert not names
    close = model(x).out
    assert len(names) == 1
    torch.testing.assert_close(close, wanted.float(), rtol=1e-5, atol=1e-6)


def test_any_tensor_in_float64_decides(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    functional = importlib.import_module(f"{package.__name__}.functional")
    monkeypatch.setattr(functional.KERNELS, "FORCED", True)
    single, double, index = torch.zeros(1), torch.zeros(1).double(), torch.zeros(1).long()
    assert functional.on_kernels(single)
    assert functional.on_kernels(index, single.half())
    assert not functional.on_kernels(double)
    assert not functional.on_kernels(single, index, double)


def test_inputs_in_the_working_dtype_are_asked_once() -> None:
    checked = check_file(EXAMPLES / "mixtral.tok")
    fused = emit_program(checked, checked.programs[0], "mixtral.tok")["fused.py"]
    assert "if on_kernels(scores) and decisions is None:" in fused  # of `x` only the dtype is read
