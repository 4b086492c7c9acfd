"""Every declared finding: its page is complete and its two examples do what they say."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import tests.unit.diagnostics.samples  # noqa: F401  declares findings of its own
from tokdsl.diagnostics import Diagnostic, Severity
from tokdsl.diagnostics.explain import explain, load_registry, nearest, page

REGISTRY = [cls for cls in load_registry().values() if cls.__module__.startswith("tokdsl.")]
every = pytest.mark.parametrize("cls", REGISTRY, ids=lambda cls: cls.code)


@every
def test_page_is_complete(cls: type[Diagnostic]) -> None:
    found = page(cls)
    assert found.title and len(found.title) <= 80
    assert found.explanation, "has no explanation"
    assert len(found.wrong) == 1, "needs exactly one `tok error` block"
    assert len(found.right) == 1, "needs exactly one `tok ok` block"
    assert "```" not in found.explanation, "has a block that is neither `tok error` nor `tok ok`"


@every
def test_code_and_name_are_well_formed(cls: type[Diagnostic]) -> None:
    assert re.fullmatch(r"TOK[1-9]\d\d", cls.code)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cls.name)


@every
def test_wrong_example_has_this_finding_and_no_other_error(cls: type[Diagnostic]) -> None:
    from tokdsl.driver import check_text

    found = check_text(page(cls).wrong[0]).sorted()
    codes = {d.code for d in found}
    errors = {d.code for d in found if d.severity is Severity.ERROR}
    assert cls.code in codes, [f"{d.code} {d.message()}" for d in found]
    assert errors <= {cls.code}, [f"{d.code} {d.message()}" for d in found]


@every
def test_right_example_has_no_finding(cls: type[Diagnostic]) -> None:
    from tokdsl.driver import check_text

    found = check_text(page(cls).right[0]).sorted()
    assert not found, [f"{d.code} {d.message()}" for d in found]


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
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
