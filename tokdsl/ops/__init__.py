"""The closed set of primitive operations: one class each, one module per family.

Every module of this package is imported here, so a new operation is one class in one file.
"""

import importlib
import pkgutil

from tokdsl.ops.base import OPS, Fault, Op

for _module in pkgutil.walk_packages(__path__, __name__ + "."):
    importlib.import_module(_module.name)

__all__ = ["OPS", "Fault", "Op"]
