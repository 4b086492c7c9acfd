"""Diagnostics: declared once as classes, raised as values, rendered everywhere."""

from tokdsl.diagnostics.base import (
    REGISTRY,
    Diagnostic,
    Edit,
    Fix,
    Label,
    Report,
    Severity,
    did_you_mean,
)

__all__ = [
    "REGISTRY",
    "Diagnostic",
    "Edit",
    "Fix",
    "Label",
    "Report",
    "Severity",
    "did_you_mean",
]
