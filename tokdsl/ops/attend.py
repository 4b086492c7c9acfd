"""Attention over the tokens of a stream, and the caches that it needs in decode steps."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from tokdsl.ops.base import (
    AxisRef,
    Code,
    Cost,
    Fault,
    Op,
    Operand,
    Predicate,
    StateSpec,
    op,
    tensor,
)
from tokdsl.ops.chunks import clock_of
from tokdsl.ops.precedence import primary
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, ChunksType, TensorType, ValueType
from tokdsl.types.time import EVERYTHING, INFINITY, Crossing, Flow, Interval


def token_axis(kind: ValueType, argument: str) -> Axis:
    """Return the one token axis of an attention operand.

    Raises:
        Fault: if there is none.
    """
    axis = next((a for a in kind.axes if a.clock is not None), None)
    if axis is None:
        raise Fault("operand-shape", f"`{argument}` needs a token axis, found {kind}", argument)
    return axis


@op("cache")
class Cache(Op):
    """The same values for all tokens seen so far: in decode steps those of earlier steps too.

    Attention caches its keys and values by itself; write `cache` to say that something smaller
    is kept instead, such as a latent from which keys and values are computed.

    Shape: [T, *] -> [S, *], S the tokens up to now.   Gradient: smooth.
    """

    x: Operand
    window: int = 0

    def type(self) -> TensorType:
        """The operand's type with its token axis as a memory axis ``S``."""
        kind = tensor(self.x, "x")
        own = token_axis(kind, "x")
        if own.memory:
            raise Fault(
                "operand-shape", f"{kind} has earlier tokens already", "x", "leave `cache` out"
            )
        axis = replace(own, name="S", memory=True, window=self.window)
        return kind.with_axes(tuple(axis if a is own else a for a in kind.axes))

    def flows(self) -> dict[str, list[Flow]]:
        """Each position keeps its place."""
        return {"x": [Flow(token_axis(self.x, "x").name, "S")]}

    def state(self) -> StateSpec:
        """All past tokens, or the last ``window`` of them."""
        sizes = tuple(a.size for a in self.x.axes if a.clock is None)
        entries = Dim.of(1)
        for size in sizes:
            entries = entries * size
        if self.window:
            return StateSpec(
                "WindowCache", (Dim.of(self.window),), elements=entries * (self.window - 1)
            )
        return StateSpec("TokenCache", (), per_token=entries)

    def torch(self, code: Code) -> str:
        """Append to the state when there is one."""
        if not code.state:
            return code["x"]
        return f"{code['x']} if state is None else {code.state}.append({code['x']})"


def key_flow(key: Axis, query: Axis, interval: object, stride: int) -> Flow:
    """Return how keys reach queries: as far as the condition allows.

    Args:
        key: the token axis of keys or values.
        query: the token axis of the queries.
        interval: the offsets that the condition allows, in key tokens.
        stride: query tokens per key token, 0 if their clocks have no fixed relation.
    """
    if not stride or not isinstance(interval, Interval):
        return Flow(key.name, query.name, EVERYTHING)
    return Flow(key.name, query.name, interval, factor=-stride if stride > 1 else 1)


def paired(query: Axis, key: Axis) -> bool:
    """Whether the documents of queries are those of the keys: on one clock, or on two inputs'.

    Keys of a fixed number are the same for all documents of a row. Between a stream and a coarser
    one documents are not numbered alike.
    """
    if key.size.is_number:
        return False
    clocks = (query.clock, key.clock)
    inputs = all(clock is not None and clock.parent is None for clock in clocks)
    return query.clock == key.clock or inputs


