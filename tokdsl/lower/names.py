"""Names of classes and variables in emitted code."""

from __future__ import annotations

import builtins
import keyword
import re
from functools import lru_cache

from tokdsl.graph.program import Module
from tokdsl.resources import resource

#: names that emitted modules use themselves
RESERVED = {
    *dir(builtins),
    *keyword.kwlist,
    *keyword.softkwlist,
    "F",
    "Tensor",
    "aux",
    "clock",
    "decisions",
    "i",
    "layer",
    "nn",
    "self",
    "state",
    "torch",
}


@lru_cache(maxsize=1)
def functions() -> frozenset[str]:
    """Return the names of all functions that a package may import."""
    return frozenset(
        entry.name.removesuffix(".py.jinja") for entry in resource("codegen", "ops").iterdir()
    )


def class_name(text: str) -> str:
    """Return ``SoftmaxTopk`` for ``softmax_topk``."""
    parts = re.split(r"[^0-9A-Za-z]+", text)
    name = "".join(part[:1].upper() + part[1:] for part in parts if part)
    return name if name[:1].isalpha() else f"M{name}"


def variable(text: str) -> str:
    """Return a legal variable name near ``text``."""
    name = re.sub(r"\W+", "_", text).strip("_") or "value"
    if name[0].isdigit():
        name = f"v{name}"
    return f"{name}_" if name in RESERVED or name in functions() else name


class Names:
    """Names in one scope, each given once; a name is free again when its value is dead."""

    def __init__(self) -> None:
        self._live: dict[str, int] = {}

    def take(self, wanted: str, owner: int, plain: bool = False) -> str:
        """Return ``wanted`` or ``wanted_2`` and so on, held for ``owner``.

        With ``plain`` it may be a name that emitted modules use themselves, but not here.
        """
        base = wanted if plain else variable(wanted)
        name, number = base, 1
        while name in self._live:
            number += 1
            name = f"{base}_{number}"
        self._live[name] = owner
        return name

    def free(self, owner: int) -> None:
        """Give back the names that a dead value held."""
        for name in [n for n, who in self._live.items() if who == owner]:
            del self._live[name]


def state_names(module: Module) -> dict[int, str]:
    """Return the state field of each node: ``f``, ``f_2`` for further uses of a shared ``f``."""
    owned = {node.attribute for node in module.nodes}
    taken: set[str] = set()
    names: dict[int, str] = {}
    for node in module.nodes:
        name, number = node.attribute, 1
        while name in taken or (number > 1 and name in owned):
            number += 1
            name = f"{node.attribute}_{number}"
        if name:
            taken.add(name)
            names[id(node)] = name
    return names
