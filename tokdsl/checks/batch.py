"""Whether the result of an example depends on the other examples of its batch."""

from __future__ import annotations

from tokdsl.checks.facts import Facts
from tokdsl.checks.streaming import forward_modules, used_nodes, user_span
from tokdsl.checks.timing import varying
from tokdsl.diagnostics import Diagnostic, Label, Report, Severity
from tokdsl.graph.program import OpNode, Program

ORDER = 25


class DependsOnBatch(Diagnostic, code="TOK405", name="depends-on-batch", severity=Severity.WARNING):
    """The result of an example depends on the other examples of its batch.

    A statistic over the batch is different in training and in use, and differs with what an
    example happens to be batched with. In statistics that are only collected (`aux`) it is meant.

    ```tok error
    model m(d: int = 8) {
      stage text(ids: tokens[256]) {
        embed(d)
        it - mean(it; over = batch)
        unembed(256)
      }
    }
    ```
    ```tok ok
    model m(d: int = 8) {
      stage text(ids: tokens[256]) {
        embed(d)
        it - mean(it; over = d)
        unembed(256)
      }
    }
    ```
    """

    operation: str

    def message(self) -> str:
        """Return what was found."""
        return f"`{self.operation}` goes over the batch: examples depend on their neighbours"


def check(program: Program, facts: Facts, report: Report) -> None:
    """Report statistics over the batch on which results depend."""
    found: list[OpNode] = []
    for module in forward_modules(program, training=True):
        for node in used_nodes(module, training=True):
            if isinstance(node, OpNode) and _mixes_examples(node):
                found.append(node)
    facts.tables["depends_on_batch"] = found
    for node in found:
        span = user_span(program, node)
        labels = (Label(node.span, "here, in the library"),) if span != node.span else ()
        report.add(DependsOnBatch(span=span, operation=node.op.op_name, labels=labels))


def _mixes_examples(node: OpNode) -> bool:
    """Whether the batch is gone from a result; dispatched rows know their example."""
    kept = any(
        value.type.batched or any(axis.group is not None for axis in value.type.axes)
        for value in node.outputs
    )
    return not kept and any(value.type.batched for _, value in varying(node))