class Attention(Op):
    """What the attention operations share: which axis is which."""

    #: operands that are kept between decode steps
    cached: ClassVar[tuple[str, ...]] = ("k", "v")

    def contraction(self, q: TensorType, over: AxisRef | None) -> Axis:
        """Return the axis over which queries and keys are compared.

        Raises:
            Fault: if it does not exist.
        """
        if over is None:
            if q.axes[-1].clock is not None:
                raise Fault("operand-shape", f"queries {q} end with their tokens", "q")
            return q.axes[-1]
        found = q.axis(over)
        if found is None:
            raise Fault("unknown-axis", f"no axis `{over}` in the queries {q}", "over")
        return found

    def heads(self, q: TensorType, inner: Axis) -> Axis | None:
        """Return the heads axis of the queries, if any.

        Raises:
            Fault: if there is more than one.
        """
        rest = [a for a in q.axes if a.clock is None and a.name != inner.name]
        if len(rest) > 1:
            names = ", ".join(f"`{a.name}`" for a in rest)
            raise Fault(
                "operand-shape", f"queries {q} have several axes besides tokens: {names}", "q"
            )
        return rest[0] if rest else None

    def check_keys(self, q: TensorType, k: TensorType, inner: Axis, name: str) -> None:
        """Check that keys (or values) fit the queries.

        Raises:
            Fault: if head counts do not divide, or sizes differ.
        """
        heads = self.heads(q, inner)
        others = [a for a in k.axes if a.clock is None][:-1]
        streams = [a for a in k.axes if a.clock is not None]
        if len(others) > 1 or (others and heads is None) or len(streams) > 1:
            raise Fault("operand-shape", f"`{name}` {k} does not fit queries {q}", name)
        if others and heads is not None:
            h, g = heads.size.number, others[0].size.number
            if h is not None and g is not None and h % g:
                raise Fault(
                    "not-divisible",
                    f"{h} `{heads.name}` cannot share {g} `{others[0].name}`: "
                    f"{h} is not divisible by {g}",
                    name,
                )


@op("attend")
class Attend(Attention):
    """Scaled dot-product attention with grouped heads.

    ``mask`` is a condition over a query position and a key position, ``score`` an expression of
    the scaled score and both positions; `sinks` adds one logit per head to the softmax. With
    `within`, a query sees keys of its own chunk only.

    With ``select``, an index set, each query reads only the keys that it names, or their blocks of
    ``block`` tokens, and none after itself unless ``mask = full``; -1 names none. The ``first`` and
    ``last`` tokens are read too. ``places`` turns each key by its place among those that are read,
    in order, and the query as the last of them: a `rotation` over places, of ``pairs``.

    Shape: q [T, heads, k], k [S, kv_heads, k], v [S, kv_heads, v] -> [T, heads, v].
    Gradient: smooth.
    Source: Vaswani et al. 2017, section 3.2; grouped heads: Ainslie et al. 2023.
    """

    hidden: ClassVar[tuple[str, ...]] = ("structured", "interval", "stride")

    q: Operand
    k: Operand
    v: Operand
    mask: Predicate | None = None
    score: Predicate | None = None
    sinks: Operand | None = None
    within: Operand | None = None
    select: Operand | None = None
    places: Operand | None = None
    scale: float | None = None
    over: AxisRef | None = None
    block: int = 1
    first: int = 0
    last: int = 0
    pairs: str = "half"
    structured: bool = False
    interval: object = EVERYTHING
    stride: int = 1

    def type(self) -> TensorType:
        """Queries with the compared axis replaced by that of the values."""
        q, k, v = (tensor(getattr(self, name), name) for name in "qkv")
        inner = self.contraction(q, self.over)
        token_axis(q, "q")
        key, value = token_axis(k, "k"), token_axis(v, "v")
        self.check_keys(q, k, inner, "k")
        self.check_keys(q, v, inner, "v")
        if k.axes[-1].size != inner.size:
            raise Fault(
                "size-mismatch",
                f"queries have {inner.size} along `{inner.name}`, keys {k.axes[-1].size}",
                "k",
            )
        if key.clock != value.clock:
            raise Fault(
                "clock-mismatch",
                f"keys live on clock `{_clock(key)}`, values on `{_clock(value)}`",
            )
        return TensorType(tuple(v.axes[-1] if a.name == inner.name else a for a in q.axes), v.dtype)

    def flows(self) -> dict[str, list[Flow]]:
        """Queries at their own position, keys and values as far as the mask allows."""
        query = token_axis(self.q, "q")
        found = {"q": [Flow(query.name, query.name)]}
        for name in ("k", "v"):
            axis = token_axis(getattr(self, name), name)
            found[name] = [key_flow(axis, query, self.interval, self.stride)]
            if isinstance(self.within, ChunksType) and getattr(self.interval, "hi", 1) > 0:
                inside = Crossing(clock_of(self.within).name, "inside")
                found[name] = [Flow(axis.name, query.name, crossing=inside)]
        if self.mask is not None:
            found["mask"] = [found["q"][0], found["k"][0]]
        return found

    def isolates(self) -> bool:
        """The mask knows which documents of the two clocks belong together."""
        return self.mask is not None and paired(token_axis(self.q, "q"), token_axis(self.k, "k"))

    def sees_itself(self) -> bool:
        """Whether the condition certainly allows every query the key at its own position."""
        interval = self.interval
        if not isinstance(interval, Interval) or self.stride != 1 or token_axis(self.k, "k").block:
            return False
        return interval.exact and interval.lo <= 0 <= interval.hi

    def repair(self) -> str:
        """How to read no later token."""
        return "hide later tokens: `mask = causal`, or `... and j <= i` in the condition"

    def gradient(self) -> dict[str, bool]:
        """Smooth in queries, keys, values and sinks; none through the mask."""
        return {name: name != "mask" for name, _ in self.operand_types()}

    def cost(self) -> Cost:
        """Two products of queries by keys and values; half of it under a causal mask."""
        q, k, v = (tensor(getattr(self, name), name) for name in "qkv")
        inner = self.contraction(q, self.over)
        heads = self.heads(q, inner)
        keys = token_axis(k, "k").size
        interval = self.interval
        lo = getattr(interval, "lo", None)
        window = int(1 - lo) if lo is not None and lo != float("-inf") else 0
        reach = Dim.of(window) if window else keys
        pairs = token_axis(q, "q").size * reach
        each = (heads.size if heads is not None else Dim.of(1)) * (inner.size + v.axes[-1].size)
        flops = pairs * each * 2
        return Cost(flops)

    def torch(self, code: Code) -> str:
        """Over all pairs, where lowering finds no form over some of them (see `AttendTokens`)."""
        scale = "" if self.scale is None else f", scale={self.scale:.17g}"
        q, k, v = code["q"], code["k"], code["v"]
        if "mask" not in code.operands:
            options = band_options(self.interval) if self.structured else ""
            return f"{code.use('attend')}({q}, {k}, {v}{options}{scale})"
        scores = f"{code.use('attention_scores')}({q}, {k}{scale})"
        sinks = f", sinks={code['sinks']}" if "sinks" in code.operands else ""
        return f"{code.use('attention_mix')}({scores}, {v}, {code['mask']}{sinks})"


