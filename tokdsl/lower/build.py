"""The whole of lowering: named passes from the checked program to the plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tokdsl.checks.facts import Facts
from tokdsl.checks.streaming import Decoding
from tokdsl.checks.weights import read_layouts
from tokdsl.graph.definitions import owns
from tokdsl.graph.parameters import model_parameters
from tokdsl.graph.program import (
    SELECTION,
    AuxNode,
    CallNode,
    Input,
    LoopNode,
    Module,
    OpNode,
    Program,
    StageUse,
    Value,
)
from tokdsl.lower.body import Body, called_by
from tokdsl.lower.chunks import hand_on_first_tokens
from tokdsl.lower.config import config_field, plain
from tokdsl.lower.decisions import choices, clock_of
from tokdsl.lower.experts import fuse_experts
from tokdsl.lower.fixed import KEPT, kept_field
from tokdsl.lower.hoist import Hoister, drop_unused
from tokdsl.lower.inline import Inliner
from tokdsl.lower.kernels.attention import fuse_attention
from tokdsl.lower.kernels.index import fuse_index
from tokdsl.lower.kernels.report import RegionReport
from tokdsl.lower.kernels.rows import fuse_rows
from tokdsl.lower.layouts import lower_layouts
from tokdsl.lower.merge import code_key, take_sizes
from tokdsl.lower.names import class_name, state_names, variable
from tokdsl.lower.plan import ClassPlan, InputPlan, Owned, Plan, StagePlan, StateField
from tokdsl.lower.selection import search_among
from tokdsl.lower.terms import name_terms
from tokdsl.lower.texts import Shared, Unsupported, shape_comment
from tokdsl.ops.base import ParameterSpec
from tokdsl.ops.batch import EXAMPLES
from tokdsl.ops.parameters import Buffer, Linear, Weight
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import TensorType, annotation, ragged

#: class names that every package has
TAKEN = {
    "Model", "Config", "Output", "Loss", "Aux", "Tensor", "Module", "State", "Route", "Decisions",
    "Decision", "Chunks",
}  # fmt: skip


#: more kinds of layers than this are not listed in annotations
MANY = 3
#: decode states whose rows can go on at different times, as those of chunks do
ROWS = {
    "TokenCache": "RowTokenCache",
    "WindowCache": "RowWindowCache",
    "RecurrentState": "RowRecurrentState",
    "ConvolutionState": "RowConvolutionState",
}


@dataclass
class Context:
    """What lowering keeps while it goes through the modules."""

    program: Program
    plan: Plan
    shared: Shared
    names: dict[int, str]
    used: set[str]
    clocks: dict[int, tuple[str, ...]]
    decision_clock: str = ""
    has_chunks: bool = False
    keys: dict[object, str] = field(default_factory=dict)


def lower(program: Program, facts: Facts, digest: str = "") -> Plan:
    """Return the plan of a checked program."""
    inliner, hoister = Inliner(), Hoister()
    stages = [(use, inliner.module(use.module)) for use in program.stages]
    terms = name_terms(program)
    objective = None
    if program.objective is not None:
        objective = Inliner(states=False).module(program.objective)
    for module in (m for _, stage in stages for m in _callees_first(stage)):
        if module.kind == SELECTION:
            search_among(module)
        elif any(called.kind == SELECTION for called in module.modules()):
            drop_unused(module)  # equations over pairs, which the choices have of their own
    hand_on_first_tokens(m for _, module in stages for m in _callees_first(module))
    regions = [r for _, stage in stages for m in _callees_first(stage) for r in fuse_attention(m)]
    for _, module in stages:
        hoister.hoist(module)
    plan = Plan(program.name, streaming=facts.streaming, isolated=facts.isolated, digest=digest)
    plan.regions = regions
    plan.parameters = [config_field(n, v) for n, v in program.parameters.items()]
    if program.tokenizer is not None:
        kind, arguments, _ = program.tokenizer
        plan.tokenizer = kind, {name: plain(value) for name, value in arguments.items()}
        plan.segments = [step for step, _ in program.segments]
    plan.causal, plan.facts = facts.causal, facts.numbers
    shared = Shared(plan.streaming)
    context = Context(program, plan, shared, {}, set(TAKEN), {})
    context.has_chunks = any(ragged(v.type) for _, m in stages for v in _values(m))
    plan.aux = list(program.aux)
    operands = {use.name: _operands(program, use, module) for use, module in stages}
    decoding = facts.tables.get("decoding")
    if plan.streaming and isinstance(decoding, Decoding) and decoding.inputs:
        named = [(use.name, module, operands[use.name]) for use, module in stages]
        shared.once = {*decoding.inputs, *decoding.stages}
        shared.constancy = decoding.constancy(named)
    fused: set[int] = set()
    for _, module in stages:
        for called in _callees_first(module):
            plan.regions += fuse_experts(called, shared.constancy)
            if id(called) not in fused:
                fused.add(id(called))
                plan.regions += fuse_index(called)
                plan.regions += fuse_rows(called)
        _mark(module, shared)
    for use, module in stages:
        context.decision_clock = clock_of(module)
        for called in _callees_first(module):
            _add_class(context, called, use.name)
        plan.stages.append(_stage_plan(context, use.name, module, operands[use.name]))
    plan.model = _model_plan(context)
    plan.inputs = [_input_plan(i, plan, shared) for i in program.inputs]
    take_sizes(plan)
    if objective is not None:
        _objective(context, objective)
        plan.terms = terms
    plan.layouts = lower_layouts(read_layouts(facts))
    plan.functions = shared.functions
    plan.regions = _distinct(plan.regions)
    plan.fused, plan.kernels = shared.fused.functions, shared.fused.kernels
    return plan


def _distinct(regions: list[RegionReport]) -> list[RegionReport]:
    """Return each report once: layers that differ elsewhere have the same."""
    return list({str(region): region for region in regions}.values())


def _operands(program: Program, use: StageUse, module: Module) -> list[str]:
    """Return the names of what a stage is given; labels, which only the objective reads, go."""
    read = {id(v) for node in module.nodes for v in node.inputs}
    read |= {id(v) for v in module.results}
    labels = {s[6:] for s in program.objective_inputs if s.startswith("input:")}
    shared = {id(node.outputs[0]) for node in model_parameters(program)}
    for value in use.inputs:
        if isinstance(value.node, OpNode) and id(value) not in shared:
            raise Unsupported(
                f"`{value.name}`, which stands outside of stages and is not a parameter"
            )
    names = [v.name for v in use.inputs]
    gone = [
        value
        for value, name in zip(module.inputs, names, strict=False)
        if name in labels and id(value) not in read
    ]
    module.inputs = [v for v in module.inputs if v not in gone]
    return [name for name in names if name not in {v.name for v in gone}]


def _model_plan(context: Context) -> ClassPlan:
    """Return the model's own parameters; stages get them as arguments."""
    program = context.program
    owned = [_owned_op(context, node) for node in model_parameters(program)]
    return ClassPlan("Model", program.name, "model", program.span, owned=owned)


