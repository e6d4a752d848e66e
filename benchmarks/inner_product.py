"""Inner product by a graph over inner products, and by one over distances with one dimension more.

    python benchmarks/inner_product.py [--rows 12000] [--json FILE] [--out docs/benchmarks/inner_product.md]

The mapping (Bachrach et al., RecSys 2014) makes all norms equal, so that the nearest point has the largest inner
product. Seeded, clustered vectors whose norms are log-normal with spread sigma; recall@10 of the rows with the largest
inner products, 40 candidates scored exactly, 8-bit codes as by default. Decision 0005 rests on it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from _sheets import Sheet, origin, show
from _workload import SEED, machine, versions
from numpy.typing import NDArray
from rich.console import Console

from tiermem.tiers.vector.faiss_engine import FaissEngine

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "inner_product.md"
ROWS = 12_000
DIMENSION = 96
K, COUNT, QUERIES = 10, 40, 300
EFFORTS = (64, 256)
SIGMAS = (0.03, 0.1, 0.2, 0.5)
WAYS = ("distances", "inner products")


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


def measured(rows: int, sigma: float) -> dict[str, list[float]]:
    """Recall by way, at each effort."""
    stored, queries = vectors(rows, sigma)
    rest = np.sqrt(np.maximum(0.0, 1.0 - np.einsum("ij,ij->i", stored, stored)))
    mapped = np.concatenate((stored, rest[:, None]), axis=1)
    found = (recall(stored, points, queries, inner_product=points is stored) for points in (mapped, stored))
    return dict(zip(WAYS, found, strict=True))


def sheet(document: dict[str, Any]) -> Sheet:
    """The table; the best of a row is bold."""
    rows = []
    for sigma, found in document["recall"].items():
        values = [value for way in WAYS for value in found[way]]
        cells = (f"**{value:.3f}**" if value == max(values) else f"{value:.3f}" for value in values)
        rows.append([sigma, *cells])
    return Sheet(
        "Recall",
        f"recall@{K} of {QUERIES} queries over {document['rows']:,} rows of {DIMENSION} dimensions whose norms are "
        f"log-normal with spread sigma; {COUNT} candidates scored exactly. The graph is over 8-bit codes: over "
        "distances in one dimension more, which makes all norms equal, or over inner products as they are.",
        ["sigma", *(f"{way}, effort {effort}" for way in WAYS for effort in EFFORTS)],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"vectors of each graph ({ROWS})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument("--out", type=Path, help="write the page here (a full run: docs/benchmarks/inner_product.md)")
    arguments = parser.parse_args()
    console = Console()
    document: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "rows": arguments.rows,
        "machine": machine(),
        "versions": versions(),
        "recall": {str(sigma): measured(arguments.rows, sigma) for sigma in SIGMAS},
    }
    document["load_at_end"] = machine()["load"]
    table = sheet(document)
    show(console, [], [table])
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    page = arguments.out or (PAGE if arguments.rows >= ROWS else None)
    if page:
        page.parent.mkdir(parents=True, exist_ok=True)
        lines = ["# Inner product", "", origin("inner_product.py", document, SEED), "", table.text, "", *table.lines()]
        page.write_text("\n".join(lines) + "\n", encoding="utf-8")
        console.print(f"written: {page}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
