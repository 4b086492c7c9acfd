"""Measured configurations of kernels, after a package was built anew."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass

#: the file beside ``kernels.py`` that `tokdsl tune` writes
TUNED = "tuned.json"


@dataclass(frozen=True)
class _Used:
    """What the configurations of a template are for.

    Args:
        sources: its functions by name.
        kernels: names of those that run on the device.
    """

    sources: dict[str, str]
    kernels: frozenset[str]

    def holds(self, new: _Used) -> bool:
        """Whether what was measured on these functions is still true of new ones.

        Some kernel must be left, and what is left be as it was.
        """
        left = self.sources.keys() & new.sources.keys()
        changed = any(self.sources[name] != new.sources[name] for name in left)
        return not changed and bool(self.kernels & new.kernels)


class _Kernels:
    """The text of a ``kernels.py``: its functions, and the candidates of its configurations."""

    def __init__(self, text: str) -> None:
        self.configs: dict[str, list[dict[str, int]]] = {}
        self._nodes: dict[str, ast.stmt] = {}
        for node in ast.parse(text).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                self._nodes[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self._nodes[node.targets[0].id] = node
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                self._nodes[node.target.id] = node
        candidates = self._nodes.pop("CONFIGS", None)
        if isinstance(candidates, ast.AnnAssign) and candidates.value is not None:
            self.configs = ast.literal_eval(candidates.value)
        self._nodes.pop("config", None)  # how a configuration is found changes no kernel
        self._reads = {name: self._names(node) for name, node in self._nodes.items()}
        self._known: dict[str, _Used] = {}

    def used(self, template: str) -> _Used:
        """Return what reads a configuration of a template, and all that this calls."""
        if template not in self._known:
            self._known[template] = self._used(template)
        return self._known[template]

    def _used(self, template: str) -> _Used:
        found = {
            name
            for name, node in self._nodes.items()
            if any(
                isinstance(part, ast.Constant) and str(part.value).startswith(f"{template}.")
                for part in ast.walk(node)
            )
        }
        while more := {n for n, reads in self._reads.items() if reads & found} - found:
            found |= more
        while more := {n for name in found for n in self._reads[name]} - found:
            found |= more
        sources = {name: ast.dump(self._nodes[name]) for name in found}
        return _Used(sources, frozenset(n for n in found if _is_jit(self._nodes[n])))

    def _names(self, node: ast.stmt) -> set[str]:
        """Return which functions of the file a function names; its docstring says nothing."""
        for part in ast.walk(node):
            if isinstance(part, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(part):
                part.body = part.body[1:] or [ast.Pass()]
        used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        return used & self._nodes.keys()


def _is_jit(node: ast.stmt) -> bool:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return any(ast.unparse(d).split("(")[0].endswith("jit") for d in decorators)


def kept(tuned: str, before: str, after: str) -> str:
    """Return the measured configurations that hold for a package that was built anew.

    One is dropped if its kernel is gone, or has other statements or other settings than it had.

    Args:
        tuned: the file as it was; what is not readable stays as it is.
        before: the ``kernels.py`` that was measured.
        after: the new one, or "" if there is none.

    Returns:
        The new file, or "" if nothing is left.
    """
    try:
        measured = json.loads(tuned)
        old, new = _Kernels(before), _Kernels(after)
        found = {
            device: {key: best for key, best in kernels.items() if _holds(key, best, old, new)}
            for device, kernels in measured.items()
        }
    except (ValueError, AttributeError, TypeError, SyntaxError):
        return tuned if after else ""
    found = {device: kernels for device, kernels in found.items() if kernels}
    return json.dumps(found, indent=2) + "\n" if found else ""


def _holds(key: str, best: dict[str, int], old: _Kernels, new: _Kernels) -> bool:
    template = key.split(".")[0]
    is_known = any(best.keys() == candidate.keys() for candidate in new.configs.get(key, ()))
    return is_known and old.used(template).holds(new.used(template))


__all__ = ["TUNED", "kept"]
