"""Instantiation of definitions: one module per distinct use, checked against its signature."""

from __future__ import annotations

from tokdsl.diagnostics import Label
from tokdsl.graph import signature, statics
from tokdsl.graph.builder import Poison
from tokdsl.graph.calls import Calls
from tokdsl.graph.frame import Frame
from tokdsl.graph.program import SELECTION, CallNode, LoopNode, Module, OpNode, Value
from tokdsl.graph.signature import Matched
from tokdsl.graph.statics import AbstractClosure, Closure, Unknown, static_key
from tokdsl.ops.base import AxisRef, Fault
from tokdsl.resolve.modules import DefinitionRef
from tokdsl.source import Span
from tokdsl.syntax import tree
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import TensorType, UnknownType, ValueType

#: a deeper chain of calls is a mistake and would exhaust the stack
MAX_DEPTH = 60


class Definitions(Calls):
    """Calls of definitions."""

    def instantiate(
        self,
        frame: Frame,
        target: DefinitionRef,
        operands: dict[str, Value | None],
        statics: dict[str, object],
        node: tree.Node,
        closure: Closure | None = None,
    ) -> object:
        """Return the result of a definition called with these arguments.

        Raises:
            Poison: if the arguments do not fit, or the body has errors (reported).
        """
        span = node.span
        self.check_recursion(frame, target, span)
        if any(isinstance(v, Value) and isinstance(v.type, UnknownType) for v in operands.values()):
            raise Poison
        matched = Matched()
        inner_types = self._match(frame, target, operands, statics, span, matched)
        values = self._defaults(frame, target, statics, matched, span)
        module, found = self._module(frame, target, operands, inner_types, values, matched, span)
        if module.broken:
            raise Poison
        return self._call_node(frame, target, module, operands, found, node, closure)

    def check_recursion(self, frame: Frame, target: DefinitionRef, span: Span) -> None:
        """Report a definition that is called while it is being instantiated.

        Raises:
            Poison: if it is (reported).
        """
        if target in frame.active or len(frame.active) > MAX_DEPTH:
            from tokdsl.resolve.diagnostics import RecursiveDefinition

            chain = [ref.name for ref in frame.active]
            start = chain.index(target.name) if target.name in chain else 0
            at, labels = self.at_user(frame, span, ())
            self.report.add(
                RecursiveDefinition(
                    span=at, path=" -> ".join([*chain[start:], target.name]), labels=labels
                )
            )
            raise Poison

    def _match(
        self,
        frame: Frame,
        target: DefinitionRef,
        operands: dict[str, Value | None],
        given: dict[str, object],
        span: Span,
        matched: Matched,
    ) -> dict[str, ValueType | None]:
        for name, value in given.items():
            if isinstance(value, Dim):
                matched.sizes[name] = value
        types: dict[str, ValueType | None] = {}
        for formal in target.definition.operands:
            value = operands.get(formal.name)
            if value is None:
                if formal.default is None:
                    raise self.fail(
                        frame,
                        "missing-argument",
                        span,
                        f"`{target.name}` needs the tensor `{formal.name}`",
                    )
                types[formal.name] = None
                continue
            if not signature.is_known(formal.type):
                raise Poison  # reported where the definition is checked alone
            assert isinstance(formal.type, tree.TensorType)
            try:
                types[formal.name] = signature.match(
                    formal.type,
                    value.type,
                    formal.name,
                    matched,
                    lambda node: self._size(target, matched, node),
                )
            except Fault as fault:
                where = Label(formal.span, "stated here")
                raise self.fail(
                    frame, fault.kind, span, f"in `{target.name}`: {fault.text}", labels=(where,)
                ) from None
        return types

    def _size(self, target: DefinitionRef, matched: Matched, node: tree.Expression) -> Dim | None:
        """Return a size written in a signature, if its names are already bound."""
        frame = Frame(Module(target.name, "signature", node.span), target.scope)
        for name, size in matched.sizes.items():
            frame.bind(name, size)
        for parameter in target.definition.parameters:
            if parameter.name not in matched.sizes:
                frame.bind(parameter.name, Unknown("int"))
        try:
            value = self.evaluate(frame, node)
        except Poison:
            return None
        return value if isinstance(value, Dim) else None

    def _defaults(
        self,
        frame: Frame,
        target: DefinitionRef,
        given: dict[str, object],
        matched: Matched,
        span: Span,
    ) -> dict[str, object]:
        """Return the value of every static parameter: given, or its default."""
        values: dict[str, object] = {}
        inner = Frame(frame.module, target.scope, trace=frame.trace)
        for name, size in matched.sizes.items():
            inner.bind(name, size)
        for parameter in target.definition.parameters:
            name = parameter.name
            if name in given:
                values[name] = given[name]
            elif parameter.default is not None:
                values[name] = self.parameter_value(inner, parameter, parameter.default)
            elif name in matched.sizes:
                values[name] = matched.sizes[name]
            else:
                raise self.fail(
                    frame,
                    "missing-argument",
                    span,
                    f"`{target.name}` needs `{name}`",
                    help=f"write `{target.name}({name} = ...)`",
                    labels=(Label(parameter.span, "declared here without a default"),),
                )
            inner.bind(name, values[name])
        return values

    # ----------------------------------------------------------------- modules

    def _module(
        self,
        frame: Frame,
        target: DefinitionRef,
        operands: dict[str, Value | None],
        types: dict[str, ValueType | None],
        values: dict[str, object],
        matched: Matched,
        span: Span,
    ) -> tuple[Module, Matched]:
        stack = frame.stack
        key = (
            id(target),
            tuple(types.items()),
            tuple((name, static_key(value)) for name, value in values.items()),
            stack,
        )
        module = self.instances.get(key)
        if module is None:
            module = self._build(frame, target, types, values, matched, span)
            if not _captures(values) and not makes_clock(module):
                self.instances[key] = module
        return module, matched

    def _build(
        self,
        frame: Frame,
        target: DefinitionRef,
        types: dict[str, ValueType | None],
        values: dict[str, object],
        matched: Matched,
        span: Span,
    ) -> Module:
        definition = target.definition
        module = Module(definition.name, definition.kind, definition.name_span)
        module.stack = frame.stack
        module.doc = definition.doc
        module.statics = dict(values)
        inner = Frame(
            module,
            target.scope,
            stack=frame.stack,
            trace=(*frame.trace, Label(span, f"in `{target.name}`")),
            active=(*frame.active, target),
            symbolic=frame.symbolic,
        )
        self._bind_inputs(inner, definition, types)
        if frame.stack is not None:
            self._bind_groups(frame, inner, span)
        self._bind_statics(inner, values, matched)
        self.finish_module(inner, definition, matched)
        return module

    def _bind_inputs(
        self,
        inner: Frame,
        definition: tree.Definition,
        types: dict[str, ValueType | None],
    ) -> None:
        for operand in definition.operands:
            kind = types[operand.name]
            if kind is None:
                inner.bind(operand.name, None)
                continue
            value = Value(kind, operand.span, operand.name, owner=inner.module)
            inner.module.inputs.append(value)
            inner.bind(operand.name, value, operand.span, "operand")
            if inner.stream is None:
                inner.stream = value

    def _bind_groups(self, frame: Frame, inner: Frame, span: Span) -> None:
        """Give a stacked module the number of rows of each expert as a hidden input."""
        kind = TensorType((frame.stack,), "i64", batched=False) if frame.stack else UnknownType()
        groups = Value(kind, span, "groups", owner=inner.module)
        inner.module.inputs.append(groups)
        inner.groups = groups
        axes = [a for v in inner.module.inputs for a in v.type.axes if a.group is not None]
        inner.rows = axes[0] if axes else None

    def _bind_statics(self, inner: Frame, values: dict[str, object], matched: Matched) -> None:
        for name, size in matched.sizes.items():
            if name not in inner.names:
                inner.bind(name, size)
        for name, value in values.items():
            if (
                name not in inner.module.statics
                or name not in inner.names
                or not isinstance(inner.names[name].value, Value)
            ):
                inner.bind(name, value, inner.module.span, "parameter")

    def finish_module(self, inner: Frame, definition: tree.Definition, matched: Matched) -> None:
        """Read the body and check its result against the signature."""
        module = inner.module
        try:
            result = self.run_body(inner, definition.body)
            module.results = self._results(inner, definition, result)
            self._check_results(inner, definition, matched)
        except Poison:
            module.broken = True

    def _results(
        self, inner: Frame, definition: tree.Definition, result: object
    ) -> tuple[Value, ...]:
        last = definition.body.statements[-1] if definition.body.statements else definition.body
        values = result if isinstance(result, tuple) else (result,)
        return tuple(self.tensor(inner, value, last) for value in values)

    def _check_results(self, inner: Frame, definition: tree.Definition, matched: Matched) -> None:
        stated = definition.result
        if stated is None:
            return
        wanted = stated.items if isinstance(stated, tree.TupleType) else (stated,)
        results = inner.module.results
        last = definition.body.statements[-1]
        if len(wanted) != len(results):
            raise self.fail(
                inner,
                "result-count",
                last.span,
                f"`{definition.name}` states {len(wanted)} results, its body gives {len(results)}",
            )

        def size(node: tree.Expression) -> Dim | None:
            try:
                value = self.evaluate(inner, node)
            except Poison:
                return None
            return value if isinstance(value, Dim) else None

        for formal, value in zip(wanted, results, strict=True):
            try:
                signature.check_result(formal, value.type, matched, size)
            except Fault as fault:
                raise self.fail(
                    inner,
                    fault.kind,
                    last.span,
                    f"in `{definition.name}`: {fault.text}",
                    labels=(Label(stated.span, "stated here"),),
                ) from None

    # ----------------------------------------------------------------- call sites

    def _call_node(
        self,
        frame: Frame,
        target: DefinitionRef,
        module: Module,
        operands: dict[str, Value | None],
        matched: Matched,
        node: tree.Node,
        closure: Closure | None,
    ) -> object:
        span = node.span
        inputs = [
            value
            for formal in target.definition.operands
            if (value := operands.get(formal.name)) is not None
        ]
        inputs = [self.localize(frame, value, span) for value in inputs]
        if frame.stack is not None:
            groups = self.companion(frame, "groups", inputs) or frame.groups
            assert groups is not None
            inputs.append(groups)
        try:
            kinds = [signature.outward(value.type, matched) for value in module.results]
        except Fault as fault:
            raise self.fail(frame, fault.kind, span, fault.text) from None
        shared = closure is not None and bool(closure.shared)
        attribute = ""
        if owns(module):
            attribute = self._owned_name(frame, target, module, closure, node)
        outputs = tuple(Value(kind, span) for kind in kinds)
        self.add(
            frame,
            CallNode(tuple(inputs), outputs, span, attribute, module=module, shared=shared),
        )
        return outputs[0] if len(outputs) == 1 else outputs

    def _owned_name(
        self,
        frame: Frame,
        target: DefinitionRef,
        module: Module,
        closure: Closure | None,
        node: tree.Node,
    ) -> str:
        if closure is None or not closure.shared:
            return self._attribute_for(frame, closure, target.name, node)
        self.shared_name(frame, closure, node)
        first = frame.shared.setdefault(closure.shared, module)
        if first is not module and not (
            isinstance(first, Module) and parameters_of(first) == parameters_of(module)
        ):
            raise self.fail(
                frame,
                "shared-mismatch",
                node.span,
                f"the shared `{closure.shared}` is used on another type than before",
            )
        return closure.shared


