"""The document of `gistselect plan` as text for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from gistselect.run.progress import duration
from gistselect.terminal import printable

SHOWN_SOURCES, SHOWN_GROUPS, SHOWN_REASONS, SHOWN_FOUND, SHOWN_CHARACTERS = 12, 8, 8, 6, 1200
WIDTH = 30
"""Characters of the longest bar."""
SUPERVISED = "bold green"


def plan_lines(document: Mapping[str, Any]) -> Iterator[Text | str]:
    """The document part by part; text of the data set as `Text`, which is never markup."""
    yield from _pool(document["pool"])
    yield from _targets(document["targets"])
    yield from _contamination(document["contamination"])
    if document["example"]:
        yield from _example(document["example"])
    yield from _work(document["forecast"])
    yield from _room(document["disk"], document["memory"])


def _pool(pool: Mapping[str, Any]) -> Iterator[str]:
    found = pool["found"] if len(pool["found"]) <= SHOWN_FOUND else pool["found_together"]
    yield "POOL"
    yield from (f"  {line}" for line in found)
    yield f"  {pool['rows']:,} rows, {pool['usable']:,} usable, {pool['quarantined']:,} to be quarantined"
    yield from (f"    {count:,} rows: {reason}" for reason, count in list(pool["reasons"].items())[:SHOWN_REASONS])
    yield from (
        f"    {count:,} rows are used without their {what}, which the chat template does not show"
        for what, count in pool["unshown"].items()
    )
    yield f"  sources: {_counts(pool['sources'], SHOWN_SOURCES)}"
    if pool["tokens"]:
        yield f"  {pool['cut']:,} rows are cut at {pool['max_length']:,} tokens ({pool['tokens_cut']:,} tokens lost)"
        yield from _distribution("tokens of a row", pool["tokens"])
        yield from _distribution("supervised tokens of a row", pool["supervised_tokens"])


def _counts(counts: Mapping[str, int], most: int) -> str:
    shown = ", ".join(f"{name or '(none)'} {count:,}" for name, count in list(counts.items())[:most])
    return shown + (f", and {len(counts) - most:,} more" if len(counts) > most else "")


def _distribution(name: str, of: Mapping[str, Any]) -> Iterator[str]:
    levels = ", ".join(f"{float(level):.0%} {value:,.0f}" for level, value in of["quantiles"].items())
    yield f"  {name}: {of['total']:,} in all; quantiles {levels}"
    most = max((one["rows"] for one in of["histogram"]), default=0)
    for one in of["histogram"]:
        bar = "█" * max(round(WIDTH * one["rows"] / most), one["rows"] > 0)
        yield f"    {one['from']:>6,} to {one['below'] - 1:>6,} {bar} {one['rows']:,}"


def _targets(targets: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "TARGETS"
    for one in targets:
        notes = [f"{one[name]:,} {word}" for name, word in _NOTES.items() if one[name]]
        yield f"  {one['target']}: {one['queries']:,} queries{', ' + ', '.join(notes) if notes else ''}"
        if len(one["groups"]) > 1:
            sizes = dict(sorted(one["groups"].items(), key=lambda item: -item[1]))
            yield f"    groups: {_counts(sizes, SHOWN_GROUPS)}"


def _contamination(found: Mapping[str, Any]) -> Iterator[str]:
    n_shared, n_rows = found["rows_that_share_a_passage"], found["rows_looked_at"]
    yield (
        f"  {n_shared:,} of {n_rows:,} rows that were looked at share 13 words in a row with one of {found['items']:,} "
        f"queries and held-out items ({found['items_too_short']:,} are too short to be compared)"
    )
    for one in found["examples"][:1]:
        yield f"    the first: {one['id']} and {one['item']}; --decontaminate leaves such rows out"


_NOTES = {"duplicates": "said twice", "cut": "cut", "unusable": "unusable"}


def _example(one: Mapping[str, Any]) -> Iterator[Text | str]:
    yield "EXAMPLE"
    yield (
        f"  row {one['row']} ({one['id']}): {one['tokens']:,} tokens, of which {one['supervised_tokens']:,} are "
        "supervised; these stand between ⟦ ⟧ and are green"
    )
    text = Text()
    for part in one["segments"]:
        said = printable(_shortened(part["text"]))
        text.append(f"⟦{said}⟧" if part["supervised"] else said, style=SUPERVISED if part["supervised"] else "")
    yield text
    yield (
        f"  {one['rows_that_end_the_turn']:,} of {one['rows_looked_at']:,} uncut rows end their last answer with a "
        "token that ends the turn"
        + ("" if one["rows_that_end_the_turn"] else ": a model trained on them will not learn to stop; see --template")
    )


def _shortened(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    half = SHOWN_CHARACTERS // 2
    return f"{text[:half]} … {len(text) - SHOWN_CHARACTERS:,} characters … {text[-half:]}"


def _work(forecast: Mapping[str, Any]) -> Iterator[str]:
    yield "WORK"
    pieces = forecast["work"]
    width = max(len(one["name"]) for one in pieces)
    for one in pieces:
        seconds = "not forecast" if one["seconds"] is None else duration(one["seconds"])
        left = "" if one["state"] == "done" else f"  {one['left']:,.0f} {one['unit']}, {seconds}"
        yield f"  {one['name']:<{width}}  {one['state']}{left}"
    yield "TIME"
    for name, one in forecast["stages"].items():
        yield f"  {name:<9} {duration(one['seconds'])}"
    total = forecast["total"]
    yield f"  {'in all':<9} {duration(total['seconds'])} ({duration(total['cpu_seconds'])} of one core)"
    if forecast["unknown"]:
        yield f"  not in it: {', '.join(dict.fromkeys(forecast['unknown']))}"


def _room(disk: Mapping[str, Any], memory: Mapping[str, Any]) -> Iterator[str]:
    yield "ROOM"
    parts = [f"{_size(disk[name])} {word}" for name, word in _ON_DISK.items() if disk[name]]
    features = [f"{_size(disk['features_bytes'])} of features at most"] * bool(disk["features_bytes"])
    features += ["the sketches of the pool"] * disk["sketches_unknown"]
    if disk["shards"] is None:
        parts, features = features + parts, []
    yield f"  disk: {', '.join(parts) or 'little'} to be written, {_size(disk['free_bytes'])} free"
    if features:
        yield f"  {disk['shards']}: {', '.join(features)} to be put"
    host = memory["host_available_bytes"]
    yield (
        f"  memory: this plan took {_size(memory['peak_bytes'] or 0)}"
        + (f"; {_size(host)} of {_size(memory['host_total_bytes'])} are free" if host else "")
        + (f"; the model's weights are {_size(memory['model_bytes'])}" if memory["model_bytes"] else "")
    )
    if device := memory["device"]:
        yield (
            f"  device: this plan took {_size(device['peak_bytes'])}; {_size(device['free_bytes'])} of "
            f"{_size(device['total_bytes'])} are free"
        )
    yield from _on_devices(memory)


def _on_devices(memory: Mapping[str, Any]) -> Iterator[str]:
    """Bases, sketches and the layers of several cards."""
    if bases := memory["bases"]:
        how = "held whole"
        if bases["split"]:
            how = f"split by columns into {bases['blocks']:,} blocks, " + (
                "each with a pass over the pool" if bases["passes"] > 1 else "which visit the device in one pass"
            )
        limit = "no limit" if bases["limit_bytes"] is None else f"{_size(bases['limit_bytes'])} allowed"
        yield (
            f"  bases: at most {bases['directions_at_most']:,} directions of {bases['parameters']:,} numbers, "
            f"{_size(bases['bytes_at_most'])} ({limit}): {how}"
        )
    for one in memory["sketches"]:
        kept = f", {_size(one['pool_bytes'])} kept of the pool" if one["pool_bytes"] else ""
        yield (
            f"  sketch ({one['method']}): {one['width']:,} wide, {one['numbers']:,} numbers of a row "
            f"({one['share']:.2%} of the adapter's), {_size(one['device_bytes'])} of the device{kept}"
        )
    for one in memory["cards"] or ():
        yield (
            f"  {one['card']}: {', '.join(_runs(one['parts'])) or 'nothing'}; {_size(one['weights_bytes'])} of "
            f"{_size(one['free_bytes'])} free"
        )


def _runs(parts: Sequence[str]) -> Iterator[str]:
    """Parts of a model, numbered ones from the first to the last."""
    for stem, run in groupby(parts, lambda part: re.sub(r"\d+$", "", part)):
        names = list(run)
        yield f"{names[0]} to {names[-1].removeprefix(stem)}" if len(names) > 1 else names[0]


_ON_DISK = {
    "checkpoints_bytes": "of checkpoints",
    "bases_bytes_at_most": "of bases at most",
    "curvature_bytes": "of curvature",
}


def _size(n_bytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {unit}"
    return f"{n_bytes / 1e3:,.0f} kB"
