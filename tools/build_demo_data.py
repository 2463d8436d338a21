"""Build the demo data shipped with the package: a small instruction pool and two targets, LESS layout.

Every pool row is copied byte for byte from the full corpus and every choice is made by the order of a
SHA-256, so the same corpus gives the same folder on any machine. Only Apache-2.0 and MIT sources are read.

    python tools/build_demo_data.py --data <corpus folder> [--output src/gistselect/demo/data]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SEED = "gistselect-demo-1"
MAX_CHARACTERS = 1_300
GSM8K_TEST_ITEMS = 200
BBH_ITEMS_PER_TASK = 5
DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "src/gistselect/demo/data"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One corpus source: how many rows the demo pool takes from it, and under which terms."""

    rows: int
    licence: str
    origin: str
    mathematics: bool = False


FLAN = "google-research/FLAN, flan/v2/cot_data"
SOURCES: dict[str, Source] = {
    "cot_gsm8k": Source(rows=130, licence="Apache-2.0", origin=FLAN, mathematics=True),
    "cot_aqua": Source(rows=60, licence="Apache-2.0", origin=FLAN, mathematics=True),
    "mawps": Source(rows=45, licence="MIT", origin="arkilpatel/SVAMP, data/cv_mawps", mathematics=True),
    "svamp": Source(rows=45, licence="MIT", origin="arkilpatel/SVAMP, SVAMP.json", mathematics=True),
    "p3": Source(rows=450, licence="Apache-2.0", origin="yizhongw/self-instruct, data/finetuning/t0_train_50k"),
    "cot_creak": Source(rows=110, licence="Apache-2.0", origin=FLAN),
    "cot_ecqa": Source(rows=120, licence="Apache-2.0", origin=FLAN),
    "cot_qasc": Source(rows=70, licence="Apache-2.0", origin=FLAN),
    "cot_sensemaking": Source(rows=100, licence="Apache-2.0", origin=FLAN),
    "cot_strategyqa": Source(rows=90, licence="Apache-2.0", origin=FLAN),
    "alpaca_en": Source(rows=130, licence="Apache-2.0", origin="OpenDCAI/DataFlex, data/alpaca_en_demo.json"),
    "alpaca_zh": Source(rows=80, licence="Apache-2.0", origin="OpenDCAI/DataFlex, data/alpaca_zh_demo.json"),
    "gpteacher_code": Source(rows=110, licence="MIT", origin="teknium1/GPTeacher, Codegen"),
    "gpteacher_roleplay": Source(rows=110, licence="MIT", origin="teknium1/GPTeacher, Roleplay"),
    "gpteacher_toolformer": Source(rows=80, licence="MIT", origin="teknium1/GPTeacher, Toolformer"),
    "oasst1_sample": Source(rows=60, licence="Apache-2.0", origin="LAION-AI/Open-Assistant, en_100_tree.jsonl"),
    "pubmedqa": Source(rows=30, licence="MIT", origin="pubmedqa/pubmedqa, data/ori_pqal.json"),
    "facqa_id": Source(rows=80, licence="Apache-2.0", origin="IndoNLP/indonlu, dataset/facqa_qa-factoid-itb"),
    "arcd_ar": Source(rows=60, licence="MIT", origin="husseinmozannar/SOQAL, data/arcd-train.json"),
    "self_instruct_seed": Source(rows=40, licence="Apache-2.0", origin="yizhongw/self-instruct, data/seed_tasks.jsonl"),
}

MATHEMATICS_TASKS = frozenset({"sat-math", "gaokao-mathqa", "tool_wolfram"})
"""Mathematics inside sources that are not; neither the pool nor the demo model's training text has them."""


def is_mathematics(record: dict) -> bool:
    """Whether a row counts as mathematics: by its source or by its task, never by guessing from its words."""
    source = SOURCES.get(record["dataset"])
    return bool(source and source.mathematics) or record["task"] in MATHEMATICS_TASKS


def digest(text: str) -> str:
    """The key that every choice is ordered by."""
    return hashlib.sha256(f"{SEED}\n{text}".encode()).hexdigest()


def choose(items: Iterable[T], count: int, key: Callable[[T], str]) -> list[T]:
    """The `count` items that come first in SHA-256 order, returned in their original order."""
    items = list(items)
    order = sorted(range(len(items)), key=lambda i: digest(key(items[i])))
    if count > len(items):
        raise ValueError(f"asked for {count} of {len(items)} items; lower the count or widen the filter.")
    return [items[i] for i in sorted(order[:count])]


def is_usable(record: dict, source: Source) -> bool:
    """Short enough for a quick demo, and mathematics only where the whole source is."""
    characters = sum(len(message["content"]) for message in record["messages"])
    return characters < MAX_CHARACTERS and (source.mathematics or not is_mathematics(record))


