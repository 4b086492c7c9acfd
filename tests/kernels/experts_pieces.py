"""Activations between the maps of an expert, written as the compiler writes them."""

from __future__ import annotations

from typing import Any


def first_map(name: str) -> dict[str, str]:
    """Return what the template is told of one of the maps before the activation."""
    return {"name": name, "block": f"{name}_block", "gradient": f"{name}_gradient"}


GATED: dict[str, Any] = {
    "inputs": [first_map("gate"), first_map("up")],
    "forward": ["slope = tl.sigmoid(gate_block)", "mixed = gate_block * slope * up_block"],
    "result": "mixed",
    "gradient": "mixed_gradient",
    "backward": [
        "gate_gradient = mixed_gradient * up_block * slope * (1 + gate_block * (1 - slope))",
        "up_gradient = mixed_gradient * gate_block * slope",
    ],
}
SQUARED: dict[str, Any] = {
    "inputs": [first_map("up")],
    "forward": ["positive = tl.maximum(up_block, 0.0)"],
    "result": "positive * positive",
    "gradient": "mixed_gradient",
    "backward": ["up_gradient = mixed_gradient * 2 * positive"],
}
PLAIN: dict[str, Any] = {
    "inputs": [first_map("only")],
    "forward": [],
    "result": "only_block",
    "gradient": "only_gradient",
    "backward": [],
}
