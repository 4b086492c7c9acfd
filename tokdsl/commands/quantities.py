"""Numbers as people read them: three digits and a unit."""

from __future__ import annotations

#: the sign of a product
TIMES = "\N{MULTIPLICATION SIGN}"

#: from this part of a unit on three digits say one of it
ROUNDED = 0.9995

_THOUSANDS = ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def quantity(number: float) -> str:
    """Return a count: ``46.7 B``.

    >>> quantity(46702792704), quantity(512), quantity(0)
    ('46.7 B', '512', '0')
    """
    for limit, unit in _THOUSANDS:
        if abs(number) >= limit * ROUNDED:
            return f"{_digits(number / limit)} {unit}"
    return f"{number:.3g}"


def size(number: float) -> str:
    """Return a number of bytes: ``128 KiB``.

    >>> size(131072), size(1536), size(96)
    ('128 KiB', '1.5 KiB', '96 B')
    """
    for limit, unit in _BINARY:
        if abs(number) >= limit * ROUNDED:
            return f"{_digits(number / limit)} {unit}"
    return f"{number:.4g} B"


def _digits(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"
