"""The closed set of primitive operations: one class each, one module per family.

Every module of this package is imported here, so a new operation is one class in one file.
"""

import importlib
import pkgutil

from tokdsl.ops.base import OPS, Fault, Op

for _module in pkgutil.walk_packages(__path__, __name__ + "."):
    importlib.import_module(_module.name)

#: the primitives that a program may name
WRITTEN = {name: cls for name, cls in OPS.items() if not cls.internal}

__all__ = ["OPS", "WRITTEN", "Fault", "Op"]
