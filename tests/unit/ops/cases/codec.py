"""Uses of convolutions between clocks, of the LSTM and of buffers that change."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.ops.cases.base import use
from tests.unit.ops.harness import TD, VALID, VECTOR, Case, T, Tensors, axis, kind, new, tokens
from tokdsl.ops.base import AxisRef
from tokdsl.ops.clock import coarser
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis

HALF = coarser(T.clock, Dim.of(2)) if T.clock is not None else None
COARSE = tokens("T", HALF) if HALF is not None else T


def codec_cases() -> list[Case]:
    """Return convolutions with strides, mirrored ends and given filters, and LSTMs."""
    out, taps, group = axis("out", 6), axis("taps", 3), axis("group", 2)
    filters = kind(out, axis("inner", 4), taps, batched=False)
    grouped = kind(out, group, taps, batched=False)
    back = kind(axis("inner", 4), out, axis("taps", 4), batched=False)
    plain = {"weight": (6, 4, 4), "bias": (6,)}
    turned = {"weight": (4, 6, 4), "bias": (6,)}
    cells = {"weight_ih": (12, 4), "weight_hh": (12, 3), "bias_ih": (12,), "bias_hh": (12,)}
    coarse = kind(COARSE, Axis("d", Dim.of(4)))
    return [
        use("conv1d", x=TD, filter=filters, valid=VALID, reference=_causal),
        use("conv1d", x=TD, filter=grouped, groups=Dim.of(2), valid=VALID),
        use("conv1d", x=TD, kernel=Dim.of(3), padding="reflect", valid=VALID,
            parameters={"weight": (4, 1, 3), "bias": (4,)}),
        use("conv1d", x=TD, channels=new("out", 6), kernel=Dim.of(3), dilation=Dim.of(2),
            causal=False, padding="reflect", parameters={"weight": (6, 4, 3), "bias": (6,)}),
        use("conv1d", x=TD, channels=new("out", 6), kernel=Dim.of(4), stride=Dim.of(2),
            valid=VALID, parameters=plain),
        use("conv1d", x=TD, channels=new("out", 6), kernel=Dim.of(4), stride=Dim.of(2),
            causal=False, valid=VALID, parameters=plain),
        use("conv1d", x=TD, channels=new("out", 6), kernel=Dim.of(4), stride=Dim.of(2),
            padding="reflect", valid=VALID, parameters=plain),
        use("conv1d", x=kind(axis("d", 4), T), over=AxisRef("d"), channels=new("out", 6),
            kernel=Dim.of(4), stride=Dim.of(2), causal=False, padding="reflect",
            valid=VALID, parameters=plain),
        use("conv_transpose1d", x=TD, channels=new("out", 6), valid=VALID, parameters=turned),
        use("conv_transpose1d", x=TD, channels=new("out", 6), causal=False, valid=VALID,
            parameters=turned),
        use("conv_transpose1d", x=TD, filter=back, valid=VALID, reference=_back),
        use("conv_transpose1d", x=coarse, like=TD, channels=new("out", 6), valid=VALID,
            parameters=turned),
        use("conv_transpose1d", x=coarse, like=TD, channels=new("out", 6), causal=False,
            valid=VALID, parameters=turned),
        use("lstm", x=TD, channels=new("out", 3), valid=VALID, parameters=cells),
        use("lstm", x=kind(axis("d", 4), T), over=AxisRef("d"), bias=False, valid=VALID,
            parameters={"weight_ih": (16, 4), "weight_hh": (16, 4)}),
        use("update", buffer=VECTOR, value=VECTOR, reference=lambda t: t["buffer"]),
        use("update", buffer=VECTOR, value=VECTOR, at="step", reference=lambda t: t["buffer"]),
        use("update", buffer=VECTOR, value=VECTOR, until="step", reference=lambda t: t["buffer"]),
        use("across_ranks", x=VECTOR, reference=lambda t: t["x"]),
    ]  # fmt: skip


def _causal(t: Tensors) -> Tensor:
    taps = t["filter"].shape[2]
    x = F.pad(t["x"], (0, 0, taps - 1, 0))
    return torch.einsum("btck,ock->bto", x.unfold(1, taps, 1), t["filter"])


def _back(t: Tensors) -> Tensor:
    x, weight = t["x"], t["filter"]
    y = x.new_zeros(x.shape[0], 2 * x.shape[1] + 2, weight.shape[1])
    for n in range(x.shape[1]):
        y[:, 2 * n : 2 * n + 4] += torch.einsum("bc,cok->bko", x[:, n], weight)
    return y[:, : 2 * x.shape[1]]
