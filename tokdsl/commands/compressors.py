"""What general compressors and a model without context need for the same held-out bytes.

These are the yardsticks beside a trained model's bits per byte. A compressor that sees only the
held-out bytes starts from nothing; the prefix form gives it the training bytes first, as the
model had them: size(training + held-out) - size(training).
"""

from __future__ import annotations

import gzip
import lzma
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import log2


@dataclass(frozen=True)
class Yardstick:
    """What one method needs for the held-out bytes.

    Units:
        bits_per_byte: bits per held-out byte.
    """

    name: str
    bits_per_byte: float


def yardsticks(training: bytes, held_out: bytes) -> list[Yardstick]:
    """Return every yardstick for a held-out text, with and without the training bytes.

    Raises:
        ValueError: there are no held-out bytes.
    """
    if not held_out:
        raise ValueError("no held-out bytes to measure")
    total = 8 / len(held_out)
    found = [Yardstick("order-0 model", order0_bits(training, held_out) / len(held_out))]
    for name, size in (("gzip -9", gzip_size), ("xz -9e", xz_size)):
        found.append(Yardstick(f"{name}, held-out alone", size(held_out) * total))
        after = size_after(size, training, held_out)
        found.append(Yardstick(f"{name}, after the training bytes", after * total))
    return found


def gzip_size(data: bytes) -> int:
    """Return the bytes that ``gzip -9`` makes of data."""
    return len(gzip.compress(data, compresslevel=9, mtime=0))


def xz_size(data: bytes) -> int:
    """Return the bytes that ``xz -9e`` makes of data."""
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def size_after(size: Callable[[bytes], int], training: bytes, held_out: bytes) -> int:
    """Return how many bytes more the held-out text costs behind the training text."""
    return size(training + held_out) - size(training)


def order0_bits(training: bytes, held_out: bytes) -> float:
    """Return the bits of a model that knows only how often each byte occurs in training.

    Every byte counts once more than it occurs (add-one smoothing).
    """
    counts = Counter(training)
    total = len(training) + 256
    return sum(n * log2(total / (counts[byte] + 1)) for byte, n in Counter(held_out).items())
