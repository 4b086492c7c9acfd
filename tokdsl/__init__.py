"""tokdsl: a declarative language and compiler for models over token streams."""

__version__ = "0.1.0"
