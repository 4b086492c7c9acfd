"""The command line's own duties: arguments, formats, streams, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

import tokdsl
from tests.unit.diagnostics.samples import Dull, at, clash
from tokdsl.cli import app
from tokdsl.diagnostics import Diagnostic, Report

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


def run(*arguments: str) -> int:
    """Run a command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        app(list(arguments), prog_name="tokdsl")
    return int(stopped.value.code or 0)


class Result(types.SimpleNamespace):
    """What a driver function returns."""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Replace the driver by one that finds what it is told to find."""
    fake = types.SimpleNamespace(found=[], calls=[])

    def answer(verb: str) -> object:
        def call(*arguments: object) -> Result:
            fake.calls.append((verb, *arguments))
            report = Report()
            report.extend(fake.found)
            directory = None if report.has_errors else Path("build/hnet")
            return Result(report=report, directory=directory, text="4 layers\n")

        return call

    for name, verb in {"check_file": "check", "build": "build"}.items():
        setattr(fake, name, answer(verb))
    monkeypatch.setitem(sys.modules, "tokdsl.driver", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(tokdsl, "driver", fake, raising=False)
    return fake


def dull() -> Diagnostic:
    return Dull(span=at("embed"))


def test_check_without_findings(driver: types.SimpleNamespace, capsys: Capture) -> None:
    assert run("check", "a.tok", "--set", "d=512", "--set", "name = x=y") == 0
    assert driver.calls == [("check", Path("a.tok"), {"d": "512", "name": "x=y"})]
    assert capsys.readouterr() == ("no findings in a.tok\n", "")


def test_check_with_errors(driver: types.SimpleNamespace, capsys: Capture) -> None:
    driver.found = [clash(), dull()]
    assert run("check", "a.tok") == 1
    shown, err = capsys.readouterr()
    assert shown.startswith("warning[TOK9902]: this does nothing\n --> model.tok:3:5\n")
    assert shown.endswith("\n1 error, 1 warning\n")
    assert "\x1b" not in shown
    assert err == ""


def test_warnings_alone_are_no_failure(driver: types.SimpleNamespace, capsys: Capture) -> None:
    driver.found = [dull()]
    assert run("check", "a.tok", "--format", "concise") == 0
    assert capsys.readouterr().out == "model.tok:3:5: warning[TOK9902] this does nothing\n"


def test_machine_formats(driver: types.SimpleNamespace, capsys: Capture) -> None:
    driver.found = [clash()]
    assert run("check", "a.tok", "--format", "json") == 1
    assert json.loads(capsys.readouterr().out)["code"] == "TOK9901"
    assert run("check", "a.tok", "--format", "sarif") == 1
    assert json.loads(capsys.readouterr().out)["version"] == "2.1.0"


def test_color_on_request(
    driver: types.SimpleNamespace, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.found = [dull()]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    run("check", "a.tok")
    assert "\x1b[1;33mwarning" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    run("check", "a.tok")
    assert "\x1b" not in capsys.readouterr().out


def test_check_folder(driver: types.SimpleNamespace, tmp_path: Path) -> None:
    for name in ("b.tok", "a.tok.yaml", "deep/c.tok", "readme.md", "data.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert run("check", str(tmp_path)) == 0
    names = [call[1].relative_to(tmp_path).as_posix() for call in driver.calls]
    assert names == ["a.tok.yaml", "b.tok", "deep/c.tok"]


def test_check_folder_without_specs(
    driver: types.SimpleNamespace, tmp_path: Path, capsys: Capture
) -> None:
    assert run("check", str(tmp_path)) == 2
    assert "no .tok or .tok.yaml files there" in capsys.readouterr().err


def test_build(driver: types.SimpleNamespace, capsys: Capture) -> None:
    driver.found = [dull()]
    assert run("build", "a.tok", "-o", "out") == 0
    assert driver.calls == [("build", Path("a.tok"), Path("out"), {})]
    shown, err = capsys.readouterr()
    assert shown == "built build/hnet\n"
    assert err.startswith("warning[TOK9902]")


def test_failed_build(driver: types.SimpleNamespace, capsys: Capture) -> None:
    driver.found = [clash()]
    assert run("build", "a.tok") == 1
    assert capsys.readouterr().out == ""


EXAMPLE = str(ROOT / "examples" / "mixtral.tok")


def test_summary_as_text_and_as_json(capsys: Capture) -> None:
    assert run("summary", EXAMPLE, "--set", "layers=2") == 0
    shown, err = capsys.readouterr()
    assert shown.startswith("mixtral ") and err == ""
    assert run("summary", EXAMPLE, "--set", "layers=2", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["model"] == "mixtral"


def test_summary_of_a_broken_spec(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "broken.tok"
    file.write_text("model m() { stage text(ids: tokens[9]) { embedd(4) } }\n", "utf-8")
    assert run("summary", str(file)) == 1
    shown, err = capsys.readouterr()
    assert shown == "" and "TOK205" in err
    assert run("graph", str(file), "-o", str(tmp_path / "m.svg")) == 1
    assert not (tmp_path / "m.svg").exists()


def test_graph_writes_what_is_asked_for(tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "figures" / "model.svg"
    assert run("graph", EXAMPLE, "-o", str(target), "--set", "layers=2") == 0
    assert capsys.readouterr().out == f"wrote {target}\n"
    assert target.read_text("utf-8").startswith("<svg ")
    assert run("graph", EXAMPLE, "-o", str(tmp_path / "model.png")) == 2


@pytest.mark.parametrize("pair", ["d", "d=", "=4", "1d=4"])
def test_broken_assignments_are_wrong_usage(
    driver: types.SimpleNamespace, capsys: Capture, pair: str
) -> None:
    assert run("check", "a.tok", "--set", pair) == 2
    assert f"`{pair}` is not name=value" in capsys.readouterr().err
    assert not driver.calls


@pytest.mark.parametrize(
    "line", ["bogus", "check", "check a.tok --format xml", "build a.tok b.tok", "new 3x"]
)
def test_wrong_usage(line: str, capsys: Capture) -> None:
    assert run(*line.split()) == 2
    assert "Error: " in capsys.readouterr().err


def test_internal_error_is_one_line(
    driver: types.SimpleNamespace, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(driver, "check_file", crash)
    assert run("check", "a.tok") == 70
    assert capsys.readouterr() == (
        "",
        "internal error: please report it (KeyError: 'a bug'); "
        "`tokdsl --verbose ...` shows where it happened\n",
    )
    assert run("--verbose", "check", "a.tok") == 70
    assert "Traceback" in capsys.readouterr().err


def test_interrupt(
    driver: types.SimpleNamespace, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        driver, "check_file", lambda *_: os.kill(os.getpid(), signal.SIGINT) or Result()
    )
    # a process that was started in the background ignores the signal
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run("check", "a.tok") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Traceback" not in capsys.readouterr().err


def test_explain(capsys: Capture) -> None:
    assert run("explain", "TOK190") == run("explain", "unused-allow") == 0
    shown = capsys.readouterr().out
    assert shown.count("warning[TOK190] unused-allow\n") == 2
    assert run("explain", "unused-alow") == 2
    assert "did you mean `unused-allow`?" in capsys.readouterr().err
    assert run("explain") == 0
    assert "TOK190  warning  unused-allow: " in capsys.readouterr().out


def test_new(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "first.tok"
    assert run("new", str(tmp_path / "first")) == 0
    assert "model first(" in path.read_text()
    assert f"tokdsl check {path}" in capsys.readouterr().out
    path.write_text("mine")
    assert run("new", str(path)) == 2
    assert path.read_text() == "mine"


def test_the_starter_has_no_findings() -> None:
    from tokdsl.commands.new import starter
    from tokdsl.driver import check_text

    assert [d.message() for d in check_text(starter("first"))] == []


def test_version(capsys: Capture) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"tokdsl {tokdsl.__version__}\n"


@pytest.mark.parametrize("line", ["a.tok", "--format text a.tok", "-h", "", "tests/unit"])
def test_check_without_options_takes_a_short_cut_to_the_same_end(
    driver: types.SimpleNamespace, capsys: Capture, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    driver.found = [clash()]
    arguments = ["check", *line.split()]
    by_typer = run(*arguments), capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["tokdsl", *arguments])
    with pytest.raises(SystemExit) as stopped:
        app(prog_name="tokdsl")
    assert (int(stopped.value.code or 0), capsys.readouterr()) == by_typer


def test_plain_check_does_not_import_pydantic() -> None:
    code = (
        "import sys; sys.argv = ['tokdsl', 'check', 'tests/language/accept/gated_mixture.tok']\n"
        "from tokdsl.cli import app\n"
        "try: app()\n"
        "except SystemExit as stop: print(stop.code)\n"
        "print(sorted({'torch', 'pydantic', 'rich', 'jinja2'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines()[-2:] == ["0", "[]"]


@pytest.mark.parametrize(
    "verb",
    ["new", "check", "build", "summary", "graph", "verify", "fmt", "explain", "train", "generate"],
)
def test_help_has_examples(verb: str, capsys: Capture) -> None:
    assert run(verb, "--help") == 0
    assert f"\n    tokdsl {verb} " in capsys.readouterr().out


def test_starting_imports_little() -> None:
    """The editor and every `tokdsl check` wait for these."""
    code = (
        "import sys, tokdsl.cli;"
        "slow = {'torch', 'triton', 'rich', 'jinja2', 'networkx', 'pydantic', 'lark', 'numpy'};"
        "print(sorted(slow & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "[]\n"
