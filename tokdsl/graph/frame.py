"""The scope in which one body is read: its names, its stream and the module that it fills."""

from __future__ import annotations

import keyword
from dataclasses import dataclass, field

from tokdsl.diagnostics import Label
from tokdsl.graph.program import Module, Value
from tokdsl.resolve.modules import DefinitionRef, FileScope
from tokdsl.source import Span
from tokdsl.types.tensors import Axis

#: what an emitted module cannot call its own: words of Python, and what every module has
_TAKEN = frozenset(keyword.kwlist) | {
    "add_module", "apply", "bfloat16", "buffers", "children", "compile", "cpu", "cuda", "double",
    "eval", "extra_repr", "float", "forward", "half", "ipu", "load_state_dict", "modules", "mtia",
    "named_buffers", "named_children", "named_modules", "named_parameters", "parameters",
    "register_buffer", "register_module", "register_parameter", "requires_grad_",
    "reset_parameters", "share_memory", "state_dict", "to", "to_empty", "train", "training",
    "type", "xpu", "zero_grad",
}  # fmt: skip


@dataclass(eq=False)
class Binding:
    """What a local name stands for, where it was bound and whether it was read."""

    value: object
    span: Span | None = None
    used: bool = True
    kind: str = "value"


@dataclass(eq=False)
class Frame:
    """One body under construction.

    Args:
        module: receives the nodes.
        file: where top-level names are looked up.
        stream: the current stream (``it``), if any.
        parent: the surrounding body whose values may be captured (loop bodies only).
        stack: the experts axis over which parameters are stacked.
        trace: calls through which this body was reached, outermost first.
        active: definitions being instantiated, to find recursion.
        indices: index names declared for token axes (``i`` -> axis).
        symbolic: whether a definition is checked alone, for all sizes.
    """

    module: Module
    file: FileScope
    stream: object = None
    parent: Frame | None = None
    stack: Axis | None = None
    groups: Value | None = None
    rows: Axis | None = None
    trace: tuple[Label, ...] = ()
    active: tuple[DefinitionRef, ...] = ()
    indices: dict[str, Axis] = field(default_factory=dict)
    symbolic: bool = False
    names: dict[str, Binding] = field(default_factory=dict)
    attributes: dict[str, int] = field(default_factory=dict)
    captured: dict[int, Value] = field(default_factory=dict)
    captured_from: list[Value] = field(default_factory=list)
    shared: dict[str, object] = field(default_factory=dict)
    #: names that equations give to calls, by the call's identity
    targets: dict[int, str] = field(default_factory=dict)
    #: arguments of the call that is being read which have their value already, by identity
    evaluated: dict[int, object] = field(default_factory=dict)

    def bind(self, name: str, value: object, span: Span | None = None, kind: str = "value") -> None:
        """Bind a local name; the last binding of a name counts."""
        self.names[name] = Binding(value, span, used=span is None, kind=kind)

    def find(self, name: str) -> Binding | None:
        """Return a local binding; a value of a surrounding body becomes an input of this one."""
        found = self.names.get(name)
        if found is not None:
            found.used = True
            return found
        if self.parent is None:
            return None
        outer = self.parent.find(name)
        if outer is None:
            return None
        if isinstance(outer.value, Value):
            return Binding(self.capture(outer.value))
        return outer

    def capture(self, value: Value) -> Value:
        """Return the input of this module that carries a value of the surrounding body."""
        mine = self.captured.get(id(value))
        if mine is None:
            mine = Value(value.type, value.span, value.name, owner=self.module)
            self.module.inputs.append(mine)
            self.captured[id(value)] = mine
            self.captured_from.append(value)
        return mine

    def visible(self) -> list[str]:
        """Return the local names in scope, for suggestions."""
        outer = self.parent.visible() if self.parent is not None else []
        return [*self.names, *outer]

    def attribute(self, wanted: str) -> str:
        """Return a name for something the module owns: ``wanted``, or ``wanted_2`` and so on."""
        wanted = f"{wanted}_" if wanted in _TAKEN else wanted
        count = self.attributes.get(wanted, 0) + 1
        self.attributes[wanted] = count
        name = wanted if count == 1 else f"{wanted}_{count}"
        if count > 1 and name in self.attributes:
            return self.attribute(name)
        return name
