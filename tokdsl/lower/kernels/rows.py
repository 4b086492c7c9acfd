"""Chains of operations over rows: what routers do with the scores of a token, as one kernel.

Requires hoisted and inlined modules; ensures that a connected group of operations over tokens with
small axes (experts, choices, groups) that can be written over blocks is one `RegionNode`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from tokdsl.graph.program import SELECTION, Module, Node, OpNode, Value
from tokdsl.lower.chunks import chunks_in, read_by
from tokdsl.lower.decisions import choices
from tokdsl.lower.kernels.nodes import REGION, RegionNode
from tokdsl.lower.kernels.report import RegionReport
from tokdsl.lower.kernels.rows_kernel import RESERVED, rows_kernel
from tokdsl.lower.kernels.write import PADDING, Writer, is_over_rows, is_row, operands
from tokdsl.lower.statistics import alone
from tokdsl.lower.training import training_alone
from tokdsl.ops.ambient import Reading
from tokdsl.ops.axes import Rowwise
from tokdsl.ops.tile import Grid, NotTiled
from tokdsl.types.tensors import Axis, TensorType

#: operations below which a region is not worth a kernel
FEWEST = 3
#: entries of one row in the largest block
LARGEST = 4096

#: what makes rows: whether there is a batch, and the clocks or groups of the leading axes
Rows = tuple[object, ...]


@dataclass
class _Group:
    nodes: list[OpNode]
    rows: Rows
    for_aux: bool
    #: values that need a result of the group and are computed outside of it
    beyond: set[int] = field(default_factory=set)

    def makes(self) -> set[int]:
        return {id(v) for node in self.nodes for v in node.outputs}


def fuse_rows(module: Module) -> list[RegionReport]:
    """Replace the regions of a module; return what was decided about them."""
    if module.kind in (SELECTION, REGION):
        return []
    finder = _Finder(module)
    reports: list[RegionReport] = []
    names = choices(module)
    replaced: list[tuple[_Group, RegionNode]] = []
    for group in finder.groups():
        what = tuple(type(n.op).op_name for n in group.nodes)
        try:
            node = _region(module, group, names)
        except NotTiled as fault:
            span = group.nodes[0].span
            reports.append(RegionReport("rows", module.name, what, span, reason=str(fault)))
            continue
        replaced.append((group, node))
        node.report = RegionReport("rows", module.name, what, node.span, name=_wish(module))
        reports.append(node.report)
    inside = {id(n) for group, _ in replaced for n in group.nodes}
    for choice, reason in finder.refused.values():
        if id(choice) not in inside:
            what = (type(choice.op).op_name,)
            reports.append(RegionReport("rows", module.name, what, choice.span, reason=reason))
    _place(module, replaced)
    return reports


def _wish(module: Module) -> str:
    return f"{module.name}_rows"


def is_free(node: Node | None) -> bool:
    """Whether a node is a constant: it can stand in any number of regions."""
    return (
        isinstance(node, OpNode)
        and not node.inputs
        and not isinstance(node.op, Reading)
        and not node.op.parameters()
        and not node.op.random
        and node.op.choice() is None
    )


def rows_of(kind: object) -> Rows | None:
    """Return what makes the rows of a type; () if it has none, None if its axes do not fit.

    Raises:
        NotTiled: if it is not a tensor.
    """
    if not isinstance(kind, TensorType):
        raise NotTiled(f"it reads {kind}")
    lead = [a for a in kind.axes if is_row(a)]
    if list(kind.axes[: len(lead)]) != lead:
        return None
    if not kind.batched:
        return () if not lead else None
    return ("batch", *((a.clock, a.group) for a in lead))


class _Finder:
    """The groups of nodes of a module that could be one kernel each."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.apart = alone(module)
        self.training = training_alone(module)
        self.chunks = chunks_in(module)
        #: choices that cannot be fused, and why
        self.refused: dict[int, tuple[OpNode, str]] = {}

    def groups(self) -> list[_Group]:
        found: list[_Group] = []
        for node in self.module.nodes:
            rows = self._rows(node)
            joined: _Group | None = None
            if isinstance(node, OpNode) and rows:
                joined = self._join(node, rows, found)
            for group in found:
                reads = {id(v) for v in read_by(node, self.chunks)}
                if group is not joined and reads & (group.makes() | group.beyond):
                    group.beyond |= {id(v) for v in node.outputs}
        return [group for group in found if _is_worth(group)]

    def _join(self, node: OpNode, rows: Rows, found: list[_Group]) -> _Group:
        """Add a node to the groups that it reads; statistics stand together in any case."""
        for_aux = id(node) in self.apart
        reads = {id(v) for v in node.inputs}
        mine = [
            g
            for g in found
            if g.rows == rows
            and g.for_aux == for_aux
            and (for_aux or reads & g.makes())
            and not reads & g.beyond
        ]
        if not mine:
            found.append(_Group([node], rows, for_aux))
            return found[-1]
        first = mine[0]
        for other in mine[1:]:
            needs = {id(v) for n in other.nodes for v in n.inputs}
            given = {id(v) for n in first.nodes for v in n.inputs}
            if needs & first.beyond or given & other.beyond:
                continue
            first.nodes += other.nodes
            first.beyond |= other.beyond
            found.remove(other)
        first.nodes.append(node)
        return first

    def _rows(self, node: Node) -> Rows | None:
        """Return what makes the rows of a node that can be fused, or None."""
        if not isinstance(node, OpNode) or is_free(node) or id(node) in self.training:
            return None
        op = node.op
        if op.parameters() or op.state() is not None or op.random or isinstance(op, Reading):
            return None
        try:
            rows = self._common_rows(node)
            if rows:
                _try(node)
        except NotTiled as fault:
            if op.choice() is not None:
                self.refused[id(node)] = (node, str(fault))
            return None
        return rows

    def _common_rows(self, node: OpNode) -> Rows:
        found: Rows = ()
        values = [v for name, _, v in operands(node) if name not in node.op.type_operands]
        for value in [*values, *node.outputs]:
            rows = rows_of(value.type)
            if rows is None or (rows and found and rows != found):
                raise NotTiled("its rows are not those of what it reads")
            found = rows or found
        made = [bool(rows_of(v.type)) for v in node.outputs]
        if found and any(made) and not all(made):
            raise NotTiled("it goes over all tokens")
        return found


