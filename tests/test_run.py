"""The whole run against a dense NumPy version of the method, its output contract, resuming, and bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.testing import assert_allclose
from peft import PeftModel
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from gistselect.errors import ConfigError, DataError, GistSelectError
from gistselect.model.sketch import SketchedEngine
from gistselect.run import features as features_stage
from gistselect.run import ingest as ingest_stage
from gistselect.run.config import RunConfig
from gistselect.run.context import Run
from gistselect.run.pipeline import execute
from gistselect.run.progress import Reporter, SilentReporter, Step

CONTRACT = {
    "selected.jsonl",
    "selection.parquet",
    "scores.parquet",
    "quarantine.jsonl",
    "subspace.safetensors",
    "subspace.json",
    "spectrum.svg",
    "run.yaml",
    "manifest.json",
}
WARMUP = {"epochs": 2, "learning_rate": 1e-2, "global_batch_size": 4, "adapter": {"rank": 4, "alpha": 8}}


def row(question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    """50 usable rows and two that are not, with a blank line, mixed key order and other scripts."""
    rng = np.random.default_rng(3)
    lines = []
    for index in range(50):
        a, b = rng.integers(1, 99, size=2)
        answer = [f"The answer is {a + b}.", "größer · 大きい", f"No, it is {b} " * int(rng.integers(1, 9))][index % 3]
        lines.append(json.dumps(row(f"What is {a} and {b}?", answer, id=f"row-{index}", dataset=f"set{index % 3}")))
    lines[7] = lines[7].replace('", "', '",   "')
    lines.insert(20, "")
    lines.insert(30, '{"messages": [')
    lines.insert(31, json.dumps(row("Nothing?", "", id="empty")))
    path = tmp_path / "pool.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def target_file(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    rows = [row(f"What is {i} and 3?", f"The answer is {i + 3}.", group="ab"[i % 2]) for i in range(6)]
    rows += [row("Which is more?", "大きい", group="c")]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


@pytest.fixture
def config(tiny_model: Path, pool_file: Path, target_file: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model),
        "pool": (str(pool_file),),
        "target": (str(target_file),),
        "budget": 10,
        "output": tmp_path / "run",
        "warmup": WARMUP,
        "warmup_share": 0.3,
        "device": "cpu",
    }


def run(values: dict[str, Any], reporter: Reporter | None = None, **changes: Any) -> Run:
    """Execute a run with these options and give it back."""
    done = Run(RunConfig.from_values({**values, **changes}), reporter or SilentReporter())
    execute(done)
    return done


class RecordingReporter(SilentReporter):
    """Keeps what was done of each step, by its name, and the last step itself."""

    def __init__(self) -> None:
        super().__init__()
        self.steps_done: dict[str, list[int]] = {}
        self.last: dict[str, Step] = {}

    @contextmanager
    def step(self, name: str, total: int | None, unit: str) -> Iterator[Step]:
        done = self.steps_done.setdefault(name, [])
        with super().step(name, total, unit) as step:
            advance = step.advance
            step.advance = lambda amount: (advance(amount), done.append(step.done))[0]
            self.last[name] = step
            yield step


def contents(folder: Path) -> dict[str, bytes]:
    """The contract's files but for the manifest, which holds times."""
    return {name: (folder / name).read_bytes() for name in CONTRACT - {"manifest.json", "run.yaml"}}


def adapter_of(folder: Path) -> Path:
    return next(folder.glob("artifacts/warmup-*/training/checkpoint-*"))


def dense_gradients(model_folder: str, adapter: Path, conversations: list[tuple[str, str]]) -> np.ndarray:
    """(n, p) adapter gradients in float64, one example and one `backward()` at a time."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64)
    model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True).double().eval()
    parameters = [value for name, value in model.named_parameters() if "lora_" in name]
    gradients = []
    for question, answer in conversations:
        text = f"<|user|>\n{question}\n<|assistant|>\n{answer.strip()}</s>\n"
        start = text.index("<|assistant|>\n") + len("<|assistant|>\n")
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor([encoded["input_ids"]])
        labels = ids.clone()
        labels[0, [begin < start for begin, _ in encoded["offset_mapping"]]] = -100
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        gradients.append(torch.cat([value.grad.flatten() for value in parameters]).numpy())
    return np.stack(gradients)


def turns(path: Path) -> list[dict[str, Any]]:
    """The usable rows of a file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue
        if one["messages"][1]["content"]:
            rows.append(one)
    return rows


