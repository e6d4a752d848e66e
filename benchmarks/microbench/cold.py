"""Subjects of cold reads: stores of the same records, all of them committed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

from _workload import COLD_ROUND, directory, key_names, record, uniform

import tiermem
from microbench.rivals import STORES, stores
from microbench.scale import Scale
from microbench.subject import NS, Read, Subject, Subjects, get_from, own, pieces
from tiermem import CodecConfig, Config, HotConfig

FILLING: Final = "`mem.get`, each fills L1"
SMALL: Final = 2**18
"""Bytes of an L1 that holds about one in a thousand of the records, and takes in each that is read."""
OURS: Final[dict[str, Read]] = {
    "`mem.get`": "one",
    "`mem.get`, compression off": "one",
    FILLING: "one",
    "`mem.get_many`": "many",
    "`mem.get_many`, compression off": "many",
    "`mem.scan`": "range",
    "`mem.scan`, compression off": "range",
}


def rows(kind: Read) -> list[str]:
    """The rows of a kind, ours first, whoever is there."""
    known = [OURS, *(rival.rows for rival in STORES)]
    return [name for found in known for name, read in found.items() if read == kind]


def names() -> list[str]:
    """The rows of all that are there, in the order of their turns."""
    return [*OURS, *(name for rival in stores() for name in rival.rows)]


def committed(
    stack: ExitStack, name: str, keys: Sequence[str], values: Sequence[Any], config: Config
) -> tiermem.Memory:
    """A store that has everything committed and nothing in L1."""
    mem = stack.enter_context(tiermem.open(stack.enter_context(directory()) / name, config=config))
    if config.codec.level:
        # A dictionary is trained on the first records and used for those that follow.
        samples = 2 * config.codec.dictionary_samples
        mem.put_many(NS, ((f"sample-{number:08d}", record(-1 - number)) for number in range(samples)))
        mem.flush()
        end = time.monotonic() + 15
        while not mem.stats().cold.dictionaries and time.monotonic() < end:
            time.sleep(0.1)
        assert mem.stats().cold.dictionaries, "no dictionary was trained"
    mem.put_many(NS, zip(keys, values, strict=True))
    mem.flush()
    return mem


def scan(mem: tiermem.Memory, start: str) -> list[tiermem.Record]:
    return list(mem.scan(NS, start=start, limit=COLD_ROUND))


@contextmanager
def subjects(scale: Scale) -> Iterator[Subjects]:
    """Stores filled alike, and lookups that are equally likely to ask for any of their records."""
    keys = key_names(scale.cold_records)
    values = [record(number) for number in range(scale.cold_records)]
    known = dict(zip(keys, values, strict=True))
    lookups = pieces(uniform(keys, scale.rounds * COLD_ROUND), COLD_ROUND)
    starts = keys[::COLD_ROUND]

    def reads(run: Callable[..., object], inputs: Sequence[Any], *arguments: Any) -> Subject:
        return Subject(run, arguments, itertools.cycle(inputs), COLD_ROUND)

    with ExitStack() as stack:
        none = HotConfig(max_bytes=0)
        mem = committed(stack, "packed", keys, values, Config(hot=none))
        plain = committed(stack, "plain", keys, values, Config(hot=none, codec=CodecConfig(level=0)))
        found: Subjects = {}
        small = committed(stack, "small", keys, values, Config(hot=HotConfig(max_bytes=SMALL)))
        found[FILLING] = reads(own(get_from), lookups, small, NS)
        for store, suffix in ((mem, ""), (plain, ", compression off")):
            found[f"`mem.get`{suffix}"] = reads(own(get_from), lookups, store, NS)
            found[f"`mem.get_many`{suffix}"] = reads(partial(store.get_many, NS), lookups)
            found[f"`mem.scan`{suffix}"] = reads(scan, starts, store)
            assert all(store.get(NS, key) == known[key] for key in lookups[0][:100])
            assert store.get_many(NS, lookups[0]) == {key: known[key] for key in lookups[0]}
            assert [row.value for row in scan(store, starts[-1])] == values[-COLD_ROUND:]
        for rival in stores():
            if rival.rows:
                other = rival(stack.enter_context(directory()))
                stack.callback(other.close)
                other.fill(zip(keys, values, strict=True))
                asked = [[other.key(key) for key in piece] for piece in lookups]
                begun = [other.key(key) for key in starts]
                for name, run in other.reads().items():
                    kind = rival.rows[name]
                    if kind == "many":
                        assert run(asked[0]) == {other.key(key): known[key] for key in lookups[0]}
                    if kind == "range":
                        assert [value for _, value in run(begun[-1])] == values[-COLD_ROUND:]
                    found[name] = reads(run, begun if kind == "range" else asked)
        assert found.keys() == set(names())
        yield found
        assert mem.stats().hot.entries == plain.stats().hot.entries == 0