def _try(node: OpNode) -> None:
    """Write one operation alone.

    Raises:
        NotTiled: if it has no form over blocks.
    """
    given = [v for name, _, v in operands(node) if name not in node.op.type_operands]
    write(list(dict.fromkeys(given)), [node], node.outputs)


def write(inputs: list[Value], nodes: list[OpNode], outputs: tuple[Value, ...]) -> Writer:
    """Return the writer of a region's forward statements; with gradients it is tried as well.

    Raises:
        NotTiled: if an operation has no form, or a row is too large for a block.
    """
    grid = Grid(["BLOCK"], [0], ["there"], batch=0)
    for name in RESERVED:
        grid.name(name)
    writer = Writer(grid, _place_of)
    writer.lay(inputs, nodes)
    volume = writer.volume(nodes)
    if volume > LARGEST:
        raise NotTiled(f"a row of {volume} entries is too large for a block")
    for value in inputs:
        writer.text[id(value)] = grid.name(value.name or "x")
    writer.forward(nodes)
    floats = {id(v): "gradient" for v in outputs if v.type.dtype not in ("bool", "i64")}
    lines = len(grid.lines)
    writer.reverse(nodes, floats)
    del grid.lines[lines:]
    return writer


def _place_of(axis: Axis) -> int:
    if is_row(axis):
        return 0
    raise KeyError(axis.name)


def _is_worth(group: _Group) -> bool:
    if group.for_aux:
        return len(group.nodes) > 1 and any(is_over_rows(n) for n in group.nodes)
    across = any(isinstance(n.op, Rowwise) or n.op.choice() is not None for n in group.nodes)
    return len(group.nodes) >= FEWEST and across


