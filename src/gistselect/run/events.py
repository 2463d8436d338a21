"""`events.jsonl`: what a run was at and when, a JSON object a line, for programs that watch it.

Lines are only ever added, each by one write, so that a killed run leaves whole lines behind. They hold names of stages
and of targets, and numbers: nothing that a data set says.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gistselect.files import json_line

EVENTS = "events.jsonl"


class Events:
    """The events of one process. What cannot be written is left out: a full disk is for the work itself to report."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        if (size := os.fstat(self._file).st_size) and os.pread(self._file, 1, size - 1) != b"\n":
            # A full disk may have cut the last line off: it spoils no other.
            with suppress(OSError):
                os.write(self._file, b"\n")

    def write(self, event: str, **facts: Any) -> None:
        """One line: the time in UTC, the event, and its facts without those that are None."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        known = {name: _rounded(value) for name, value in facts.items() if value is not None}
        with suppress(OSError):
            os.write(self._file, json_line({"time": now, "event": event, **known}) + b"\n")

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
