"""The tables of docs/reliability.md that commands measured: kills, how far scores move, resident memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

from result_format import stored, table, title

STAGES = {
    "features+measured": "features",
    "selection": "selections",
    "arm": "arms",
    "train": "trainings",
    "fit": "fits",
    "warmup": "warm-up",
}
"""Stages as people call them; one by one, since what a kill leaves unfinished may be of two."""
NOT_YET = "*Not measured yet.*\n"


def _kills() -> list[dict[str, Any]]:
    """Of each command how often it was killed, at what, and in how many runs."""
    found = stored("kills")
    assert found is not None
    merged: dict[str, dict[str, Any]] = {}
    for part in found["parts"].values():
        one = merged.setdefault(" ".join(part["command"]), {"kills": 0, "runs": 0, "at": Counter()})
        one["kills"] += part["kills"]
        one["runs"] += part["runs"]
        for place, count in part["killed_in"].items():
            one["at"][STAGES.get(place, place)] += count
    return [{"command": command, **one} for command, one in merged.items()]


def totals() -> str:
    """What was tried and what came of it, in one table."""
    kills = _kills()
    n_kills, n_runs = (sum(one[name] for one in kills) for name in ("kills", "runs"))
    rows = [
        [
            "kills survived",
            f"{n_kills}, in {n_runs} runs that were each resumed to the end, every file as in the uninterrupted run",
            "`benchmarks/kill.py`",
        ],
        [
            "two commands at once",
            "18 commands at each of 13 stages of a run, and of one with another budget; three at the same instant",
            "`tests/test_two_at_once.py`",
        ],
        [
            "full, limited and read-only disks",
            "every one of 13 stages; three libraries that write",
            "`tests/test_disk.py`",
        ],
        ["corruptions detected", "210 damages and 9 swaps, none used", "`tests/test_corruption.py`"],
        [
            "changed inputs",
            "16 changes, each makes anew exactly what depends on it",
            "`tests/test_changes.py`",
        ],
        [
            "inputs tried",
            "151 strange and hostile ones by hand, 294 that a fuzzer found, 53 names and files",
            "`tests/test_hostile.py`, `test_refusals.py`",
        ],
        [
            "executions fuzzed",
            "1,267,482 guided by coverage, 2,024,200 generated",
            "`benchmarks/fuzz_*.py`",
        ],
        ["kinds of models", "41 tests", "`tests/test_models.py`"],
        ["defects found and mended", "32", "below"],
    ]
    return table(["", "figure", "by"], rows)


def kills() -> str:
    """A command a row."""
    rows = []
    for one in _kills():
        between = one["at"].pop("between artifacts", 0)
        at = ", ".join(f"{place} {count}" for place, count in one["at"].most_common())
        at += f"; {between} between artifacts" if between else ""
        rows.append([f"`{one['command']}`", str(one["kills"]), str(one["runs"]), at])
    return table(["command", "kills", "runs", "killed while at work on"], rows)


def repeatability() -> str:
    """A way to compute a row, a method a column."""
    found = stored("repeatability")
    if found is None:
        return NOT_YET
    methods = list(next(iter(found["variants"].values())))
    rows = []
    for name, of in found["variants"].items():
        cells = []
        for method in methods:
            one = of[method]
            if not one["largest"]:
                cells.append("0")
                continue
            moved = f"{one['largest'] / one['deviation']:.0e}"
            changed = f", **{one['changed']} of {one['selected']}**" if one["changed"] else ""
            cells.append(moved + changed)
        rows.append([name, *cells])
    return (
        f"`{found['command']}` ({found['machine']}, torch {found['packages']['torch']}), {found['rows']} rows:\n\n"
        + table(["", *(title(method) for method in methods)], rows)
    )


def resident() -> str:
    """A step of a run a row."""
    found = stored("resident")
    if found is None:
        return NOT_YET
    rows = []
    for name in ("small", "demo"):
        one = found.get(name)
        for step, seen in (one["steps"] if one else {}).items():
            rows.append(
                [
                    "embedded" if name == "demo" else "random, 2 layers of 32",
                    step,
                    f"{one['rows']:,}",
                    f"{seen['mb_least']:,.0f} to {seen['mb_most']:,.0f}",
                    f"{seen['mb_per_10000_rows']:+.1f}",
                    str(seen["looks"]),
                ]
            )
    return table(["model", "step", "rows", "MB resident", "MB for 10,000 rows more", "looks"], rows)


RELIABILITY = {"totals": totals, "kills": kills, "repeatability": repeatability, "resident": resident}
