"""The page that a run writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from _sheets import Requirement, Sheet, origin
from _workload import SEED

from microbench.rivals import stores


def markdown(document: dict[str, Any], demands: Sequence[Requirement], sheets: Sequence[Sheet]) -> str:
    """All of it."""
    where = document["machine"]
    lines = [
        "# Micro-benchmarks",
        "",
        origin("bench_micro.py", document, SEED),
        "",
    ]
    if document["scale"]["name"] == "quick":
        lines += ["**A quick run**, to see that everything works: small, noisy, and no base for comparisons.", ""]
    # At the end the run itself counts for one to two.
    if where["load"] > where["cores"] / 2 or document["load_at_end"] > where["cores"]:
        lines += ["**The machine was busy with other work**: the times are worth little, the ratios are rough.", ""]
    lines += [
        f"Subjects of a table took turns ({document['scale']['turns']} each), so what else the machine did met all of "
        "them. A ratio is the median of the ratios of the turns; times are medians too, or the percentile named. Times "
        "of different runs do not compare, ratios do. In bold: the lowest of those that compete.",
        "",
        "How the stores are set up that tiermem is compared with:",
        "",
        *(f"- {store.name}: {store.setup}." for store in stores()),
        "",
        *(f"Left out: `{name}` is not installed.\n" for name in document["absent"]),
        "## Requirements",
        "",
        "| requirement | measured | |",
        "|---|---|---|",
        *(f"| {one.text} | {one.measured} | {one.verdict} |" for one in demands),
    ]
    for sheet in sheets:
        lines += ["", f"## {sheet.heading}", "", sheet.text, "", *sheet.lines()]
    return "\n".join(lines) + "\n"
