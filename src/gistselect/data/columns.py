"""Names that data sets give to columns and roles, and what they mean here."""

from __future__ import annotations

ROLES = ("system", "user", "assistant", "tool")
"""The roles of our messages."""

ROLE_NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "environment": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""Role names in use, in lower case. A turn of the role `function_call` or `tool_call` is a call as JSON text."""

CALL_ROLES = ("function_call", "tool_call")

PAIRS = (
    ("instruction", "response"),
    ("instruction", "completion"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("prompt", "response"),
    ("inputs", "targets"),
    ("problem", "solution"),
    ("input", "output"),
    ("user", "assistant"),
)
"""Columns of question and answer, in the order in which they are looked for."""

CONTEXT = ("input", "context")
"""Columns that are put on the line after an instruction or a question."""

SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")

PLACES = tuple(
    dict.fromkeys(
        [
            *("messages", "prompt", "completion", "instruction", "output"),
            *(name for pair in PAIRS for name in pair),
            *CONTEXT,
            *SYSTEM,
            *TOOLS,
            *("history", "text", "id", "dataset"),
        ]
    )
)
"""What a column can be said to hold."""

MULTIMODAL = ("image", "images", "audio", "audios", "video", "videos")
"""A row that has one of these is quarantined: its answer depends on more than text."""

MEANING = (*CONTEXT, *SYSTEM, *TOOLS, "history", "documents", "passage", "train_detail")
"""A row that has one of these where its shape has no place for it is quarantined."""

HARMLESS = frozenset(
    {
        "id",
        "ids",
        "uuid",
        "uid",
        "idx",
        "index",
        "key",
        "hash",
        "sha",
        "row",
        "row_id",
        "sample_id",
        "example_id",
        "conversation_id",
        "conv_id",
        "message_id",
        "parent_id",
        "prompt_id",
        "question_id",
        "problem_id",
        "original_id",
        "turn",
        "turns",
        "n_turns",
        "num_turns",
        "dataset",
        "dataset_name",
        "source",
        "sources",
        "origin",
        "subset",
        "split",
        "group",
        "task",
        "task_name",
        "task_type",
        "task_id",
        "category",
        "categories",
        "subcategory",
        "domain",
        "topic",
        "topics",
        "subject",
        "tag",
        "tags",
        "label_source",
        "license",
        "url",
        "link",
        "title",
        "author",
        "lang",
        "language",
        "locale",
        "model",
        "model_name",
        "generator",
        "teacher",
        "version",
        "revision",
        "created",
        "created_at",
        "updated_at",
        "timestamp",
        "time",
        "date",
        "meta",
        "metadata",
        "info",
        "extra",
        "extra_info",
        "stats",
        "score",
        "scores",
        "rating",
        "ratings",
        "quality",
        "difficulty",
        "level",
        "length",
        "lengths",
        "n_tokens",
        "num_tokens",
        "token_count",
        "tokens_count",
        "perplexity",
        "embedding",
        "embeddings",
        "redacted",
        "toxic",
        "openai_moderation",
    }
)
"""Columns that say something about a row and nothing within its conversation: ignored."""
