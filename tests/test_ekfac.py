"""EK-FAC against dense matrices: assembled from the same factors by ordinary backward passes, and the exact Fisher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.numpy import load_file
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from dense_reference import dense_ekfac
from gistselect.errors import ArtifactMismatchError, DataError
from gistselect.linalg.curvature import BlockCurvature
from gistselect.model.curvature import FLOOR, Preconditioner, estimate_curvature
from gistselect.model.engine_config import EngineConfig
from gistselect.model.gradients import GradientEngine
from gistselect.representations.ekfac import EKFAC
from gistselect.representations.interface import Features, Fitted
from gistselect.types import Example
from reference_errors import assert_like_reference, note
from tiny_models import FAMILIES, VOCABULARY, examples, language_model, looped, reference
from tiny_runs import adapter_of, run

ROWS = examples((7, 21, 12, 5, 30, 9, 21, 14, 3, 26, 17, 8))


def solved(engine: GradientEngine, sample: list[Example], folder: Path, directions: NDArray[Any]) -> NDArray[Any]:
    """H⁻¹ q (p, k) of directions (p, k)."""
    folder.mkdir(exist_ok=True)
    facts = estimate_curvature(engine, sample, folder)
    solve = Preconditioner(folder, facts, directions.shape[1], 0.1)
    parts = np.split(directions, np.cumsum([block.size for block in engine.parameters])[:-1])
    found = [
        solve(block, torch.from_numpy(part).to(engine.dtype))
        for block, part in zip(engine.parameters, parts, strict=True)
    ]
    return torch.cat(found).double().numpy()


def blockwise(matrix_of: Any, engine: GradientEngine, directions: NDArray[Any]) -> NDArray[Any]:
    """(H_b + 0.1 mean(diag H_b))⁻¹ q_b of each block, by a dense solve."""
    found, start = [], 0
    for block in engine.parameters:
        place = slice(start, start + block.size)
        H = matrix_of(place)
        damped = H + 0.1 * np.trace(H) / len(H) * np.eye(len(H))
        found.append(np.linalg.solve(damped, directions[place]))
        start += block.size
    return np.concatenate(found)


def test_where_the_kronecker_form_is_exact_it_is_the_damped_inverse_of_the_fisher_matrix(tmp_path: Path) -> None:
    """Rows of one read token: activations are the same in all of them, and E[vec(δaᵀ)vec(δaᵀ)ᵀ] = E[δδᵀ] ⊗ aaᵀ."""
    adapted = language_model(FAMILIES["llama"], torch.float64)
    rows = [
        Example(id=f"label {label}", input_ids=np.array([7, label], dtype=np.int32), supervised=np.array([False, True]))
        for label in (3, 20, 41, 60, 95)
    ]
    _, gradients = looped(adapted, rows)
    engine = GradientEngine(adapted)
    directions = np.random.default_rng(0).standard_normal((gradients.shape[1], 3))
    directions[:, 0] = gradients[0]
    found = solved(engine, rows, tmp_path, directions)
    size = np.array([np.abs(gradients[:, place]).max() for place in _places(engine)])
    moved = [place for place, one in zip(_places(engine), size > 1e-12 * size.max(), strict=True) if one]
    expected = blockwise(lambda place: gradients[:, place].T @ gradients[:, place] / len(rows), engine, directions)
    # Queries and keys of a row of one token have no gradient but rounding, and so no curvature to divide by.
    assert len(moved) == len(engine.parameters) / 2
    for place in _places(engine):
        wanted = expected[place] if place in moved else 0 * expected[place]
        # The model's own loss is in float32, whatever its weights are.
        error, size_of = np.linalg.norm(found[place] - wanted, axis=0), np.linalg.norm(wanted, axis=0)
        assert (error <= 1e-4 * size_of).all()
        if place in moved:
            note("EK-FAC's directions", "dense Fisher matrix where it is exact", float((error / size_of).max()))


def _places(engine: GradientEngine) -> list[slice]:
    ends = np.cumsum([block.size for block in engine.parameters]).tolist()
    return [slice(end - block.size, end) for end, block in zip(ends, engine.parameters, strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {"packing": "padded", "batch_tokens": 70},
        {"packing": "single"},
        {"packing": "packed", "batch_tokens": 40},
        {"gradient_memory_gb": 1e-5},
    ],
)
def test_layout_batches_and_memory_do_not_matter(tmp_path: Path, options: dict[str, Any]) -> None:
    adapted, _, gradients = reference("llama")
    directions = gradients[:2].T.copy()
    expected = solved(GradientEngine(adapted), ROWS, tmp_path / "one", directions)
    found = solved(GradientEngine(adapted, EngineConfig(**options)), ROWS[::-1], tmp_path / "other", directions)
    error = np.linalg.norm(found - expected, axis=0) / np.linalg.norm(expected, axis=0)
    assert error.max() < 1e-3
    if "gradient_memory_gb" in options:
        assert len(list((tmp_path / "other").glob("part-*"))) > 1


def test_a_broken_row_is_left_out_of_the_curvature(tmp_path: Path) -> None:
    adapted = language_model(FAMILIES["llama"])
    adapted.model.get_input_embeddings().weight.data[VOCABULARY - 1] = float("nan")
    rows = [
        Example(id=one.id, input_ids=np.minimum(one.input_ids, VOCABULARY - 2), supervised=one.supervised)
        for one in ROWS
    ]
    broken = Example(id="broken", input_ids=rows[0].input_ids * 0 + VOCABULARY - 1, supervised=rows[0].supervised)
    engine = GradientEngine(adapted)
    directions = engine.gradients(rows[:2]).T.astype(np.float64)
    assert_allclose(
        solved(engine, [*rows, broken], tmp_path / "with", directions),
        solved(engine, rows, tmp_path / "without", directions),
        rtol=1e-3,
        atol=1e-5 * np.abs(directions).max(),
    )
    with pytest.raises(DataError, match="no row of the pool's sample"):
        estimate_curvature(engine, [broken], tmp_path)


def test_a_fresh_adapter_and_blocks_without_curvature_give_numbers(tmp_path: Path) -> None:
    adapted = language_model(FAMILIES["llama"])
    for name, parameter in adapted.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    engine = GradientEngine(adapted)
    found = solved(engine, ROWS, tmp_path, engine.gradients(ROWS[:2]).T.astype(np.float64))
    assert np.isfinite(found).all()
    assert found.any()
    for place, block in zip(_places(engine), engine.parameters, strict=True):
        assert bool(found[place].any()) == ("lora_B" in block.name)


def test_curvature_of_another_adapter_is_refused(tmp_path: Path) -> None:
    engine = GradientEngine(reference("llama")[0])
    facts = estimate_curvature(engine, ROWS[:3], tmp_path)
    other = engine.parameters[0]._replace(name="another")
    with pytest.raises(ArtifactMismatchError, match="another"):
        Preconditioner(tmp_path, facts, 1, 0.1)(other, torch.zeros(other.size, 1))
    with pytest.raises(ArtifactMismatchError, match="holds no curvature"):
        Preconditioner(tmp_path / "nothing", facts, 1, 0.1)


def assert_inverts_its_own_gradients(engine: GradientEngine, rows: list[Example], folder: Path) -> None:
    """H⁻¹ q of the engine equals a dense damped inverse made of the gradients that the same engine gives."""
    gradients = engine.gradients(rows).astype(np.float64)
    found = solved(engine, rows, folder, gradients[:2].T.copy())
    squares = [np.square(gradients[:, place]).mean() for place in _places(engine)]
    stored = {name: value for path in folder.glob("part-*") for name, value in load_file(path).items()}
    moved = [square > FLOOR * max(squares) for square in squares]
    assert sum(moved) > len(moved) / 2
    for place, block, moves in zip(_places(engine), engine.parameters, moved, strict=True):
        if not moves:  # but for rounding
            assert not found[place].any()
            continue
        U, W = (stored[f"{block.name}/{side}"].astype(np.float64) for side in ("left", "right"))
        for side in (U, W):
            assert_allclose(side.T @ side, np.eye(len(side)), atol=1e-5)
        of_block = gradients[:, place].reshape(-1, *block.shape)
        for query in range(2):
            expected = dense_ekfac(of_block, U, W, gradients[query, place])
            error = np.linalg.norm(found[place, query] - expected) / np.linalg.norm(expected)
            assert error < 1e-3


def test_a_bfloat16_model_has_its_curvature_in_float32(tmp_path: Path) -> None:
    engine = GradientEngine(language_model(FAMILIES["llama"], torch.bfloat16))
    assert engine.dtype == torch.float32
    assert_inverts_its_own_gradients(engine, ROWS, tmp_path)


def test_scores_of_a_bfloat16_model_are_those_of_the_same_weights_in_float32(config: dict[str, Any]) -> None:
    """As far as gradients in bfloat16 are; the order of the rows stays."""
    values = {**config, "representation": ("ekfac",)}
    adapter = adapter_of(run(values, until="warmup"))
    rounded = config["output"].with_name("rounded")
    AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.bfloat16).save_pretrained(rounded)
    AutoTokenizer.from_pretrained(config["model"]).save_pretrained(rounded)
    tables = [
        pq.read_table(
            run(
                {**values, "model": str(rounded), "output": config["output"].with_name(dtype), "adapter": adapter},
                dtype=dtype,
            )
            / "scores.parquet"
        )
        for dtype in ("float32", "bfloat16")
    ]
    for name in ("score/sums/a", "score/sums/b", "score/sums/c", "captured_energy"):
        exact, found = (table[name].to_numpy() for table in tables)
        assert np.isfinite(found).all()
        assert spearmanr(exact, found)[0] > 0.97
        assert np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.1


# --- the whole method ---------------------------------------------------------------------------------------


def _conversations(path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line.startswith(b'{"messages": [{')]
    pairs = [(one["messages"][0]["content"], one["messages"][1]["content"]) for one in rows]
    return [pair for pair in pairs if pair[1]]


def tokenwise(folder: str, adapter: Path, rows: list[tuple[str, str]]) -> tuple[list[Any], list[Any]]:
    """Of each row: gradients (out, in) of every adapter matrix, and its tokens' (δ, a), by hooks on PEFT's own modules.

    PEFT multiplies by the scale after B, the tool before: the split into δ and a differs by a constant, which moves no
    eigenvector.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True).double().eval()
    modules = {
        name: module for name, module in model.named_modules() if name.endswith((".lora_A.default", ".lora_B.default"))
    }
    caught: dict[str, list[Any]] = {name: [None, None] for name in modules}
    for name, module in modules.items():
        module.register_forward_hook(
            lambda _, inputs, __, name=name: caught[name].__setitem__(1, inputs[0][0].detach())
        )
        module.register_full_backward_hook(lambda _, __, outputs, name=name: caught[name].__setitem__(0, outputs[0][0]))
    gradients, tokens = [], []
    for question, answer in rows:
        text = f"<|user|>\n{question}\n<|assistant|>\n{answer.strip()}</s>\n"
        start = text.index("<|assistant|>\n") + len("<|assistant|>\n")
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor([encoded["input_ids"]])
        labels = ids.clone()
        labels[0, [begin < start for begin, _ in encoded["offset_mapping"]]] = -100
        model.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        gradients.append([module.weight.grad.numpy().copy() for module in modules.values()])
        # The last token predicts nothing: no gradient comes through it, and the tool does not read it.
        tokens.append([[side[:-1].numpy().copy() for side in caught[name]] for name in modules])
    return gradients, tokens


