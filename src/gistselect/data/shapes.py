"""Rows to conversations: one function and one line of FORMATS for each way in which data sets write them down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from gistselect.data.columns import CONTEXT, HARMLESS, MEANING, MULTIMODAL, PAIRS, SYSTEM, TOOLS
from gistselect.data.config import ReadOptions
from gistselect.data.turns import is_list, is_missing, read_tools, read_turns, shorten, text, unread_keys
from gistselect.errors import DataError
from gistselect.types import Message

Row = Mapping[str, Any]
Roles = Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """What a row says, and how it was read."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    plain: bool = False
    """Plain text (prompt/completion) rather than a chat."""
    shape: str = ""
    """Name of the shape and the columns that were read."""
    unread: tuple[str, ...] = ()
    """Columns, and keys of turns (`messages[].key`), that have a value and no place here."""


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """One way in which data sets write a conversation down."""

    columns: tuple[tuple[str, ...], ...]
    """Sets of columns of which a row of this shape has one."""
    optional: tuple[str, ...] = ()
    """Columns that the shape also reads."""
    read: Callable[[Row, tuple[str, ...], ReadOptions], tuple[tuple[Message, ...], bool]]
    """Messages of a row with these columns, and whether they are plain text; raises `DataError`."""


def _from_turns(row: Row, columns: tuple[str, ...], options: ReadOptions) -> tuple[tuple[Message, ...], bool]:
    return read_turns(row[columns[0]], _roles(options)), False


def _from_prompt_completion(
    row: Row, columns: tuple[str, ...], options: ReadOptions
) -> tuple[tuple[Message, ...], bool]:
    """Text with text is plain; with a conversation on either side, only the completion's answers are learned."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return _exchange(prompt, completion), True
    if isinstance(prompt, Mapping) and "replies" in prompt:
        raise DataError(TREE)
    roles = _roles(options)
    before = read_turns(prompt, roles) if is_list(prompt) else (_exchange(prompt, "")[0],)
    after = read_turns(completion, roles) if is_list(completion) else (_exchange("", completion)[1],)
    return (*(replace(one, supervised=one.role != "assistant") for one in before), *after), False


def _from_pair(row: Row, columns: tuple[str, ...], options: ReadOptions) -> tuple[tuple[Message, ...], bool]:
    prompt = text(row[columns[0]], f"{columns[0]!r}")
    for column in CONTEXT:
        if column not in columns and not is_missing(context := row.get(column)):
            context = text(context, f"{column!r}")
            prompt = f"{prompt}\n{context}" if context.strip() else prompt
    return _exchange(prompt, row[columns[1]]), False


def _from_text(row: Row, columns: tuple[str, ...], options: ReadOptions) -> tuple[tuple[Message, ...], bool]:
    if options.separator is None:
        raise DataError("its text does not say where the answer begins; give what stands before it as --separator")
    before, separator, after = text(row["text"], "'text'").rpartition(options.separator)
    if not separator:
        raise DataError(f"its text has no {options.separator!r} (--separator) before an answer")
    return _exchange(before + separator, after), True


FORMATS: dict[str, RowShape] = {
    "messages": RowShape(columns=(("messages",),), read=_from_turns),
    "prompt_completion": RowShape(columns=(("prompt", "completion"),), read=_from_prompt_completion),
    "alpaca": RowShape(columns=(("instruction", "output"),), optional=CONTEXT, read=_from_pair),
    "sharegpt": RowShape(columns=(("conversations",), ("conversation",)), read=_from_turns),
    "pair": RowShape(columns=PAIRS, optional=CONTEXT, read=_from_pair),
    "turns": RowShape(columns=(("data",),), read=_from_turns),
    "text": RowShape(columns=(("text",),), read=_from_text),
}

TREE = (
    "it is a tree of messages, as OASST has them, and a tree is not a conversation; flatten it first, "
    "with one row for each path from a prompt to an answer"
)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How rows with the same columns are read."""

    name: str
    columns: tuple[str, ...]
    shape: RowShape
    described: str
    unread: tuple[str, ...]
    media: tuple[str, ...]
    has_more: bool
    """Whether there is a column of tools, system text or history."""


def conversation(row: Row, options: ReadOptions) -> Conversation:
    """The conversation in a row; `auto` takes the first format of FORMATS whose columns are all there.

    Raises `DataError` with the reason if there is none that can be used, or if it has something that bears on the
    answer and has no place here.
    """
    # `is_missing`, written out: it would be a call for every cell of a pool.
    present = frozenset(
        [
            column
            for column, value in row.items()
            if value is not None and (value.__class__ is not float or value == value)
        ]
    )
    plan = _plan(present, options.format, options.separator is not None)
    if plan.media and (medium := next((column for column in plan.media if row[column]), None)):
        raise DataError(f"it is multimodal: it has {medium!r}, and only text is read")
    unread = [column for column in plan.unread if row[column] not in ("", [], {})] if plan.unread else []
    if unread and (lost := next((column for column in unread if column in MEANING), None)):
        raise DataError(
            f"it has {lost!r}, which bears on the answer and has no place in {plan.name}; "
            "say where it belongs with --columns, or remove it"
        )
    messages, plain = plan.shape.read(row, plan.columns, options)
    tools, context = (), ()
    if plan.has_more:
        tools = next((tools for column in TOOLS if (tools := read_tools(row.get(column)))), ())
        context = _context(row, messages, _roles(options))
    if not plain and len(plan.columns) == 1:
        unread += sorted({f"{plan.columns[0]}[].{key}" for key in unread_keys(row[plan.columns[0]])})
    return Conversation(
        messages=_checked((*context, *messages), options),
        tools=tools,
        plain=plain and not context and not tools,
        shape=plan.described,
        unread=tuple(unread),
    )


