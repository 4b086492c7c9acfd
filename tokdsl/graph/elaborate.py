"""From resolved definitions to the typed graph: models for real, definitions for all sizes."""

from __future__ import annotations

from collections.abc import Mapping

from tokdsl.diagnostics import Report, did_you_mean
from tokdsl.graph import signature, statics
from tokdsl.graph.builder import Poison
from tokdsl.graph.frame import Binding, Frame
from tokdsl.graph.program import (
    AuxNode,
    CallNode,
    Input,
    LoopNode,
    Module,
    Program,
    Requirement,
    StageUse,
    Value,
)
from tokdsl.graph.signature import Matched
from tokdsl.graph.stages import Stages
from tokdsl.graph.statics import AbstractClosure, Closure, Unknown
from tokdsl.graph.tokenizers import plain_steps, read_body, read_tokenizer
from tokdsl.resolve.modules import DefinitionRef, FileScope
from tokdsl.syntax import tree
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, Clock, TensorType, UnknownType, ValueType

#: the types that a static parameter can have
STATIC_TYPES = (
    "int", "float", "bool", "str", "dtype", "axis", "init", "list", "any", *tree.DEFINITION_KINDS
)  # fmt: skip


class Elaborator(Stages):
    """Builds the graph of models and checks definitions."""

    # ----------------------------------------------------------------- definitions alone

    def check_definition(self, target: DefinitionRef) -> Module:
        """Check a definition symbolically, for all sizes of its operands and parameters."""
        definition = target.definition
        module = Module(definition.name, definition.kind, definition.name_span)
        frame = Frame(module, target.scope, active=(target,), symbolic=True)
        matched = Matched()
        self._check_header(frame, definition)
        for parameter in definition.parameters:
            frame.bind(
                parameter.name, self._symbolic_static(frame, parameter), parameter.span, "parameter"
            )

        if definition.kind == "tokenizer":
            self._check_tokenizer(frame, definition)
            return module

        def size(node: tree.Expression) -> Dim | None:
            try:
                value = self.evaluate(frame, node)
            except Poison:
                return None
            return value if isinstance(value, Dim) else None

        for operand in definition.operands:
            kind = signature.symbolic(operand.type, operand.name, size)
            self._bind_symbolic(frame, matched, operand, kind)
        self._check_defaults(frame, definition)
        self.finish_module(frame, definition, matched)
        return module

    def _check_tokenizer(self, frame: Frame, definition: tree.Definition) -> None:
        """Check a tokenizer alone; its parameters are unknown."""
        self._check_defaults(frame, definition)
        try:
            read_body(self, frame, definition)
        except Poison:
            frame.module.broken = True

    def _check_defaults(self, frame: Frame, definition: tree.Definition) -> None:
        """Check that defaults have values of their parameters' types."""
        for parameter in definition.parameters:
            if parameter.default is not None:
                try:
                    self.parameter_value(frame, parameter, parameter.default)
                except Poison:
                    frame.module.broken = True

    def _check_header(self, frame: Frame, definition: tree.Definition) -> None:
        """Check that names in a header are given once and that types are known."""
        seen: set[str] = set()
        named = [(item.name, item.span) for item in definition.operands]
        named += [(item.name, item.span) for item in definition.parameters]
        for name, span in named:
            if name in seen:
                from tokdsl.resolve.diagnostics import NameTaken

                self.report.add(NameTaken(span=span, taken=name))
                frame.module.broken = True
            seen.add(name)
        for operand in definition.operands:
            if not signature.is_known(operand.type):
                self.fail(
                    frame,
                    "operand-kind",
                    operand.span,
                    f"the tensor `{operand.name}` needs a type with axes, of a known kind",
                    help=f"write `{operand.name}: [*, d]`; static parameters go after the `;`",
                )
        for parameter in definition.parameters:
            kind = parameter.type.name if isinstance(parameter.type, tree.NamedType) else "any"
            if kind not in STATIC_TYPES:
                self.fail(
                    frame,
                    "argument-type",
                    parameter.span,
                    f"no static type `{kind}`",
                    help=did_you_mean(kind, STATIC_TYPES),
                )

    def _symbolic_static(self, frame: Frame, parameter: tree.Parameter) -> object:
        kind = parameter.type.name if isinstance(parameter.type, tree.NamedType) else "any"
        if kind == "int":
            return Dim.of(parameter.name)
        if kind in tree.DEFINITION_KINDS:
            return AbstractClosure(kind, parameter.name)
        if kind == "axis":
            from tokdsl.ops.base import AxisRef

            default = parameter.default
            return AxisRef(default.id if isinstance(default, tree.Name) else parameter.name)
        return Unknown(kind)

    def _bind_symbolic(
        self, frame: Frame, matched: Matched, operand: tree.Operand, kind: ValueType
    ) -> None:
        value = Value(kind, operand.span, operand.name, owner=frame.module)
        frame.module.inputs.append(value)
        frame.bind(operand.name, value, operand.span, "operand")
        if frame.stream is None:
            frame.stream = value
        named = [a for a in kind.axes if not a.pack]
        if isinstance(kind, TensorType) and kind.classes is not None:
            label = kind.classes.symbols()
            for name in label:
                frame.names.setdefault(name, _quiet(kind.classes))
                matched.sizes.setdefault(name, kind.classes)
        for axis in named:
            matched.sizes.setdefault(axis.name, axis.size)
            if axis.name not in frame.names:
                frame.bind(axis.name, axis.size)

    # ----------------------------------------------------------------- models

    def elaborate_model(
        self, scope: FileScope, model: tree.Model, overrides: Mapping[str, object]
    ) -> Program:
        """Return the graph of a model with its static parameters set."""
        root = Module(model.name, "model", model.name_span)
        frame = Frame(root, scope)
        program = Program(model.name, model.name_span, {})
        self.program = program
        self._parameters(frame, model, overrides, program)
        for member in model.members:
            try:
                self._member_of(frame, program, member)
            except Poison:
                root.broken = True
        program.aux = collect_aux(program)
        for member in model.members:
            if isinstance(member, tree.Objective):
                self._objective(frame, program, member)
        program.modules = program.all_modules()
        return program

    def _parameters(
        self, frame: Frame, model: tree.Model, overrides: Mapping[str, object], program: Program
    ) -> None:
        names = [p.name for p in model.parameters]
        for name in overrides:
            if name not in names:
                self.fail(
                    frame,
                    "unknown-override",
                    model.name_span,
                    f"model `{model.name}` has no parameter `{name}`; "
                    f"it has {', '.join(f'`{n}`' for n in names) or 'none'}",
                    help=did_you_mean(name, names),
                )
        for parameter in model.parameters:
            try:
                value = self._model_parameter(frame, parameter, overrides)
            except Poison:
                value = Unknown("any")
            frame.bind(parameter.name, value, parameter.span, "parameter")
            program.parameters[parameter.name] = value

    def _model_parameter(
        self, frame: Frame, parameter: tree.Parameter, overrides: Mapping[str, object]
    ) -> object:
        if parameter.name in overrides:
            kind = parameter.type.name if isinstance(parameter.type, tree.NamedType) else "any"
            value = overrides[parameter.name]
            return self.check_static(frame, kind, value, parameter, parameter.name)
        if parameter.default is None:
            raise self.fail(
                frame,
                "missing-argument",
                parameter.span,
                f"model parameter `{parameter.name}` has no default and is not set",
                help=f"set it: `--set {parameter.name}=...`",
            )
        return self.parameter_value(frame, parameter, parameter.default)

    def _member_of(self, frame: Frame, program: Program, member: tree.ModelMember) -> None:
        if isinstance(member, tree.Stage):
            self._stage(frame, program, member)
        elif isinstance(member, tree.Assign):
            self._model_assign(frame, program, member)
        elif isinstance(member, tree.Require):
            for condition in member.conditions:
                program.requirements.append(self._requirement(frame, condition))
        elif isinstance(member, tree.Weights):
            program.weights.append(member)
        elif isinstance(member, tree.Aux):
            raise self.fail(
                frame, "not-a-stage", member.span, "`aux` belongs in a stage or a definition"
            )

    def _model_assign(self, frame: Frame, program: Program, member: tree.Assign) -> None:
        target = member.targets[0]
        if target.name == "tokenizer":
            pipeline = read_tokenizer(self, frame, member.value)
            program.tokenizer, program.segments = pipeline.base, plain_steps(pipeline)
            return
        self._assign(frame, member)

    def _stage(self, frame: Frame, program: Program, stage: tree.Stage) -> None:
        if frame.names.get(stage.name) is not None:
            from tokdsl.resolve.diagnostics import NameTaken

            self.report.add(NameTaken(span=stage.span, taken=stage.name))
        module = Module(stage.name, "stage", stage.span)
        inner = Frame(module, frame.file, parent=frame)
        operands: list[Value] = []
        for operand in stage.inputs:
            outer = self._stage_input(frame, program, stage, operand)
            value = Value(outer.type, operand.span, operand.name, owner=module)
            module.inputs.append(value)
            operands.append(outer)
            inner.bind(operand.name, value, operand.span, "operand")
            if inner.stream is None:
                inner.stream = value
                inner.names[operand.name].used = True
        for argument in stage.arguments:
            raise self.fail(
                inner,
                "unknown-argument",
                argument.span,
                "a top-level stage takes inputs with types only: `stage text(ids: tokens[vocab])`",
            )
        try:
            self.run_body(inner, stage.body)
            module.results = (self._current(inner, stage),)
        except Poison:
            module.broken = True
            frame.bind(stage.name, Value(UnknownType(), stage.span))
            raise
        kind = module.results[0].type
        result = Value(kind, stage.span, stage.name, owner=frame.module)
        frame.bind(stage.name, result)
        use = StageUse(stage.name, module, (*operands, *inner.captured_from), result)
        node = CallNode(use.inputs, (result,), stage.span, stage.name, module=module)
        result.node = node
        frame.module.nodes.append(node)
        program.stages.append(use)

    def _stage_input(
        self, frame: Frame, program: Program, stage: tree.Stage, operand: tree.Operand
    ) -> Value:
        bound = frame.names.get(operand.name)
        if bound is not None and isinstance(bound.value, Value):
            bound.used = True
            return bound.value
        if operand.default is not None:
            value = self.evaluate(frame, operand.default)
            if isinstance(value, Value):
                return value
        kind, classes = self._input_type(frame, program, stage, operand)
        value = Value(kind, operand.span, operand.name, owner=frame.module)
        frame.bind(operand.name, value)
        program.inputs.append(Input(operand.name, value, classes))
        return value

    def _input_type(
        self, frame: Frame, program: Program, stage: tree.Stage, operand: tree.Operand
    ) -> tuple[TensorType, Dim | None]:
        formal = operand.type
        if not signature.is_known(formal) or not isinstance(formal, tree.TensorType):
            raise self.fail(
                frame,
                "not-a-stage",
                operand.span,
                f"the input `{operand.name}` needs a type",
                help=f"write `{operand.name}: tokens[vocab]` or `{operand.name}: [T, d: 80]`",
            )
        if formal.head == "tokens":
            size = formal.axes[0].size if formal.axes else None
            name = formal.axes[0].name if formal.axes else None
            classes = self._static_size(frame, size, name, operand)
            clock = _clock(program, stage.name)
            axis = Axis("T", clock.length, clock)
            return TensorType((axis,), "i64", classes=classes), classes
        axes: list[Axis] = []
        for axis_ in formal.axes:
            stream = axis_.name is not None and signature.is_token_name(axis_.name)
            # inputs of one stage that share an axis are one stream: an entry of each per token
            name = stage.name if axis_.name == "T" else f"{stage.name}.{axis_.name}"
            if axis_.name is not None and stream and not axis_.size:
                clock = _clock(program, name)
                axes.append(Axis(axis_.name, clock.length, clock))
                continue
            size_ = self._static_size(frame, axis_.size, axis_.name, operand)
            if axis_.name is not None and stream:  # always all tokens: no padding, no positions
                axes.append(Axis(axis_.name, size_, Clock(name)))
                continue
            axes.append(Axis(axis_.name or f"axis_{len(axes)}", size_))
        return TensorType(tuple(axes), formal.head or "float"), None

    def _static_size(
        self, frame: Frame, size: tree.Expression | None, name: str | None, operand: tree.Operand
    ) -> Dim:
        node = size or tree.Name(operand.span, name or "")
        value = self.evaluate(frame, node)
        if not isinstance(value, Dim):
            raise self.fail(
                frame,
                "argument-type",
                operand.span,
                f"a size must be int, found {statics.type_name(value)} {statics.show(value)}",
            )
        number = value.number
        if number is not None and number <= 0:
            raise self.fail(
                frame, "size-mismatch", operand.span, f"an axis cannot have size {number}"
            )
        return value

    # ----------------------------------------------------------------- objective, requirements

    def _objective(self, frame: Frame, program: Program, member: tree.Objective) -> None:
        module = Module("objective", "objective", member.span)
        inner = ObjectiveFrame(module, frame.file, parent=frame)
        try:
            value = self.tensor(inner, self._objective_value(inner, program, member.value), member)
            if isinstance(value.type, UnknownType):
                raise Poison
            if value.type.axes or value.type.batched:
                left = [a.name for a in value.type.axes]
                left += ["batch"] if value.type.batched else []
                raise self.fail(
                    inner,
                    "objective-not-scalar",
                    member.span,
                    f"the objective must be one number; axes left: "
                    f"{', '.join(f'`{n}`' for n in left)}",
                    help="reduce them: `mean(...)` reduces all axes and the batch",
                )
            module.results = (value,)
        except Poison:
            module.broken = True
            frame.module.broken = True
            return
        program.objective = module
        for value in inner.captured_from:
            program.objective_inputs.append(self._objective_source(program, inner, value))

    def _objective_value(self, frame: Frame, program: Program, node: tree.Expression) -> object:
        frame_aux = {
            name: Value(kind, node.span, f"aux.{name}") for name, kind in program.aux.items()
        }
        frame.aux = frame_aux  # type: ignore[attr-defined]
        return self.evaluate(frame, node)

    def _attribute(self, frame: Frame, node: tree.Attribute) -> object:
        if isinstance(node.value, tree.Name) and node.value.id == "aux":
            values = getattr(frame, "aux", None)
            if values is not None:
                return self._aux_value(frame, node, values)
        return super()._attribute(frame, node)

    def _aux_value(self, frame: Frame, node: tree.Attribute, values: dict[str, Value]) -> Value:
        found = values.get(node.name)
        if found is None:
            known = ", ".join(f"`{n}`" for n in values) or "none"
            raise self.fail(
                frame,
                "unknown-aux",
                node.span,
                f"no auxiliary value `{node.name}` is computed; there are: {known}",
                help=did_you_mean(node.name, values),
            )
        return frame.capture(found)

    def _objective_source(self, program: Program, frame: Frame, value: Value) -> str:
        if value.name.startswith("aux."):
            return "aux:" + value.name[4:]
        for stage in program.stages:
            if stage.result is value:
                return "stage:" + stage.name
        return "input:" + value.name

    def _requirement(self, frame: Frame, node: tree.Expression) -> Requirement:
        operator: str | None = None
        bound: float | None = None
        fact = node
        unit = ""
        if isinstance(node, tree.Binary) and node.operator in ("<", "<=", ">", ">=", "=="):
            operator, fact = node.operator, node.left
            bound = statics.as_float(self.evaluate(frame, node.right))
            unit = node.right.unit if isinstance(node.right, tree.Number) else ""
            if bound is None:
                raise self.fail(
                    frame, "static-value", node.right.span, "a bound must be a static number"
                )
        scope = ""
        if isinstance(fact, tree.Attribute) and isinstance(fact.value, tree.Name):
            return Requirement(fact.name, operator, bound, node.span, fact.value.id, unit)
        if isinstance(fact, tree.Name):
            return Requirement(fact.id, operator, bound, node.span, scope, unit)
        raise self.fail(
            frame,
            "unknown-fact",
            node.span,
            f"`{node.span.text}` is not a fact",
            help="write `causal` or a comparison such as `params < 13B`",
        )


