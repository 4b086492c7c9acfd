"""Runs the literate pages and the accept and reject folders; see `tests.language.literate`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.language.literate import Case, cases, disagreements, expectations, rewrite

HERE = Path(__file__).parent
PAGES = sorted(HERE.glob("*.md"))
CASES = [case for page in PAGES for case in cases(page)]
ACCEPTED = sorted((HERE / "accept").glob("*.tok"))
REJECTED = sorted((HERE / "reject").glob("*.tok"))


def _require(spec: str, name: str) -> None:
    from tokdsl.driver import check_text

    complaints = disagreements(spec, check_text(spec, name).sorted())
    if complaints:
        pytest.fail("\n".join([name, *complaints]), pytrace=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_page(case: Case, update_golden: bool) -> None:
    from tokdsl.driver import check_text

    found = check_text(case.spec, f"{case.page.stem}.tok").sorted()
    complaints = disagreements(case.spec, found)
    for rendering in case.renderings:
        expected = rendering.expected(found)
        if rendering.text != expected and update_golden:
            rewrite(case.page, rendering.index, expected)
        elif rendering.text != expected:
            complaints.append(f"the {rendering.form} block must hold:\n{expected}")
    if complaints:
        pytest.fail("\n".join([f"{case.page}:{case.line}", *complaints]), pytrace=False)


@pytest.mark.parametrize("path", ACCEPTED, ids=lambda path: path.stem)
def test_accept(path: Path) -> None:
    spec = path.read_text("utf-8")
    assert not [e for e in expectations(spec) if e.severity == "error"]
    _require(spec, path.name)


@pytest.mark.parametrize("path", REJECTED, ids=lambda path: path.stem)
def test_reject(path: Path) -> None:
    spec = path.read_text("utf-8")
    assert any(e.severity == "error" for e in expectations(spec)), "says no error to expect"
    _require(spec, path.name)
