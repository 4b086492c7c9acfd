"""Where attention has a kernel: a gradient over very many channels is left to torch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tokdsl.emit.functions import collect, merge


@pytest.mark.parametrize(
    ("width", "values", "grad", "taken"),
    [
        (256, 256, True, True),
        (272, 256, True, False),
        (64, 272, True, False),
        (272, 256, False, True),
    ],
)
def test_the_kernel_is_taken_where_its_gradient_fits(
    width: int, values: int, grad: bool, taken: bool
) -> None:
    calls: list[Tensor] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor]:
        calls.append(q)
        return (q.new_zeros(*q.shape[:3], v.shape[-1]),)

    names: dict[str, Any] = {"__name__": "functional", "__package__": ""}
    exec(compile(merge(collect({"attend"})), "functional.py", "exec"), names)
    names["KERNELS"] = SimpleNamespace(FORCED=True, attend=kernel)
    q, k = (torch.randn(1, 5, 2, width) for _ in range(2))
    v = torch.randn(1, 5, 2, values, requires_grad=grad)
    found = names["attend"](q, k, v, causal=True)
    assert found.shape == (1, 5, 2, values)
    assert bool(calls) == taken
