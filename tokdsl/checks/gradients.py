"""Which parameters the objective reaches with a gradient, and where a gradient is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokdsl.checks.backward import (
    Backward,
    analyse,
    constant_axis,
    is_reached,
    is_trained,
    passing,
    reached_elsewhere,
    unreached,
)
from tokdsl.checks.facts import Facts
from tokdsl.diagnostics import Diagnostic, Label, Report, Severity
from tokdsl.graph.program import CallNode, LoopNode, Module, Node, OpNode, Program, Value
from tokdsl.ops.base import operand_fields
from tokdsl.source import Span

ORDER = 30


class DeadParameter(Diagnostic, code="TOK411", name="dead-parameter", severity=Severity.ERROR):
    """A parameter gets no gradient from the objective.

    Either nothing that the objective reads depends on it, or all ways from it go through an
    operation that passes no gradient, such as a comparison, an index or a rounding. The parameter
    keeps its initial value for ever. A value that shall stay as it is belongs in a `buffer`.

    ```tok error
    block f(x: [*, d]) -> [*, d] {
      gate = linear(x; d)
      x * f32(gate > 0)
    }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) { embed(d); f(); unembed(256) }
      objective next_token(text, ids)
    }
    ```
    ```tok ok
    block f(x: [*, d]) -> [*, d] {
      gate = linear(x; d)
      x * sigmoid(gate)
    }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) { embed(d); f(); unembed(256) }
      objective next_token(text, ids)
    }
    ```
    """

    what: str
    why: str

    def message(self) -> str:
        """Return what was found."""
        return f"{self.what} no gradient: {self.why}"


class DetachedParameter(
    Diagnostic, code="TOK412", name="detached-parameter", severity=Severity.WARNING
):
    """A parameter gets no gradient because of `stop_gradient`.

    This can be meant, as for a target network. Otherwise the parameter never learns.

    ```tok error
    block f(x: [*, d]) -> [*, d] { x + stop_gradient(linear(x; d)) }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) { embed(d); f(); unembed(256) }
      objective next_token(text, ids)
    }
    ```
    ```tok ok
    block f(x: [*, d]) -> [*, d] { x + linear(stop_gradient(x); d) }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) { embed(d); residual { f() }; unembed(256) }
      objective next_token(text, ids)
    }
    ```
    """

    what: str

    def message(self) -> str:
        """Return what was found."""
        return f"{self.what} no gradient: all ways to the objective are stopped"


class RouterWithoutGradient(
    Diagnostic, code="TOK413", name="router-without-gradient", severity=Severity.ERROR
):
    """A router's decision does not reach the objective with a gradient.

    The choice itself has no gradient: a router learns through the weights of what it chose. Here
    the weights do not depend on the scores, so the router never learns which choice was good.

    ```tok error
    use std.ffn { swiglu }

    router hard(x: [*, d]; experts: int) -> route[experts, top] {
      score, pick = topk(linear(x; experts); top: 2, over = experts)
      route(pick, score * 0.0 + 1.0)
    }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        residual { moe(experts = 4, expert = swiglu(hidden = 32), router = hard) }
        unembed(256)
      }
      objective next_token(text, ids)
    }
    ```
    ```tok ok
    use std.ffn { swiglu }

    router soft(x: [*, d]; experts: int) -> route[experts, top] {
      score, pick = topk(linear(x; experts); top: 2, over = experts)
      route(pick, softmax(score; over = top))
    }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        residual { moe(experts = 4, expert = swiglu(hidden = 32), router = soft) }
        unembed(256)
      }
      objective next_token(text, ids)
    }
    ```
    """

    def message(self) -> str:
        """Return what was found."""
        return "the weights of this route carry no gradient to the router's scores"

    def label(self) -> str:
        """Return what the place does."""
        return "the choice has no gradient of its own"


class ConstantShare(Diagnostic, code="TOK414", name="constant-share", severity=Severity.ERROR):
    """A share of a total with a single term is always 1.

    A softmax over one entry, or an entry divided by the sum over an axis of size 1, does not
    depend on the entry: its gradient is zero. A router with `top = 1` must take its weight from
    before the choice, such as the probability among all experts.

    ```tok error
    use std.ffn { swiglu }

    router switch(x: [*, d]; experts: int, top: int) -> route[experts, top] {
      score, pick = topk(linear(x; experts); top, over = experts)
      route(pick, softmax(score; over = top))
    }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        residual { moe(experts = 4, expert = swiglu(hidden = 32), router = switch(top = 1)) }
        unembed(256)
      }
      objective next_token(text, ids)
    }
    ```
    ```tok ok
    use std.ffn { swiglu }

    router switch(x: [*, d]; experts: int, top: int) -> route[experts, top] {
      probs = softmax(linear(x; experts); over = experts)
      weight, pick = topk(probs; top, over = experts)
      route(pick, weight)
    }

    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        residual { moe(experts = 4, expert = swiglu(hidden = 32), router = switch(top = 1)) }
        unembed(256)
      }
      objective next_token(text, ids)
    }
    ```
    """

    axis: str

    def message(self) -> str:
        """Return what was found."""
        return f"a share over `{self.axis}`, which has size 1, is always 1"


# --------------------------------------------------------------------------- the check


def check(program: Program, facts: Facts, report: Report) -> None:
    """Report parameters and routers that the objective does not reach with a gradient."""
    _report_constants(program, report)
    root = program.stages[0].result.owner if program.stages else None
    if root is None:
        return
    analysis, body = analyse(program, root)
    del analysis
    _Search(program, report).module(body, ())
    facts.tables["gradients"] = tuple(unreached(body))


def _report_constants(program: Program, report: Report) -> None:
    for module, node in _operations(program):
        axis = constant_axis(node)
        if axis is not None:
            span, labels = _user_place(program, module, node)
            report.add(
                ConstantShare(
                    span=span,
                    axis=axis,
                    labels=labels,
                    help="take the weight before the choice, or do not renormalise it",
                )
            )


def _operations(program: Program) -> Iterator[tuple[Module, OpNode]]:
    for module in program.modules:
        for node in module.nodes:
            if isinstance(node, OpNode):
                yield module, node


def _user_place(program: Program, module: Module, node: Node) -> tuple[Span, tuple[Label, ...]]:
    """Return the place in the user's file for a node, and a label for one in the library."""
    if not node.span.file.name.startswith("std/"):
        return node.span, ()
    label = (Label(node.span, "here, in the library"),)
    wanted, seen = module, {id(module)}
    while True:
        caller = next(
            (
                (outer, call)
                for outer in program.modules
                for call in outer.nodes
                if (isinstance(call, CallNode) and call.module is wanted)
                or (isinstance(call, LoopNode) and any(m is wanted for m in call.modules))
            ),
            None,
        )
        if caller is None or id(caller[0]) in seen:
            return node.span, ()
        if not caller[1].span.file.name.startswith("std/"):
            return caller[1].span, label
        wanted = caller[0]
        seen.add(id(wanted))


