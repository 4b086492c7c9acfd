"""Attention as one operation: conditions and changes of scores become functions of a tile.

Requires inlined modules that are not hoisted yet; ensures that every attention whose mask and
scores can be computed for some queries and some keys alone is one `AttentionNode`. Its functions
are copies of the equations over pairs; what these read besides positions is given to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokdsl.graph.program import Module, Node, OpNode, Value
from tokdsl.lower.hoist import drop_unused
from tokdsl.lower.kernels.attention_kernel import ONE_HEAD, pieces
from tokdsl.lower.kernels.report import RegionReport
from tokdsl.ops.ambient import Constant, Position
from tokdsl.ops.attend import Attend, AttendTokens, AttentionMix, AttentionScores, token_axis
from tokdsl.ops.base import AxisRef, Op
from tokdsl.ops.logic import LogicalAnd
from tokdsl.ops.pairs import KeyChunks, Pairwise, SameChunk, Visible
from tokdsl.ops.tile import NotTiled
from tokdsl.ops.tokens import At
from tokdsl.source import Span
from tokdsl.types.dims import Dim
from tokdsl.types.tensors import Axis, TensorType
from tokdsl.types.time import Interval

#: kind of the modules that are functions of a tile of queries and keys
TILE = "tile"
#: what each axis of a value counts: rows, heads, queries, keys; none of these
Letters = str


@dataclass(eq=False, slots=True)
class AttentionNode(OpNode):
    """Attention with its own equations.

    Args:
        score: what becomes of the scaled scores: of scores, positions, and what is given.
        visible: which keys a query sees: of positions and what is given.
        along: what the dimensions of each given value count.
        home: the name of the definition.
        pieces: what the template of the kernel is filled with; None if there is no kernel.
    """

    score: Module | None = field(default=None, kw_only=True)
    visible: Module | None = field(default=None, kw_only=True)
    along: tuple[Letters, ...] = field(default=(), kw_only=True)
    home: str = field(default="", kw_only=True)
    pieces: dict[str, object] | None = field(default=None, kw_only=True)


class Apart(Exception):
    """Something cannot be computed for a tile of queries and keys alone; the text says why."""


def fuse_attention(module: Module) -> list[RegionReport]:
    """Make the attentions of a module one node each; return what was decided about them."""
    reports = []
    replaced = False
    for node in list(module.nodes):
        if not isinstance(node, OpNode) or not isinstance(node.op, Attend | AttentionMix):
            continue
        try:
            made = _Region(module, node).build()
        except Apart as apart:
            what = (type(node.op).op_name,)
            reports.append(RegionReport("attend", module.name, what, node.span, reason=str(apart)))
            continue
        module.nodes[module.nodes.index(node)] = made
        replaced = True
        reports.append(_kernel(made))
    if replaced:
        drop_unused(module)
    return reports


def _kernel(node: AttentionNode) -> RegionReport:
    """Fill the template of the kernel; return what came of it."""
    functions = [f for f in (node.score, node.visible) if f is not None]
    what = tuple(dict.fromkeys(["attend", *(_names(f) for f in functions)]))
    operations = tuple(name for part in what for name in part.split())
    try:
        node.pieces = pieces(node)
    except NotTiled as fault:
        return RegionReport("attend", node.home, operations, node.span, reason=str(fault))
    name = "_".join(["attend", *(f.name for f in functions)])
    return RegionReport("attend", node.home, operations, node.span, name=name)


def _names(function: Module) -> str:
    """Return the operations of a function."""
    return " ".join(
        type(node.op).op_name
        for node in function.nodes
        if isinstance(node, OpNode) and not isinstance(node.op, Constant | Pairwise)
    )


class _Region:
    """One attention and the equations over pairs that lead to it."""

    def __init__(self, module: Module, node: OpNode) -> None:
        self.module = module
        self.node = node
        self.operands = dict(zip(node.operands, node.inputs, strict=True))
        self.given: list[Value] = []
        self.along: list[Letters] = []
        self.inputs: dict[str, Value] = {}
        op = node.op
        assert isinstance(op, Attend | AttentionMix)
        self.mask = _made_by(self.operands.get("mask"), Visible)
        if "mask" in self.operands and self.mask is None:
            raise Apart("its mask is made elsewhere")
        self.scores: OpNode | None = None
        if isinstance(op, Attend):
            self.q, self.k = self.operands["q"], self.operands["k"]
            self.query, self.key = token_axis(op.q, "q"), token_axis(op.k, "k")
            self.statics: dict[str, Any] = {"scale": op.scale, "over": op.over}
        else:
            self.scores = _source(self.operands["scores"])
            first = self.scores.op
            assert isinstance(first, AttentionScores)
            self.q, self.k = self.scores.inputs
            self.query, self.key = token_axis(first.q, "q"), token_axis(first.k, "k")
            self.statics = {"scale": first.scale, "over": first.over}
        if self.mask is not None:
            assert isinstance(self.mask.op, Visible)
            if isinstance(self.mask.op.query, Axis) and isinstance(self.mask.op.key, Axis):
                self.query, self.key = self.mask.op.query, self.mask.op.key

    # ----------------------------------------------------------------- the node

    def build(self) -> AttentionNode:
        """Return the node in the place of the attention.

        Raises:
            Apart: if an equation needs more than a tile.
        """
        self.inputs = {"q": self.q, "k": self.k, "v": self.operands["v"]}
        if self.mask is not None:
            self._clocks(dict(zip(self.mask.operands, self.mask.inputs, strict=True)))
        if "sinks" in self.operands:
            self.inputs["sinks"] = self.operands["sinks"]
        condition = self._within(self._condition())
        self._band(condition is not None)
        visible = None if condition is None else self._visible(condition)
        score = self._score() if self.scores is not None else None
        for function in (score, visible):
            if function is not None:
                function.take(self.given)
        self._number_queries(score is not None or visible is not None)
        for at, value in enumerate(self.given):
            self.inputs[f"given_{at}"] = value
        kinds: dict[str, Any] = {n: v.type for n, v in self.inputs.items()}
        given = tuple(kinds.pop(f"given_{at}") for at in range(len(self.given)))
        op = AttendTokens(**kinds, given=given, **self.statics)
        made = AttentionNode(
            tuple(self.inputs.values()),
            self.node.outputs,
            self.node.span,
            self.node.attribute,
            op=op,
            operands=tuple(self.inputs),
            score=None if score is None else score.module,
            visible=None if visible is None else visible.module,
            along=tuple(self.along),
            home=self.module.name,
        )
        for value in self.node.outputs:
            value.node = made
        return made

    def _clocks(self, given: dict[str, Value]) -> None:
        """Take the clocks that the mask reads; a fixed number of tokens has none."""
        if "keys" in given and not self.key.size.is_number:
            self.inputs["keys"] = given["keys"]
        if "queries" in given and not self.query.size.is_number:
            self.inputs["queries"] = given["queries"]

    def _number_queries(self, reads_positions: bool) -> None:
        """Queries of a fixed number are counted where keys are tokens of a stream."""
        fixed = self.query.size.is_number and self.query.clock != self.key.clock
        self.statics["counted"] = fixed and reads_positions and "keys" in self.inputs

    # ----------------------------------------------------------------- the condition

    def _condition(self) -> Value | None:
        if self.mask is None:
            return None
        return dict(zip(self.mask.operands, self.mask.inputs, strict=True)).get("predicate")

    def _within(self, condition: Value | None) -> Value | None:
        """Take chunks out of a condition; return what is left of it."""
        if condition is None:
            return None
        node, rest = condition.node, None
        if isinstance(node, OpNode) and isinstance(node.op, LogicalAnd):
            second = node.inputs[1].node
            if isinstance(second, OpNode) and isinstance(second.op, SameChunk):
                node, rest = second, node.inputs[0]
        if not isinstance(node, OpNode) or not isinstance(node.op, SameChunk):
            return condition
        op = node.op
        keys = KeyChunks(chunks=op.chunks, key=op.key, window=op.window)
        value = Value(keys.type(), node.span, "chunk_of_key", owner=self.module)
        made = OpNode(
            node.inputs, (value,), node.span, node.attribute, op=keys, operands=("chunks",)
        )
        value.node = made
        # in the place of the comparison, so that its state is where it was
        self.module.nodes[self.module.nodes.index(node)] = made
        self.inputs["within"], self.inputs["key_chunks"] = node.inputs[0], value
        return rest

    def _band(self, conditioned: bool) -> None:
        """State the offsets that the condition allows where columns of tokens are offsets."""
        interval = self.node.op.interval  # type: ignore[attr-defined]
        self.exact = not conditioned
        straight = self.query.clock == self.key.clock and not self.key.block
        if straight and isinstance(interval, Interval):
            self.exact = self.exact or interval.exact
            self.statics["band"] = interval

    def _visible(self, condition: Value) -> _Function | None:
        if self.exact:
            return None
        assert self.mask is not None
        kind = dict(self.mask.op.operand_types())["predicate"]
        letters = self._letters(kind, {self.query.name: "t", self.key.name: "s"})
        return _Function(self, f"{self.module.name}_visible", condition, letters)

    # ----------------------------------------------------------------- scores

    def _score(self) -> _Function | None:
        assert self.scores is not None
        value = self.operands["scores"]
        if value is self.scores.outputs[0]:
            return None
        kind = dict(self.node.op.operand_types())["scores"]
        tokens = [a for a in kind.axes if a.clock is not None]
        names = dict(zip((a.name for a in tokens), "ts", strict=False))
        letters = self._letters(kind, names)
        return _Function(self, f"{self.module.name}_score", value, letters)

    def _letters(self, kind: object, names: dict[str, str]) -> Letters:
        assert isinstance(kind, TensorType)
        letters = "".join(names.get(axis.name, "h") for axis in kind.axes)
        if letters.count("h") > 1:
            raise Apart("it has more axes than heads, queries and keys")
        return letters

    # ----------------------------------------------------------------- what is given

    def give(self, value: Value, letters: Letters) -> int:
        """Note a value that the equations read; return its number."""
        kind = value.type
        if not isinstance(kind, TensorType) or value.python != "Tensor":
            raise Apart(f"it reads {kind}")
        if self.scores is not None and self.scores in _makers(value):
            raise Apart(f"{_what(value)} needs the scores of all keys")
        along = ("b" if kind.batched else "") + letters
        for at, known in enumerate(self.given):
            if known is value and self.along[at] == along:
                return at
        self.given.append(value)
        self.along.append(along)
        return len(self.given) - 1


class _Function:
    """A copy of the equations that lead to one value over pairs."""

    def __init__(self, region: _Region, name: str, result: Value, letters: Letters) -> None:
        self.region = region
        span = result.span
        self.module = Module(name, TILE, span)
        self._score: Value | None = None
        self._formal: dict[object, Value] = {}
        self._done: dict[int, tuple[Letters, Value]] = {}
        self._nodes: list[OpNode] = []
        self._pairs: dict[int, bool] = {}
        if region.scores is not None and name.endswith("_score"):
            self._scores(region.scores.outputs[0])
        for letter, axis in (("t", region.query), ("s", region.key)):
            kind = Position(axis=axis).type()
            self._input(letter, Value(kind, span), "i" if letter == "t" else "j")
        value = self._value(result, letters)
        self.module.results = (self._arranged(value, letters, span),)
        self.module.nodes = list(self._nodes)

    def take(self, given: list[Value]) -> None:
        """Take all that is given, in order, also what another function reads."""
        fixed = [v for key, v in self._formal.items() if not isinstance(key, tuple)]
        named = [self._input(("given", at), v, _name_of(v)) for at, v in enumerate(given)]
        self.module.inputs = [*fixed, *named]

    def _input(self, key: object, like: Value, name: str) -> Value:
        if key not in self._formal:
            value = Value(like.type, like.span, name, owner=self.module)
            self._formal[key] = value
            self.module.inputs.append(value)
        return self._formal[key]

    def _scores(self, value: Value) -> None:
        """Take the scores; where queries have no heads they come as those of one."""
        kind = value.type
        assert isinstance(kind, TensorType)
        if len(kind.axes) > 2:
            self._score = self._input("score", value, "s")
            return
        full = kind.with_axes((Axis(ONE_HEAD, Dim.of(1)), *kind.axes))
        given = self._input("score", Value(full, value.span), "s")
        op = At(x=full, over=AxisRef(ONE_HEAD), index=0)
        self._score = self._add(op, ("x",), (given,), value.span)[0]

    def _arranged(self, value: Value, letters: Letters, span: Span) -> Value:
        """Return a result with its axes in order: heads, queries, keys."""
        kind = value.type
        assert isinstance(kind, TensorType)
        wanted = "hts" if "score" in self._formal or "h" in letters else "ts"
        if letters == wanted:
            return value
        size = kind.axes[letters.index("h")].size if "h" in letters else Dim.of(1)
        axes = {"h": Axis("h", size), "t": self.region.query, "s": self.region.key}
        axes = {letter: axis.renamed(letter) for letter, axis in axes.items()}
        x = TensorType(tuple(axes[c] for c in letters), kind.dtype, kind.batched)
        op = Pairwise(x=x, axes=tuple(axes[c] for c in wanted))
        return self._add(op, ("x",), (value,), span)[0]

    def _add(
        self, op: Op, names: tuple[str, ...], inputs: tuple[Value, ...], span: Span
    ) -> tuple[Value, ...]:
        kind = op.type()
        kinds = kind if isinstance(kind, tuple) else (kind,)
        outputs = tuple(Value(k, span, owner=self.module) for k in kinds)
        node = OpNode(inputs, outputs, span, op=op, operands=names)
        for at, value in enumerate(outputs):
            value.node, value.index = node, at
        self._nodes.append(node)
        return outputs

    # ----------------------------------------------------------------- copying

    def _value(self, value: Value, letters: Letters) -> Value:
        """Return the copy of a value, of whose axes it is known what they count."""
        region, node = self.region, value.node
        if id(value) in self._done:
            known, copy = self._done[id(value)]
            if known != letters:
                raise Apart("an axis stands for queries and for keys")
            return copy
        if region.scores is not None and value is region.scores.outputs[0]:
            if self._score is None or letters not in ("hts", "ts"):
                raise Apart("its scores are read with other axes")
            copy = self._score
        elif isinstance(node, OpNode) and isinstance(node.op, Position) and letters in ("t", "s"):
            if node.op.axis not in (region.query, region.key):
                raise Apart("it reads positions of other tokens")
            copy = self._formal["t" if node.op.axis == region.query else "s"]
        elif isinstance(node, OpNode) and self._belongs(value, letters):
            return self._copied(value, node, letters)
        elif {"t", "s"} <= set(letters):
            raise Apart(f"{_what(value)} is made for all pairs at once")
        else:
            at = region.give(value, letters)
            copy = self._input(("given", at), value, _name_of(value))
        self._done[id(value)] = (letters, copy)
        return copy

    def _belongs(self, value: Value, letters: Letters) -> bool:
        """Whether a value is part of the function: over pairs, or of positions and numbers."""
        node = value.node
        assert isinstance(node, OpNode)
        if {"t", "s"} <= set(letters):
            return True
        if isinstance(node.op, Constant):
            return not isinstance(node.op.value, Dim) or node.op.value.is_number
        return self._is_of_positions(value)

    def _is_of_positions(self, value: Value) -> bool:
        """Whether a value follows from positions and numbers by what goes element by element."""
        found = self._pairs.get(id(value))
        if found is None:
            node = value.node
            found = False
            if isinstance(node, OpNode) and isinstance(node.op, Constant):
                found = not isinstance(node.op.value, Dim) or node.op.value.is_number
            elif isinstance(node, OpNode) and isinstance(node.op, Position):
                found = node.op.axis in (self.region.query, self.region.key)
            elif isinstance(node, OpNode) and node.inputs and node.op.elementwise:
                found = all(self._is_of_positions(v) for v in node.inputs)
            self._pairs[id(value)] = found
        return found

    def _copied(self, value: Value, node: OpNode, letters: Letters) -> Value:
        op = node.op
        if op.parameters() or op.state() is not None or op.random or op.decision:
            raise Apart(f"`{op.op_name}` is more than an equation")
        kind = op.type()
        own = (kind if isinstance(kind, tuple) else (kind,))[value.index]
        names = {a.name: c for a, c in zip(own.axes, letters, strict=True)}
        types = dict(op.operand_types())
        inputs = []
        for name, given in zip(node.operands, node.inputs, strict=True):
            inputs.append(self._value(given, _read(op, name, types[name], names)))
        outputs = self._add(op, node.operands, tuple(inputs), node.span)
        for old, new in zip(node.outputs, outputs, strict=True):
            new.name, new.span = old.name, old.span
        self._done[id(value)] = (letters, outputs[value.index])
        return outputs[value.index]


def _read(op: Op, name: str, kind: object, names: dict[str, str]) -> Letters:
    """Return what the axes of an operand count, given those of a result.

    Raises:
        Apart: if the operation reads other queries or keys than its own.
    """
    if not isinstance(kind, TensorType):
        raise Apart(f"`{op.op_name}` reads {kind}")
    flows = {flow.source: flow for flow in op.flows().get(name, [])}
    letters = ""
    for axis in kind.axes:
        flow = flows.get(axis.name)
        if flow is None:
            letters += names.get(axis.name, "e")
            continue
        letter = names.get(flow.target, "e") if flow.target is not None else "e"
        if axis.clock is not None and (letter == "e" or not flow.is_own):
            raise Apart(f"`{op.op_name}` goes over tokens")
        letters += letter
    for letter in "hts":
        if letters.count(letter) > 1:
            raise Apart(f"`{op.op_name}` reads an axis twice")
    return letters


def _made_by(value: Value | None, cls: type[Op]) -> OpNode | None:
    node = value.node if value is not None else None
    return node if isinstance(node, OpNode) and isinstance(node.op, cls) else None


def _source(value: Value) -> OpNode:
    """Return the products from which scores are made.

    Raises:
        Apart: if there are none, or several.
    """
    found = [
        n for n in _makers(value) if isinstance(n, OpNode) and isinstance(n.op, AttentionScores)
    ]
    if len(found) != 1:
        raise Apart("its scores come from several products" if found else "it reads no scores")
    return found[0]


def _makers(value: Value) -> list[Node]:
    """Return the nodes of the body from which a value is made, back to attentions before it."""
    found: dict[int, Node] = {}
    waiting = [value]
    while waiting:
        node = waiting.pop().node
        if node is None or id(node) in found:
            continue
        found[id(node)] = node
        ends = Attend | AttentionMix | AttentionScores
        if not (isinstance(node, OpNode) and isinstance(node.op, ends)):
            waiting += node.inputs
    return list(found.values())


def _what(value: Value) -> str:
    node = value.node
    if isinstance(node, OpNode):
        return f"`{type(node.op).op_name}`"
    return f"`{value.name}`" if value.name else "a value"


def _name_of(value: Value) -> str:
    """Return the name of a value, or of what it is a view of."""
    at = value
    while not at.name and isinstance(at.node, OpNode) and len(at.node.inputs) == 1:
        at = at.node.inputs[0]
    if at.name:
        return at.name
    return value.node.op.op_name if isinstance(value.node, OpNode) else "given"


__all__ = ["AttentionNode", "fuse_attention"]
