"""Write tables and plots of docs/results.md, reliability.md and README.md from benchmarks/results; --check: are they?

What stands between `<!-- results: NAME -->` and `<!-- end -->` is written by `BLOCKS[NAME]`; all else is written by
hand. Every number there comes from a file that a command of the repository wrote; the block "files" says which.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ablations_result import varied
from cascade_result import cascade_block
from choices_result import choices_block
from reliability_results import RELIABILITY
from repeat_result import repeat_block
from result_format import (
    BEFORE,
    DOCS,
    NOT_YET,
    PLOTS,
    RANDOM,
    RESULTS,
    ROOT,
    WRITTEN,
    difference,
    dot_of,
    mathematics,
    plot,
    stored,
    table,
    title,
    with_interval,
)
from trust_result import trusted

PAGES = (DOCS / "results.md", DOCS / "reliability.md", ROOT / "README.md")
BLOCK = re.compile(r"(?P<start><!-- results: (?P<name>[a-z0-9-]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)


def small() -> dict[str, Any] | None:
    """The study on the real model; with all its training seeds if they are done."""
    return stored("small-seed0", "small-seed0-two-training-seeds")


def study(found: Mapping[str, Any], name: str) -> str:
    """A comparison: a table and a plot for each target."""
    parts = []
    for target in dict.fromkeys(one["target"] for one in found["findings"]):
        arms = [one for one in found["findings"] if one["target"] == target]
        shares = {one["arm"]: one["sources"] for one in found["sources"] if one["target"] == target}
        rows = [_arm(one, shares.get(one["arm"]), found["pool_sources"]) for one in arms]
        head = ["arm", "loss", "minus before", "minus random rows", "minus BM25", "seconds", "STR", "bytes a row"]
        head += ["mathematics"] * (target == "gsm8k")
        parts.append(
            f"{target}, {arms[-1]['n_rows']} rows selected, {max(one['n_runs'] for one in arms)} training seeds:\n"
        )
        parts.append(table(head, [row[: len(head)] for row in rows]))
        random = next((one["mean"] for one in arms if one["arm"] == RANDOM), None)
        dots = [dot_of(title(one["arm"]), one, "method" if one["selector"] else "reference") for one in arms]
        label = "nats a token after training; dashed: random rows; 95 % intervals over items and seeds"
        parts.append(plot(f"{name}-{target}", dots, f"{target}: held-out loss", label, random))
    return "\n".join(parts)


def _arm(one: Mapping[str, Any], sources: Mapping[str, float] | None, pool: Mapping[str, float]) -> list[str]:
    cost = one["cost"] or {}
    ratio = cost.get("selection_to_tuning")
    known = pool if one["arm"] == RANDOM else sources
    return [
        title(one["arm"]),
        with_interval(one),
        difference(one["against"].get(BEFORE)),
        difference(one["against"].get(RANDOM)),
        difference(one["against"].get("BM25")),
        _seconds(cost["selection_seconds"]) if cost else "",
        "" if ratio is None else f"{ratio:.2g}",
        f"{cost['bytes_per_row']:,.0f}" if cost else "",
        "" if known is None else mathematics(known),
    ]


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:.1g}"


def small_block() -> str:
    """The main table on the real model."""
    found = small()
    return NOT_YET if found is None else study(found, "small")


def demo_block() -> str:
    """The main table on the embedded model."""
    found = stored("demo-seed0")
    return NOT_YET if found is None else study(found, "demo")


def headline() -> str:
    """The real model's figures, for the README."""
    found = small()
    if found is None:
        return NOT_YET
    arms = {one["arm"]: one for one in found["findings"] if one["target"] == "gsm8k"}
    wanted = [BEFORE, RANDOM, "BM25", "RDS+", "GIST"]
    rows = [
        [
            title(name),
            with_interval(arms[name]),
            *(difference(arms[name]["against"].get(one)) for one in (RANDOM, "BM25")),
        ]
        for name in wanted
    ]
    items = f"loss on held-out GSM8K (nats a token), {arms['GIST']['n_runs']} training seeds"
    return table([items, "mean [95 % interval]", "minus random rows", "minus BM25"], rows)


def headroom_block() -> str:
    """What the right sources teach beyond random rows, by target and model."""
    rows, dots = [], []
    for model, name in (("SmolLM2", "smollm2"), ("demo model", "demo")):
        found = stored(f"headroom-{name}-seed0")
        for one in found["targets"] if found else ():
            arms = one["arms"]
            own = arms["rows of its sources"]
            gained = own["against"][RANDOM]
            rows.append(
                [
                    f"{one['target']}, {model}",
                    f"{one['items']}",
                    f"{own['n_runs']}",
                    f"{arms[BEFORE]['mean']:.3f}",
                    difference(arms[RANDOM]["against"][BEFORE]),
                    difference(own["against"][BEFORE]),
                    difference(gained),
                ]
            )
            dots.append(dot_of(f"{one['target']}, {model}", gained, model))
    if not rows:
        return NOT_YET
    head = ["target", "items", "draws", "before", "random rows", "rows of its sources", "sources minus random"]
    label = "nats a token, below 0 the sources teach more; dashed: no difference"
    return table(head, rows) + plot(
        "headroom", dots, "Head-room: rows of a target's sources against random rows", label, 0.0
    )