def _context(row: Row, messages: tuple[Message, ...], roles: Roles) -> tuple[Message, ...]:
    """Turns of the columns system and history, before those of the row."""
    context: list[Message] = []
    system = next((said for column in SYSTEM if isinstance(said := row.get(column), str) and said.strip()), None)
    if system is not None:
        own = messages[0].content if messages and messages[0].role == "system" else None
        if own is None:
            context.append(Message(role="system", content=text(system, "the system text")))
        elif own.strip() != system.strip():
            raise DataError("it has a system column and a system turn, and they differ; remove one of them")
    history = row.get("history")
    if not is_missing(history) and history:
        if is_list(history) and all(is_list(pair) and len(pair) == 2 for pair in history):
            context += [message for pair in history for message in _exchange(*pair)]
        else:
            context += read_turns(history, roles)
    return tuple(context)


@lru_cache(maxsize=4096)
def _plan(present: frozenset[str], format: str, has_separator: bool) -> _Plan:
    candidates = FORMATS if format == "auto" else {format: FORMATS[format]}
    for name, shape in candidates.items():
        columns = next((one for one in shape.columns if present.issuperset(one)), None)
        if columns is None or (name == "text" and format == "auto" and not has_separator):
            continue
        read = {*columns, *shape.optional, *SYSTEM, *TOOLS, "history"}
        described = ", ".join([*columns, *sorted(present & read - set(columns))])
        return _Plan(
            name=name,
            columns=columns,
            shape=shape,
            described=f"{name} ({described})",
            unread=tuple(sorted(present - read - HARMLESS - set(MULTIMODAL))),
            media=tuple(column for column in MULTIMODAL if column in present),
            has_more=not present.isdisjoint({*SYSTEM, *TOOLS, "history"}),
        )
    raise DataError(_misfit(present, candidates))


def _misfit(present: frozenset[str], candidates: Mapping[str, RowShape]) -> str:
    if {"chosen", "rejected"} <= present:
        return (
            "it is a preference pair (chosen, rejected), not an example to learn from; to learn from the chosen "
            "answers use --columns completion=chosen where there is a prompt, or messages=chosen"
        )
    if "message_tree_id" in present or {"parent_id", "text", "role"} <= present:
        return TREE
    if "text" in present and "text" in candidates:
        return (
            "its only text is in 'text', which does not say where the answer begins; give what stands before it as "
            "--separator, or name other columns with --columns"
        )
    accepted = "; ".join(
        f"{name} ({' or '.join(', '.join(columns) for columns in shape.columns)})" for name, shape in candidates.items()
    )
    return (
        f"its columns {shorten(sorted(present))} fit none of the accepted shapes: {accepted}; "
        "name them, for example with --columns prompt=Question completion=Answer"
    )


def renamed(row: Row, columns: tuple[str, ...]) -> Row:
    """The row with the named columns in their places; a column that stood there is not read."""
    if not columns:
        return row
    wanted = dict(pair.split("=", 1) for pair in columns)
    taken = {column for column in wanted.values() if column in row}
    kept = {column: value for column, value in row.items() if column not in taken and column not in wanted}
    return kept | {place: row[column] for place, column in wanted.items() if column in row}


@lru_cache(maxsize=64)
def _named_roles(roles: tuple[str, ...]) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in roles)


def _roles(options: ReadOptions) -> Roles:
    return _named_roles(options.roles)


def _exchange(prompt: Any, answer: Any) -> tuple[Message, ...]:
    return (
        Message(role="user", content=text(prompt, "the prompt")),
        Message(role="assistant", content=text(answer, "the answer")),
    )


def _checked(messages: tuple[Message, ...], options: ReadOptions) -> tuple[Message, ...]:
    if not messages:
        raise DataError("the list of messages is empty")
    answers = [position for position, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise DataError("it has no assistant turn, so there is nothing to learn from it")
    if any(
        not (messages[one].content.strip() or messages[one].tool_calls or messages[one].reasoning) for one in answers
    ):
        raise DataError("an assistant turn is empty")
    learned = [position for position in answers if messages[position].supervised]
    if not learned:
        raise DataError("all its assistant turns are marked as context only, so there is nothing to learn from it")
    if options.supervise == "all" or len(learned) == 1:
        return messages
    return tuple(
        replace(message, supervised=False) if position in learned[:-1] else message
        for position, message in enumerate(messages)
    )
