"""Uses of what chooses tokens and attends to what is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.unit.ops.cases.base import MASK, QUERY, use
from tests.unit.ops.harness import BATCH, LENGTH, TD, Case, T, Tensors, axis, kind
from tokdsl.ops.base import AxisRef
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis

_PLACES = f"torch.arange({LENGTH})[None]"
#: the clock of one document without padding
CLOCK = {"clock": f"TokenClock({_PLACES}, None, {_PLACES}, None, batch={BATCH})"}
KEY = Axis("j", T.size, T.clock, memory=True)
S = Axis("S", T.size, T.clock, memory=True)
HEADS, WIDTH = axis("heads", 4), axis("k", 2)
GROUPS = axis("groups", 2)
SETS = kind(T, axis("n", 3), dtype="i64")
CLOCK_TYPE = kind(S, dtype="bool")
KEYS = kind(S, GROUPS, WIDTH)


def token_choice_cases() -> list[Case]:
    """Return blocks, choices and what reads them."""
    pairs = kind(QUERY, KEY, dtype="bool")
    near = kind(QUERY, axis("n", 2), dtype="i64")
    columns = kind(QUERY, axis("j", 3), dtype="i64")
    attention = {"q": kind(T, HEADS, WIDTH), "k": KEYS, "clock": CLOCK_TYPE, "texts": CLOCK}
    heads = kind(GROUPS, T, axis("n", 3), dtype="i64")
    return [
        use("blocks", x=TD, size=Dim.of(3), clock=CLOCK_TYPE, texts=CLOCK, reference=_means),
        use("blocks", x=kind(T, GROUPS, WIDTH), size=Dim.of(2), clock=CLOCK_TYPE, texts=CLOCK),
        use("seen", where=pairs, clock=CLOCK_TYPE, query=QUERY, key=KEY, texts=CLOCK,
            reference=lambda t: t["where"]),
        use("candidates", among=near, clock=CLOCK_TYPE, key="j", block=2, texts=CLOCK,
            reference=_members),
        use("at_columns", x=kind(KEY, WIDTH), columns=columns, over=AxisRef("j"),
            reference=_rows),
        use("of_columns", columns=columns, pick=near, reference=_picked),
        use("attend_selected", v=KEYS, select=SETS, make=_some, reference=_attended, **attention),
        use("attend_selected", v=KEYS, select=heads, make=_some, **attention),
        use("attend_selected", v=KEYS, select=SETS, make=_some_blocks, block=2, first=1, last=1,
            **attention),
        use("attend_selected", v=KEYS, select=SETS, sinks=kind(HEADS, batched=False), make=_some,
            **attention),
        use("selected_weights", select=SETS, make=_some, reference=_shares, **attention),
        use("hold", x=TD, when=MASK, clock=CLOCK_TYPE, texts=CLOCK, reference=_held),
        use("hold", x=SETS, when=MASK, clock=CLOCK_TYPE, texts=CLOCK),
        use("novel", x=TD, below=0.3, clock=CLOCK_TYPE, texts=CLOCK, reference=_novel),
    ]  # fmt: skip


def _means(t: Tensors) -> Tensor:
    return torch.stack([part.mean(1) for part in t["x"].split(3, dim=1)], dim=1)


def _members(t: Tensors) -> Tensor:
    found = (t["among"].sort(-1).values.unsqueeze(-1) * 2 + torch.arange(2)).flatten(-2)
    return torch.where(found < LENGTH, found, -1)


def _rows(t: Tensors) -> Tensor:
    return torch.stack([x[i] for x, i in zip(t["x"], t["columns"], strict=True)])


def _picked(t: Tensors) -> Tensor:
    return t["columns"].gather(-1, t["pick"])


def _some(t: Tensors) -> Tensors:
    """Choose different keys, later ones and none among them."""
    kind_ = t["select"].shape
    order = torch.rand(*kind_[:-1], LENGTH).argsort(-1)[..., : kind_[-1]]
    return {**t, "select": torch.where(torch.rand(kind_) < 0.2, -1, order)}


def _some_blocks(t: Tensors) -> Tensors:
    return {**t, "select": torch.randint(-1, (LENGTH + 1) // 2, t["select"].shape)}


def _weights(t: Tensors) -> Tensor:
    """Return the weights of all keys, (B, H, T, S)."""
    k = t["k"].repeat_interleave(2, dim=2)
    scores = torch.einsum("bthk,bshk->bhts", t["q"], k) / 2**0.5
    chosen = (t["select"].unsqueeze(-1) == torch.arange(LENGTH)).any(2)
    chosen = chosen & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    masked = scores.masked_fill(chosen.unsqueeze(1).logical_not(), -torch.inf)
    return masked.softmax(-1).nan_to_num(0.0)


def _attended(t: Tensors) -> Tensor:
    return torch.einsum("bhts,bshv->bthv", _weights(t), t["v"].repeat_interleave(2, dim=2))


def _shares(t: Tensors) -> Tensor:
    mean = _weights(t).mean(1).float()
    own = torch.arange(LENGTH).view(1, -1, 1)
    there = (t["select"] >= 0) & (t["select"] <= own)
    return torch.where(there, mean.gather(-1, t["select"].clamp_min(0)), 0.0)


def _held(t: Tensors) -> Tensor:
    y = [t["x"][:, 0]]
    for i in range(1, LENGTH):
        y.append(torch.where(t["when"][:, i, None], t["x"][:, i], y[-1]))
    return torch.stack(y, dim=1)


def _novel(t: Tensors) -> Tensor:
    found = torch.zeros(t["x"].shape[:2], dtype=torch.bool)
    for row, x in enumerate(t["x"]):
        last = None
        for i, vector in enumerate(x):
            if last is None or torch.cosine_similarity(vector, last, dim=0) < 0.3:
                found[row, i], last = True, vector
    return found
