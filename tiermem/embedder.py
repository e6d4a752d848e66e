"""Text to vectors without a model: deterministic, for tests, demos and exact-word matching."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_64_intdigest

from tiermem.errors import InvalidArgument

if TYPE_CHECKING:
    from tiermem.protocols import FloatArray

_WORD: Final = re.compile(r"\w+")


class HashEmbedder:
    """Feature hashing of words and their trigrams: texts that share words have similar vectors.

    It knows nothing of meaning. Source: Weinberger et al. 2009, "Feature Hashing for Large Scale
    Multitask Learning", signed hashing of tokens into `dimension` buckets, here of unit length.
    """

    def __init__(self, dimension: int = 256) -> None:
        if not isinstance(dimension, int) or dimension < 2:
            raise InvalidArgument(f"HashEmbedder needs a dimension that is an int ≥ 2, not {dimension!r}")
        self.dimension = dimension
        self.model = f"tiermem-hash-{dimension}"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (other.model, other.dimension) == (self.model, self.dimension)

    def __hash__(self) -> int:
        return hash(self.model)

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Unit float32 rows, shape (len(texts), dimension); a text without words is the first axis."""
        import numpy as np

        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in _WORD.findall(text.casefold()):
                padded = f"<{word}>"
                grams = [padded[start : start + 3] for start in range(len(padded) - 2)]
                self._add(row, word, 1.0)
                for gram in grams:
                    self._add(row, gram, 0.5 / len(grams))
            if not row.any():
                row[0] = 1.0
        return np.asarray(rows / np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None], np.float32)

    def _add(self, row: FloatArray, token: str, weight: float) -> None:
        digest = xxh3_64_intdigest(token.encode(errors="surrogatepass"))
        row[(digest >> 1) % self.dimension] += weight if digest & 1 else -weight
