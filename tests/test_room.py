"""What a plan says of bases, sketches and cards is what the engine then holds and does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from gistselect.model import sinks
from gistselect.model.adapter_shapes import shapes_planned
from gistselect.model.adapters import AdapterConfig, attach_adapter
from gistselect.model.engine_config import EngineConfig
from gistselect.model.gradients import GradientEngine
from gistselect.model.loading import ModelConfig, load_model
from gistselect.model.sketch_size import sketch_bytes, sketch_numbers
from gistselect.run.config import RunConfig
from gistselect.run.plan import make_plan
from gistselect.run.plan_lines import plan_lines
from gistselect.run.planning import plan_run
from gistselect.run.progress import SilentReporter
from gistselect.run.room import DeviceRoom, device_room
from pretended import pretended_devices
from tiny_models import examples
from tiny_runs import run


@pytest.fixture
def ingested(config: dict[str, Any]) -> dict[str, Any]:
    run(config, until="ingest")
    return config


def matrices(config: dict[str, Any]) -> list[tuple[int, int]]:
    return list(shapes_planned(ModelConfig(path=config["model"]), AdapterConfig(rank=4)).values())


def room(config: dict[str, Any], **changes: Any) -> DeviceRoom:
    values = RunConfig.from_values({**config, **changes})
    return device_room(make_plan(values, "select", None), values)


def test_the_bytes_of_a_basis_are_those_that_are_stored(ingested: dict[str, Any]) -> None:
    p = sum(out * inner for out, inner in matrices(ingested))
    before = room(ingested)
    assert before.bases is not None
    assert (before.bases["parameters"], before.bases["directions_at_most"]) == (p, 7)
    assert before.bases["bytes_at_most"] == before.basis_bytes == 4 * 7 * p
    assert (before.bases["limit_bytes"], before.bases["split"], before.bases["blocks"]) == (None, False, 1)
    assert room(ingested, rank=3).basis_bytes == 4 * 3 * p
    assert room(ingested, representation=("gist", "ekfac")).bases == {
        **before.bases,
        "directions_at_most": 7 + 3 + 7,
        "bytes_at_most": 4 * (7 + 3 + 7) * p,
    }, "EK-FAC has a direction for each group, and for its stability one for each query"
    assert room(ingested, representation=("bm25", "rds")) == DeviceRoom()
    output = run(ingested, until="features")
    values = RunConfig.from_values({**ingested, "until": "features"})
    after = device_room(make_plan(values, "features", None), values)
    stored = [load_file(path) for path in output.glob("artifacts/fit-*/fit/basis/part-*.safetensors")]
    assert after.bases is not None
    assert after.bases["bytes_at_most"] == sum(one.nbytes for part in stored for one in part.values())
    assert after.basis_bytes == 0


@pytest.mark.parametrize(("columns", "waits", "passes_over_it"), [(2.5, 1e-5, 4), (0.3, 2.0, 1), (1.5, 2.0, 1)])
def test_blocks_of_columns_are_those_that_the_engine_makes(
    columns: float, waits: float, passes_over_it: int, ingested: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of bases for which there is room for so many columns: in several passes, or piece after piece in one."""
    p = sum(out * inner for out, inner in matrices(ingested))
    limit = {"basis_memory_gb": columns * 4 * p / 1e9, "gradient_memory_gb": waits}
    found = room(ingested, engine=limit).bases
    assert found is not None
    assert found["split"]
    products: list[int] = []
    passes: list[int] = []
    made, passed = sinks.product, GradientEngine._pass

    def counted(gradients: Any, basis: Any, *precise: Any) -> Any:
        products.append(basis.shape[0])
        return made(gradients, basis, *precise)

    def counted_pass(self: GradientEngine, *given: Any) -> Any:
        passes.append(1)
        return passed(self, *given)

    adapted = attach_adapter(load_model(ModelConfig(path=ingested["model"])), AdapterConfig(rank=4), seed=0)
    rows = examples((7,) * 50)
    with GradientEngine(adapted) as engine:
        basis = engine.basis(rows[:7], np.eye(7))
        sizes = [block.size for block in engine.parameters]
    with GradientEngine(adapted, EngineConfig.model_validate({**limit, "batch_tokens": 10_000})) as engine:
        monkeypatch.setattr(sinks, "product", counted)
        monkeypatch.setattr(GradientEngine, "_pass", counted_pass)
        engine.features(rows, basis)
    assert len(passes) == found["passes"] == passes_over_it
    # Either way the columns of a matrix come in so many blocks.
    assert products.count(max(sizes)) == sizes.count(max(sizes)) * found["blocks"]


