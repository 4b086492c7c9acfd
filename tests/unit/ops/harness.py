"""Evaluation of one primitive on tensors, as the emitted package would.

A `Case` is one use of a primitive: its instance and, where random numbers do not do, the tensors.
`run` writes the torch expression and evaluates it beside the functions of ``codegen/ops``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokdsl.emit.functions import collect, merge
from tokdsl.ops import OPS
from tokdsl.ops.base import Code, NewAxis, Op
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, Clock, TensorType

BATCH = 2
LENGTH = 7
CLOCK = Clock("text")
OTHER = Clock("image", ordered=False)
LENGTHS = {
    "T_text": LENGTH,
    "T_text_by_2": (LENGTH + 1) // 2,
    "T_text_times_2": 2 * LENGTH,
    "T_image": 5,
    "T_patches": 6,
    "batch": BATCH,
}

DTYPES = {
    "bool": torch.bool,
    "i64": torch.long,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "f64": torch.float64,
}

Tensors = dict[str, Tensor]


def axis(name: str, size: int) -> Axis:
    """Return a plain axis."""
    return Axis(name, Dim.of(size))


def tokens(name: str = "T", clock: Clock = CLOCK) -> Axis:
    """Return a token axis; its length is in `LENGTHS`."""
    return Axis(name, clock.length, clock)


def new(name: str, size: int) -> NewAxis:
    """Return the argument that makes an axis."""
    return NewAxis(name, Dim.of(size))


def kind(*axes: Axis, dtype: str = "float", batched: bool = True) -> TensorType:
    """Return a tensor type."""
    return TensorType(axes, dtype, batched)


T = tokens()
d = axis("d", 4)
e = axis("e", 3)
SCALAR = kind(batched=False)
ROW = kind(d)
TD = kind(T, d)
TDE = kind(T, d, e)
VECTOR = kind(d, batched=False)
VALID = kind(T, dtype="bool")


@dataclass(frozen=True)
class Case:
    """One use of a primitive.

    Args:
        op: the instance.
        reference: the results computed another way from the operands by name.
        make: replaces random operands where they need a certain form (indices, positive numbers).
        texts: Python text of operands that are literals.
        parameters: tensors of the attribute that owns the parameters.
    """

    op: Op
    reference: Callable[[Tensors], object] | None = None
    make: Callable[[Tensors], Tensors] | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The operation and its operand types."""
        return f"{self.op.op_name}-" + "-".join(str(k) for _, k in self.op.operand_types())

    def types(self) -> list[TensorType]:
        """Return the types of the results."""
        found = self.op.type()
        return list(found) if isinstance(found, tuple) else [found]

    def operands(self, dtype: torch.dtype | None = None) -> Tensors:
        """Return random operands; ``dtype`` is the working dtype."""
        found = {
            name: sample(operand, dtype)
            for name, operand in self.op.operand_types()
            if name not in self.texts
        }
        if "valid" in found:
            found["valid"] = torch.ones_like(found["valid"])
        return found | self.make(found) if self.make else found


def size(dim: Dim) -> int:
    """Return a size as a number."""
    return int(dim.evaluate(LENGTHS))


def shape(of: TensorType) -> tuple[int, ...]:
    """Return the shape of a value of a type."""
    return (BATCH,) * of.batched + tuple(size(a.size) for a in of.axes)


def sample(of: TensorType, dtype: torch.dtype | None = None) -> Tensor:
    """Return a random tensor of a type."""
    if of.dtype == "bool":
        return torch.rand(shape(of)) < 0.7
    if of.dtype == "i64":
        return torch.randint(0, 3, shape(of))
    return torch.randn(shape(of), dtype=dtype_of(of.dtype, dtype))


def dtype_of(name: str, working: torch.dtype | None = None) -> torch.dtype:
    """Return the torch dtype of a declared one."""
    return DTYPES.get(name) or working or torch.get_default_dtype()


@cache
def _module(names: frozenset[str]) -> dict[str, object]:
    scope: dict[str, object] = {"torch": torch, "F": F, "nn": nn}
    exec(compile(merge(collect(set(names))), "functional.py", "exec"), scope)
    return scope


def functions(names: set[str]) -> dict[str, object]:
    """Return functions of ``codegen/ops`` by name, collected as a package collects them."""
    return dict(_module(frozenset(names)))


def code(op: Op, texts: Mapping[str, str], state: str = "") -> Code:
    """Return what an operation writes its expression with."""
    types = dict(op.operand_types())
    first = op.type()
    result = first[0] if isinstance(first, tuple) else first
    sizes = {name: str(length) for name, length in LENGTHS.items()}
    return Code(
        {name: texts[name] for name in types if name in texts},
        types,
        result,
        attribute="self.layer",
        state=state,
        names=sizes,
    )


def run(
    case: Case,
    operands: Tensors,
    *,
    state: object = None,
    compound: bool = False,
    training: bool = False,
    parameters: Mapping[str, Tensor] | None = None,
    drop: tuple[str, ...] = (),
) -> list[Tensor]:
    """Return the results of a case.

    Args:
        case: which operation.
        operands: its operands by name.
        state: the object that the operation keeps between steps.
        compound: write every operand as a sum, to see that parentheses are right.
        training: whether the module is in training.
        parameters: tensors that the operation owns, random ones if absent.
        drop: operands that are left out of the call.
    """
    texts, scope = dict(case.texts), dict(operands)
    for name, value in operands.items():
        texts[name] = name
        if compound and name != "valid":
            texts[name] = f"{name} | {name}" if value.dtype == torch.bool else f"{name} + 0"
    for name in drop:
        del texts[name]
    writer = code(case.op, texts, "state" if state is not None else "")
    text = case.op.torch(writer)
    if parameters is None:
        parameters = {name: torch.randn(*size_) for name, size_ in case.parameters.items()}
    layer = SimpleNamespace(**parameters)
    module = SimpleNamespace(training=training, layer=layer)
    found = eval(text, {**functions(writer.imports), **scope, "self": module, "state": state})
    return list(found) if isinstance(found, tuple) else [found]


def declared_in(*modules: str) -> set[str]:
    """Return the operations that modules of ``tokdsl.ops`` declare."""
    wanted = {f"tokdsl.ops.{name}" for name in modules}
    return {name for name, cls in OPS.items() if cls.__module__ in wanted}
