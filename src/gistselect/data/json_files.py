"""Files of JSON as parts of a pool: an object a line, or objects that span lines, or one array of them."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import Any, Literal

from gistselect.data.parts import File, Item, readable, scan
from gistselect.errors import DataError
from gistselect.types import Place

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
CHUNK = 1 << 18
"""Bytes that are read at a time where rows are not lines."""

_SPACE = re.compile(r"[ \t\n\r]*")
LONGEST_LINE = 1 << 30
"""Bytes of a line; a small archive can hold one that no memory holds."""
LONGEST_OBJECT = 1 << 24
"""Characters that are read to see whether an object that spans lines is a row."""

_CONVERSATIONS = {"messages", "conversations", "conversation", "history", "tools"}
_NEARLY_CUT = 16
"""An error this close to the end of what was read may be the cut and not the file."""

Layout = Literal["lines", "objects", "array"]


class Json(File):
    """How the file is laid out is seen from its beginning, whatever its name says.

    Rows that are lines keep their bytes; a line ends at a line feed only, and a byte order mark belongs to the file.
    Other rows become one JSON object each. `key` names the array within an object that holds the rows.
    """

    def __init__(self, path: Any, key: str | None = None) -> None:
        super().__init__(path)
        self.key = key

    @property
    def unit(self) -> str:
        return {"lines": "line", "objects": "object", "array": "item"}[self._layout]

    @cached_property
    def _layout(self) -> Layout:
        if self.key is not None:
            return "array"
        with readable(self.name), self.open() as stream:
            first, second = _data_line(stream), _data_line(stream)
        if first[:1] not in (b"[", b"{"):
            return "lines"
        try:
            whole = json.loads(first)
        except (ValueError, RecursionError):
            return self._array_or_lines() if first[:1] == b"[" else self._objects_or_lines()
        if isinstance(whole, list):
            return "lines" if second else "array"
        if not second:
            self._refuse_wrapping(whole)
        return "lines"

    def _array_or_lines(self) -> Layout:
        """Whether an array that does not end in its line goes on in later ones; a broken first line does not."""
        with readable(self.name), self.open() as stream:
            try:
                next(JsonValues(stream).array())
            except (_MalformedError, StopIteration):
                return "lines"
            except _TooLongError:
                pass
        return "array"

    def _objects_or_lines(self) -> Layout:
        """Whether an object that does not end in its line ends in a later one; a broken line does not."""
        with readable(self.name), self.open() as stream:
            values = JsonValues(stream)
            try:
                first = next(values.objects(longest=LONGEST_OBJECT))
                if not values.peek():
                    self._refuse_wrapping(first)
            except (_MalformedError, StopIteration):
                return "lines"
            except _TooLongError:
                pass
        return "objects"

    def _refuse_wrapping(self, whole: Any) -> None:
        """Raises `DataError` that names the key if the rows are in an array within the one object of the file."""
        if not isinstance(whole, dict) or not _CONVERSATIONS.isdisjoint(whole):
            return
        keys = [key for key, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
        if keys:
            raise DataError(
                f"{self.name} is one object with rows under {' or '.join(map(repr, keys))}; "
                f"name them as {self.name}:{keys[0]}"
            )

    def items(self) -> Iterator[Item]:
        with readable(self.name), self.open() as stream:
            if self._layout == "lines":
                yield from lines(stream, self.name)
            else:
                for number, value in enumerate(self._values(stream)):
                    yield number, number, value

    def _values(self, stream: io.BufferedReader) -> Iterator[Any]:
        values = JsonValues(stream)
        try:
            if self.key is not None:
                yield from values.array_under(self.key)
            elif self._layout == "array":
                yield from values.array()
            else:
                yield from values.objects()
        except _MalformedError as error:
            raise DataError(f"cannot read {self.name}: {error}. Check that the file is complete and is JSON.") from None

    @property
    def has_plain_lines(self) -> bool:
        """Whether rows are lines, and stand in the file at their offsets."""
        return self._layout == "lines" and not self.path.name.endswith((".gz", ".zst"))

    def fetch(self, places: Mapping[int, Place]) -> Iterator[tuple[int, bytes]]:
        if not self.has_plain_lines:
            yield from scan(self.items(), places)
            return
        with readable(self.name), self.path.open("rb") as stream:
            for row, place in sorted(places.items(), key=lambda entry: entry[1].offset):
                stream.seek(place.offset)
                line = stream.read(place.length + 1)
                if line[place.length :] in (b"", b"\n"):
                    yield row, line[: place.length]


def lines(
    stream: io.BufferedReader, name: str, offset: int = 0, first: int = 1, stop: int | None = None
) -> Iterator[Item]:
    """The data lines of a file from this offset on, where the line of number `first` begins.

    With `stop`, those that begin before it. Raises `DataError` for a line that is too long.
    """
    for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE), b""), start=first):
        if stop is not None and offset >= stop:
            return
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            raise DataError(f"{name}, line {number}: the line is longer than {LONGEST_LINE:,} bytes; split the file.")
        start, offset = offset, offset + len(line)
        if start == 0 and line.startswith(BYTE_ORDER_MARK):
            line, start = line.removeprefix(BYTE_ORDER_MARK), len(BYTE_ORDER_MARK)
        line = line.removesuffix(b"\n")
        if line.strip():
            yield number, start, line


def _data_line(stream: io.BufferedReader) -> bytes:
    """The next line that is not blank, stripped; empty at the end."""
    lines = iter(partial(stream.readline, LONGEST_LINE), b"")
    stripped = (line.removeprefix(BYTE_ORDER_MARK).strip() for line in lines)
    return next((line for line in stripped if line), b"")


class _MalformedError(Exception):
    """The stream holds something else than was expected."""


class _TooLongError(Exception):
    """A value is longer than what was asked for."""


class JsonValues:
    """JSON values one after another from a stream of bytes, of which only what is unread is held."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._json = json.JSONDecoder()
        self._text = ""
        self._position = 0
        self._ended = False

    def array(self) -> Iterator[Any]:
        """The items of an array, with which the stream must end."""
        self.expect("[")
        yield from self._items()
        if self.peek():
            raise _MalformedError("there is more after its JSON array")

    def objects(self, longest: int | None = None) -> Iterator[Any]:
        """Values that follow each other, with or without commas between; `longest` limits their characters."""
        while self.peek():
            yield self._value(longest)
            if self.peek() == ",":
                self.expect(",")

    def array_under(self, key: str) -> Iterator[Any]:
        """The items of the array that an object has under this key; what follows it is not read."""
        self.expect("{")
        for name in self._keys():
            if name == key and self.peek() == "[":
                self.expect("[")
                yield from self._items()
                return
            self._value()
        raise _MalformedError(f"it is no JSON object with an array under {key!r}")

    def _keys(self) -> Iterator[str]:
        while self.peek() == '"':
            name = self._value()
            self.expect(":")
            self.peek()
            yield name
            if self.peek() == ",":
                self.expect(",")
        self.expect("}")

    def _items(self) -> Iterator[Any]:
        if self.peek() != "]":
            yield self._value()
            while self.peek() == ",":
                self.expect(",")
                yield self._value()
        self.expect("]")

    def expect(self, character: str) -> None:
        """Read this character, after white space."""
        if self.peek() != character:
            found = self._text[self._position : self._position + 20]
            raise _MalformedError(f"{character!r} is missing where {found!r} stands")
        self._position += 1

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self._position = _SPACE.match(self._text, self._position).end()  # pyright: ignore[reportOptionalMemberAccess]
            if self._position < len(self._text) or not self._more(CHUNK):
                return self._text[self._position : self._position + 1]

    def _value(self, longest: int | None = None) -> Any:
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._position)
            except (json.JSONDecodeError, RecursionError) as error:
                is_cut = isinstance(error, json.JSONDecodeError) and (
                    error.msg.startswith("Unterminated") or error.pos > len(self._text) - _NEARLY_CUT
                )
                if not is_cut or not self._more(size):
                    raise _MalformedError(f"a value in it is not readable JSON ({error})") from None
            else:
                if end < len(self._text) or not self._more(size):
                    self._position = end
                    return value
            if longest is not None and len(self._text) - self._position > longest:
                raise _TooLongError
            size *= 2

    def _more(self, size: int) -> bool:
        """Read on; False at the end."""
        if self._ended:
            return False
        content = self._stream.read(size)
        self._ended = not content
        self._text = self._text[self._position :] + self._decode.decode(content, final=self._ended)
        self._position = 0
        return not self._ended
