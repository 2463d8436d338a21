"""Messages in the forms that chat templates take them in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gistselect.types import Message


def as_parts(message: dict[str, Any]) -> dict[str, Any]:
    """The content as a list of parts, as models that also see images want it."""
    content = message["content"]
    return message | {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def forms(messages: Sequence[Message]) -> list[tuple[bool, str | None]]:
    """Ways to hand calls to a template: arguments as object or JSON text, a missing content as empty or as null."""
    if not any(message.tool_calls for message in messages):
        return [(False, "")]
    return [(False, ""), (False, None), (True, ""), (True, None)]


def as_dict(message: Message, as_text: bool, empty: str | None) -> dict[str, Any]:
    """Everything of a message by the names that templates know."""
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning.strip():
        told |= {"reasoning_content": message.reasoning, "thinking": message.reasoning}
    if message.tool_calls:
        told["content"] = message.content or empty
        calls = [{**call, "function": dict(call["function"])} for call in message.tool_calls]
        for call in calls:
            arguments = call["function"].get("arguments")
            if as_text and not isinstance(arguments, str):
                call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
        told["tool_calls"] = calls
    told |= {key: value for key in ("name", "tool_call_id") if (value := getattr(message, key))}
    return told
