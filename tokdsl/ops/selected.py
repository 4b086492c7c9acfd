"""Choosing tokens: what a choice may see, where it looks, and attention to what is chosen.

An index set is a tensor of i64 indices with -1 where nothing is chosen. Its axes say who shares it:
one set per token for all heads, per group of heads, or per head.
"""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

from tokdsl.ops.attend import Attention, key_flow, token_axis
from tokdsl.ops.axes import arrange, names, product, state_argument
from tokdsl.ops.base import (
    AxisRef,
    Code,
    Companion,
    Cost,
    Fault,
    Op,
    Operand,
    StateSpec,
    op,
    tensor,
)
from tokdsl.ops.precedence import primary
from tokdsl.types.dims import Dim, combine
from tokdsl.types.tensors import Axis, Clock, TensorType
from tokdsl.types.time import PAST, Flow, Interval


def blocks_of(clock: Clock, size: Dim) -> Dim:
    """Return how many blocks of tokens there are."""
    number = size.number
    if number is None:
        return combine("//", clock.length, size)
    return clock.length * Fraction(1, number) if number > 1 else clock.length


def check_among(given: Operand, block: int, full: TensorType, axis: Axis, k: Dim) -> None:
    """Check an index set among which tokens are chosen.

    Args:
        given: the index set.
        block: how many tokens each of its entries stands for.
        full: what is chosen from.
        axis: the tokens that are chosen from.
        k: how many are chosen.

    Raises:
        Fault: if it does not fit.
    """
    among = tensor(given, "among")
    if axis.clock is None or not axis.memory or axis.block:
        raise Fault(
            "operand-shape",
            "`among` needs a choice among tokens: `topk(score; k, over = j, among = near)` with "
            "`score[i: T, j: T] = ...`",
            "among",
        )
    kept = [a.name for a in full.axes if a.name != axis.name]
    fits = among.dtype == "i64" and all(a.name in kept for a in among.axes[:-1])
    if not fits or among.axes[-1].clock is not None:
        raise Fault("operand-shape", f"`among` {among} is no index set for {full}", "among")
    near = among.axes[-1].size.number
    if near is not None and k.number is not None and k.number > near * block:
        raise Fault("size-mismatch", f"cannot choose {k} among {near * block} tokens", "k")
    length = axis.clock.length
    if among.classes is None or among.classes.symbols() - length.symbols():
        return
    if among.classes * block != length:
        raise Fault(
            "size-mismatch",
            f"`among` is no choice among blocks of {block}",
            "among",
            help="give the size of the blocks: `topk(...; among = near, block = 64)`",
        )


@op("blocks")
class Blocks(Op):
    """The means of blocks of ``size`` neighbouring tokens, of all tokens so far.

    Blocks are counted from the first token of a document. The position of a block is that of its
    last token, so `b <= i` says that it is complete for token i; the last block may have tokens to
    come, and its mean is of those that are there.

    Shape: [T, *] -> [blocks, *].   Gradient: smooth.
    """

    x: Operand
    size: Dim
    clock: Companion | None = None

    def count(self) -> int:
        """Return the tokens of a block; 1 while a definition is checked for all sizes."""
        return self.size.number or 1

    def type(self) -> TensorType:
        """Return the operand's type with blocks in the place of tokens."""
        kind = tensor(self.x, "x")
        own = token_axis(kind, "x")
        if own.memory or own.clock is None or own.clock.cut or own.size.is_number:
            raise Fault(
                "operand-shape", f"`blocks` needs the tokens of a stream, found {kind}", "x"
            )
        if not kind.is_float or not kind.batched:
            raise Fault("operand-kind", f"`blocks` needs a stream of floats, found {kind}", "x")
        number = self.size.number
        if number is not None and number < 1:
            raise Fault("argument-type", f"`size` must be 1 or more, found {number}", "size")
        axis = Axis("blocks", blocks_of(own.clock, self.size), own.clock, True, block=self.count())
        return kind.with_axes(tuple(axis if a is own else a for a in kind.axes))

    def flows(self) -> dict[str, list[Flow]]:
        """A block reads its tokens, which end at its position."""
        own = token_axis(self.x, "x")
        return {"x": [Flow(own.name, "blocks", Interval(1 - self.count(), 0))]}

    def isolates(self) -> bool:
        """Blocks end with their document."""
        return True

    def state(self) -> StateSpec:
        """The sum and the number of tokens of every block."""
        entries = product([a.size for a in self.x.axes if a.clock is None])
        return StateSpec("BlockSums", per_token=(entries + 1) * Fraction(1, self.count()))

    def cost(self) -> Cost:
        """One addition per entry."""
        return Cost(tensor(self.x, "x").size)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        size = code.size(self.size)
        state = state_argument(code)
        return f"{code.use('block_means')}({code['x']}, {code['clock']}, {size}{state})"


