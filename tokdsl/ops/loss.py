"""Losses: cross entropies, distances, divergence."""

from __future__ import annotations

from typing import ClassVar

from tokdsl.ops.axes import (
    Reduced,
    aligned,
    arrange,
    dim_text,
    masked_axes,
    names,
    need_bool,
    need_float,
    need_integer,
    reduced,
    token_mask,
)
from tokdsl.ops.base import (
    AxisRef,
    Code,
    Companion,
    Cost,
    Fault,
    Op,
    Operand,
    broadcast,
    find_axis,
    op,
    tensor,
)
from tokdsl.ops.cast import cast_text
from tokdsl.ops.precedence import fill, primary
from tokdsl.types.tensors import Axis, TensorType, promote
from tokdsl.types.time import Flow


class _CrossEntropy(Op):
    """Base of the cross entropies over classes; targets of -100 do not count."""

    logits: Operand
    targets: Operand
    over: AxisRef | None
    label_smoothing: float

    def classes(self) -> Axis:
        """Return the axis of the classes."""
        logits = need_float(self.logits, "logits", self.op_name)
        if self.over is None and not logits.axes:
            raise Fault(
                "operand-shape", f"`logits` need an axis of classes, found {logits}", "logits"
            )
        return find_axis(
            logits, self.over if self.over is not None else logits.axes[-1].name, "over"
        )

    def rows(self) -> TensorType:
        """Return the type of one loss per target.

        Raises:
            Fault: if logits and targets do not have the same other axes.
        """
        logits, classes = tensor(self.logits, "logits"), self.classes()
        targets = need_integer(self.targets, "targets", self.op_name)
        rest = logits.with_axes(tuple(a for a in logits.axes if a is not classes))
        if set(names(rest)) != set(names(targets)):
            raise Fault(
                "operand-shape", f"`targets` {targets} do not fit `logits` {logits}", "targets"
            )
        broadcast(rest, targets, what="`logits` and `targets`")
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise Fault(
                "argument-type",
                f"`label_smoothing` must be in 0 .. 1, found {self.label_smoothing}",
                "label_smoothing",
            )
        return TensorType(rest.axes, promote(logits.dtype, "f32"), logits.batched)

    def gradient(self) -> dict[str, bool]:
        """None through targets."""
        return {"logits": self.classes().size.number != 1, "targets": False}

    def cost(self) -> Cost:
        """An exponential per logit."""
        return Cost(self.logits.size * 5)

    def call(self, code: Code) -> str:
        """Return a call of the package's function, classes last."""
        logits, rows = tensor(self.logits, "logits"), names(self.rows())
        first = arrange(code["logits"], names(logits), [*rows, self.classes().name])
        second = arrange(code["targets"], names(tensor(self.targets, "targets")), rows)
        smooth = f", label_smoothing={self.label_smoothing!r}" if self.label_smoothing else ""
        return f"{code.use(self.op_name)}({first}, {second}{smooth})"


@op("cross_entropy")
class CrossEntropy(_CrossEntropy):
    """The mean over all targets that are not -100 of ``-log softmax(logits)[target]``.

    Computed in float32; 0 where there is no target.

    Shape: [*, classes], i64[*] -> f32[].   Gradient: smooth in the logits.
    """

    logits: Operand
    targets: Operand
    over: AxisRef | None = None
    label_smoothing: float = 0.0

    def type(self) -> TensorType:
        """Return a scalar."""
        return TensorType((), self.rows().dtype, batched=False)

    def torch(self, code: Code) -> str:
        """Return the call."""
        return self.call(code)


@op("cross_entropy_each")
class CrossEntropyEach(_CrossEntropy):
    """``-log softmax(logits)[target]`` of every target, 0 where it is -100; in float32.

    Shape: [*, classes], i64[*] -> f32[*].   Gradient: smooth in the logits.
    """

    logits: Operand
    targets: Operand
    over: AxisRef | None = None
    label_smoothing: float = 0.0

    def type(self) -> TensorType:
        """Return one loss per target."""
        return self.rows()

    def torch(self, code: Code) -> str:
        """Return the call."""
        return self.call(code)


