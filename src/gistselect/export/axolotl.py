"""Rows and configuration for Axolotl: `axolotl train axolotl.yml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gistselect.export.job import (
    DATA_FILE,
    TEMPLATE_FILE,
    ExportJob,
    chat_turn,
    json_lines,
    learned_turns,
    plain_text,
    schedule,
    write,
    yaml_text,
)
from gistselect.model.adapters import ALL_LINEAR
from gistselect.types import Record

CONFIGURATION = "axolotl.yml"
TEXT_FILE = "selected_text.jsonl"
LEARNED = "train"
"""Field of a turn that says whether it is learned."""


def to_axolotl(job: ExportJob) -> list[Path]:
    """Conversations with a mark on each turn that is learned, and plain text in segments. Returns the files."""
    recipe = job.config
    chats = [_chat(record) for record in job.records if not record.plain]
    texts = [_segments(record, job.eos_token) for record in job.records if record.plain]
    steps = schedule(job, len(chats) + len(texts))
    # Named twice: without it, Axolotl gives each data set the tokenizer's template whatever the file says above.
    own = {"chat_template": "jinja", "chat_template_jinja": TEMPLATE_FILE} if job.template_source is not None else {}
    settings: dict[str, Any] = {
        "base_model": job.base_model,
        "datasets": [
            *([_chat_set(own, any(record.tools for record in job.records))] if chats else []),
            *([{"path": TEXT_FILE, "ds_type": "json", "type": "input_output"}] if texts else []),
        ],
        **(own if chats else {}),
        "output_dir": "trained",
        "sequence_len": job.max_length,
        "micro_batch_size": steps["per_device_train_batch_size"],
        "gradient_accumulation_steps": steps["gradient_accumulation_steps"],
        "num_epochs": steps["num_train_epochs"],
        "learning_rate": steps["learning_rate"],
        "lr_scheduler": recipe.schedule,
        "warmup_steps": steps["warmup_steps"],
        "weight_decay": steps["weight_decay"],
        "max_grad_norm": steps["max_grad_norm"],
        "optimizer": steps["optim"],
        "gradient_checkpointing": steps["gradient_checkpointing"],
        "seed": job.seed,
        "bf16": "auto",
        "saves_per_epoch": 1,
    }
    if job.model.revision is not None:
        settings["revision_of_model"] = job.model.revision
    if job.model.quantization != "none":
        settings[f"load_in_{job.model.quantization}"] = True
    if job.model.trust_remote_code:
        settings["trust_remote_code"] = True
    if not recipe.full:
        targets = job.target_modules
        settings |= {
            "adapter": "qlora" if job.model.quantization == "4bit" else "lora",
            "lora_r": recipe.adapter.rank,
            "lora_alpha": job.alpha,
            "lora_dropout": recipe.adapter.dropout,
            **({"lora_target_linear": True} if targets == ALL_LINEAR else {"lora_target_modules": targets}),
            "peft_use_rslora": recipe.adapter.rslora,
            "peft_use_dora": recipe.adapter.dora,
        }
    files = {DATA_FILE: json_lines(chats)} if chats else {}
    files |= {TEXT_FILE: json_lines(texts)} if texts else {}
    return write(job, {**files, CONFIGURATION: yaml_text(settings)})


def _chat_set(template: dict[str, str], tools: bool) -> dict[str, Any]:
    return {
        "path": DATA_FILE,
        "ds_type": "json",
        "type": "chat_template",
        "field_messages": "messages",
        **({"field_tools": "tools"} if tools else {}),
        "roles_to_train": [],
        "message_field_training": LEARNED,
        "train_on_eos": "turn",
        **template,
    }


def _chat(record: Record) -> dict[str, Any]:
    messages = [
        chat_turn(turn) | {LEARNED: turn.role == "assistant" and turn.supervised} for turn in learned_turns(record)
    ]
    return {"messages": messages, **({"tools": [dict(tool) for tool in record.tools]} if record.tools else {})}


def _segments(record: Record, eos: str) -> dict[str, Any]:
    prompt, completion = plain_text(record)
    return {"segments": [{"label": False, "text": prompt}, {"label": True, "text": completion + eos}]}
