"""One model for the YAML file, the command-line flags and the Python arguments. Options are documented here only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import Parameter
from pydantic import Field, ValidationError, field_validator, model_validator

from gistselect.data.config import TextOptions
from gistselect.errors import ConfigError
from gistselect.evaluation.config import EvaluationConfig
from gistselect.model.config import ModelConfig, ModelSettings
from gistselect.model.engine_config import EngineConfig
from gistselect.training.recipe import TrainingConfig

Stage = Literal["ingest", "warmup", "features", "score", "select", "train", "evaluate"]
STAGES: tuple[Stage, ...] = ("ingest", "warmup", "features", "score", "select", "train", "evaluate")

Many = Parameter(consume_multiple=True, negative="")
"""A list on the command line: `--pool a b c`."""


class ModelOptions(ModelSettings):
    """Which language model, and how it is held in memory."""

    model: str
    """Folder or hub id of the causal language model."""

    @property
    def source(self) -> ModelConfig:
        """The model as the model layer loads it."""
        return ModelConfig(path=self.model, **{name: getattr(self, name) for name in ModelSettings.model_fields})


@Parameter(name="*")
class RunConfig(TextOptions, ModelOptions):
    """What to select from what, for what, with which model."""

    pool: Annotated[tuple[str, ...], Many]
    """Rows to select from: JSONL (.gz, .zst), Parquet, folders or globs of them, or hf:owner/name[:split]."""
    target: Annotated[tuple[str, ...], Many]
    """What to teach: mmlu, bbh, tydiqa, gsm8k, or a JSONL/Parquet file of your own examples. Several share one pass."""
    output: Path
    """Run folder for every result. The same command on the same folder continues an interrupted run."""
    budget: str | int | float = "5%"
    """How much to select: a share of the pool (5% or 0.05) or a number of rows (500)."""

    data_dir: Path | None = None
    """LESS-style folder with the built-in targets' files (eval/mmlu, eval/bbh, …)."""
    target_group: str | None = None
    """Column that divides your own target into groups, each a target direction; by default "group", if there."""
    max_queries: int | None = Field(default=None, ge=1)
    """Most target examples used in each group (a seeded sample); all by default."""
    heldout: Annotated[tuple[Path, ...], Many] = ()
    """Held-out examples for your own targets, in their order, to evaluate them. Built-in targets bring theirs."""
    output_format: Literal["pool", "messages"] = "pool"
    """Selected rows as they stand in the pool, or normalised to chat messages."""
    strict: Annotated[bool, Parameter(negative="")] = False
    """Stop at the first row that cannot be scored, instead of listing it in quarantine.jsonl."""

    adapter: Path | None = None
    """PEFT adapter folder to take gradients at; skips the warm-up."""
    checkpoints: Annotated[tuple[Path, ...], Many] = ()
    """Several adapter folders to take gradients at; their scores are added. Skips the warm-up."""
    checkpoint_weights: Annotated[tuple[float, ...], Many] = ()
    """Weight of each checkpoint; equal by default. LESS uses the mean learning rate of its epoch."""
    warmup_share: float = Field(default=0.05, gt=0, le=1)
    """Share of the pool, drawn at random, for the warm-up."""
    warmup_checkpoints: Annotated[tuple[int, ...], Many] = (1,)
    """Ends of the epochs whose checkpoints are used, e.g. 1 2 3 4."""
    warmup: TrainingConfig = TrainingConfig()
    """Warm-up training."""

    rank: int | float = 0.95
    """Subspace rank (a whole number) or the share of query-gradient variance to keep (0 to 1)."""
    rtol: float = Field(default=1e-3, gt=0, lt=1)
    """Directions with a singular value below this share of the largest are rounding noise and dropped."""
    sketch: int | None = Field(default=None, ge=1)
    """For adapters whose basis does not fit in memory: project each side of every gradient matrix to this width.
    The agreement with the exact score is measured on a sample and reported."""
    keep_sketch: Annotated[bool, Parameter(negative="")] = False
    """Store the pool's sketches, so that a target added later needs no pass over the pool."""
    energy_weighting: Annotated[bool, Parameter(negative="")] = False
    """Weight scores by the square root of the captured energy: the cosine with the full gradient norm."""
    engine: EngineConfig = EngineConfig()
    """Batches and memory of the gradient passes."""

    finetune: TrainingConfig = TrainingConfig()
    """Fine-tuning on the selection."""
    train_seeds: Annotated[tuple[int, ...], Many] = (0, 1, 2)
    """One fine-tuning on the selection for each seed; every baseline is drawn and trained anew with the same seeds."""
    baselines: Annotated[tuple[Literal["random", "length", "full"], ...], Many] = ("random",)
    """What to compare with, at the same number of rows: random rows, random rows of the same lengths, the full pool."""
    heldout_items: int = Field(default=200, ge=1)
    """Most held-out items of each group on which the target loss is measured (a seeded sample)."""
    evaluate: Annotated[bool, Parameter(negative="")] = False
    """Close the loop: fine-tune on the selection and on random ones, and compare the target loss."""
    evaluate_tasks: Annotated[tuple[str, ...], Many] = ()
    """With --evaluate, also measure every arm on these tasks (see gistselect evaluate), beside the target loss."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Items, prompts and intervals of those protocols."""
    until: Stage | None = None
    """Last stage to run; by default select, or evaluate with --evaluate."""
    seed: int = 0
    """Seed of every random choice."""

    @field_validator("pool", "target", "heldout", "checkpoints", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, Path)) else value

    @field_validator("pool", "target")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one")
        if len(set(value)) != len(value):
            raise ValueError("the same one is named twice")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.adapter and self.checkpoints:
            raise ValueError("give either adapter (one checkpoint) or checkpoints (several), not both")
        n_checkpoints = len(self.adapter_folders) or len(self.warmup_checkpoints)
        if self.checkpoint_weights and len(self.checkpoint_weights) != n_checkpoints:
            raise ValueError(f"{len(self.checkpoint_weights)} checkpoint_weights for {n_checkpoints} checkpoints")
        if self.keep_sketch and self.sketch is None:
            raise ValueError("keep_sketch needs a sketch; add --sketch 32")
        if out_of_range := [epoch for epoch in self.warmup_checkpoints if not 1 <= epoch <= self.warmup.epochs]:
            raise ValueError(
                f"warmup_checkpoints {out_of_range} lie outside the warm-up's epochs 1 to {self.warmup.epochs}"
            )
        return self

    @property
    def adapter_folders(self) -> tuple[Path, ...]:
        """The adapters given by the user; empty if the warm-up is to make them."""
        return (self.adapter,) if self.adapter else self.checkpoints

    @property
    def last_stage(self) -> Stage:
        return self.until or ("evaluate" if self.evaluate else "select")

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> RunConfig:
        """Validate; raises `ConfigError` that names the option and the remedy."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(explain(error, tuple(cls.model_fields))) from None

    @classmethod
    def from_yaml(cls, path: Path) -> RunConfig:
        """Read `run.yaml`. Raises `ConfigError` if it is missing, not YAML, or not valid."""
        return cls.from_values(read_yaml(path))

    def to_yaml(self) -> str:
        """Every option, resolved: the file replays the run."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Options in a YAML file. Raises `ConfigError` if it is missing or not a mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be a mapping of option names to values.")
    return values


