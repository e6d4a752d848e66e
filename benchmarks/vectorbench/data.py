"""Data sets with queries and exact answers, made once and kept as files.

`synthetic-N`: N seeded unit vectors from a latent-factor model. A row is the sum of one of CENTRES cluster centres
and SPREAD times a normal draw, both in LATENT dimensions, mapped to DIMENSION dimensions by a fixed normal matrix, plus
NOISE times a normal draw in each dimension (the mapped signal of a centre has variance 1 there), and is then divided
by its length. Chunks are seeded one by one: a smaller set is the beginning of a larger one, and a million rows are
never in memory at once. Queries and the vectors of the write parts are drawn from the same model with other seeds.

`docs40k`: sentences of technical prose, turns of conversations and abstracts as real unit vectors, stored as float16,
read as float32 and shuffled; 1,000 are held out as queries and 200 to warm up with. Read from the directory that
TIERMEM_DATA names, else from `shared/data` beside the repository.

Every row has a bucket, uniform in [0, BUCKETS), so that `bucket < x` lets a known share of the rows through.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Step = Callable[[str], object]
"""Called with a word on what has just been done."""

SEED = 7
DIMENSION = 384
LATENT = 32
CENTRES = 2000
SPREAD = 0.7
NOISE = 0.15
K = 10
QUERIES = 1000
WARM = 200
SOAK = 10_000
BUCKETS = 1000
BELOW = (500, 100, 10, 1)
"""Upper bounds of the filters: 50, 10, 1 and 0.1 % of the rows."""
CHUNK = 10_000
REAL = "docs40k"
REAL_FILES = ("docs40k.minilm.npy", "locomo7.turns.minilm.npy", "cranfield.docs.minilm.npy")
VERSION = 1
"""Of the files in the work directory; others are made anew."""

# What a draw is for; the last are those of the rounds of the write parts.
_ROWS, _QUERIES, _WARM, _BUCKETS, _ROUNDS = range(5)


@lru_cache(maxsize=1)
def _model() -> tuple[FloatArray, FloatArray]:
    """The matrix that maps factors to dimensions, and the centres."""
    rng = np.random.default_rng(SEED)
    factors = rng.standard_normal((LATENT, DIMENSION), dtype=np.float32) / np.float32(LATENT**0.5)
    return factors, rng.standard_normal((CENTRES, LATENT), dtype=np.float32)


def _chunk(rows: int, purpose: int, number: int) -> FloatArray:
    factors, centres = _model()
    rng = np.random.default_rng([SEED, purpose, number])
    latent = centres[rng.integers(0, CENTRES, CHUNK)]
    latent += np.float32(SPREAD) * rng.standard_normal((CHUNK, LATENT), dtype=np.float32)
    matrix = latent @ factors + np.float32(NOISE) * rng.standard_normal((CHUNK, DIMENSION), dtype=np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix[:rows]


def synthetic(rows: int, purpose: int = _ROWS) -> Iterator[FloatArray]:
    """Float32 unit vectors of shape (at most CHUNK, DIMENSION), `rows` of them in all."""
    for number, start in enumerate(range(0, rows, CHUNK)):
        yield _chunk(min(CHUNK, rows - start), purpose, number)


def drawn(rows: int, turn: int) -> FloatArray:
    """New vectors of the same model, shape (rows, DIMENSION), others in each turn."""
    return np.concatenate(list(synthetic(rows, _ROUNDS + turn)))


def buckets(rows: int, start: int = 0) -> IntArray:
    """The buckets of the rows from `start` on; those of a row are the same in every data set."""
    found = [
        np.random.default_rng([SEED, _BUCKETS, number]).integers(0, BUCKETS, CHUNK)
        for number in range(start // CHUNK, -(-(start + rows) // CHUNK))
    ]
    return np.concatenate(found)[start % CHUNK :][:rows] if found else np.empty(0, np.int64)


@dataclass(frozen=True)
class DataSet:
    """A directory with base, queries and exact answers."""

    name: str
    folder: Path

    @cached_property
    def base(self) -> FloatArray:
        """Shape (rows, DIMENSION), mapped."""
        return np.load(self.folder / "base.npy", mmap_mode="r")

    @cached_property
    def queries(self) -> FloatArray:
        """Shape (QUERIES, DIMENSION)."""
        return np.load(self.folder / "queries.npy")

    @cached_property
    def warm(self) -> FloatArray:
        """Shape (WARM, DIMENSION): queries that nothing is measured with."""
        return np.load(self.folder / "warm.npy")

    @property
    def rows(self) -> int:
        return int(self.base.shape[0])

    def soak(self) -> FloatArray:
        """SOAK rows of the base, or all, in memory: searched for until caches and mappings are as they stay."""
        chosen = np.random.default_rng(SEED).permutation(self.rows)[:SOAK]
        return np.array(self.base[np.sort(chosen)])

    @cached_property
    def truth(self) -> dict[int, FloatArray]:
        """Scores of the min(K, matches) best rows of each query, best first, by the bound of the filter.

        The bound BUCKETS lets every row through.
        """
        with np.load(self.folder / "truth.npz") as found:
            return {int(name): found[name] for name in found.files}


def best_scores(blocks: Iterator[tuple[FloatArray, IntArray]], queries: FloatArray) -> dict[int, FloatArray]:
    """The exact answers over blocks of (vectors, buckets), by the bound of the filter."""
    found: dict[int, FloatArray] = {}
    for vectors, of_row in blocks:
        scores = queries @ vectors.T
        for below in (BUCKETS, *BELOW):
            allowed = scores if below == BUCKETS else scores[:, of_row < below]
            if allowed.shape[1] > K:
                allowed = np.partition(allowed, allowed.shape[1] - K, axis=1)[:, -K:]
            known = [found[below], allowed] if below in found else [allowed]
            found[below] = -np.sort(-np.concatenate(known, axis=1), axis=1)[:, :K]
    return found


def blocks_of(base: FloatArray, step: Step, rows: int = 2 * CHUNK) -> Iterator[tuple[FloatArray, IntArray]]:
    """Parts of a base with their buckets."""
    of_row = buckets(len(base))
    for start in range(0, len(base), rows):
        yield np.asarray(base[start : start + rows]), of_row[start : start + rows]
        step(f"exact answers over {min(start + rows, len(base)):,} rows")


def real_vectors(folder: Path) -> FloatArray:
    """The files of `docs40k` stacked, in float32 and of unit length."""
    matrix = np.concatenate([np.load(folder / name) for name in REAL_FILES]).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix[np.random.default_rng(SEED).permutation(len(matrix))]


def real_folder() -> Path:
    """Where the real vectors are, if they are anywhere."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("TIERMEM_DATA") or beside)


