"""Widths of text, so that boxes fit without a font library (Helvetica's and Arial's metrics)."""

from __future__ import annotations

#: advance widths in thousandths of the size, for the characters from space to tilde
_WIDTHS = (
    "278 278 355 556 556 889 667 191 333 333 389 584 278 333 278 278 "
    "556 556 556 556 556 556 556 556 556 556 278 278 584 584 584 556 "
    "1015 667 667 722 722 667 611 778 722 278 500 667 556 833 722 778 "
    "667 778 722 667 611 722 667 944 667 667 611 278 278 278 469 556 "
    "333 556 556 500 556 556 278 556 556 222 222 500 222 833 556 556 "
    "556 556 333 500 278 556 500 722 500 500 500 334 260 334 584"
)
_TABLE = {chr(32 + i): int(width) for i, width in enumerate(_WIDTHS.split())}
#: what another character takes
OTHER = 584
#: how much wider bold text is
BOLD = 1.07
#: room for fonts that run wider, when neither Helvetica nor Arial is there
SLACK = 1.1


def width(text: str, size: float, bold: bool = False) -> float:
    """Return the width of a line of text in the units of its size."""
    total = sum(_TABLE.get(character, OTHER) for character in text) / 1000 * size * SLACK
    return total * BOLD if bold else total
