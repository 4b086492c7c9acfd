"""The library interface: check, build and load specs from Python, with a cache of packages."""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tokdsl import CompileError, __version__, driver
from tokdsl.diagnostics import Diagnostic, Report
from tokdsl.resources import resource

MARKER = "manifest.json"
WIDTH = 100

PathLike = str | os.PathLike[str]


def check(path: PathLike, overrides: Mapping[str, object]) -> tuple[Diagnostic, ...]:
    """Return the findings on a spec in source order."""
    return tuple(driver.check_file(Path(path), settings(overrides)).report)


def build(path: PathLike, out: PathLike, overrides: Mapping[str, object]) -> Path:
    """Write the package of a spec to ``out``/NAME and return that folder.

    Raises:
        CompileError: the spec has errors.
    """
    built = driver.build(Path(path), Path(out), settings(overrides))
    if built.directory is None:
        raise failure(built.report, path)
    return built.directory


def load(path: PathLike, overrides: Mapping[str, object]) -> Any:
    """Return the model of a spec, freshly initialised.

    Raises:
        CompileError: the spec has errors.
    """
    folder = cached_package(Path(path), overrides)
    name = f"tokdsl_{folder.name}_{folder.parent.name}"
    module = sys.modules.get(name) or import_folder(folder, name)
    return module.Model()


def settings(overrides: Mapping[str, object]) -> dict[str, str]:
    """Return parameter settings as the command line gives them."""
    return {name: str(value) for name, value in overrides.items()}


def failure(report: Report, path: PathLike) -> CompileError:
    """Return the exception for findings that are errors."""
    from tokdsl.diagnostics.render import render_text

    found = list(report)
    text = render_text(found, color=False, width=WIDTH) if found else f"{path} declares no model"
    return CompileError("\n" + text.rstrip("\n"), found)


# --------------------------------------------------------------------------- importing


def import_folder(folder: Path, name: str) -> ModuleType:
    """Import a built package under a name; a failed import leaves no module behind."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for known in [known for known in sys.modules if f"{known}.".startswith(f"{name}.")]:
            del sys.modules[known]
        raise
    return module


# --------------------------------------------------------------------------- cache


def cached_package(path: Path, overrides: Mapping[str, object] | None = None) -> Path:
    """Return the folder of a spec's package, compiled unless the cache holds it.

    Processes may do this at the same time: each writes beside and renames, and whoever comes
    later takes what is there.

    Raises:
        CompileError: the spec has errors.
    """
    checked = driver.check_file(path, settings(overrides or {}))
    if checked.report.has_errors or not checked.programs:
        raise failure(checked.report, path)
    program = checked.programs[0]
    key = _digest(checked, path, overrides or {})
    for root in (_cache_folder(), _own_folder):
        base = root() if callable(root) else root
        target = base / key / program.name
        if (target / MARKER).is_file():
            return target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(driver.emit_program(checked, program, path.name), target)
        except PermissionError:
            continue
        except OSError as error:
            if error.errno not in (30, 28, 122, 20):  # read-only, full, over quota, not a folder
                raise
            continue
        return target
    raise OSError("no folder can be written: neither the cache nor a temporary one")


def _write(files: Mapping[str, str], target: Path) -> None:
    """Write a package beside its place and rename it into place, unless it is there by then."""
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for name, text in files.items():
            file = beside / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        beside.chmod(0o755)
        os.rename(beside, target)
    except OSError:
        if not (target / MARKER).is_file():  # another process was first
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _cache_folder() -> Path:
    if chosen := os.environ.get("TOKDSL_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tokdsl"


@lru_cache(maxsize=1)
def _own_folder() -> Path:
    """Return a folder of this process, for where the cache cannot be written."""
    folder = Path(tempfile.mkdtemp(prefix="tokdsl-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _digest(checked: driver.Checked, path: Path, overrides: Mapping[str, object]) -> str:
    """Return a digest of all that decides a package: sources, parameters, compiler, tokenizer."""
    program = checked.programs[0]
    whole = hashlib.sha256()
    tokenizer = program.tokenizer
    parts: list[object] = [
        __version__,
        _compiler(),
        path.name,
        program.name,
        sorted(settings(overrides).items()),
        sorted((name, source.text) for name, source in checked.sources.items()),
        None if tokenizer is None else [tokenizer[0], sorted(map(str, tokenizer[1].items()))],
    ]
    whole.update(json.dumps(parts).encode("utf-8", "surrogatepass"))
    for value in tokenizer[1].values() if tokenizer is not None else ():
        file = path.parent / value if isinstance(value, str) else None
        if file is not None and file.is_file():
            whole.update(file.read_bytes())
    return whole.hexdigest()[:16]


@lru_cache(maxsize=1)
def _compiler() -> str:
    """Return a digest that changes when the compiler or its library and templates are edited."""
    whole = hashlib.sha256()
    roots = [Path(__file__).parents[1]]
    roots += [Path(str(resource(folder))) for folder in ("grammar", "stdlib", "codegen")]
    for root in roots:
        for file in sorted(root.rglob("*")):
            if file.suffix in (".py", ".tok", ".jinja", ".lark", ".toml") and file.is_file():
                stat = file.stat()
                row = f"{file.relative_to(root)}:{stat.st_size}:{stat.st_mtime_ns};"
                whole.update(row.encode())
    return whole.hexdigest()
