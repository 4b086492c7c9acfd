"""Promises of single primitives that types and gradients do not show."""

from __future__ import annotations

import math

import pytest
import torch

from tests.unit.ops.cases.base import MASK, TD_MASK, use
from tests.unit.ops.harness import (
    LENGTH,
    TD,
    VALID,
    VECTOR,
    Case,
    T,
    axis,
    code,
    d,
    functions,
    kind,
    new,
    run,
    tokens,
)
from tokdsl.ops import OPS
from tokdsl.ops.base import AxisRef, Fault
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Clock
from tokdsl.types.time import EVERYTHING, PAST, POINTWISE, Interval

TOPK = functions({"topk_stable"})["topk_stable"]
WIDE = kind(T, axis("wide", 10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("rows", "count", "k"), [(50, 8, 3), (20, 257, 8), (3, 5000, 70)])
def test_topk_gives_ties_to_the_lowest_index(
    dtype: torch.dtype, rows: int, count: int, k: int
) -> None:
    x = (
        torch.randint(-3, 3, (rows, count)).to(dtype)
        / 2
        * torch.tensor([1.0, -1.0])[torch.randint(0, 2, (rows, count))].to(dtype)
    )
    values, index = TOPK(x, k)  # type: ignore[operator]
    order = x.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(index, order.indices[:, :k])
    assert torch.equal(values, order.values[:, :k])


def test_topk_of_extreme_numbers() -> None:
    x = torch.tensor([[0.0, -0.0, 1e-45, -1e-45, math.inf, -math.inf, -3e38, 3e38]])
    _, index = TOPK(x, 8)  # type: ignore[operator]
    assert index.tolist() == [[4, 7, 2, 0, 1, 3, 6, 5]]


def test_topk_marks_what_the_condition_leaves_out() -> None:
    case = use("topk", x=TD, k=new("k", 3), over=AxisRef("d"), where=TD_MASK)
    where = torch.tensor([True, False, True, False]).expand(2, LENGTH, 4)
    x = torch.arange(4.0).expand(2, LENGTH, 4)
    values, index = run(case, {"x": x, "where": where})
    assert index[0, 0].tolist() == [2, 0, -1]
    assert values[0, 0].tolist() == [2.0, 0.0, -math.inf]


def test_topk_of_fewer_tokens_than_asked_for() -> None:
    case = use("topk", x=TD, k=new("k", 9), over=AxisRef("T"))
    values, index = run(case, {"x": torch.randn(2, LENGTH, 4)})
    assert index.shape == (2, 9, 4) and (index[:, 7:] == -1).all()
    assert (values[:, 7:] == -math.inf).all()


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_arg_reductions_take_the_first_of_equals(name: str) -> None:
    case = use(name, x=TD, over=["d"])
    x = torch.tensor([2.0, 5.0, 5.0, 2.0]).expand(2, LENGTH, 4)
    found = run(case, {"x": x})[0]
    assert (found == {"argmax": 1, "argmin": 0}[name]).all()


def test_row_without_any_entry() -> None:
    where = torch.zeros(2, LENGTH, 4, dtype=torch.bool)
    where[0] = True
    x = torch.randn(2, LENGTH, 4, requires_grad=True)
    found = run(use("softmax", x=TD, over=["d"], where=TD_MASK), {"x": x, "where": where})[0]
    assert (found[1] == 0).all() and torch.allclose(found[0].sum(-1), torch.ones(LENGTH))
    (found * torch.randn_like(found)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad[1] == 0).all()
    mean = run(use("mean", x=TD, over=["d"], where=TD_MASK), {"x": x, "where": where})[0]
    assert (mean[1] == 0).all()


def test_straight_through_is_exactly_hard() -> None:
    hard, soft = torch.randn(2, LENGTH, 4), torch.randn(2, LENGTH, 4) * 1e6
    found = run(use("straight_through", hard=TD, soft=TD), {"hard": hard, "soft": soft})[0]
    assert torch.equal(found, hard)


def test_losses_without_targets_are_zero() -> None:
    logits = torch.randn(2, LENGTH, 4, requires_grad=True)
    targets = torch.full((2, LENGTH), -100)
    case = use("cross_entropy", logits=TD, targets=kind(T, dtype="i64"))
    loss = run(case, {"logits": logits, "targets": targets})[0]
    loss.backward()
    assert loss == 0 and logits.grad is not None and (logits.grad == 0).all()


def test_targets_end_where_padding_begins() -> None:
    ids = torch.arange(LENGTH).repeat(2, 1)
    valid = torch.ones(2, LENGTH, dtype=torch.bool)
    valid[0, :2] = False
    valid[1, 5:] = False
    case = use("targets", ids=kind(T, dtype="i64"), valid=VALID)
    found = run(case, {"ids": ids, "valid": valid})[0]
    assert found[0].tolist() == [-100, -100, 3, 4, 5, 6, -100]
    assert found[1].tolist() == [1, 2, 3, 4, -100, -100, -100]


def test_flip_leaves_padding_in_place() -> None:
    x = torch.arange(float(LENGTH)).repeat(2, 1)
    valid = torch.ones(2, LENGTH, dtype=torch.bool)
    valid[0, :2] = False
    valid[1, 5:] = False
    case = use("flip", x=kind(T), over=AxisRef("T"), valid=VALID)
    found = run(case, {"x": x, "valid": valid})[0]
    assert found.tolist() == [[0, 1, 6, 5, 4, 3, 2], [4, 3, 2, 1, 0, 5, 6]]


def test_recurrence_is_right_for_any_decay_and_long_sequences() -> None:
    recurrence = functions({"linear_recurrence"})["linear_recurrence"]
    a = torch.randn(2, 1000, 3, dtype=torch.float64).clamp(-1, 1)
    a[:, ::17] = 0
    b = torch.randn(2, 1000, 3, dtype=torch.float64)
    h, expected = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(1000):
        h = a[:, t] * h + b[:, t]
        expected.append(h)
    torch.testing.assert_close(recurrence(a, b, 1), torch.stack(expected, 1))  # type: ignore[operator]


def test_dropout_and_noise_act_in_training_only() -> None:
    x = torch.ones(2, LENGTH, 4)
    assert (run(use("dropout", x=TD, p=0.5), {"x": x}, training=True)[0] == 0).any()
    noise = run(use("gumbel_noise", like=TD), {"like": x}, training=True)[0]
    assert noise.isfinite().all() and noise.std() > 0
    for name in ("uniform_noise", "normal_noise"):
        assert run(use(name, like=TD), {"like": x}, training=True)[0].std() > 0


# ------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (use("multiply", x=TD, y=VECTOR), "x * y"),
        (use("multiply", x=kind(T), y=TD), "x.unsqueeze(-1) * y"),
        (use("sum", x=TD, over=["d"]), "x.sum(dim=-1)"),
        (use("sum", x=TD), "x.sum()"),
        (use("mean", x=TD, over=["batch", "T"]), "x.mean(dim=(0, 1))"),
        (
            use("mean", x=TD, over=["T"], valid=VALID),
            "masked_mean(x, token_mask(valid, 1, 3), dim=-2)",
        ),
        (use("sum", x=TD, over=["d"], valid=VALID), "x.sum(dim=-1)"),
        (use("softmax", x=TD, over=["d"]), "x.softmax(dim=-1)"),
        (use("topk", x=TD, k=new("k", 2), over=AxisRef("d")), "topk_stable(x, 2, dim=-1)"),
        (
            use("rms_normalize", x=TD, over=["d"], scale=VECTOR),
            "rms_normalize(x, scale, eps=1e-06)",
        ),
        (
            use("layer_normalize", x=TD, over=["d"], scale=VECTOR, bias=VECTOR),
            "F.layer_norm(x, (4,), scale, bias, eps=1e-05)",
        ),
        (use("dot", x=TD, y=kind(d, axis("n", 5), batched=False), over=["d"]), "x @ y"),
        (use("dot", x=TD, y=kind(axis("n", 5), d, batched=False), over=["d"]), "x @ y.T"),
        (
            use("dot", x=kind(tokens("i"), d), y=kind(tokens("j"), d), over=["d"]),
            'torch.einsum("bid,bjd->bij", x, y)',
        ),
        (
            use("split", x=WIDE, over=AxisRef("wide"), into=(new("a", 2), new("c", 5))),
            "x.unflatten(-1, (2, 5))",
        ),
        (
            use("cross_entropy", logits=TD, targets=kind(T, dtype="i64")),
            "cross_entropy(logits, targets)",
        ),
        (
            use("where", condition=MASK, x=TD, y=VECTOR),
            "torch.where(condition.unsqueeze(-1), x, y)",
        ),
        (use("f32", x=TD.with_dtype("f32")), "x"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_text_is_what_one_would_write(case: Case, text: str) -> None:
    names = {name: name for name, _ in case.op.operand_types()}
    assert case.op.torch(code(case.op, names)) == text


# ------------------------------------------------------------------ time


def test_intervals() -> None:
    def interval(case: Case, operand: str = "x") -> Interval:
        return case.op.flows()[operand][0].interval

    assert interval(use("shift", x=TD, by=Dim.of(2))) == Interval(-2, -2)
    assert interval(use("shift", x=TD, by=Dim.of(-1))) == Interval(1, 1)
    assert not interval(use("shift", x=TD, by=Dim.of("n"))).exact
    assert interval(use("targets", ids=kind(T, dtype="i64")), "ids") == Interval(1, 1)
    assert interval(use("conv1d", x=TD, kernel=Dim.of(4))) == Interval(-3, 0)
    assert interval(use("conv1d", x=TD, kernel=Dim.of(4), causal=False)) == Interval(-2, 1)
    assert interval(use("cumsum", x=TD, over=AxisRef("T"))) == PAST
    assert interval(use("softmax", x=TD, over=["T"])) == EVERYTHING
    assert interval(use("softmax", x=TD, over=["d"])) == POINTWISE


# ------------------------------------------------------------------ faults

SPLIT = {"over": AxisRef("wide"), "into": (new("a", 4), new("b", 3))}


@pytest.mark.parametrize(
    ("name", "arguments", "kind_of_fault"),
    [
        ("split", {"x": WIDE, **SPLIT}, "not-divisible"),
        ("split", {"x": TD, **SPLIT}, "unknown-axis"),
        (
            "split",
            {"x": WIDE, "over": AxisRef("wide"), "into": (new("T", 2), new("b", 5))},
            "axis-taken",
        ),
        (
            "merge",
            {"x": TD, "over": (AxisRef("T"), AxisRef("d")), "into": new("f", 28)},
            "operand-shape",
        ),
        ("add", {"x": MASK, "y": MASK}, "operand-kind"),
        ("add", {"x": TD, "y": kind(tokens("T", Clock("other")), d)}, "clock-mismatch"),
        ("add", {"x": TD, "y": kind(axis("d", 3), batched=False)}, "size-mismatch"),
        ("logical_and", {"x": MASK, "y": kind(T)}, "operand-kind"),
        ("softmax", {"x": kind(T, d, dtype="i64"), "over": (AxisRef("d"),)}, "operand-kind"),
        ("softmax", {"x": TD, "over": (AxisRef("batch"),)}, "argument-type"),
        ("sum", {"x": TD, "over": (AxisRef("width"),)}, "unknown-axis"),
        ("topk", {"x": TD, "k": new("k", 5), "over": AxisRef("d")}, "size-mismatch"),
        ("stack", {"x": (TD, TD), "axis": new("n", 3)}, "size-mismatch"),
        ("concat", {"x": (TD, TD), "over": AxisRef("T")}, "operand-shape"),
        (
            "slice",
            {"x": TD, "over": AxisRef("d"), "start": Dim.of(3), "stop": Dim.of(9)},
            "size-mismatch",
        ),
        (
            "patches",
            {"x": kind(axis("h", 5), axis("w", 4)), "size": Dim.of(2), "into": new("p", 4)},
            "not-divisible",
        ),
        ("dropout", {"x": TD, "p": 1.5}, "argument-type"),
        ("gelu", {"x": TD, "approximate": "fast"}, "argument-type"),
        ("to", {"x": TD, "dtype": "float32"}, "argument-type"),
        ("gather", {"x": TD, "index": TD, "over": AxisRef("d")}, "operand-kind"),
        ("cross_entropy", {"logits": TD, "targets": kind(dtype="i64")}, "operand-shape"),
        ("linear_recurrence", {"a": VECTOR, "b": VECTOR}, "operand-shape"),
        ("conv1d", {"x": VECTOR, "kernel": Dim.of(3)}, "operand-shape"),
    ],
)
def test_faults(name: str, arguments: dict[str, object], kind_of_fault: str) -> None:
    from tokdsl.diagnostics.explain import load_registry

    with pytest.raises(Fault) as caught:
        OPS[name](**arguments).type()
    assert caught.value.kind == kind_of_fault
    assert kind_of_fault in {cls.name for cls in load_registry().values()}
    assert caught.value.text


@pytest.mark.parametrize("training", [True, False])
def test_in_training_takes_one_value_and_its_gradient(training: bool) -> None:
    case = use("in_training", x=TD, otherwise=TD)
    operands = {name: x.requires_grad_() for name, x in case.operands().items()}
    (found,) = run(case, operands, training=training)
    taken, left = ("x", "otherwise") if training else ("otherwise", "x")
    assert torch.equal(found, operands[taken])
    found.sum().backward()
    assert operands[taken].grad is not None and operands[left].grad is None


def test_in_training_needs_the_same_axes() -> None:
    with pytest.raises(Fault, match="the same axes"):
        OPS["in_training"](x=TD, otherwise=VECTOR).type()
