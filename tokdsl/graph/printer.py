"""A stable text form of the typed graph, for goldens and ``tokdsl build --print-after=graph``."""

from __future__ import annotations

from tokdsl.graph.program import AuxNode, CallNode, LoopNode, Module, Node, OpNode, Program, Value
from tokdsl.graph.statics import show
from tokdsl.ops.base import arguments


def print_program(program: Program) -> str:
    """Return the modules of a program, callees first, one line per node."""
    labels = _labels(program)
    parts = [_header(program)]
    parts += [print_module(module, labels) for module in program.all_modules()]
    return "\n".join(parts)


def _header(program: Program) -> str:
    lines = [f"model {program.name}"]
    lines += [f"  parameter {name} = {show(value)}" for name, value in program.parameters.items()]
    lines += [f"  input {i.name}: {i.value.type}" for i in program.inputs]
    lines += [f"  aux {name}: {kind}" for name, kind in program.aux.items()]
    lines += [f"  stage {s.name} -> {s.result.type}" for s in program.stages]
    return "\n".join(lines) + "\n"


def _labels(program: Program) -> dict[int, str]:
    """Return a unique name per module: the definition's, numbered where it is used several ways."""
    counts: dict[str, int] = {}
    labels: dict[int, str] = {}
    for module in program.all_modules():
        counts[module.name] = counts.get(module.name, 0) + 1
        number = counts[module.name]
        labels[id(module)] = module.name if number == 1 else f"{module.name}.{number}"
    return labels


def print_module(module: Module, labels: dict[int, str]) -> str:
    """Return one module: its inputs, a line per node, and its results."""
    names: dict[int, str] = {}
    used: dict[str, int] = {}

    def name(value: Value) -> str:
        if id(value) not in names:
            base = f"%{value.name or 'v'}"
            used[base] = used.get(base, 0) + 1
            names[id(value)] = base if used[base] == 1 and value.name else f"{base}{used[base]}"
        return names[id(value)]

    inputs = ", ".join(f"{name(v)}: {v.type}" for v in module.inputs)
    lines = [f"{module.kind} {labels[id(module)]}({inputs})"]
    for node in module.nodes:
        operands = ", ".join(name(v) for v in node.inputs)
        targets = ", ".join(f"{name(v)}: {v.type}" for v in node.outputs)
        owner = f" @{node.attribute}" if node.attribute else ""
        arrow = f"{targets} = " if targets else ""
        lines.append(f"  {arrow}{_what(node, labels)}({operands}){owner}")
    lines.append(f"  -> {', '.join(name(v) for v in module.results)}")
    return "\n".join(lines) + "\n"


def _what(node: Node, labels: dict[int, str]) -> str:
    if isinstance(node, OpNode):
        return _operation(node)
    if isinstance(node, CallNode):
        return f"call {labels[id(node.module)]}"
    if isinstance(node, LoopNode):
        names: list[str] = []
        for module in node.modules:
            names.append(labels[id(module)])
        return f"repeat {len(names)} x {'/'.join(dict.fromkeys(names))}"
    assert isinstance(node, AuxNode)
    return f"aux {node.name} "


def _operation(node: OpNode) -> str:
    statics: list[str] = []
    for spec in arguments(type(node.op)):
        if spec.kind in ("operand", "operands", "companion", "predicate"):
            continue
        value = getattr(node.op, spec.name)
        if value != spec.default and value is not None:
            statics.append(f"{spec.name}={_static(value)}")
    inner = f"[{', '.join(statics)}]" if statics else ""
    return type(node.op).op_name + inner


def _static(value: object) -> str:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return f"{value.name}:{value.size}"  # type: ignore[attr-defined]
    if isinstance(value, tuple):
        return "(" + ", ".join(_static(v) for v in value) + ")"
    return str(value)