def why_block() -> str:
    """What the scores of each method follow."""
    parts = []
    for name, model in (("small-seed0", "SmolLM2-135M-Instruct"), ("often-demo-seed0", "The demo model")):
        found = stored(f"why-{name}")
        if found is None:
            continue
        spectrum, pool = found["spectrum"], found["pool"]
        first = ", ".join(f"{share:.0%} in {k}" for k, share in spectrum["variance_of_first"].items())
        parts.append(
            f"{model}, {found['rows']} rows with {pool['n_supervised']:.0f} supervised tokens on average. Of GIST's "
            f"{spectrum['queries']} query gradients {spectrum['rank']} directions are kept; variance {first}; the "
            f"first holds {spectrum['share_of_mean_in_first']:.0%} of the mean query.\n"
        )
        head = ["method", "AUC of mathematics", "follows answer length", "follows loss", "follows gradient norm"]
        head += ["agrees with BM25", "answer tokens of selected", "over chance: pool, mathematics", "captured energy"]
        rows = []
        for method, one in found["methods"].items():
            over, energy = one.get("over_null"), one.get("captured_energy")
            rows.append(
                [
                    title(method),
                    f"{one['auc_of_mathematics']:.2f}",
                    *(f"{one['follows'][key]:+.2f}" for key in ("n_supervised", "loss", "gradient_norm")),
                    f"{one['agrees_with_bm25']:+.2f}",
                    f"{one['selected']['n_supervised']:.0f}",
                    f"{over['pool']:.0%}, {over['mathematics']:.0%}" if over else "",
                    f"{energy['pool']:.1%}" if energy else "",
                ]
            )
        parts.append(table(head, rows))
    return "\n".join(parts) or NOT_YET


def speed_block() -> str:
    """Seconds for 100,000 rows by shape."""
    parts = []
    for kind, goals in (("cpu", (2.5, 6)), ("cuda", (10, 25))):
        found = stored(f"speed-{kind}")
        for shape, one in (found["shapes"] if found else {}).items():
            seconds = {name: statistics.median(times) for name, times in one["seconds"].items() if times}
            useful = 4 * one["parameters"] * one["tokens"] / one["peak_flops"]
            rows = [
                [name, f"{took / one['rows'] * 100_000:,.0f}", f"{one['tokens'] / took:,.0f}", f"{useful / took:.0%}"]
                for name, took in seconds.items()
            ]
            loop, single, triple = (
                seconds[name] for name in ("published loop, 1 target", "GIST, 1 target", "GIST, 3 targets")
            )
            parts.append(
                f"{shape} ({one['parameters'] / 1e6:,.0f} M parameters, adapter {one['adapter'] / 1e6:.2f} M), "
                f"{one['device']}, {one['dtype']}, {one['rows']} rows of {one['tokens'] / one['rows']:.0f} tokens:\n"
            )
            parts.append(table(["arm", "seconds for 100,000 rows", "tokens a second", "MFU"], rows))
            parts.append(
                f"Published loop / GIST: {loop / single:.2f} (goal {goals[0]}); three loops / GIST with three targets: "
                f"{3 * loop / triple:.2f} (goal {goals[1]}).\n"
            )
    return "\n".join(parts) or NOT_YET


def files_block() -> str:
    """Which command wrote which file, at which commit."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        made = json.loads(path.read_text(encoding="utf-8")).get("made")
        if made is None:  # Of another page: docs/reliability.md.
            continue
        rows.append(
            [f"`{path.name}`", f"`{made.get('command', '')}`", made.get("model", ""), f"{made.get('commit', '')[:7]}"]
        )
    return table(["file of benchmarks/results", "command", "model", "commit"], rows)


def _of_both_models(name: str, shown: Callable[[dict[str, Any], str, str], str]) -> dict[str, Callable[[], str]]:
    """A block for the embedded model and one for the real one, by name: what is stored, its name and the model's."""

    def block(file: str, called: str, model: str) -> str:
        found = stored(file)
        return NOT_YET if found is None else shown(found, called, model)

    real = f"{name}-smollm2"
    return {
        name: partial(block, f"{name}-demo-seed0", name, "the demo model"),
        real: partial(block, f"{real}-seed0", real, "SmolLM2-135M-Instruct"),
    }


BLOCKS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "small": small_block,
    "demo": demo_block,
    **_of_both_models("trust", trusted),
    **_of_both_models("ablations", varied),
    "headroom": headroom_block,
    "why": why_block,
    "cascade": cascade_block,
    "choices": choices_block,
    "repeat": repeat_block,
    "speed": speed_block,
    "files": files_block,
    **RELIABILITY,
}


def written(page: Path) -> str:
    """The page with its blocks made anew."""
    text = page.read_text(encoding="utf-8")
    return BLOCK.sub(lambda match: f"{match['start']}{BLOCKS[match['name']]()}{match['end']}", text)


def main() -> None:
    """Write pages and charts, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page or a chart is stale")
    check = parser.parse_args().check
    made = {page: written(page) for page in PAGES}
    made |= WRITTEN
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    left = [path for path in PLOTS.glob("*.svg") if path not in made]
    if check and (stale or left):
        sys.exit(
            f"stale: {', '.join(str(path.relative_to(ROOT)) for path in [*stale, *left])}; run tools/write_results.py"
        )
    if not check:
        PLOTS.mkdir(exist_ok=True)
        for path in left:
            path.unlink()
        for path in stale:
            path.write_text(made[path], encoding="utf-8")


if __name__ == "__main__":
    main()
