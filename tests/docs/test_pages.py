"""What the pages name is there: links, examples, commands, files and functions."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.docs.snippets import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text("utf-8")
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
#: files of an emitted package
EMITTED = {"segments.py", "tokens.py", "state.py", "functional.py"}


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the names by which a link can jump into a page."""
    found = set(re.findall(r'<a id="([^"]+)">', text))
    for heading in re.findall(r"^#+ +(.+)$", prose(text), re.MULTILINE):
        plain = re.sub(r"<[^>]*>", "", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text("utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), target


def test_readme_lists_every_example_and_what_it_is_compared_with() -> None:
    rows = dict(re.findall(r"^\| \[`(\w+)\.tok`\].*\| ([^|]+) \|$", README, re.MULTILINE))
    assert set(rows) == {path.stem for path in (ROOT / "examples").glob("*.tok")}
    compared = {name for name, text in rows.items() if text.startswith("published code")}
    assert compared == {path.name for path in (ROOT / "tests/fixtures/parity").iterdir()}


def test_readme_lists_every_command() -> None:
    from typer.main import get_command

    from tokdsl.cli import app

    listed = re.findall(r"^\| `tokdsl (\w+) ", README, re.MULTILINE)
    assert listed == list(get_command(app).commands)  # type: ignore[attr-defined]


def test_architecture_names_what_is_there() -> None:
    package = ROOT / "tokdsl"
    for name in set(re.findall(r"`([\w/]+\.(?:py|tok|lark))`", ARCHITECTURE)) - EMITTED:
        places = (ROOT / name, package / name, ROOT / "grammar" / name, *package.rglob(name))
        assert any(place.is_file() for place in places), name
    for folder in set(re.findall(r"^\| `([\w/]+)/`", ARCHITECTURE, re.MULTILINE)):
        assert (package / folder).is_dir() or (ROOT / folder).is_dir(), folder
    table = ARCHITECTURE.partition("## Pipeline")[2].partition("## Folders")[0]
    functions = re.findall(r"`((?:\w+\.)+\w+)`", table)
    assert len(functions) >= 8
    for path in functions:
        if path.endswith(".py") or path.startswith("tree.") or "Error" in path:
            continue
        assert _exists(path), path


def _exists(path: str) -> bool:
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(("tokdsl", *parts[:cut])))
        except ModuleNotFoundError:
            continue
        return all((found := getattr(found, name, None)) is not None for name in parts[cut:])
    return False
