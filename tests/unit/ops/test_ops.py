"""What every primitive says of itself is what its torch expression does."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.unit.ops.cases import CASES, MODULES
from tests.unit.ops.harness import (
    LENGTH,
    Case,
    Tensors,
    declared_in,
    dtype_of,
    functions,
    run,
    shape,
    size,
)
from tokdsl.checks.reach import of_flow
from tokdsl.types.tensors import TensorType
from tokdsl.types.time import INFINITY, Flow

IDS = [f"{i}-{case.op.op_name}" for i, case in enumerate(CASES)]
every = pytest.mark.parametrize("case", CASES, ids=IDS)


def some(*names: str) -> pytest.MarkDecorator:
    """Parametrise over the cases with all of these operands."""
    chosen = [
        (case, name)
        for case, name in zip(CASES, IDS, strict=True)
        if set(names) <= {n for n, _ in case.op.operand_types()}
    ]
    return pytest.mark.parametrize("case", [c for c, _ in chosen], ids=[n for _, n in chosen])


def float_operands(case: Case) -> list[str]:
    return [
        name for name, kind in case.op.operand_types() if kind.is_float and name not in case.texts
    ]


def assert_same(found: object, expected: object, case: Case) -> None:
    pairs = (
        zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    )
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=2e-5, check_dtype=False)


def test_every_operation_has_a_case() -> None:
    missing = declared_in(*MODULES) - {case.op.op_name for case in CASES}
    assert not missing


@every
def test_result_has_the_declared_type(case: Case) -> None:
    for found, kind in zip(run(case, case.operands()), case.types(), strict=True):
        assert tuple(found.shape) == shape(kind)
        assert found.dtype == dtype_of(kind.dtype)


@every
def test_result_is_the_reference(case: Case) -> None:
    if case.reference is None:
        return
    operands = case.operands()
    found = run(case, operands)
    expected = case.reference(operands)
    assert_same(tuple(found) if len(found) > 1 else found[0], _plain(expected), case)


def _plain(expected: object) -> object:
    return tuple(expected) if isinstance(expected, tuple) else expected


@every
def test_parentheses_are_right(case: Case) -> None:
    operands = case.operands()
    torch.manual_seed(1)
    plain = run(case, operands)
    torch.manual_seed(1)
    for mine, other in zip(run(case, operands, compound=True), plain, strict=True):
        torch.testing.assert_close(mine, other, equal_nan=True)


@every
def test_working_dtype_is_kept(case: Case) -> None:
    kinds = [kind for _, kind in case.op.operand_types()]
    if not any(kind.dtype == "float" for kind in kinds):
        return
    for dtype in (torch.bfloat16, torch.float64):
        parameters = {n: torch.randn(*s, dtype=dtype) for n, s in case.parameters.items()}
        with _default(dtype):
            found = run(case, case.operands(dtype), parameters=parameters)
        for result, kind in zip(found, case.types(), strict=True):
            wanted = {dtype_of(kind.dtype, dtype)}
            if kind.dtype == "f32" and dtype == torch.float64:
                wanted.add(dtype)  # losses are computed in float32 at least
            assert result.dtype in wanted


class _default:
    """Set the default dtype for a while."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.before = dtype, torch.get_default_dtype()

    def __enter__(self) -> None:
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.before)


@every
def test_gradient_flows_where_declared(case: Case) -> None:
    operands = case.operands()
    wanted = float_operands(case)
    for name in wanted:
        operands[name] = operands[name].clone().requires_grad_()
    results = run(case, operands)
    smooth = [r for r in results if r.is_floating_point() and r.requires_grad]
    declared = case.op.gradient()
    assert set(declared) == {name for name, _ in case.op.operand_types()}
    if smooth:
        finite = [torch.where(r.isfinite(), r, 0.0) for r in smooth]
        sum((r * torch.randn_like(r)).sum() for r in finite).backward()
    for name in wanted:
        gradient = operands[name].grad
        has = gradient is not None and bool((gradient != 0).any())
        assert has == declared[name], f"{name}: declared {declared[name]}, found {has}"
        assert gradient is None or bool(gradient.isfinite().all())


# ------------------------------------------------------------------ time


