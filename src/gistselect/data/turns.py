"""Turns of a conversation as data sets write them down, to messages with all that they carry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gistselect.data.columns import CALL_ROLES, MULTIMODAL, ROLE_NAMES
from gistselect.errors import DataError
from gistselect.types import Message

ROLE_KEYS = ("role", "from")
TEXT_KEYS = ("content", "value")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
FLAG_KEYS = ("weight", "train", "loss")
"""0 or false: the turn is context only."""

_PLAIN_ROLES = {name: role for name, role in ROLE_NAMES.items() if name not in CALL_ROLES}

_READ_KEYS = {
    *ROLE_KEYS,
    *TEXT_KEYS,
    *REASONING_KEYS,
    *FLAG_KEYS,
    "tool_calls",
    "function_call",
    "name",
    "tool_call_id",
}
_HARMLESS_KEYS = {"id", "turn", "turn_id", "timestamp", "model", "created_at", "lang", "language", "type"}


def read_turns(turns: Any, roles: Mapping[str, str]) -> tuple[Message, ...]:
    """Messages of a list of turns, or of the JSON text of one; `roles` are names beyond ROLE_NAMES.

    A list of texts alternates between user and assistant. Raises `DataError` with the turn and what is wrong.
    """
    if isinstance(turns, str):
        turns = from_json(turns, "the conversation is a text that")
    if not is_list(turns):
        raise DataError(f"the conversation is {kind(turns)}, not a list of turns")
    if turns and all(isinstance(turn, str) for turn in turns):
        return tuple(
            Message(role="assistant" if i % 2 else "user", content=text(turn, f"turn {i + 1}"))
            for i, turn in enumerate(turns)
        )
    return tuple(_read_turn(turn, f"turn {number}", roles) for number, turn in enumerate(turns, start=1))


def unread_keys(turns: Any) -> Iterator[str]:
    """Keys of turns that have a value and no place in a message."""
    for turn in turns if is_list(turns) else ():
        if isinstance(turn, Mapping) and len(turn) > 2:
            for key, value in turn.items():
                has_value = not is_missing(value) and value not in ("", [])
                if has_value and key not in _READ_KEYS and key not in _HARMLESS_KEYS:
                    yield str(key)


def _read_turn(turn: Any, what: str, roles: Mapping[str, str]) -> Message:
    if isinstance(turn, dict) and len(turn) == 2 and not roles and (plainest := _plain_turn(turn, what)):
        return plainest
    if not isinstance(turn, Mapping):
        raise DataError(f"{what} is {kind(turn)}, not an object with role and content")
    given = _first(turn, ROLE_KEYS)
    if given is None:
        raise DataError(f"{what} has no role (looked for {', '.join(ROLE_KEYS)}); its keys: {shorten(sorted(turn))}")
    name = given.strip().lower() if isinstance(given, str) else None
    role = (roles.get(given) or roles.get(name or "") or ROLE_NAMES.get(name or "")) if name else None
    if role is None:
        raise DataError(
            f"{what} has the role {shorten(given)}, which is not known; say what it is with --roles NAME=ROLE, "
            "ROLE being system, user, assistant or tool"
        )
    if medium := next((key for key in MULTIMODAL if turn.get(key)), None):
        raise DataError(f"{what} is multimodal: it has {medium!r}, and only text is read")
    calls = [*_calls(turn.get("tool_calls"), what), *_calls(turn.get("function_call"), what)]
    reasoning = text(_first(turn, REASONING_KEYS) or "", f"the reasoning of {what}")
    content = _first(turn, TEXT_KEYS)
    if content is None and not calls and not reasoning and not any(key in turn for key in TEXT_KEYS):
        raise DataError(f"{what} has no content (looked for {', '.join(TEXT_KEYS)}); its keys: {shorten(sorted(turn))}")
    if name in CALL_ROLES and (called := _call_text(content, what)):
        calls, content = [*calls, *called], ""
    if content is None and role in ("system", "user"):
        raise DataError(f"{what} ({role}) has no text: its content is null")
    content, thought = _content(content, what)
    return Message(
        role=role,
        content=content,
        reasoning=reasoning or thought,
        tool_calls=tuple(calls),
        name=text(turn.get("name") or "", f"the name in {what}"),
        tool_call_id=text(turn.get("tool_call_id") or "", f"the tool_call_id of {what}"),
        supervised=role != "assistant" or _is_learned(turn, what),
    )


def _plain_turn(turn: dict[str, Any], what: str) -> Message | None:
    """A turn of role and text alone, as nearly all are: they need none of the questions that others raise."""
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(role, str) and isinstance(content, str) and (known := _PLAIN_ROLES.get(role)):
        return Message(role=known, content=content if content.isascii() else text(content, what))
    return None


def _content(content: Any, what: str) -> tuple[str, str]:
    """Text and reasoning of a content, whose text parts are joined."""
    if is_missing(content):
        return "", ""
    if isinstance(content, Mapping):
        content = [content]
    if not is_list(content):
        return text(content, what), ""
    said, thought = [], []
    for part in content:
        if isinstance(part, str):
            said.append(text(part, what))
            continue
        given = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or not (given is None or isinstance(given, str)):
            raise DataError(f"{what} has a part that is {kind(part)}, not an object with a type")
        medium = next((one for one in MULTIMODAL[::2] if one in (given or "") or part.get(one)), None)
        if medium:
            raise DataError(f"{what} is multimodal: it has an {medium} part, and only text is read")
        if given == "thinking" and isinstance(part.get("thinking"), str):
            thought.append(text(part["thinking"], what))
        elif given in (None, "text", "input_text", "output_text") and isinstance(part.get("text"), str):
            said.append(text(part["text"], what))
        else:
            raise DataError(f"{what} has a part of the type {shorten(given)}, which is not text")
    return "".join(said), "\n".join(thought)


def _is_learned(turn: Mapping[str, Any], what: str) -> bool:
    for key in FLAG_KEYS:
        if is_missing(value := turn.get(key)):
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise DataError(f"{what} has {key}={shorten(value)}; allowed: 0 or false for context only, 1 or true")
        if not value:
            return False
    return True


def _calls(given: Any, what: str) -> list[Mapping[str, Any]]:
    """Calls as OpenAI writes them, with arguments as an object wherever they are one."""
    if isinstance(given, str) and given.strip():
        given = from_json(given, f"the calls of {what} are a text that")
    if is_missing(given) or given in ("", [], {}):
        return []
    calls = []
    for call in given if is_list(given) else [given]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"{what} has a call without the name of a function: {shorten(call)}")
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str):
            arguments = _object(arguments) or arguments
        described: dict[str, Any] = {"type": "function"}
        if isinstance(call, Mapping) and isinstance(identity := call.get("id"), str):
            described["id"] = identity
        described["function"] = {"name": function["name"], "arguments": {} if arguments is None else arguments}
        calls.append(encodable(described, f"the call in {what}"))
    return calls


def _call_text(content: Any, what: str) -> list[Mapping[str, Any]]:
    """The calls that a turn of a call role writes as JSON; none if it writes them otherwise."""
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError):
            return []
    items = content if is_list(content) else [content]
    if not all(isinstance(one, Mapping) and isinstance(one.get("function", one), Mapping) for one in items):
        return []
    if not all(isinstance(one.get("function", one).get("name"), str) for one in items):
        return []
    return _calls(content, what)


def read_tools(given: Any) -> tuple[Mapping[str, Any], ...]:
    """Descriptions of functions, each in the form `{"type": "function", "function": {…}}`; nulls are left out.

    Raises `DataError` if they are something else.
    """
    if isinstance(given, str) and given.strip():
        given = from_json(given, "its 'tools' are a text that")
    if is_missing(given) or given in ("", [], {}):
        return ()
    tools = []
    for tool in given if is_list(given) else [given]:
        if not isinstance(tool, Mapping):
            raise DataError(f"its 'tools' hold {kind(tool)}, not an object that describes a function")
        tool = _without_nulls(tool)
        tools.append(tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool})
    return tuple(encodable(tool, "a tool") for tool in tools)


def _without_nulls(value: Any) -> Any:
    """Tables pad objects of one column to the same keys, with nulls."""
    if isinstance(value, Mapping):
        return {str(key): _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if is_list(value) else value


def encodable(value: Any, what: str) -> Any:
    """The value as plain JSON data. Raises `DataError` if it is not, or if UTF-8 cannot hold a text in it."""
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
        written.encode()
        return json.loads(written)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON data: {error}") from None


def from_json(value: str, what: str) -> Any:
    """What a JSON text holds. Raises `DataError` that begins with `what`."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON: {error}") from None


def _object(value: str) -> dict[str, Any] | None:
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _first(turn: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((turn[key] for key in keys if not is_missing(turn.get(key))), None)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: null, or the NaN that tables write for it."""
    return value is None or (isinstance(value, float) and value != value)


def is_list(value: Any) -> bool:
    """Whether it is a list as JSON or a table has it."""
    return isinstance(value, list | tuple)


def text(value: Any, what: str) -> str:
    """The value if it is text that UTF-8 can hold (JSON can smuggle in half of a surrogate pair).

    Raises `DataError` that names `what` otherwise.
    """
    if not isinstance(value, str):
        raise DataError(f"{what} is {kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} is not valid Unicode: lone surrogate at character {error.start}") from None
    return value


def kind(value: Any) -> str:
    """What a value is, in words that hold for any kind of file."""
    if is_missing(value):
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if is_list(value) else f"of the type {type(value).__name__}"


def shorten(value: Any, limit: int = 200) -> str:
    """The value as Python writes it, cut for a message."""
    shown = repr(value)
    return shown if len(shown) <= limit else f"{shown[:limit]}…"
