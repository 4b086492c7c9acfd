"""Other implementations of what the launches of ``tests/kernels/launches`` compute.

Each is timed as our kernels are, on tensors of the same shapes as the launch it belongs to. What a
peer does is what the named part of the launch's kernels do: forward, or forward and backward.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels import Row, recorded, seconds
from tests.fixtures.kernels import load_kernels
from tests.kernels.experts_pieces import GATED

#: forward alone, or forward and backward
Make = Callable[[torch.dtype], Callable[[], object]]


@dataclass(frozen=True)
class Peer:
    """An implementation.

    Attributes:
        make: gives the call to time.
        forward: whether it is compared with the kernels of the forward pass alone.
        needs: a package that may be missing.
        ours: calls our kernels, where that is not the launch of this name.
    """

    template: str
    launch: str
    name: str
    make: Make
    forward: bool = False
    needs: str = "torch"
    ours: Callable[[torch.dtype], object] | None = None

    @property
    def is_here(self) -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec(self.needs) is not None


def trained(result: Callable[[], Any], given: list[Tensor]) -> Callable[[], object]:
    """Return a call of a forward pass and its backward pass."""

    def call() -> object:
        found = result()
        found = found[0] if isinstance(found, tuple) else found
        return torch.autograd.grad(found, given, torch.ones_like(found))

    return call


def operands(
    dtype: torch.dtype, queries: int, keys: int, heads: tuple[int, int, int], is_trained: bool
) -> Any:
    """Return queries, keys and values; heads: of queries, of keys, and their width.

    Shape: (1, H, I, D), (1, G, J, D), (1, G, J, D)
    """
    shapes = (1, heads[0], queries, heads[2]), *[(1, heads[1], keys, heads[2])] * 2
    return [torch.randn(s, dtype=dtype).requires_grad_(is_trained) for s in shapes]


# --------------------------------------------------------------------------- attention


def library_attention(
    dtype: torch.dtype, queries: int, keys: int, heads: tuple[int, int, int], is_trained: bool
) -> Callable[[], object]:
    """Return torch's own attention; the last tokens of a text, each sees those before it."""
    q, k, v = operands(dtype, queries, keys, heads, is_trained)
    is_causal = queries == keys
    attend = partial(F.scaled_dot_product_attention, q, k, v, is_causal=is_causal, enable_gqa=True)
    return trained(attend, [q, k, v]) if is_trained else attend


def compiled_attention(
    dtype: torch.dtype,
    queries: int,
    keys: int,
    heads: tuple[int, int, int],
    is_trained: bool,
    scored: bool = False,
) -> Callable[[], object]:
    """Return torch's attention that compiles a score and a mask; `scored`: those of "own score"."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = operands(dtype, queries, keys, heads, is_trained)
    shapes = (heads[0],), (heads[0], queries), (heads[0], keys)
    rate, past, at = (torch.zeros(s).requires_grad_(is_trained) for s in shapes)

    def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (j <= i + keys - queries) | (j < 16) if scored else j <= i + keys - queries

    def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return s - rate[h] * (i - j).abs() + past[h, i] - at[h, j]

    mask = create_block_mask(seen, None, None, queries, keys, device=q.device)
    run = torch.compile(flex_attention)
    more = {"score_mod": score} if scored else {}
    attend = partial(run, q, k, v, block_mask=mask, enable_gqa=True, **more)
    given = [q, k, v, rate, past, at] if scored else [q, k, v]
    return trained(attend, given) if is_trained else attend


# --------------------------------------------------------------------------- experts


#: mixtures by name: tokens, experts, choices of a token, width, hidden width
MIXTURES = {"128 small": (8192, 128, 8, 2048, 768), "8 large": (8192, 8, 2, 4096, 14336)}
Mixture = tuple[int, int, int, int, int]


def own_experts(mixture: Mixture, dtype: torch.dtype) -> object:
    """Call our kernels, forward and backward."""
    tokens, experts, slots, width, hidden = mixture
    run = load_kernels("experts", name="gated_experts", activation=GATED).gated_experts
    x = torch.randn(tokens, width, dtype=dtype).requires_grad_()
    pick = torch.rand(tokens, experts).topk(slots).indices
    share = torch.rand(tokens, slots, dtype=dtype).requires_grad_()
    shapes = (hidden, width), (hidden, width), (width, hidden)
    weights = [0.02 * torch.randn(experts, *shape, dtype=dtype) for shape in shapes]
    weights = [weight.requires_grad_() for weight in weights]
    given: list[Tensor | None] = [x for weight in weights for x in (weight, None)]
    y = run(x, pick, share, given)
    return torch.autograd.grad(y, [x, share, *weights], torch.ones_like(y))


def grouped_experts(mixture: Mixture, dtype: torch.dtype) -> Callable[[], object]:
    """Return the experts of Hugging Face transformers on torch's grouped product."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    tokens, experts, slots, width, hidden = mixture
    config = MixtralConfig(
        hidden_size=width, intermediate_size=hidden, num_local_experts=experts, hidden_act="silu"
    )
    config._experts_implementation = "grouped_mm"
    layer = MixtralExperts(config).to(dtype)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    x = torch.randn(tokens, width, dtype=dtype).requires_grad_()
    pick = torch.rand(tokens, experts).topk(slots).indices
    share = torch.rand(tokens, slots, dtype=dtype).requires_grad_()
    return trained(lambda: layer(x, pick, share), [x, share, *layer.parameters()])


