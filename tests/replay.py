"""One hostile file through reader, shapes, template and masks: what the fuzz and the kept corpus both do."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from gistselect.data.pool import open_pool
from gistselect.data.templates import load_template
from gistselect.data.tokens import encode
from gistselect.errors import GistSelectError
from gistselect.types import Example, Record
from texts import CHATML, CHATML_MARKED, tiny_tokenizer

SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".jsonl.gz", ".parquet", ".json.gz")
SOURCES = (
    "",
    CHATML,
    CHATML_MARKED,
    "{% for m in messages %}{{ m.role }}Ж{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
    "</s>{% endfor %}"
    "{% if add_generation_prompt %}assistantЖ{% endif %}",
)


class Replay:
    """Reads files of any bytes in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.templates: list[tuple[Any, Any]] = []
        for source in SOURCES:
            tokenizer = tiny_tokenizer()
            tokenizer.chat_template = source
            self.templates.append((load_template("model" if source else "tulu", tokenizer), tokenizer))

    def __call__(self, content: bytes) -> tuple[int, int]:
        """Rows scored and rejected of a file whose first two bytes name its kind and the template.

        (0, 0) if the whole file is refused in words.
        """
        if len(content) < 2:
            return 0, 0
        suffix = SUFFIXES[content[0] % len(SUFFIXES)]
        path = self.folder / f"pool{suffix}"
        body = content[2:]
        path.write_bytes(gzip.compress(body, 1) if suffix.endswith(".gz") and content[1] < 128 else body)
        template, tokenizer = self.templates[content[1] % len(self.templates)]
        try:
            rows = list(open_pool([path]).rows())
        except GistSelectError:
            return 0, 0
        assert [row.row for row in rows] == list(range(len(rows)))
        assert len({row.id for row in rows}) == len(rows)
        records = [row for row in rows if isinstance(row, Record)]
        assert all(row.reason for row in rows if not isinstance(row, Record))
        scored = 0
        for record, outcome in zip(records, encode(records, template, tokenizer, 4096), strict=True):
            if not isinstance(outcome, Example):
                assert outcome.reason
                continue
            scored += 1
            assert outcome.n_supervised > 0
            learned = tokenizer.decode(outcome.input_ids[outcome.supervised])
            said = "".join(
                f"{one.content}{one.reasoning}{one.tool_calls}" for one in record.messages if one.role == "assistant"
            )
            assert "Ж" in said or "Ж" not in learned, (record, learned)
        return scored, len(rows) - scored