def band_options(interval: object) -> str:
    """Return the options of ``attend`` that allow the offsets of an interval."""
    if not isinstance(interval, Interval):
        return ""
    options = ""
    if interval.hi < INFINITY:
        options += ", causal=True" if interval.hi == 0 else f", ahead={int(interval.hi)}"
    if interval.lo > -INFINITY:
        options += f", window={int(1 - interval.lo)}"
    return options


@op("attended")
class AttendTokens(Attention):
    """Attention as it is emitted: the clocks say what padding and documents hide.

    Args:
        keys: the clock of the keys; none for a fixed number of them.
        queries: the clock of the queries where it is another one.
        within: chunks in which queries and keys see each other.
        key_chunks: the number of the chunk of each key.
        given: what the functions of scores and visibility read besides.
        band: the offsets of keys relative to queries that are seen at most, where columns of tokens
            are offsets.
        counted: whether queries are counted, since they are no tokens of a stream.

    Shape: q [T, heads, k], k [S, kv_heads, k], v [S, kv_heads, v] -> [T, heads, v].
    """

    internal: ClassVar[bool] = True

    q: Operand
    k: Operand
    v: Operand
    keys: Operand | None = None
    queries: Operand | None = None
    sinks: Operand | None = None
    within: Operand | None = None
    key_chunks: Operand | None = None
    given: tuple[Operand, ...] = ()
    scale: float | None = None
    over: AxisRef | None = None
    band: object = EVERYTHING
    counted: bool = False

    def type(self) -> TensorType:
        """Queries with the compared axis replaced by that of the values."""
        return Attend(q=self.q, k=self.k, v=self.v, scale=self.scale, over=self.over).type()

    def gradient(self) -> dict[str, bool]:
        """Smooth in all numbers."""
        return {name: kind.is_float for name, kind in self.operand_types()}

    def torch(self, code: Code) -> str:
        """A call of the package's ``attend``, which picks the fastest form."""
        q, one_head = self._headed(code, "q")
        arguments = [q, self._headed(code, "k")[0], self._headed(code, "v")[0]]
        if "keys" in code.operands:
            arguments.append(code["keys"])
        text = ", ".join(arguments)
        if self.counted:
            code.use("TokenClock")
            text += f", queries={code.use('token_clock')}({code['q']}, None)"
        elif "queries" in code.operands:
            text += f", queries={code['queries']}"
        text += band_options(self.band)
        if "within" in code.operands:
            text += f", within=({code['within']}.number, {code['key_chunks']})"
        for name in ("score", "visible", "reach"):
            if name in code.operands:
                text += f", {name}={code[name]}"
        if self.given:
            given = [code[f"given_{at}"] for at in range(len(self.given))]
            text += f", given=({', '.join(given)}{',' if len(given) == 1 else ''})"
            text += f", along={code['along']}"
        if "sinks" in code.operands:
            text += f", sinks={code['sinks']}"
        if self.scale is not None:
            text += f", scale={self.scale:.17g}"
        text = f"{code.use('attend')}({text})"
        return f"{text}.squeeze(-2)" if one_head else text

    def _headed(self, code: Code, name: str) -> tuple[str, bool]:
        """Return an operand with an axis of heads, and whether it had none."""
        kind = tensor(getattr(self, name), name)
        if len(kind.axes) > 2:
            return code[name], False
        return f"{primary(code[name])}.unsqueeze(-2)", True


