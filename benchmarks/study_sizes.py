"""How large each size of the study is: targets, methods, budgets, items, and for which machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study_setup import DEMO, REAL, SHORT

POINTS = ("gist", "less", "rds")
"""Representations whose rows are points, which some selectors need."""
SEVERAL = {"global_batch_size": 32, "device_batch_size": 32, "epochs": 4}


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size."""

    heldout: Mapping[str, int]
    """Targets, and of each the most held-out items in a group: MMLU has 57 groups, BBH 27, xqa 5, the others 1."""
    methods: Sequence[str]
    options: Mapping[str, Any]
    pool_rows: int | None = None
    """Rows of the pool, a seeded part; None for all."""
    demo: bool = False
    """The embedded model instead of SmolLM2."""

    @property
    def orders(self) -> list[tuple[list[str], list[str]]]:
        """Methods, and selectors that go with them."""
        selectors = list(self.options.get("selectors", ()))
        pointless = [one for one in selectors if one in ("top_k", "round_robin")]
        if len(pointless) == len(selectors):
            return [(list(self.methods), selectors)]
        points = [one for one in self.methods if one.partition(":")[0] in POINTS]
        return [(list(self.methods), pointless), (points, [one for one in selectors if one not in pointless])]


SEEDS = {"train_seeds": [0, 1, 2]}
SELECTORS = {"selectors": ["top_k", "round_robin", "round_robin:turns=queries", "gip"], "budgets": ["1%", "5%"]}
DRAWN = {"baselines": ["random", "length", "bm25"]}
SIZES: dict[str, Size] = {
    "demo": Size(
        heldout={"gsm8k": 50, "mmlu": 2, "bbh": 2},
        methods=(
            *("gist", "less:nonzeros=8", "less_adam:nonzeros=8", "ekfac", "rds", "loss_drop", "perplexity"),
            *("embedding", "bm25", "dsir", "length"),
        ),
        options={**DEMO, **DRAWN, **SEEDS, "budgets": [64], "max_queries": 100},
        demo=True,
    ),
    "small": Size(
        heldout={"gsm8k": 60},
        methods=("gist", "less:nonzeros=8", "ekfac:rows=128", "loss_drop", "rds", "bm25"),
        options={**REAL, **DRAWN, **SEEDS, "budgets": [64], "max_queries": 60},
        pool_rows=600,
    ),
    "choices": Size(
        heldout={"gsm8k": 40, "pubmedqa": 40, "law": 40},
        methods=("gist", "less:nonzeros=8", "rds", "bm25"),
        options={**DEMO, **DRAWN, **SEEDS, **SELECTORS, "max_queries": 60},
        pool_rows=1500,
        demo=True,
    ),
    "cpu": Size(
        heldout={"gsm8k": 60, "mmlu": 1, "bbh": 2, "xqa": 12, "pubmedqa": 60, "code": 60, "law": 60},
        methods=("gist", "less:nonzeros=8", "ekfac", "loss_drop", "rds", "bm25", "dsir"),
        options={**REAL, **DRAWN, **SEEDS, **SELECTORS, "max_queries": 60, "max_length": 2048},
        pool_rows=5000,
    ),
    "full": Size(
        heldout={"gsm8k": 200, "mmlu": 4, "bbh": 8, "xqa": 40, "pubmedqa": 100, "code": 100, "law": 100},
        methods=("gist", "less", "ekfac", "loss_drop", "rds", "bm25", "dsir"),
        options={
            **REAL,
            **SEEDS,
            **SELECTORS,
            "baselines": ["random", "length", "bm25", "full"],
            "max_length": 2048,
            "warmup": {**SHORT, **SEVERAL},
            "warmup_share": 0.05,
            "finetune": {**SHORT, **SEVERAL},
            "dtype": "auto",
        },
    ),
}
