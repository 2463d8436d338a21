"""What is handed on: exactly the records that were scored, the recipe, and the template they were scored in.

Text is written by JSON and YAML libraries only: a row may hold anything. Configurations name their files
relative to their folder and are to be run inside it. They state the recipe of the job's `config` for one
device; with more, divide the accumulation steps by their number.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from gistselect import registry
from gistselect.data.templates import Tulu
from gistselect.errors import ConfigError, DataError
from gistselect.files import replacing_folder
from gistselect.model.config import ModelConfig
from gistselect.training.recipe import TrainingConfig, rows_at_once, warmup_steps
from gistselect.types import Message, Record

DATA_FILE = "selected.jsonl"
TEMPLATE_FILE = "chat_template.jinja"
TULU = (
    "{%- macro tools_of_it() -%}{{- '<tools>' -}}{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}"
    "{{- '\\n</tools>' -}}{%- endmacro -%}"
    "{%- if tools and messages[0]['role'] != 'system' -%}{{- '<|system|>\\n' + tools_of_it() + '\\n' -}}{%- endif -%}"
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>\\n' -}}"
    "{%- set said = namespace(text=message['content'] or '') -%}"
    "{%- if tools and loop.first and message['role'] == 'system' -%}"
    "{%- set said.text = (said.text | trim) + '\\n\\n' + tools_of_it() -%}{%- endif -%}"
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- set told = {'name': call['function']['name'], 'arguments': call['function']['arguments']} -%}"
    "{%- set said.text = (said.text + '\\n' if said.text | trim else '') -%}"
    "{%- set said.text = said.text + '<tool_call>\\n' + (told | tojson) + '\\n</tool_call>' -%}{%- endfor -%}"
    "{%- if (message['reasoning_content'] or '') | trim -%}{%- set said.text = '<think>\\n' + "
    "(message['reasoning_content'] | trim) + '\\n</think>\\n\\n' + said.text -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- (said.text | trim) + eos_token + '\\n' -}}{%- endgeneration -%}"
    "{%- else -%}{{- (said.text | trim) + '\\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
)
"""The published template (LESS) in Jinja with our text for tools, calls and reasoning (`Tulu`)."""
EOS = "</s>"
"""Stands for any end of sequence where two renderings are compared."""
Files = Mapping[str, str]
"""Texts to write, by the name of their file."""


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What is to be trained on, with what, and where the files go."""

    records: Sequence[Record]
    """The records as they were scored."""
    output: Path
    """A new or empty folder, or one of an earlier export: it is replaced whole."""
    model: ModelConfig
    config: TrainingConfig
    max_length: int
    """Tokens that a row is cut to."""
    template: str = "tulu"
    """As of a run: `tulu`, `model`, or the path of a Jinja chat template."""
    seed: int = 0

    @cached_property
    def template_source(self) -> str | None:
        """The chat template that the tool has to be given; None for the tokenizer's own. Raises `ConfigError`."""
        if self.template == "model":
            return None
        if self.template == "tulu":
            return TULU
        try:
            return Path(self.template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read the chat template {self.template!r} that the rows were scored in: {error}; "
                "put it back, or score again in another template."
            ) from error

    @cached_property
    def target_modules(self) -> list[str] | str:
        """Layers of the adapter: ends of names, a pattern, or `all-linear`. Found without reading a weight.

        Raises `ModelError` if the recipe names none and the model's are not known.
        """
        from gistselect.model.adapters import lora_targets
        from gistselect.model.loading import model_skeleton

        return lora_targets(self.config.adapter, model_skeleton(self.model))

    @property
    def alpha(self) -> int:
        """The adapter's alpha. Raises `ConfigError` if it is no whole number: no tool takes another, and rounded it
        would be another recipe."""
        alpha = self.config.adapter.alpha
        if not float(alpha).is_integer():
            raise ConfigError(
                f"an adapter's alpha of {alpha:g} cannot be handed on: the tools take whole numbers only; train with "
                "such a --finetune.adapter.alpha."
            )
        return int(alpha)

    @property
    def base_model(self) -> str:
        """Hub id or full path of the model: configurations are run inside their own folder."""
        folder = Path(self.model.path)
        return str(folder.resolve()) if folder.is_dir() else self.model.path

    @cached_property
    def eos_token(self) -> str:
        """What closes an answer. Raises `ModelError` if the tokenizer is not there."""
        from gistselect.model.loading import load_tokenizer

        return str(load_tokenizer(self.model).eos_token)


