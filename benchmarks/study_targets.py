"""Targets that are no built-in task: files of queries and of held-out items, made from rows that no pool then has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gistselect.files import write_json_lines
from gistselect.tasks.tydiqa import PHRASES
from study_setup import pool_lines, write_lines

SOURCES = {
    "gsm8k": ("cot_gsm8k", "mawps", "svamp", "asdiv", "cot_aqua"),
    "mmlu": ("agieval_en", "cot_qasc", "logiqa2"),
    "bbh": ("cot_strategyqa", "cot_sensemaking", "logiqa2", "cot_creak"),
    "xqa": ("xquad", "arcd_ar", "facqa_id", "afriqa_passage"),
    "pubmedqa": ("pubmedqa",),
    "code": ("gpteacher_code", "code_alpaca_2k"),
    "law": ("jec_qa_zh",),
}
"""Sources that anybody would take for each target, by name."""
OF_POOL = ("pubmedqa", "code", "law")
"""Targets whose queries and items are rows of the pool's own sources."""
OWN = (*OF_POOL, "xqa")
QUERIES, HELDOUT = 60, 100
PASSAGE = 600
"""Characters of the longest passage of xqa: in some scripts of a small vocabulary each is several tokens."""


class OwnTargets:
    """The files of targets of one's own, and the rows that the pool must do without."""

    def __init__(self, data: Path, folder: Path, seed: int) -> None:
        self.folder = folder
        self.apart: set[bytes] = set()
        """Lines of the pool that are queries or held-out items."""
        lines: dict[str, list[bytes]] = {name: [] for name in OF_POOL}
        for source, line in pool_lines(data / "train" / "processed"):
            for name in OF_POOL:
                if source in SOURCES[name]:
                    lines[name].append(line)
        for name, own in lines.items():
            drawn = np.random.default_rng([seed, len(own)]).permutation(len(own))[: QUERIES + HELDOUT]
            chosen = [own[row] for row in drawn]
            self.apart |= set(chosen)
            write_lines(self.queries(name), chosen[:QUERIES])
            write_lines(self.heldout(name), chosen[QUERIES:])
        self._xqa(data, seed)

    def queries(self, name: str) -> Path:
        """File of a target's queries."""
        return self.folder / f"{name}.queries.jsonl"

    def heldout(self, name: str) -> Path:
        """File of its held-out items."""
        return self.folder / f"{name}.heldout.jsonl"

    def options(self, names: Sequence[str]) -> dict[str, Any]:
        """--target and --heldout for these targets, built-in or own."""
        own = [name for name in names if name in OWN]
        return {
            "target": [str(self.queries(name)) if name in own else name for name in names],
            "heldout": [str(self.heldout(name)) for name in own],
        }

    def _xqa(self, data: Path, seed: int) -> None:
        """eval/xqa_proxy: questions about passages in five languages, each a group; no passage is in both files."""
        articles = json.loads((data / "eval" / "xqa_proxy" / "xqa-proxy.json").read_text(encoding="utf-8"))["data"]
        passages: dict[str, dict[str, Any]] = {}
        for article in articles:
            for passage in (one for one in article["paragraphs"] if len(one["context"]) <= PASSAGE):
                passages.setdefault(passage["context"], passage["qas"][0])
        rows: dict[str, list[dict[str, Any]]] = {"queries": [], "heldout": []}
        taken: Counter[str] = Counter()
        every = list(passages.items())
        for row in np.random.default_rng([seed, len(every)]).permutation(len(every)).tolist():
            context, question = every[row]
            language = question["id"].partition("-")[0]
            instruction, passage, asked, _ = PHRASES[language]
            text = f"{instruction}\n\n{passage} {context}\n{asked} {question['question']}"
            turns = [
                {"role": "user", "content": text},
                {"role": "assistant", "content": question["answers"][0]["text"]},
            ]
            use = "queries" if taken[language] < QUERIES // 5 else "heldout"
            taken[language] += 1
            rows[use].append({"id": question["id"], "group": language, "messages": turns})
        write_json_lines(self.queries("xqa"), rows["queries"])
        write_json_lines(self.heldout("xqa"), rows["heldout"])
