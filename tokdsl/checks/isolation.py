"""Whether documents that are packed into one row see each other."""

from __future__ import annotations

from tokdsl.checks.causality import root_of
from tokdsl.checks.facts import Facts
from tokdsl.checks.streaming import forward_modules, used_nodes, user_span
from tokdsl.checks.timing import varying
from tokdsl.diagnostics import Diagnostic, Label, Report, Severity
from tokdsl.graph.program import SELECTION, OpNode, Program
from tokdsl.types.tensors import Axis, Clock

ORDER = 22


class MixesDocuments(Diagnostic, code="TOK406", name="mixes-documents", severity=Severity.ERROR):
    """An operation reads the tokens of other documents in its row.

    `require isolated` asks that documents packed into one row do not see each other. Attention,
    convolutions, recurrences, running totals, `shift` and `targets` know where documents start.
    What goes over a whole row does not: a statistic over its tokens, a choice among them, a Fourier
    transform, an equation over all pairs of tokens.

    ```tok error
    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        it + softmax(it; over = T) * it
        unembed(256)
      }
      require isolated
    }
    ```
    ```tok ok
    model m(d: int = 16) {
      stage text(ids: tokens[256]) {
        embed(d)
        it + ema(it; decay = 0.9)
        unembed(256)
      }
      require isolated
    }
    ```
    """

    operation: str

    def message(self) -> str:
        """Return what was found."""
        return f"`{self.operation}` reads other documents of its row"


def check(program: Program, facts: Facts, report: Report) -> None:
    """Set whether documents are isolated; report what mixes them if it is required."""
    found = [
        node
        for module in forward_modules(program, training=True)
        if module.kind != SELECTION  # what may be chosen is asked of `seen` there
        for node in used_nodes(module, training=True)
        if isinstance(node, OpNode) and _mixes_documents(node, program.clocks)
    ]
    facts.isolated = not found
    facts.tables["mixes_documents"] = found
    wanted = next((r for r in program.requirements if r.fact == "isolated"), None)
    if wanted is None:
        return
    reported = set()
    for node in found:
        span = user_span(program, node)
        if span in reported:
            continue
        reported.add(span)
        labels: tuple[Label, ...] = (Label(wanted.span, "required here"),)
        if span != node.span:
            labels = (*labels, Label(node.span, "here, in the library"))
        report.add(
            MixesDocuments(
                span=span,
                operation=node.op.op_name,
                labels=labels,
                help="write it with `attend`, `conv1d`, `cumsum`, `ema` or `linear_recurrence`, "
                "or give one document per row and require nothing",
            )
        )


def _mixes_documents(node: OpNode, clocks: list[Clock]) -> bool:
    """Whether an operation reads other tokens of a stream and does not know its documents."""
    if node.op.isolates():
        return False
    mixed = node.op.mixed()
    return any(
        axis in mixed and _is_packed(axis, clocks)
        for name, _ in varying(node)
        for axis in dict(node.op.operand_types())[name].axes
    )


def _is_packed(axis: Axis, clocks: list[Clock]) -> bool:
    """Whether an axis holds tokens of several documents: those of an input, or chosen ones."""
    if axis.clock is None:
        return axis.group is not None
    return not axis.size.is_number and root_of(axis.clock) in clocks
