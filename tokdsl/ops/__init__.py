"""The closed set of primitive operations: one class each, one module per family.

A new operation is one class in one file. A module is imported when a program names one of its
operations, so that a small program does not wait for all of them.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files

from tokdsl.ops.base import OPS as LOADED
from tokdsl.ops.base import Fault, Op

_DECLARED = re.compile(r'^@op\("(\w+)"\)$', re.MULTILINE)


@cache
def modules() -> dict[str, str]:
    """Return the module of every primitive by its name, read from the sources."""
    found: dict[str, str] = {}
    folder = files(__name__)
    for module in pkgutil.iter_modules(__path__):
        source = (folder / f"{module.name}.py").read_text("utf-8")
        found.update(dict.fromkeys(_DECLARED.findall(source), f"{__name__}.{module.name}"))
    return found


def _load(name: str) -> type[Op]:
    if name not in LOADED:
        importlib.import_module(modules()[name])
    return LOADED[name]


class Operations(Mapping[str, type[Op]]):
    """The primitives by name; looking at one imports its module.

    Args:
        internal: whether those that no program may name are among them.
    """

    def __init__(self, internal: bool) -> None:
        self._internal = internal

    def __getitem__(self, name: str) -> type[Op]:
        found = _load(name)
        if found.internal and not self._internal:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name in modules() if self._internal or not _load(name).internal)

    def __len__(self) -> int:
        return sum(1 for _ in self)


#: all primitives
OPS = Operations(internal=True)
#: the primitives that a program may name
WRITTEN = Operations(internal=False)

__all__ = ["OPS", "WRITTEN", "Fault", "Op", "Operations", "modules"]