def parameters_of(module: Module) -> list[object]:
    """Return what a module owns, by attribute: streams of other clocks may use the same."""
    found: list[object] = []
    for node in module.nodes:
        if isinstance(node, OpNode) and node.op.parameters():
            found.append((node.attribute, node.op.parameters()))
        elif isinstance(node, CallNode) and owns(node.module):
            found.append((node.attribute, parameters_of(node.module)))
        elif isinstance(node, LoopNode):
            found.append((node.attribute, [parameters_of(layer) for layer in node.modules]))
    return found


def owns(module: Module) -> bool:
    """Whether a module has parameters or state, its own or in what it calls, or runs in blocks."""
    if module.kind == SELECTION:
        return True
    for node in module.nodes:
        if isinstance(node, OpNode) and (node.op.parameters() or node.op.state() is not None):
            return True
        if isinstance(node, CallNode) and owns(node.module):
            return True
        if isinstance(node, LoopNode) and any(owns(m) for m in set(node.modules)):
            return True
    return False


def makes_clock(module: Module) -> bool:
    """Whether a module makes a clock: then each of its uses makes one of its own."""
    for node in module.nodes:
        if isinstance(node, OpNode) and "clock" in node.op.hidden:
            return True
    return any(makes_clock(called) for called in module.modules())


def _captures(values: dict[str, object]) -> bool:
    """Whether a static argument holds tensors or scopes of the caller (so no reuse elsewhere)."""
    from tokdsl.graph.masks import LambdaClosure

    return any(isinstance(value, LambdaClosure) for value in values.values())


__all__ = ["AbstractClosure", "AxisRef", "Definitions", "owns", "statics"]