class ObjectiveFrame(Frame):
    """The scope of the objective: it also sees ``aux``."""

    aux: dict[str, Value]


def _clock(program: Program, name: str) -> Clock:
    """Return the clock of a token axis of an input; aligned inputs share it."""
    clock = Clock(name)
    if clock not in program.clocks:
        program.clocks.append(clock)
    return clock


def _quiet(value: object) -> Binding:
    return Binding(value)


def collect_aux(program: Program) -> dict[str, ValueType]:
    """Return the type of each auxiliary value: what all places give, on the axis ``collected``."""
    counts: dict[str, int] = {}
    kinds: dict[str, ValueType] = {}
    totals: dict[int, dict[str, int]] = {}
    for module in program.all_modules():
        mine: dict[str, int] = {}
        for node in module.nodes:
            if isinstance(node, AuxNode):
                mine[node.name] = mine.get(node.name, 0) + 1
                kinds.setdefault(node.name, node.inputs[0].type)
            elif isinstance(node, CallNode):
                _count(mine, totals.get(id(node.module), {}))
            elif isinstance(node, LoopNode):
                for body in node.modules:
                    _count(mine, totals.get(id(body), {}))
        totals[id(module)] = mine
    for stage in program.stages:
        _count(counts, totals.get(id(stage.module), {}))
    found: dict[str, ValueType] = {}
    for name, kind in kinds.items():
        if isinstance(kind, TensorType):
            axis = Axis("collected", Dim.of(counts.get(name, 0)))
            axes = tuple(a.renamed(a.name.lstrip("^")) for a in kind.axes)
            found[name] = TensorType((axis, *axes), kind.dtype, kind.batched)
    return found


def _count(into: dict[str, int], more: dict[str, int]) -> None:
    for name, number in more.items():
        into[name] = into.get(name, 0) + number


def elaborate(
    scope: FileScope, model: tree.Model, overrides: Mapping[str, object], report: Report
) -> Program:
    """Return the typed graph of a model; findings go to the report."""
    return Elaborator(report).elaborate_model(scope, model, overrides)


def check_definitions(scope: FileScope, report: Report) -> list[Module]:
    """Check every definition of a file for all sizes; findings go to the report."""
    elaborator = Elaborator(report)
    return [elaborator.check_definition(ref) for ref in scope.definitions()]


__all__ = ["Closure", "Elaborator", "check_definitions", "elaborate"]
