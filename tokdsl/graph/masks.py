"""Expressions over positions given as arguments: ``|i, j| j <= i``."""

from __future__ import annotations

from dataclasses import dataclass

from tokdsl.graph.frame import Frame
from tokdsl.syntax import tree


@dataclass(frozen=True, eq=False)
class LambdaClosure:
    """A lambda together with the body in which its other names are looked up."""

    node: tree.Lambda
    frame: Frame
