"""Records as JSON: whole, to be read back, or as the chat rows that trainers read."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from gistselect.types import Message, Record

OWN_COLUMNS = ("id", "source", "row", "place")
"""Fields of a record that are stored beside its JSON."""

_MESSAGE_DEFAULTS = {field.name: field.default for field in fields(Message)}
_RECORD_DEFAULTS = {field.name: field.default for field in fields(Record) if field.name not in OWN_COLUMNS}


def record_json(record: Record) -> str:
    """Everything of a record but its OWN_COLUMNS, as one JSON object; fields at their default are left out."""
    stored = _told(record, _RECORD_DEFAULTS) | {"messages": [_told(one, _MESSAGE_DEFAULTS) for one in record.messages]}
    return json.dumps(stored, ensure_ascii=False)


def record_from_json(stored: str) -> dict[str, Any]:
    """The fields that `record_json` wrote, as arguments for `Record` beside its OWN_COLUMNS."""
    found = json.loads(stored)
    messages = tuple(Message(**one | {"tool_calls": tuple(one.get("tool_calls", ()))}) for one in found["messages"])
    return found | {"messages": messages, "tools": tuple(found.get("tools", ()))}


def _told(thing: Message | Record, defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, default in defaults.items() if (value := getattr(thing, name)) != default}


def normalised(record: Record) -> dict[str, Any]:
    """A record as a chat row in the names that trainers read, whatever shape it was read from."""
    row: dict[str, Any] = {
        "id": record.id,
        "dataset": record.source,
        "messages": list(map(_chat_turn, record.messages)),
    }
    return row | ({"tools": list(record.tools)} if record.tools else {})


def _chat_turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = list(message.tool_calls)
    turn |= {name: value for name in ("name", "tool_call_id") if (value := getattr(message, name))}
    return turn if message.supervised else turn | {"weight": 0}