@pytest.mark.parametrize("divide_by_norm", [False, True])
def test_it_equals_a_dense_damped_inverse_from_the_same_factors(
    config: dict[str, Any], pool_file: Path, target_file: Path, divide_by_norm: bool
) -> None:
    """Every matrix dense, in float64: (U ⊗ W) diag(s) (U ⊗ W)ᵀ + 0.1 mean(s), solved for the mean query gradients."""
    output = run(config, representation=(f"ekfac:divide_by_norm={divide_by_norm}",))
    gradients, tokens = tokenwise(config["model"], adapter_of(output), _conversations(pool_file))
    query_gradients, _ = tokenwise(config["model"], adapter_of(output), _conversations(target_file))
    groups = [json.loads(line)["group"] for line in target_file.read_bytes().split(b"\n") if line]
    scores = {group: np.zeros(len(gradients)) for group in "abc"}
    for block in range(len(gradients[0])):
        sides = [np.concatenate([row[block][side] for row in tokens]) for side in (0, 1)]
        U, W = (np.linalg.eigh(side.T @ side)[1] for side in sides)
        for group in "abc":
            q = np.mean(
                [one[block].ravel() for one, of in zip(query_gradients, groups, strict=True) if of == group], axis=0
            )
            direction = dense_ekfac(np.stack([row[block] for row in gradients]), U, W, q)
            scores[group] += [row[block].ravel() @ direction for row in gradients]
    norms = np.array([np.sqrt(sum((block**2).sum() for block in row)) for row in gradients])
    found = pq.read_table(output / "scores.parquet").to_pydict()
    for group, expected in scores.items():
        expected = expected / norms if divide_by_norm else expected
        what, near = ("EK-FAC", "dense damped inverse of the same factors, float64"), 2e-4 * np.abs(expected).max()
        assert_like_reference(*what, found[f"score/sums/{group}"], expected, rtol=1e-3, atol=near)
    assert all(0 <= energy <= 1 for energy in found["captured_energy"])


