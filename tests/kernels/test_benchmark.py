"""The benchmark of kernels as far as it needs no GPU: what it divides by what, and what it says."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from benchmarks import kernel_peers, kernels
from benchmarks.kernels import Launch, Peaks, Row
from tokdsl.emit.kernels import templates

PEAKS = Peaks(flops=100e12, bytes=1e12)


def test_share_is_of_the_longer_bound() -> None:
    key = "scan", "training", "float16"
    by_work = kernels.launch_row(key, 2e-3, (100e9, 1e6), PEAKS)
    assert (by_work.share, by_work.tflops) == (pytest.approx(0.5), pytest.approx(50.0))
    by_bytes = kernels.launch_row(key, 2e-3, (1e6, 1e9), PEAKS)
    assert (by_bytes.share, by_bytes.gbps) == (pytest.approx(0.5), pytest.approx(500.0))
    assert kernels.launch_row(key, 2e-3, (0.0, 1e9), PEAKS).tflops is None


def test_memory_counts_once() -> None:
    x, y = torch.empty(100), torch.empty(50, dtype=torch.float16)
    launches = [Launch("a", print, (x, y)), Launch("b", print, (x[10:], x.view(10, 10)))]
    assert kernels.bytes_of(launches) == 500


@pytest.mark.parametrize("template", templates())
def test_work_is_stated_of_launches_there_are(template: str) -> None:
    module = importlib.import_module(f"tests.kernels.launches.{template}")
    work = getattr(module, "work", dict)()
    assert work.keys() <= module.launches().keys()
    assert all(flops >= 0 and moved > 0 for flops, moved in work.values())


def test_peers_are_of_launches_there_are() -> None:
    for peer in kernel_peers.PEERS:
        launches = importlib.import_module(f"tests.kernels.launches.{peer.template}").launches()
        assert peer.ours or peer.launch in launches, peer


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is so without a GPU")
def test_without_a_gpu_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels.main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and "GPU" in said.err


def test_results_name_their_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    row = Row("scan", "training", "all", "float16", 1.0, share=0.5)
    path = kernels.write([row], {"float16": PEAKS}, ["another library"])
    assert path.name == "kernels.nvidia-h100-80gb-hbm3.csv"
    assert path.read_text().splitlines()[1] == "scan,training,all,float16,1.0,,,0.5,"
    content = json.loads(path.with_suffix(".json").read_text())
    assert content["device"].startswith("NVIDIA") and content["torch"] == torch.__version__
    assert content["missing_peers"] == ["another library"]
    assert "50% of the roofline" in kernels.text(row)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_peers_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    sizes = 16, 16, (4, 2, 8)
    one, two = (
        make(torch.float32, *sizes, is_trained=False)
        for make in (kernel_peers.library_attention, kernel_peers.compiled_attention)
    )
    assert one().shape == two().shape == (1, 4, 16, 8)
    scored = kernel_peers.compiled_attention(torch.float32, *sizes, is_trained=False, scored=True)
    assert scored().shape == (1, 4, 16, 8)
    assert len(kernel_peers.library_attention(torch.float32, *sizes, is_trained=True)()) == 3
    assert len(kernel_peers.grouped_experts((8, 4, 2, 16, 16), torch.float32)()) == 4
    assert len(kernel_peers.own_experts((8, 4, 2, 16, 16), torch.float32)) == 5  # type: ignore[arg-type]