def dense_gist(G: np.ndarray, groups: list[str], pool: np.ndarray, share: float = 0.95) -> np.ndarray:
    """Scores (n_pool, n_group) of METHOD section 2, with a dense SVD."""
    _, s, vt = np.linalg.svd(G, full_matrices=False)
    r = int(np.argmax(np.cumsum(s**2) / (s**2).sum() >= share)) + 1
    f, q = pool @ vt[:r].T, G @ vt[:r].T
    names = list(dict.fromkeys(groups))
    t = np.stack([q[[g == name for g in groups]].mean(0) for name in names])
    return (f @ t.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(t, axis=1)


def test_scores_and_selection_equal_the_dense_method(
    config: dict[str, Any], pool_file: Path, target_file: Path
) -> None:
    output = run(config).output
    pool, queries = turns(pool_file), turns(target_file)

    def gradients(rows: list[dict[str, Any]]) -> np.ndarray:
        pairs = [(one["messages"][0]["content"], one["messages"][1]["content"]) for one in rows]
        return dense_gradients(config["model"], adapter_of(output), pairs)

    pool_gradients = gradients(pool)
    expected = dense_gist(gradients(queries), [one["group"] for one in queries], pool_gradients)
    table = pq.read_table(output / "scores.parquet").to_pydict()
    assert table["id"] == [one["id"] for one in pool]
    for index, group in enumerate("abc"):
        assert_allclose(table[f"score/sums/{group}"], expected[:, index], atol=2e-4)
    assert_allclose(table["gradient_norm"], np.linalg.norm(pool_gradients, axis=1), rtol=1e-4)
    order = np.argsort(-expected.max(axis=1), kind="stable")[:10]
    assert pq.read_table(output / "selection.parquet")["id"].to_pylist() == [pool[i]["id"] for i in order]
    assert table["best_target"] == [f"sums/{'abc'[i]}" for i in expected.argmax(axis=1)]


def test_output_contract(config: dict[str, Any], pool_file: Path) -> None:
    output = run(config).output
    assert {path.name for path in output.iterdir()} == CONTRACT | {"artifacts"}
    selection = pq.read_table(output / "selection.parquet")
    assert selection.column_names == [
        "rank",
        "id",
        "source",
        "row",
        "score",
        "best_target",
        "captured_energy",
    ]
    assert selection["rank"].to_pylist() == list(range(1, 11))
    lines = pool_file.read_bytes().split(b"\n")
    by_id = {json.loads(line)["id"]: line for line in lines if b"row-" in line}
    assert (output / "selected.jsonl").read_bytes().splitlines() == [by_id[one] for one in selection["id"].to_pylist()]
    quarantine = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    assert [one["row"] for one in quarantine] == [29, 30]
    assert all(set(one) == {"id", "source", "row", "reason"} and one["reason"] for one in quarantine)
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["scored"], manifest["quarantined"], manifest["pool"]["n_rows"]) == (50, 2, 52)
    energy = pq.read_table(output / "scores.parquet")["captured_energy"].to_numpy()
    assert ((energy > 0) & (energy <= 1 + 1e-5)).all()


def test_run_yaml_replays_the_run(config: dict[str, Any], tmp_path: Path) -> None:
    first = run(config).output
    replayed = RunConfig.from_yaml(first / "run.yaml").model_copy(update={"output": tmp_path / "again"})
    execute(Run(replayed, SilentReporter()))
    assert contents(tmp_path / "again") == contents(first)


