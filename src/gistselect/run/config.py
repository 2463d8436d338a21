"""One model for the YAML file, the command-line flags and the Python arguments. Options are documented here only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cyclopts import Parameter
from pydantic import Field, ValidationError, field_validator, model_validator

from gistselect.data.config import TextOptions
from gistselect.errors import ConfigError
from gistselect.evaluation.config import EvaluationConfig
from gistselect.groups import DATA, ENGINE, EVALUATION, METHOD, MODEL, RUN, WARMUP, many
from gistselect.model.config import ModelConfig, ModelSettings
from gistselect.model.engine_config import EngineConfig
from gistselect.representations.gist import GistOptions
from gistselect.representations.interface import Representation
from gistselect.representations.specification import label, parse
from gistselect.run.lock import IfBusy
from gistselect.run.objects import Bucket, refuse_url
from gistselect.run.prefilter_config import PrefilterOptions
from gistselect.selection.options import SelectionOptions
from gistselect.training.recipe import TrainingConfig

Stage = Literal["ingest", "warmup", "features", "score", "select", "train", "evaluate"]
STAGES: tuple[Stage, ...] = ("ingest", "warmup", "features", "score", "select", "train", "evaluate")
LIVE = "<live model>"
"""Stands for a model that was given as an object, which no file can name."""
DRAWN = ("random", "length", "full")
"""Baselines that are drawn without a score."""
OF_THIS_CALL = frozenset({"until", "strict", "if_busy", "lost_shards"})
"""Options that a later command on the same folder does not inherit."""


@Parameter(name="*")
class RunConfig(TextOptions, GistOptions, PrefilterOptions, SelectionOptions, ModelSettings):
    """What to select from what, for what, with which model."""

    model: Annotated[str | None, Parameter(group=MODEL)] = None
    """Folder or hub id of the causal language model; only methods that read nothing but text do without."""

    pool: Annotated[tuple[str, ...], many(DATA)]
    """Rows to select from: files, folders or globs of them, or hf:owner/name[:config][:split]."""
    target: Annotated[tuple[str, ...], many(DATA)]
    """What to teach: mmlu, bbh, tydiqa, gsm8k, or a file of your own examples. Several share one pass."""
    output: Annotated[Path, Parameter(group=RUN)]
    """Run folder for every result. The same command on the same folder continues an interrupted run."""
    data_dir: Annotated[Path | None, Parameter(group=DATA)] = None
    """LESS-style folder with the built-in targets' files (eval/mmlu, eval/bbh, …)."""
    target_group: Annotated[str | None, Parameter(group=DATA)] = None
    """Column that divides your own target into groups, each a target direction; by default "group", if there."""
    max_queries: Annotated[int | None, Parameter(group=DATA)] = Field(default=None, ge=1)
    """Most target examples used in each group (a seeded sample); all by default."""
    heldout: Annotated[tuple[Path, ...], many(DATA)] = ()
    """Held-out examples for your own targets, in their order, to evaluate them. Built-in targets bring theirs."""
    output_format: Annotated[Literal["pool", "messages"], Parameter(group=DATA)] = "pool"
    """Selected rows as they stand in the pool, or normalised to chat messages."""

    representation: Annotated[tuple[str, ...], many(METHOD)] = ("gist",)
    """How rows are compared with a target: gist, less, bm25, …, each with options of its own if you like
    (less:dimension=1024). Several are computed in one pass; the first makes selected.jsonl, the others
    methods/NAME/selected.jsonl."""
    encoder: Annotated[str | None, Parameter(group=METHOD)] = None
    """Folder or hub id of the text encoder of --representation embedding."""

    stability_draws: Annotated[int, Parameter(group=METHOD)] = Field(default=100, ge=0)
    """Times that the targets' queries are drawn anew, with replacement within their groups, to see how often each
    selected row stays selected; 0 leaves that out. No gradient is taken again, and no other result depends on it."""
    stability_columns: Annotated[int, Parameter(group=METHOD)] = Field(default=300, ge=0)
    """Most numbers (4 bytes each) that the passes keep of a row and target for that alone, for methods whose scores say
    too little: bm25 and ekfac one for each query (of ekfac also a direction as large as the adapter), dsir and length
    one for each draw and group. Where it takes more, the stability of that method is not measured; 0 keeps none."""

    adapter: Annotated[Path | None, Parameter(group=WARMUP)] = None
    """PEFT adapter folder to take gradients at; skips the warm-up."""
    checkpoints: Annotated[tuple[Path, ...], many(WARMUP)] = ()
    """Several adapter folders to take gradients at; their scores are added. Skips the warm-up."""
    checkpoint_weights: Annotated[tuple[float, ...], many(WARMUP)] = ()
    """Weight of each checkpoint, in the order of --checkpoints or --warmup-checkpoints; by default equal, or the mean
    learning rate of the epoch as in LESS."""
    warmup_share: Annotated[float, Parameter(group=WARMUP)] = Field(default=0.05, gt=0, le=1)
    """Share of the pool, drawn at random, for the warm-up."""
    warmup_checkpoints: Annotated[tuple[int, ...], many(WARMUP)] = (1,)
    """Ends of the epochs whose checkpoints are used, e.g. 1 2 3 4."""
    warmup: Annotated[TrainingConfig, Parameter(group=WARMUP)] = TrainingConfig()
    """Warm-up training."""

    engine: Annotated[EngineConfig, Parameter(group=ENGINE)] = EngineConfig()
    """Batches and memory of the gradient passes."""
    engine_kind: Annotated[Literal["inline", "local", "ray"], Parameter(group=ENGINE)] = "inline"
    """Who does the work, for which --engine is short: this process (inline), one worker process a device (local), or
    one actor a GPU of a Ray cluster (ray). A worker's failure costs what it was at and no more; results are the same.
    """
    ray_address: Annotated[str | None, Parameter(group=ENGINE)] = None
    """With --engine ray: the cluster; auto is the one that this machine belongs to. By default one is started here."""
    devices: Annotated[str, Parameter(group=ENGINE)] = "auto"
    """With --engine local: numbers of GPUs (0,1), cpu:N for N workers on this machine's cores, or auto: all GPUs. A
    single device that auto finds is used without a worker process."""
    shard_attempts: Annotated[int, Parameter(group=ENGINE)] = Field(default=3, ge=1)
    """Times that a part of the work (1,024 pool rows) is tried, on different workers where there are several."""
    shard_time_limit: Annotated[float | None, Parameter(group=ENGINE)] = Field(default=None, gt=0)
    """Seconds after which a worker counts as hung; by default ten times what the slowest part so far took for its
    size, at least five minutes, and an hour before any is done."""
    lost_shards: Annotated[Literal["stop", "quarantine"], Parameter(group=ENGINE)] = "stop"
    """Rows of a part that failed every time: stop with their names, or list them in quarantine.jsonl and go on."""

    shards: Annotated[str | None, Parameter(group=ENGINE)] = None
    """URL of a folder in an object store (s3://bucket/folder, gs://…, whatever fsspec knows): what workers read and
    make goes there, and they need no folder in common; --output stays on this machine. See docs/clusters.md."""

    finetune: Annotated[TrainingConfig, Parameter(group=EVALUATION)] = TrainingConfig()
    """Fine-tuning on the selection."""
    train_seeds: Annotated[tuple[int, ...], many(EVALUATION)] = (0, 1, 2)
    """One fine-tuning on the selection for each seed; every baseline is drawn and trained anew with the same seeds."""
    baselines: Annotated[tuple[str, ...], many(EVALUATION)] = ("random",)
    """What to compare with, at the same number of rows: random (drawn anew for each seed), length (random rows of the
    same lengths), full (the whole pool), or any representation: bm25, less:dimension=1024, …"""
    finetune_model: Annotated[str | None, Parameter(group=EVALUATION)] = None
    """Folder or hub id of another, usually larger model that is trained and judged on what --model has selected; by
    default --model itself."""
    finetune_settings: Annotated[ModelSettings, Parameter(group=EVALUATION)] = ModelSettings()
    """How --finetune-model is found and held in memory."""
    heldout_items: Annotated[int, Parameter(group=EVALUATION)] = Field(default=200, ge=1)
    """Most held-out items of each group on which the target loss is measured (a seeded sample)."""
    evaluate: Annotated[bool, Parameter(group=EVALUATION)] = False
    """Close the loop: fine-tune on the selection and on random ones, and compare the target loss."""
    evaluate_tasks: Annotated[tuple[str, ...], many(EVALUATION)] = ()
    """With --evaluate, also measure every arm on these tasks (see gistselect evaluate), beside the target loss."""
    evaluation: Annotated[EvaluationConfig, Parameter(group=EVALUATION)] = EvaluationConfig()
    """Items, prompts and intervals of those protocols; template and seed are the run's unless given."""

    strict: Annotated[bool, Parameter(group=RUN)] = False
    """Stop at the first row that cannot be scored, instead of listing it in quarantine.jsonl."""
    until: Annotated[Stage | None, Parameter(group=RUN)] = None
    """Last stage to run; by default select, or evaluate with --evaluate."""
    if_busy: Annotated[IfBusy, Parameter(group=RUN)] = "wait"
    """What to do if another process works in the run folder."""
    seed: Annotated[int, Parameter(group=RUN)] = Field(default=0, ge=0)
    """Seed of every random choice."""

    @field_validator("pool", "target", "heldout", "checkpoints", "representation", "baselines", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, Path)) else value

    @field_validator(
        "sketch",
        "adapter",
        "max_queries",
        "target_group",
        "data_dir",
        "encoder",
        "finetune_model",
        "shards",
        "until",
        mode="before",
    )
    @classmethod
    def _taken_back(cls, value: Any) -> Any:
        """`--sketch none` takes an option of run.yaml back."""
        return None if isinstance(value, str) and value.lower() == "none" else value

    @field_validator("shards")
    @classmethod
    def _without_secrets(cls, value: str | None) -> str | None:
        if value is not None:
            refuse_url(value)
        return value

    @field_validator("pool", "target", "representation", "train_seeds")
    @classmethod
    def _not_empty(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("name at least one")
        if len(set(value)) != len(value):
            raise ValueError("the same one is named twice")
        return value

    @field_validator("train_seeds")
    @classmethod
    def _seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 0:
            raise ValueError("seeds must not be negative")
        return value

    @model_validator(mode="before")
    @classmethod
    def _engine_by_name(cls, values: Any) -> Any:
        """`engine="local"` says who does the work; a mapping of that name, how gradients are computed."""
        if isinstance(values, dict) and isinstance(values.get("engine"), str):
            return {
                **{name: value for name, value in values.items() if name != "engine"},
                "engine_kind": values["engine"],
            }
        return values

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.adapter and self.checkpoints:
            raise ValueError("give either adapter (one checkpoint) or checkpoints (several), not both")
        n_checkpoints = len(self.adapter_folders) or len(self.warmup_checkpoints)
        if self.checkpoint_weights and len(self.checkpoint_weights) != n_checkpoints:
            raise ValueError(f"{len(self.checkpoint_weights)} checkpoint_weights for {n_checkpoints} checkpoints")
        epochs = self.warmup_checkpoints
        if not epochs or len(set(epochs)) != len(epochs):
            raise ValueError("name each epoch of warmup_checkpoints once, and at least one")
        if out_of_range := [epoch for epoch in epochs if not 1 <= epoch <= self.warmup.epochs]:
            raise ValueError(
                f"warmup_checkpoints {out_of_range} lie outside the warm-up's epochs 1 to {self.warmup.epochs}"
            )
        if len({label(one) for one in self.representation}) < len(self.representation):
            raise ValueError("two representations have the same name and options (of paths the last part counts)")
        if self.finetune_model is None and self.finetune_settings != ModelSettings():
            raise ValueError("finetune_settings are of --finetune-model, which is not given; use --dtype, --device, …")
        return self

    @property
    def source(self) -> ModelConfig:
        """The model as the model layer loads it. Raises `ConfigError` if none is named."""
        if self.model is None:
            raise ConfigError("this needs a language model; give --model FOLDER or a hub id.")
        return ModelConfig(path=self.model, **{name: getattr(self, name) for name in ModelSettings.model_fields})

    @property
    def cards_of_a_worker(self) -> int:
        """GPUs of each worker: those of the model that has most."""
        return max(self.cards, self.finetune_settings.cards)

    @property
    def bucket(self) -> Bucket | None:
        """Where workers leave what they make; None if that is the run folder."""
        return Bucket(self.shards) if self.shards is not None else None

    @property
    def representations(self) -> dict[str, Representation]:
        """The representations by label. Raises `ConfigError` for an unknown name or option."""
        return {label(one): parse(one, self) for one in self.representation}

    @property
    def rivals(self) -> dict[str, Representation]:
        """The baselines that are representations, by label. Raises `ConfigError` for an unknown name or option."""
        return {label(one): parse(one, self) for one in self.baselines if one not in DRAWN}

    @property
    def budgets_asked(self) -> tuple[str | int | float, ...]:
        """Every budget of which something is selected."""
        return (self.budget,)

    def refuse_idle_prefilter(self) -> None:
        """Raises `ConfigError` if the prefilter is not understood, or no representation reads more than it does."""
        methods = {**self.representations, **self.rivals}
        if (narrowing := self.narrowing()) and not any(map(narrowing.narrows, methods.values())):
            raise ConfigError(
                f"--prefilter {narrowing.text} spares nothing: none of {', '.join(methods)} reads more of a row than "
                f"{narrowing.representation.title} does (text, then a forward pass, then gradients); leave it out."
            )

    @property
    def names_what_is_trained(self) -> bool:
        """Whether a file or a hub id names the model that is trained: none does if text alone was read, or a live model
        scored."""
        return self.finetune_model is not None or self.model not in (None, LIVE)

    @property
    def finetuned(self) -> ModelConfig:
        """The model that is trained and judged. Raises `ConfigError` if there is none."""
        if self.finetune_model is None:
            return self.source
        return ModelConfig(path=self.finetune_model, **self.finetune_settings.model_dump())

    @property
    def adapter_folders(self) -> tuple[Path, ...]:
        """The adapters given by the user; empty if the warm-up is to make them."""
        return (self.adapter,) if self.adapter else self.checkpoints

    @property
    def last_stage(self) -> Stage:
        return self.until or ("evaluate" if self.evaluate else "select")

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Validate; raises `ConfigError` that names the option and the remedy."""
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(explain(error, tuple(cls.model_fields))) from None
        _ = config.representations, config.rivals, config.order
        config.refuse_idle_prefilter()
        return config


def explain(error: ValidationError, known: tuple[str, ...], *, as_flags: bool = False) -> str:
    """The validation errors as sentences, with the nearest option for an unknown one; options as they stand in a file
    or, `as_flags`, on the command line."""
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
            option = f"--{option.replace('_', '-')}" if option and as_flags else option
            sentences.append(f"{option}: {message}." if option else f"{message}.")
    return " ".join(sentences)
