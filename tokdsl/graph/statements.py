"""Statements: equations, steps, ``repeat``, ``residual``, ``if`` and nested stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tokdsl.graph import statics
from tokdsl.graph.builder import Poison
from tokdsl.graph.definitions import Definitions, owns
from tokdsl.graph.frame import Frame
from tokdsl.graph.program import AuxNode, CallNode, LoopNode, Module, OpNode, Value
from tokdsl.graph.statics import AbstractClosure, Closure, Unknown, static_key
from tokdsl.syntax import tree
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, UnknownType

RunBody = Callable[[Frame, tree.Body], object]

#: more layers than this in one ``repeat`` is a mistake, and would only use up memory
MAX_REPEAT = 4096


class Statements(Definitions):
    """Evaluation of bodies."""

    def run_body(self, frame: Frame, body: tree.Body) -> object:
        """Evaluate the statements of a body; return the value of the last one.

        Every statement is read even after one that failed, so that all findings are reported, but
        not after a `require` that does not hold.

        Raises:
            Poison: at the end, if a statement failed.
        """
        result: object = frame.stream
        failed = False
        if not body.statements:
            raise self.fail(frame, "no-value", body.span, "this body is empty and gives no value")
        for statement in body.statements:
            try:
                result = self._statement(frame, statement)
            except Poison:
                failed = True
                self._poison(frame, statement)
                if isinstance(statement, tree.Require):
                    break  # what follows relies on it
        if failed:
            raise Poison
        return result

    def _poison(self, frame: Frame, statement: tree.Statement) -> None:
        """Bind what a failed statement would have bound to unknown values: silent afterwards."""
        unknown = Value(UnknownType(), statement.span)
        if isinstance(statement, tree.Assign):
            for target in statement.targets:
                frame.bind(target.name, unknown)
        elif not isinstance(statement, (tree.Require, tree.Aux)):
            frame.stream = unknown

    def _statement(self, frame: Frame, statement: tree.Statement) -> object:
        match statement:
            case tree.Assign():
                return self._assign(frame, statement)
            case tree.Step():
                return self._step(frame, statement)
            case tree.Aux():
                return self._aux(frame, statement)
            case tree.Repeat():
                return self._repeat(frame, statement)
            case tree.Residual():
                return self._residual(frame, statement)
            case tree.Stage():
                return self.nested_stage(frame, statement)
            case tree.Require():
                return self._require(frame, statement)
            case _:
                raise Poison

    def _require(self, frame: Frame, statement: tree.Require) -> object:
        """An obligation of a definition: a static condition that every use must meet."""
        for condition in statement.conditions:
            value = self.evaluate(frame, condition)
            if value is False:
                raise self.fail(
                    frame,
                    "requirement-broken",
                    condition.span,
                    f"`{condition.span.text}` does not hold",
                )
            if not isinstance(value, (bool, Unknown)):
                raise self.fail(
                    frame,
                    "condition-not-static",
                    condition.span,
                    f"`require` needs a static bool, found {statics.type_name(value)}",
                )
        return frame.stream

    # ----------------------------------------------------------------- equations

    def _assign(self, frame: Frame, statement: tree.Assign) -> object:
        targets = statement.targets
        if statement.shared:
            return self._shared(frame, statement)
        if len(targets) == 1 and isinstance(statement.value, tree.Call):
            frame.targets[id(statement.value)] = targets[0].name
        self._declare_indices(frame, targets)
        start = len(frame.module.nodes)
        value = self.evaluate(frame, statement.value)
        if len(targets) == 1:
            self._name_owner(frame, start, targets[0].name)
            self._bind_target(frame, targets[0], value)
            return value
        values = value if isinstance(value, tuple) else (value,)
        if len(values) != len(targets):
            raise self.fail(
                frame,
                "result-count",
                statement.span,
                f"{len(targets)} names for {len(values)} results",
            )
        for target, item in zip(targets, values, strict=True):
            self._bind_target(frame, target, item)
        return value

    def _name_owner(self, frame: Frame, start: int, name: str) -> None:
        """Name what an equation owns after the equation, if it owns one thing only."""
        owners = [n for n in frame.module.nodes[start:] if n.attribute and has_parameters(n)]
        if len(owners) == 1 and owners[0].attribute.rstrip("_0123456789") != name:
            node = owners[0]
            if node.attribute in frame.shared:
                return
            if isinstance(node, OpNode) or node.attribute == node.module.name:  # type: ignore[attr-defined]
                frame.attributes[node.attribute] = frame.attributes.get(node.attribute, 1) - 1
                node.attribute = frame.attribute(name)

    def _bind_target(self, frame: Frame, target: tree.Target, value: object) -> None:
        if target.name == "_":
            return
        if isinstance(value, Value):
            if not value.name and value.node is not None:
                value.name = target.name
            for declaration in target.indices:
                if value.type.axes and not any(
                    axis.name == declaration.name for axis in value.type.axes
                ):
                    raise self.fail(
                        frame,
                        "unknown-axis",
                        target.span,
                        f"`{target.name}` does not depend on its index `{declaration.name}`",
                    )
            value = self._in_declared_order(frame, target, value)
        frame.bind(target.name, value, target.span, "value")

    def _in_declared_order(self, frame: Frame, target: tree.Target, value: Value) -> Value:
        """Return a value whose index axes come in the order in which the equation names them."""
        wanted = [declaration.name for declaration in target.indices]
        names = [axis.name for axis in value.type.axes]
        have = [name for name in names if name in wanted]
        if have == wanted or set(have) != set(wanted):
            return value
        from tokdsl.ops.base import AxisRef
        from tokdsl.ops.shape import Order

        following = iter(wanted)
        order = tuple(AxisRef(next(following) if n in wanted else n) for n in names)
        moved = self.use(frame, Order, {"x": value}, target.span, axes=order)
        value.name, moved.name = "", value.name
        return moved

    def _declare_indices(self, frame: Frame, targets: tuple[tree.Target, ...]) -> None:
        declared: dict[str, Axis] = {}
        for target in targets:
            for declaration in target.indices:
                axis = self.token_axis(frame, declaration.axis, declaration)
                declared[declaration.name] = replace(axis, name=declaration.name)
        frame.indices.update(declared)

    def _shared(self, frame: Frame, statement: tree.Assign) -> object:
        value = self.evaluate(frame, statement.value)
        name = statement.targets[0].name
        if isinstance(value, AbstractClosure):
            frame.bind(name, value, statement.span)
            return value
        if not isinstance(value, Closure):
            raise self.fail(
                frame,
                "no-value",
                statement.span,
                "`shared` needs a definition that is not yet applied to a tensor",
                help=f"write `shared {name} = definition(static arguments)`",
            )
        shared = replace(value, shared=frame.attribute(name), home=frame.module)
        frame.bind(name, shared, statement.span)
        return shared

    # ----------------------------------------------------------------- steps

    def _step(self, frame: Frame, statement: tree.Step) -> object:
        node = statement.value
        if isinstance(node, tree.If):
            return self._if_step(frame, node)
        value = self.evaluate(frame, node)
        if isinstance(value, Closure):
            if frame.stream is None:
                raise self.fail(
                    frame, "no-value", node.span, f"there is no stream for `{value.name}`"
                )
            stream = self.tensor(frame, frame.stream, node)
            if isinstance(stream.type, UnknownType):
                raise Poison
            value = self.apply_closure(frame, value, stream, node)
        elif isinstance(value, AbstractClosure):
            value = frame.stream
        if isinstance(value, (Dim, float)) and not isinstance(value, bool):
            value = self.tensor(frame, value, node)
        frame.stream = value
        return value

    def _aux(self, frame: Frame, statement: tree.Aux) -> object:
        value = self.tensor(frame, self.evaluate(frame, statement.value), statement.value)
        node = AuxNode((value,), (), statement.span, name=statement.name)
        if not value.name:
            value.name = statement.name
        self.add(frame, node)
        return frame.stream

    def _residual(self, frame: Frame, statement: tree.Residual) -> object:
        for argument in statement.arguments:
            raise self.fail(
                frame,
                "unknown-argument",
                argument.span,
                "`residual` takes no arguments",
                help="write what else is done to the stream as a step of its body",
            )
        before = self._current(frame, statement)
        self.run_body(frame, statement.body)
        after = self._current(frame, statement)
        if isinstance(before.type, UnknownType) or isinstance(after.type, UnknownType):
            raise Poison
        if before.type.axes != after.type.axes:
            raise self.fail(
                frame,
                "type-not-kept",
                statement.span,
                f"`residual` adds {after.type} to {before.type}",
                help="the body must give back the axes that it takes",
            )
        result = self.elementwise(frame, "add", [before, after], statement)
        frame.stream = result
        return result

    def _current(self, frame: Frame, node: tree.Node) -> Value:
        if frame.stream is None:
            raise self.fail(frame, "no-value", node.span, "there is no stream here")
        return self.tensor(frame, frame.stream, node)

    # ----------------------------------------------------------------- conditions

    def branch(self, frame: Frame, node: tree.If) -> object:
        """Return the value of an ``if`` expression; the stream stays as it was."""
        stream = frame.stream
        try:
            return self._if(frame, node, self._run_value)
        finally:
            frame.stream = stream

    def _run_value(self, frame: Frame, body: tree.Body) -> object:
        """Evaluate a body for its last value; a closure there is a value, not a step."""
        last = body.statements[-1] if body.statements else None
        if not isinstance(last, tree.Step):
            return self.run_body(frame, body)
        if len(body.statements) > 1:
            self.run_body(frame, replace(body, statements=body.statements[:-1]))
        return self.evaluate(frame, last.value)

    def _if_step(self, frame: Frame, node: tree.If) -> object:
        if frame.stream is None:
            return self._if(frame, node, self.run_body)
        self._if(frame, node, self.run_body)
        return frame.stream

    def _if(self, frame: Frame, node: tree.If, run: RunBody) -> object:
        condition = self.evaluate(frame, node.condition)
        if condition is None or (isinstance(condition, Closure | AbstractClosure)):
            condition = condition is not None
        elif isinstance(condition, Value) and isinstance(node.condition, tree.Name):
            condition = True
        if condition is True:
            return run(frame, node.then)
        if condition is False:
            if node.otherwise is None:
                return frame.stream
            return run(frame, node.otherwise)
        if isinstance(condition, Unknown):
            return self._both(frame, node, run)
        found = (
            f"a tensor {condition.type}"
            if isinstance(condition, Value)
            else f"{statics.type_name(condition)} {statics.show(condition)}"
        )
        raise self.fail(
            frame,
            "condition-not-static",
            node.condition.span,
            f"`if` needs a static bool, found {found}",
            help="to choose per element write `where(condition, a, b)`",
        )

    def _both(self, frame: Frame, node: tree.If, run: RunBody) -> object:
        """Check both branches while a definition is checked for all sizes."""
        before, stream = dict(frame.names), frame.stream
        result = run(frame, node.then)
        after, end = frame.names, frame.stream
        frame.names, frame.stream = dict(before), stream
        if node.otherwise is not None:
            run(frame, node.otherwise)
        frame.names = {**frame.names, **after}
        frame.stream = end
        return result

    # ----------------------------------------------------------------- repeat

    def _repeat(self, frame: Frame, statement: tree.Repeat) -> object:
        count = self.evaluate(frame, statement.count)
        number = count.number if isinstance(count, Dim) else None
        if isinstance(count, Unknown) or (isinstance(count, Dim) and number is None):
            number = 1
        if number is None or not 0 <= number <= MAX_REPEAT:
            raise self.fail(
                frame,
                "repeat-count",
                statement.count.span,
                f"`repeat` needs a whole number from 0 to {MAX_REPEAT}, "
                f"found {statics.type_name(count)} {statics.show(count)}",
            )
        stream = self._current(frame, statement)
        if number == 0:
            return stream
        if isinstance(stream.type, UnknownType):
            raise Poison
        if frame.symbolic and not (isinstance(count, Dim) and count.is_number):
            number = 1
        if _uses_shared(frame, statement.body):
            return self._unrolled(frame, statement, number)
        return self._loop(frame, statement, stream, number)

    def _unrolled(self, frame: Frame, statement: tree.Repeat, count: int) -> object:
        """Repeat in this very body, so that a definition shared here is one instance."""
        names = dict(frame.names)
        for i in range(count):
            frame.names = dict(names)  # nothing but the stream goes from one layer to the next
            if statement.index is not None:
                number: object = Unknown("int") if frame.symbolic else Dim.of(i)
                frame.bind(statement.index, number)
            self.run_body(frame, statement.body)
        frame.names = names
        return frame.stream

    def _loop(self, frame: Frame, statement: tree.Repeat, stream: Value, count: int) -> object:
        varies = statement.index is not None and _mentions(statement.body, statement.index)
        bodies: list[tuple[Module, list[Value]]] = []
        kind = stream.type
        for i in range(count if varies else 1):
            inner = self._loop_body(frame, statement, Value(kind, stream.span, "x"), i)
            bodies.append((inner.module, inner.captured_from))
            result = inner.module.results[0].type
            if result != kind and not varies:
                raise self.fail(
                    frame,
                    "type-not-kept",
                    statement.span,
                    f"the body of `repeat` turns {kind} into {result}",
                )
            kind = result
        modules, captured = _merge_bodies(bodies)
        if not varies:
            modules = modules * count
        output = Value(kind, statement.span)
        attribute = ""
        if any(owns(m) for m in modules):
            attribute = frame.attribute("layers")
        node = LoopNode(
            (stream, *captured), (output,), statement.span, attribute, modules=tuple(modules)
        )
        self.add(frame, node)
        frame.stream = output
        return output

    def _loop_body(self, frame: Frame, statement: tree.Repeat, stream: Value, index: int) -> Frame:
        module = Module("layer", "layer", statement.span)
        module.stack = frame.stack
        stream.owner = module
        module.inputs.append(stream)
        inner = Frame(
            module,
            frame.file,
            stream=stream,
            parent=frame,
            stack=frame.stack,
            trace=frame.trace,
            active=frame.active,
            indices=dict(frame.indices),
            symbolic=frame.symbolic,
        )
        if frame.groups is not None:
            inner.groups = inner.capture(frame.groups)
        if statement.index is not None:
            number: object = Unknown("int") if frame.symbolic else Dim.of(index)
            inner.bind(statement.index, number)
        try:
            self.run_body(inner, statement.body)
        except Poison:
            frame.module.broken = True
            raise
        module.results = (self._current(inner, statement),)
        return inner

    def nested_stage(self, frame: Frame, statement: tree.Stage) -> object:
        """A stage inside a stage."""
        raise TypeError("defined in stages.py")


def has_parameters(node: object) -> bool:
    """Whether a node owns parameters, itself or in the module that it calls."""
    if isinstance(node, OpNode):
        return bool(node.op.parameters())
    return isinstance(node, CallNode) and owns(node.module)


def _uses_shared(frame: Frame, body: tree.Body) -> bool:
    """Whether a body calls a definition that is shared in the surrounding one."""
    return any(
        isinstance(binding.value, Closure)
        and binding.value.home is frame.module
        and _mentions(body, name)
        for name, binding in frame.names.items()
    )


def _mentions(node: object, name: str) -> bool:
    """Whether a piece of the tree reads a name."""
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, tree.Name):
            if item.id == name:
                return True
        elif isinstance(item, tuple):
            stack.extend(item)
        elif isinstance(item, tree.Node):
            stack.extend(getattr(item, field) for field in type(item).__slots__ if field != "span")
    return False


def _merge_bodies(
    bodies: list[tuple[Module, list[Value]]],
) -> tuple[list[Module], list[Value]]:
    """Make bodies that are alike one object, and give all the same captured inputs."""
    captured: list[Value] = []
    for _, values in bodies:
        captured += [v for v in values if v not in captured]
    for module, values in bodies:
        mine = dict(zip(values, module.inputs[1:], strict=True))
        module.inputs[1:] = [mine.get(v) or Value(v.type, v.span, v.name) for v in captured]
    seen: dict[object, Module] = {}
    return [seen.setdefault(_shape(module), module) for module, _ in bodies], captured


def _shape(module: Module) -> object:
    """Return a key that is equal for modules with the same nodes in the same places."""
    numbers: dict[int, int] = {id(v): i for i, v in enumerate(module.inputs)}
    rows: list[object] = []
    for node in module.nodes:
        inputs = tuple(numbers.get(id(v), -1) for v in node.inputs)
        what: object
        if isinstance(node, OpNode):
            what = (node.op, node.stack)
        elif isinstance(node, CallNode):
            what = (id(node.module), node.shared)
        elif isinstance(node, LoopNode):
            what = tuple(id(m) for m in node.modules)
        else:
            assert isinstance(node, AuxNode)
            what = node.name
        rows.append((type(node).__name__, what, node.attribute, inputs))
        for value in node.outputs:
            numbers[id(value)] = len(numbers)
    results = tuple(numbers.get(id(v), -1) for v in module.results)
    return tuple(rows), results, tuple(v.type for v in module.inputs)


__all__ = ["MAX_REPEAT", "Statements", "static_key"]