@op("seen")
class Seen(Op):
    """Whether a token may choose another: a condition, but for padding and other documents.

    Args:
        where: the condition; every pair if it is absent.
        clock: the clock of the keys.
    """

    internal: ClassVar[bool] = True

    where: Operand | None = None
    clock: Operand | None = None
    query: object = None
    key: object = None

    def type(self) -> TensorType:
        """One bit per pair, and per head if the condition has heads."""
        assert isinstance(self.query, Axis) and isinstance(self.key, Axis)
        own = (self.query.name, self.key.name)
        lead: tuple[Axis, ...] = ()
        if isinstance(self.where, TensorType):
            lead = tuple(a for a in self.where.axes if a.name not in own)
        return TensorType((*lead, self.query, self.key), "bool")

    def flows(self) -> dict[str, list[Flow]]:
        """Clocks read no token."""
        return {name: flows for name, flows in super().flows().items() if name == "where"}

    def isolates(self) -> bool:
        """Other documents are not seen."""
        return True

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        if "where" not in code.operands:
            return f"{code.use('seen_pairs')}({code['clock']})"
        where = code.aligned("where")
        return f"{code.use('seen_pairs')}({code['clock']}, {where})"


@op("candidates")
class Candidates(Op):
    """The columns of the tokens of chosen blocks that a token may see; -1 for others.

    In a replay they are what was chosen among them, so that it is chosen again.

    Shape: i64[*, i, n] -> i64[*, i, n * block].
    """

    internal: ClassVar[bool] = True
    decision: ClassVar[bool] = True

    among: Operand
    clock: Operand
    key: str
    block: int = 1

    def type(self) -> TensorType:
        """Return all tokens of the blocks along one axis."""
        kind = tensor(self.among, "among")
        axis = Axis(self.key, kind.axes[-1].size * self.block)
        return TensorType((*kind.axes[:-1], axis), "i64", kind.batched)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        block = f", block={self.block}" if self.block > 1 else ""
        # in order, so that ties go to the lowest index here too
        among = f"{primary(code['among'])}.sort(dim=-1).values"
        text = f"{code.use('chosen_columns')}({among}, {code['clock']}{block})"
        if not code.decision:
            return text
        return f"{code.use('replayed_columns')}({text}, {code.decision})"

    def choice(self) -> TensorType:
        """The candidates."""
        return self.type()


@op("at_columns")
class AtColumns(Op):
    """The entries of what is kept of all tokens at chosen columns; any entry where that is -1.

    Shape: [*s, S, *r], i64[*s, i, n] -> [*s, i, n, *r].
    """

    internal: ClassVar[bool] = True

    x: Operand
    columns: Operand
    over: AxisRef

    def lead(self) -> tuple[Axis, ...]:
        """Return the axes that both have."""
        x, columns = tensor(self.x, "x"), tensor(self.columns, "columns")
        return tuple(a for a in columns.axes if a.name != self.over and x.axis(a.name) is not None)

    def type(self) -> TensorType:
        """Return shared axes, queries, choices, and the rest."""
        x, columns = tensor(self.x, "x"), tensor(self.columns, "columns")
        lead = self.lead()
        own = [a for a in columns.axes if a not in lead]
        rest = [a for a in x.axes if a not in lead and a.name != self.over]
        return TensorType((*lead, *own, *rest), x.dtype)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        x, columns = tensor(self.x, "x"), tensor(self.columns, "columns")
        lead = ["batch", *(a.name for a in self.lead())]
        rest = [n for n in names(x) if n not in (*lead, self.over)]
        text = arrange(code["x"], names(x), [*lead, self.over, *rest])
        own = [n for n in names(columns) if n not in lead]
        index = arrange(code["columns"], names(columns), [*lead, *own])
        return f"{code.use('rows_at')}({text}, {index}, {len(lead)})"


@op("of_columns")
class OfColumns(Op):
    """The columns that choices among candidates stand for; -1 stays.

    Shape: i64[*, n], i64[*, k] -> i64[*, k].
    """

    internal: ClassVar[bool] = True

    columns: Operand
    pick: Operand

    def type(self) -> TensorType:
        """Return the type of the choices."""
        return tensor(self.pick, "pick")

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        kind, pick = tensor(self.columns, "columns"), tensor(self.pick, "pick")
        order = [n for n in names(pick)[:-1]]
        have = names(kind)[:-1]
        text = code["columns"]
        for name in order:
            if name not in have:
                raise Fault("operand-shape", f"`among` {kind} has no axis `{name}`", "among")
        return f"{code.use('of_columns')}({text}, {code['pick']})"


