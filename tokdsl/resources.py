"""The only place that knows where the data folders are."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal

Folder = Literal["grammar", "stdlib", "codegen"]


def resource(folder: Folder, *parts: str) -> Traversable:
    """Return a file or folder under ``grammar/``, ``stdlib/`` or ``codegen/``."""
    package = files("tokdsl")
    installed = package.joinpath(folder)
    base = installed if installed.is_dir() else package.joinpath("..", folder)
    return base.joinpath(*parts)
