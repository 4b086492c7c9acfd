"""Contract 1, 2 and 4: prefix, padding, independence of batch neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokdsl.graph.program import Input, OpNode, StageUse
from tokdsl.verification.result import CheckResult, bounded, failed, passed, skipped
from tokdsl.verification.subject import LONGEST, Inputs, Subject, gap

#: what a disturbed float input is multiplied by
LARGE = 1e3
#: Put where NaN cannot be: attention multiplies a masked value by a weight of zero, which keeps NaN
#: in every implementation. A weight that is merely small gives this away as well.
EXTREME = 1e12


def check_prefix(subject: Subject) -> list[CheckResult]:
    """A stage that is called causal reads nothing later: every suffix is replaced in turn."""
    found: list[CheckResult] = []
    for stage in subject.stages(causal=True):
        found.append(_perturbed(subject, stage))
        found.append(_extreme(subject, stage))
    for stage in subject.stages(causal=False):
        found.append(skipped("prefix", stage.name, "reads later tokens, as the analysis says"))
    if not found:
        found.append(skipped("prefix", "all", "no stage has tokens in an order"))
    return found


def probes(subject: Subject) -> list[int]:
    """Return the positions after which everything is replaced."""
    length = subject.length
    if length <= 20:
        return list(range(length - 1))
    near = {n * k + d for n in subject.reaches() for k in (1, 2) for d in (-2, -1, 0, 1)}
    chosen = {t for t in near if 0 <= t < length - 1} | set(range(4)) | {length - 2}
    return sorted(chosen)


def _perturbed(subject: Subject, stage: StageUse) -> CheckResult:
    """Compare one row per probe with the undisturbed row, all in one batch."""
    at, length = probes(subject), subject.length
    inputs = _repeated(subject.inputs(1, length), len(at) + 1)
    other = subject.inputs(len(at) + 1, length)
    for given in subject.main_inputs():
        tensor = inputs[given.name].clone()
        for row, t in enumerate(at, start=1):
            late = tensor[row].narrow(subject.axis(given) - 1, t + 1, length - t - 1)
            fresh = other[given.name][row].narrow(subject.axis(given) - 1, t + 1, length - t - 1)
            late.copy_(different(given, late, fresh))
        inputs[given.name] = tensor
    with torch.no_grad():
        result = subject.run(inputs)[stage.name]
    differences = {
        t: gap(result[row, : t + 1], result[0, : t + 1]) for row, t in enumerate(at, start=1)
    }
    leaks = [t for t, value in differences.items() if not value <= subject.limit]
    worst = max(differences.values())
    if leaks:
        text = f"position {leaks[0]} changes with what comes after it (by {worst:.1e})"
        return failed("prefix", stage.name, text, worst)
    far = [n for n in subject.reaches() if 2 * n + 3 > LONGEST]
    more = f"; reaches of {far} are longer than the probe" if far else ""
    text = f"{len(at)} suffixes replaced, largest difference {worst:.1e} <= {subject.limit:.0e}"
    return passed("prefix", stage.name, text + more, worst)


def _repeated(inputs: Inputs, count: int) -> Inputs:
    return {name: t.expand(count, *t.shape[1:]).contiguous() for name, t in inputs.items()}


def different(given: Input, old: Tensor, fresh: Tensor) -> Tensor:
    """Return values that differ from the old ones everywhere, by much where they are floats."""
    if given.classes is not None and (given.classes.number or 0) > 1:
        return torch.where(fresh == old, (old + 1) % (given.classes.number or 2), fresh)
    return fresh * LARGE if fresh.is_floating_point() else fresh


def _extreme(subject: Subject, stage: StageUse) -> CheckResult:
    """Put NaN behind a position, or a huge number: it finds what is masked but multiplied."""
    value = EXTREME if _has_attention(subject) else float("nan")
    name, length = f"{stage.name}, {'1e12' if value == EXTREME else 'NaN'}", subject.length
    inputs = subject.inputs(1, length)
    at = probes(subject)
    marks: list[tuple[Tensor, int]] = []
    batch = _repeated(inputs, len(at) + 1)
    # flags and numbers beside the tokens stay as they are
    held = [i for i in subject.main_inputs() if i.classes is not None or i.value.type.is_float]
    for given in held:
        if not _mark(subject, given, batch, at, marks, value):
            return skipped("prefix", name, f"`{given.name}` cannot hold such a number")
    if not held:
        return skipped("prefix", name, "no input can hold such a number")
    saved = [(weight, row, weight.data[row].clone()) for weight, row in marks]
    try:
        for weight, row in marks:
            weight.data[row] = value
        with torch.no_grad():
            result = subject.run(batch)[stage.name]
    finally:
        for weight, row, old in saved:
            weight.data[row] = old
    classes = {row for _, row in marks}
    kept = [i for i in range(result.shape[-1]) if i not in classes] if classes else None
    if kept is not None:  # a tied output layer has NaN for the marked class
        result = result[..., kept]
    values = {t: gap(result[r, : t + 1], result[0, : t + 1]) for r, t in enumerate(at, start=1)}
    leaks = [t for t, value in values.items() if not value <= subject.limit]
    if leaks:
        text = f"{value:g} after position {leaks[0]} reaches it"
        return failed("prefix", name, text, float("inf"))
    return bounded("prefix", name, max(values.values()), subject.limit)


def _tables(model: nn.Module, classes: int) -> list[Tensor]:
    """Return the parameters that hold a vector per class of an input."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
        and parameter.shape[0] == classes
        and ("embed" in name or "table" in name)
    ]


