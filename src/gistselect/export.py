"""Selected rows in the formats of the tools that people train with, each with a ready configuration file.

Text is written by JSON and YAML libraries only: a row may hold anything. Configurations name their files
relative to their folder and are to be run inside it. They state the recipe of the job's `config` for one
device; with more, divide the accumulation steps by their number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from gistselect.errors import DataError
from gistselect.types import Record

DATA_FILE = "selected.jsonl"
TEMPLATE_FILE = "chat_template.jinja"
DATA_SET = "gistselect"
"""Name of the data set in LLaMA-Factory's `dataset_info.json`."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Layers of the published adapter, where the recipe names none."""
TULU = (
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- (message['content'] | trim) + eos_token + '\\n' -}}{%- endgeneration -%}"
    "{%- else -%}{{- (message['content'] | trim) + '\\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
)
"""The published template (LESS) in Jinja, for tokenizers that bring none or another."""

Template = Literal["tulu", "model"]
Recipe = Mapping[str, Any]
"""The values of a `TrainingConfig`, by its field names."""


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What is to be trained on, with what, and where the files go."""

    records: Sequence[Record]
    output: Path
    model: str
    """Folder or hub id of the base model."""
    config: BaseModel
    """A `TrainingConfig`."""
    max_length: int
    """Tokens that a row is cut to."""
    template: Template = "tulu"
    seed: int = 0

    @cached_property
    def recipe(self) -> Recipe:
        return self.config.model_dump(mode="json")


def to_trl(job: ExportJob) -> list[Path]:
    """Prompt/completion rows for TRL; `trl sft --config sft_config.yaml` trains on the completions.

    A conversation becomes a row for each of its answers, with the turns before it as the prompt. Rows that are
    all plain text stay text; otherwise all are conversations, as TRL asks for one kind. Returns the files.
    """
    recipe = job.recipe
    plain = all(record.plain for record in job.records)
    rows = [row for record in job.records for row in _completions(record, plain)]
    settings = {
        "model_name_or_path": job.model,
        "datasets": [{"path": "json", "data_files": DATA_FILE}],
        "output_dir": "trained",
        "max_length": job.max_length,
        "completion_only_loss": True,
        **_schedule(job, len(rows)),
        "lr_scheduler_type": recipe["schedule"],
    }
    if not recipe["full"]:
        adapter = recipe["adapter"]
        settings |= {
            "use_peft": True,
            "lora_r": adapter["rank"],
            "lora_alpha": int(adapter["alpha"]),
            "lora_dropout": adapter["dropout"],
            "lora_target_modules": _target_modules(recipe),
            "use_rslora": adapter["rslora"],
            "use_dora": adapter["dora"],
        }
    if job.template == "tulu" and not plain:
        settings["chat_template_path"] = TEMPLATE_FILE
    return _write(job, rows, "sft_config.yaml", settings)


def to_axolotl(job: ExportJob) -> list[Path]:
    """Chat rows for Axolotl; `axolotl train axolotl.yml` trains on every answer. Returns the files."""
    recipe = job.recipe
    rows = [{"messages": _turns(record)} for record in job.records]
    steps = _schedule(job, len(rows))
    # Named twice: without it, Axolotl gives each data set the tokenizer's template whatever the file says above.
    chat_template = {"chat_template": "jinja", "chat_template_jinja": TEMPLATE_FILE} if job.template == "tulu" else {}
    settings = {
        "base_model": job.model,
        "datasets": [
            {
                "path": DATA_FILE,
                "ds_type": "json",
                "type": "chat_template",
                "field_messages": "messages",
                "roles_to_train": ["assistant"],
                "train_on_eos": "turn",
                **chat_template,
            }
        ],
        **chat_template,
        "output_dir": "trained",
        "sequence_len": job.max_length,
        "micro_batch_size": steps["per_device_train_batch_size"],
        "gradient_accumulation_steps": steps["gradient_accumulation_steps"],
        "num_epochs": steps["num_train_epochs"],
        "learning_rate": steps["learning_rate"],
        "lr_scheduler": recipe["schedule"],
        "warmup_steps": steps["warmup_steps"],
        "weight_decay": steps["weight_decay"],
        "max_grad_norm": steps["max_grad_norm"],
        "optimizer": steps["optim"],
        "gradient_checkpointing": steps["gradient_checkpointing"],
        "seed": job.seed,
        "bf16": "auto",
        "saves_per_epoch": 1,
    }
    if not recipe["full"]:
        adapter = recipe["adapter"]
        settings |= {
            "adapter": "lora",
            "lora_r": adapter["rank"],
            "lora_alpha": int(adapter["alpha"]),
            "lora_dropout": adapter["dropout"],
            "lora_target_modules": _target_modules(recipe),
            "peft_use_rslora": adapter["rslora"],
            "peft_use_dora": adapter["dora"],
        }
    return _write(job, rows, "axolotl.yml", settings)


def to_llamafactory(job: ExportJob) -> list[Path]:
    """Chat rows, `dataset_info.json` and `train.yaml` for `llamafactory-cli train train.yaml`.

    LLaMA-Factory reads the tokenizer's own chat template; to train in the tulu one, put the written
    `chat_template.jinja` into the model folder. Returns the files. Raises `DataError` for a conversation whose
    turns do not alternate: LLaMA-Factory would leave it out with a log line.
    """
    recipe = job.recipe
    rows = [{"messages": _alternating(record)} for record in job.records]
    info = {
        DATA_SET: {
            "file_name": DATA_FILE,
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
    }
    settings = {
        "model_name_or_path": job.model,
        "stage": "sft",
        "do_train": True,
        "dataset_dir": ".",
        "dataset": DATA_SET,
        "cutoff_len": job.max_length,
        "output_dir": "trained",
        "finetuning_type": "full" if recipe["full"] else "lora",
        **_schedule(job, len(rows)),
        "lr_scheduler_type": recipe["schedule"],
        "bf16": True,
    }
    if not recipe["full"]:
        adapter = recipe["adapter"]
        settings |= {
            "lora_rank": adapter["rank"],
            "lora_alpha": int(adapter["alpha"]),
            "lora_dropout": adapter["dropout"],
            "lora_target": ",".join(_target_modules(recipe)),
            "use_rslora": adapter["rslora"],
            "use_dora": adapter["dora"],
        }
    written = _write(job, rows, "train.yaml", settings)
    information = job.output / "dataset_info.json"
    information.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return [*written, information]


def _schedule(job: ExportJob, n_rows: int) -> dict[str, Any]:
    """The recipe in the names of transformers' `TrainingArguments`, for one device."""
    recipe = job.recipe
    batch = recipe["global_batch_size"]
    device = max(size for size in range(1, min(recipe["device_batch_size"], batch) + 1) if batch % size == 0)
    steps = recipe["epochs"] * math.ceil(n_rows / batch)
    return {
        "num_train_epochs": recipe["epochs"],
        "learning_rate": recipe["learning_rate"],
        "warmup_steps": math.ceil(recipe["warmup_ratio"] * steps),
        "weight_decay": recipe["weight_decay"],
        "max_grad_norm": recipe["max_grad_norm"],
        "optim": recipe["optimizer"],
        "per_device_train_batch_size": device,
        "gradient_accumulation_steps": batch // device,
        "gradient_checkpointing": recipe["gradient_checkpointing"],
        "save_strategy": "epoch",
        "logging_steps": 1,
        "seed": job.seed,
    }


