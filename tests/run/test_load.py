"""Specs from Python: `tokdsl.load`, its cache, and the import hook."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import tokdsl
from tokdsl import hook
from tokdsl.commands import load as loading
from tokdsl.commands.load import cached_package

ROOT = Path(__file__).parents[2]
SPEC = """
use std.attention { gqa }

model tiny(d: int = 16, vocab: int = 20) {
  stage text(ids: tokens[vocab]) {
    embed(d)
    residual { rmsnorm(); gqa(heads = 2) }
    unembed(vocab)
  }
  objective next_token(text, ids)
}
"""
BROKEN = "model broken() { stage text(ids: tokens[10]) { embedd(16) } }\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("TOKDSL_CACHE", str(folder))
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "models" / "tiny.tok"
    file.parent.mkdir()
    file.write_text(SPEC, "utf-8")
    return file


def test_load_gives_a_module_that_runs(spec: Path) -> None:
    model = tokdsl.load(spec, d=32)
    assert isinstance(model, torch.nn.Module)
    assert model.config.d == 32
    assert model(torch.zeros(2, 5, dtype=torch.long)).text.shape == (2, 5, 20)


def test_the_same_spec_is_compiled_once(spec: Path, cache: Path) -> None:
    first = cached_package(spec)
    stamp = (first / "model.py").stat().st_mtime_ns
    assert cached_package(spec) == first
    assert (first / "model.py").stat().st_mtime_ns == stamp
    assert first.is_relative_to(cache)
    assert type(tokdsl.load(spec)) is type(tokdsl.load(spec))


def test_whatever_decides_a_package_is_in_its_key(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_package(spec)
    assert cached_package(spec, {"d": 8}) != first
    monkeypatch.setattr(loading, "__version__", "9.9")
    other_version = cached_package(spec)
    assert other_version != first
    spec.write_text(SPEC.replace("heads = 2", "heads = 4"), "utf-8")
    assert cached_package(spec) not in (first, other_version)


def test_an_imported_file_is_in_the_key(spec: Path) -> None:
    part = spec.with_name("part.tok")
    part.write_text("block mine(x: [*, d]) -> [*, d] { linear(x; d) }\n", "utf-8")
    spec.write_text(
        "use part { mine }\n" + SPEC.replace("unembed(vocab)", "mine()\n    unembed(vocab)"),
        "utf-8",
    )
    first = cached_package(spec)
    part.write_text("block mine(x: [*, d]) -> [*, d] { linear(x; d, bias = true) }\n", "utf-8")
    assert cached_package(spec) != first


def test_at_the_same_time(spec: Path, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: cached_package(spec), range(8)))
    (folder,) = found
    assert (folder / "manifest.json").is_file()
    assert not list(cache.rglob(".*")), "no half-written folders stay"


def test_a_cache_that_cannot_be_written(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("TOKDSL_CACHE", str(blocked / "cache"))
    folder = cached_package(spec)
    assert (folder / "model.py").is_file()
    assert not folder.is_relative_to(tmp_path)


def test_errors_are_raised_as_they_are_shown(tmp_path: Path) -> None:
    file = tmp_path / "broken.tok"
    file.write_text(BROKEN, "utf-8")
    with pytest.raises(tokdsl.CompileError, match=r"unknown name `embedd`") as caught:
        tokdsl.load(file)
    assert "did you mean `embed`?" in str(caught.value)
    assert [d.code for d in caught.value.findings] == ["TOK205"]
    assert [d.code for d in tokdsl.check(file)] == ["TOK205"]
    with pytest.raises(tokdsl.CompileError):
        tokdsl.build(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_parameters_and_files(spec: Path, tmp_path: Path) -> None:
    with pytest.raises(tokdsl.CompileError, match="no parameter `width`"):
        tokdsl.load(spec, width=3)
    with pytest.raises(tokdsl.CompileError):
        tokdsl.load(tmp_path / "nowhere.tok")


def test_build_and_check(spec: Path, tmp_path: Path) -> None:
    folder = tokdsl.build(spec, tmp_path / "out", d=24)
    assert folder == tmp_path / "out" / "tiny"
    assert '"d": 24' in (folder / "config.json").read_text("utf-8")
    assert tokdsl.check(spec) == ()


# --------------------------------------------------------------------------- the hook


@pytest.fixture
def hooked(spec: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(spec.parents[1]))
    hook.install()
    before = set(sys.modules)
    yield spec
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_spec_is_imported_like_a_module(hooked: Path) -> None:
    from models.tiny import Config, Model

    assert Config().d == 16
    assert Model()(torch.zeros(1, 3, dtype=torch.long)).text.shape == (1, 3, 20)
    assert Model.__module__ == "models.tiny.model"


def test_an_ordinary_module_comes_first(hooked: Path) -> None:
    hooked.with_name("plain.py").write_text("x = 1\n")
    hooked.with_name("plain.tok").write_text(BROKEN)
    from models import plain

    assert plain.x == 1


def test_a_broken_spec_is_an_import_error(hooked: Path) -> None:
    hooked.with_name("broken.tok").write_text(BROKEN)
    with pytest.raises(ImportError, match=r"unknown name `embedd`") as caught:
        import models.broken
    assert caught.value.name == "models.broken"
    assert caught.value.path == str(hooked.with_name("broken.tok"))
    assert "models.broken" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        import models.nowhere  # noqa: F401


def test_checking_imports_neither_torch_nor_the_emitter(spec: Path) -> None:
    code = (
        "import sys, tokdsl; assert 'tokdsl.driver' not in sys.modules; "
        f"assert tokdsl.check({str(spec)!r}) == (); "
        "print([m for m in ('torch', 'jinja2', 'tokdsl.emit') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
