"""The yardsticks beside a trained model's bits per byte."""

from __future__ import annotations

import gzip
import lzma
import random
from math import log2

import pytest

from tokdsl.commands.compressors import (
    gzip_size,
    order0_bits,
    size_after,
    xz_size,
    yardsticks,
)

NOISE = random.Random(0).randbytes(4000)


def test_the_order_0_model_by_hand() -> None:
    # 3 a's and 1 b: (3 + 1) / 260, (1 + 1) / 260, and 1 / 260 for a byte never seen
    bits = order0_bits(b"aaab", b"aab?")
    assert bits == pytest.approx(2 * log2(260 / 4) + log2(260 / 2) + log2(260))
    # nothing known: every byte costs eight bits
    assert order0_bits(b"", NOISE) == pytest.approx(8 * len(NOISE))


def test_compressors_are_the_real_ones() -> None:
    text = b"the quick brown fox " * 100 + NOISE
    assert gzip.decompress(gzip.compress(text, 9, mtime=0)) == text
    assert gzip_size(text) == len(gzip.compress(text, 9, mtime=0))
    assert xz_size(text) == len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    # noise cannot be made smaller
    assert gzip_size(NOISE) > len(NOISE) and xz_size(NOISE) > len(NOISE)


@pytest.mark.parametrize("size", [gzip_size, xz_size])
def test_a_repetition_of_the_training_bytes_costs_almost_nothing(size: object) -> None:
    assert callable(size)
    assert size_after(size, NOISE, NOISE) < 100 < size(NOISE)


def test_every_yardstick_is_given_in_bits_per_held_out_byte() -> None:
    found = {y.name: y.bits_per_byte for y in yardsticks(NOISE, NOISE[:1000])}
    assert list(found) == [
        "order-0 model",
        "gzip -9, held-out alone",
        "gzip -9, after the training bytes",
        "xz -9e, held-out alone",
        "xz -9e, after the training bytes",
    ]
    assert found["order-0 model"] == pytest.approx(order0_bits(NOISE, NOISE[:1000]) / 1000)
    assert found["xz -9e, held-out alone"] == 8 * xz_size(NOISE[:1000]) / 1000
    with pytest.raises(ValueError, match="no held-out bytes"):
        yardsticks(NOISE, b"")