@dataclass(frozen=True)
class Frame:
    """One level of the way down to a module: the analysis, the node that calls, its caller."""

    body: Backward
    call: Node


class _Search:
    """Goes through the calls from the top and reports what is not reached, each place once."""

    def __init__(self, program: Program, report: Report) -> None:
        self.program = program
        self.report = report
        self.done: set[int] = set()
        self.silent: set[int] = set()

    def module(self, body: Backward, path: tuple[Frame, ...]) -> None:
        """Report what is not reached in a module and in what it calls."""
        if id(body) in self.done:
            return
        self.done.add(id(body))
        for node in body.module.nodes:
            if isinstance(node, OpNode) and type(node.op).op_name == "route":
                self._route(body, node)
        for node in body.module.nodes:
            if reached_elsewhere(body, node):
                continue
            if isinstance(node, OpNode):
                self._own(body, node, path)
            elif isinstance(node, CallNode | LoopNode):
                self._called(body, node, path)

    def _called(self, body: Backward, node: Node, path: tuple[Frame, ...]) -> None:
        for inner in body.calls[id(node)]:
            if isinstance(node, CallNode) and _all_dead(inner):
                if inner.module.kind == "stage":
                    continue  # an unused stage is reported as such
                if inner.module.span.file.name.startswith("std/"):
                    # a call of the library none of whose parameters is reached is one finding
                    cut = next(_cuts_below(inner, (*path, Frame(body, node))), None)
                    what = f"the parameters of `{inner.module.name}` get"
                    self._add(body, node, cut, what)
                    continue
            self.module(inner, (*path, Frame(body, node)))

    def _own(self, body: Backward, node: OpNode, path: tuple[Frame, ...]) -> None:
        if is_trained(node) and not is_reached(body, node):
            label = node.attribute or node.op.op_name
            self._add(body, node, _cut(body, node.outputs, path), f"`{label}` gets")

    def _add(self, body: Backward, node: Node, cut: Node | None, what: str) -> None:
        span, labels = _user_place(self.program, body.module, node)
        if id(body.module) in self.silent or (cut is not None and id(cut) in self.silent):
            return
        if cut is not None and isinstance(cut, OpNode):
            labels = (*labels, Label(cut.span, f"`{cut.op.op_name}` passes no gradient"))
            if type(cut.op).op_name == "stop_gradient":
                self.report.add(DetachedParameter(span=span, what=what, labels=labels))
                return
            if constant_axis(cut) is not None:
                return
        why = (
            f"it is cut at `{cut.op.op_name}`"
            if isinstance(cut, OpNode)
            else "nothing that the objective reads depends on it"
        )
        self.report.add(DeadParameter(span=span, what=what, why=why, labels=labels))

    def _route(self, body: Backward, node: OpNode) -> None:
        given = dict(zip(node.operands, node.inputs, strict=True))
        weight = given["weight"]
        if _depends_smoothly(weight) or not _is_learned(given["pick"]):
            return
        span, labels = _user_place(self.program, body.module, node)
        if not _constant_below(weight):
            self.report.add(RouterWithoutGradient(span=span, labels=labels))
        self.silent.add(id(body.module))  # its parameters are dead for this reason


