"""Everything that the pages for users show is run; see `tests.docs.snippets`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.snippets import ROOT, Block, Mismatch, Reader, blocks, commands, require

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: pages that are written by `docs/generate.py` from what other tests run
GENERATED = "<!-- Written by "


WRITTEN_BY_HAND = [
    pytest.param(page, id=page.stem)
    for page in PAGES
    if not page.read_text("utf-8").startswith(GENERATED)
]


@pytest.mark.parametrize("page", WRITTEN_BY_HAND)
def test_page_does_what_it_says(page: Path, tmp_path: Path, update_golden: bool) -> None:
    home = tmp_path / "home"
    home.mkdir()
    complaint = None
    try:
        Reader(home, update_golden).follow(page)
    except Mismatch as error:
        complaint = str(error)
    if complaint:
        pytest.fail(complaint, pytrace=False)


def test_dots_stand_for_text_and_for_lines() -> None:
    require("built ...\n", "built build/a\n")
    require("one\n...\nfour\n", "one\ntwo\nthree\nfour\n")
    require("...\ntwo\n...\n", "two\n")
    for wrong in ("one\nfour\n", "one...\n", "...\nthree\n"):
        with pytest.raises(Mismatch):
            require(wrong, "one\ntwo\nthree\nfour\n")


def test_console_blocks_are_commands_with_their_output() -> None:
    assert commands("$ a \\\n  b\nout\n$ c\n") == [("a \\\n  b", "out\n"), ("c", "")]


@pytest.mark.parametrize(
    "block",
    [
        Block("tok", (), "model m() { }\nnonsense\n", 1),
        Block("tok", ("file=a.tok",), "fn f(x: [*, d]) -> [*, d] { y }\n", 1),
        Block("console", (), "$ true\nwords\n", 1),
        Block("console", (), "$ false\n", 1),
        Block("console", ("fails",), "$ true\n", 1),
        Block("python", (), "1 / 0\n", 1),
    ],
    ids=lambda block: " ".join((block.language, *block.words, block.text.split("\n")[0])),
)
def test_what_is_not_so_is_found(block: Block, tmp_path: Path) -> None:
    fence = " ".join((f"```{block.language}", *block.words))
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{fence}\n{block.text}```\n", "utf-8")
    assert [b.text for b in blocks(page)] == [block.text]
    home = tmp_path / "home"
    home.mkdir()
    with pytest.raises(Mismatch):
        Reader(home).follow(page)
