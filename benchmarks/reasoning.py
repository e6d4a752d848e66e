"""A reasoning bank: what recalling and distilling cost, what is found, and what it is worth on a day of quotes.

    python benchmarks/reasoning.py [--quick] [--json FILE] [--out docs/benchmarks/reasoning.md]

One process, stores of simulated time in a directory of their own. The day of quotes is looked for in the directory that
TIERMEM_DATA names; without it the excerpt that comes with the package is played.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _sheets import REQUIREMENTS, Requirement, Sheet, number, origin, show, verdict
from _workload import SEED, directory, machine, versions
from reasoningbench import costs, worlds
from reasoningbench.plots import draw
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from vectorbench.data import real_folder

from tiermem.demo import direction
from tiermem.demo.market import TickFile

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "reasoning.md"
DAY = "aig_20131009_quote_tick.zip"
LESSONS, RUNS, STEPS = 10_000, 10_000, 20
DIMENSIONS = (64, 384)
AHEAD = (1.0, 2.0, 5.0)
CONFIDENCE = 0.95
RECALL_MS, DISTIL_S, FOUND = 1.0, 30.0, 0.95


def day_of_quotes(file: Path, ahead: float) -> dict[str, Any]:
    """What a day came to; whether what was recalled is recalled again as of then; whether a shuffled future shows."""
    day = direction.moments(TickFile(file))
    split, later = day[len(day) // 2].at, day[len(day) * 3 // 4].at
    with directory() as root:
        result, again = direction.replay(day, root / "day", split=split, ahead=ahead)
        other, _ = direction.replay(direction.shuffled_after(day, later), root / "other", split=split, ahead=ahead)
    before = [[one for one in run.advice if one.at <= later] for run in (result, other)]
    return {
        **result.report(),
        "ahead": ahead,
        "file": file.name,
        "same_as_of_then": again == result.advice,
        "same_under_another_future": before[0] == before[1],
        "shares": [[one.title, one.support, one.success.mean, *one.success.interval()] for one in result.lessons],
    }


def sheets(document: dict[str, Any]) -> list[Sheet]:
    """The tables of the page."""
    recalls, others = [], []
    for one in document["recall"]:
        size = f"{one['lessons']:,} × {one['dimension']}"
        recalls += [
            [size, name, *(number(value) for value in one[name])]
            for name in ("recall", "with a filter", "as of an earlier time")
        ]
        others += [[size, name, number(one[name])] for name in ("first recall of a process, s", "consolidate, s")]
    spent = document["distil"]
    for name in ("learn", "distil"):
        size = f"{spent['runs']:,} runs × {spent['steps']} × {spent['dimension']}"
        others.append([size, f"{name}, s", number(spent[name][0])])
        others.append([size, f"{name}, s of processor time", number(spent[name][1])])
    planted, noise = document["planted"], document["noise"]
    days = document["days"]
    return [
        Sheet(
            "Recalling 5 lessons",
            f"Random unit vectors, each lesson with {costs.EVIDENCE} runs of evidence; µs of one call.",
            ["lessons", "call", "p50", "p95", "p99"],
            recalls,
            words=2,
        ),
        Sheet(
            "The rest",
            f"Runs in {costs.CENTRES} situations; {spent['found']} of these became lessons. Learning and distilling "
            "read every run from the store.",
            ["size", "operation", "s"],
            others,
            words=2,
        ),
        Sheet(
            "Planted patterns",
            f"{planted['histories']} histories of {planted['runs']:,} runs in {worlds.GOOD} good, {worlds.BAD} bad and "
            f"{worlds.NEUTRAL} neutral situations, at a confidence of {planted['confidence']}.",
            ["share of success", "found with the right sign", "wrong", "planted"],
            [
                [f"{1 - p:.2f} / {p:.2f}", f"{right} ({right / of:.1%})", str(wrong), str(of)]
                for p, right, wrong, of in planted["rows"]
            ],
        ),
        Sheet(
            "Noise",
            f"Histories of {noise['runs']:,} runs in which no situation differs from another; a lesson in one of them "
            f"is invented. At a confidence of {noise['confidence']} that may happen in one of twenty.",
            ["share of success", "with an invented lesson", "histories"],
            [[f"{usual:.1f}", str(invented), str(of)] for usual, invented, of in noise["rows"]],
        ),
        Sheet(
            "A day of quotes",
            f"`{days[0]['file']}`, by `tiermem.demo.direction`: lessons from the first half of the seconds, followed "
            "in the second. *Without* expects the last move to go on; asked at the same moments, and the interval is "
            "that of the difference over pairs. *Advised* are moments at which a lesson was near.",
            [
                "seconds ahead",
                "predictions",
                "lessons",
                "with",
                "without",
                "difference, 95 %",
                "advised",
                "with",
                "without",
            ],
            [
                [
                    f"{one['ahead']:g}",
                    f"{one['predictions']:,}",
                    str(one["lessons"]),
                    f"{one['hit_rate_with']:.1%}",
                    f"{one['hit_rate_without']:.1%}",
                    "{:+.1%} ({:+.1%} to {:+.1%})".format(one["difference"], *one["interval"]),
                    f"{one['advised']:,}",
                    *(
                        "–" if share is None else f"{share:.1%}"
                        for share in (one["hit_rate_with_where_advised"], one["hit_rate_without_where_advised"])
                    ),
                ]
                for one in days
            ],
        ),
    ]


def demands(document: dict[str, Any]) -> list[Requirement]:
    """What has to hold."""
    found = []
    for one in document["recall"]:
        p95 = one["recall"][1] / 1e3
        text = f"recall of 5 among {one['lessons']:,} lessons of {one['dimension']} dimensions: p95 < {RECALL_MS:g} ms"
        found.append(Requirement(text, f"{p95:.2f} ms", p95 < RECALL_MS, verdict(p95 < RECALL_MS)))
    wall, processor = document["distil"]["distil"]
    size = f"{document['distil']['runs']:,} runs of {document['distil']['steps']} steps"
    text = f"distil {size} in < {DISTIL_S:g} s on one core"
    held = max(wall, processor) < DISTIL_S
    found.append(Requirement(text, f"{wall:.1f} s, {processor:.1f} s of processor time", held, verdict(held)))
    strength, right, wrong, of = document["planted"]["rows"][2]
    held = right >= FOUND * of and not wrong
    text = f"≥ {FOUND:.0%} of the planted situations ({1 - strength:.2f} / {strength:.2f}) found, with the right sign"
    found.append(Requirement(text, f"{right / of:.1%}, {wrong} wrong", held, verdict(held)))
    invented = sum(row[1] for row in document["noise"]["rows"])
    histories = sum(row[2] for row in document["noise"]["rows"])
    held = invented <= (1 - CONFIDENCE) * histories
    text = f"a lesson in at most {1 - CONFIDENCE:.0%} of histories of noise"
    found.append(Requirement(text, f"{invented} of {histories}", held, verdict(held)))
    held = all(one["same_as_of_then"] and one["same_under_another_future"] for one in document["days"])
    text = "a day of quotes: what was recalled is recalled again as of then; another future changes nothing before it"
    found.append(Requirement(text, "the same" if held else "**differs**", held, verdict(held)))
    return found


def markdown(document: dict[str, Any], bounds: list[Requirement], tables: list[Sheet], picture: str | None) -> str:
    """The page."""
    lines = ["# Lessons", "", origin("reasoning.py", document, SEED), ""]
    lines += [
        "## Requirements",
        "",
        f"| {' | '.join(REQUIREMENTS)} |",
        "|---|---|---|",
        *(f"| {one.text} | {one.measured} | {one.verdict} |" for one in bounds),
    ]
    for table in tables:
        lines += ["", f"## {table.heading}", "", table.text, "", *table.lines()]
    lines += ["", "The lessons of the day, as they stood at its end:", ""]
    for one in document["days"]:
        lines += [
            f"- {one['ahead']:g} s ahead: {title}, {mean:.1%} ({low:.1%} to {high:.1%}) of {support:,}."
            for title, support, mean, low, high in one["shares"]
        ]
    lines += [
        "",
        "The horizons were all looked at, so that the best of them is no evidence by itself. Quotes of one day and one",
        "stock say nothing about others; no cost of trading is counted.",
    ]
    if picture:
        world = document["world"]
        lines += [
            "",
            "## Calibration and reliability",
            "",
            f"{world['runs']:,} runs in {2 * worlds.CHANGING} situations, distilled every {world['every']}.",
            "Left, of the first half: what the lesson recalled for a run said before it, against how the run went.",
            "Right: reliability, read `as_of` each time; half way some situations turn into their opposite.",
            "",
            f"![calibration and reliability over time]({picture})",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and short, to see that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument("--out", type=Path, help="write the page here (a full run: docs/benchmarks/reasoning.md)")
    arguments = parser.parse_args()
    quick = arguments.quick
    console, where = Console(), machine()
    file = real_folder() / DAY
    if quick or not file.exists():
        file = direction.EXCERPT
    document: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "seed": SEED, "quick": quick}
    document |= {"machine": where, "versions": versions("matplotlib")}
    lessons, queries, runs, histories = (1000, 200, 500, 4) if quick else (LESSONS, 2000, RUNS, 20)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn where a part was done and not in between: drawing takes time from a core that is being measured.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("parts", total=6)

        def done() -> None:
            progress.update(task, advance=1, refresh=True)

        document["recall"] = [costs.recall(lessons, dimension, queries) for dimension in DIMENSIONS]
        done()
        document["distil"] = costs.distil(runs, STEPS, DIMENSIONS[0])
        done()
        document["planted"] = worlds.planted(histories, 2400, CONFIDENCE)
        done()
        document["noise"] = worlds.noise(5 * histories, 1200, CONFIDENCE)
        done()
        document["days"] = [day_of_quotes(file, ahead) for ahead in AHEAD]
        done()
        document["world"] = worlds.changing(800 if quick else 8000, 200)
        done()
    document["load_at_end"] = machine()["load"]
    bounds, tables = demands(document), sheets(document)
    document["requirements"] = [asdict(one) for one in bounds]
    show(console, ((one.text, one.measured, one.verdict) for one in bounds), tables)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    page = arguments.out or (None if quick or file == direction.EXCERPT else PAGE)
    if page:
        page.parent.mkdir(parents=True, exist_ok=True)
        picture = draw(document["world"], page.with_suffix(".png")) if document["world"]["pairs"] else None
        page.write_text(markdown(document, bounds, tables, picture), encoding="utf-8")
        console.print(f"written: {page}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
