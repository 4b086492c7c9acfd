"""`tokdsl tune` without a GPU: a clock that is made up, kernels in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.fixtures.kernels import DEVICE, load_text
from tokdsl.commands.tune import Load, line, tune
from tokdsl.emit.environment import render
from tokdsl.training.settings import TrainingError
from tokdsl.verification import tuning

CONFIGS = {
    "scale.forward": [{"BLOCK": 16}, {"BLOCK": 32}, {"BLOCK": 64}],
    "scale.backward": [{"BLOCK": 16}, {"BLOCK": 32}],
}

TEXT = """

@triton.jit
def scale_kernel(x, y, factor, length, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < length) * factor, mask=at < length)


def launch(x: torch.Tensor, factor: float, kernel: str) -> torch.Tensor:
    y, how = torch.empty_like(x), config(kernel)
    grid = (triton.cdiv(x.numel(), how["BLOCK"]),)
    scale_kernel[grid](x, y, factor, x.numel(), **how)
    return y


@torch.library.custom_op(f"{NAMESPACE}::scale", mutates_args=())
def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    return launch(x, factor, "scale.forward")


@torch.library.custom_op(f"{NAMESPACE}::scale_backward", mutates_args=())
def scale_backward(g: torch.Tensor, factor: float) -> torch.Tensor:
    return launch(g, factor, "scale.backward")


def _setup(ctx, inputs, output):
    ctx.factor = inputs[1]


def _backward(ctx, g):
    return scale_backward(g.contiguous(), ctx.factor), None


