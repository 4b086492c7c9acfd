"""The one type that carries a finding from any stage to any renderer."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Self, dataclass_transform

from tokdsl.source import Span


class Severity(Enum):
    """How much a finding matters: an error stops the build."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Label:
    """A secondary place that matters for a finding, with its own short text."""

    span: Span
    text: str


@dataclass(frozen=True)
class Edit:
    """Replace the text of ``span`` by ``text``."""

    span: Span
    text: str


@dataclass(frozen=True)
class Fix:
    """A repair that an editor can apply; ``safe`` keeps the meaning of the model."""

    title: str
    edits: tuple[Edit, ...]
    safe: bool = False


#: Every diagnostic class by its code, filled where the classes are declared.
REGISTRY: dict[str, type[Diagnostic]] = {}


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Declared:
    """Tells type checkers that the annotated names of a subclass are keywords of its call."""


class Diagnostic(Declared):
    """Base of all findings; instances are immutable.

    A subclass states ``code``, ``name`` (the fault, never the cure) and ``severity`` in its
    class line, the title and explanation in its docstring with one ``tok error`` block and one
    ``tok ok`` block, and the data of the finding as fields.
    """

    code: ClassVar[str] = ""
    name: ClassVar[str] = ""
    severity: ClassVar[Severity] = Severity.ERROR

    span: Span
    labels: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    help: str | None = None
    fix: Fix | None = None
    #: calls through which the place was reached, outermost first
    trace: tuple[Label, ...] = ()

    #: names of the data of a finding, in order
    data: ClassVar[tuple[str, ...]] = ("span", "labels", "notes", "help", "fix", "trace")

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)
        missing = [name for name in self.data if not hasattr(self, name)]
        unknown = [name for name in given if name not in self.data]
        if missing or unknown:
            raise TypeError(f"{type(self).__name__}: missing {missing}, unknown {unknown}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Diagnostic)
            and type(other) is type(self)
            and self._values() == other._values()
        )

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.data)

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.data)
        return f"{type(self).__name__}({inner})"

    def replace(self, **changed: Any) -> Self:
        """Return the same finding with some of its data changed."""
        return type(self)(**{name: getattr(self, name) for name in self.data} | changed)

    def __init_subclass__(cls, *, code: str, name: str, severity: Severity) -> None:
        if code in REGISTRY:
            raise TypeError(f"diagnostic code {code} is declared twice")
        if any(other.name == name for other in REGISTRY.values()):
            raise TypeError(f"diagnostic name {name} is declared twice")
        cls.code, cls.name, cls.severity = code, name, severity
        own = inspect.get_annotations(cls)
        fresh = (n for n, kind in own.items() if not str(kind).startswith("ClassVar"))
        cls.data = (*cls.data, *(n for n in fresh if n not in cls.data))
        REGISTRY[code] = cls

    def message(self) -> str:
        """Return the one line that stands alone."""
        raise TypeError(f"{type(self).__name__} has no message")

    def label(self) -> str:
        """Return the short text under the primary span; empty means no text."""
        return ""

    @classmethod
    def title(cls) -> str:
        """Return the first line of the class's page."""
        return (cls.__doc__ or "").strip().split("\n", 1)[0].rstrip(".")


@dataclass
class Report:
    """A growing list of findings; one cause is listed once."""

    found: list[Diagnostic] = field(default_factory=list)
    _seen: set[tuple[str, str, int, str]] = field(default_factory=set, repr=False)

    def add(self, diagnostic: Diagnostic) -> None:
        """Add a finding unless the same code was already reported at the same place."""
        span = diagnostic.span
        key = (diagnostic.code, span.file.name, span.start, diagnostic.message())
        if key not in self._seen:
            self._seen.add(key)
            self.found.append(diagnostic)

    def extend(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Add several findings."""
        for diagnostic in diagnostics:
            self.add(diagnostic)

    @property
    def has_errors(self) -> bool:
        """Whether anything was found that stops a build."""
        return any(d.severity is Severity.ERROR for d in self.found)

    def sorted(self) -> list[Diagnostic]:
        """Return the findings in source order."""
        return sorted(self.found, key=lambda d: (d.span.file.name, d.span.start, d.code))

    def __iter__(self) -> Iterator[Diagnostic]:
        return iter(self.sorted())

    def __len__(self) -> int:
        return len(self.found)


def did_you_mean(word: str, candidates: Iterable[str]) -> str | None:
    """Return ``did you mean `x`?`` for the nearest candidate in scope, if one is near."""
    near = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else None
