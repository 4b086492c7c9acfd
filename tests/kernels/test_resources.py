"""Every kernel compiles for every target, and fits: the committed table."""

from __future__ import annotations

import importlib

import pytest
import triton

from tests.fixtures.targets import TARGETS, template_resources
from tests.kernels import resources
from tokdsl.emit.kernels import description, templates


def one_dtype(template: str) -> str:
    dtypes = description(template)["dtypes"]
    return "float16" if "float16" in dtypes else str(dtypes[0])


def test_every_template_is_launched() -> None:
    for name in templates():
        calls = importlib.import_module(f"tests.kernels.launches.{name}").launches()
        assert calls, name


@pytest.mark.parametrize("template", templates())
def test_table_is_complete(template: str) -> None:
    rows = [row for row in resources.read() if row.template == template]
    launches = importlib.import_module(f"tests.kernels.launches.{template}").launches()
    dtypes = description(template)["dtypes"]
    wanted = {(a, b, c) for a in launches for b in dtypes for c in TARGETS}
    assert {(row.launch, row.dtype, row.target) for row in rows} == wanted, "run `make kernels`"


@pytest.mark.parametrize("template", templates())
def test_table_is_fresh(template: str) -> None:
    # a kernel that changed did so for all dtypes
    dtype, targets = one_dtype(template), ("cuda:90", "hip:gfx942")
    found = template_resources(template, [dtype], targets, is_compiled=False)
    committed = {
        row.key
        for row in resources.read()
        if row.template == template and row.dtype == dtype and row.target in targets
    }
    assert {resources.Row.of(template, each).key for each in found} == committed, (
        "run `make kernels`"
    )


@pytest.mark.parametrize("template", templates())
def test_kernels_fit(template: str) -> None:
    rows = [row for row in resources.read() if row.template == template]
    faults = {
        (row.launch, row.kernel, row.dtype, row.target): row.resources().fault() for row in rows
    }
    assert not {key: fault for key, fault in faults.items() if fault}


@pytest.mark.parametrize("template", templates())
def test_one_kernel_compiles_as_the_table_says(template: str) -> None:
    committed = {row.key: row for row in resources.read() if row.template == template}
    name = next(iter(importlib.import_module(f"tests.kernels.launches.{template}").launches()))
    dtypes, targets = [one_dtype(template)], ["cuda:90"]
    there = template_resources(template, dtypes, targets, launch=name, is_compiled=False)
    others = {resources.Row.of(template, each).key for each in there[1:]}
    found, *_ = template_resources(template, dtypes, targets, launch=name, known=others)
    assert not found.fault()
    known = committed[resources.Row.of(template, found).key]
    if known.triton == triton.__version__:
        same = (known.registers, known.spills, known.shared)
        assert (found.registers, found.spills, found.shared) == same


@pytest.mark.slow
@pytest.mark.parametrize("template", templates())
def test_all_launches_compile_as_the_table_says(template: str) -> None:
    committed = [row for row in resources.read() if row.template == template]
    found, refused = resources.launched(template, known={})
    assert not refused
    if all(row.triton == triton.__version__ for row in committed):
        assert sorted(found) == sorted(committed)
    assert not [row for row in found if row.resources().fault()]