scale.register_autograd(_backward, setup_context=_setup)
"""


def text() -> str:
    return render("kernels/common.py.jinja", {"configs": CONFIGS}) + TEXT


@pytest.fixture
def kernels() -> ModuleType:
    return load_text(text())


def run(kernels: ModuleType) -> Callable[[], None]:
    def uses() -> None:
        for length in (40, 40, 50):
            x = torch.randn(length, requires_grad=True, device=DEVICE)
            kernels.scale(x, 2.0).sum().backward()

    return uses


def clock(kernels: ModuleType, times: dict[str, dict[int, float]]) -> tuning.Timer:
    """Return a timer that reads the times of block sizes instead of measuring."""

    def timer(call: Callable[[], object]) -> float:
        operation: Any = call.__self__.operation  # type: ignore[attr-defined]
        kernel = "scale.backward" if "backward" in str(operation) else "scale.forward"
        call()
        return times[kernel][kernels.config(kernel)["BLOCK"]]

    return timer


def test_a_run_is_recorded_by_shape(kernels: ModuleType) -> None:
    calls = tuning.record(kernels, run(kernels))
    found = {(str(c.operation).split(".")[-2], c.args[0].shape[0]): c for c in calls}
    assert {key: c.count for key, c in found.items()} == {
        ("scale", 40): 2,
        ("scale", 50): 1,
        ("scale_backward", 40): 2,
        ("scale_backward", 50): 1,
    }
    assert found["scale", 40].kernels == ("scale.forward",)
    assert found["scale_backward", 40].kernels == ("scale.backward",)


def test_few_calls_of_an_operation_are_kept(kernels: ModuleType) -> None:
    def many() -> None:
        for length in range(1, 10):
            kernels.scale(torch.ones(length, device=DEVICE), 2.0)

    assert len(tuning.record(kernels, many)) == tuning.KEPT


def test_the_fastest_is_chosen_and_a_near_default_stays(kernels: ModuleType) -> None:
    calls = tuning.record(kernels, run(kernels))
    times = {"scale.forward": {16: 3.0, 32: 1.0, 64: 2.0}, "scale.backward": {16: 1.0, 32: 0.99}}
    shown: list[str] = []
    choices = tuning.choose(kernels, calls, clock(kernels, times), lambda c: shown.append(line(c)))
    forward, backward = choices
    assert (forward.kernel, forward.best, forward.gain) == ("scale.forward", 1, 3.0)
    assert list(forward.times) == [9.0, 3.0, 6.0]
    assert (backward.kernel, backward.best, backward.gain) == ("scale.backward", 0, 1.0)
    assert shown[0] == "scale.forward: BLOCK=32 (3.00 times the default, 3 of 3 candidates ran)"
    assert kernels.config("scale.forward") == {"BLOCK": 16}


def test_a_candidate_that_cannot_run_is_not_chosen(kernels: ModuleType) -> None:
    from triton.runtime.errors import OutOfResources

    calls = tuning.record(kernels, run(kernels))
    plain = clock(kernels, {k: {16: 3.0, 32: 1.0, 64: 2.0} for k in CONFIGS})

    def timer(call: Callable[[], object]) -> float:
        if kernels.config("scale.forward")["BLOCK"] == 32:
            raise OutOfResources(100, 64, "shared memory")
        return plain(call)

    choice = tuning.choose(kernels, calls, timer)[0]
    assert choice.best == 2 and choice.times[1] is None


def test_a_mistake_of_a_launcher_is_not_hidden(kernels: ModuleType) -> None:
    calls = tuning.record(kernels, run(kernels))

    def timer(call: Callable[[], object]) -> float:
        raise ValueError("wrong shape")

    with pytest.raises(ValueError, match="wrong shape"):
        tuning.choose(kernels, calls, timer)


# --------------------------------------------------------------------------- the file


def choice(kernel: str, best: int) -> tuning.Choice:
    return tuning.Choice(kernel, CONFIGS[kernel], [1.0] * len(CONFIGS[kernel]), best)


def built(folder: Path) -> ModuleType:
    """Return ``kernels.py`` as a package has it, with what lies beside it."""
    path = folder / "kernels.py"
    path.write_text(text(), "utf-8")
    spec = importlib.util.spec_from_file_location(f"tuned_{folder.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def device(kernels: ModuleType) -> str:
    return str(kernels._device())


def test_what_is_stored_is_read_on_its_device_alone(tmp_path: Path) -> None:
    kernels = built(tmp_path)
    tuning.store(tmp_path, "another GPU", [choice("scale.forward", 1)])
    tuning.store(tmp_path, device(kernels), [choice("scale.forward", 2)])
    assert kernels.config("scale.forward") == {"BLOCK": 64}
    assert kernels.config("scale.backward") == {"BLOCK": 16}
    stored = json.loads((tmp_path / tuning.FILE).read_text())
    assert stored["another GPU"] == {"scale.forward": {"BLOCK": 32}}


def test_what_was_not_measured_again_is_kept(tmp_path: Path) -> None:
    tuning.store(tmp_path, "gpu", [choice("scale.forward", 1)])
    tuning.store(tmp_path, "gpu", [choice("scale.backward", 1)])
    stored = json.loads((tmp_path / tuning.FILE).read_text())
    assert stored["gpu"] == {"scale.forward": {"BLOCK": 32}, "scale.backward": {"BLOCK": 32}}


@pytest.mark.parametrize("content", ["{", "[1]", '{"cpu": 3}', '{"cpu": {"scale.forward": "x"}}'])
def test_an_unreadable_file_gives_a_warning_and_defaults(tmp_path: Path, content: str) -> None:
    (tmp_path / tuning.FILE).write_text(content)
    kernels = built(tmp_path)
    with pytest.warns(UserWarning, match=r"tuned\.json is not read"):
        assert kernels.config("scale.forward") == {"BLOCK": 16}
    tuning.store(tmp_path, device(kernels), [choice("scale.forward", 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert built(tmp_path).config("scale.forward") == {"BLOCK": 32}


# --------------------------------------------------------------------------- the command


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is so without a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="on a GPU"):
        tune(tmp_path, Load(), print)


def test_without_kernels_there_is_nothing_to_tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "gpu", lambda: "a GPU")
    with pytest.raises(TrainingError, match="nothing to tune"):
        tune(tmp_path, Load(), print)