def read_lines(path: Path) -> list[str]:
    """Lines with their line ends, split at newlines only (a record may hold U+2028)."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return list(file)


def choose_pool_lines(path: Path, source: Source) -> list[str]:
    """Lines of one source, one per first user message, so that threads of one tree do not repeat it."""
    first_line_of: dict[str, str] = {}
    for line in read_lines(path):
        record = json.loads(line)
        if is_usable(record, source):
            first_line_of.setdefault(record["messages"][0]["content"].strip(), line)
    return choose(first_line_of.values(), source.rows, key=lambda line: json.loads(line)["id"])


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def build_pool(data: Path, output: Path) -> dict[str, list[str]]:
    """Write `train/processed/<source>/<source>_data.jsonl`; returns the lines by source."""
    lines_of: dict[str, list[str]] = {}
    for name, source in SOURCES.items():
        relative = Path("train/processed") / name / f"{name}_data.jsonl"
        lines_of[name] = choose_pool_lines(data / relative, source)
        write_text(output / relative, "".join(lines_of[name]))
    return lines_of


def build_gsm8k(data: Path, output: Path) -> None:
    folder = Path("eval/gsm8k")
    write_text(output / folder / "target.jsonl", "".join(read_lines(data / folder / "target.jsonl")))
    items = choose(
        read_lines(data / folder / "test.jsonl"),
        GSM8K_TEST_ITEMS,
        key=lambda line: json.loads(line)["question"],
    )
    write_text(output / folder / "test.jsonl", "".join(items))


def build_bbh(data: Path, output: Path) -> None:
    """Three-shot prompts unchanged; per task a few test items in the layout of the original files."""
    folder = Path("eval/bbh")
    (output / folder).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(data / folder / "bbh-three-shot.json", output / folder / "bbh-three-shot.json")
    for path in sorted((data / folder / "bbh").glob("*.json")):
        task = json.loads(path.read_text(encoding="utf-8"))
        task["examples"] = choose(task["examples"], BBH_ITEMS_PER_TASK, key=lambda item: item["input"])
        write_text(output / folder / "bbh" / path.name, json.dumps(task))


def describe(lines_of: dict[str, list[str]], output: Path) -> str:
    """The README of the folder, with counts taken from what was written."""
    total = sum(map(len, lines_of.values()))
    mathematics = sum(len(lines_of[name]) for name, source in SOURCES.items() if source.mathematics)
    size = sum(len(line.encode()) for lines in lines_of.values() for line in lines)
    table = "\n".join(
        f"| {name} | {len(lines_of[name])} | {'yes' if source.mathematics else ''} "
        f"| {source.licence} | {source.origin} |"
        for name, source in SOURCES.items()
    )
    bbh_items = sum(
        len(json.loads(p.read_text(encoding="utf-8"))["examples"]) for p in (output / "eval/bbh/bbh").glob("*.json")
    )
    return README.format(
        total=total,
        n_sources=len(lines_of),
        mathematics=mathematics,
        share=mathematics / total,
        size=size / 1e6,
        max_characters=MAX_CHARACTERS,
        table=table,
        gsm8k_test=GSM8K_TEST_ITEMS,
        bbh_items=bbh_items,
        seed=SEED,
        per_task=BBH_ITEMS_PER_TASK,
    )


README = """\
# Demo data

A real, small instruction pool with two targets, in the LESS layout. The demo model beside this folder has
seen neither these rows nor any mathematics source, so a GSM8K target has something to find here.

- `train/processed/<source>/<source>_data.jsonl`: {total:,} rows from {n_sources} sources ({size:.2f} MB),
  every line byte-identical to the full corpus. {mathematics} rows ({share:.1%}) are mathematics.
- `eval/gsm8k/target.jsonl`: 100 questions of the GSM8K train split (not in the pool); `test.jsonl`:
  {gsm8k_test} of the 1,319 test questions. MIT, `openai/grade-school-math`. Too few to report as GSM8K.
- `eval/bbh/bbh-three-shot.json`: 27 tasks x 3 worked examples, unchanged; `eval/bbh/bbh/<task>.json`:
  {per_task} items a task ({bbh_items} in all). MIT, `suzgunmirac/BIG-Bench-Hard`. Three
  `logical_deduction_*` tasks share one prompt, and so do three `tracking_shuffled_objects_*` tasks: 69 of
  the 81 examples are distinct.

## Sources

| source | rows | mathematics | licence of the repository | from |
|---|---:|---|---|---|
{table}

Licences are those stated by the repositories. `p3` holds text of many public data sets under prompts from
P3/T0, each with its own upstream terms. `alpaca_*` and `gpteacher_*` were generated with OpenAI models, whose
terms apply upstream. `svamp` is a published test set: do not report SVAMP after training on this pool.

## How rows were chosen

- A row counts as *mathematics* when its whole source does (`cot_gsm8k`, `cot_aqua`, `mawps`, `svamp`). The
  tasks `sat-math`, `gaokao-mathqa` and `tool_wolfram` (for the most part calculations) count as mathematics
  too and are in neither the pool nor the demo model's training text. Words are not inspected, so a stray sum
  can occur in, say, `alpaca_en`.
- All messages of a row together have fewer than {max_characters:,} characters; one row per distinct first
  user message.
- Which rows: the smallest SHA-256 of `{seed}`, a newline and the row id (test items: the question).
  Rows keep the order of the corpus.

Rebuild with `python tools/build_demo_data.py --data <corpus folder>`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the full corpus in the LESS layout")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    arguments = parser.parse_args()
    if arguments.output.exists():
        shutil.rmtree(arguments.output)
    lines_of = build_pool(arguments.data, arguments.output)
    build_gsm8k(arguments.data, arguments.output)
    build_bbh(arguments.data, arguments.output)
    write_text(arguments.output / "README.md", describe(lines_of, arguments.output))
    print(f"{sum(map(len, lines_of.values()))} rows from {len(lines_of)} sources in {arguments.output}")


if __name__ == "__main__":
    main()
