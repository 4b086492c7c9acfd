"""Uses of operations that move axes and tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.ops.cases.base import (
    IDS,
    MASK,
    use,
)
from tests.unit.ops.harness import (
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
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, Clock

#: a fixed number of tokens without order
SET = kind(Axis("p", Dim.of(5), Clock("p", ordered=False)), d)


def shape_cases() -> list[Case]:
    """Return operations that move, split and join axes."""
    wide = kind(T, axis("wide", 12))
    pair = (new("a", 3), new("b", 4))
    return [
        use(
            "split",
            x=wide,
            over=AxisRef("wide"),
            into=pair,
            reference=lambda t: t["x"].view(2, 7, 3, 4),
        ),
        use(
            "merge",
            x=TDE,
            over=["d", "e"],
            into=new("f", 12),
            reference=lambda t: t["x"].flatten(2),
        ),
        use("merge", x=TDE, over=["e", "d"], into=new("f", 12), reference=_merged),
        use("rename", x=TD, old=AxisRef("d"), new=AxisRef("f"), reference=lambda t: t["x"]),
        use("order", x=TDE, axes=["d"], reference=lambda t: t["x"].movedim(2, 3)),
        use("order", x=TDE, axes=["T", "d"], reference=lambda t: t["x"].permute(0, 3, 1, 2)),
        use("order", x=TD, axes=["T"], reference=lambda t: t["x"].transpose(1, 2)),
        use("stream", x=kind(d, e), over=AxisRef("d"), reference=lambda t: t["x"]),
        use("stream", x=kind(d, e), over=AxisRef("e"), reference=lambda t: t["x"].transpose(1, 2)),
        use(
            "concat",
            x=(TD, TD),
            over=AxisRef("d"),
            reference=lambda t: torch.cat((t["x_0"], t["x_1"]), 2),
        ),
        use(
            "concat",
            x=(kind(d, e), kind(d, e, batched=False)),
            over=AxisRef("d"),
            reference=_joined,
        ),
        use("concat", x=(kind(d, e), kind(e, d)), over=AxisRef("e"), reference=_joined_crossed),
        use(
            "concat",
            x=(kind(T, e, d), TD),
            over=AxisRef("d"),
            reference=lambda t: torch.cat(
                (t["x_0"], t["x_1"].unsqueeze(2).expand(-1, -1, t["x_0"].shape[2], -1)), 3
            ),
        ),
        use(
            "stack",
            x=(TD, TD),
            axis=new("two", 2),
            reference=lambda t: torch.stack((t["x_0"], t["x_1"]), -1),
        ),
        use("stack", x=(TD, VECTOR), axis=new("two", 2), reference=_stacked),
        use(
            "slice",
            x=TDE,
            over=AxisRef("d"),
            start=Dim.of(1),
            stop=Dim.of(3),
            reference=lambda t: t["x"][:, :, 1:3],
        ),
        use(
            "slice",
            x=TD,
            over=AxisRef("d"),
            stop=Dim.of(2),
            into=AxisRef("half"),
            reference=lambda t: t["x"][..., :2],
        ),
        use("slice", x=TD, over=AxisRef("d"), start=Dim.of(1), reference=lambda t: t["x"][..., 1:]),
        use("slice", x=SET, over=AxisRef("p"), start=Dim.of(1), reference=lambda t: t["x"][:, 1:]),
        use("at", x=TD, over=AxisRef("d"), index=1, reference=lambda t: t["x"][:, :, 1]),
        use("at", x=TD, over=AxisRef("T"), index=0, valid=VALID, reference=lambda t: t["x"][:, 0]),
        use(
            "at", x=TDE, over=AxisRef("T"), index=-1, valid=VALID, reference=lambda t: t["x"][:, -1]
        ),
        use("at", x=TD, over=AxisRef("T"), index=-1, reference=lambda t: t["x"][:, -1]),
        use(
            "pad",
            x=TDE,
            over=AxisRef("d"),
            before=Dim.of(1),
            after=Dim.of(2),
            value=3.0,
            reference=_padded,
        ),
        use(
            "pad",
            x=TD,
            over=AxisRef("d"),
            after=Dim.of(1),
            reference=lambda t: F.pad(t["x"], (0, 1)),
        ),
        use("expand", x=TD, axis=new("n", 3), reference=lambda t: torch.stack([t["x"]] * 3, -1)),
        use(
            "expand", x=VECTOR, axis=new("n", 3), reference=lambda t: torch.stack([t["x"]] * 3, -1)
        ),
        use("flip", x=TD, over=AxisRef("d"), reference=lambda t: t["x"].flip(2)),
        use("flip", x=TD, over=AxisRef("T"), valid=VALID, reference=lambda t: t["x"].flip(1)),
        use("roll", x=TD, over=AxisRef("d"), by=Dim.of(1), reference=lambda t: t["x"].roll(1, 2)),
        use("shift", x=TD, valid=VALID, reference=lambda t: F.pad(t["x"], (0, 0, 1, -1))),
        use(
            "shift",
            x=TD,
            by=Dim.of(3),
            valid=VALID,
            reference=lambda t: F.pad(t["x"], (0, 0, 3, -3)),
        ),
        use(
            "shift",
            x=TD,
            by=Dim.of(-2),
            valid=VALID,
            reference=lambda t: F.pad(t["x"], (0, 0, -2, 2)),
        ),
        use(
            "shift",
            x=TD,
            fill=1.0,
            valid=VALID,
            reference=lambda t: F.pad(t["x"], (0, 0, 1, -1), value=1.0),
        ),
        use(
            "shift",
            x=IDS,
            fill=-1.0,
            valid=VALID,
            reference=lambda t: F.pad(t["x"], (1, -1), value=-1),
        ),
        use("shift", x=MASK, valid=VALID, reference=lambda t: F.pad(t["x"], (1, -1))),
        use("shift", x=TD, over=AxisRef("d"), reference=lambda t: F.pad(t["x"], (1, -1))),
        use(
            "recent",
            x=TD,
            place=new("place", 3),
            valid=VALID,
            reference=lambda t: torch.stack([F.pad(t["x"], (0, 0, n, -n)) for n in (2, 1, 0)], 2),
        ),
        use(
            "recent",
            x=IDS,
            place=new("place", 9),
            valid=VALID,
            reference=lambda t: F.pad(t["x"], (8, 0)).unfold(1, 9, 1),
        ),
        use(
            "targets",
            ids=IDS,
            valid=VALID,
            reference=lambda t: F.pad(t["ids"], (-1, 1), value=-100),
        ),
        use(
            "targets",
            ids=IDS,
            ahead=Dim.of(3),
            valid=VALID,
            reference=lambda t: F.pad(t["ids"], (-3, 3), value=-100),
        ),
        use(
            "patches",
            x=kind(axis("c", 3), axis("h", 4), axis("w", 6)),
            size=Dim.of(2),
            into=new("pixels", 12),
            reference=_unfolded,
        ),
        use("patches", x=kind(axis("h", 4), axis("w", 6)), size=Dim.of(2), into=new("pixels", 4)),
        use("prepend", x=TD, first=VECTOR, reference=_after),
        use("prepend", x=TD, first=kind(axis("n", 3), d, batched=False), reference=_after),
        use("prepend", x=TD, first=kind(d), reference=_after),
        use("arange", axis=new("n", 3), reference=lambda t: torch.tensor([0, 1, 2])),
        use("zeros", axes=pair, reference=lambda t: torch.zeros(3, 4)),
        use("ones", axes=pair[:1], reference=lambda t: torch.ones(3)),
        use("full", axes=pair[:1], value=0.5, reference=lambda t: torch.full((3,), 0.5)),
        use("full", axes=pair, value=2.0, dtype="i64", reference=lambda t: torch.full((3, 4), 2)),
    ]


def _merged(t: Tensors) -> Tensor:
    return t["x"].transpose(2, 3).flatten(2)


def _joined(t: Tensors) -> Tensor:
    return torch.cat((t["x_0"], t["x_1"].expand_as(t["x_0"])), 1)


def _joined_crossed(t: Tensors) -> Tensor:
    return torch.cat((t["x_0"], t["x_1"].transpose(1, 2)), 2)


def _stacked(t: Tensors) -> Tensor:
    return torch.stack((t["x_0"], t["x_1"].expand_as(t["x_0"])), -1)


def _padded(t: Tensors) -> Tensor:
    return F.pad(t["x"], (0, 0, 1, 2), value=3.0)


def _unfolded(t: Tensors) -> Tensor:
    return F.unfold(t["x"], 2, stride=2).transpose(1, 2)


def _after(t: Tensors) -> Tensor:
    """Put the first tokens, of a row or of all, before those of the stream."""
    rows, _, width = t["x"].shape
    first = t["first"].reshape(-1, 1, width) if t["first"].shape[0] == rows else None
    shared = t["first"].reshape(1, -1, width).expand(rows, -1, -1)
    return torch.cat((shared if first is None else first, t["x"]), 1)
