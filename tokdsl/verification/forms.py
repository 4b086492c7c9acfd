"""Contract 9 and 10, and the forms in which people use a module: saved, meta, compiled, mixed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokdsl.verification.result import CheckResult, bounded, failed, passed, skipped
from tokdsl.verification.subject import Subject, gap, gaps

#: how much a result may change when products are computed in bfloat16
MIXED = 0.15


def check_round_trip(subject: Subject) -> list[CheckResult]:
    """What is saved and loaded gives the same bits; what does not fit is listed."""
    inputs = subject.inputs(2, subject.length)
    file = io.BytesIO()
    torch.save(subject.model.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = subject.package.Model().eval()
    other.load_state_dict(saved)
    with torch.no_grad():
        first = subject.run(inputs)
        second = _run(subject, other, inputs)
    same = all(torch.equal(first[name], second[name]) for name in first)
    verdict = passed if same else failed
    text = f"{len(saved)} tensors, results are {'' if same else 'not '}the same bits"
    return [verdict("round trip", "save and load", text), _refusal(other, saved)]


def _run(subject: Subject, model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    output = model(**subject.taken(dict(inputs)))
    return {s.name: getattr(output, s.name) for s in subject.program.stages}


def _refusal(model: Any, saved: dict[str, Tensor]) -> CheckResult:
    """Loading with a missing, an extra and a misshapen tensor names all three."""
    names = list(saved)
    broken = {name: tensor for name, tensor in saved.items() if name != names[0]}
    broken["no_such_parameter"] = torch.zeros(1)
    wanted = [names[0], "no_such_parameter"]
    if len(names) > 1:
        broken[names[-1]] = torch.zeros(3, 1, 2, 1)
        wanted.append(names[-1])
    try:
        model.load_state_dict(broken)
    except RuntimeError as error:
        unsaid = [name for name in wanted if name not in str(error)]
        if not unsaid:
            return passed("round trip", "broken files", f"refused, naming all {len(wanted)}")
        return failed("round trip", "broken files", f"refused without naming {unsaid}")
    return failed("round trip", "broken files", "loaded without a word")


def check_initialisation(subject: Subject) -> list[CheckResult]:
    """The same seed gives the same weights; a model on meta can be filled later."""
    models = []
    for _ in range(2):
        torch.manual_seed(subject.seed)
        models.append(subject.package.Model().state_dict())
    same = all(torch.equal(a, models[1][name]) for name, a in models[0].items())
    verdict = passed if same else failed
    drawn = verdict(
        "determinism",
        "initialisation",
        f"the same seed gives {'the same' if same else 'other'} weights",
    )
    return [drawn, _meta(subject)]


def _meta(subject: Subject) -> CheckResult:
    name = "meta device"
    with torch.device("meta"):
        model = subject.package.Model().eval()
    real = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if not t.is_meta]
    if real:
        return failed("forms", name, f"`{real[0]}` is allocated")
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    model.load_state_dict(subject.model.state_dict())
    inputs = subject.inputs(2, subject.length)
    with torch.no_grad():
        worst = gaps(_run(subject, model, inputs), subject.run(inputs))
    return bounded("forms", name, worst, subject.limit)


def check_autocast(subject: Subject) -> list[CheckResult]:
    """Forward and backward in mixed precision stay finite and near the full precision."""
    inputs = subject.inputs(2, subject.length)
    with torch.no_grad():
        full = subject.run(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = subject.run(inputs)
    distances = [
        float(
            (mixed[n].double() - full[n].double()).norm() / full[n].double().norm().clamp(min=1e-9)
        )
        for n in full
        if full[n].is_floating_point()
    ]
    value = max(distances, default=0.0)
    found = [bounded("forms", "autocast forward", value, MIXED, "relative distance")]
    if subject.has_objective:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = subject.loss(inputs)
        gradients = torch.autograd.grad(loss, list(subject.model.parameters()), allow_unused=True)
        finite = all(bool(g.isfinite().all()) for g in gradients if g is not None)
        verdict = passed if finite else failed
        text = f"gradients are {'' if finite else 'not '}finite"
        found.append(verdict("forms", "autocast backward", text))
    return found


def check_compile(subject: Subject) -> list[CheckResult]:
    """One graph without breaks, where no clock depends on the data."""
    if any(_is_learned(subject, clock.name) for clock in subject.program.clocks):
        return [skipped("forms", "compile", "a clock depends on the data")]
    inputs = subject.inputs(2, subject.length)
    torch.compiler.reset()
    compiled: Any = torch.compile(subject.model, fullgraph=True, backend="aot_eager")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            output = compiled(**subject.taken(inputs))
            full = subject.run(inputs)
    except Exception as error:  # torch raises many kinds; each means that there is a break
        first = str(error).strip().split("\n", 1)[0]
        return [failed("forms", "compile", f"fullgraph: {type(error).__name__}: {first[:160]}")]
    finally:
        torch.compiler.reset()
    worst = max(gap(getattr(output, n), full[n]) for n in full)
    return [bounded("forms", "compile, one graph", worst, subject.limit)]


def _is_learned(subject: Subject, name: str) -> bool:
    """Whether a clock's ticks are found by the model."""
    for module in subject.program.modules:
        for node in module.nodes:
            for value in node.outputs:
                for axis in value.type.axes:
                    clock = axis.clock
                    if clock is not None and clock.parent is not None and clock.stride is None:
                        return True
    return False
