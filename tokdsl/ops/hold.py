"""What is made at some tokens and read until it is made anew."""

from __future__ import annotations

from typing import ClassVar

from tokdsl.ops.axes import (
    arrange,
    names,
    need_bool,
    need_float,
    product,
    state_argument,
)
from tokdsl.ops.base import Code, Companion, Cost, Fault, Op, Operand, StateSpec, op, tensor
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import PAST, Flow


def _stream(kind: TensorType, operation: str) -> Axis:
    """Return the token axis of a stream.

    Raises:
        Fault: if there is none, or it is not in time.
    """
    axis = next((a for a in kind.axes if a.clock is not None), None)
    if axis is None or axis.memory or not kind.batched or (axis.clock and axis.clock.cut):
        raise Fault("operand-shape", f"`{operation}` needs a stream of tokens, found {kind}", "x")
    return axis


@op("hold")
class Hold(Op):
    """The value of the last token at which a condition held; its own at the first one.

    ``y[t] = x[t]`` where ``when[t]``, else ``y[t - 1]``. No equation of an element-wise recurrence
    says it of indices.

    Shape: [T, *], bool [T] -> [T, *].   Gradient: smooth in ``x``.
    """

    x: Operand
    when: Operand
    clock: Companion | None = None

    def type(self) -> TensorType:
        """Return the type of ``x``."""
        x, when = tensor(self.x, "x"), need_bool(self.when, "when", "hold")
        own = _stream(x, "hold")
        if len(when.axes) != 1 or when.axes[0].clock != own.clock:
            raise Fault("operand-shape", f"`when` must be a condition per token of {x}", "when")
        return x

    def flows(self) -> dict[str, list[Flow]]:
        """All tokens up to the own one."""
        own = _stream(tensor(self.x, "x"), "hold")
        when = tensor(self.when, "when").axes[0]
        return {
            "x": [Flow(own.name, own.name, PAST)],
            "when": [Flow(when.name, own.name, PAST)],
        }

    def isolates(self) -> bool:
        """Nothing is held from one document to the next."""
        return True

    def gradient(self) -> dict[str, bool]:
        """None through the condition."""
        return {name: name == "x" and self.x.is_float for name, _ in self.operand_types()}

    def state(self) -> StateSpec:
        """The last value."""
        sizes = [a.size for a in self.x.axes if a.clock is None]
        return StateSpec("RecurrentState", elements=product(sizes))

    def torch(self, code: Code) -> str:
        """Return a call of the package's function on tensors (B, T, ...)."""
        kind = tensor(self.x, "x")
        own = _stream(kind, "hold").name
        want = ["batch", own, *(n for n in names(kind) if n not in ("batch", own))]
        x = arrange(code["x"], names(kind), want)
        rest = state_argument(code)
        text = f"{code.use('hold')}({x}, {code['when']}, {code['clock']}{rest})"
        return arrange(text, want, names(kind))


@op("novel")
class Novel(Op):
    """Whether a token is less similar than ``below`` to the last one of which that was true.

    Similarity is the cosine over all channels; the first token is always novel. The comparison is
    with what was chosen before, so no equation over tokens says it.

    Shape: [T, *] -> bool [T].   Gradient: none.
    """

    decision: ClassVar[bool] = True

    x: Operand
    below: float
    clock: Companion | None = None

    def type(self) -> TensorType:
        """One bit per token."""
        kind = need_float(self.x, "x", "novel")
        return TensorType((_stream(kind, "novel"),), "bool")

    def flows(self) -> dict[str, list[Flow]]:
        """All tokens up to the own one."""
        own = _stream(tensor(self.x, "x"), "novel")
        return {"x": [Flow(own.name, own.name, PAST)]}

    def isolates(self) -> bool:
        """The first token of a document is compared with none."""
        return True

    def gradient(self) -> dict[str, bool]:
        """None through a comparison."""
        return {name: False for name, _ in self.operand_types()}

    def choice(self) -> TensorType:
        """The bits."""
        return self.type()

    def state(self) -> StateSpec:
        """The last novel token."""
        sizes = [a.size for a in self.x.axes if a.clock is None]
        return StateSpec("RecurrentState", elements=product(sizes))

    def cost(self) -> Cost:
        """One product per channel."""
        return Cost(tensor(self.x, "x").size * 2)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function on tensors (B, T, ...)."""
        kind = tensor(self.x, "x")
        own = _stream(kind, "novel").name
        want = ["batch", own, *(n for n in names(kind) if n not in ("batch", own))]
        x = arrange(code["x"], names(kind), want)
        rest = state_argument(code)
        if code.decision:
            rest += f", decision={code.decision}"
        return f"{code.use('novel')}({x}, {self.below:.17g}, {code['clock']}{rest})"
