"""`tokdsl new`: write a starter spec."""

from __future__ import annotations

from pathlib import Path

from tokdsl.files import write_atomic
from tokdsl.resources import resource

TEMPLATE = "transformer.tok.jinja"


def new(path: Path) -> Path:
    """Write a small transformer and return where it was written.

    Args:
        path: the name of the model, with or without folders and the ending ``.tok``.

    Raises:
        ValueError: the name is not an identifier.
        FileExistsError: the file is already there.
    """
    name = path.name.removesuffix(".tok")
    if not (name.isidentifier() and name.isascii()):
        raise ValueError(f"`{name}` is not a name: use letters, digits and `_`")
    target = path.with_name(f"{name}.tok")
    if target.exists():
        raise FileExistsError(f"{target} is already there")
    write_atomic(target, starter(name))
    return target


def starter(name: str) -> str:
    """Return the text of the starter spec of a model."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    template = environment.from_string(resource("codegen", "new", TEMPLATE).read_text("utf-8"))
    return template.render(name=name)
