"""The text of one emitted class: its parameters, their initialisation and its forward."""

from __future__ import annotations

from itertools import groupby

from tokdsl.emit.wrap import WIDTH, wrap
from tokdsl.lower.plan import ClassPlan, Loop, Owned, Statement
from tokdsl.ops.initialisers import statement as initialise
from tokdsl.source import Span

INDENT = 8


def where(span: Span) -> str:
    """Return ``mixtral.tok:14`` for a span."""
    return f"{span.file.name.rsplit('/', 1)[-1]}:{span.line}"


def constructor_lines(plan: ClassPlan) -> list[str]:
    """Return the statements of ``__init__`` after ``super().__init__()``."""
    lines: list[str] = []
    for owned in plan.owned:
        lines += wrap(_owned_line(owned), INDENT)
    if any(_needs_init(owned) for owned in plan.owned):
        lines.append(" " * INDENT + "self.reset_parameters()")
    return lines


def _owned_line(owned: Owned) -> str:
    name = f"self.{owned.name}"
    if owned.kind == "parameter":
        return f"{name} = nn.Parameter({owned.constructor})"
    if owned.kind == "buffer":
        saved = "" if owned.parameters[0].saved else ", persistent=False"
        return f'self.register_buffer("{owned.name}", {owned.constructor}{saved})'
    if owned.kind == "list":
        return f"{name} = nn.ModuleList({_layers(owned.classes)})"
    return f"{name} = {owned.constructor}"


def _layers(classes: tuple[str, ...]) -> str:
    """Return the shortest expression that lists the layers."""
    if len(set(classes)) == 1:
        return f"{classes[0]}() for _ in range({len(classes)})"
    period = _period(classes)
    if period < len(classes):
        return _pattern(classes, period)
    runs = [(name, len(list(group))) for name, group in groupby(classes)]
    parts = [
        f"{name}()" if count == 1 else f"*({name}() for _ in range({count}))"
        for name, count in runs
    ]
    return f"[{', '.join(parts)}]"


def _pattern(classes: tuple[str, ...], period: int) -> str:
    """Return the expression for layers that repeat with a period."""
    inner, total = ", ".join(classes[:period]), len(classes)
    names = list(dict.fromkeys(classes[:period]))
    rare = [name for name in names if classes[:period].count(name) == 1]
    if len(names) == 2 and period > 2 and rare:
        at = classes.index(rare[0])
        other = next(name for name in names if name != rare[0])
        return f"{rare[0]}() if i % {period} == {at} else {other}() for i in range({total})"
    if total % period == 0:
        return f"layer() for _ in range({total // period}) for layer in ({inner})"
    return f"({inner})[i % {period}]() for i in range({total})"


def _period(classes: tuple[str, ...]) -> int:
    for period in range(1, len(classes) // 2 + 1):
        if all(classes[i] == classes[i % period] for i in range(len(classes))):
            return period
    return len(classes)


def buffer_annotations(plan: ClassPlan) -> list[str]:
    """Return the class-level annotations of buffers, which `register_buffer` hides from mypy."""
    return [f"    {owned.name}: Tensor" for owned in plan.owned if owned.kind == "buffer"]


def _needs_init(owned: Owned) -> bool:
    if owned.kind in ("parameter", "buffer"):
        return True
    return bool(owned.parameters) and any(
        not _is_default(owned, i) for i in range(len(owned.parameters))
    )


def _is_default(owned: Owned, index: int) -> bool:
    """Whether the layer's own constructor already initialises in this way."""
    spec = owned.parameters[index]
    if owned.constructor.startswith(("nn.Linear", "GroupedLinear")):
        return spec.name == "weight" and spec.init == "fan_in_uniform()"
    return False


def reset_lines(plan: ClassPlan) -> list[str]:
    """Return the statements of ``reset_parameters``; empty if there is nothing to do."""
    lines: list[str] = []
    for owned in plan.owned:
        if not _needs_init(owned):
            continue
        for i, spec in enumerate(owned.parameters):
            if _is_default(owned, i):
                continue
            tensor = f"self.{owned.name}" + (f".{spec.name}" if spec.name else "")
            fan_in = spec.shape[-1].number or 1 if spec.shape else 1
            if "Conv" in owned.constructor and spec.name == "bias":
                tensor = f"cast(Tensor, {tensor})"  # torch says that it may be None
            lines += wrap(initialise(spec.init, tensor, fan_in), INDENT)
    return lines


def parameter_list(plan: ClassPlan) -> list[str]:
    """Return the parameters of ``forward`` with annotations."""
    found = [f"{name}: {python}" for name, python, _ in plan.inputs]
    found += [f"{clock}: TokenClock" for clock in plan.clocks]
    if plan.collects_aux:
        found.append("aux: Aux | None")
    if plan.decides:
        found.append("decisions: Decisions | None")
    if plan.stateful:
        found.append(f"state: {state_name(plan)} | None")
    return found


def state_name(plan: ClassPlan) -> str:
    """Return the name of a class's decode state."""
    return f"{plan.name}State"


def signature_lines(plan: ClassPlan) -> list[str]:
    """Return the ``def forward`` line, broken if it is too long."""
    parameters = ["self", *parameter_list(plan)]
    line = f"    def forward({', '.join(parameters)}) -> {plan.returns}:"
    if len(line) <= WIDTH:
        return [line]
    joined = ", ".join(parameters)
    if 8 + len(joined) <= WIDTH:
        return ["    def forward(", f"        {joined}", f"    ) -> {plan.returns}:"]
    inner = [f"        {parameter}," for parameter in parameters]
    return ["    def forward(", *inner, f"    ) -> {plan.returns}:"]


def shape_doc(plan: ClassPlan) -> str:
    """Return the shapes of the inputs for the docstring."""
    return ", ".join(f"{name} {shape}" for name, _, shape in plan.inputs if shape)


def body_lines(plan: ClassPlan) -> list[str]:
    """Return the statements of ``forward``."""
    lines: list[str] = []
    body = list(plan.body)
    result = plan.result
    last = body[-1] if body else None
    tail = ""
    if isinstance(last, Statement) and last.targets == (result,) and not last.indent:
        body.pop()
        tail = last.text
    for item in body:
        if isinstance(item, Loop):
            lines += _loop_lines(item)
        else:
            text = f"{', '.join(item.targets)} = {item.text}" if item.targets else item.text
            lines += commented(text, item)
    if tail and isinstance(last, Statement):
        lines += commented(f"return {tail}", last)
    else:
        lines += wrap(f"return {result}", INDENT)
    return lines


def commented(text: str, item: Statement) -> list[str]:
    """Return a statement with its shape and source line beside it, or above if too long."""
    comment = "  ".join(part for part in (item.shape, where(item.span)) if part)
    if text.endswith(":"):
        return [" " * (INDENT + item.indent) + text]
    lines = wrap(text, INDENT + item.indent)
    if len(lines) == 1 and len(lines[0]) + len(comment) + 4 <= WIDTH:
        return [f"{lines[0]}  # {comment}"]
    return [" " * (INDENT + item.indent) + f"# {comment}", *lines]


def _loop_lines(loop: Loop) -> list[str]:
    pad = " " * (INDENT + loop.indent)
    comment = "  ".join(part for part in (loop.shape, where(loop.span)) if part)
    if loop.indexed:
        head = f"for i, layer in enumerate(self.{loop.attribute}):"
    else:
        head = f"for layer in self.{loop.attribute}:"
    call = wrap(f"{loop.target} = {loop.call}", INDENT + loop.indent + 4)
    return [f"{pad}{head}  # {comment}", *call]