@op("attention_scores")
class AttentionScores(Attention):
    """Scaled products of queries and keys, before mask and softmax.

    Shape: q [T, heads, k], k [S, kv_heads, k] -> [heads, T, S].   Gradient: smooth.
    """

    internal: ClassVar[bool] = True

    cached: ClassVar[tuple[str, ...]] = ("k",)

    q: Operand
    k: Operand
    scale: float | None = None
    over: AxisRef | None = None

    def type(self) -> TensorType:
        """Heads, queries, keys."""
        q, k = tensor(self.q, "q"), tensor(self.k, "k")
        inner = self.contraction(q, self.over)
        self.check_keys(q, k, inner, "k")
        heads = self.heads(q, inner)
        lead = (heads,) if heads is not None else ()
        key = token_axis(k, "k")
        if key.name == token_axis(q, "q").name:
            key = key.renamed("S")
        return TensorType((*lead, token_axis(q, "q"), key), q.dtype)

    def flows(self) -> dict[str, list[Flow]]:
        """Queries and keys each at their own position."""
        query, key = token_axis(self.q, "q"), token_axis(self.k, "k")
        target = "S" if key.name == query.name else key.name
        return {"q": [Flow(query.name, query.name)], "k": [Flow(key.name, target)]}

    def cost(self) -> Cost:
        """One product."""
        inner = self.contraction(tensor(self.q, "q"), self.over)
        return Cost(self.type().size * inner.size * 2)

    def torch(self, code: Code) -> str:
        """A call of the package's ``attention_scores``."""
        scale = f", scale={self.scale:.17g}" if self.scale is not None else ""
        return f"{code.use('attention_scores')}({code['q']}, {code['k']}{scale})"


@op("attention_mix")
class AttentionMix(Attention):
    """Softmax of masked scores over the keys, and the weighted sum of the values.

    Shape: scores [heads, T, S], v [S, kv_heads, v] -> [T, heads, v].   Gradient: smooth.
    """

    internal: ClassVar[bool] = True

    cached: ClassVar[tuple[str, ...]] = ("v",)

    scores: Operand
    v: Operand
    mask: Operand | None = None
    sinks: Operand | None = None
    interval: object = EVERYTHING
    stride: int = 1

    def type(self) -> TensorType:
        """Queries, heads, values."""
        scores, v = tensor(self.scores, "scores"), tensor(self.v, "v")
        query = next(a for a in scores.axes if a.clock is not None)
        heads = [a for a in scores.axes if a.clock is None]
        return TensorType((query, *heads, v.axes[-1]), v.dtype)

    def flows(self) -> dict[str, list[Flow]]:
        """Scores along the queries at the own position, along the keys as the mask allows."""
        query, key = [a for a in self.scores.axes if a.clock is not None][:2]
        along = key_flow(key, query, self.interval, self.stride)
        value = key_flow(token_axis(self.v, "v"), query, self.interval, self.stride)
        scores = [Flow(query.name, query.name), along]
        return {"scores": scores, "mask": scores, "v": [value]}

    def isolates(self) -> bool:
        """The mask knows which documents of the two clocks belong together."""
        query = token_axis(self.scores, "scores")
        return self.mask is not None and paired(query, token_axis(self.v, "v"))

    def repair(self) -> str:
        """How to read no later token."""
        return "hide later tokens: `mask = causal`, or `... and j <= i` in the condition"

    def cost(self) -> Cost:
        """One product."""
        return Cost(self.scores.size * tensor(self.v, "v").axes[-1].size * 2)

    def torch(self, code: Code) -> str:
        """A call of the package's ``attention_mix``."""
        mask = code["mask"] if "mask" in code.operands else "None"
        sinks = f", sinks={code['sinks']}" if "sinks" in code.operands else ""
        return f"{code.use('attention_mix')}({code['scores']}, {code['v']}, {mask}{sinks})"


def _clock(axis: Axis) -> str:
    return axis.clock.name if axis.clock is not None else "none"