def _input_plan(given: Input, plan: Plan, shared: Shared) -> InputPlan:
    clock = next((a.clock.name for a in given.value.type.axes if a.clock is not None), "")
    return InputPlan(
        given.name,
        clock,
        shape_comment(given.value.type),
        given.classes is not None,
        is_label=all(given.name not in stage.inputs for stage in plan.stages),
        fixed=given.name in shared.once,
    )


def _values(root: Module) -> Iterator[Value]:
    """Yield the results of all nodes of a stage and of what it calls."""
    for module in _callees_first(root):
        for node in module.nodes:
            yield from node.outputs


def _callees_first(root: Module) -> list[Module]:
    order: list[Module] = []
    seen: set[int] = set()

    def visit(module: Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        for called in module.modules():
            visit(called)
        order.append(module)

    visit(root)
    return order


def _mark(root: Module, shared: Shared) -> None:
    """Note which modules have decode state, collect auxiliary values, or make decisions."""
    for module in _callees_first(root):
        for node in module.nodes:
            if isinstance(node, OpNode) and node.op.state() is not None:
                if shared.in_steps(module, node):
                    shared.stateful.add(id(module))
            elif isinstance(node, AuxNode):
                shared.collects.add(id(module))
            elif any(id(m) in shared.stateful for m in called_by(node)) and shared.in_steps(
                module, node
            ):
                shared.stateful.add(id(module))
        if kept_field(module, shared.constancy):
            shared.stateful.add(id(module))
        if choices(module):
            shared.decides.add(id(module))
        for called in module.modules():
            for group in (shared.collects, shared.decides):
                if id(called) in group:
                    group.add(id(module))
    _spread(root, shared)


def _spread(root: Module, shared: Shared) -> None:
    """Layers of one loop are called alike, so they share what they take."""
    for module in _callees_first(root):
        for node in module.nodes:
            if isinstance(node, LoopNode):
                for group in (shared.stateful, shared.collects, shared.decides):
                    if any(id(m) in group for m in node.modules):
                        group.update(id(m) for m in node.modules)


# --------------------------------------------------------------------------- classes


def _add_class(context: Context, module: Module, stage: str) -> None:
    if id(module) in context.names:
        return
    name = _name_for(context, module, stage)
    context.names[id(module)] = name
    body = Body(module, context.shared, size_names(module))
    clocks = _clock_names(context, stage)
    body.clock_names = clocks if module.kind == "stage" else {}
    body.decision_clock = context.decision_clock if module.kind != SELECTION else ""
    plan = ClassPlan(name, module.name, module.kind, module.span, doc=module.doc)
    for value in module.inputs:
        text = body.input(value, value.name or "x")
        python = annotation(value.type, value.python)
        plan.inputs.append((text, python, shape_comment(value.type)))
    plan.owned = _owned(context, module)
    plan.state = _state(context, module)
    plan.collects_aux = id(module) in context.shared.collects
    plan.decides = id(module) in context.shared.decides
    plan.stateful = context.shared.streaming and id(module) in context.shared.stateful
    plan.result = body.run()
    plan.returns = _returns(module)
    plan.body = body.statements
    context.plan.states |= body.states
    plan.clocks = tuple(clocks[name] for name in clocks if name in body.clocks)
    context.clocks[id(module)] = tuple(name for name in clocks if name in body.clocks)
    first = context.keys.setdefault(code_key(plan), name)
    if first != name:
        context.names[id(module)] = first
        context.used.discard(name)
        return
    context.plan.classes.append(plan)


def _clock_names(context: Context, stage: str) -> dict[str, str]:
    """Return the variable of each input clock as a stage sees it: its own is ``clock``."""
    names = list(dict.fromkeys(clock.name for clock in context.program.clocks))
    return {n: "clock" if n == stage or len(names) == 1 else variable(f"clock_{n}") for n in names}


def _returns(module: Module) -> str:
    kinds = [annotation(v.type) for v in module.results]
    return kinds[0] if len(kinds) == 1 else f"tuple[{', '.join(kinds)}]"


def _name_for(context: Context, module: Module, stage: str) -> str:
    base = class_name(f"{stage}_layer" if module.kind == "layer" else module.name)
    if module.stack is not None:
        base += "Experts"
    if base in TAKEN:
        base += "Block"
    name, number = base, 1
    while name in context.used:
        number += 1
        name = f"{base}{number}"
    context.used.add(name)
    return name


def size_names(module: Module) -> dict[str, str]:
    """Return Python text for the symbolic sizes of a module: lengths of its inputs.

    Under ``device`` it is where tensors that the module makes belong.
    """
    names: dict[str, str] = {}
    for value in module.inputs:
        if not isinstance(value.type, TensorType):
            continue
        text = variable(value.name or "x")
        if value.python == "Tensor":
            names.setdefault("device", f"{text}.device")
        if value.type.batched:
            names.setdefault(str(EXAMPLES), f"{text}.shape[0]")
        for i, axis in enumerate(value.type.axes):
            if not axis.size.is_number:
                at = i + value.type.batched
                names.setdefault(str(axis.size), f"{text}.shape[{at}]")
    return names


def _owned(context: Context, module: Module) -> list[Owned]:
    found: dict[str, Owned] = {}
    for node in module.nodes:
        if isinstance(node, OpNode) and node.op.parameters():
            found.setdefault(node.attribute, _owned_op(context, node))
        elif isinstance(node, CallNode):
            name = context.names[id(node.module)]
            part = Owned(node.attribute, "module", f"{name}()", node.span)
            if found.setdefault(node.attribute, part).constructor != part.constructor:
                raise Unsupported(f"one `{node.attribute}` for streams that need other code")
        elif isinstance(node, LoopNode):
            classes = tuple(context.names[id(m)] for m in node.modules)
            found.setdefault(
                node.attribute, Owned(node.attribute, "list", "", node.span, classes=classes)
            )
    return list(found.values())


def _owned_op(context: Context, node: OpNode) -> Owned:
    specs = node.op.parameters()
    stack = node.stack.size.number or 0 if node.stack is not None else 0
    constructor = node.op.module()
    if constructor is None:
        kind = "parameter" if specs[0].trainable else "buffer"
        labels = _size_labels(node, stack)
        return Owned(
            node.attribute, kind, _tensor(specs[0], stack), node.span, specs, stack, sizes=labels
        )
    sizes = [_number(size) for size in specs[0].shape]
    if constructor == "nn.Linear":
        bias = "" if len(specs) > 1 else ", bias=False"
        text = f"nn.Linear({sizes[1]}, {sizes[0]}{bias})"
    elif constructor == "GroupedLinear":
        context.shared.functions.add("GroupedLinear")
        bias = ", bias=True" if len(specs) > 1 else ""
        text = f"GroupedLinear({stack}, {sizes[1]}, {sizes[0]}{bias})"
    elif constructor == "nn.Embedding":
        text = f"nn.Embedding({sizes[0]}, {sizes[1]})"
    else:
        text = constructor
    labels = _size_labels(node, stack)
    return Owned(node.attribute, "layer", text, node.span, specs, stack, sizes=labels)


def _size_labels(node: OpNode, stack: int) -> tuple[str, ...]:
    """Return what each number in the constructor of a layer or tensor is the size of."""
    op = node.op
    if isinstance(op, Linear):
        labels: tuple[str, ...] = (
            "_".join(axis.name for axis in op.contracted()),
            "_".join(axis.name for axis in op.out),
        )
    elif isinstance(op, Weight | Buffer):
        labels = tuple(axis.name for axis in op.axes)
    else:
        return ()
    return ("experts", *labels) if stack else labels


def _number(size: Dim) -> int:
    number = size.number
    assert number is not None, f"size {size} is not decided"
    return number


_TORCH_DTYPES = {
    "f32": "torch.float32", "f64": "torch.float64", "bf16": "torch.bfloat16",
    "f16": "torch.float16", "i64": "torch.int64", "bool": "torch.bool",
}  # fmt: skip


def _tensor(spec: ParameterSpec, stack: int) -> str:
    sizes = ([stack] if stack else []) + [_number(size) for size in spec.shape]
    dtype = f", dtype={_TORCH_DTYPES[spec.dtype]}" if spec.dtype in _TORCH_DTYPES else ""
    inner = ", ".join(str(size) for size in sizes) if sizes else "()"
    return f"torch.empty({inner}{dtype})"


# --------------------------------------------------------------------------- state


def _state(context: Context, module: Module) -> list[StateField]:
    if not context.shared.streaming or id(module) not in context.shared.stateful:
        return []
    fields: dict[str, StateField] = {}
    fresh = state_names(module)
    kept = kept_field(module, context.shared.constancy)
    if kept:
        context.plan.states.add(KEPT)
        fields[kept] = StateField(kept, "leaf", f"{KEPT}()", KEPT)
    for node in module.nodes:
        field_name = fresh.get(id(node), "")
        if not context.shared.in_steps(module, node):
            continue
        if isinstance(node, OpNode):
            spec = node.op.state()
            if spec is not None:
                leaf = ROWS.get(spec.kind, spec.kind) if context.has_chunks else spec.kind
                context.plan.states.add(leaf)
                inner = ", ".join(str(_number(a)) for a in spec.arguments)
                fields[field_name] = StateField(field_name, "leaf", f"{leaf}({inner})", leaf)
        elif isinstance(node, CallNode) and id(node.module) in context.shared.stateful:
            name = context.names[id(node.module)] + "State"
            fields[field_name] = StateField(
                field_name, "module", f"self.{node.attribute}.new_state()", name
            )
        elif isinstance(node, LoopNode) and any(
            id(m) in context.shared.stateful for m in node.modules
        ):
            owners = list(dict.fromkeys(context.names[id(m)] for m in node.modules))
            names = [f"{owner}State" for owner in owners]
            kind = " | ".join(owners) if len(owners) == 1 else f'"{" | ".join(owners)}"'
            states = " | ".join(names)
            if len(owners) > MANY:
                kind, states = "Any", "State"
            text = f"[cast({kind}, layer).new_state() for layer in self.{node.attribute}]"
            fields[node.attribute] = StateField(node.attribute, "list", text, f"list[{states}]")
    return list(fields.values())


# --------------------------------------------------------------------------- stages, objective


def _stage_plan(context: Context, name: str, module: Module, operands: list[str]) -> StagePlan:
    """Return how the model calls a stage."""
    return StagePlan(
        name,
        context.names[id(module)],
        tuple(_argument(context, operand) for operand in operands),
        context.clocks[id(module)],
        shape_comment(module.results[0].type),
        id(module) in context.shared.collects,
        id(module) in context.shared.stateful and context.shared.streaming,
        fixed=name in context.shared.once,
        decides=id(module) in context.shared.decides,
        decision_clock=context.decision_clock,
    )


def _argument(context: Context, name: str) -> str:
    """Return what a stage is given under a name: an input, a result, or a shared parameter."""
    for node in model_parameters(context.program):
        if node.outputs[0].name == name:
            return f"self.{node.attribute}"
    return name


def _objective(context: Context, module: Module) -> None:
    body = Body(module, replace(context.shared, streaming=False), {})
    body.arguments = {
        (clock, attribute): name if attribute != "starts" or context.plan.isolated else "None"
        for attribute, names in context.plan.attributes().items()
        for clock, name in names.items()
    }
    for value, source in zip(module.inputs, context.program.objective_inputs, strict=True):
        kind, _, name = source.partition(":")
        collected = f"torch.stack(aux.{name}{', dim=1' * value.type.batched})"
        body.text[id(value)] = {"stage": f"output.{name}", "input": name, "aux": collected}[kind]
    result = body.run()
    context.plan.objective = [s for s in body.statements if not hasattr(s, "call")]
    context.plan.objective_result = result


__all__ = ["Value", "lower", "owns"]