@pytest.mark.parametrize("stop_at", [0, 2, 3])
def test_interrupted_pool_pass_continues_to_identical_files(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 12)
    whole = run(config, output=tmp_path / "whole").output
    original, written = features_stage.write_table, 0

    def interrupt(path: Path, table: Any) -> None:
        nonlocal written
        if written == stop_at:
            raise KeyboardInterrupt
        written += 1
        original(path, table)

    with monkeypatch.context() as patch:
        patch.setattr(features_stage, "write_table", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    calls = []
    monkeypatch.setattr(features_stage, "write_table", lambda path, table: (calls.append(path), original(path, table)))
    assert contents(run(config).output) == contents(whole)
    assert len(calls) == 5 - stop_at


def test_gradient_passes_report_every_batch_and_count_what_was_found_done_apart(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 12)
    reporter = RecordingReporter()
    first = run(config, reporter, engine={"batch_tokens": 64})
    pool = reporter.last["pool gradients"]
    assert pool.done == pool.total
    assert pool.found_done == 0
    assert len(reporter.steps_done["pool gradients"]) > 5
    for name in ("query gradients", "basis"):
        assert len(reporter.steps_done[name]) > 1
        assert reporter.last[name].done == reporter.last[name].total

    shards = sorted(first.output.glob("artifacts/features-*/*.parquet"))
    shards[-1].unlink()
    next(first.output.glob("artifacts/features-*/complete.json")).unlink()
    again = RecordingReporter()
    run(config, again, engine={"batch_tokens": 64})
    pool = again.last["pool gradients"]
    assert pool.done == pool.total
    assert 0.5 * pool.total < pool.found_done < pool.total
    assert "query gradients" not in again.last


def test_number_of_shards_does_not_matter(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pq.read_table(run(config, output=tmp_path / "one").output / "scores.parquet")
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 7)
    many = pq.read_table(run(config, output=tmp_path / "many").output / "scores.parquet")
    assert one["id"] == many["id"]
    assert_allclose(one["score"], many["score"], atol=1e-5)


def test_what_changes_is_all_that_is_computed(
    config: dict[str, Any], target_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(config).output
    passes: list[list[str]] = []
    original = features_stage._pool_pass

    def counted(run: Run, pool: Any, pending: list[Any], engine: Any) -> None:
        passes.append([one.task for one in pending])
        original(run, pool, pending, engine)

    monkeypatch.setattr(features_stage, "_pool_pass", counted)
    before = pq.read_table(first / "scores.parquet")
    run(config, budget="40%")
    second = target_file.with_name("words.jsonl")
    second.write_text(json.dumps(row("Which is more?", "größer")) + "\n", encoding="utf-8")
    run(config, target=(str(target_file), str(second)))
    assert passes == [[], ["words"]]
    after = pq.read_table(first / "scores.parquet")
    assert after["score/sums/a"] == before["score/sums/a"]
    assert "score/words" in after.column_names


def test_several_checkpoints_add_their_weighted_scores(config: dict[str, Any], tmp_path: Path) -> None:
    base = run(config, warmup_checkpoints=(1, 2)).output
    adapters = sorted(base.glob("artifacts/warmup-*/training/checkpoint-*"), key=lambda path: int(path.name[11:]))
    singles = [
        pq.read_table(run(config, adapter=one, output=tmp_path / one.name).output / "scores.parquet")["score/sums/a"]
        for one in adapters
    ]
    both = run(config, checkpoints=tuple(adapters), checkpoint_weights=(3.0, 1.0), output=tmp_path / "both").output
    total = pq.read_table(both / "scores.parquet")["score/sums/a"].to_numpy()
    assert_allclose(total, 0.75 * singles[0].to_numpy() + 0.25 * singles[1].to_numpy(), atol=1e-6)


def test_energy_weighting_is_the_cosine_with_the_full_gradient(config: dict[str, Any], tmp_path: Path) -> None:
    plain = pq.read_table(run(config).output / "scores.parquet")
    weighted = pq.read_table(run(config, energy_weighting=True).output / "scores.parquet")
    scale = np.sqrt(plain["captured_energy"].to_numpy())
    assert_allclose(weighted["score/sums/b"], plain["score/sums/b"].to_numpy() * scale, atol=1e-6)


def test_a_wide_sketch_is_exact_and_a_narrow_one_reports_its_agreement(config: dict[str, Any], tmp_path: Path) -> None:
    exact = pq.read_table(run(config).output / "scores.parquet")["score"].to_numpy()
    wide = run(config, sketch=64, output=tmp_path / "wide").output
    assert_allclose(pq.read_table(wide / "scores.parquet")["score"], exact, atol=1e-4)
    agreement = {}
    for width in (4, 24):
        output = run(config, sketch=width, output=tmp_path / f"{width}").output
        scores = pq.read_table(output / "scores.parquet")["score"].to_numpy()
        agreement[width] = json.loads((output / "subspace.json").read_text())["sums"]["checkpoints"][0][
            "sketch_agreement"
        ]
        assert agreement[width]["rows"] == 50
        assert agreement[width]["spearman"] == pytest.approx(spearmanr(scores, exact).statistic, abs=1e-3)
    assert agreement[4]["spearman"] < agreement[24]["spearman"] > 0.8


def test_a_kept_sketch_serves_a_new_target_without_a_pass_over_the_pool(
    config: dict[str, Any], target_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = target_file.with_name("words.jsonl")
    second.write_text(json.dumps(row("Which is more?", "größer")) + "\n", encoding="utf-8")
    fresh = run(config, sketch=8, target=(str(second),), output=tmp_path / "fresh").output
    run(config, sketch=8, keep_sketch=True)
    seen: list[int] = []
    original = SketchedEngine.sketches
    monkeypatch.setattr(
        SketchedEngine, "sketches", lambda self, examples: (seen.append(len(examples)), original(self, examples))[1]
    )
    later = run(config, sketch=8, keep_sketch=True, target=(str(second),)).output
    assert set(seen) == {1}
    first, again = (pq.read_table(folder / "scores.parquet")["score"] for folder in (fresh, later))
    assert_allclose(first, again, atol=1e-5)


def test_normalised_output(config: dict[str, Any]) -> None:
    output = run(config, output_format="messages").output
    rows = [json.loads(line) for line in (output / "selected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one["id"] for one in rows] == pq.read_table(output / "selection.parquet")["id"].to_pylist()
    assert all(set(one) == {"id", "dataset", "messages"} for one in rows)


def test_a_nan_gradient_is_quarantined_and_never_ranked(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = features_stage.features_table

    def poisoned(examples: Any, result: Any) -> Any:
        result.features[4] = np.nan
        result.gradient_norm[9] = 0.0
        return original(examples, result)

    monkeypatch.setattr(features_stage, "features_table", poisoned)
    output = run(config, budget=48).output
    scored = pq.read_table(output / "scores.parquet")["id"].to_pylist()
    quarantined = [json.loads(line)["id"] for line in (output / "quarantine.jsonl").read_text().splitlines()]
    assert not {"row-4", "row-9"} & set(scored)
    assert {"row-4", "row-9"} <= set(quarantined)
    with pytest.raises(DataError, match="--strict"):
        run(config, strict=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 51}, "at most 50"),
        ({"budget": "lots"}, "not understood"),
        ({"target": ("gsm9k",)}, "gsm8k"),
        ({"pool": ("nowhere.jsonl",)}, "nowhere.jsonl"),
        ({"strict": True}, "row 29"),
        ({"max_length": 3}, "max"),
        ({"model": "no/such/folder/here"}, "no/such/folder/here"),
        ({"warmup": {**WARMUP, "global_batch_size": 64}}, "taught the adapter nothing"),
    ],
)
def test_bad_input_names_what_and_the_remedy(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GistSelectError, match=message):
        run(config, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranc": 3}, "did you mean 'rank'"),
        ({"adapter": "a", "checkpoints": ("b",)}, "not both"),
        ({"checkpoint_weights": (1.0, 2.0)}, "2 checkpoint_weights for 1 checkpoints"),
        ({"warmup_checkpoints": (9,)}, "epochs 1 to 2"),
        ({"template": 3}, "template"),
        ({"keep_sketch": True}, "--sketch 32"),
    ],
)
def test_bad_options_fail_at_once(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_values({**config, **changes})


def test_empty_pool(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        run(config, pool=(str(tmp_path / "empty.jsonl"),))
