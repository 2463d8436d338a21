"""Every extension point by name. Entries are `module:attribute` strings, imported only when asked for.

Third parties add entries with a `gistselect.<kind>` entry point in their own package.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from gistselect.errors import ConfigError

REGISTRY: dict[str, dict[str, str]] = {
    "task": {
        "mmlu": "gistselect.tasks.mmlu:MMLU",
        "bbh": "gistselect.tasks.bbh:BBH",
        "tydiqa": "gistselect.tasks.tydiqa:TyDiQA",
        "gsm8k": "gistselect.tasks.gsm8k:GSM8K",
    },
    "representation": {
        "gist": "gistselect.representations.gist:Gist",
        "less": "gistselect.representations.less:Less",
        "less_adam": "gistselect.representations.less:LessAdam",
        "ekfac": "gistselect.representations.ekfac:EKFAC",
        "rds": "gistselect.representations.rds:RDS",
        "loss_drop": "gistselect.representations.loss_drop:LossDrop",
        "perplexity": "gistselect.representations.perplexity:Perplexity",
        "bm25": "gistselect.representations.bm25:BM25",
        "embedding": "gistselect.representations.embedding:Embedding",
        "dsir": "gistselect.representations.dsir:DSIR",
        "random": "gistselect.representations.random:Random",
        "length": "gistselect.representations.length:Length",
    },
    "selector": {
        "top_k": "gistselect.selection.orders:TopK",
        "round_robin": "gistselect.selection.turns:RoundRobin",
        "doubly_greedy": "gistselect.selection.orders:DoublyGreedy",
        "vote": "gistselect.selection.orders:Vote",
        "knn": "gistselect.selection.transport:NearestNeighbours",
        "ot": "gistselect.selection.transport:OptimalTransport",
        "k_center": "gistselect.selection.cover:KCenter",
        "facility_location": "gistselect.selection.cover:FacilityLocation",
        "gip": "gistselect.selection.pursuit:Gip",
    },
    "export": {
        "trl": "gistselect.export.trl:to_trl",
        "axolotl": "gistselect.export.axolotl:to_axolotl",
        "llamafactory": "gistselect.export.llamafactory:to_llamafactory",
    },
}


def names(kind: str) -> list[str]:
    """Names registered for a kind of extension, built-in and third-party, sorted."""
    return sorted(REGISTRY[kind].keys() | {point.name for point in entry_points(group=f"gistselect.{kind}")})


def resolve(kind: str, name: str) -> Any:
    """Import the extension of that kind and name.

    Raises `ConfigError` with the nearest valid name if there is none.
    """
    if name in REGISTRY[kind]:
        module, _, attribute = REGISTRY[kind][name].partition(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group=f"gistselect.{kind}"):
        if point.name == name:
            return point.load()
    known = names(kind)
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"there is no {kind} {name!r}; known: {', '.join(known)}.{hint}")
