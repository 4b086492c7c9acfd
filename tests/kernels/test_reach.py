"""What a condition comes to over tiles: all that is seen is read, and hardly anything more."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fixtures.kernels import DEVICE
from tokdsl.driver import build
from tokdsl.graph.program import Module, OpNode, Value
from tokdsl.lower.kernels.bounds import ENDS, Reach, TorchScalars, TritonScalars, reach
from tokdsl.ops import OPS, Op
from tokdsl.source import Span
from tokdsl.training.package import import_package
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, TensorType

SPAN = Span.__new__(Span)
POSITIONS = [TensorType((Axis(name, Dim.of(64)),), "i64") for name in "ts"]
#: what an expression is over whole matrices
Meaning = Callable[[Tensor, Tensor], Tensor]


# --------------------------------------------------------------------------- conditions


class Condition:
    """A condition that grows node by node, with what it means."""

    def __init__(self) -> None:
        self.module = Module("condition", "tile", SPAN)
        self.i, self.j = (Value(kind, SPAN, n) for kind, n in zip(POSITIONS, "ij", strict=True))
        self.module.inputs = [self.i, self.j]
        self.meaning: dict[int, Meaning] = {id(self.i): lambda i, j: i, id(self.j): lambda i, j: j}

    def node(self, name: str, meaning: Callable[..., Tensor], *values: Value, **more: Any) -> Value:
        """Add an operation."""
        names = ["x"] if len(values) == 1 else ["x", "y"]
        names = ["condition", *names] if len(values) == 3 else names[: len(values)]
        cls: type[Op] = OPS[name]
        op = cls(**dict(zip(names, (v.type for v in values), strict=True)), **more)
        kind = op.type()
        assert isinstance(kind, TensorType)
        made = Value(kind, SPAN)
        made.node = OpNode(values, (made,), SPAN, op=op, operands=tuple(names))
        self.module.nodes.append(made.node)
        parts = [self.meaning[id(v)] for v in values]
        self.meaning[id(made)] = lambda i, j: meaning(*(part(i, j) for part in parts))
        return made

    def number(self, value: int) -> Value:
        """Add a literal."""
        return self.node("literal", lambda: torch.tensor(value), value=Dim.of(value))

    def reached(self, result: Value, scalars: TorchScalars | TritonScalars) -> Reach | None:
        """Return what it comes to over tiles."""
        self.module.results = (result,)
        return reach(self.module, scalars)


ARITHMETIC = {"add": torch.add, "subtract": torch.sub, "multiply": torch.mul,
              "maximum": torch.maximum, "minimum": torch.minimum}  # fmt: skip
COMPARISONS = {"less": torch.lt, "less_equal": torch.le, "greater": torch.gt,
               "greater_equal": torch.ge, "equal": torch.eq, "not_equal": torch.ne}  # fmt: skip
JOINS = {"logical_and": torch.logical_and, "logical_or": torch.logical_or,
         "equal": torch.eq, "not_equal": torch.ne}  # fmt: skip


def number(c: Condition, dice: random.Random, depth: int) -> Value:
    """Return a random whole number."""
    if depth == 0 or dice.random() < 0.2:
        return dice.choice([c.i, c.j, c.number(dice.randint(-9, 40))])
    kind = dice.randrange(8)
    if kind < 4:
        name = dice.choice(list(ARITHMETIC))
        return c.node(name, ARITHMETIC[name], *(number(c, dice, depth - 1) for _ in "xy"))
    if kind == 4:
        name = dice.choice(["floor_divide", "remainder"])
        by = c.number(dice.randint(1, 9))
        return c.node(name, {"remainder": torch.remainder}.get(name, torch.floor_divide),
                      number(c, dice, depth - 1), by)  # fmt: skip
    if kind == 5:
        name = dice.choice(["abs", "negate"])
        return c.node(name, getattr(torch, name.replace("ate", "")), number(c, dice, depth - 1))
    if kind == 6:
        low, high = sorted(dice.randint(-5, 30) for _ in "xy")
        x = number(c, dice, depth - 1)
        return c.node("clamp", lambda x: x.clamp(low, high), x, min=float(low), max=float(high))
    parts = truth(c, dice, depth - 1), *(number(c, dice, depth - 1) for _ in "xy")
    return c.node("where", torch.where, *parts)


def truth(c: Condition, dice: random.Random, depth: int) -> Value:
    """Return a random truth value."""
    kind = dice.randrange(6) if depth else 0
    if kind < 3:
        name = dice.choice(list(COMPARISONS))
        return c.node(name, COMPARISONS[name], *(number(c, dice, depth) for _ in "xy"))
    if kind == 3:
        return c.node("logical_not", torch.logical_not, truth(c, dice, depth - 1))
    if kind == 4:
        return c.node("where", torch.where, *(truth(c, dice, depth - 1) for _ in "cxy"))
    name = dice.choice(list(JOINS))
    return c.node(name, JOINS[name], *(truth(c, dice, depth - 1) for _ in "xy"))


# --------------------------------------------------------------------------- their two forms


class C(int):
    """A number of a kernel: division and remainder go towards zero."""

    def __floordiv__(self, other: Any) -> C:
        return C(int(abs(int(self)) // other) * (1 if self >= 0 else -1))

    def __mod__(self, other: Any) -> C:
        return C(abs(int(self)) % other * (1 if self >= 0 else -1))

    def __add__(self, other: Any) -> C:
        return C(int(self) + other)

    def __sub__(self, other: Any) -> C:
        return C(int(self) - other)

    def __rsub__(self, other: Any) -> C:
        return C(other - int(self))

    def __mul__(self, other: Any) -> C:
        return C(int(self) * other)


KERNEL = SimpleNamespace(
    minimum=lambda x, y: C(min(x, y)),
    maximum=lambda x, y: C(max(x, y)),
    where=lambda c, x, y: C(x if c else y),
)


def ran(found: Reach, ends: tuple[int, ...], kernel: bool) -> tuple[bool, bool]:
    """Run the statements of one form at a tile."""
    kind: Callable[[int], Any] = C if kernel else torch.tensor
    names: dict[str, Any] = dict(zip(ENDS, map(kind, ends), strict=True))
    names |= {"tl": KERNEL, "torch": torch}
    for name, text in found.lines:
        names[name] = eval(text, names)
    return bool(eval(found.every, names)), bool(eval(found.some, names))


def tiles(dice: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield positions of queries and keys of tiles: in order, with gaps, in disorder."""
    for _ in range(6):
        i, j = (dice.randint(0, 60) + torch.arange(dice.choice([1, 3, 8, 16])) for _ in "ij")
        yield i, j
        yield i * dice.randint(1, 4), j * dice.randint(1, 16)
    yield torch.randint(60, (9,)), torch.randint(60, (12,))