@Parameter(name="*")
class TrainConfig(TextOptions, ModelOptions):
    """Fine-tune on any rows."""

    data: Annotated[tuple[str, ...], Many]
    """Rows to train on, such as selected.jsonl: files, folders or globs as for a pool."""
    output: Path
    """Folder for checkpoints and curves. The same command on the same folder continues an interrupted training."""
    seeds: Annotated[tuple[int, ...], Many] = (0,)
    """One training for each seed."""
    training: Annotated[TrainingConfig, Parameter(name="*")] = TrainingConfig()
    """The recipe."""
    merge: Annotated[bool, Parameter(negative="")] = False
    """Also write the model with the last adapter's weights added in, as an ordinary model folder."""


@Parameter(name="*")
class EvaluateConfig(ModelOptions):
    """Evaluate a model, with an adapter if one is given."""

    tasks: Annotated[tuple[str, ...], Many]
    """mmlu, bbh, tydiqa, gsm8k, a JSONL of your own, or any task that lm-eval knows by its name there."""
    output: Path
    """Folder for results, prompts and per-item outcomes."""
    adapter: Path | None = None
    """PEFT adapter folder."""
    data_dir: Path | None = None
    """LESS-style folder with the built-in tasks' files; the hub's data sets are used without one."""
    evaluation: Annotated[EvaluationConfig, Parameter(name="*")] = EvaluationConfig()
    """Items, prompts and intervals."""


def explain(error: ValidationError, known: tuple[str, ...]) -> str:
    """The validation errors as sentences, with the nearest option for an unknown one."""
    from difflib import get_close_matches

    sentences = []
    for problem in error.errors():
        option = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            close = get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see 'gistselect run --help'."
            sentences.append(f"unknown option {option!r}; {hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            sentences.append(f"{option}: {message}." if option else f"{message}.")
    return " ".join(sentences)