def _target_modules(recipe: Recipe) -> list[str]:
    return list(recipe["adapter"]["target_modules"] or ATTENTION)


def _turns(record: Record) -> list[dict[str, str]]:
    """The conversation up to its last answer: what follows teaches nothing."""
    turns = [{"role": message.role, "content": message.content} for message in record.messages]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        raise DataError(f"row {record.id!r} has no assistant turn; leave it out of the export.")
    return turns


def _alternating(record: Record) -> list[dict[str, str]]:
    turns = _turns(record)
    spoken = turns[1:] if turns[0]["role"] == "system" else turns
    if any(turn["role"] != ("user", "assistant")[number % 2] for number, turn in enumerate(spoken)):
        raise DataError(
            f"row {record.id!r}: user and assistant do not take turns, and LLaMA-Factory would skip it; "
            "leave the row out, or export to trl or axolotl."
        )
    return turns


def _completions(record: Record, plain: bool) -> Iterator[dict[str, Any]]:
    turns = _turns(record)
    if plain:
        prompt, completion = turns[0]["content"], turns[1]["content"]
        seam = "" if not prompt or prompt[-1].isspace() or completion[:1].isspace() else " "
        yield {"prompt": prompt, "completion": seam + completion}
        return
    for number, turn in enumerate(turns):
        if turn["role"] == "assistant" and number:
            yield {"prompt": turns[:number], "completion": [turn]}


def _write(job: ExportJob, rows: Iterable[dict[str, Any]], name: str, settings: dict[str, Any]) -> list[Path]:
    job.output.mkdir(parents=True, exist_ok=True)
    data, configuration, template = (job.output / one for one in (DATA_FILE, name, TEMPLATE_FILE))
    # ASCII escapes keep U+2028 and its like, which some readers take for line ends, out of the file.
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    configuration.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if job.template == "model":
        return [data, configuration]
    template.write_text(TULU, encoding="utf-8")
    return [data, configuration, template]
