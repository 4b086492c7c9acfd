"""What boxes say: names, key sizes, shapes and colours by kind."""

from __future__ import annotations

from tokdsl.commands.drawing.parts import Box, Form, Kind
from tokdsl.commands.quantities import TIMES
from tokdsl.graph.program import CallNode, LoopNode, Module, OpNode
from tokdsl.graph.statics import Closure
from tokdsl.ops.base import Op
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, RouteType, TensorType, ValueType

#: primitives that mix tokens, and those that normalise
MIXING = ("attend", "attention_scores", "attention_mix", "scan", "convolution", "conv")
NORMALISING = ("rms_normalize", "layer_normalize", "l2_normalize")
#: values that say nothing when they are what everybody expects
USUAL = ("identity", "causal")
#: most lines under a name, and characters in a line
LINES, LINE = 3, 30


def shape(kind: ValueType, several: bool = False) -> str:
    """Return a shape as a reader writes it: length and width.

    Args:
        kind: the type of a value.
        several: whether there are several input clocks, so that lengths need their names.
    """
    if isinstance(kind, RouteType):
        return f"{kind.top.size} of {kind.experts.size}"
    if not isinstance(kind, TensorType):
        return ""
    return f" {TIMES} ".join(_extent(axis, several) for axis in kind.axes)


def _extent(axis: Axis, several: bool) -> str:
    if axis.clock is not None:
        named = several or axis.clock.parent is not None
        return f"T_{axis.clock.name}" if named else "T"
    return str(axis.size)


def describe(module: Module) -> tuple[str, ...]:
    """Return the key sizes of an instantiated definition, one line each."""
    words: list[str] = []
    for name, value in module.statics.items():
        if isinstance(value, Dim) and value.number is not None:
            words.append(f"{name} {value}")
        elif isinstance(value, Closure) and value.name not in USUAL:
            kind = getattr(getattr(value.target, "definition", None), "kind", "")
            if kind not in ("block", "router"):
                words.append(_closure(value))
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 2 <= LINE:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    return tuple(lines[:LINES])


def _closure(value: Closure) -> str:
    sizes = [str(v) for _, v in value.statics if isinstance(v, Dim) and v.number is not None]
    return f"{value.name} {' '.join(sizes)}".rstrip()


def box(module: Module) -> Box:
    """Return the box of an instantiated definition."""
    kind = kind_of(module)
    details = () if kind == "norm" else describe(module)
    if kind == "embedding":
        details = ()  # the shape beside it says the same
    forms: dict[str, Form] = {"reduction": "narrow", "expansion": "widen"}
    return Box(module.name, details, kind, forms.get(module.kind, "plain"))


def kind_of_op(op: Op) -> Kind:
    """Return the colour of a primitive that stands alone."""
    name = op.op_name
    if name in ("embedding", "linear"):
        return "embedding"
    if name in NORMALISING:
        return "norm"
    return "attention" if op.state() is not None else "other"


def kind_of(module: Module) -> Kind:
    """Return what a definition is for: from its declared kind, else from what it is made of."""
    declared: dict[str, Kind] = {
        "attention": "attention",
        "router": "router",
        "reduction": "clock",
        "expansion": "clock",
    }
    if module.kind in declared:
        return declared[module.kind]
    used = _operations(module, set())
    if any(op.state() is not None or op.op_name in MIXING for op in used):
        return "attention"
    names = [op.op_name for op in used]
    owned = [op for op in used if op.parameters()]
    if "embedding" in names:
        return "embedding"
    if any(name in NORMALISING for name in names) and "linear" not in names:
        return "norm"
    if names.count("linear") == 1 and len(owned) == 1:
        return "embedding"
    return "feed-forward" if "linear" in names else "other"


def _operations(module: Module, seen: set[int]) -> list[Op]:
    if id(module) in seen:
        return []
    seen.add(id(module))
    found: list[Op] = []
    for node in module.nodes:
        if isinstance(node, OpNode):
            found.append(node.op)
        elif isinstance(node, CallNode):
            found += _operations(node.module, seen)
        elif isinstance(node, LoopNode):
            for inner in node.modules:
                found += _operations(inner, seen)
    return found