@every
def test_flows_are_what_a_change_shows(case: Case) -> None:
    """Change one position of an operand and see which positions of the result change."""
    torch.manual_seed(3)
    operands = case.operands()
    parameters = {n: torch.randn(*s) for n, s in case.parameters.items()}
    before = run(case, operands, parameters=parameters)
    flows = case.op.flows()
    for name, kind in case.op.operand_types():
        if name in case.texts or name == "valid":
            assert name not in flows
            continue
        for axis in kind.axes:
            if axis.clock is None:
                assert all(flow.source != axis.name for flow in flows.get(name, []))
                continue
            mine = [flow for flow in flows.get(name, []) if flow.source == axis.name]
            seen = _changes(case, operands, before, name, axis.name, parameters)
            # the soft part of a straight-through value is there for its gradient only
            smooth = case.op.gradient()[name] and case.op.op_name != "straight_through"
            lengths: dict[str | None, int] = {None: size(axis.size)}
            lengths |= {a.name: size(a.size) for k in case.types() for a in k.axes}
            _check(mine, seen, lengths, discrete=not smooth)


def _changes(
    case: Case,
    operands: Tensors,
    before: list[Tensor],
    name: str,
    axis: str,
    parameters: Tensors,
) -> dict[str | None, set[tuple[int, int]]]:
    """Return by target axis the pairs (position of the result, position of the operand)."""
    kind = dict(case.op.operand_types())[name]
    assert isinstance(kind, TensorType)
    dim = kind.position(axis) + kind.batched
    seen: dict[str | None, set[tuple[int, int]]] = {}
    for s in range(operands[name].shape[dim]):
        changed = operands[name].clone()
        place = changed.select(dim, s)
        if changed.dtype == torch.bool:
            place.logical_not_()
        elif changed.dtype == torch.long:
            place.copy_(1 + (place == 1).long())
        else:
            place.mul_(0.5).add_(3.0)
        after = run(case, {**operands, name: changed}, parameters=parameters)
        for result, old, new in zip(case.types(), before, after, strict=True):
            different = (old != new) & ~(old.isnan() & new.isnan())
            targets = [a for a in result.axes if a.clock is not None]
            if bool(different.any()):
                seen.setdefault(None, set()).add((0, s))
            for target in targets:
                at = result.position(target.name) + result.batched
                along = different.movedim(at, 0).flatten(1).any(1)
                pairs = {(t, s) for t in range(len(along)) if bool(along[t])}
                seen.setdefault(target.name, set()).update(pairs)
    return seen


def _check(
    flows: list[Flow],
    seen: dict[str | None, set[tuple[int, int]]],
    lengths: dict[str | None, int],
    *,
    discrete: bool,
) -> None:
    for flow in flows:
        if flow.target is None:
            assert seen.get(None) or discrete
            continue
        reach = of_flow(flow)
        found = {(t, s, s - reach.rate * t) for t, s in seen.get(flow.target, set())}
        outside = [(t, s) for t, s, offset in found if not reach.lo <= offset <= reach.hi]
        assert not outside, f"declared {flow.interval}, but read {sorted(outside)[:3]}"
        if flow.interval.exact and not discrete:
            offsets = {offset for _, _, offset in found}
            places = itertools.product(range(lengths[flow.target]), range(lengths[None]))
            every = {s - reach.rate * t for t, s in places}
            allowed = {offset for offset in every if reach.lo <= offset <= reach.hi}
            # an offset in the middle of a dilated kernel is covered by its ends, and what is
            # multiplied by an empty past at the first token is not seen there
            assert offsets and max(offsets) == max(allowed)
            assert min(offsets) - min(allowed) <= (flow.interval.lo == -INFINITY)
    if not flows:
        assert not seen.get(None), "a change is seen, but no flow is declared"


# ------------------------------------------------------------------ padding


