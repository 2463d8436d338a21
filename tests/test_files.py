"""Files and folders are written whole or not at all, by any number of writers."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gistselect.errors import ArtifactMismatchError, GistSelectError
from gistselect.files import (
    digest,
    read_json,
    read_json_lines,
    remove_leftovers,
    replacing,
    replacing_folder,
    write_json,
    write_json_lines,
)


def _hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.json") as part:
        part.write_text(f"half, then {1 / 0}")
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "folder") as part:
        (part / "one").write_text(f"half, then {1 / 0}")
    assert read_json(tmp_path / "a.json") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for content in (["a", "b"], ["c"]):
        with replacing_folder(tmp_path / "folder") as part:
            for name in content:
                (part / name).write_text(name)
        assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == content
    assert _hidden(tmp_path) == []


def test_two_writers_at_once_do_not_share_a_temporary_name(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() in ("first", "second")
    assert _hidden(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_json(tmp_path / "a.json", 1)
        with replacing_folder(tmp_path / "folder") as part:
            (part / "b").write_text("b")
        with replacing(tmp_path / "private") as part:
            part.touch(0o600)  # as safetensors makes its files
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o644


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from gistselect.files import replacing, replacing_folder\n"
        "with replacing(Path(sys.argv[1]) / 'a') as a, replacing_folder(Path(sys.argv[1]) / 'b') as b:\n"
        "    a.write_text('half'); (b / 'c').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(_hidden(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_json_lines_hold_any_text(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\u2029c\x85d\x0be"}, {"text": "\U0001f600\r\n"}, {"text": "half a pair: \ud83d"}]
    write_json_lines(tmp_path / "a.jsonl", rows)
    assert read_json_lines(tmp_path / "a.jsonl") == rows


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtifactMismatchError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_sentence_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(GistSelectError, match="Make room"), replacing(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        (tmp_path / "other").read_text()


def test_digest_ignores_the_order_of_keys_only() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})
