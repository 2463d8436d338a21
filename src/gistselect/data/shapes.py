"""Rows to conversations: one function and one line of FORMATS for each way in which data sets write them down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gistselect.errors import DataError
from gistselect.types import Message

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {role: role for role in ROLES} | {"human": "user", "gpt": "assistant"}

Row = Mapping[str, Any]
Conversation = tuple[tuple[Message, ...], bool]
"""Messages, and whether they are plain text (prompt/completion) rather than a chat."""


def _from_messages(row: Row) -> Conversation:
    return _turns(row["messages"], "role", "content", {role: role for role in ROLES}), False


def _from_prompt_completion(row: Row) -> Conversation:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list | tuple) and isinstance(completion, list | tuple):
        return _from_messages({"messages": [*prompt, *completion]})
    return _exchange(prompt, completion), True


def _from_alpaca(row: Row) -> Conversation:
    instruction, context = text(row["instruction"], "'instruction'"), row.get("input")
    if context is not None and text(context, "'input'").strip():
        instruction = f"{instruction}\n{context}"
    return _exchange(instruction, row["output"]), False


def _from_sharegpt(row: Row) -> Conversation:
    return _turns(row["conversations"], "from", "value", SHAREGPT_ROLES), False


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """One way in which data sets write a conversation down."""

    columns: tuple[str, ...]
    """Columns that a row of this shape must have."""
    read: Callable[[Row], Conversation]
    """Raises `DataError` with the reason if the row cannot be used."""


FORMATS: dict[str, RowShape] = {
    "messages": RowShape(columns=("messages",), read=_from_messages),
    "prompt_completion": RowShape(columns=("prompt", "completion"), read=_from_prompt_completion),
    "alpaca": RowShape(columns=("instruction", "output"), read=_from_alpaca),
    "sharegpt": RowShape(columns=("conversations",), read=_from_sharegpt),
}


def conversation(row: Row, format: str) -> Conversation:
    """The conversation in a row; `auto` takes the first format of FORMATS whose columns are all there.

    Raises `DataError` with the reason if there is none that can be used.
    """
    candidates = FORMATS if format == "auto" else {format: FORMATS[format]}
    for shape in candidates.values():
        if all(row.get(column) is not None for column in shape.columns):
            messages, plain = shape.read(row)
            return _checked(messages), plain
    accepted = "; ".join(f"{name} ({', '.join(shape.columns)})" for name, shape in candidates.items())
    raise DataError(f"its columns {shorten(sorted(row))} fit none of the accepted shapes: {accepted}")


def _turns(turns: Any, role_key: str, text_key: str, roles: Mapping[str, str]) -> tuple[Message, ...]:
    if not isinstance(turns, list | tuple):
        raise DataError(f"the conversation is a {type(turns).__name__}, not a list of turns")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
            raise DataError(f"turn {number} is not an object with {role_key!r} and {text_key!r}")
        role = turn[role_key]
        if not isinstance(role, str) or role not in roles:
            raise DataError(f"turn {number} has the role {shorten(role)}; allowed: {', '.join(roles)}")
        messages.append(Message(role=roles[role], content=text(turn[text_key], f"turn {number}")))
    return tuple(messages)


def _exchange(prompt: Any, answer: Any) -> tuple[Message, ...]:
    return (
        Message(role="user", content=text(prompt, "the prompt")),
        Message(role="assistant", content=text(answer, "the answer")),
    )


def _checked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if not messages:
        raise DataError("the list of messages is empty")
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise DataError("it has no assistant turn, so there is nothing to learn from it")
    if any(not answer.content.strip() for answer in answers):
        raise DataError("an assistant turn is empty")
    return messages


def text(value: Any, what: str) -> str:
    """The value if it is text that UTF-8 can hold (JSON can smuggle in half of a surrogate pair).

    Raises `DataError` that names `what` otherwise.
    """
    if not isinstance(value, str):
        raise DataError(f"{what} is a {type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} is not valid Unicode: lone surrogate at character {error.start}") from None
    return value


def shorten(value: Any, limit: int = 200) -> str:
    """The value as Python writes it, cut for a message."""
    shown = repr(value)
    return shown if len(shown) <= limit else f"{shown[:limit]}…"
