"""Every operation of the kernels is registered with torch as torch demands, and compiles whole.

The launches of ``tests/kernels/launches`` are traced at their real sizes; kernels do not run. What
they compute, and `torch.library.opcheck` with values, is in the test of each template.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.fixtures.targets import compiler
from tokdsl.emit.kernels import description, templates
from tokdsl.resources import resource

HERE = Path(__file__).parent


def source(template: str) -> str:
    return resource("codegen", "kernels", template, "triton.py.jinja").read_text("utf-8")


@cache
def operations(template: str) -> dict[str, str]:
    """Return what torch has against each operation that the launches of a template call."""
    dtypes = description(template)["dtypes"]
    dtype = "float16" if "float16" in dtypes else dtypes[0]
    rows = compiler().ask(registration=True, template=template, dtypes=[dtype], targets=["cuda:90"])
    return {row["operation"]: row["fault"] for row in rows}


@pytest.mark.parametrize("template", templates())
def test_operations_are_registered_and_compile_whole(template: str) -> None:
    found = operations(template)
    registered = source(template).count("@torch.library.custom_op(")
    assert len(found) >= registered, "launches leave some out"
    assert not {name: fault for name, fault in found.items() if fault}


OWN = [t for t in templates() if "@torch.library.custom_op(" in source(t)]


@pytest.mark.parametrize("template", OWN)
def test_tests_check_values_too(template: str) -> None:
    texts = [path.read_text("utf-8") for path in HERE.glob("test_*.py")]
    own = HERE / f"test_{template}.py"
    trees = [own.read_text("utf-8")] if own.exists() else [t for t in texts if f'"{template}"' in t]
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for text in trees
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Attribute, ast.Name))
    }
    assert {"opcheck", "guarded", "scratch_of_nan"} <= names