class Selected(Attention):
    """Base of what attends to chosen keys."""

    q: Operand
    k: Operand
    select: Operand
    scale: float | None
    over: AxisRef | None
    block: int
    first: int
    last: int
    interval: object

    def sets(self) -> tuple[Axis | None, Axis, Axis]:
        """Return the axes of the index set: who shares it (or None), queries, choices.

        Raises:
            Fault: if it has others, or is not on the clock of the queries.
        """
        q, select = tensor(self.q, "q"), tensor(self.select, "select")
        query = token_axis(q, "q")
        tokens = [a for a in select.axes if a.clock is not None]
        if select.dtype != "i64" or not 2 <= len(select.axes) <= 3 or len(tokens) != 1:
            raise Fault(
                "operand-shape",
                f"`select` must be an index set i64[T, n] or i64[heads, T, n], found {select}",
                "select",
            )
        if tokens[0].clock != query.clock:
            raise Fault(
                "clock-mismatch",
                f"queries live on clock `{_clock(query)}`, `select` on `{_clock(tokens[0])}`",
                "select",
            )
        rest = [a for a in select.axes if a.clock is None]
        return (rest[0] if len(rest) > 1 else None), tokens[0], rest[-1]

    def check_sets(self) -> None:
        """Check that the index set fits heads and keys.

        Raises:
            Fault: if it does not.
        """
        q, k, select = tensor(self.q, "q"), tensor(self.k, "k"), tensor(self.select, "select")
        inner = self.contraction(q, self.over)
        shared, _, _ = self.sets()
        heads, key = self.heads(q, inner), token_axis(k, "k")
        if key.clock != token_axis(q, "q").clock or key.block:
            raise Fault(
                "clock-mismatch", "`select` chooses among the tokens of the stream that attends"
            )
        sizes = (heads.size.number if heads else 1, shared.size.number if shared else 1)
        if sizes[0] is not None and sizes[1] is not None and sizes[0] % sizes[1]:
            raise Fault(
                "not-divisible", f"{sizes[0]} heads cannot share {sizes[1]} index sets", "select"
            )
        if select.classes is not None and key.clock is not None:
            wanted = blocks_of(key.clock, Dim.of(self.block))
            if wanted != select.classes and not self._unknown(select.classes):
                kind = f"blocks of {self.block}" if self.block > 1 else "tokens"
                raise Fault(
                    "size-mismatch",
                    f"`select` is no choice among {kind}",
                    "select",
                    help="give the size of the blocks: `attend(...; select = keep, block = 64)`",
                )

    def _unknown(self, classes: Dim) -> bool:
        """Whether sizes are symbols yet, so that nothing can be said."""
        key = token_axis(self.k, "k")
        assert key.clock is not None
        return bool(set(classes.symbols()) - {str(key.clock.length)})

    def flows(self) -> dict[str, list[Flow]]:
        """Queries and their choices at the own token, keys as far as the bound allows."""
        query = token_axis(self.q, "q")
        _, chosen, _ = self.sets()
        found = {"q": [Flow(query.name, query.name)], "select": [Flow(chosen.name, query.name)]}
        for name in self.cached:
            axis = token_axis(getattr(self, name), name)
            found[name] = [key_flow(axis, query, self.interval, 1)]
        return found

    def isolates(self) -> bool:
        """A choice in another document is not read."""
        return True

    def gradient(self) -> dict[str, bool]:
        """None through a choice."""
        return {name: name not in ("select", "clock") for name, _ in self.operand_types()}

    def repair(self) -> str:
        """How to read no later token."""
        return "attend to earlier tokens alone: `mask = causal`"

    def pairs(self) -> Dim:
        """Return the number of pairs of a query and a key."""
        _, query, chosen = self.sets()
        return query.size * (chosen.size * self.block + self.first + self.last)

    def arguments(self, code: Code) -> list[str]:
        """Return the arguments after the tensors."""
        select = tensor(self.select, "select")
        shared, query, chosen = self.sets()
        want = ["batch", query.name, *([shared.name] if shared else []), chosen.name]
        text = arrange(code["select"], names(select), want)
        if shared is None:
            text = f"{text}.unsqueeze(2)"
        found = [text, code["clock"]]
        for name in ("block", "first", "last"):
            if getattr(self, name) != (1 if name == "block" else 0):
                found.append(f"{name}={getattr(self, name)}")
        if getattr(self.interval, "hi", 1) > 0:
            found.append("causal=False")
        if self.scale is not None:
            found.append(f"scale={self.scale:.17g}")
        return found


