"""Inner product by a graph over inner products, and by one over distances with one dimension more.

    python benchmarks/inner_product.py [--rows 12000]

The mapping (Bachrach et al., RecSys 2014) makes all norms equal, so that the nearest point has the largest inner
product. Seeded, clustered vectors whose norms are log-normal with spread sigma; recall@10 of the rows with the largest
inner products, 40 candidates scored exactly, 8-bit codes as by default. Decision 0005 rests on it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tiermem.tiers.vector.faiss_engine import FaissEngine

SEED = 7
DIMENSION = 96
K, COUNT, QUERIES = 10, 40, 300
EFFORTS = (64, 256)


def vectors(rows: int, sigma: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(rows, queries): directions around 200 centres, norms of the rows log-normal, shrunk to at most 1."""
    rng = np.random.default_rng(SEED)
    centres = rng.normal(size=(200, DIMENSION))
    points = centres[rng.integers(0, 200, rows + QUERIES)] + 0.7 * rng.normal(size=(rows + QUERIES, DIMENSION))
    points /= np.linalg.norm(points, axis=1)[:, None]
    found = points[:rows] * rng.lognormal(0.0, sigma, rows)[:, None]
    return (found / np.linalg.norm(found, axis=1).max()).astype(np.float32), points[rows:].astype(np.float32)


def recall(
    stored: NDArray[np.float32], points: NDArray[np.float32], queries: NDArray[np.float32], *, inner_product: bool
) -> list[float]:
    """Recall@10 at each effort, of a graph over `points`, judged by inner products with `stored`."""
    engine = FaissEngine()
    exact = queries @ stored.T
    kth = np.partition(exact, -K, axis=1)[:, -K]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph"
        rows, dimension = points.shape
        options = {"sample": points, "inner_product": inner_product}
        engine.build(iter([points]), rows, dimension, path, 2, lambda _: None, **options)
        graph = engine.load(path, dimension, rows, inner_product=inner_product)
        asked = np.pad(queries, ((0, 0), (0, dimension - queries.shape[1])))
        return [
            float(
                np.mean(
                    [
                        (np.sort(exact[at, graph.search(query, COUNT, effort, None)[0]])[-K:] >= kth[at]).mean()
                        for at, query in enumerate(asked)
                    ]
                )
            )
            for effort in EFFORTS
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12_000)
    options = parser.parse_args()
    table = Table(
        "sigma", *[f"{way}, effort {effort}" for way in ("distances", "inner products") for effort in EFFORTS]
    )
    for sigma in (0.03, 0.1, 0.2, 0.5):
        stored, queries = vectors(options.rows, sigma)
        rest = np.sqrt(np.maximum(0.0, 1.0 - np.einsum("ij,ij->i", stored, stored)))
        mapped = np.concatenate((stored, rest[:, None]), axis=1)
        found = recall(stored, mapped, queries, inner_product=False)
        found += recall(stored, stored, queries, inner_product=True)
        table.add_row(str(sigma), *[f"{part:.3f}" for part in found])
    Console().print(table)


if __name__ == "__main__":
    main()