def _all_dead(body: Backward) -> bool:
    """Whether a module has parameters, in all that it calls, and none is reached."""
    counts = [0, 0]
    _count(body, counts, set())
    return counts[0] > 0 and counts[1] == 0


def _count(body: Backward, counts: list[int], seen: set[int]) -> None:
    if id(body) in seen:
        return
    seen.add(id(body))
    for node in body.module.nodes:
        if isinstance(node, OpNode) and is_trained(node):
            counts[0] += 1
            counts[1] += is_reached(body, node)
        for inner in body.calls.get(id(node), ()):
            _count(inner, counts, seen)


def _cuts_below(body: Backward, path: tuple[Frame, ...]) -> Iterator[Node | None]:
    """Yield where the gradient of each parameter is cut, in a module and what it calls."""
    for node in body.module.nodes:
        if isinstance(node, OpNode) and is_trained(node):
            yield _cut(body, node.outputs, path)
        for inner in body.calls.get(id(node), ()):
            yield from _cuts_below(inner, (*path, Frame(body, node)))


def _cut(body: Backward, values: tuple[Value, ...], path: tuple[Frame, ...]) -> Node | None:
    """Return the operation at which the gradient of values is cut; None if nothing reads them."""
    wave = {id(v) for v in values}
    for node in body.module.nodes:
        if not any(id(v) in wave for v in node.inputs):
            continue
        if isinstance(node, OpNode):
            touched = [
                name for name, v in zip(node.operands, node.inputs, strict=True) if id(v) in wave
            ]
            live = any(body.reached(v)[1] for v in node.outputs)
            added = {a.name for a in operand_fields(type(node.op)) if a.kind == "companion"}
            if not live or set(touched) <= added:
                continue
            if not set(touched) & passing(node):
                return node
            wave |= {id(v) for v in node.outputs}
        else:
            for inner in body.calls.get(id(node), ()):
                formals = tuple(
                    f
                    for f, v in zip(inner.module.inputs, node.inputs, strict=True)
                    if id(v) in wave
                )
                found = _cut(inner, formals, ())
                if found is not None:
                    return found
            wave |= {id(v) for v in node.outputs}
    if path and any(id(v) in wave for v in body.module.results):
        outer = path[-1]
        outputs = tuple(
            v
            for v, r in zip(outer.call.outputs, body.module.results, strict=False)
            if id(r) in wave
        )
        return _cut(outer.body, outputs, path[:-1])
    return None


def _depends_smoothly(value: Value) -> bool:
    """Whether a value depends on a parameter or an operand in a way that has a gradient."""
    stack, seen = [value], set()
    while stack:
        at = stack.pop()
        if id(at) in seen or not at.type.is_float:
            continue
        seen.add(id(at))
        if at.node is None:
            return True
        if isinstance(at.node, OpNode):
            if any(s.trainable for s in at.node.op.parameters()):
                return True
            if _is_zeroed(at.node):
                continue
            passes = passing(at.node)
            stack += [
                v
                for name, v in zip(at.node.operands, at.node.inputs, strict=True)
                if name in passes
            ]
        else:
            stack += list(at.node.inputs)
            return True
    return False


def _is_learned(value: Value) -> bool:
    """Whether a choice depends on floats that are given or trained: not on ids alone."""
    stack, seen = [value], set()
    while stack:
        at = stack.pop()
        if id(at) in seen:
            continue
        seen.add(id(at))
        if at.node is None:
            if at.type.is_float:
                return True
        elif isinstance(at.node, OpNode) and any(s.trainable for s in at.node.op.parameters()):
            return True
        else:
            stack += list(at.node.inputs)
    return False


def _is_zeroed(node: OpNode) -> bool:
    """Whether a product has a factor that is the number zero."""
    from tokdsl.checks.support import literal

    return type(node.op).op_name == "multiply" and any(literal(v) == 0 for v in node.inputs)


def _constant_below(value: Value) -> bool:
    """Whether a share that is always 1 is the reason, which is reported by itself."""
    stack, seen = [value], set()
    while stack:
        at = stack.pop()
        if id(at) in seen:
            continue
        seen.add(id(at))
        if isinstance(at.node, OpNode):
            if constant_axis(at.node) is not None:
                return True
            stack += list(at.node.inputs)
    return False
