"""Uses of reductions, running totals, softmax and normalisations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.ops.cases.base import (
    IDS,
    IJ,
    INTEGERS,
    KEY,
    MASK,
    QUERY,
    TD_MASK,
    some_true,
    use,
)
from tests.unit.ops.harness import (
    ROW,
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
)
from tokdsl.ops.base import AxisRef


def reduction_cases() -> list[Case]:
    """Return reductions over axes, tokens, the batch and everything, masked and not."""
    cases = []
    plain: dict[str, Callable[..., Tensor]] = {
        "sum": torch.sum,
        "mean": torch.mean,
        "max": torch.amax,
        "min": torch.amin,
        "logsumexp": torch.logsumexp,
        "norm": torch.linalg.vector_norm,
        "variance": lambda x, dim: x.var(dim=dim, correction=0),
    }
    for name, f in plain.items():
        found = [
            use(name, x=TDE, over=["d"], reference=lambda t, f=f: f(t["x"], dim=2)),
            use(name, x=TDE, over=["d", "e"], reference=lambda t, f=f: f(t["x"], dim=(2, 3))),
            use(name, x=TD, over=["T"], valid=VALID, reference=lambda t, f=f: f(t["x"], dim=1)),
            use(
                name,
                x=TDE,
                over=["batch", "T"],
                valid=VALID,
                reference=lambda t, f=f: f(t["x"], dim=(0, 1)),
            ),
            use(
                name, x=TD, over=["*"], valid=VALID, reference=lambda t, f=f: f(t["x"], dim=(0, 1))
            ),
            use(name, x=TD, valid=VALID, reference=lambda t, f=f: f(t["x"], dim=(0, 1, 2))),
            use(name, x=kind(T), valid=VALID, reference=lambda t, f=f: f(t["x"], dim=(0, 1))),
            use(name, x=VECTOR, reference=lambda t, f=f: f(t["x"], dim=0)),
            use(name, x=ROW, over=["batch"], reference=lambda t, f=f: f(t["x"], dim=0)),
            use(name, x=TD, over=["T"], where=MASK, make=some_true),
            use(name, x=TD, over=["d"], where=kind(T, d, e, dtype="bool"), make=some_true),
            use(name, x=IJ, over=["j"], valid=kind(KEY, dtype="bool")),
        ]
        cases += found if name in ("sum", "mean", "max") else found[1:5]
    cases += [
        use("sum", x=MASK, over=["T"], valid=VALID, reference=lambda t: t["x"].sum(1)),
        use("sum", x=INTEGERS, over=["d"], reference=lambda t: t["x"].sum(2)),
        use("sum", x=TD, over=["T"], where=MASK, reference=_masked_sum),
        use("mean", x=INTEGERS, over=["d"], reference=lambda t: t["x"].float().mean(2)),
        use("mean", x=MASK, valid=VALID, reference=lambda t: t["x"].float().mean()),
        use("mean", x=TD, over=["T"], where=MASK, make=some_true, reference=_masked_mean),
        use(
            "mean", x=TD, where=TD_MASK, valid=VALID, reference=lambda t: t["x"][t["where"]].mean()
        ),
        use("max", x=INTEGERS, over=["T"], valid=VALID, reference=lambda t: t["x"].amax(1)),
        use("min", x=INTEGERS, over=["T"], where=TD_MASK, make=some_true),
        use("variance", x=TD, over=["d"], correction=1, reference=lambda t: t["x"].var(2)),
        use("variance", x=TD, correction=1, valid=VALID, reference=lambda t: t["x"].var()),
        use("prod", x=TDE, over=["d"], reference=lambda t: t["x"].prod(2)),
        use(
            "prod", x=TDE, over=["T", "e"], valid=VALID, reference=lambda t: t["x"].prod(3).prod(1)
        ),
        use("prod", x=TD, valid=VALID, reference=lambda t: t["x"].prod()),
        use("any", x=TD_MASK, over=["d"], reference=lambda t: t["x"].any(2)),
        use("any", x=TD_MASK, over=["batch", "T"], valid=VALID),
        use("all", x=TD_MASK, valid=VALID, reference=lambda t: t["x"].all()),
        use("all", x=TD_MASK, over=["T"], where=MASK),
        use("count", x=TD_MASK, over=["d"], reference=lambda t: t["x"].sum(2)),
        use("argmax", x=TD, over=["d"], reference=lambda t: t["x"].argmax(2)),
        use("argmax", x=TD, over=["T"], valid=VALID, reference=lambda t: t["x"].argmax(1)),
        use("argmin", x=TD, over=["d"], where=TD_MASK, make=some_true),
        use("argmin", x=INTEGERS, over=["d"], reference=lambda t: t["x"].argmin(2)),
        use("cumsum", x=TD, over=AxisRef("d"), reference=lambda t: t["x"].cumsum(2)),
        use("cumsum", x=TD, over=AxisRef("T"), valid=VALID, reference=lambda t: t["x"].cumsum(1)),
        use("cumsum", x=IDS, over=AxisRef("T"), valid=VALID, reference=lambda t: t["x"].cumsum(1)),
        use("cumulative_product", x=TD, over=AxisRef("d"), reference=lambda t: t["x"].cumprod(2)),
        use(
            "cumulative_product",
            x=kind(d, T),
            over=AxisRef("T"),
            valid=VALID,
            reference=lambda t: t["x"].cumprod(2),
        ),
        use("cumulative_max", x=TD, over=AxisRef("d"), reference=lambda t: t["x"].cummax(2)[0]),
        use(
            "cumulative_max",
            x=TD,
            over=AxisRef("T"),
            valid=VALID,
            reference=lambda t: t["x"].cummax(1)[0],
        ),
    ]
    return cases


def _masked_sum(t: Tensors) -> Tensor:
    return torch.einsum("btd,bt->bd", t["x"], t["where"].to(t["x"]))


def _masked_mean(t: Tensors) -> Tensor:
    return _masked_sum(t) / t["where"].sum(1, keepdim=True)


def row_cases() -> list[Case]:
    """Return softmax and its relatives, and normalisations."""
    over, scale = ["d"], kind(d, batched=False)
    return [
        use("softmax", x=TDE, over=over, reference=lambda t: t["x"].softmax(2)),
        use("softmax", x=TDE, over=["d", "e"], reference=_softmax_pair),
        use("softmax", x=TD, over=["T"], valid=VALID, reference=lambda t: t["x"].softmax(1)),
        use("softmax", x=TD, over=over, where=TD_MASK, reference=_masked_softmax),
        use("softmax", x=kind(T, axis("one", 1)), over=["one"]),
        use("softmax", x=IJ, over=["j"], where=kind(KEY, QUERY, dtype="bool"), make=some_true),
        use("log_softmax", x=TDE, over=over, reference=lambda t: t["x"].log_softmax(2)),
        use("log_softmax", x=TDE, over=["d", "e"], reference=lambda t: _softmax_pair(t).log()),
        use("log_softmax", x=TD, over=["T"], valid=VALID),
        use("sparsemax", x=TDE, over=over, reference=lambda t: _simplex(t["x"].movedim(2, -1))),
        use("entmax15", x=TD, over=over, reference=_entmax),
        use("sparsemax", x=kind(T, axis("one", 1)), over=["one"]),
        use("normalize", x=TDE, over=over, reference=lambda t: F.normalize(t["x"], dim=2)),
        use("normalize", x=TDE, over=["d", "e"], reference=_unit),
        use("rms_normalize", x=TD, over=over, scale=scale, reference=_rms),
        use("rms_normalize", x=TD, over=over, reference=_rms),
        use("rms_normalize", x=TDE, over=over, eps=1e-3, scale=scale),
        use("rms_normalize", x=TDE, over=["d", "e"], scale=scale),
        use("rms_normalize", x=scale, over=over, scale=scale),
        use(
            "rms_normalize",
            x=TD.with_dtype("bf16"),
            over=over,
            scale=scale.with_dtype("f32"),
            reference=_rms,
        ),
        use("layer_normalize", x=TD, over=over, scale=scale, bias=scale, reference=_layer_norm),
        use("layer_normalize", x=TD, over=over, reference=_layer_norm),
        use("layer_normalize", x=TD, over=over, bias=scale, reference=_layer_norm),
        use("layer_normalize", x=TDE, over=over, scale=scale, reference=_layer_norm_middle),
        use("layer_normalize", x=kind(T, axis("one", 1)), over=["one"]),
        use("layer_normalize", x=TD, over=["T"]),
    ]


def _softmax_pair(t: Tensors) -> Tensor:
    return t["x"].flatten(2).softmax(-1).view_as(t["x"])


def _masked_softmax(t: Tensors) -> Tensor:
    weights = t["x"].exp() * t["where"]
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)


def _simplex(x: Tensor) -> Tensor:
    """Project by bisection on the threshold: another algorithm than the one under test."""
    low, high = x.amin(-1, keepdim=True) - 1, x.amax(-1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        enough = (x - middle).clamp(min=0).sum(-1, keepdim=True) > 1
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return (x - low).clamp(min=0).movedim(-1, 2) if x.dim() > 3 else (x - low).clamp(min=0)


def _entmax(t: Tensors) -> Tensor:
    x = t["x"].double() / 2
    low, high = x.amax(-1, keepdim=True) - 1, x.amax(-1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        enough = (x - middle).clamp(min=0).square().sum(-1, keepdim=True) > 1
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return (x - low).clamp(min=0).square().to(t["x"])


def _unit(t: Tensors) -> Tensor:
    return F.normalize(t["x"].flatten(2), dim=-1).view_as(t["x"])


def _rms(t: Tensors) -> Tensor:
    x = t["x"]
    wide = x.double() if x.dtype == torch.double else x.float()
    y = (wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()).to(x.dtype)
    return y * t["scale"] if "scale" in t else y


def _layer_norm(t: Tensors) -> Tensor:
    return F.layer_norm(t["x"], (4,), t.get("scale"), t.get("bias"))


def _layer_norm_middle(t: Tensors) -> Tensor:
    return F.layer_norm(t["x"].movedim(2, -1), (4,), t["scale"]).movedim(-1, 2)
