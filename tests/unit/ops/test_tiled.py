"""Operations over the small axes of a row, as a kernel writes them, against their torch form.

Every case is one operation in the kernel of row chains, run by Triton's interpreter on CPU: values,
what is discrete exactly, and gradients against those of autograd.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.fixtures.kernels import load_kernels, scratch_of_nan
from tests.unit.ops.cases.base import use
from tests.unit.ops.harness import Case, T, Tensors, axis, kind, new, run
from tokdsl.graph.program import OpNode, Value
from tokdsl.lower.kernels.rows_kernel import rows_kernel
from tokdsl.ops import OPS
from tokdsl.ops.tile import NotTiled
from tokdsl.source import SourceFile, Span
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import TensorType

SIZES = [1, 2, 3, 5, 8, 60]
SPAN = Span(SourceFile("spec.tok", ""), 0, 0)


def ties(given: Tensors) -> Tensors:
    """Make many entries equal, and some zeros negative."""
    return {
        k: torch.where(v.abs() < 0.5, -0.0, v.mul(2).round() / 2) if v.is_floating_point() else v
        for k, v in given.items()
    }


def apart(given: Tensors) -> Tensors:
    """Make entries of a row different, so that gradients do not jump."""
    return {
        k: v + torch.arange(v.shape[-1]) * 1e-3 if v.is_floating_point() else v
        for k, v in given.items()
    }


def below(count: int, name: str = "index") -> object:
    """Return what makes indices below a number."""

    def make(given: Tensors) -> Tensors:
        return {name: torch.randint(0, count, given[name].shape)}

    return make


def cases(n: int) -> dict[str, Case]:
    """Return uses of the operations along an axis of a size, by name."""
    e, m = axis("e", n), axis("m", 3)
    row, wide, flags = kind(T, e), kind(T, e, m), kind(T, e, dtype="bool")
    mask, numbers = kind(T, e, dtype="bool"), kind(T, e, dtype="i64")
    vector = kind(e, batched=False)
    found: dict[str, Case] = {}
    for name in ("softmax", "log_softmax"):
        found[name] = use(name, x=row, over=["e"])
        found[f"{name} where"] = use(name, x=row, over=["e"], where=mask)
        found[f"{name} of two"] = use(name, x=wide, over=["e", "m"])
    for name in ("sparsemax", "entmax15", "normalize", "rms_normalize"):
        found[name] = use(name, x=row, over=["e"])
    found["rms_normalize scaled"] = use("rms_normalize", x=row, over=["e"], scale=vector)
    if n > 1:
        found["layer_normalize"] = use("layer_normalize", x=row, over=["e"])
        found["layer_normalize scaled"] = use(
            "layer_normalize", x=row, over=["e"], scale=vector, bias=vector
        )
    for name in ("sum", "mean", "max", "min", "prod", "logsumexp", "norm", "variance"):
        found[name] = use(name, x=row, over=["e"])
        if n < 60 or name != "prod":
            found[f"{name} where"] = use(name, x=row, over=["e"], where=mask)
        if name != "prod":
            found[f"{name} of two"] = use(name, x=wide, over=["e", "m"])
    if n > 1:
        found["variance unbiased"] = use("variance", x=row, over=["e"], correction=1)
    for name in ("sum", "max", "min", "mean"):
        found[f"{name} of numbers"] = use(name, x=numbers, over=["e"])
    for name in ("any", "all", "count"):
        found[name] = use(name, x=flags, over=["e"])
        found[f"{name} where"] = use(name, x=flags, over=["e"], where=mask)
    for name in ("argmax", "argmin"):
        found[name] = use(name, x=row, over=["e"], make=ties)
        found[f"{name} where"] = use(name, x=row, over=["e"], where=mask, make=ties)
    found["cumsum"] = use("cumsum", x=row, over="e")
    found["cumsum of two"] = use("cumsum", x=wide, over="e")
    for down in (False, True):
        found[f"sort {down}"] = use("sort", x=row, over="e", descending=down, make=ties)
        found[f"sort apart {down}"] = use("sort", x=wide, over="e", descending=down)
        found[f"argsort {down}"] = use("argsort", x=row, over="e", descending=down, make=ties)
    for k in sorted({1, min(n, 2), min(n, 8)}):
        found[f"topk {k}"] = use("topk", x=row, over="e", k=new("k", k), make=ties)
        found[f"topk {k} where"] = use("topk", x=row, over="e", k=new("k", k), where=mask)
    count = kind(T, dtype="i64")
    found["top_mask"] = use("top_mask", x=row, count=count, over="e", make=ties)
    found["top_mask where"] = use("top_mask", x=row, count=count, over="e", where=mask, make=ties)
    index = kind(T, axis("k", 2), dtype="i64")
    found["gather"] = use("gather", x=row, index=index, over="e", make=below(n))
    found["gather of flags"] = use("gather", x=flags, index=index, over="e", make=below(n))
    found["gather of numbers"] = use("gather", x=numbers, index=index, over="e", make=below(n))
    found["gather of all"] = use("gather", x=row, index=numbers, over="e", make=below(n))
    found["gather of wide"] = use("gather", x=wide, index=index, over="e", make=below(n))
    found["gather from shared"] = use("gather", x=vector, index=index, over="e", make=below(n))
    table = kind(axis("c", n), axis("r", 3), batched=False)
    found["lookup"] = use("lookup", table=table, ids=index, make=below(n, "ids"))
    found["one_hot"] = use("one_hot", index=index, axis=new("c", n), make=below(n + 1))
    found["histogram"] = use("histogram", index=index, axis=new("c", n), over=["k"], make=below(n))
    both = (new("a", 2), new("b", n))
    twice = kind(T, axis("g", 2 * n))
    for extra in ("", " of flags"):
        given = TensorType(twice.axes, "bool" if extra else "float", True)
        found[f"split{extra}"] = use("split", x=given, over="g", into=both)
        given = kind(T, axis("a", 2), e, dtype=given.dtype)
        found[f"merge{extra}"] = use("merge", x=given, over=["a", "e"], into=new("g", 2 * n))
    found["rename"] = use("rename", x=row, old="e", new="f")
    found["rename of two"] = use("rename", x=wide, old="m", new="f")
    found["stack"] = use("stack", x=(row, kind(T), row), axis=new("s", 3))
    found["expand"] = use("expand", x=row, axis=new("s", 3))
    found["slice"] = use("slice", x=twice, over="g", start=Dim.of(1), stop=Dim.of(n + 1), into="h")
    found["at"] = use("at", x=row, over="e", index=-1)
    found["at first"] = use("at", x=wide, over="e", index=0)
    signed = {"x": lambda v: v - 1, "y": lambda v: v * 2 - 3}

    def both_signs(given: Tensors) -> Tensors:
        return {name: (1 + 9 * make(given[name])) for name, make in signed.items()}

    for name in ("floor_divide", "remainder"):
        found[name] = use(name, x=numbers, y=numbers, make=both_signs)
        found[f"{name} by 7"] = use(
            name, x=numbers, y=kind(dtype="i64", batched=False), texts={"y": "7"}
        )
    return found


GROUPS = {n: cases(n) for n in SIZES}


def fused(case: Case, given: Tensors) -> list[Tensor]:
    """Return the results of the kernel of one operation."""
    kinds = dict(case.op.operand_types())
    values = {name: Value(kinds[name], SPAN, name) for name in kinds}
    nodes: list[OpNode] = []
    for name, text in case.texts.items():
        literal = OPS["literal"](value=Dim.of(int(text)))
        values[name] = Value(literal.type(), SPAN)
        node = OpNode((), (values[name],), SPAN, op=literal, operands=())
        values[name].node = node
        nodes.append(node)
    outputs = tuple(Value(kind, SPAN, f"y{i}") for i, kind in enumerate(case.types()))
    main = OpNode(tuple(values.values()), outputs, SPAN, op=case.op, operands=tuple(values))
    for i, value in enumerate(outputs):
        value.node, value.index = main, i
    inputs = [values[name] for name in given]
    plan = rows_kernel("chain", inputs, [], [*nodes, main], outputs)
    module = load_kernels("rows", name="chain", **plan.pieces)
    with scratch_of_nan():
        found = module.chain(*given.values())
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize(
    "n", [n if n in (1, 3, 8) else pytest.param(n, marks=pytest.mark.slow) for n in SIZES]
)
@pytest.mark.parametrize("name", sorted({name for group in GROUPS.values() for name in group}))
def test_a_kernel_has_the_values_and_gradients_of_the_torch_form(name: str, n: int) -> None:
    case = GROUPS[n].get(name)
    if case is None:
        return
    given = case.operands()
    for value in given.values():
        if value.is_floating_point():
            value.requires_grad_()
    wanted, found = run(case, given), fused(case, given)
    for a, b in zip(wanted, found, strict=True):
        exact = not a.is_floating_point()
        torch.testing.assert_close(b, a, **({"rtol": 0, "atol": 0} if exact else {}))
    flows = case.op.gradient()
    smooth = [v for k, v in given.items() if v.requires_grad and flows[k]]
    pairs = [(a, b) for a, b in zip(wanted, found, strict=True) if a.requires_grad]
    if not smooth or not pairs or "ties" in getattr(case.make, "__name__", ""):
        return
    gs = [torch.where(a.isfinite(), torch.randn_like(a), 0.0).detach() for a, _ in pairs]
    options = {"allow_unused": True}
    one = torch.autograd.grad([a for a, _ in pairs], smooth, gs, **options)
    two = torch.autograd.grad([b for _, b in pairs], smooth, gs, **options)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(b, a, rtol=2e-5, atol=2e-5)


def test_what_changes_the_length_of_an_axis_is_not_written() -> None:
    case = use("slice", x=kind(T, axis("g", 6)), over="g", start=Dim.of(1))
    with pytest.raises(NotTiled):
        fused(case, case.operands())
