"""The node that stands for a fused region in a module."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokdsl.graph.program import Module, Node
from tokdsl.lower.kernels.report import RegionReport
from tokdsl.lower.plan import KernelPlan

#: kind of the modules that hold the nodes of a region
REGION = "region"


@dataclass(eq=False, slots=True)
class RegionNode(Node):
    """Operations that are one function of ``fused.py``: a kernel on a GPU.

    Its inputs and outputs are those of `module`, the same values.

    Args:
        module: the operations, with ``statics["choices"]``: names of the choices among them.
        kernel: the template and what it is filled with; the name is a wish.
        arguments: which inputs the kernel is given, in order.
        report: what is said of it; it learns the name that the function gets.
    """

    module: Module = field(kw_only=True)
    kernel: KernelPlan | None = field(default=None, kw_only=True)
    arguments: tuple[int, ...] = field(default=(), kw_only=True)
    report: RegionReport | None = field(default=None, kw_only=True)