def _has_attention(subject: Subject) -> bool:
    return any(
        isinstance(node, OpNode) and node.op.op_name in ("attend", "attention_mix")
        for module in subject.program.modules
        for node in module.nodes
    )


def _mark(
    subject: Subject,
    given: Input,
    batch: Inputs,
    at: list[int],
    marks: list[tuple[Tensor, int]],
    value: float,
) -> bool:
    """Put a number, or a class whose vector will be made of it, behind each probe."""
    tensor, axis = batch[given.name], subject.axis(given) - 1  # the tensor is the batch's own
    if given.classes is not None:
        classes = given.classes.number or 0
        tables = _tables(subject.model, classes)
        if not tables or classes < 2:
            return False
        value = classes - 1
        tensor[tensor == value] = 0
        marks += [(table, classes - 1) for table in tables]
    elif not tensor.is_floating_point():
        return False
    for row, t in enumerate(at, start=1):
        tensor[row].narrow(axis, t + 1, tensor.shape[axis + 1] - t - 1).fill_(value)
    return True


# --------------------------------------------------------------------------- padding, batch


def check_padding(subject: Subject) -> list[CheckResult]:
    """What stands at padding changes no valid result, no loss and no gradient."""
    mask = subject.valid_name()
    if mask is None or not subject.main_inputs():
        return [skipped("padding", "all", "the model takes no validity mask")]
    length = subject.length
    lengths = torch.tensor([length, length - 3, max(1, length // 2)])
    valid = torch.arange(length) < lengths[:, None]
    inputs = subject.inputs(3, length)
    other = _with_padding_replaced(subject, inputs, valid)
    with torch.no_grad():
        first, second = subject.run(inputs, **{mask: valid}), subject.run(other, **{mask: valid})
    found = []
    worst = max(
        (gap(second[s.name][valid], first[s.name][valid]) for s in _token_stages(subject)),
        default=0.0,
    )
    found.append(bounded("padding", "results", worst, subject.limit))
    found.append(_alone(subject, inputs, lengths, first))
    if subject.has_objective:
        found += _padded_loss(subject, inputs, other, {mask: valid})
    return found


def _token_stages(subject: Subject) -> list[StageUse]:
    return subject.stages(causal=True) + subject.stages(causal=False)


def _with_padding_replaced(subject: Subject, inputs: Inputs, valid: Tensor) -> Inputs:
    fresh = subject.inputs(valid.shape[0], valid.shape[1])
    other = dict(inputs)
    for given in subject.main_inputs():
        old, axis = inputs[given.name], subject.axis(given)
        shape = [valid.shape[0]] + [1] * (old.ndim - 1)
        shape[axis] = valid.shape[1]
        other[given.name] = torch.where(
            valid.view(shape), old, different(given, old, fresh[given.name])
        )
    return other


def _alone(subject: Subject, inputs: Inputs, lengths: Tensor, padded: Inputs) -> CheckResult:
    """A padded row gives what the same row gives without padding."""
    worst = 0.0
    for row, length in enumerate(lengths.tolist()):
        one = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        with torch.no_grad():
            alone = subject.run(subject.piece(one, 0, length))
        for stage in _token_stages(subject):
            mine = padded[stage.name][row, :length]
            worst = max(worst, gap(mine, alone[stage.name][0]))
    return bounded("padding", "row without padding", worst, subject.limit)


def _padded_loss(
    subject: Subject, inputs: Inputs, other: Inputs, mask: dict[str, Tensor]
) -> list[CheckResult]:
    first, second = _loss(subject, inputs, mask), _loss(subject, other, mask)
    loss = abs(first[0] - second[0]) / max(1.0, abs(first[0]))
    worst = max((gap(b, a) for a, b in zip(first[1], second[1], strict=True)), default=0.0)
    return [
        bounded("padding", "loss", loss, subject.limit),
        bounded("padding", "gradients", worst, subject.limit),
    ]


def _loss(subject: Subject, inputs: Inputs, mask: dict[str, Tensor]) -> tuple[float, list[Tensor]]:
    parameters = list(subject.model.parameters())
    total = subject.loss(inputs, **mask)
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return float(total.detach()), [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
    ]


def check_batch(subject: Subject) -> list[CheckResult]:
    """An example gives the same alone and among others."""
    inputs = subject.inputs(4, subject.length)
    worst = 0.0
    with torch.no_grad():
        whole = subject.run(inputs)
        for row in range(4):
            alone = subject.run({name: t[row : row + 1] for name, t in inputs.items()})
            worst = max([worst, *(gap(whole[s][row : row + 1], alone[s]) for s in alone)])
    return [bounded("batch", "row alone", worst, subject.limit)]
