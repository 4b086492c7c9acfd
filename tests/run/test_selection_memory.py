"""Choices by weights among all keys: the torch form keeps no tensor of queries by keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.run.test_attention_memory import Largest
from tokdsl.driver import build
from tokdsl.training.package import import_package

LENGTH = 2048
#: numbers at a time, of which there are 2**22 where nothing else is said
AT_A_TIME = 2**17
SPEC = """
use std.sparse {{ {name} }}
model m() {{ stage out(x: [T, d: 16]) {{ {name}({sizes}) }} }}
"""
#: sizes of the layers, and what a query has of each key: blocks are few
LAYERS = {
    "nsa": "heads = 4, kv_heads = 2, block = 4, top = 5, window = 8",
    "token_select": "heads = 4, kv_heads = 2, first = 4, last = 8, top = 16",
}


@pytest.mark.parametrize("name", LAYERS)
def test_no_tensor_is_over_all_pairs(tmp_path: Path, name: str) -> None:
    path = tmp_path / "spec.tok"
    path.write_text(SPEC.format(name=name, sizes=LAYERS[name]), "utf-8")
    built = build(path, tmp_path)
    assert built.directory is not None, [d.message() for d in built.report]
    made: Any = import_package(built.directory)
    form = made.functional.query_blocks
    most = []

    def watched(*given: Any, **more: Any) -> Any:
        with Largest() as seen:
            found = form(*given, **more)
        most.append(seen.numel)
        return found

    made.model.query_blocks = watched
    chosen = []
    for count in (AT_A_TIME, 2**30):
        made.functional.SCORES = count
        torch.manual_seed(0)
        model = made.Model()
        x = torch.randn(1, LENGTH, 16, requires_grad=count == AT_A_TIME)
        chosen.append(model(x).out)
    assert most[0] <= 2 * AT_A_TIME < LENGTH * LENGTH // 8
    assert most[1] >= LENGTH * LENGTH
    assert torch.equal(*chosen)
