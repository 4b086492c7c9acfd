"""Uses of top-k, sorting, gathering and counting."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.ops.cases.base import (
    IDS,
    IJ,
    KEY,
    ONE,
    QUERY,
    TD_MASK,
    use,
)
from tests.unit.ops.harness import (
    LENGTH,
    TD,
    TDE,
    VALID,
    VECTOR,
    Case,
    T,
    Tensors,
    axis,
    d,
    e,
    kind,
    new,
)
from tokdsl.ops.base import AxisRef


def selection_cases() -> list[Case]:
    """Return top-k, sorting, gathering and counting."""
    k, top, over = new("k", 2), axis("k", 2), AxisRef("d")
    picks = kind(T, top, dtype="i64")
    table = kind(axis("rows", 3), d, batched=False)
    return [
        use("topk", x=TD, k=k, over=over, reference=lambda t: t["x"].topk(2, dim=2)),
        use("topk", x=TDE, k=k, over=over, reference=lambda t: t["x"].topk(2, dim=2)),
        use("topk", x=TD.with_dtype("f64"), k=k, over=over),
        use("topk", x=TD.with_dtype("bf16"), k=k, over=over),
        use("topk", x=TD, k=k, over=over, where=TD_MASK),
        use("topk", x=TD, k=new("k", 9), over=AxisRef("T"), valid=VALID),
        use("topk", x=IJ, k=k, over=AxisRef("j"), where=kind(QUERY, KEY, dtype="bool")),
        use("top_mask", x=TD, count=ONE, over=over, make=_two, reference=_best_two),
        use("top_mask", x=TD, count=ONE, over=AxisRef("T"), valid=VALID, make=_two),
        use("top_mask", x=TDE, count=IDS, over=over, where=TD_MASK),
        use("sort", x=TD, over=over, reference=lambda t: t["x"].sort(dim=2)),
        use("argsort", x=TD, over=AxisRef("T"), descending=True, reference=_falling),
        use(
            "gather", x=TD, index=picks, over=over, reference=lambda t: t["x"].gather(2, t["index"])
        ),
        use("gather", x=TD, index=IDS, over=over, reference=_pick_one),
        use("gather", x=table, index=picks, over=AxisRef("rows"), reference=_pick_rows),
        use("gather", x=TDE, index=IDS, over=over, reference=_pick_middle),
        use(
            "gather",
            x=TD,
            index=kind(axis("n", 2), dtype="i64"),
            over=AxisRef("T"),
            reference=_pick_tokens,
        ),
        use(
            "gather",
            x=TD,
            index=kind(QUERY, dtype="i64"),
            over=AxisRef("T"),
            reference=_pick_tokens,
        ),
        use("gather", x=TD, index=IDS, over=AxisRef("T"), reference=_pick_tokens),
        use("gather", x=VECTOR, index=IDS, over=over, reference=lambda t: t["x"][t["index"]]),
        use(
            "gather",
            x=TD,
            index=kind(e, dtype="i64", batched=False),
            over=over,
            reference=_pick_fixed,
        ),
        use(
            "gather",
            x=table,
            index=kind(T, d, dtype="i64"),
            over=AxisRef("rows"),
            reference=_pick_each,
        ),
        use("lookup", table=table, ids=IDS, reference=lambda t: t["table"][t["ids"]]),
        use("lookup", table=kind(axis("rows", 3), batched=False), ids=IDS),
        use("one_hot", index=IDS, axis=new("n", 3), reference=lambda t: F.one_hot(t["index"], 3)),
        use("histogram", index=IDS, axis=new("n", 3), valid=VALID, reference=_counts),
        use(
            "histogram",
            index=picks,
            axis=new("n", 3),
            over=(AxisRef("T"), AxisRef("k")),
            valid=VALID,
        ),
        use(
            "histogram", index=picks, axis=new("n", 3), over=(AxisRef("k"),), reference=_counts_each
        ),
        use("scatter_add", x=TD, index=IDS, axis=new("n", 3), valid=VALID, reference=_sums),
        use("scatter_add", x=TD, index=IDS, axis=new("n", 3), over=["batch", "T"], valid=VALID),
        use("scatter_add", x=kind(T, top), index=picks, axis=new("n", 3), over=["k"]),
        use("bucketize", x=TD, boundaries=VECTOR, make=_rising, reference=_buckets),
        use("bucketize", x=TD, boundaries=VECTOR, right=True, make=_rising),
    ]


def _two(t: Tensors) -> Tensors:
    return {**t, "count": torch.tensor(2)}


def _best_two(t: Tensors) -> Tensor:
    return t["x"] >= t["x"].topk(2, dim=2).values[..., 1:]


def _falling(t: Tensors) -> Tensor:
    return t["x"].argsort(dim=1, descending=True, stable=True)


def _pick_one(t: Tensors) -> Tensor:
    return t["x"].gather(2, t["index"].unsqueeze(-1)).squeeze(-1)


def _pick_rows(t: Tensors) -> Tensor:
    return t["x"][t["index"]]


def _pick_middle(t: Tensors) -> Tensor:
    x, index = t["x"], t["index"]
    return torch.stack(
        [torch.stack([x[b, i, index[b, i]] for i in range(LENGTH)]) for b in range(len(x))]
    )


def _pick_tokens(t: Tensors) -> Tensor:
    return torch.stack([x[i] for x, i in zip(t["x"], t["index"], strict=True)])


def _pick_fixed(t: Tensors) -> Tensor:
    return t["x"][..., t["index"]]


def _pick_each(t: Tensors) -> Tensor:
    return t["x"].gather(0, t["index"].flatten(0, 1)).view(t["index"].shape)


def _counts(t: Tensors) -> Tensor:
    return torch.bincount(t["index"].flatten(), minlength=3)


def _counts_each(t: Tensors) -> Tensor:
    return F.one_hot(t["index"], 3).sum(2)


def _sums(t: Tensors) -> Tensor:
    return torch.einsum("btd,btn->bnd", t["x"], F.one_hot(t["index"], 3).to(t["x"]))


def _rising(t: Tensors) -> Tensors:
    return {**t, "boundaries": t["boundaries"].sort().values}


def _buckets(t: Tensors) -> Tensor:
    return (t["boundaries"] < t["x"].unsqueeze(-1)).sum(-1)
