"""The kernel of a choice: what its template is filled with.

What goes over all keys of a query, as a softmax does, has a kernel of its own before: that gives
the logarithm of the sum of exponentials, from which the rest follows for a pair alone.
"""

from __future__ import annotations

from math import prod

from tokdsl.graph.program import Module, OpNode, Value
from tokdsl.lower.kernels.index_pass import OVER_KEYS, Pairs, Pass, sides
from tokdsl.lower.selection import axis_of, goes_over
from tokdsl.ops.contract import Dot
from tokdsl.ops.select import TopK
from tokdsl.ops.selected import AtColumns, Candidates, Seen
from tokdsl.ops.tile import NotTiled, padded
from tokdsl.types.tensors import Axis, TensorType

#: pairs of the axes that are summed, for one query and one key
MOST = 256


class Region:
    """The equations over pairs that lead to one choice.

    Raises:
        NotTiled: if the equations do not have the form of the kernel.
    """

    def __init__(self, module: Module, choice: OpNode) -> None:
        self.module = module
        assert isinstance(choice.op, TopK)
        self.op = choice.op
        operands_of = dict(zip(choice.operands, choice.inputs, strict=True))
        self.x, self.where = operands_of["x"], operands_of.get("where")
        found = (n for n in module.nodes if isinstance(n, OpNode) and isinstance(n.op, Candidates))
        self.candidates = next(found, None)
        query, key = axis_of(module, "query").name, axis_of(module, "key").name
        result = module.results[1].type
        assert isinstance(result, TensorType)
        self.result = [axis.name for axis in result.axes]
        self.new = _new_axis(result, self.x.type, query)
        units = tuple(a for a in result.axes if a.name not in (query, self.new))
        self.pairs = Pairs(module, query, key, units, self.candidates)
        if key != self.op.over or query not in self.result:
            raise NotTiled("its axes have other names here")
        for axis in units:
            if axis.size.number is None:
                raise NotTiled(f"the length of `{axis.name}` is not fixed")
        if self.op.k.size.number is None:
            raise NotTiled("how many are chosen is not fixed")

    @property
    def block(self) -> int:
        """The tokens of a candidate block; 0 if every key is a candidate."""
        op = self.candidates.op if self.candidates is not None else None
        return op.block if isinstance(op, Candidates) else 0

    def pieces(self) -> dict[str, object]:
        """Return what the template is filled with.

        Raises:
            NotTiled: if the equations do not have the form of the kernel.
        """
        self._look()
        self.passes: list[Pass] = []
        sums = [self._sums(number) for number in range(len(self.pairs.sums))]
        made = self._pass(
            [*self._slice(self.where), *self._slice(self.x)],
            loops=True,
            gathers=self.candidates is not None,
        )
        pieces = {**self._lines(made, self.x, self.where), **_dimensions(made), "sums": sums}
        units = [a.size.number or 1 for a in self.pairs.units]
        return pieces | {
            "tensors": [v.name for v in self.pairs.tensors],
            "units": units,
            "count": prod(units),
            "chosen": self.op.k.size.number,
            "width": max(16, padded(max(each.width for each in self.passes))),
            "shape": made.shape(()),
            **self._shapes(),
        }

    # ----------------------------------------------------------------- what is in it

    def _look(self) -> None:
        """Find what goes over all keys, and which axes of keys are summed."""
        pairs = self.pairs
        nodes = [*self._slice(self.where), *self._slice(self.x)]
        wanted = {id(node) for node in nodes}
        walked: dict[str, Axis] = {}
        for node in self.module.nodes:
            if not isinstance(node, OpNode) or id(node) not in wanted:
                continue
            if isinstance(node.op, Dot):
                _, (key, wide) = sides(node, pairs)
                walked |= {
                    a.name: a for a in key.type.axes if a.name not in {wide, *pairs.known}
                }  # fmt: skip
            elif goes_over(node, pairs.key):
                if not isinstance(node.op, OVER_KEYS):
                    raise NotTiled(f"`{node.op.op_name}` goes over all keys")
                pairs.sums.append(node)
        for axis in walked.values():
            if axis.size.number is None or axis.clock is not None:
                raise NotTiled(f"the length of `{axis.name}` is not fixed")
        pairs.walked = tuple(walked.values())
        for node in pairs.sums:
            axes = node.outputs[0].type.axes
            pairs.entries.append(tuple(a for a in axes if a.name not in pairs.known))

    def _slice(self, value: Value | None) -> list[OpNode]:
        """Return the nodes that lead to a value, in order; products are not followed further."""
        wanted: set[int] = set()
        waiting = [] if value is None else [value]
        while waiting:
            node = waiting.pop().node
            if not isinstance(node, OpNode) or id(node) in wanted or self._is_given(node):
                continue
            wanted.add(id(node))
            if isinstance(node.op, Seen):
                waiting += [
                    v for n, v in zip(node.operands, node.inputs, strict=True) if n == "where"
                ]
            elif isinstance(node.op, AtColumns):
                waiting += [v for v in node.inputs[:1] if v not in self.module.inputs]
            elif not isinstance(node.op, Dot):
                waiting += node.inputs
        return [n for n in self.module.nodes if isinstance(n, OpNode) and id(n) in wanted]

    def _is_given(self, node: OpNode) -> bool:
        return node is self.candidates or node not in self.module.nodes

    def _small(self, nodes: list[OpNode]) -> list[Axis]:
        """Return the axes of a block besides queries and keys, in the order of the first use."""
        found: dict[str, Axis] = {}
        for node in nodes:
            for value in node.outputs:
                if isinstance(node.op, AtColumns):
                    continue
                for axis in getattr(value.type, "axes", ()):
                    if axis.name in self.pairs.known:
                        continue
                    if axis.size.number is None or axis.clock is not None:
                        raise NotTiled(f"the length of `{axis.name}` is not fixed")
                    found[axis.name] = axis
        if prod(padded(a.size.number or 1) for a in found.values()) > MOST:
            raise NotTiled("what is summed for a pair is too much for a block")
        return list(found.values())

    # ----------------------------------------------------------------- statements

    def _pass(self, nodes: list[OpNode], *, loops: bool, gathers: bool) -> Pass:
        made = Pass(self.pairs, self._small(nodes), loops=loops, gathers=gathers)
        self.passes.append(made)
        return made

    def _lines(self, made: Pass, x: Value, where: Value | None) -> dict[str, object]:
        """Return the statements of a score and its condition."""
        head = list(made.grid.lines)
        conditions = self._slice(where)
        done = {id(node) for node in conditions}
        lines = made.written(conditions)
        products = made.written([n for n in self._slice(x) if id(n) not in done])
        return {
            "given": list(made.used.values()),
            "head": head,
            "conditions": lines,
            "seen": made.writer.text[id(where)] if where is not None else "",
            "products": products,
            "score": made.writer.text[id(x)],
        }

    def _sums(self, number: int) -> dict[str, object]:
        """Return what the kernel is filled with that sums over all keys."""
        pairs, node = self.pairs, self.pairs.sums[number]
        given = dict(zip(node.operands, node.inputs, strict=True))
        x, where = given["x"], given.get("where")
        walks = prod(a.size.number or 1 for a in pairs.walked) if pairs.is_walked(node) else 1
        nodes = [*self._slice(where), *self._slice(x), node]
        made = self._pass(nodes, loops=not pairs.is_walked(node), gathers=False)
        names = [a.name for a in made.small]
        dims = [names.index(a.name) + 1 for a in pairs.entries[number]]
        return {
            "number": number,
            **self._lines(made, x, where),
            **_dimensions(made),
            "walks": walks,
            "shape": made.shape(dims),
            "kept": made.shape(dims, has_keys=False),
            "entries": prod(a.size.number or 1 for a in pairs.entries[number]),
            "last": made.grid.rank - 1,
            "address": made.address(number),
            "inside": made.inside(number),
        }

    # ----------------------------------------------------------------- the launcher

    def _shapes(self) -> dict[str, object]:
        """Return from which tensors the launcher reads lengths and dtype, and orders of axes."""
        tensors = self.pairs.tensors
        used = {name for each in self.passes for name in each.used}

        def at(axis: str) -> tuple[int, int]:
            for number, value in enumerate(tensors):
                kind = value.type
                assert isinstance(kind, TensorType)
                names = [a.name for a in kind.axes]
                if axis in names and f"given_{number}" in used and kind.batched:
                    return number, names.index(axis) + 1
            raise NotTiled(f"nothing is given along `{axis}`")

        kinds = [v.type for v in tensors]
        floats = [i for i, t in enumerate(kinds) if _is_stream(t)]
        if not floats:
            raise NotTiled("it reads no numbers of tokens")
        made = [a.name for a in self.pairs.units] + [self.pairs.query, self.new]
        kind = self.module.results[0].type
        assert isinstance(kind, TensorType)
        found: dict[str, object] = {
            "queries": at(self.pairs.query),
            "keys": at(self.pairs.key) if self.candidates is None else (0, 0),
            "batched": floats[0],
            "dtype": f"x_{floats[0]}.dtype" if kind.dtype == "float" else "torch.float32",
            "floats": floats,
            "order": [0, *(1 + made.index(name) for name in self.result)],
            "candidates": None,
        }
        if self.candidates is not None:
            among = self.candidates.inputs[0]
            names = [a.name for a in among.type.axes]
            number = tensors.index(among) if among in tensors else -1
            if (
                number < 0
                or names[-2] != self.pairs.query
                or any(n not in [a.name for a in self.pairs.units] for n in names[:-2])
            ):
                raise NotTiled("candidates are made elsewhere")
            found["candidates"] = {"number": number, "units": names[:-2], "block": self.block}
        return found


def _dimensions(made: Pass) -> dict[str, object]:
    """Return how queries and keys lie in the blocks of a kernel, and how large these are."""
    rank = made.grid.rank
    return {
        "rows": made.rows,
        "least": made.least,
        "query_at": ", ".join([":", *["None"] * (rank - 1)]),
        "key_at": ", ".join([*["None"] * (rank - 1), ":"]),
    }


def _new_axis(result: TensorType, scores: object, query: str) -> str:
    """Return the name of the axis of what is chosen: the one that scores do not have."""
    have = {axis.name for axis in getattr(scores, "axes", ())}
    found = [a.name for a in result.axes if a.name not in have and a.name != query]
    if len(found) != 1:
        raise NotTiled("who chooses is not an axis of the scores")
    return found[0]


def _is_stream(kind: object) -> bool:
    return isinstance(kind, TensorType) and kind.is_float and kind.batched
