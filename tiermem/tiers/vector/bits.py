"""Sets of rows as packed bits, in little order, padded with zeros to whole 64-bit words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def full_bits(rows: int) -> NDArray[np.uint8]:
    """`rows` set bits, packed in little order, padded with zeros to whole 64-bit words."""
    bits = np.zeros((rows + 63) // 64 * 8, np.uint8)
    bits[: rows // 8] = 0xFF
    if rows % 8:
        bits[rows // 8] = (1 << rows % 8) - 1
    return bits


def count_bits(bits: NDArray[np.uint8]) -> int:
    """How many are set."""
    return int(np.bitwise_count(bits.view(np.uint64)).sum())


def set_bits(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The numbers of those that are set, ascending."""
    # Most bytes of a selective filter are empty.
    held = np.flatnonzero(bits)
    places = np.flatnonzero(np.unpackbits(bits[held], bitorder="little"))
    numbers: NDArray[np.int64] = held[places >> 3] * 8 + (places & 7)
    return numbers


def cut_bits(bits: NDArray[np.uint8], low: int, high: int) -> NDArray[np.uint8]:
    """A copy of `bits` with those outside [low, high) cleared."""
    cut = bits.copy()
    cut[: low // 8] = 0
    cut[-(-high // 8) :] = 0
    if low % 8 and low < high:
        cut[low // 8] &= 0xFF << low % 8 & 0xFF
    if high % 8:
        cut[high // 8] &= (1 << high % 8) - 1
    return cut


def are_set(bits: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each of `rows` is set."""
    found: NDArray[np.bool_] = (bits[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1 == 1
    return found
