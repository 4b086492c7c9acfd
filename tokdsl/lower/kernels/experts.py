"""What the template of experts is filled with: the equations between their maps, and gradients."""

from __future__ import annotations

from collections.abc import Sequence

from tokdsl.graph.program import Module, OpNode
from tokdsl.lower.kernels.write import Writer
from tokdsl.lower.plan import KernelPlan
from tokdsl.ops.tile import Grid, NotTiled
from tokdsl.types.tensors import Axis

#: names that the template uses where these lines stand, or as names of maps
TAKEN = (
    "tl", "triton", "torch", "x", "pick", "share", "first", "last", "last_bias", "save", "order",
    "counts", "tiles", "bound", "width", "hidden", "acted", "columns", "column", "tile", "expert",
    "experts", "row", "rows", "live", "token", "tokens", "choice", "choices", "slots", "n", "k",
    "a", "b", "i", "at", "fits", "rest", "there", "here", "left", "right", "matrix", "start",
    "inside", "dtype", "shift", "shifted", "grad", "weight", "bias", "shares", "scale", "result",
    "part", "total", "out", "outputs", "y", "block", "settings", "grid", "few", "ends", "nothing",
    "sent", "each", "wanted", "biases", "found", "saved", "asked", "ctx", "like", "config",
    "dispatch",
)  # fmt: skip


def experts_kernel(wish: str, maps: Sequence[str], middle: Module) -> KernelPlan:
    """Return the kernel of experts whose maps are joined by equations entry by entry.

    Args:
        wish: name of the kernel.
        maps: names of the maps before the equations.
        middle: the equations over their results.

    Raises:
        NotTiled: if an equation has no form over a tile, or none for its gradient.
    """
    names = Grid([], [], [])
    grid = Grid(["BLOCK_M", "BLOCK_N"], [0, 0], ["live[:, None]", "fits[None, :]"])
    for name in TAKEN:
        names.name(name)
        grid.name(name)
    writer = Writer(grid, _place)
    nodes = [node for node in middle.nodes if isinstance(node, OpNode)]
    writer.lay(middle.inputs, nodes)
    inputs = []
    for attribute, value in zip(maps, middle.inputs, strict=True):
        block = grid.name(value.name or attribute)
        writer.text[id(value)] = block
        inputs.append({"name": names.name(attribute), "block": block})
    writer.forward(nodes)
    forward = list(grid.lines)
    result = middle.results[0]
    upstream = grid.name(f"{result.name or 'upstream'}_gradient")
    gradients = writer.reverse(nodes, {id(result): upstream})
    nothing = "tl.zeros([BLOCK_M, BLOCK_N], tl.float32)"
    for entry, value in zip(inputs, middle.inputs, strict=True):
        entry["gradient"] = gradients.get(id(value), nothing)
    activation = {
        "inputs": inputs,
        "forward": forward,
        "result": writer.text[id(result)],
        "gradient": upstream,
        "backward": grid.lines[len(forward) :],
    }
    return KernelPlan("experts", wish, {"activation": activation})


def _place(axis: Axis) -> int:
    if axis.clock is not None:
        raise NotTiled(f"it goes along the tokens `{axis.name}`")
    return 0 if axis.group is not None else 1


__all__ = ["experts_kernel"]
