"""The functions of ``fused.py`` and their kernels, each once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tokdsl.graph.program import Module, OpNode
from tokdsl.lower.kernels.nodes import RegionNode
from tokdsl.lower.plan import FunctionPlan, KernelPlan
from tokdsl.types.tensors import TensorType, annotation

if TYPE_CHECKING:
    from tokdsl.lower.texts import Texts


@dataclass
class Fused:
    """What was written so far; equal regions share a function.

    Args:
        functions: in order.
        kernels: in order.
    """

    functions: list[FunctionPlan] = field(default_factory=list)
    kernels: list[KernelPlan] = field(default_factory=list)
    _keys: dict[object, str] = field(default_factory=dict)

    def add(self, outer: Texts, node: RegionNode, decides: bool) -> str:
        """Write the function of a region; return its name."""
        from tokdsl.lower.body import Body
        from tokdsl.lower.build import size_names
        from tokdsl.lower.texts import shape_comment

        module = node.module
        body = Body(module, outer.shared, size_names(module))
        body.decision_clock = outer.decision_clock
        inputs = []
        for value in module.inputs:
            text = body.input(value, value.name or "x")
            inputs.append((text, annotation(value.type, value.python), shape_comment(value.type)))
        result = body.run()
        names = [name for name, _, _ in inputs]
        if decides:
            inputs.append(("decisions", "Decisions | None", ""))
            outer.shared.functions.add("Decisions")
        kinds = [annotation(v.type) for v in module.results]
        returns = kinds[0] if len(kinds) == 1 else f"tuple[{', '.join(kinds)}]"
        wish = node.kernel.name if node.kernel is not None else module.name
        key = (
            wish,
            tuple(inputs),
            tuple((s.targets, s.text) for s in body.statements),  # type: ignore[union-attr]
            result,
        )
        known = key in self._keys
        name = self._keys.setdefault(key, self._name(wish))
        if node.report is not None:
            node.report.name = name
        if known:
            return name
        function = FunctionPlan(
            name, module.name, module.span, inputs, body.statements, result, returns
        )
        function.doc = f"Rows of `{module.name}`"
        if node.kernel is not None:
            if node.arguments:  # else who is given the function knows of the kernel
                given = ", ".join(names[i] for i in node.arguments)
                also = " and decisions is None" if decides else ""
                asked = ", ".join(_asked(module, names))
                function.kernel = (f"on_kernels({asked}){also}", f"KERNELS.{name}({given})")
            self.kernels.append(replace(node.kernel, name=name))
        self.functions.append(function)
        return name

    def _name(self, wish: str) -> str:
        taken = {function.name for function in self.functions}
        name, number = wish, 1
        while name in taken:
            number += 1
            name = f"{wish}_{number}"
        return name


def _asked(module: Module, names: list[str]) -> list[str]:
    """Return the inputs of a region that say whether its kernel can run: none may be in float64.

    Those in the working dtype all have the same, so the first of them is enough. What is said to
    be in float32 may be wider where a model is. Of some only the dtype is read.
    """
    read = {
        id(value)
        for node in module.nodes
        if isinstance(node, OpNode)
        for name, value in zip(node.operands, node.inputs, strict=True)
        if name not in node.op.type_operands
    }
    found: list[str] = []
    seen: set[str] = set()
    for name, value in zip(names, module.inputs, strict=True):
        kind = value.type
        if id(value) not in read or not isinstance(kind, TensorType) or not kind.is_float:
            continue
        if kind.dtype not in seen:
            found.append(name)
        seen |= {kind.dtype} & {"float"}
    return found or names[:1]
