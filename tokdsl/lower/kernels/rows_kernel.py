"""What the template of row chains is filled with: loads, statements, stores."""

from __future__ import annotations

from dataclasses import dataclass

from tokdsl.graph.program import OpNode, Value
from tokdsl.lower.kernels.write import PADDING, Writer, is_over_rows, is_row, operands
from tokdsl.lower.plan import KernelPlan
from tokdsl.ops.tile import Grid, NotTiled
from tokdsl.types.tensors import Axis, TensorType

#: names that the statements around a region use
RESERVED = ("there", "there_too", "counted", "row", "rows", "program", "valid_pointer", "HAS_VALID",
            "BLOCK", "tl", "triton")  # fmt: skip


@dataclass(frozen=True)
class Access:
    """How one tensor is read or written by a program.

    Args:
        name: variable of the block.
        pointer: argument of the kernel.
        offsets: text of the addresses relative to it.
        mask: text of the entries that are there.
        dtype: what it is: ``float``, ``i64`` or ``bool``.
        sizes: small axes, in memory order.
        has_rows: whether there is one per row, or one for all.
        shape: of the block.
        torch_dtype: expression of the dtype of a result.
        summed: a result over all rows: the sum of what programs write.
        shares: entries of a row of which a mean is taken; 0 for a sum.
    """

    name: str
    pointer: str
    offsets: str
    mask: str
    dtype: str
    sizes: tuple[int, ...]
    has_rows: bool
    shape: str
    torch_dtype: str = ""
    summed: bool = False
    shares: int = 0

    @property
    def count(self) -> int:
        """Entries per row."""
        total = 1
        for size in self.sizes:
            total *= size
        return total


def rows_kernel(
    wish: str,
    inputs: list[Value],
    for_types: list[Value],
    nodes: list[OpNode],
    outputs: tuple[Value, ...],
) -> KernelPlan:
    """Return the kernel of a region.

    Raises:
        NotTiled: if the region cannot be written.
    """
    forward = _Side(inputs, nodes)
    reads = [forward.access(v) for v in inputs]
    forward.load(reads)
    forward.writer.forward(nodes)
    over_rows = {id(v): n for n in nodes if is_over_rows(n) for v in n.outputs}
    stores = []
    for value in outputs:
        dtype = _dtype(value, nodes, inputs, for_types)
        access = forward.access(value, dtype, out=True, maker=over_rows.get(id(value)))
        forward.store(access, forward.writer.text[id(value)])
        stores.append(access)

    smooth = [v for v in outputs if _is_float(v)]
    backward = _Side(inputs, nodes)
    backward.load([backward.access(v) for v in inputs])
    gradients: dict[int, str] = {}
    incoming: list[Access] = []
    for value in smooth:
        access = backward.access(value, gradient=True, maker=over_rows.get(id(value)))
        incoming.append(access)
        gradients[id(value)] = access.name
    backward.load(incoming)
    backward.writer.forward(nodes)
    found = backward.writer.reverse(nodes, gradients)
    wanted = [v for v in inputs if _is_float(v) and id(v) in found]
    outgoing: list[Access] = []
    for value in wanted:
        access = backward.access(value, gradient=True, out=True)
        outgoing.append(access)
        backward.store(access, found[id(value)])
    pieces: dict[str, object] = {
        "inputs": reads,
        "for_types": [f"like_{i}" for i in range(len(for_types))],
        "outputs": stores,
        "forward": forward.grid.needed(),
        "backward": backward.grid.needed(),
        "incoming": incoming,
        "outgoing": outgoing,
        "smooth": [outputs.index(v) for v in smooth],
        "wanted": [inputs.index(v) for v in wanted],
        "volume": forward.writer.volume(nodes),
        "rank": forward.grid.rank,
        "leading": next(i for i, a in enumerate(reads) if a.has_rows),
        "has_gradient": bool(smooth and wanted),
        "has_padding": any(PADDING in node.operands for node in nodes),
    }
    return KernelPlan("rows", wish, pieces)


