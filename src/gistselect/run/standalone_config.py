"""Options of the commands that need no run folder: train on any rows, evaluate any model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gistselect.data.config import TextOptions
from gistselect.evaluation.config import EvaluationConfig
from gistselect.groups import DATA, ENGINE, EVALUATION, MODEL, RUN, WARMUP, many
from gistselect.model.config import ModelConfig, ModelSettings
from gistselect.model.engine_config import EngineConfig
from gistselect.training.recipe import TrainingConfig


@Parameter(name="*")
class DoctorConfig(ModelSettings):
    """What is looked at."""

    model: Annotated[str | None, Parameter(group=MODEL)] = None
    """Folder or hub id of a causal language model to try; without it the machine alone is looked at."""
    adapter: Annotated[Path | None, Parameter(group=MODEL)] = None
    """PEFT adapter folder to try on it; by default a small random one."""
    template: Annotated[str, Parameter(group=DATA)] = TextOptions.model_fields["template"].default
    """How a conversation becomes text: tulu (published), model (the tokenizer's chat template) or a jinja file."""
    output: Annotated[Path, Parameter(group=RUN)] = Path()
    """Where a run folder will stand; the room there is looked at."""
    engine: Annotated[EngineConfig, Parameter(group=ENGINE)] = EngineConfig()
    """Batches and memory of the gradient passes."""


class _WithModel(ModelSettings):
    """A command that needs a language model."""

    model: Annotated[str, Parameter(group=MODEL)]
    """Folder or hub id of the causal language model."""

    @property
    def source(self) -> ModelConfig:
        """The model as the model layer loads it."""
        return ModelConfig(path=self.model, **{name: getattr(self, name) for name in ModelSettings.model_fields})


@Parameter(name="*")
class TrainConfig(TextOptions, _WithModel):
    """Fine-tune on any rows."""

    data: Annotated[tuple[str, ...], many(DATA)]
    """Rows to train on, such as selected.jsonl: files, folders or globs as for a pool."""
    output: Annotated[Path, Parameter(group=RUN)]
    """Folder for checkpoints and curves. The same command on the same folder continues an interrupted training."""
    seeds: Annotated[tuple[int, ...], many(RUN)] = (0,)
    """One training for each seed."""
    training: Annotated[TrainingConfig, Parameter(name="*", group=WARMUP)] = TrainingConfig()
    """The recipe."""
    merge: Annotated[bool, Parameter(negative="", group=RUN)] = False
    """Also write the model with the last adapter's weights added in, as an ordinary model folder."""


@Parameter(name="*")
class EvaluateConfig(_WithModel):
    """Evaluate a model, with an adapter if one is given."""

    tasks: Annotated[tuple[str, ...], many(DATA)]
    """mmlu, bbh, tydiqa, gsm8k, a JSONL of your own, or any task that lm-eval knows by its name there."""
    output: Annotated[Path, Parameter(group=RUN)]
    """Folder for results, prompts and per-item outcomes."""
    adapter: Annotated[Path | None, Parameter(group=MODEL)] = None
    """PEFT adapter folder."""
    data_dir: Annotated[Path | None, Parameter(group=DATA)] = None
    """LESS-style folder with the built-in tasks' files; the hub's data sets are used without one."""
    evaluation: Annotated[EvaluationConfig, Parameter(name="*", group=EVALUATION)] = EvaluationConfig()
    """Items, prompts and intervals."""
