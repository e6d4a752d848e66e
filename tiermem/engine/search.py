"""Similarity search: vectors in, the index of each namespace kept in step, results out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tiermem import namespaces
from tiermem.engine.space import Space
from tiermem.errors import DimensionMismatch, EmbedderMismatch, InvalidArgument, InvalidNamespace, InvalidVector
from tiermem.types import check_namespace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tiermem.codec.operation import Operation
    from tiermem.engine.store import Store
    from tiermem.tiers.cold import Writer


def as_vector(vector: Any, metric: str) -> NDArray[np.float32]:
    """A finite 1-D float32 array, not zero where the metric is cosine.

    Raises:
        InvalidVector: it is none; the message says why.
    """
    import numpy as np

    from tiermem.tiers.vector.scores import as_float32

    try:
        array = as_float32(vector)
    except (TypeError, ValueError) as exc:
        raise InvalidVector(f"not a vector of numbers: {exc}") from exc
    if array.ndim != 1 or not array.size:
        raise InvalidVector(f"a vector is 1-D and not empty; got shape {array.shape}")
    with np.errstate(over="ignore"):
        # Not `np.dot`, which gives the interpreter away for a moment: whoever waits for it comes too late each time.
        square = float(array @ array)
    if 0.0 < square < math.inf:
        # One pass tells that all is well; where it does not, what is wrong is looked for.
        return array
    if not np.isfinite(array).all():
        raise InvalidVector("a vector must be finite: it holds NaN, an infinity, or a number beyond float32")
    if metric == "cosine" and not array.any():
        raise InvalidVector("the zero vector has no direction: cosine similarity is undefined for it")
    return array


def describe(store: Store, space: Space) -> tuple[int, str] | None:
    """The dimension and metric of a namespace, which `space` knows from then on; None if it holds no vectors yet.

    It may forget them at any moment: what another process has dropped, or done far ahead, is looked at anew.
    """
    while True:
        # Without the lock, which a verb inside a signal handler could not wait for: half of what is known is nothing.
        dimension, metric = space.dimension, space.metric
        if dimension and metric:
            return dimension, metric
        with store.cold.read() as snapshot:
            info = snapshot.info(space.name)
            if info is None or info.dropped or not info.dimension:
                return None
        with store.lock:
            # A dimension never changes while its namespace lives, whatever was committed meanwhile.
            space.dimension, space.metric, space.model = info.dimension, info.metric, info.model


def prepare(store: Store, space: Space, vector: Any, model: str = "") -> bytes:
    """The float32 bytes of a vector to be stored, checked against what is known of its namespace.

    Raises:
        InvalidVector, DimensionMismatch, EmbedderMismatch.
    """
    dimension, metric = describe(store, space) or (0, store.config.vector.metric)
    if model and space.model and space.model != model:
        raise EmbedderMismatch(f"{space.name!r} was filled by model {space.model!r}, not {model!r}")
    array = as_vector(vector, metric)
    if dimension and array.size != dimension:
        raise DimensionMismatch(f"{space.name!r} has dimension {dimension}, the vector {array.size}")
    return array.astype("<f4", copy=False).tobytes()


def matrix_bytes(store: Store, space: Space, vectors: Any) -> list[bytes]:
    """The bytes of each row of an (n, dimension) array, checked as a whole."""
    import numpy as np

    from tiermem.tiers.vector.scores import as_float32

    try:
        matrix = as_float32(vectors)
    except (TypeError, ValueError) as exc:
        raise InvalidVector(f"vectors is no matrix of numbers: {exc}") from exc
    if matrix.ndim != 2 or not matrix.shape[1]:
        raise InvalidVector(f"vectors is 2-D, a row each; got shape {matrix.shape}")
    dimension, metric = describe(store, space) or (0, store.config.vector.metric)
    with np.errstate(all="ignore"):
        squares = np.vecdot(matrix, matrix)
    for row in np.flatnonzero(~((squares > 0.0) & (squares < math.inf))).tolist():
        # Whatever has a norm is finite and not zero; the others are looked at one by one.
        as_vector(matrix[row], metric)
    if dimension and matrix.shape[1] != dimension:
        raise DimensionMismatch(f"{space.name!r} has dimension {dimension}, the vectors {matrix.shape[1]}")
    return [row.tobytes() for row in matrix.astype("<f4", copy=False)]


def fix(writer: Writer, ops: Sequence[Operation], metric: str) -> None:
    """Let the first vector of each namespace in `ops` fix its dimension, inside the commit, and have it that metric.

    Raises:
        DimensionMismatch, EmbedderMismatch, InvalidVector: one does not fit; nothing was changed.
    """
    wanted: dict[str, tuple[int, str]] = {}
    for op in ops:
        if not op.vector:
            continue
        info = writer.live(op.namespace)
        dimension, model = wanted.get(op.namespace, (0, ""))
        if info is not None and info.dimension:
            dimension, model = info.dimension, model or info.model
            if info.metric == "cosine" and not any(op.vector):
                raise InvalidVector("the zero vector has no direction: cosine similarity is undefined for it")
        if dimension and len(op.vector) != dimension * 4:
            raise DimensionMismatch(f"{op.namespace!r} has dimension {dimension}, the vector {len(op.vector) // 4}")
        if model and op.model and model != op.model:
            raise EmbedderMismatch(f"{op.namespace!r} was filled by model {model!r}, not {op.model!r}")
        wanted[op.namespace] = len(op.vector) // 4, model or op.model
    for name, (dimension, model) in wanted.items():
        info = writer.changed(name)
        info.made = True
        if not info.dimension:
            info.dimension, info.metric = dimension, metric
        info.model = info.model or model


def create(store: Store, space: Space, dimension: int | None, metric: str | None) -> None:
    """Make the namespace, or check that it is as asked for and set what was open.

    Raises:
        DimensionMismatch, InvalidArgument: it exists and is otherwise.
    """

    def work(writer: Writer) -> None:
        info = writer.live(space.name)
        if info is not None and info.dimension:
            if dimension is not None and dimension != info.dimension:
                raise DimensionMismatch(f"{space.name!r} has dimension {info.dimension}, not {dimension}")
            if metric is not None and metric != info.metric and dimension is not None:
                raise InvalidArgument(f"{space.name!r} has metric {info.metric!r}, not {metric!r}")
        info = writer.changed(space.name)
        info.made = True
        if dimension is not None and not info.dimension:
            info.dimension, info.metric = dimension, metric or store.config.vector.metric

    store.committer.commit(everything=True, work=work)
    with store.cold.read() as snapshot:
        store.loader.resolve(space, snapshot)


def embed(store: Store, texts: Sequence[str]) -> NDArray[np.float32]:
    """One vector per text, by the embedder the store was opened with.

    Raises:
        InvalidArgument: there is none, or a text is not a str.
        InvalidVector: the embedder returned another shape than it promises.
    """
    if store.embedder is None:
        raise InvalidArgument("text needs an embedder: tiermem.open(path, embedder=...)")
    for text in texts:
        if not isinstance(text, str):
            raise InvalidArgument(f"a text is a str, not {type(text).__name__}")
    from tiermem.tiers.vector.scores import as_float32

    try:
        vectors = as_float32(store.embedder.embed(texts))
    except (TypeError, ValueError) as exc:
        raise InvalidVector(f"embedder {store.embedder.model!r} returned no vectors: {exc}") from exc
    if vectors.shape != (len(texts), store.embedder.dimension):
        raise InvalidVector(
            f"embedder {store.embedder.model!r} returned vectors of shape {vectors.shape}, "
            f"not {(len(texts), store.embedder.dimension)}"
        )
    return vectors


def expand_names(store: Store, names: str | Sequence[str]) -> list[str]:
    """The namespaces meant by a name, a pattern ("desk/**", "*/obs") or a list of them, each once."""
    if isinstance(names, str):
        names = [names]
    elif not isinstance(names, Sequence) or isinstance(names, (bytes, bytearray)):
        raise InvalidNamespace(f"a namespace is a str, or several in a list, not {type(names).__name__}")
    found: dict[str, None] = {}
    for name in names:
        if not namespaces.is_pattern(name):
            found[check_namespace(name)] = None
            continue
        means = namespaces.matcher(name)
        for known in all_names(store, namespaces.fixed(name)):
            if means(known):
                found[known] = None
    return list(found)


def all_names(store: Store, prefix: str) -> list[str]:
    """Every namespace that holds something or was created, sorted by name."""
    with store.lock:
        spaces = list(store.spaces.items())
    pending = {name for name, space in spaces if space.made and name.startswith(prefix)}
    with store.cold.read() as snapshot:
        return sorted(pending.union(name for name, _ in snapshot.infos(prefix)))
