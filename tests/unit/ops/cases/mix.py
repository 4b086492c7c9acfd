"""Uses of contractions, convolutions, recurrences, losses and noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.ops.cases.base import (
    IDS,
    INTEGERS,
    KEY,
    MASK,
    QUERY,
    TD_MASK,
    some_true,
    use,
)
from tests.unit.ops.harness import (
    LENGTH,
    ROW,
    TD,
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


def mixing_cases() -> list[Case]:
    """Return contractions, convolutions, recurrences, Fourier mixing, losses and noise."""
    heads, inner, out = axis("heads", 2), axis("inner", 4), axis("out", 5)
    q, k = kind(QUERY, heads, inner), kind(KEY, heads, inner)
    weight = kind(d, out, batched=False)
    back = kind(out, d, batched=False)
    own = {"weight": (4, 1, 3), "bias": (4,)}
    return [
        use(
            "dot",
            x=q,
            y=k,
            over=["inner"],
            reference=lambda t: torch.einsum("bihd,bjhd->bihj", t["x"], t["y"]),
        ),
        use(
            "dot",
            x=TD,
            y=weight,
            over=["d"],
            reference=lambda t: torch.einsum("btd,dn->btn", t["x"], t["y"]),
        ),
        use(
            "dot",
            x=TD,
            y=back,
            over=["d"],
            reference=lambda t: torch.einsum("btd,nd->btn", t["x"], t["y"]),
        ),
        use("dot", x=TD, y=VECTOR, over=["d"], reference=lambda t: (t["x"] * t["y"]).sum(-1)),
        use("dot", x=TD, y=TD, over=["d"], reference=lambda t: (t["x"] * t["y"]).sum(-1)),
        use("dot", x=TD, y=TD, over=["T", "d"], reference=lambda t: (t["x"] * t["y"]).sum((1, 2))),
        use(
            "dot",
            x=TD,
            y=kind(T, e),
            over=["T"],
            reference=lambda t: torch.einsum("btd,bte->bde", t["x"], t["y"]),
        ),
        use("dot", x=VECTOR, y=weight, over=["d"], reference=lambda t: t["x"] @ t["y"]),
        use(
            "dot", x=INTEGERS, y=INTEGERS, over=["d"], reference=lambda t: (t["x"] * t["y"]).sum(-1)
        ),
        use("dot", x=TD, y=INTEGERS, over=["d"], reference=lambda t: (t["x"] * t["y"]).sum(-1)),
        use("conv1d", x=TD, kernel=Dim.of(3), valid=VALID, parameters=own),
        use(
            "conv1d",
            x=TD,
            kernel=Dim.of(3),
            dilation=Dim.of(2),
            bias=False,
            valid=VALID,
            parameters={"weight": (4, 1, 3)},
        ),
        use(
            "conv1d",
            x=TD,
            channels=new("out", 6),
            kernel=Dim.of(2),
            groups=Dim.of(2),
            valid=VALID,
            parameters={"weight": (6, 2, 2), "bias": (6,)},
        ),
        use(
            "conv1d",
            x=TD,
            kernel=Dim.of(4),
            causal=False,
            valid=VALID,
            parameters={"weight": (4, 1, 4), "bias": (4,)},
        ),
        use(
            "conv1d", x=kind(d, T), over=AxisRef("d"), kernel=Dim.of(3), valid=VALID, parameters=own
        ),
        use("linear_recurrence", a=TD, b=TD, valid=VALID, reference=_recurrence),
        use("linear_recurrence", a=VECTOR, b=TD, valid=VALID, reference=_recurrence),
        use("linear_recurrence", a=kind(T), b=TD, valid=VALID, reference=_recurrence_rows),
        use("linear_recurrence", a=kind(e, T), b=kind(e, T), over=AxisRef("T"), valid=VALID),
        use("linear_recurrence", a=VECTOR, b=kind(e, d), over=AxisRef("e"), reference=_in_slots),
        use("linear_recurrence", a=VECTOR, b=kind(e, d, batched=False), over=AxisRef("e")),
        use(
            "dot",
            x=TD,
            y=kind(T, e),
            over=["T"],
            valid=VALID,
            reference=lambda t: torch.einsum("btd,bte->bde", t["x"], t["y"]),
        ),
        use("examples", x=ROW, axis=AxisRef("other"), reference=lambda t: t["x"]),
        use("ema", x=TD, decay=0.75, valid=VALID, reference=_average),
        use("fft_real", x=TD, over=["T", "d"], valid=VALID, reference=_fourier),
        use("fft_real", x=TD, over=["d"], reference=lambda t: torch.fft.fft(t["x"], dim=2).real),
        use("cross_entropy", logits=TD, targets=IDS, reference=_cross_entropy),
        use("cross_entropy", logits=TD, targets=IDS, label_smoothing=0.1, make=_ignore_some),
        use("cross_entropy", logits=kind(d, T), targets=IDS, over=AxisRef("d")),
        use("cross_entropy", logits=ROW, targets=kind(dtype="i64")),
        use(
            "cross_entropy_each",
            logits=TD,
            targets=IDS,
            make=_ignore_some,
            reference=_cross_entropy_each,
        ),
        use("mse", x=TD, y=TD, valid=VALID, reference=lambda t: F.mse_loss(t["x"], t["y"])),
        use("mse", x=TD, y=VECTOR, reference=lambda t: (t["x"] - t["y"]).pow(2).mean()),
        use(
            "l1",
            x=TD,
            y=TD,
            where=MASK,
            make=some_true,
            reference=lambda t: (t["x"] - t["y"])[t["where"]].abs().mean(),
        ),
        use("binary_cross_entropy", x=TD, y=TD_MASK, reference=_binary),
        use("binary_cross_entropy", x=TD, y=TD_MASK, valid=VALID, reference=_binary),
        use(
            "binary_cross_entropy",
            x=TD,
            y=TD,
            make=lambda t: {**t, "y": t["y"].sigmoid()},
            reference=_binary,
        ),
        use(
            "kl_divergence",
            log_p=TD,
            log_q=TD,
            over=["d"],
            make=_log_probabilities,
            reference=_divergence,
        ),
        use("dropout", x=TD, p=0.5, reference=lambda t: t["x"]),
        use("gumbel_noise", like=TD, reference=lambda t: t["like"] * 0),
        use(
            "uniform_noise",
            like=TD,
            low=-1.0,
            high=2.0,
            reference=lambda t: torch.full_like(t["like"], 0.5),
        ),
        use("normal_noise", like=TD, reference=lambda t: t["like"] * 0),
    ]


def _recurrence(t: Tensors) -> Tensor:
    a, b = torch.broadcast_tensors(t["a"], t["b"])
    h, found = torch.zeros_like(b[:, 0]), []
    for i in range(LENGTH):
        h = a[:, i] * h + b[:, i]
        found.append(h)
    return torch.stack(found, 1)


def _in_slots(t: Tensors) -> Tensor:
    h, found = torch.zeros_like(t["b"][:, 0]), []
    for b in t["b"].unbind(1):
        h = t["a"] * h + b
        found.append(h)
    return torch.stack(found, 1)


def _recurrence_rows(t: Tensors) -> Tensor:
    return _recurrence({"a": t["a"].unsqueeze(-1), "b": t["b"]})


def _average(t: Tensors) -> Tensor:
    return _recurrence({"a": torch.tensor(0.75).to(t["x"]), "b": 0.25 * t["x"]})


def _fourier(t: Tensors) -> Tensor:
    return torch.fft.fft(torch.fft.fft(t["x"], dim=-1), dim=1).real


def _ignore_some(t: Tensors) -> Tensors:
    targets = t["targets"].clone()
    targets[:, ::3] = -100
    return {**t, "targets": targets}


def _cross_entropy(t: Tensors) -> Tensor:
    chosen = t["logits"].log_softmax(-1).gather(-1, t["targets"].unsqueeze(-1))
    return -chosen.mean()


def _cross_entropy_each(t: Tensors) -> Tensor:
    known = t["targets"] >= 0
    chosen = t["logits"].log_softmax(-1).gather(-1, t["targets"].clamp(min=0).unsqueeze(-1))
    return torch.where(known, -chosen.squeeze(-1), 0.0)


def _binary(t: Tensors) -> Tensor:
    x, y = t["x"], t["y"].to(t["x"])
    return -(y * F.logsigmoid(x) + (1 - y) * F.logsigmoid(-x)).mean()


def _log_probabilities(t: Tensors) -> Tensors:
    return {name: value.log_softmax(-1) for name, value in t.items()}


def _divergence(t: Tensors) -> Tensor:
    return (t["log_p"].exp() * (t["log_p"] - t["log_q"])).sum(-1)