class _Side:
    """The statements of one direction."""

    def __init__(self, inputs: list[Value], nodes: list[OpNode]) -> None:
        self.grid = Grid(["BLOCK"], [0], ["there"], batch=0)
        for name in RESERVED:
            self.grid.name(name)
        self.writer = Writer(self.grid, _place)
        self.writer.lay(inputs, nodes)
        shape = ", ".join(":" if i == 0 else "None" for i in range(self.grid.rank))
        at = f"[{shape}]" if self.grid.rank > 1 else ""
        self.grid.line("program = tl.program_id(0)")
        self.grid.line(f"row = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK){at}")
        self.grid.line("there = row < rows")
        if any(PADDING in node.operands for node in nodes):
            self.grid.line("counted = there")
            self.grid.line("if HAS_VALID:")
            self.grid.line("    there_too = tl.load(valid_pointer + row, mask=there, other=0) != 0")
            self.grid.line("    counted = there & there_too")
        elif any(is_over_rows(node) for node in nodes):
            self.grid.line("counted = there")

    def access(
        self,
        value: Value,
        torch_dtype: str = "",
        gradient: bool = False,
        out: bool = False,
        maker: OpNode | None = None,
    ) -> Access:
        """Return how a value is addressed."""
        kind = value.type
        assert isinstance(kind, TensorType)
        dims = self.writer.dims[id(value)]
        small = [(a, d) for a, d in zip(kind.axes, dims, strict=True) if not is_row(a)]
        sizes = tuple(a.size.number or 0 for a, _ in small)
        has_rows = kind.batched
        terms: list[str] = []
        stride, masks = 1, ["there"] if has_rows else []
        for (_, dim), size in zip(reversed(small), reversed(sizes), strict=True):
            assert dim is not None
            index = self.grid.index(dim)
            terms.insert(0, index if stride == 1 else f"{index} * {stride}")
            stride *= size
            if mask := self.grid.there(dim):
                masks.append(mask)
        if has_rows:
            terms.insert(0, "row" if stride == 1 else f"row * {stride}")
        elif out:
            terms.insert(0, f"program * {stride}")
        if not has_rows and not small:  # a block of one address
            terms.append(f"tl.zeros(({'1, ' * self.grid.rank}), tl.int32)")
        full = [s if i in dims else "1" for i, s in enumerate(self.grid.shape)]
        if has_rows:
            full[0] = "BLOCK"
        made = value.node.op.op_name if isinstance(value.node, OpNode) else "x"
        name = value.name or made
        name = self.grid.name(f"{name}_gradient" if gradient else name)
        if not gradient and not torch_dtype:
            self.writer.text[id(value)] = name
        comma = "," if len(full) == 1 else ""
        return Access(
            name,
            f"{name}_pointer",
            " + ".join(terms),
            " & ".join(masks),
            "float" if kind.is_float else kind.dtype,
            sizes,
            has_rows,
            f"({', '.join(full)}{comma})",
            torch_dtype,
            maker is not None,
            _shares(maker) if maker is not None else 0,
        )

    def load(self, accesses: list[Access]) -> None:
        """Write the loads."""
        for a in accesses:
            other = "0.0" if a.dtype == "float" else "0"
            mask = f", mask={a.mask}, other={other}" if a.mask else ""
            text = f"tl.load({a.pointer} + {a.offsets}{mask})"
            if a.dtype == "float":
                text += ".to(tl.float32)"
            elif a.dtype == "bool":
                text += " != 0"
            self.grid.line(f"{a.name} = {text}")

    def store(self, a: Access, text: str) -> None:
        """Write the store of a result."""
        mask = f", mask={a.mask}" if a.mask else ""
        if a.summed:
            rows = a.shape.replace("(1", "(BLOCK", 1)
            text = f"tl.where(counted, tl.broadcast_to({text}, {rows}), 0)"
            text = f"tl.sum({text}, axis=0, keep_dims=True)"
        text = self.grid.bind(f"tl.broadcast_to({text}, {a.shape})", "result")
        kind = f"{a.pointer}.dtype.element_ty"
        self.grid.line(f"tl.store({a.pointer} + {a.offsets}, {text}.to({kind}){mask})")


def _shares(node: OpNode) -> int:
    """Return of how many entries of a row a mean is taken; 0 for a sum."""
    if not node.op.averages:
        return 0
    read, made = 1, 1
    for axis in operands(node)[0][1].axes:
        read *= 1 if is_row(axis) else axis.size.number or 1
    for axis in node.outputs[0].type.axes:
        made *= axis.size.number or 1
    return read // made


def _dtype(value: Value, nodes: list[OpNode], inputs: list[Value], for_types: list[Value]) -> str:
    """Return the expression of a result's dtype in the launcher."""
    kind = value.type
    assert isinstance(kind, TensorType)
    fixed = {"bool": "torch.bool", "i64": "torch.int64", "f32": "torch.float32",
             "f16": "torch.float16", "bf16": "torch.bfloat16"}  # fmt: skip
    if kind.dtype in fixed:
        return fixed[kind.dtype]
    if kind.dtype != "float":
        raise NotTiled(f"it is computed in {kind.dtype}")
    return _source(value, nodes, inputs, for_types) or "torch.float32"


def _source(
    value: Value, nodes: list[OpNode], inputs: list[Value], for_types: list[Value]
) -> str | None:
    """Return the text of the dtype that a value has from an input of the region."""
    if value in inputs:
        return f"x_{inputs.index(value)}.dtype"
    if value in for_types:
        return f"like_{for_types.index(value)}.dtype"
    maker = next((n for n in nodes if value in n.outputs), None)
    if maker is None:
        return None
    given = operands(maker)
    first = [v for name, _, v in given if name in maker.op.type_operands]
    for source in [*first, *(v for _, kind, v in given if kind.dtype == "float")]:
        found = _source(source, nodes, inputs, for_types)
        if found is not None:
            return found
    return None


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.is_float


def _place(axis: Axis) -> int:
    if is_row(axis):
        return 0
    raise KeyError(axis.name)
