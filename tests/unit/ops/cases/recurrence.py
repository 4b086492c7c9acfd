"""Uses of the recurrences with a matrix as state."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.unit.ops.cases.base import use
from tests.unit.ops.harness import LENGTH, VALID, Case, T, Tensors, axis, kind
from tokdsl.ops.base import AxisRef

heads, groups, key, value = axis("heads", 4), axis("groups", 2), axis("key", 3), axis("value", 5)


def recurrence_cases() -> list[Case]:
    """Return linear attention without decay, with one per head, and with one per channel."""
    shared, own = kind(T, groups, key), kind(T, heads, key)
    values = kind(T, heads, value)
    plain = {"valid": VALID, "reference": _states}
    return [
        use("linear_attention", q=own, k=own, v=values, **plain),
        use("linear_attention", q=shared, k=shared, v=values, log_decay=kind(T, heads), **plain),
        use("linear_attention", q=shared, k=own, v=values, log_decay=kind(T, groups), **plain),
        use("linear_attention", q=own, k=own, v=values, log_decay=own, **plain),
        use(
            "linear_attention",
            q=own,
            k=own,
            v=values,
            log_decay=kind(heads, batched=False),
            **plain,
        ),
        use(
            "linear_attention",
            q=kind(key, T),
            k=kind(T, key),
            v=kind(value, T),
            log_decay=kind(T),
            over=AxisRef("key"),
            valid=VALID,
        ),
    ]


def _states(t: Tensors) -> Tensor:
    def share(x: Tensor) -> Tensor:
        return x.repeat_interleave(4 // x.shape[2], dim=2)

    q, k, v = share(t["q"]), share(t["k"]), t["v"]
    decay = t.get("log_decay", torch.zeros(4))
    if decay.dim() == 1:
        decay = decay.expand(2, LENGTH, 4)
    if decay.dim() == 3:
        decay = decay.unsqueeze(-1)
    decay = share(decay).exp().unsqueeze(-1)
    state, found = torch.zeros(2, 4, 3, 5).to(v), []
    for i in range(LENGTH):
        state = decay[:, i] * state + k[:, i].unsqueeze(-1) * v[:, i].unsqueeze(-2)
        found.append((q[:, i].unsqueeze(-1) * state).sum(-2))
    return torch.stack(found, 1)
