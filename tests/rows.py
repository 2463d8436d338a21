"""Rows and pools that the tests of reading share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from gistselect.data.config import ReadOptions
from gistselect.data.parts import Rows
from gistselect.data.pool import Pool
from gistselect.types import Place, Record, Rejected


def chat(answer: str = "Yes.", **columns: object) -> dict[str, object]:
    """A row of two turns."""
    return {
        "messages": [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": answer}],
        **columns,
    }


def in_memory(rows: Iterable[object], **options: Any) -> Pool:
    """A pool of Python rows."""
    return Pool(parts=(Rows("memory", rows),), options=ReadOptions(**options))


def line(row: object) -> bytes:
    """A row as a line of a file."""
    return json.dumps(row, ensure_ascii=False).encode()


def contents(record: Record | Rejected) -> list[tuple[str, str]]:
    """Role and text of each turn; fails for a rejected row."""
    assert isinstance(record, Record), record
    return [(message.role, message.content) for message in record.messages]


def reason(record: Record | Rejected) -> str:
    """Why a row is rejected; fails if it is not."""
    assert isinstance(record, Rejected), record
    return record.reason


def places(pool: Pool) -> dict[int, Place]:
    """The place of every row."""
    found = {row.row: row.place for row in pool.rows() if row.place is not None}
    assert list(found) == list(range(len(found)))
    return found


def fetched(pool: Pool, *rows: int) -> dict[int, bytes]:
    """The bytes of some rows, or of all."""
    where = places(pool)
    return pool.fetch({row: where[row] for row in rows or where})