def export(tool: str, job: ExportJob) -> list[Path]:
    """Write a job for a tool by its registered name; the files written.

    Raises `ConfigError` for an unknown tool, `DataError` for a row that the tool cannot be given as it was scored.
    """
    if not job.records:
        raise DataError("there is no row to hand on.")
    return registry.resolve("export", tool)(job)


def schedule(job: ExportJob, n_rows: int) -> dict[str, Any]:
    """The recipe in the names of transformers' `TrainingArguments`, for one device."""
    recipe = job.config
    batch = recipe.global_batch_size
    device = rows_at_once(recipe, batch)
    return {
        "num_train_epochs": recipe.epochs,
        "learning_rate": recipe.learning_rate,
        "warmup_steps": warmup_steps(recipe, n_rows),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": recipe.optimizer,
        "per_device_train_batch_size": device,
        "gradient_accumulation_steps": batch // device,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "save_strategy": "epoch",
        "logging_steps": 1,
        "seed": job.seed,
    }


def learned_turns(record: Record) -> tuple[Message, ...]:
    """The conversation up to its last supervised answer: what follows teaches nothing.

    Raises `DataError` if there is none.
    """
    learned = [place for place, one in enumerate(record.messages) if one.role == "assistant" and one.supervised]
    if not learned:
        raise DataError(f"row {record.id!r} has no supervised assistant turn; leave it out of the export.")
    return record.messages[: learned[-1] + 1]


def chat_turn(message: Message) -> dict[str, Any]:
    """A turn as chat templates read it, with all that it carries."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [dict(call) for call in message.tool_calls]
    return turn | {key: value for key in ("name", "tool_call_id") if (value := getattr(message, key))}


def plain_text(record: Record) -> tuple[str, str]:
    """Prompt and completion of a plain record; the space between them, where one is needed, is the completion's."""
    prompt, completion = record.messages[0].content, record.messages[1].content
    seam = "" if not prompt or prompt[-1].isspace() or completion[:1].isspace() else " "
    return prompt, seam + completion


def write(job: ExportJob, files: Files) -> list[Path]:
    """Write all files or none, and the chat template beside them. Raises `ConfigError` rather than remove others'."""
    known = {*files, TEMPLATE_FILE}
    if job.output.exists():
        if not job.output.is_dir():
            raise ConfigError(f"{job.output} is a file; name a folder.")
        if others := sorted(path.name for path in job.output.iterdir() if path.name not in known):
            raise ConfigError(f"{job.output} holds other files, such as {others[0]!r}; name a new or empty folder.")
    if job.template == "tulu":
        for record in job.records:
            _prove_tulu(record)
    if job.template_source is not None:
        files = {**files, TEMPLATE_FILE: job.template_source}
    with replacing_folder(job.output) as part:
        for name, text in files.items():
            (part / name).write_text(text, encoding="utf-8")
    return [job.output / name for name in files]


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line. ASCII escapes keep U+2028 and its like, line ends to some readers, out of the file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def yaml_text(settings: Mapping[str, Any]) -> str:
    """Settings in their order."""
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)


def _prove_tulu(record: Record) -> None:
    """Raise `DataError` unless the template that is handed on gives the text that was scored."""
    from transformers.utils.chat_template_utils import render_jinja_template

    if record.plain:
        return
    kept = dataclasses.replace(record, messages=learned_turns(record))
    turns = [chat_turn(message) for message in kept.messages]
    tools: list[Any] | None = [dict(tool) for tool in kept.tools] or None
    texts, _ = render_jinja_template([turns], chat_template=TULU, tools=tools, eos_token=EOS)
    if texts[0] != Tulu(eos=EOS).render(kept).text:
        raise DataError(
            f"row {record.id!r} was scored as text that the tulu template in Jinja cannot give (such as an opened "
            "answer); leave the row out, or score with --template model."
        )
