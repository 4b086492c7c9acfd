"""Import specs like modules.

After ``import tokdsl.hook`` the statement ``from models.mixtral import Model`` finds
``models/mixtral.tok`` (or ``.tok.yaml``) wherever Python would look for ``models/mixtral.py``. An
ordinary module or package of that name comes first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType

ENDINGS = (".tok", ".tok.yaml")


class SpecFinder(MetaPathFinder):
    """Finds specs on the import path."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to import a spec of that name, or None."""
        name = fullname.rpartition(".")[2]
        for folder in sys.path if path is None else path:
            for ending in ENDINGS:
                file = Path(folder or ".", name + ending)
                if file.is_file():
                    return ModuleSpec(fullname, SpecLoader(file), origin=str(file), is_package=True)
        return None


class SpecLoader(Loader):
    """Compiles a spec and runs its package as the module.

    Args:
        file: the spec.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module with the names of the package.

        Raises:
            ImportError: the spec has errors; the message shows them.
        """
        from tokdsl import CompileError
        from tokdsl.commands.load import cached_package

        try:
            folder = cached_package(self.file)
        except CompileError as error:
            message = f"{self.file} does not compile:\n{error}"
            raise ImportError(message, name=module.__name__, path=str(self.file)) from None
        start = folder / "__init__.py"
        module.__path__ = [str(folder)]
        module.__file__ = str(start)
        SourceFileLoader(module.__name__, str(start)).exec_module(module)


def install() -> None:
    """Add the finder to the import system, once."""
    if not any(isinstance(finder, SpecFinder) for finder in sys.meta_path):
        sys.meta_path.append(SpecFinder())


def uninstall() -> None:
    """Take the finder out of the import system; modules already imported stay."""
    sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, SpecFinder)]


install()