def test_the_curvature_is_prepared_once_for_all_targets_and_damping_enters_later(
    config: dict[str, Any], target_file: Path, tmp_path: Path
) -> None:
    two = {**config, "target": (str(target_file), str(tmp_path / "copy.jsonl"))}
    (tmp_path / "copy.jsonl").write_bytes(target_file.read_bytes())
    output = run(two, representation=("ekfac:rows=20",))
    (prepared,) = output.glob("artifacts/prepared-*")
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    run(two, representation=("ekfac:rows=20,damping=0.5",))
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before
    assert json.loads((prepared / "complete.json").read_text())["facts"]["rows"] == 20
    run(two, representation=("ekfac:rows=20",), seed=1)
    assert len(list(output.glob("artifacts/prepared-*"))) == 2


def test_null_level_and_captured_energy_by_hand() -> None:
    """Gradients drawn with the curvature's own second moments, in three dimensions where all is known."""
    rng = np.random.default_rng(0)
    curvature = BlockCurvature(
        left=torch.eye(1, dtype=torch.float64),
        right=torch.linalg.qr(torch.from_numpy(rng.standard_normal((3, 3))))[0],
        second=torch.tensor([[4.0, 1.0, 0.25]], dtype=torch.float64),
    )
    W, s = curvature.right.numpy(), curvature.second.numpy()[0]
    H = W @ np.diag(s) @ W.T
    V = np.linalg.solve(H + 0.1 * s.mean() * np.eye(3), rng.standard_normal((3, 2)))
    fit = Fitted(
        groups=("a", "b"),
        arrays={"gram": V.T @ V, "null_covariance": V.T @ H @ V},
        facts={"mean_squared_gradient": float(np.trace(H))},
    )
    null = EKFAC().null_level([fit], np.ones(1), rng)
    drawn = (rng.multivariate_normal(np.zeros(3), H, size=200_000) @ V).max(axis=1)
    for level in (0.5, 0.95, 0.99):
        assert_allclose(np.quantile(null, level), np.quantile(drawn, level), rtol=0.05, atol=0.02 * drawn.std())
    g = rng.standard_normal((5, 3))
    shard = [Features(values=g @ V, measured={"loss": np.ones(5), "gradient_norm": np.linalg.norm(g, axis=1)})]
    energy = EKFAC().score(shard, [fit], np.ones(1)).columns["captured_energy"]
    span = np.linalg.qr(V)[0]
    assert_allclose(energy, ((g @ span) ** 2).sum(axis=1) / (g**2).sum(axis=1))