@op("attend_selected")
class AttendSelected(Selected):
    """Attention of every query to the keys that an index set names, and no others.

    Shape: q [T, heads, k], k [S, kv_heads, k], v [S, kv_heads, v], i64 [T, n] or [heads, T, n]
        -> [T, heads, v].   Gradient: smooth in all but the choice.
    Source: DeepSeek-AI 2025 (DeepSeek-V3.2), section 2.1.
    """

    internal: ClassVar[bool] = True

    q: Operand
    k: Operand
    v: Operand  # type: ignore[misc]
    select: Operand
    clock: Operand  # type: ignore[misc]
    sinks: Operand | None = None
    places: Operand | None = None
    scale: float | None = None
    over: AxisRef | None = None
    block: int = 1
    first: int = 0
    last: int = 0
    interval: object = PAST
    pairs_of: str = "half"

    def type(self) -> TensorType:
        """Queries with the compared axis replaced by that of the values."""
        q, k, v = (tensor(getattr(self, name), name) for name in "qkv")
        inner = self.contraction(q, self.over)
        self.check_keys(q, k, inner, "k")
        self.check_keys(q, v, inner, "v")
        self.check_sets()
        return TensorType(tuple(v.axes[-1] if a.name == inner.name else a for a in q.axes), v.dtype)

    def cost(self) -> Cost:
        """Two products of queries by chosen keys and values."""
        q, v = tensor(self.q, "q"), tensor(self.v, "v")
        inner = self.contraction(q, self.over)
        heads = self.heads(q, inner)
        each = (heads.size if heads is not None else Dim.of(1)) * (inner.size + v.axes[-1].size)
        return Cost(self.pairs() * each * 2)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        found = [code["q"], code["k"], code["v"], *self.arguments(code)]
        if "sinks" in code.operands:
            found.append(f"sinks={code['sinks']}")
        if "places" in code.operands:
            turn = "rotate_half" if self.pairs_of == "half" else "rotate_neighbours"
            found.append(f"places={code['places']}")
            found.append(f"turn={code.use(turn)}")
        return f"{code.use('attend_selected')}({', '.join(found)})"


@op("selected_weights")
class SelectedWeights(Selected):
    """The share of attention that each chosen key gets, on average over the heads.

    What an indexer is trained to predict; it carries no gradient.

    Shape: q [T, heads, k], k [S, kv_heads, k], i64 [T, n] -> f32 [T, n].   Gradient: none.
    Source: DeepSeek-AI 2025 (DeepSeek-V3.2), section 2.1.1.
    """

    cached: ClassVar[tuple[str, ...]] = ("k",)
    hidden: ClassVar[tuple[str, ...]] = ("interval",)

    q: Operand
    k: Operand
    select: Operand
    clock: Companion | None = None
    scale: float | None = None
    over: AxisRef | None = None
    block: int = 1
    first: int = 0
    last: int = 0
    interval: object = PAST

    def type(self) -> TensorType:
        """One number per choice."""
        q, k = tensor(self.q, "q"), tensor(self.k, "k")
        self.check_keys(q, k, self.contraction(q, self.over), "k")
        self.check_sets()
        shared, query, chosen = self.sets()
        if shared is not None or self.block != 1 or self.first or self.last:
            raise Fault("operand-shape", "`selected_weights` needs one set of tokens for all heads")
        return TensorType((query, chosen), "f32")

    def flows(self) -> dict[str, list[Flow]]:
        """As attention, under the name that queries have in the index set."""
        _, chosen, _ = self.sets()
        query = token_axis(self.q, "q")
        found = {"q": [Flow(query.name, chosen.name)], "select": [Flow(chosen.name, chosen.name)]}
        key = token_axis(self.k, "k")
        found["k"] = [Flow(key.name, chosen.name, PAST)]
        return found

    def gradient(self) -> dict[str, bool]:
        """None."""
        return {name: False for name, _ in self.operand_types()}

    def cost(self) -> Cost:
        """One product of queries by chosen keys."""
        q = tensor(self.q, "q")
        inner = self.contraction(q, self.over)
        heads = self.heads(q, inner)
        return Cost(self.pairs() * (heads.size if heads else Dim.of(1)) * inner.size * 2)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        found = [code["q"], code["k"], *self.arguments(code)]
        return f"{code.use('selected_weights')}({', '.join(found)})"


def _clock(axis: Axis) -> str:
    return axis.clock.name if axis.clock is not None else "none"
