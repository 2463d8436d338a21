"""A sketch that is said as a budget: the width follows from the adapter's matrices by the formula of docs/memory.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gistselect.cli import main
from gistselect.errors import ConfigError
from gistselect.model.adapter_shapes import NamedShapes, shapes_live, shapes_planned, shapes_stored
from gistselect.model.adapters import AdapterConfig, attach_adapter
from gistselect.model.engine_config import SketchConfig
from gistselect.model.gradients import GradientEngine
from gistselect.model.loading import ModelConfig, load_model
from gistselect.model.sinks import SketchSink
from gistselect.model.sketch_size import LEAST, ROWS, SketchBudget, parse_sketch, sketch_bytes, sketch_numbers
from gistselect.run.config import RunConfig
from gistselect.run.ingest import SHARD_ROWS
from gistselect.run.plan import make_plan
from tiny_models import FAMILIES, language_model

SHAPES = [(4, 32), (32, 4), (4, 48), (16, 4), (1, 100), (100, 60)]


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an adapter like the one that a tiny run makes; `twin` beside it is another."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "twin")):
        bare = load_model(ModelConfig(path=str(tiny_model)))
        attach_adapter(bare, AdapterConfig(rank=4), seed=seed).model.save_pretrained(folder / name)
    return folder / "one"


def matrices(shapes: NamedShapes) -> list[tuple[int, int]]:
    return sorted(shapes.values())


def budget(text: str) -> SketchBudget:
    parsed = parse_sketch(text)
    assert isinstance(parsed, SketchBudget)
    return parsed


def test_a_budget_is_counted_for_the_rows_of_a_shard() -> None:
    assert ROWS == SHARD_ROWS


@pytest.mark.parametrize("width", [1, 3, 4, 16, 31, 32, 64])
def test_the_formula_is_what_a_sketch_takes(width: int) -> None:
    """In float32: the values of so many rows, and the projections that they go through."""
    with GradientEngine(language_model(FAMILIES["qwen2"])) as engine:
        sink = SketchSink(SketchConfig(dimension=width, seed=0))
        shapes = [block.shape for block in engine.parameters]
        sink.start(ROWS, engine.site)
        held = sink.values.nbytes + sum(side.nbytes for pair in sink._sides for side in pair if side is not None)
        assert held == sketch_bytes(shapes, width)
        assert sink.values.shape == (ROWS, sketch_numbers(shapes, width))


@pytest.mark.parametrize("asked", ["8MB", "9.5MB", "17MB", "30%", "40%", "77.7%"])
def test_the_width_is_the_largest_within_the_budget(asked: str) -> None:
    """Against trying every width; projections go where a side is narrow, so bytes do not only grow with the width."""
    one = budget(asked)
    p = sum(out * inner for out, inner in SHAPES)

    def fits(width: int) -> bool:
        kept = sum(min(out, width) * min(inner, width) for out, inner in SHAPES)
        signs = sum(side * width for shape in SHAPES for side in shape if side > width)
        return kept <= one.share * p if one.share else 4 * (1024 * kept + signs) <= (one.n_bytes or 0)

    assert one.width(SHAPES) == max(width for width in range(1, 101) if fits(width))


def test_a_budget_for_everything_leaves_the_gradients_as_they_are() -> None:
    assert budget("100%").width(SHAPES) == budget("1TB").width(SHAPES) == 100
    assert sketch_numbers(SHAPES, 100) == sum(out * inner for out, inner in SHAPES)


@pytest.mark.parametrize("asked", ["0.5%", "100kB"])
def test_a_budget_that_is_too_small_names_one_that_is_not(asked: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"--sketch {asked} allows the 6 matrices .* narrower than {LEAST} "
    ) as found:
        budget(asked).width(SHAPES)
    remedy = str(found.value).partition("give at least ")[2].partition(",")[0]
    assert budget(remedy).width(SHAPES) >= LEAST


@pytest.mark.parametrize("text", ["0", "-3", "0.05", "2 giraffes", "GB", "0GB", "101%", "1e9", "2GiB", "", True, 0.5])
def test_nonsense_is_refused_in_a_sentence(text: Any, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^sketch: .*(is not understood; give a width such as 32|more than the)"):
        RunConfig.from_values({**config, "sketch": text})


def test_shapes_are_known_before_any_weight(tiny_model: Path, adapter: Path) -> None:
    """Of an adapter that is to be made, of one that is stored, and as the engine has them."""
    planned = shapes_planned(ModelConfig(path=str(tiny_model)), AdapterConfig(rank=4))
    assert matrices(shapes_stored(adapter)) == matrices(planned)
    several: list[dict[str, Any]] = [{}, {"dora": True}, {"target_modules": ("all-linear",)}]
    for options in several:
        live = language_model(FAMILIES["llama"], **options)
        with GradientEngine(live) as engine:
            assert shapes_live(live) == {block.name: block.shape for block in engine.parameters}


def test_no_weight_is_made_for_the_shapes_of_a_large_model(tmp_path: Path) -> None:
    large = {**json.loads(FAMILIES["llama"].to_json_string()), "hidden_size": 8192, "num_hidden_layers": 80}
    large |= {"intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}
    for name, text in {"config.json": json.dumps(large), "model.safetensors": "", "tokenizer.json": "{}"}.items():
        (tmp_path / name).write_text(text)
    shapes = shapes_planned(ModelConfig(path=str(tmp_path)), AdapterConfig(rank=128, dora=False))
    assert len(shapes) == 2 * 4 * 80
    assert sum(out * inner for out, inner in shapes.values()) == 524_288_000


def keys(config: dict[str, Any], **changes: Any) -> set[str]:
    """Of everything that a run with these options makes."""
    plan = make_plan(RunConfig.from_values({**config, **changes}), "select", None)
    return {one.key for one in plan.features.artifacts} | {one.select.artifact.key for one in plan.methods}


def test_a_budget_is_the_run_of_the_width_that_follows(config: dict[str, Any], adapter: Path) -> None:
    """All keys are those of the width, so all numbers are: of warm-ups and of given adapters, in either place of the
    option, and whoever computes. The bytes of 1,024 rows count, not those of the pool or of a number format."""
    asked = f"{int(sketch_bytes(matrices(shapes_stored(adapter)), 17)) / 1e3}kB"
    for given in ({}, {"adapter": str(adapter)}, {"checkpoints": (str(adapter), str(adapter.with_name("twin")))}):
        options = {**config, **given}
        by_width = keys(options, sketch=17)
        assert keys(options, sketch=asked) == keys(options, representation=(f"gist:sketch={asked}",)) == by_width
        assert keys(options, sketch=asked, engine_kind="local", devices="cpu:2") == by_width
        assert keys(options, sketch=18) != by_width
    (wide,) = (
        one.representation
        for one in make_plan(
            RunConfig.from_values({**config, "sketch": "50MB", "dtype": "bfloat16"}), "select", None
        ).methods
    )
    assert wide.model_dump()["sketch"] == budget("50MB").width(matrices(shapes_stored(adapter)))


def test_the_command_takes_widths_and_budgets(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--pool", config["pool"][0], "--target", config["target"][0], "--model", config["model"]]
    arguments += ["--budget", "2", "--output", str(config["output"]), "--until", "ingest", "--sketch"]
    for text, kept in (("8", "sketch: 8\n"), ("20MB", "sketch: 20MB\n"), ("90%", "sketch: 90%\n")):
        main([*arguments, text])
        assert kept in (config["output"] / "run.yaml").read_text()
    with pytest.raises(SystemExit):
        main([*arguments, "lots"])
    assert "a share of the adapter's numbers such as 5%" in " ".join(capsys.readouterr().err.split())
