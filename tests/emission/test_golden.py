"""The graph and the emitted package of every example, byte for byte, and clean by the linters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden_files import Golden
from tokdsl import driver
from tokdsl.graph.printer import print_program
from tokdsl.graph.verify import verify

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.tok"))
#: copied from templates without change, and tested where they are used
VERBATIM = ("checkpoint.py", "functional.py", "generation.py", "tokenizer.py")
#: whose kernels are kept to be read; those of the others are the same templates, filled
WITH_KERNELS = ("deepseek_v3", "mixtral", "t5")
GOLDEN = ROOT / "tests" / "golden"
every = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def emitted(path: Path) -> tuple[str, dict[str, str]]:
    """Return the printed graph and the files of the package of an example's first model."""
    checked = driver.check_file(path)
    assert not checked.report.has_errors, [d.message() for d in checked.report]
    program = checked.programs[0]
    verify(program.all_modules())
    return print_program(program), driver.emit_program(checked, program, path.name)


@every
def test_example_gives_its_golden_package(path: Path, golden: Golden) -> None:
    graph, files = emitted(path)
    left_out = VERBATIM if path.stem in WITH_KERNELS else (*VERBATIM, "kernels.py")
    kept = {name: text for name, text in files.items() if name not in left_out}
    golden.check_tree(path.stem, {"graph.txt": graph, **kept})


def test_no_golden_without_an_example(golden: Golden) -> None:
    names = [entry.name for entry in GOLDEN.iterdir() if (entry / "graph.txt").is_file()]
    assert set(names) <= {path.stem for path in EXAMPLES}


@every
def test_the_same_source_gives_the_same_bytes(path: Path) -> None:
    assert emitted(path) == emitted(path)


def test_packages_pass_the_linters(tmp_path: Path) -> None:
    """All packages at once: starting the tools takes most of the time."""
    for path in EXAMPLES:
        _, files = emitted(path)
        folder = tmp_path / path.stem
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
    for command in (
        ["ruff", "check", "--config", str(ROOT / "pyproject.toml"), "."],
        ["ruff", "format", "--config", str(ROOT / "pyproject.toml"), "--check", "."],
    ):
        result = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_packages_pass_mypy(tmp_path: Path) -> None:
    for path in EXAMPLES:
        _, files = emitted(path)
        folder = tmp_path / path.stem
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
    names = [path.stem for path in EXAMPLES]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def test_emitted_code_does_not_mention_the_compiler_as_an_import() -> None:
    for path in EXAMPLES:
        _, files = emitted(path)
        for name, text in files.items():
            assert "import tokdsl" not in text and "from tokdsl" not in text, (path.stem, name)
