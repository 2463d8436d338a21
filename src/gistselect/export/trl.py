"""Rows and configuration for TRL: `trl sft --config sft_config.yaml`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gistselect.errors import DataError
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
from gistselect.types import Record

CONFIGURATION = "sft_config.yaml"


def to_trl(job: ExportJob) -> list[Path]:
    """Prompt/completion rows; TRL trains on the completions.

    A conversation becomes a row for each of its supervised answers, with the turns before it as the prompt; plain
    text stays text. Raises `DataError` for a mixture of both: TRL takes the first row's kind for all.
    """
    plain = job.records[0].plain
    if other := next((record for record in job.records if record.plain != plain), None):
        raise DataError(
            f"rows {job.records[0].id!r} and {other.id!r} are a conversation and plain text, which TRL cannot train on "
            "together as they were scored; export to axolotl, or select from one kind."
        )
    rows = [row for record in job.records for row in ([_text(record)] if plain else _answers(record))]
    settings = {
        "model_name_or_path": job.base_model,
        "datasets": [{"path": "json", "data_files": DATA_FILE}],
        "output_dir": "trained",
        "max_length": job.max_length,
        "completion_only_loss": True,
        **schedule(job, len(rows)),
        "lr_scheduler_type": job.config.schedule,
    }
    if job.model.revision is not None:
        settings["model_revision"] = job.model.revision
    if job.model.quantization != "none":
        settings[f"load_in_{job.model.quantization}"] = True
    if job.model.trust_remote_code:
        settings["trust_remote_code"] = True
    if not job.config.full:
        adapter = job.config.adapter
        settings |= {
            "use_peft": True,
            "lora_r": adapter.rank,
            "lora_alpha": job.alpha,
            "lora_dropout": adapter.dropout,
            "lora_target_modules": _listed(job.target_modules),
            "use_rslora": adapter.rslora,
            "use_dora": adapter.dora,
        }
    if job.template_source is not None and not plain:
        settings["chat_template_path"] = TEMPLATE_FILE
    return write(job, {DATA_FILE: json_lines(rows), CONFIGURATION: yaml_text(settings)})


def _listed(targets: list[str] | str) -> list[str]:
    """TRL takes a list, and hands a list of one on as a pattern of whole names."""
    if isinstance(targets, str):
        return [targets]
    return targets if len(targets) > 1 else [rf".*\.{re.escape(targets[0])}"]


def _text(record: Record) -> dict[str, str]:
    prompt, completion = plain_text(record)
    return {"prompt": prompt, "completion": completion}


def _answers(record: Record) -> Iterator[dict[str, Any]]:
    turns = learned_turns(record)
    tools = {"tools": [dict(tool) for tool in record.tools]} if record.tools else {}
    for number, turn in enumerate(turns):
        if turn.role == "assistant" and turn.supervised and number:
            yield {"prompt": [chat_turn(one) for one in turns[:number]], "completion": [chat_turn(turn)], **tools}