@pytest.mark.parametrize("seed", range(400))
def test_no_pair_that_is_seen_is_left_out(seed: int) -> None:
    """Of conditions of all operations, over all kinds of tiles, in both forms."""
    dice, c = random.Random(seed), Condition()
    torch.manual_seed(seed)
    result = truth(c, dice, 3)
    forms = [
        c.reached(result, kind(("torch", "tl", *ENDS))) for kind in (TorchScalars, TritonScalars)
    ]
    assert (forms[0] is None) == (forms[1] is None)
    for i, j in tiles(dice):
        if forms[0] is None:
            continue
        ends = tuple(int(x) for x in (i.min(), i.max(), j.min(), j.max()))
        seen = c.meaning[id(result)](i[:, None], j[None]).expand(len(i), len(j))
        both = [ran(form, ends, at == 1) for at, form in enumerate(forms) if form]
        assert both[0] == both[1]
        every, some = both[0]
        assert some or not seen.any()
        assert seen.all() or not every


def test_most_conditions_say_something() -> None:
    told = 0
    for seed in range(100):
        c = Condition()
        told += c.reached(truth(c, random.Random(seed), 3), TorchScalars()) is not None
    assert told > 80


# --------------------------------------------------------------------------- the usual ones

FIRST, WINDOW, COARSE = 4, 64, 16
#: as it is written, so that it is no interval of offsets, and what it means
USUAL: dict[str, tuple[str, Meaning]] = {
    "causal": ("j * 3 // 3 <= i", lambda i, j: j <= i),
    "window": (f"j <= i and i * 3 // 3 - j < {WINDOW}", lambda i, j: (j <= i) & (i - j < WINDOW)),
    "first and window": (
        f"j <= i and (j < {FIRST} or i - j < {WINDOW})",
        lambda i, j: (j <= i) & ((j < FIRST) | (i - j < WINDOW)),
    ),
    "coarse": (f"(j + 1) * {COARSE} - 1 <= i", lambda i, j: (j + 1) * COARSE - 1 <= i),
    "chunks": (
        f"j <= i and i // {WINDOW} == j // {WINDOW}",
        lambda i, j: (j <= i) & (i // WINDOW == j // WINDOW),
    ),
    "prefix": ("j <= i or j < 40", lambda i, j: (j <= i) | (j < 40)),
    "blocks apart": (
        f"j <= i and (i // {WINDOW} - j // {WINDOW}) % 2 == 0",
        lambda i, j: (j <= i) & ((i // WINDOW - j // WINDOW) % 2 == 0),
    ),
}
SOURCE = """
attention own(x: [T, d]) -> [T, d] {{
  q = linear(x; heads: 2, head_dim: 4)
  k = {keys}(linear(x; kv_heads: 1, head_dim: 4){block})
  v = {keys}(linear(x; kv_heads: 1, head_dim: 4){block})
  linear(attend(q, k, v; mask = {mask}); d, over = [heads, head_dim])
}}
model m(d: int = 8) {{
  stage out(x: [T, d]) {{ own() }}
}}
"""


@cache
def package(mask: str, block: int = 0) -> Any:
    """Return the package of an attention with a mask, to blocks of tokens or to tokens."""
    folder = Path(mkdtemp())
    path = folder / "spec.tok"
    of = {"keys": "blocks" if block else "identity", "block": f"; {block}" if block else ""}
    path.write_text(SOURCE.format(mask=mask, **of), "utf-8")
    built = build(path, folder)
    assert built.directory is not None, [d.message() for d in built.report]
    assert not [r for r in built.regions if r.kernel == "attend" and r.reason]
    return import_package(built.directory)


def part(made: Any, name: str) -> Any:
    """Return a module of a package."""
    return import_module(f"{made.__name__}.{name}")


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("size", [16, 32, 64])
def test_usual_conditions_are_known_exactly(name: str, size: int) -> None:
    """Whatever lies in tiles of contiguous positions, as in a batch without padding."""
    text, meaning = USUAL[name]
    reached = part(package(f"|i, j| {text}"), "fused").own_reach
    i, j = torch.arange(256).view(-1, size), torch.arange(512).view(-1, size)
    every, some = reached(i.amin(1, True), i.amax(1, True), j.amin(1), j.amax(1))
    seen = meaning(i[:, None, :, None], j[None, :, None])  # tiles of queries, of keys, both
    assert torch.equal(some.expand(seen.shape[:2]), seen.flatten(2).any(-1))
    assert torch.equal(every.expand(seen.shape[:2]), seen.flatten(2).all(-1))


def test_nothing_is_said_of_what_depends_on_more_than_positions() -> None:
    made = package("|i, j| f32(i - j) < f32(4)")
    assert not hasattr(part(made, "fused"), "own_reach")


# --------------------------------------------------------------------------- work


class Work(TorchDispatchMode):
    """Counts the multiplications of batched products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count if it is a product."""
        if "bmm" in str(function):
            left, right = args[-2:]
            self.count += left.numel() * right.shape[-1]
        return function(*args, **(kwargs or {}))


def work(monkeypatch: pytest.MonkeyPatch, made: Any, length: int) -> tuple[int, int]:
    """Return the multiplications of a training step, and the pairs whose condition was asked."""
    asked = 0
    module = part(made, "model")
    plain = module.own_visible

    def visible(*operands: Tensor) -> Tensor:
        nonlocal asked
        found: Tensor = plain(*operands)
        asked += found.numel()
        return found

    torch.manual_seed(0)
    x = torch.randn(1, length, 8, requires_grad=True)
    with monkeypatch.context() as patch, Work() as counted:
        patch.setattr(module, "own_visible", visible)
        made.Model()(x).out.sum().backward()
    return counted.count, asked


#: multiplications for a pair: two products, and five in backward; of 4 channels
EACH = 2 * 4 * 7


def test_work_grows_with_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tokens and a window: as many keys for each query, however long the sequence."""
    made = package(f"|i, j| {USUAL['first and window'][0]}")
    products, asked = work(monkeypatch, made, 4096)
    # of a tile of 64 queries, in steps of 32 keys: the first, those of the window, the own ones
    assert products <= EACH * 4096 * (32 + WINDOW + 64)
    assert asked <= 2 * 4096 * (32 + WINDOW + 64)
    half, half_asked = work(monkeypatch, made, 2048)
    assert products < 2.1 * half
    assert asked < 2.1 * half_asked


def test_half_of_a_coarser_clock_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made = package("|i, j| j <= i", COARSE)
    products, asked = work(monkeypatch, made, 4096)
    assert products < 0.57 * EACH * 4096 * (4096 // COARSE)
    assert asked <= 2 * 4096 * 32  # on the diagonal


def test_what_is_wholly_seen_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    made = package(f"|i, j| {USUAL['prefix'][0]}")
    _, asked = work(monkeypatch, made, 1024)
    assert asked < 0.25 * 1024 * 1024


# --------------------------------------------------------------------------- results


def stream(which: str) -> dict[str, Tensor]:
    """Return a batch: its stream, and what is said of its tokens."""
    torch.manual_seed(1)
    found: dict[str, Tensor] = {"x": torch.randn(2, 150, 8)}
    if which in ("padding", "both"):
        found["valid"] = torch.arange(150) >= torch.tensor([[37], [0]])
    if which in ("documents", "both"):
        found["documents"] = torch.stack([torch.arange(150) // 61, torch.arange(150) // 40])
    return found


def seen_of(given: dict[str, Tensor], meaning: Meaning) -> Tensor:
    """Return which pairs see each other, (B, T, T)."""
    every = torch.ones(2, 150, dtype=torch.bool)
    valid = given.get("valid", every)
    documents = given.get("documents", every.long())
    same = (documents[:, :, None] == documents[:, None]) & valid[:, None]
    position = (same & torch.ones(150, 150).tril(-1).bool()).sum(-1)
    return same & meaning(position[:, :, None], position[:, None])


def with_gradients(model: Any, given: dict[str, Tensor], y: Tensor) -> list[Tensor]:
    """Return a result and the gradients of the stream and of the parameters."""
    y = y[given["valid"].to(y.device)] if "valid" in given else y
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).sin().view_as(y).to(y.device)
    return [y, *torch.autograd.grad((y * weights).sum(), [given["x"], *model.parameters()])]


def dense(own: Any, x: Tensor, seen: Tensor) -> Tensor:
    """Return what the layer gives, with all pairs at once."""
    q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (own.q, own.k, own.v))
    scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~seen.unsqueeze(1), -torch.inf).exp()
    total = scores.sum(-1, keepdim=True)
    mixed = scores / torch.where(total == 0, 1, total) @ v
    found: Tensor = own.linear(mixed.transpose(1, 2).flatten(-2))
    return found


def model_of(made: Any) -> Any:
    torch.manual_seed(0)
    model = made.Model().double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("which", ["plain", "padding", "documents", "both"])
@pytest.mark.parametrize("name", USUAL)
def test_tiles_give_what_all_pairs_give(name: str, which: str) -> None:
    text, meaning = USUAL[name]
    model, given = model_of(package(f"|i, j| {text}")), stream(which)
    given["x"] = given["x"].double().requires_grad_()
    found = with_gradients(model, given, model(**given).out)
    wanted = dense(model.out.own, given["x"], seen_of(given, meaning))
    for mine, theirs in zip(found, with_gradients(model, given, wanted), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def small(monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    """Let a package call its kernels, in tiles of 32 tokens of both heads and 32 keys."""
    kernels = part(made, "kernels")
    plain = kernels.config
    size = {"BLOCK_M": 64, "BLOCK_N": 32}
    monkeypatch.setattr(
        kernels, "config", lambda name: plain(name) if "parts" in name else dict(size)
    )
    if DEVICE == "cpu":
        monkeypatch.setattr(kernels, "FORCED", True)


@pytest.mark.parametrize(
    ("name", "which"),
    [
        ("first and window", "both"),
        ("prefix", "padding"),
        ("blocks apart", "documents"),
    ],
)
def test_the_kernel_gives_the_same(monkeypatch: pytest.MonkeyPatch, name: str, which: str) -> None:
    text, meaning = USUAL[name]
    made, given = package(f"|i, j| {text}"), stream(which)
    model = model_of(made).float().to(DEVICE)
    small(monkeypatch, made)
    given = {n: x.to(DEVICE) for n, x in given.items()}
    given["x"].requires_grad_()
    found = with_gradients(model, given, model(**given).out)
    cpu = {n: x.detach().cpu() for n, x in given.items()}
    cpu["x"] = cpu["x"].double().requires_grad_()
    model = model.cpu().double()
    wanted = dense(model.out.own, cpu["x"], seen_of(cpu, meaning))
    for mine, theirs in zip(found, with_gradients(model, cpu, wanted), strict=True):
        assert (mine.cpu() - theirs).abs().max() <= 2e-5 * theirs.abs().max().clamp_min(1e-3)


def listed(made: Any, length: int, of_keys: bool) -> Tensor:
    """Return the states of tiles that the kernel would go through: 2 wholly, 1 in part, 0 not."""
    kernels = part(made, "kernels")
    launch = kernels._AttendownvisibleLaunch
    q = torch.zeros(1, length, 2, 4, device=DEVICE)
    k = torch.zeros(1, length, 1, 4, device=DEVICE)
    made_launch = launch(q, k, k, [], [None] * 6, 0.5, None, None, False)
    sizes = {"BLOCK_M": 32, "BLOCK_N": 16}
    tiles, key_tiles = made_launch.tiles(sizes)
    (reached,) = made_launch.reached(sizes, of_keys)
    states = torch.zeros((key_tiles, tiles) if of_keys else (tiles, key_tiles), dtype=torch.long)
    for row, found in zip(states, reached[0].tolist(), strict=True):
        wholes, count, *rest = found
        row[rest[:wholes]] = 2
        row[rest[wholes:count]] = 1
    return states.T if of_keys else states


def test_the_kernel_reads_the_tiles_that_are_seen() -> None:
    text, meaning = USUAL["first and window"]
    made = package(f"|i, j| {text}")
    # two heads share the keys, so a tile has 16 queries of both
    seen = meaning(torch.arange(192)[:, None], torch.arange(192)).view(12, 16, 12, 16)
    wanted = seen.any(3).any(1).long() + seen.all(3).all(1).long()
    assert torch.equal(listed(made, 192, False), wanted)
    assert torch.equal(listed(made, 192, True), wanted)


def test_what_is_hidden_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither form looks at keys between the first tokens and the window."""
    made = package(f"|i, j| {USUAL['first and window'][0]}")
    functions = part(made, "functional")
    fused = part(made, "fused")
    q, k = torch.randn(1, 16, 1, 16, device=DEVICE), torch.randn(1, 192, 1, 16, device=DEVICE)
    k[:, 32:96] = torch.nan
    i, j = torch.arange(176, 192)[None].to(DEVICE), torch.arange(192)[None].to(DEVICE)
    pairs = functions.Pairs(
        16, 192, None, 0, i, j, visible=fused.own_visible, reach=fused.own_reach
    )
    y, _ = functions.attention(q, k, k, pairs, (), 0.25, False)
    assert y.isfinite().all()
    small(monkeypatch, made)
    kernel = part(made, "kernels").attend_own_visible
    whole = functions._on_kernel(kernel, q, k, k, pairs, (), 0.25, None)
    assert (whole - y).abs().max() < 1e-5
    # and where the keys of a query are shared out
    monkeypatch.setattr(part(made, "kernels"), "attention_parts", lambda *_: 3)
    shared = functions._on_kernel(kernel, q, k, k, pairs, (), 0.25, None)
    assert (shared - y).abs().max() < 1e-5
