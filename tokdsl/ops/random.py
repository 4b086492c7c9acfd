"""Random numbers: dropout and noise, drawn in training only."""

from __future__ import annotations

from typing import ClassVar

from tokdsl.ops.axes import need_float
from tokdsl.ops.base import Code, Cost, Fault, Op, Operand, op
from tokdsl.types.tensors import TensorType
from tokdsl.types.time import Flow


@op("dropout")
class Dropout(Op):
    """In training every entry is 0 with probability ``p``, the others are scaled by 1 / (1 - p).

    Shape: [*a] -> [*a].   Gradient: smooth.
    """

    random: ClassVar[bool] = True

    x: Operand
    p: float = 0.1

    def type(self) -> TensorType:
        """Return the operand's type."""
        if not 0.0 <= self.p < 1.0:
            raise Fault("argument-type", f"`p` must be in 0 .. 1, found {self.p}", "p")
        return need_float(self.x, "x", "dropout")

    def cost(self) -> Cost:
        """One product per entry."""
        return Cost(self.x.size)

    def torch(self, code: Code) -> str:
        """Return ``F.dropout``, or the operand where nothing is dropped."""
        if self.p == 0.0:
            return code["x"]
        return f"F.dropout({code['x']}, {self.p!r}, self.training)"


class Noise(Op):
    """Base of the noises: only the shape and dtype of ``like`` matter."""

    random: ClassVar[bool] = True

    like: Operand

    def type(self) -> TensorType:
        """Return the type that noise is drawn for."""
        return need_float(self.like, "like", self.op_name)

    def flows(self) -> dict[str, list[Flow]]:
        """No value is read."""
        return {}

    def gradient(self) -> dict[str, bool]:
        """None: noise does not depend on ``like``."""
        return {"like": False}

    def cost(self) -> Cost:
        """A few FLOPs per entry."""
        return Cost(self.like.size * 4)


@op("gumbel_noise")
class GumbelNoise(Noise):
    """Samples of the standard Gumbel distribution in training, 0 otherwise.

    ``argmax(logits + gumbel_noise(logits))`` samples from ``softmax(logits)``.

    Shape: [*a] -> [*a].   Gradient: none.
    """

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        return f"{code.use('gumbel_noise')}({code['like']}, self.training)"


@op("uniform_noise")
class UniformNoise(Noise):
    """Uniform samples between ``low`` and ``high`` in training, otherwise their mean.

    Shape: [*a] -> [*a].   Gradient: none.
    """

    low: float = 0.0
    high: float = 1.0

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        bounds = f"{self.low!r}, {self.high!r}"
        return f"{code.use('uniform_noise')}({code['like']}, {bounds}, self.training)"


@op("normal_noise")
class NormalNoise(Noise):
    """Normal samples with standard deviation ``std`` in training, 0 otherwise.

    Shape: [*a] -> [*a].   Gradient: none.
    """

    std: float = 1.0

    def torch(self, code: Code) -> str:
        """Return a call of the package's function."""
        return f"{code.use('normal_noise')}({code['like']}, {self.std!r}, self.training)"
