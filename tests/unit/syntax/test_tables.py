"""The stored parse tables belong to the grammar."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tokdsl.resources import resource
from tokdsl.syntax.build import Build
from tokdsl.syntax.tables import load_tables, render_tables
from tokdsl.syntax.tree import DEFINITION_KINDS


def test_stored_tables_are_those_of_the_grammar() -> None:
    stored = resource("grammar", "tok.tables.json").read_text("utf-8")
    assert stored == render_tables(), "run `python -m tokdsl.syntax.tables`"


def test_definition_kinds_are_those_of_the_grammar() -> None:
    words = load_tables().words
    assert {word for word, kind in words.items() if kind == "KIND"} == set(DEFINITION_KINDS)


def test_every_form_is_built() -> None:
    silent = {"item", "type", "value", "index", "atom", "list_item", "member", "statement"}
    for rule in load_tables().rules:
        if not rule.unit and not rule.builder.startswith("__") and rule.builder not in silent:
            assert hasattr(Build, rule.builder) or len(rule.keep) == 1, rule


def test_reading_a_program_needs_no_lark_and_no_yaml() -> None:
    code = (
        "import sys; from tokdsl.source import SourceFile; from tokdsl.syntax.parser import parse;"
        "parse(SourceFile('t.tok', 'model m { require causal }'));"
        "print(sorted({'lark', 'yaml', 'pydantic', 'torch', 'networkx'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "[]\n"