@some("valid")
def test_padding_has_no_influence(case: Case) -> None:
    """Values at padding change nothing at tokens; without padding the result is the plain one."""
    operands = case.operands()
    parameters = {n: torch.randn(*s) for n, s in case.parameters.items()}
    full = run(case, operands, parameters=parameters)
    plain = run(case, operands, parameters=parameters, drop=("valid",))
    none = run(case, {**operands, "valid": None}, parameters=parameters)  # type: ignore[dict-item]
    for a, b, c in zip(full, plain, none, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
        torch.testing.assert_close(a, c, equal_nan=True)
    valid = operands["valid"].clone()
    valid[0, :2] = False
    valid[1, -3:] = False
    outputs = []
    for _ in range(2):
        noisy = {n: _disturb(case, n, v, valid) for n, v in operands.items()}
        outputs.append(run(case, {**noisy, "valid": valid}, parameters=parameters))
    for kind, first, second in zip(case.types(), *outputs, strict=True):
        mask = _token_positions(case, kind, valid)
        different = (first != second) & ~(first.isnan() & second.isnan())
        assert not bool((different & mask).any())


def _disturb(case: Case, name: str, value: Tensor, valid: Tensor) -> Tensor:
    if name == "valid":
        return valid
    kind = dict(case.op.operand_types())[name]
    assert isinstance(kind, TensorType)
    mask = _token_positions(case, kind, valid)
    other = torch.randn_like(value) if value.is_floating_point() else None
    if other is None:
        other = (
            torch.rand(value.shape) < 0.5
            if value.dtype == torch.bool
            else torch.randint(0, 3, value.shape)
        )
    return torch.where(mask, value, other)


def _token_positions(case: Case, kind: TensorType, valid: Tensor) -> Tensor:
    """Return a mask over a value: true where the token of the clock is none of the padding."""
    mask = torch.ones(shape(kind), dtype=torch.bool)
    clock = dict(case.op.operand_types())["valid"].axes[0].clock
    for axis in kind.axes:
        if axis.clock == clock and kind.batched:
            sizes = [1] * mask.dim()
            sizes[0], sizes[kind.position(axis.name) + 1] = valid.shape
            mask = mask & valid.view(sizes)
    return mask


# ------------------------------------------------------------------ decoding


def keeps_clock(case: Case) -> bool:
    """Whether the result has a token per token."""
    operands = [a.clock for _, kind in case.op.operand_types() for a in kind.axes]
    return all(a.clock is None or a.clock in operands for kind in case.types() for a in kind.axes)


STATEFUL = [
    (c, n) for c, n in zip(CASES, IDS, strict=True) if c.op.state() is not None and keeps_clock(c)
]


@pytest.mark.parametrize("case", [c for c, _ in STATEFUL], ids=[n for _, n in STATEFUL])
@pytest.mark.parametrize("cuts", [(3,), (1, 2, 3, 4, 5, 6), (0, 4)], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["full", "left-padded"])
def test_steps_equal_the_whole(case: Case, cuts: tuple[int, ...], padded: bool) -> None:
    operands = case.operands()
    if padded:
        operands["valid"][0, :2] = False
    parameters = {n: torch.randn(*s) for n, s in case.parameters.items()}
    whole = run(case, operands, parameters=parameters)[0]
    spec = case.op.state()
    assert spec is not None
    classes = functions({"RecurrentState", "ConvolutionState"})
    state = classes[spec.kind](*(size.number for size in spec.arguments))  # type: ignore[operator]
    result = case.types()[0]
    at = next(i for i, a in enumerate(result.axes) if a.clock is not None) + 1
    parts = []
    for start, stop in itertools.pairwise((0, *cuts, LENGTH)):
        piece = {n: _part(case, n, v, start, stop) for n, v in operands.items()}
        parts.append(run(case, piece, state=state, parameters=parameters)[0])
        state.restore(state.snapshot())
        state.reorder(torch.arange(2))
    stepped = torch.cat(parts, dim=at)
    if padded:
        mask = _token_positions(case, result, operands["valid"])
        stepped, whole = torch.where(mask, stepped, 0), torch.where(mask, whole, 0)
    torch.testing.assert_close(stepped, whole)
    assert state.bytes() > 0 and state.length == LENGTH
    with pytest.raises(ValueError, match="cannot crop"):
        state.crop(2)
    state.crop(0)
    assert state.length == 0


def _part(case: Case, name: str, value: Tensor, start: int, stop: int) -> Tensor:
    kind = dict(case.op.operand_types())[name]
    assert isinstance(kind, TensorType)
    for axis in kind.axes:
        if axis.clock is not None:
            return value.narrow(kind.position(axis.name) + kind.batched, start, stop - start)
    return value
