"""Contract 3: documents that are packed into one row do not see each other."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from tokdsl.graph.program import Input, Value
from tokdsl.types.tensors import Axis, Clock
from tokdsl.verification.causality import different
from tokdsl.verification.result import CheckResult, bounded, skipped
from tokdsl.verification.subject import Inputs, Subject, gap

#: documents of the one row that is tried
COUNT = 3
#: entries along token axes of inputs that are not on the main clock
OTHER = (2, 1, 3)
#: what a document may change in another one, relative to the largest entry, by rounding alone
ROUNDING = 1e-6


class Row:
    """One row of documents in every stream, and its parts.

    Args:
        subject: the model.
        names: the arguments that take the numbers of documents, by clock.
    """

    def __init__(self, subject: Subject, names: dict[Clock, str]) -> None:
        self.subject, self.names = subject, names
        third = subject.length // COUNT
        self.main = (third, 1, subject.length - third - 1)
        self.inputs = subject.inputs(1, subject.length, sum(OTHER))
        self.documents = {
            name: torch.arange(COUNT).repeat_interleave(torch.tensor(self.lengths(clock)))[None]
            for clock, name in names.items()
        }

    def lengths(self, clock: Clock) -> tuple[int, ...]:
        """Return how long the documents are on a clock."""
        return self.main if clock == self.subject.clock else OTHER

    def span(self, clock: Clock, document: int) -> tuple[int, int]:
        """Return the first token of a document, and how many there are."""
        lengths = self.lengths(clock)
        return sum(lengths[:document]), lengths[document]

    def ticks(self, given: Input) -> list[tuple[int, Clock]]:
        """Return the dimensions of an input along which documents lie, with their clocks."""
        axes: tuple[Axis, ...] = given.value.type.axes
        return [(i + 1, a.clock) for i, a in enumerate(axes) if a.clock in self.names]

    def alone(self, document: int) -> Inputs:
        """Return the inputs of one document."""
        found = {}
        for given in self.subject.program.inputs:
            tensor = self.inputs[given.name]
            for dim, clock in self.ticks(given):
                tensor = tensor.narrow(dim, *self.span(clock, document))
            found[given.name] = tensor
        return found

    def edited(self, document: int) -> Inputs:
        """Return the inputs with other tokens in one document."""
        fresh, found = self.subject.inputs(1, self.subject.length, sum(OTHER)), dict(self.inputs)
        for given in self.subject.program.inputs:
            if self.ticks(given):
                tensor = self.inputs[given.name].clone()
                part, other = tensor, fresh[given.name]
                for dim, clock in self.ticks(given):
                    part = part.narrow(dim, *self.span(clock, document))
                    other = other.narrow(dim, *self.span(clock, document))
                part.copy_(different(given, part, other))
                found[given.name] = tensor
        return found

    def padded(self) -> tuple[Inputs, dict[str, Tensor]]:
        """Return the documents as rows of their own, padded on the right, and what is padding."""
        found = {}
        for given in self.subject.program.inputs:
            rows = []
            for document in range(COUNT):
                tensor = self.alone(document)[given.name]
                for dim, clock in self.ticks(given):
                    missing = max(self.lengths(clock)) - tensor.shape[dim]
                    edge = list(tensor.shape)
                    edge[dim] = missing
                    tensor = torch.cat((tensor, tensor.new_zeros(edge)), dim=dim)
                rows.append(tensor)
            found[given.name] = torch.cat(rows)
        valid = {}
        for clock, name in self.names.items():
            lengths = torch.tensor(self.lengths(clock))
            places = torch.arange(int(lengths.max()))
            valid[name.replace("documents", "valid")] = places < lengths[:, None]
        return found, valid


def check_isolation(subject: Subject) -> list[CheckResult]:
    """One row of several documents gives what each of them gives alone, and nothing crosses."""
    names = documents(subject)
    if subject.clock not in names:
        mixing = subject.facts.tables.get("mixes_documents")
        why = "no stream of tokens can be packed"
        if isinstance(mixing, list) and mixing:
            why = f"`{mixing[0].op.op_name}` goes over the whole row, as the analysis says"
        return [skipped("isolation", "documents", why)]
    row = Row(subject, names)
    with torch.no_grad():
        whole = subject.run(row.inputs, **row.documents)
        found = [_neighbours(subject, row, whole), _alone(subject, row, whole)]
    return [*found, *_losses(subject, row)] if subject.has_objective else found


def documents(subject: Subject) -> dict[Clock, str]:
    """Return the arguments of a model that say which tokens are of one document, by clock."""
    taken = inspect.signature(subject.model.forward).parameters
    found: dict[Clock, str] = {}
    for given in subject.program.inputs:
        clock = next((a.clock for a in given.value.type.axes if a.clock is not None), None)
        for name in ("documents", f"{given.name}_documents"):
            if clock is not None and name in taken and not clock_is_fixed(given):
                found.setdefault(clock, name)
    return found


def clock_is_fixed(given: Input) -> bool:
    """Whether an input has always the same number of tokens."""
    return all(a.size.is_number for a in given.value.type.axes if a.clock is not None)


def _results(subject: Subject, row: Row) -> list[tuple[str, int, Clock]]:
    """Return the stages whose results lie along documents: name, dimension, clock."""
    found = []
    for stage in subject.program.stages:
        for i, axis in enumerate(stage.result.type.axes):
            if axis.clock in row.names and axis.clock is not None:
                found.append((stage.name, i + 1, axis.clock))
                break
    return found


def _neighbours(subject: Subject, row: Row, whole: Inputs) -> CheckResult:
    """Other tokens in one document change nothing in the others."""
    worst = 0.0
    for edited in range(COUNT):
        other = subject.run(row.edited(edited), **row.documents)
        for name, dim, clock in _results(subject, row):
            for document in range(COUNT):
                if document != edited:
                    span = row.span(clock, document)
                    worst = max(
                        worst, gap(other[name].narrow(dim, *span), whole[name].narrow(dim, *span))
                    )
    limit = subject.limit if subject.has_decisions else ROUNDING
    return bounded("isolation", "neighbours", worst, limit)


def _alone(subject: Subject, row: Row, whole: Inputs) -> CheckResult:
    """Packed documents give what they give alone."""
    worst = 0.0
    for document in range(COUNT):
        alone = subject.run(row.alone(document))
        for name, dim, clock in _results(subject, row):
            packed = whole[name].narrow(dim, *row.span(clock, document))
            worst = max(worst, gap(packed, alone[name]))
    return bounded("isolation", "documents alone", worst, subject.limit)


def _losses(subject: Subject, row: Row) -> list[CheckResult]:
    """The loss of a packed row is that of its documents as padded rows; so are the gradients.

    Statistics that are collected may be per row; terms made of them are left out.
    """
    inputs, valid = row.padded()
    packed = subject.model.loss(**row.inputs, **row.documents).terms
    padded = subject.model.loss(**inputs, **valid).terms
    names = [name for name in packed if name not in _statistics(subject)]
    if not names:
        return [skipped("isolation", "loss", "all terms are statistics")]
    worst = max(
        abs(float(packed[n].detach() - padded[n].detach()))
        / max(1.0, abs(float(padded[n].detach())))
        for n in names
    )
    results = [bounded("isolation", "loss", worst, subject.limit)]
    parameters = list(subject.model.parameters())
    pairs = [
        torch.autograd.grad(sum(terms[n] for n in names), parameters, materialize_grads=True)
        for terms in (packed, padded)
    ]
    worst = max((gap(a, b) for a, b in zip(*pairs, strict=True)), default=0.0)
    return [*results, bounded("isolation", "gradients", worst, subject.limit)]


def _statistics(subject: Subject) -> set[str]:
    """Return the names of the terms of the objective that are made of collected values."""
    module = subject.program.objective
    if module is None:
        return set()
    sources = zip(module.inputs, subject.program.objective_inputs, strict=True)
    collected = {id(value) for value, source in sources if source.startswith("aux:")}
    found = set()
    for node in module.nodes:
        values: list[Value] = list(node.outputs)
        if any(id(value) in collected for value in node.inputs):
            collected |= {id(value) for value in values}
            found |= {value.name for value in values if value.name}
    return found