class Distance(Op):
    """Base of the mean distances of two values over everything; padding never counts."""

    x: Operand
    y: Operand
    where: Operand | None = None
    valid: Companion | None = None

    #: torch expression of the distance of two entries
    pattern: ClassVar[str] = ""

    def full(self) -> TensorType:
        """Return the type of one distance per entry."""
        kinds = [tensor(self.x, "x"), tensor(self.y, "y")]
        if self.where is not None:
            kinds.append(need_bool(self.where, "where", self.op_name))
        dtype = promote(kinds[0].dtype, kinds[1].dtype)
        wide = broadcast(*kinds).with_dtype(dtype)
        return need_float(wide, "x", self.op_name)

    def type(self) -> TensorType:
        """Return a scalar."""
        return TensorType((), self.full().dtype, batched=False)

    def wants_valid(self) -> list[Axis]:
        """Return the token axes whose padding changes the result."""
        return [a for a in self.full().axes if a.clock is not None and not a.memory]

    def flows(self) -> dict[str, list[Flow]]:
        """Everything is read."""
        return {name: flows for name, flows in super().flows().items() if name != "valid"}

    def cost(self) -> Cost:
        """Difference, distance, sum."""
        return Cost(self.full().size * 3)

    def each(self, code: Code) -> str:
        """Return the text of one distance per entry."""
        full = self.full()
        return fill(self.pattern, x=aligned(code, "x", full), y=aligned(code, "y", full))

    def torch(self, code: Code) -> str:
        """Return the mean, masked where entries do not count."""
        full = self.full()
        tokens = token_mask(code, full, masked_axes(full, Reduced(full.axes, True), self.valid))
        masks = [aligned(code, "where", full)] if self.where is not None else []
        masks += [tokens] if tokens is not None else []
        if not masks:
            return f"{primary(self.each(code))}.mean()"
        mask = masks[0]
        if len(masks) > 1:
            mask = f"{code.use('all_masks')}({', '.join(masks)})"
        return f"{code.use('masked_mean')}({self.each(code)}, {mask})"


@op("mse")
class Mse(Distance):
    """The mean of ``(x - y)**2`` over everything.

    Shape: [*a], [*b] -> [].   Gradient: smooth.
    """

    pattern: ClassVar[str] = "({x} - {y}).square()"


@op("l1")
class L1(Distance):
    """The mean of ``abs(x - y)`` over everything.

    Shape: [*a], [*b] -> [].   Gradient: smooth but where both are equal.
    """

    pattern: ClassVar[str] = "({x} - {y}).abs()"


@op("binary_cross_entropy")
class BinaryCrossEntropy(Distance):
    """The mean of ``-y log sigmoid(x) - (1 - y) log sigmoid(-x)`` over everything.

    ``x`` are logits, ``y`` probabilities or truth values of the same axes.

    Shape: [*], [*] -> [].   Gradient: smooth.
    """

    def full(self) -> TensorType:
        """Return the type of one loss per entry, in the dtype of the logits."""
        x = need_float(self.x, "x", self.op_name)
        if set(names(x)) != set(names(tensor(self.y, "y"))):
            raise Fault("operand-shape", f"`y` {self.y} has not the axes of `x` {x}", "y")
        return super().full().with_dtype(x.dtype)

    def each(self, code: Code, reduction: str = ', reduction="none"') -> str:
        """Return the text of one loss per entry, or of their mean."""
        full = self.full()
        x, y = aligned(code, "x", full), aligned(code, "y", full)
        if self.y.dtype != self.x.dtype:
            y = (
                f"{primary(y)}.to({primary(code['x'])}.dtype)"
                if self.x.dtype == "float"
                else cast_text(code, y, self.x.dtype)
            )
        return f"F.binary_cross_entropy_with_logits({x}, {y}{reduction})"

    def torch(self, code: Code) -> str:
        """Return torch's own mean where everything counts."""
        if self.where is None and "valid" not in code.operands:
            return self.each(code, "")
        return super().torch(code)


@op("kl_divergence")
class KlDivergence(Op):
    """``sum(exp(log_p) * (log_p - log_q))`` over an axis; 0 where ``log_p`` is -inf.

    Shape: [*, over], [*, over] -> [*].   Gradient: smooth.
    """

    log_p: Operand
    log_q: Operand
    over: tuple[AxisRef, ...]

    def full(self) -> TensorType:
        """Return the broadcast of both."""
        return broadcast(
            need_float(self.log_p, "log_p", self.op_name),
            need_float(self.log_q, "log_q", self.op_name),
        )

    def type(self) -> TensorType:
        """Return the type without the axis."""
        full = self.full()
        over = reduced(full, self.over)
        if over.batch:
            raise Fault("argument-type", "`kl_divergence` does not go over the batch", "over")
        return full.with_axes(over.kept(full))

    def cost(self) -> Cost:
        """An exponential per entry."""
        return Cost(self.full().size * 5)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        full = self.full()
        dims = dim_text(reduced(full, self.over).positions(full))
        p, q = aligned(code, "log_p", full), aligned(code, "log_q", full)
        return f"{code.use('kl_divergence')}({p}, {q}, dim={dims})"
