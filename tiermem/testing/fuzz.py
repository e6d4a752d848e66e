"""Fuzzing: every decoder is given altered bytes; `python -m tiermem.testing.fuzz` does it for as long as one likes.

Half of the bytes are altered where they stand, half have their checksums made right again, so that what lies behind
these is reached. The law: a TiermemError or the right answer; never another exception, a hang, or more memory than
bytes of that size can need. Where atheris is installed, coverage guides what is tried.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, Final

from tiermem.errors import TiermemError
from tiermem.testing.decoders import Decoder, row_decoders
from tiermem.testing.file_decoders import file_decoders

MEMORY: Final = 64 * 2**20
"""Bytes that reading any of the samples, however altered, may take at its peak."""
PATIENCE: Final = 30.0
"""Seconds after which a decoder counts as hung."""
LONGEST: Final = 2**18
_WORDS: Final = (0, 1, 2, 7, 8, 63, 64, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


class LawBroken(AssertionError):
    """A decoder did something else than to refuse bytes or to say what they mean."""


def decoders(folder: Path) -> list[Decoder]:
    """Every decoder of what lies on disk; `folder`, which is empty, is where they keep what they read."""
    return [*row_decoders(), *file_decoders(folder)]


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """`data`, altered in one to four places; `other` is what pieces may come from."""
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(raw) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 16, rng.randrange(len(raw) + 1)))
        match rng.randrange(8):
            case 0 | 1 if at < len(raw):
                raw[at] ^= 1 << rng.randrange(8)
            case 2:
                word = rng.choice((*_WORDS, len(raw), len(raw) - at)) + rng.choice((-1, 0, 0, 0, 1))
                width = rng.choice((1, 2, 4, 8))
                order: Any = rng.choice(("little", "big"))
                raw[at : at + width] = (word % 2 ** (8 * width)).to_bytes(width, order)
            case 3:
                raw[at : at + size] = rng.randbytes(min(size, 64))
            case 4:
                del raw[at : at + size]
            case 5:
                raw[at:at] = raw[max(0, at - size) : at]
            case 6:
                start = rng.randrange(len(other) + 1)
                raw[at : at + size] = other[start : start + size]
            case _:
                raw[at : at + size] = bytes((rng.choice((0, 0x7F, 0x80, 0xC1, 0xFF)),)) * min(size, 64)
    return bytes(raw[:LONGEST])


def judge(decoder: Decoder, data: bytes, *, resealed: bool = False) -> bool:
    """Read `data`; True if it was understood. `resealed`: its checksums are made right first.

    Raises:
        LawBroken: anything but a TiermemError or an answer that may be given.
    """
    if resealed and decoder.reseal is not None:
        data = decoder.reseal(data)
    tracing = tracemalloc.is_tracing()
    if tracing:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
    try:
        answer = decoder.read(data)
        refused = False
    except TiermemError as exc:
        refused = True
        if not str(exc):
            raise LawBroken(f"{decoder.name}: {type(exc).__name__} says nothing, of {data[:2000]!r}") from exc
    except (MemoryError, Exception) as exc:
        raise LawBroken(f"{decoder.name}: {type(exc).__name__}: {exc}, of {data[:2000]!r}") from exc
    if tracing and (taken := tracemalloc.get_traced_memory()[1] - before) > MEMORY:
        raise LawBroken(f"{decoder.name}: took {taken:,} bytes, of {data[:2000]!r}")
    if refused:
        return False
    known = [meant for sample, meant in decoder.samples if sample == data]
    if not known and decoder.exact and not resealed:
        known = [meant for _, meant in decoder.samples]
    if known and not any(decoder.agree(answer, meant) for meant in known):
        raise LawBroken(f"{decoder.name}: read as {answer!r:.2000}, of {data[:2000]!r}")
    return True


def attempt(decoder: Decoder, rng: random.Random) -> bool:
    """Judge one of the samples, altered; True if it was understood."""
    samples = [sample for sample, _ in decoder.samples]
    data = rng.randbytes(rng.randrange(300)) if rng.random() < 0.05 else rng.choice(samples)
    return judge(decoder, mutate(rng, data, rng.choice(samples)), resealed=rng.random() < 0.5)


def _seeded(decoder: Decoder, seconds: float, seed: int) -> tuple[int, int]:
    """(tried, understood) in so many seconds."""
    rng = random.Random(seed + zlib.crc32(decoder.name.encode()))
    end = time.monotonic() + seconds
    tried = understood = 0
    tracemalloc.start()
    try:
        while time.monotonic() < end:
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            understood += attempt(decoder, rng)
            tried += 1
    finally:
        faulthandler.cancel_dump_traceback_later()
        tracemalloc.stop()
    return tried, understood


def _guided(decoder: Decoder, seconds: float, seed: int, folder: Path) -> None:
    """Let atheris choose, which ends the process; the first byte says whether checksums are made right."""
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, (sample, _) in enumerate(decoder.samples):
        for first in (b"\0", b"\1"):
            (corpus / f"{number}{first.hex()}").write_bytes(first + sample)
    samples = [sample for sample, _ in decoder.samples]

    def one(data: bytes) -> None:
        judge(decoder, data[1:], resealed=bool(data[:1] and data[0] & 1))

    def alter(data: bytes, size: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, size))
        return (bytes((rng.randrange(2),)) + mutate(rng, data[1:], rng.choice(samples)))[:size]

    rooms = ("tiermem.codec", "tiermem.policy", "tiermem.tiers")
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and str(function.__module__).startswith(rooms):
            atheris.instrument_func(function)
    options = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-seed={seed + 1}",
        f"-max_len={LONGEST}",
        "-rss_limit_mb=4096",
    ]
    options += [f"-timeout={round(PATIENCE)}", f"-artifact_prefix={folder}/", "-print_final_stats=1", str(corpus)]
    atheris.Setup([sys.argv[0], *options], one, custom_mutator=alter)
    atheris.Fuzz()


def _apart(name: str, seconds: float, seed: int, engine: str) -> dict[str, Any]:
    """What became of one decoder, in a process of its own: what dies or hangs there is an outcome."""
    command = [sys.executable, "-m", "tiermem.testing.fuzz", "--child", name, "--engine", engine]
    command += ["--seconds", str(seconds), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    row: dict[str, Any] = {"decoder": name, "engine": engine, "tried": 0, "understood": None, "problem": ""}
    if engine == "atheris":
        lines = (
            line.split() for line in done.stderr.splitlines() if line.startswith("stat::number_of_executed_units:")
        )
        row["tried"] = int(next(lines, ["0"])[-1])
    elif done.returncode == 0:
        row["tried"], row["understood"] = json.loads(done.stdout)
    if done.returncode != 0:
        lines_said = [line for line in (done.stdout + done.stderr).splitlines() if "LawBroken" in line]
        row["problem"] = (lines_said or [f"ended with {done.returncode}: {done.stderr[-600:]}"])[-1]
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz every decoder and print how often; 1 if a law was broken."""
    parser = argparse.ArgumentParser(prog="python -m tiermem.testing.fuzz", description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each decoder (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what is tried follows from it (%(default)s)")
    parser.add_argument("--only", action="append", metavar="NAME", help="one decoder; may be repeated")
    parser.add_argument("--engine", choices=("auto", "seeded", "atheris"), default="auto", help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tiermem-fuzz-") as place:
        known = {decoder.name: decoder for decoder in decoders(Path(place))}
        if options.child is not None:
            chosen = known[options.child]
            if options.engine == "atheris":
                _guided(chosen, options.seconds, options.seed, Path(place))
            json.dump(_seeded(chosen, options.seconds, options.seed), sys.stdout)
            return 0
    if strange := set(options.only or ()) - known.keys():
        parser.error(f"no decoder {min(strange)!r}; there are: {', '.join(known)}")
    engine = options.engine
    if importlib.util.find_spec("atheris") is None:
        if engine == "atheris":
            parser.error("atheris is not installed")
        engine = "seeded" if engine == "auto" else engine
        sys.stderr.write("atheris is not installed: what is tried follows from the seed alone\n")
    engine = "atheris" if engine == "auto" else engine
    found = []
    for name in options.only or known:
        found.append(_apart(name, options.seconds, options.seed, engine))
        if not options.json:
            row = found[-1]
            sys.stdout.write(f"{name:<24}{row['tried']:>10,}  {row['problem'][:3000] or 'held'}\n")
            sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        sys.stdout.write(f"{'in all':<24}{sum(row['tried'] for row in found):>10,}\n")
    return 1 if any(row["problem"] for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