def _region(module: Module, group: _Group, names: dict[int, str]) -> RegionNode:
    nodes = _with_constants(group.nodes, module)
    made = {id(v) for node in nodes for v in node.outputs}
    read_outside = {id(v) for v in module.results}
    inside = {id(n) for n in group.nodes}
    for node in module.nodes:
        if id(node) not in inside:
            read_outside |= {id(v) for v in node.inputs}
    for_types: list[Value] = []
    inputs: list[Value] = []
    for node in nodes:
        for name, _, value in operands(node):
            if id(value) in made:
                continue
            (for_types if name in node.op.type_operands else inputs).append(value)
    inputs = list(dict.fromkeys(inputs))
    for_types = [v for v in dict.fromkeys(for_types) if v not in inputs]
    outputs = tuple(v for node in group.nodes for v in node.outputs if id(v) in read_outside)
    if not outputs:
        raise NotTiled("nothing reads it")
    padding = _padding(nodes)
    kernel = rows_kernel(_wish(module), inputs, for_types, nodes, outputs)
    given = [*inputs, *for_types, *padding]
    part = Module(module.name, REGION, group.nodes[0].span, given, list(nodes))
    part.results, part.doc = outputs, module.doc
    part.statics["choices"] = {id(n): names[id(n)] for n in nodes if id(n) in names}
    return RegionNode(
        tuple(part.inputs),
        outputs,
        group.nodes[0].span,
        module=part,
        kernel=kernel,
        arguments=tuple(range(len(given))),
    )


def _padding(nodes: list[OpNode]) -> list[Value]:
    """Return what says which tokens are padding, if something goes over all rows.

    Raises:
        NotTiled: if that is not one and the same for all.
    """
    found = [
        value
        for node in nodes
        for name, value in zip(node.operands, node.inputs, strict=True)
        if name == PADDING
    ]
    found = list(dict.fromkeys(found))
    if len(found) > 1:
        raise NotTiled("different tokens count")
    return found


def _with_constants(nodes: list[OpNode], module: Module) -> list[OpNode]:
    """Return the nodes in the order of the module, constants that they read among them."""
    wanted = {id(n) for n in nodes}
    for node in nodes:
        for value in node.inputs:
            if is_free(value.node):
                wanted.add(id(value.node))
    return [n for n in module.nodes if id(n) in wanted and isinstance(n, OpNode)]


def _place(module: Module, replaced: list[tuple[_Group, RegionNode]]) -> None:
    """Put the regions into the module: after what they read, before what reads them."""
    if not replaced:
        return
    owner: dict[int, RegionNode] = {
        id(n): region for group, region in replaced for n in group.nodes
    }
    place: dict[int, int] = {}
    items: dict[int, Node] = {}
    for at, node in enumerate(module.nodes):
        item: Node = owner.get(id(node), node)
        items[id(item)] = item
        place[id(item)] = at
    makers = {id(v): item for item in items.values() for v in item.outputs}
    chunks = chunks_in(module)
    waiting = {
        key: {id(makers[id(v)]) for v in read_by(item, chunks) if id(v) in makers} - {key}
        for key, item in items.items()
    }
    readers: dict[int, list[int]] = {}
    for key, needs in waiting.items():
        for need in needs:
            readers.setdefault(need, []).append(key)
    ready = [(place[key], key) for key, needs in waiting.items() if not needs]
    heapq.heapify(ready)
    order: list[Node] = []
    while ready:
        _, key = heapq.heappop(ready)
        order.append(items[key])
        for reader in readers.get(key, []):
            waiting[reader].discard(key)
            if not waiting[reader]:
                heapq.heappush(ready, (place[reader], reader))
    if len(order) == len(items):
        module.nodes = order
        return
    report = replaced[-1][1].report
    if report is not None:
        report.name, report.reason = "", "it and another region wait for each other"
    _place(module, replaced[:-1])


__all__ = ["fuse_rows", "is_free", "write"]
