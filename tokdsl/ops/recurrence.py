"""Recurrences whose state is a matrix: attention without a softmax, in linear time."""

from __future__ import annotations

from dataclasses import replace

from tokdsl.ops.axes import (
    arrange,
    names,
    need_float,
    product,
    starts_argument,
    state_argument,
    valid_argument,
)
from tokdsl.ops.base import (
    AxisRef,
    Code,
    Companion,
    Cost,
    Fault,
    Op,
    Operand,
    StateSpec,
    find_axis,
    op,
)
from tokdsl.ops.precedence import primary
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, TensorType, promote
from tokdsl.types.time import PAST, Flow

#: tokens that are multiplied with each other in the parallel form
CHUNK = 64


@op("linear_attention")
class LinearAttention(Op):
    """``S[t] = a[t] * S[t - 1] + k[t] v[t]``, ``y[t] = q[t] S[t]``: a matrix per head as state.

    ``a`` is ``exp(log_decay)``: a number per head, or per head and key channel; without it nothing
    is forgotten. Queries and keys may have fewer heads than values, which then share them. The
    state is in float32 at least. Chunks of tokens are multiplied with each other and the state goes
    from chunk to chunk, so the work is linear in T; sums of ``log_decay`` are exponentiated and
    never their differences, so any ``log_decay <= 0`` is exact. Padding leaves the state as it is;
    a document begins without one.

    Args:
        over: the axis of queries and keys that is summed over, by default the last one of ``q``.

    Shape: q, k [T, groups, key], v [T, heads, value], log_decay [T, heads] or [T, heads, key],
    T or heads optional -> [T, heads, value].   Gradient: smooth.
    Source: Katharopoulos et al. 2020, section 3.3; with a number as decay: Dao and Gu 2024,
    section 6; with a decay per channel: Yang et al. 2023, section 4.
    """

    q: Operand
    k: Operand
    v: Operand
    log_decay: Operand | None = None
    over: AxisRef | None = None
    valid: Companion | None = None
    starts: Companion | None = None

    def key(self) -> Axis:
        """Return the axis of queries and keys that is summed over.

        Raises:
            Fault: if one of them does not have it.
        """
        q = need_float(self.q, "q", self.op_name)
        axis = find_axis(q, self.over if self.over is not None else q.axes[-1].name, "over")
        other = find_axis(need_float(self.k, "k", self.op_name), axis.name, "over")
        if axis.size != other.size:
            raise Fault(
                "size-mismatch",
                f"axis `{axis.name}` has size {axis.size} in `q` and {other.size} in `k`",
                "k",
            )
        return axis

    def tokens(self, argument: str) -> Axis:
        """Return the token axis of an operand.

        Raises:
            Fault: if it has none, or more than one.
        """
        kind = need_float(getattr(self, argument), argument, self.op_name)
        found = [axis for axis in kind.axes if axis.clock is not None]
        if len(found) != 1 or not kind.batched:
            raise Fault(
                "operand-shape",
                f"`{argument}` needs one token axis and a batch, found {kind}",
                argument,
            )
        return found[0]

    def heads(self, argument: str) -> Axis | None:
        """Return the axis of an operand that counts heads, None if there is one head.

        Raises:
            Fault: if there are several candidates.
        """
        kind = need_float(getattr(self, argument), argument, self.op_name)
        rest = [axis for axis in kind.axes if axis.clock is None]
        if argument == "v":
            rest = rest[:-1]
        else:
            rest = [axis for axis in rest if axis.name != self.key().name]
        if len(rest) > 1:
            several = ", ".join(f"`{axis.name}`" for axis in rest)
            raise Fault(
                "operand-shape",
                f"`{argument}` {kind} has several axes besides tokens and channels: {several}",
                argument,
            )
        return rest[0] if rest else None

    def value(self) -> Axis:
        """Return the channels of the values.

        Raises:
            Fault: if there are none.
        """
        v = need_float(self.v, "v", self.op_name)
        rest = [axis for axis in v.axes if axis.clock is None]
        if not rest:
            raise Fault("operand-shape", f"`v` needs an axis of channels, found {v}", "v")
        return rest[-1]

    def type(self) -> TensorType:
        """Return the values' type."""
        own = self.tokens("v")
        self.value()
        heads = self.heads("v")
        for argument in ("q", "k"):
            if self.tokens(argument).clock != own.clock:
                raise Fault(
                    "clock-mismatch",
                    f"`{argument}` and `v` live on different clocks: "
                    f"`{self.tokens(argument)}` and `{own}`",
                    argument,
                )
            self._check_heads(argument, heads)
        kinds = [getattr(self, name) for name in ("q", "k", "v")]
        if self.log_decay is not None:
            need_float(self.log_decay, "log_decay", self.op_name)
            self._check_heads("log_decay", heads)
        v: TensorType = kinds[-1]
        return replace(v, dtype=promote(*(kind.dtype for kind in kinds)))

    def _check_heads(self, argument: str, heads: Axis | None) -> None:
        mine = self.heads(argument)
        if mine is None:
            return
        if heads is None:
            raise Fault(
                "operand-shape", f"`{argument}` has `{mine.name}`, but `v` has one head", argument
            )
        count, all_heads = mine.size.number, heads.size.number
        if count is not None and all_heads is not None and all_heads % count:
            raise Fault(
                "not-divisible",
                f"{all_heads} `{heads.name}` cannot share {count} `{mine.name}`: "
                f"{all_heads} is not divisible by {count}",
                argument,
            )

    def flows(self) -> dict[str, list[Flow]]:
        """The own query; all keys, values and decays up to the own ones."""
        found = {}
        for argument, flows in super().flows().items():
            if argument in ("k", "v", "log_decay"):
                found[argument] = [replace(flow, interval=PAST) for flow in flows]
            elif argument == "q":
                found[argument] = flows
        return found

    def state(self) -> StateSpec:
        """One matrix per head, whatever the length."""
        heads = self.heads("v")
        sizes = [self.key().size, self.value().size] + ([heads.size] if heads else [])
        return StateSpec("RecurrentState", elements=product(sizes))

    def cost(self) -> Cost:
        """Reading and writing the state, and the products inside of a chunk."""
        heads, shared = self.heads("v"), self.heads("q")
        count = heads.size if heads else Dim.of(1)
        groups = shared.size if shared else Dim.of(1)
        key, value = self.key().size, self.value().size
        per_token = key * value * count * 4 + (key * groups + value * count) * (2 * CHUNK)
        return Cost(self.tokens("v").size * per_token)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function on (batch, tokens, heads, channels)."""
        key, value = self.key().name, self.value().name
        texts = [self._text(code, "q", key), self._text(code, "k", key)]
        texts.append(self._text(code, "v", value))
        if "log_decay" in code.operands:
            texts.append(self._decay(code, key))
        rest = valid_argument(code) + starts_argument(code) + state_argument(code)
        text = f"{code.use('linear_attention')}({', '.join(texts)}{rest})"
        heads = self.heads("v")
        if heads is None:
            text = f"{text}.squeeze(2)"
        have = ["batch", self.tokens("v").name, *([heads.name] if heads else []), value]
        return arrange(text, have, names(self.type()))

    def _text(self, code: Code, argument: str, channels: str) -> str:
        kind: TensorType = getattr(self, argument)
        heads = self.heads(argument)
        middle = [heads.name] if heads else []
        want = ["batch", self.tokens(argument).name, *middle, channels]
        text = arrange(code[argument], names(kind), want)
        return text if heads else f"{primary(text)}.unsqueeze(2)"

    def _decay(self, code: Code, key: str) -> str:
        heads = self.heads("log_decay") or Axis("heads", Dim.of(1))
        target = TensorType((self.tokens("v"), heads, self.key()))
        mine = code.types["log_decay"]
        assert isinstance(mine, TensorType)
        own = next((axis for axis in mine.axes if axis.clock is not None), None)
        if own is not None:
            target = target.with_axes((own, *target.axes[1:]))
        return Code(code.operands, code.types, target).aligned("log_decay")
