"""Mixing in the frequency domain."""

from __future__ import annotations

from dataclasses import replace

from tokdsl.ops.axes import dim_text, masked_axes, need_float, reduced, token_mask
from tokdsl.ops.base import AxisRef, Code, Companion, Cost, Fault, Op, Operand, op
from tokdsl.types.tensors import TensorType
from tokdsl.types.time import EVERYTHING, Flow


@op("fft_real")
class FftReal(Op):
    """The real part of the discrete Fourier transform over axes.

    Shape: [*, over] -> [*, over].   Gradient: smooth.
    Source: Lee-Thorp et al. 2021 (FNet), arXiv:2105.03824, section 3.2.
    """

    x: Operand
    over: tuple[AxisRef, ...]
    valid: Companion | None = None

    def type(self) -> TensorType:
        """Return the operand's type."""
        kind = need_float(self.x, "x", "fft_real")
        if reduced(kind, self.over).batch:
            raise Fault("argument-type", "`fft_real` does not go over the batch", "over")
        return kind

    def flows(self) -> dict[str, list[Flow]]:
        """Along a token axis every position reads every other."""
        gone = reduced(self.type(), self.over).names
        flows = super().flows().get("x", [])
        return {"x": [replace(f, interval=EVERYTHING) if f.source in gone else f for f in flows]}

    def repair(self) -> str:
        """How to read no later token."""
        return (
            "a transform over tokens reads all of them; mix with attention under `mask = causal`, "
            "`conv1d` or `ema`"
        )

    def cost(self) -> Cost:
        """A small number of FLOPs per entry; the logarithm of the length is left out."""
        return Cost(self.type().size * 10)

    def torch(self, code: Code) -> str:
        """Return a call of the package's function; padding is 0."""
        kind = self.type()
        over = reduced(kind, self.over)
        text = code["x"]
        mask = token_mask(code, kind, masked_axes(kind, over, self.valid))
        if mask:
            text = f"{code.use('fill_masked')}({text}, {mask}, 0.0)"
        return f"{code.use('fft_real')}({text}, dim={dim_text(over.positions(kind))})"
