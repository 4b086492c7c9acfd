"""Triton expressions and derivatives mean what the torch expression means.

The expressions are evaluated with torch functions under Triton's names.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.unit.ops.cases import CASES
from tests.unit.ops.harness import Case, run


def _reduce(f: object) -> object:
    return lambda x, axis, keep_dims: f(x, dim=axis, keepdim=keep_dims)  # type: ignore[operator]


TL = SimpleNamespace(
    exp=torch.exp,
    log=torch.log,
    sqrt=torch.sqrt,
    rsqrt=torch.rsqrt,
    sin=torch.sin,
    cos=torch.cos,
    erf=torch.erf,
    sigmoid=torch.sigmoid,
    floor=torch.floor,
    ceil=torch.ceil,
    abs=torch.abs,
    where=torch.where,
    maximum=lambda x, y: torch.maximum(torch.as_tensor(x), torch.as_tensor(y)),
    minimum=lambda x, y: torch.minimum(torch.as_tensor(x), torch.as_tensor(y)),
    sum=_reduce(torch.sum),
    max=_reduce(torch.amax),
    min=_reduce(torch.amin),
    float16=torch.float16,
    bfloat16=torch.bfloat16,
    float32=torch.float32,
    float64=torch.float64,
    int64=torch.long,
    int1=torch.bool,
)


def _texts(case: Case) -> dict[str, str]:
    """Return operand texts that are sums, so that parentheses matter."""
    texts = {}
    for name, of in case.op.operand_types():
        texts[name] = case.texts.get(name) or (
            f"{name} | {name}" if of.dtype == "bool" else f"{name} + 0"
        )
    return texts


def _elementwise() -> list[Case]:
    found = []
    for case in CASES:
        if case.op.elementwise and case.op.triton(_texts(case)) is not None:
            kinds = [k for n, k in case.op.operand_types() if n not in case.texts]
            same = len({tuple(a.name for a in k.axes) for k in kinds}) == 1
            # torch, unlike Triton, has no difference of truth values
            if same and not (case.op.op_name == "subtract" and kinds[0].dtype == "bool"):
                found.append(case)
    return found


def _ids(cases: list[Case]) -> list[str]:
    return [f"{i}-{case.op.op_name}" for i, case in enumerate(cases)]


ELEMENTWISE = _elementwise()


@pytest.mark.parametrize("case", ELEMENTWISE, ids=_ids(ELEMENTWISE))
def test_elementwise_expression(case: Case) -> None:
    operands = case.operands()
    text = case.op.triton(_texts(case))
    found = eval(text, {"tl": TL}, dict(operands))  # type: ignore[arg-type]
    torch.testing.assert_close(
        found, run(case, operands)[0], rtol=2e-5, atol=2e-6, check_dtype=False
    )


@pytest.mark.parametrize("case", ELEMENTWISE, ids=_ids(ELEMENTWISE))
def test_elementwise_derivative(case: Case) -> None:
    slopes = case.op.derivative(_texts(case))
    assert slopes is not None
    operands = {n: v.double() if v.is_floating_point() else v for n, v in case.operands().items()}
    smooth = [n for n, v in operands.items() if case.op.gradient()[n] and v.is_floating_point()]
    assert set(smooth) <= set(slopes)
    if not smooth:
        return
    for name in smooth:
        operands[name] = operands[name].requires_grad_()
    result = run(case, operands)[0].double()
    gradients = torch.autograd.grad(result.sum(), [operands[n] for n in smooth])
    # the value of a straight-through result is hard, but its slope is that of the soft part
    for name, gradient in zip(smooth, gradients, strict=True):
        scope = {n: v.detach() for n, v in operands.items()}
        slope = torch.as_tensor(eval(slopes[name], {"tl": TL}, scope)).double()
        torch.testing.assert_close(slope.expand_as(gradient), gradient.double())
