"""What a job is about, before any of it is computed: pool, targets, an example as the model sees it, disk and memory.

Everything is read from the records and tokens of the store and said as JSON; `run/plan_lines.py` makes it text.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistselect.data.overlap import hashed_blocks
from gistselect.data.stored import record_json
from gistselect.run.config import RunConfig
from gistselect.run.forecast import feature_bytes
from gistselect.run.ingest import Rows, TokenRows
from gistselect.run.plan import Plan
from gistselect.run.rates import stratified
from gistselect.run.reading import Tokenise
from gistselect.run.results import peak_memory_bytes
from gistselect.run.room import DeviceRoom, device_room
from gistselect.run.targets import Target
from gistselect.run.tokenising import kind_of_reason
from gistselect.run.warmup import WarmUp

LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""Quantiles of lengths that are told."""
LOOKED_AT = 256
"""Rows whose end is looked at."""
ENDING = 3
"""Last supervised tokens among which one must end the turn: a template may put a line feed after it."""
CONTAMINATION_SHARDS, SHOWN_SHARED = 4, 5
"""Shards of the pool that are compared with queries and held-out items, and rows of them that are named."""


def overview(plan: Plan, config: RunConfig, checkpoint_bytes: int | None) -> dict[str, Any]:
    """Facts of a job whose pool is read and tokenised.

    `checkpoint_bytes` is what one checkpoint of the warm-up takes, if that is known. Raises as `device_room`.
    """
    room = device_room(plan, config)
    return {
        "pool": _pool(plan, config),
        "targets": [_target(one) for one in plan.targets],
        "contamination": _contamination(plan),
        "example": _example(plan.tokens) if plan.tokens else None,
        "disk": _disk(plan, config, checkpoint_bytes, room),
        "memory": {
            **_memory(config),
            "bases": room.bases,
            "sketches": list(room.sketches),
            "cards": room.cards,
        },
    }


# --- the pool -----------------------------------------------------------------------------------------------


def _pool(plan: Plan, config: RunConfig) -> dict[str, Any]:
    rows = plan.candidates
    facts = rows.facts
    sources: Counter[str] = Counter()
    names = ["source", "n_tokens", "n_supervised", "n_cut"] if isinstance(rows, TokenRows) else ["source"]
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in names[1:]}
    for shard in range(rows.n_shards):
        table = rows.table(shard, names)
        sources.update(table["source"].to_pylist())
        for name in columns:
            columns[name].append(table[name].to_numpy())
    lengths = {name: np.concatenate(parts) for name, parts in columns.items()}
    return {
        "rows": facts["n_rows"],
        "usable": facts["n_usable"],
        "quarantined": facts["n_rejected"],
        "reasons": facts.get("reasons") or _reasons(rows),
        "unshown": facts.get("unshown", {}),
        "sources": dict(sources.most_common()),
        "found": plan.records.rows.facts["found"],
        "found_together": plan.records.rows.facts["found_together"],
        "tokens": _distribution(lengths["n_tokens"]) if lengths else None,
        "supervised_tokens": _distribution(lengths["n_supervised"]) if lengths else None,
        "max_length": config.max_length if lengths else None,
        "cut": int((lengths["n_cut"] > 0).sum()) if lengths else None,
        "tokens_cut": int(lengths["n_cut"].sum()) if lengths else None,
    }


def _reasons(rows: Rows) -> dict[str, int]:
    if not rows.facts["n_rejected"]:
        return {}
    return dict(Counter(kind_of_reason(one.reason) for one in rows.all_rejected()).most_common())


def _distribution(values: NDArray[np.integer]) -> dict[str, Any]:
    """Sum, quantiles, and a histogram whose bins double in width: rows of 1, 2 to 3, 4 to 7, … tokens."""
    if not len(values):
        return {"total": 0, "quantiles": {}, "histogram": []}
    bins = np.floor(np.log2(np.maximum(values, 1))).astype(int)
    counts = np.bincount(bins)
    return {
        "total": int(values.sum()),
        "mean": round(float(values.mean()), 1),
        "quantiles": {f"{level:g}": round(float(np.quantile(values, level)), 1) for level in LEVELS},
        "histogram": [
            {"from": 2**power, "below": 2 ** (power + 1), "rows": int(count)}
            for power, count in enumerate(counts)
            if counts[: power + 1].any()
        ],
    }


# --- targets ------------------------------------------------------------------------------------------------


def _target(target: Target) -> dict[str, Any]:
    queries = target.queries
    texts = Counter(record_json(record) for record in queries.records)
    lengths = np.array([example.n_tokens for example in queries.examples])
    return {
        "target": queries.target,
        "queries": len(queries.records),
        "groups": dict(Counter(queries.groups)),
        "duplicates": sum(count - 1 for count in texts.values()),
        "cut": target.n_truncated,
        "unusable": len(target.rejected),
        "tokens": _distribution(lengths) if len(lengths) else None,
    }


