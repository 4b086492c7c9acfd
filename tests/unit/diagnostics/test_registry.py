"""Every declared finding: its page is complete and its two examples do what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tests.unit.diagnostics.samples  # noqa: F401  declares findings of its own
from tokdsl.commands.new import starter
from tokdsl.diagnostics import Diagnostic
from tokdsl.diagnostics.explain import explain, load_registry, nearest, page

ROOT = Path(__file__).parents[3]
REGISTRY = [cls for cls in load_registry().values() if cls.__module__.startswith("tokdsl.")]
every = pytest.mark.parametrize("cls", REGISTRY, ids=lambda cls: cls.code)


@every
def test_page_is_complete(cls: type[Diagnostic]) -> None:
    found = page(cls)
    assert found.title and len(found.title) <= 80
    assert found.explanation, "has no explanation"
    assert len(found.wrong) == 1, "needs exactly one `tok error` or `sh error` block"
    assert len(found.right) == 1, "needs exactly one `tok ok` or `sh ok` block"
    assert "```" not in found.explanation, "has a block without a verdict"


@every
def test_code_and_name_are_well_formed(cls: type[Diagnostic]) -> None:
    assert re.fullmatch(r"TOK[1-9]\d\d", cls.code)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cls.name)


@pytest.fixture
def findings(tmp_path: Path) -> Callable[[str, str], list[tuple[str, str]]]:
    """Return a function from an example to the codes and severities that it gives.

    A command line runs in a folder with the starter spec as ``model.tok``, a large file and a
    binary one.
    """

    def run(language: str, example: str) -> list[tuple[str, str]]:
        if language in ("tok", "yaml"):
            from tokdsl.driver import check_text

            name = "<text>" if language == "tok" else "text.tok.yaml"
            return [(d.code, d.severity.value) for d in check_text(example, name).sorted()]
        (tmp_path / "model.tok").write_text(starter("model"))
        (tmp_path / "huge.tok").write_text("# more\n" * 700_000)
        (tmp_path / "weights.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
        shim = tmp_path / "tokdsl"
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m tokdsl "$@" --format json\n')
        shim.chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        shown = subprocess.run(
            ["sh", "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert shown.returncode in (0, 1), shown.stderr
        found = [json.loads(line) for line in shown.stdout.splitlines()]
        return [(d["code"], d["severity"]) for d in found]

    return run


Findings = Callable[[str, str], list[tuple[str, str]]]


@every
def test_wrong_example_has_this_finding_and_no_other_error(
    cls: type[Diagnostic], findings: Findings
) -> None:
    found = findings(page(cls).language, page(cls).wrong[0])
    assert cls.code in [code for code, _ in found]
    assert {code for code, severity in found if severity == "error"} <= {cls.code}


@every
def test_right_example_has_no_finding(cls: type[Diagnostic], findings: Findings) -> None:
    assert findings(page(cls).language, page(cls).right[0]) == []


@every
def test_explanation_is_found_by_code_and_name(cls: type[Diagnostic]) -> None:
    text = explain(cls.name)
    assert text is not None
    assert text == explain(cls.code) == explain(cls.code.lower()) == explain(cls.code[3:])
    assert cls.title() in text


def test_explanation_of_a_finding() -> None:
    assert (
        explain("unused-allow")
        == """\
warning[TOK190] unused-allow

A comment accepts a warning that does not occur.

`# allow <name>`, at the end of a line or alone on the line above it, accepts the warning of
that name on that line. A comment that accepts nothing hides the next warning of that name, so
it is reported. Errors cannot be accepted: what they say about the model is true whether or not
it is read.

Wrong:

    block double(x: [*, d]) -> [*, d] {
      x + x  # allow unused-name
    }

Right:

    block double(x: [*, d]) -> [*, d] {
      x + x
    }

`# allow unused-allow` at the end of the line accepts it there.
"""
    )


def test_unknown_codes_get_a_suggestion() -> None:
    assert explain("TOK19") is None
    assert nearest("unused-alow") == "did you mean `unused-allow`?"
    assert nearest("qqqq") is None


def test_the_registry_loads_without_torch() -> None:
    code = (
        "import sys; from tokdsl.diagnostics.explain import load_registry; load_registry();"
        "print(sorted({'torch', 'triton', 'transformers'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "[]\n"