def test_a_sketch_says_its_width_and_bytes(ingested: dict[str, Any]) -> None:
    shapes = matrices(ingested)
    numbers = int(sketch_numbers(shapes, 17))
    expected = {
        "method": "gist",
        "width": 17,
        "numbers": numbers,
        "share": round(numbers / sum(out * inner for out, inner in shapes), 6),
        "device_bytes": int(sketch_bytes(shapes, 17)),
        "pool_bytes": 0,
    }
    asked = f"{expected['device_bytes'] / 1e3}kB"
    assert room(ingested, sketch=asked) == DeviceRoom(sketches=(expected,))
    options = {**ingested, "sketch": asked, "keep_sketch": True}
    document = plan_run(RunConfig.from_values(options), SilentReporter(), seconds=0)
    assert document["memory"]["sketches"] == [{**expected, "pool_bytes": 4 * numbers * 50}]
    assert (document["disk"]["features_bytes"], document["disk"]["sketches_unknown"]) == (4 * numbers * 50, False)
    (line,) = (str(line) for line in plan_lines(document) if str(line).startswith("  sketch ("))
    assert "17 wide" in line


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of a GB each, as far as torch is asked; weights are loaded in this thread, which pretends."""
    import transformers.modeling_utils

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**9, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(transformers.modeling_utils, "caching_allocator_warmup", lambda *_, **__: None)
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")


@pytest.mark.usefixtures("two_cards")
def test_the_cards_of_a_plan_are_those_of_the_loaded_model(ingested: dict[str, Any]) -> None:
    more = {"device": "cuda", "dtype": "float32", "cards": 2}
    found = room(ingested, **more)
    assert found.cards is not None
    assert found.bases is not None
    with pretended_devices():
        loaded = load_model(ModelConfig(path=ingested["model"], **more)).model
        there: dict[str, int] = {}
        for name, value in loaded.named_parameters():
            (card,) = (one for one in found.cards if any(f"{name}.".startswith(f"{part}.") for part in one["parts"]))
            assert card["card"] == str(value.device)
            there[card["card"]] = there.get(card["card"], 0) + value.nbytes
    assert {one["card"]: one["weights_bytes"] for one in found.cards} == there
    # Half of what the fuller card has left, for its share of the adapter.
    layers = [sum(".layers." in f".{part}" for part in one["parts"]) for one in found.cards]
    rooms = [(10**9 - there[one["card"]]) / 2 * 2 / n for one, n in zip(found.cards, layers, strict=True) if n]
    assert found.bases["limit_bytes"] == pytest.approx(min(rooms), abs=1)
    lines = [
        str(line)
        for line in plan_lines({**document(ingested), "memory": {**EMPTY, "sketches": [], "cards": found.cards}})
    ]
    assert [line.split(":")[1] for line in lines if line.strip().startswith("cuda:")] == ["0", "1"]


EMPTY = dict.fromkeys(("host_total_bytes", "host_available_bytes", "peak_bytes", "model_bytes", "device", "bases"))


def document(config: dict[str, Any]) -> dict[str, Any]:
    return plan_run(RunConfig.from_values(config), SilentReporter(), seconds=0)