def _contamination(plan: Plan) -> dict[str, Any]:
    """Rows of some shards, evenly over the pool, that share a passage with a query or a held-out item."""
    passages, rows = plan.overlaps.judged.passages, plan.records.rows
    looked_at = sharing = 0
    examples: list[dict[str, str]] = []
    for shard in sorted({round(place) for place in np.linspace(0, rows.n_shards - 1, CONTAMINATION_SHARDS)}):
        for block, hashed in hashed_blocks(rows.records(shard)):
            shared = passages.shared(hashed)
            found = np.flatnonzero(shared >= 0).tolist()
            looked_at, sharing = looked_at + len(block), sharing + len(found)
            examples += [{"id": block[index].id, "item": passages.names[shared[index]]} for index in found]
    return {
        "rows_looked_at": looked_at,
        "rows_that_share_a_passage": sharing,
        "items": len(passages.names),
        "items_too_short": passages.n_short,
        "items_unread_of": plan.overlaps.judged.unread,
        "examples": examples[:SHOWN_SHARED],
    }


# --- one example, as the model sees it ------------------------------------------------------------------------


def _example(tokens: Tokenise) -> dict[str, Any]:
    """A row of middle length, and how many of a sample end their last answer with a token that ends the turn."""
    rows, tokenizer = tokens.rows, tokens.tokenizer
    table = rows.columns(["row", "n_tokens", "n_cut"])
    numbers, lengths = table["row"].to_numpy(), table["n_tokens"].to_numpy()
    whole = np.flatnonzero(table["n_cut"].to_numpy() == 0)
    if not len(whole):
        whole = np.arange(len(numbers))
    places = whole[stratified(lengths[whole], min(LOOKED_AT, len(whole)))]
    examples = rows.select(numbers[places].tolist())
    special = set(tokenizer.all_special_ids)
    ends = [bool(special & set(one.input_ids[one.supervised][-ENDING:].tolist())) for one in examples]
    shown = int(np.argsort([one.n_tokens for one in examples], kind="stable")[len(examples) // 2])
    one = examples[shown]
    return {
        "id": one.id,
        "row": int(numbers[places[shown]]),
        "tokens": one.n_tokens,
        "supervised_tokens": one.n_supervised,
        "segments": segments(one.input_ids, one.supervised, tokenizer),
        "ends_turn": ends[shown],
        "rows_that_end_the_turn": sum(ends),
        "rows_looked_at": len(ends),
    }


def segments(ids: NDArray[np.integer], supervised: NDArray[np.bool_], tokenizer: Any) -> list[dict[str, Any]]:
    """The text of tokens (t,) in runs that are supervised or are not, in order."""
    edges = np.flatnonzero(np.diff(supervised.astype(np.int8))) + 1
    return [
        {
            "supervised": bool(supervised[part[0]]),
            "text": tokenizer.decode(ids[part].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False),
        }
        for part in np.split(np.arange(len(ids)), edges)
        if len(part)
    ]


# --- disk and memory ------------------------------------------------------------------------------------------


def _disk(plan: Plan, config: RunConfig, checkpoint_bytes: int | None, room: DeviceRoom) -> dict[str, Any]:
    """Bytes that the run still writes, as far as they are known, and those that are free; features go to an object
    store where there is one."""
    features, unknown = feature_bytes(plan)
    sketches = sum(one["pool_bytes"] for one in room.sketches)
    warmup = plan.warmup
    checkpoints = 0
    if isinstance(warmup, WarmUp) and not warmup.artifact.is_complete and checkpoint_bytes is not None:
        checkpoints = checkpoint_bytes * warmup.epochs[-1]
    return {
        "free_bytes": shutil.disk_usage(_there(config.output)).free,
        "features_bytes": features + sketches,
        "sketches_unknown": unknown and not sketches,
        "shards": config.shards,
        "checkpoints_bytes": checkpoints,
        "bases_bytes_at_most": room.basis_bytes,
        "curvature_bytes": room.curvature_bytes,
    }


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return next(one for one in (folder, *folder.resolve().parents) if one.exists())


def _memory(config: RunConfig) -> dict[str, Any]:
    """Bytes of this machine and its first device, of the model's weights, and of what this process took so far."""
    torch: Any = sys.modules.get("torch")
    device: dict[str, int] = {}
    if torch is not None and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        device = {"free_bytes": free, "total_bytes": total, "peak_bytes": torch.cuda.max_memory_reserved()}
    return {
        "host_total_bytes": _host("MemTotal"),
        "host_available_bytes": _host("MemAvailable"),
        "peak_bytes": peak_memory_bytes(),
        "model_bytes": _weights(config),
        "device": device or None,
    }


def _weights(config: RunConfig) -> int | None:
    """Bytes of the weight files of a local model; unknown for a hub id."""
    if config.model is None:
        return None
    return sum(path.stat().st_size for path in Path(config.model).glob("*.safetensors")) or None


def _host(field: str) -> int | None:
    """A line of /proc/meminfo in bytes; None where there is no such file."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)
