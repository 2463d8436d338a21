"""Rows and configuration for LLaMA-Factory: `llamafactory-cli train train.yaml`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gistselect.errors import ConfigError, DataError
from gistselect.export.job import (
    DATA_FILE,
    ExportJob,
    json_lines,
    learned_turns,
    schedule,
    write,
    yaml_text,
)
from gistselect.model.adapters import ALL_LINEAR
from gistselect.types import Message, Record

CONFIGURATION, INFORMATION = "train.yaml", "dataset_info.json"
DATA_SET = "gistselect"
"""Name of the data set in `dataset_info.json`."""
CALL, RESULT = "function_call", "observation"
TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "function_tag": CALL,
    "observation_tag": RESULT,
    "system_tag": "system",
}


def to_llamafactory(job: ExportJob) -> list[Path]:
    """Chat rows, `dataset_info.json` and `train.yaml`. Returns the files.

    LLaMA-Factory reads the tokenizer's own chat template; to train in another one, put the written
    `chat_template.jinja` into the model folder. Raises `DataError` for what it would change or leave out with a log
    line: turns that do not alternate, plain text, reasoning, an answer that is context only.
    """
    recipe = job.config
    if job.template == "tulu" and (called := next((one for one in job.records if _uses_tools(one)), None)):
        raise _refusal(called, "has tools or calls, which LLaMA-Factory would write otherwise than the tulu template")
    masked = any(_skipped(record) for record in job.records)
    rows = [_row(record, masked) for record in job.records]
    tools = {"tools": "tools"} if any(record.tools for record in job.records) else {}
    columns = {"messages": "messages", **tools}
    info = {DATA_SET: {"file_name": DATA_FILE, "formatting": "sharegpt", "columns": columns, "tags": TAGS}}
    settings: dict[str, Any] = {
        "model_name_or_path": job.base_model,
        "stage": "sft",
        "do_train": True,
        "dataset_dir": ".",
        "dataset": DATA_SET,
        "cutoff_len": job.max_length,
        **({"mask_history": True} if masked else {}),
        "output_dir": "trained",
        "finetuning_type": "full" if recipe.full else "lora",
        **schedule(job, len(rows)),
        "lr_scheduler_type": recipe.schedule,
        "bf16": True,
    }
    if job.model.revision is not None:
        settings["model_revision"] = job.model.revision
    if job.model.quantization != "none":
        settings |= {"quantization_bit": int(job.model.quantization.removesuffix("bit")), "quantization_method": "bnb"}
    if job.model.trust_remote_code:
        settings["trust_remote_code"] = True
    if not recipe.full:
        settings |= {
            "lora_rank": recipe.adapter.rank,
            "lora_alpha": job.alpha,
            "lora_dropout": recipe.adapter.dropout,
            "lora_target": _target(job.target_modules),
            "use_rslora": recipe.adapter.rslora,
            "use_dora": recipe.adapter.dora,
        }
    files = {
        DATA_FILE: json_lines(rows),
        CONFIGURATION: yaml_text(settings),
        INFORMATION: json.dumps(info, indent=2) + "\n",
    }
    return write(job, files)


def _target(targets: list[str] | str) -> str:
    if targets == ALL_LINEAR:
        return "all"
    if isinstance(targets, str):
        raise ConfigError(
            f"LLaMA-Factory takes names of layers, not the pattern {targets!r}; name them in "
            "--finetune.adapter.target-modules, or export to trl or axolotl."
        )
    return ",".join(targets)


def _skipped(record: Record) -> bool:
    """Whether an answer before the last one is context only."""
    return any(turn.role == "assistant" and not turn.supervised for turn in learned_turns(record))


def _uses_tools(record: Record) -> bool:
    return bool(record.tools) or any(turn.tool_calls for turn in record.messages)


def _row(record: Record, masked: bool) -> dict[str, Any]:
    if record.plain:
        raise _refusal(record, "is plain text, which LLaMA-Factory would put into a chat template")
    turns = learned_turns(record)
    if masked and any(turn.role == "assistant" and turn.supervised for turn in turns[:-1]):
        raise _refusal(record, "has several answers to learn, others of the selection only the last")
    messages = [_turn(record, turn) for turn in turns]
    spoken = messages[1:] if messages[0]["role"] == "system" else messages
    for number, message in enumerate(spoken):
        if message["role"] not in (("user", RESULT), ("assistant", CALL))[number % 2]:
            raise _refusal(record, "has turns that do not alternate, and LLaMA-Factory would skip it")
    return {"messages": messages, **({"tools": json.dumps(list(map(dict, record.tools)))} if record.tools else {})}


def _turn(record: Record, message: Message) -> dict[str, str]:
    if message.reasoning:
        raise _refusal(record, "has reasoning apart from the answer, which LLaMA-Factory has no place for")
    if message.tool_calls and message.content:
        raise _refusal(record, "has a turn with both a text and a call")
    if message.tool_calls:
        calls = [call.get("function", call) for call in message.tool_calls]
        return {"role": CALL, "content": json.dumps(calls[0] if len(calls) == 1 else calls)}
    return {"role": RESULT if message.role == "tool" else message.role, "content": message.content}


def _refusal(record: Record, what: str) -> DataError:
    return DataError(f"row {record.id!r} {what}; leave the row out, or export to trl or axolotl.")