# --------------------------------------------------------------------------- linear attention


#: functions of flash-linear-attention that compute what a launch does
LINEAR = {
    "one key": "simple_gla.chunk_simple_gla",
    "gated": "gla.chunk_gla",
}


def chunked(function: str, launch: str, dtype: torch.dtype) -> Callable[[], object]:
    """Return linear attention of flash-linear-attention with the sizes of a launch."""
    sizes = importlib.import_module("tests.kernels.launches.linear_attention").SIZES
    batch, length, _, heads, keys, width, gates = sizes[launch]
    family, name = function.split(".")
    run = getattr(importlib.import_module(f"fla.ops.{family}"), name)
    q, k = (torch.randn(batch, length, heads, keys, dtype=dtype) for _ in range(2))
    v = torch.randn(batch, length, heads, width, dtype=dtype)
    given = [x.requires_grad_() for x in (q, k, v)]
    more = {}
    if gates:
        shape = (batch, length, heads, gates) if gates > 1 else (batch, length, heads)
        more["g"] = (-torch.rand(shape) / 16).requires_grad_()
    return trained(lambda: run(q, k, v, **more), [*given, *more.values()])


def _peers() -> list[Peer]:
    training, decoding = (2048, 2048, (8, 2, 128)), (1, 4096, (32, 8, 128))
    own = 2048, 2048, (8, 8, 64)
    sdpa, flex = "scaled_dot_product_attention", "flex_attention compiled"
    found = []
    for name, make in ((sdpa, library_attention), (flex, compiled_attention)):
        for sizes, launch in ((training, "training"), (decoding, "decoding")):

            def whole(d: torch.dtype, make: Any = make, sizes: Any = sizes) -> Any:
                return make(d, *sizes, is_trained=sizes[0] > 1)

            found.append(Peer("attend", launch, name, whole, forward=sizes[0] == 1))

        def first(d: torch.dtype, make: Any = make) -> Any:
            return make(d, *training, is_trained=False)

        found.append(Peer("attend", "training", name, first, forward=True))
    scored = partial(compiled_attention, is_trained=True, scored=True)
    found.append(Peer("attend", "own score", flex, lambda d: scored(d, *own)))
    for mixture, shape in MIXTURES.items():
        experts: Make = partial(grouped_experts, shape)
        ours = partial(own_experts, shape)
        name = "Hugging Face experts, grouped_mm"
        found.append(Peer("experts", mixture, name, experts, needs="transformers", ours=ours))
    for launch, function in LINEAR.items():
        linear: Make = partial(chunked, function, launch)
        name = f"flash-linear-attention {function}"
        found.append(Peer("linear_attention", launch, name, linear, needs="fla"))
    return found


PEERS = _peers()


# --------------------------------------------------------------------------- measurement


def measure(template: str, dtype: torch.dtype, repetitions: int) -> list[Row]:
    """Return the rows of all peers of a template that are here, with their ratio to our kernels."""
    rows = []
    module = importlib.import_module(f"tests.kernels.launches.{template}")
    kind = str(dtype).removeprefix("torch.")
    for peer in PEERS:
        if peer.template != template or not peer.is_here:
            continue
        with torch.device("cuda"), recorded() as launched:
            (peer.ours or module.launches()[peer.launch])(dtype)
        own = [x for x in launched if not (peer.forward and x.is_backward)]

        def ours(own: Any = own) -> None:
            for each in own:
                each.again()

        with torch.device("cuda"), torch.set_grad_enabled(not peer.forward):
            call = peer.make(dtype)
            theirs = seconds(call, repetitions)
        name = f"{peer.name} ({'forward' if peer.forward else 'forward and backward'})"
        ratio = theirs / seconds(ours, repetitions)
        rows.append(Row(template, peer.launch, name, kind, theirs * 1e3, ratio=ratio))
    return rows


def missing() -> list[str]:
    """Return a line for every package of a peer that is not installed."""
    absent = {peer.needs: None for peer in PEERS if not peer.is_here}
    return [f"{name} is not installed" for name in absent]
