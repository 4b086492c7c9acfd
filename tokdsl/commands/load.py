"""The library interface: check, build and load specs from Python, with a cache of packages."""

from __future__ import annotations

import atexit
import errno
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
#: what a cache says that cannot be used: then the package goes to a temporary folder
UNWRITABLE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
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
    target = _cache_folder() / key / program.name
    if not _is_there(target):
        files = package_files(checked, path)
        try:
            _write(files, target)
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            target = _own_folder() / key / program.name
            if not _is_there(target):
                _write(files, target)
    return target


def package_files(checked: driver.Checked, path: Path) -> dict[str, str]:
    """Return the files of the package of a spec without errors.

    Raises:
        CompileError: the model cannot be lowered yet; the report says so then.
    """
    from tokdsl.lower.diagnostics import NotLowered
    from tokdsl.lower.texts import Unsupported

    program = checked.programs[0]
    try:
        return driver.emit_program(checked, program, path.name)
    except Unsupported as error:
        checked.report.add(NotLowered(span=program.span, what=str(error)))
        raise failure(checked.report, path) from None


def _is_there(target: Path) -> bool:
    try:
        return (target / MARKER).is_file()
    except OSError:  # a folder that may not be read
        return False


def _write(files: Mapping[str, str], target: Path) -> None:
    """Write a package beside its place and rename it into place, unless it is there by then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for name, text in files.items():
            file = beside / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
        beside.chmod(0o755)
        os.rename(beside, target)
    except OSError:
        if not _is_there(target):  # another process was first
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _cache_folder() -> Path:
    if chosen := os.environ.get("TOKDSL_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "tokdsl"
    try:
        return Path.home() / ".cache" / "tokdsl"
    except RuntimeError:  # an account without a home
        return _own_folder()


@lru_cache(maxsize=1)
def _own_folder() -> Path:
    """Return a folder of this process, for where the cache cannot be written."""
    folder = Path(tempfile.mkdtemp(prefix="tokdsl-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _digest(checked: driver.Checked, path: Path, overrides: Mapping[str, object]) -> str:
    """Return a digest of all that decides a package: compiler, sources, parameters, tokenizer."""
    program = checked.programs[0]
    whole = hashlib.sha256()
    parts: list[object] = [
        __version__,
        _compiler(),
        path.name,
        program.name,
        sorted(settings(overrides).items()),
        sorted((name, source.text) for name, source in checked.sources.items()),
        driver.tokenizer_file(program),
    ]
    whole.update(json.dumps(parts).encode("utf-8", "surrogatepass"))
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
