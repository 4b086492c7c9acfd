"""`tokdsl fmt`: which files it touches and when it says no."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from tests.unit.test_cli import Capture, run

UGLY = "# halves\nfn   half( x:[*, d])->[*, d] {\n    x/2 # exactly\n}\n"
TIDY = "# halves\nfn half(x: [*, d]) -> [*, d] {\n  x / 2  # exactly\n}\n"
BROKEN = "fn half(x: [*, d]) -> [*, d] {\n  x /\n}\n"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "half.tok"
    path.write_text(UGLY)
    return path


def test_rewrites_in_place(spec: Path, capsys: Capture) -> None:
    assert run("fmt", str(spec)) == 0
    assert spec.read_text() == TIDY
    assert capsys.readouterr().out == f"wrote {spec}\n"
    assert run("fmt", str(spec.parent)) == 0
    assert capsys.readouterr().out == ""


def test_check_changes_nothing(spec: Path, capsys: Capture) -> None:
    assert run("fmt", "--check", str(spec)) == 1
    assert spec.read_text() == UGLY
    assert capsys.readouterr().out == f"would change {spec}\n"


def test_standard_input(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(UGLY))
    assert run("fmt", "-") == 0
    assert capsys.readouterr().out == TIDY


def test_broken_files_stay(spec: Path, capsys: Capture) -> None:
    spec.write_text(BROKEN)
    assert run("fmt", str(spec)) == 1
    assert spec.read_text() == BROKEN
    assert "error[TOK1" in capsys.readouterr().err


def test_what_cannot_be_decoded_stays(spec: Path, capsys: Capture) -> None:
    spec.write_bytes(b"# \xff\nfn  f() {}\n")
    assert run("fmt", str(spec)) == 1
    assert spec.read_bytes() == b"# \xff\nfn  f() {}\n"
    assert "error[TOK11" in capsys.readouterr().err


def test_missing_file(tmp_path: Path, capsys: Capture) -> None:
    assert run("fmt", str(tmp_path / "none.tok")) == 1
    assert "error[TOK110]" in capsys.readouterr().err


def test_there_and_back(spec: Path, capsys: Capture) -> None:
    run("fmt", str(spec))
    assert run("fmt", "--to", "yaml", str(spec)) == 0
    yaml = spec.with_name("half.tok.yaml")
    assert yaml.is_file()
    spec.unlink()
    assert run("fmt", "--to", "tok", str(yaml)) == 0
    assert spec.read_text() == TIDY.replace("  # exactly", "")


def test_conversion_overwrites_nothing(spec: Path, capsys: Capture) -> None:
    yaml = spec.with_name("half.tok.yaml")
    yaml.write_text("mine: true\n")
    assert run("fmt", "--to", "yaml", str(spec)) == 2
    assert yaml.read_text() == "mine: true\n"
    assert "already there" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["--to xml {}", "--to tok {}", "--check --to yaml {}"])
def test_wrong_usage(spec: Path, line: str, capsys: Capture) -> None:
    assert run("fmt", *line.format(spec).split()) == 2
    assert spec.read_text() == UGLY