def recipe(name: str) -> dict[str, object]:
    """What the files of a data set depend on."""
    made = {"version": VERSION, "name": name, "seed": SEED, "k": K, "queries": QUERIES, "warm": WARM, "below": BELOW}
    model = {"latent": LATENT, "centres": CENTRES, "spread": SPREAD, "noise": NOISE, "dimension": DIMENSION}
    return json.loads(json.dumps(made | ({} if name == REAL else model)))


def prepare(name: str, work: Path, step: Step) -> DataSet:
    """Make the files of a data set in `work`, or find those that an earlier run made.

    Raises:
        FileNotFoundError: the real vectors are absent.
    """
    data = DataSet(name, work / "data" / name)
    stamp = data.folder / "recipe.json"
    if stamp.exists() and json.loads(stamp.read_text()) == recipe(name):
        return data
    if name == REAL:
        missing = [file for file in REAL_FILES if not (real_folder() / file).exists()]
        if missing:
            raise FileNotFoundError(f"no {', '.join(missing)} in {real_folder()}")
    data.folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    if name == REAL:
        matrix = real_vectors(real_folder())
        held = QUERIES + WARM
        queries, warm, base = matrix[:QUERIES], matrix[QUERIES:held], matrix[held:]
        np.save(data.folder / "base.npy", base)
    else:
        rows = int(name.partition("-")[2])
        queries, warm = next(synthetic(QUERIES, _QUERIES)), next(synthetic(WARM, _WARM))
        shape = (rows, DIMENSION)
        base = np.lib.format.open_memmap(data.folder / "base.npy", mode="w+", dtype=np.float32, shape=shape)
        for number, chunk in enumerate(synthetic(rows)):
            base[number * CHUNK : number * CHUNK + len(chunk)] = chunk
            step(f"{number * CHUNK + len(chunk):,} rows made")
        base.flush()
    np.save(data.folder / "queries.npy", queries)
    np.save(data.folder / "warm.npy", warm)
    found = best_scores(blocks_of(base, step), queries)
    np.savez(data.folder / "truth.npz", **{str(below): scores for below, scores in found.items()})
    stamp.write_text(json.dumps(recipe(name)))
    return data
