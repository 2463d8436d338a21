"""Results in an object store (`s3://`, `gs://`, whatever fsspec knows): one put makes an object, which appears whole.

Such stores cannot rename, so nothing is ever moved into place. A shard is put under a name that says how many bytes it
has and what their SHA-256 is, and counts once it is listed with that many: a put that was cut off counts for nothing,
two workers that made the same shard put the same object, and whoever reads it proves it. Other files of an artifact are
put before its `complete.json`; whoever lacks them takes a copy once that is there.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from gistselect.errors import (
    ArtifactMismatchError,
    ConfigError,
    DamagedShardError,
    GistSelectError,
    MissingDependencyError,
    UnreachableError,
)
from gistselect.files import digest, file_digest, read_json, replacing

COMPLETE, INPUTS = "complete.json", "inputs.json"
FRESH = 30.0
"""Seconds for which a listing of an artifact's objects is believed where one that is too old costs work and no more."""
_SHARD = re.compile(r"shard-(\d{5,})-(\d+)-([0-9a-f]{64})\.parquet")
_LOCAL = ("file", "local")
_PACKAGES = {"s3": "'gistselect[s3]'", "s3a": "'gistselect[s3]'", "gs": "'gistselect[gs]'", "gcs": "'gistselect[gs]'"}
"""What brings the package for a scheme; for others the error of fsspec names it."""
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "PermissionError")

Seen = dict[str, tuple[float, dict[str, int]]]


def shard_name(index: int) -> str:
    """The name of a shard among the files of its artifact."""
    return f"shard-{index:05d}.parquet"


def refuse_url(url: str) -> None:
    """Raises `ValueError` for what is no URL of a store, or carries a secret, which would be remembered."""
    scheme, found, rest = url.partition("://")
    if not found or not scheme or not rest:
        raise ValueError("give a URL such as s3://bucket/folder or gs://bucket/folder")
    if "@" in rest.partition("/")[0] or "?" in rest or "#" in rest:
        raise ValueError(
            "leave user names, passwords and tokens out of the URL, since it is written into run.yaml; the store's own "
            "environment variables or files hold them (AWS_ACCESS_KEY_ID, ~/.aws, GOOGLE_APPLICATION_CREDENTIALS, …)"
        )


@dataclass(frozen=True)
class Bucket:
    """A folder of an object store, whose folders are artifacts. Picklable: only the URL goes to workers."""

    url: str

    @property
    def is_of_one_process(self) -> bool:
        """Whether no other process sees what is put here."""
        return self.url.startswith("memory:")

    def reach(self) -> None:
        """Prove that what is put here is listed, and can be read and removed.

        Raises `MissingDependencyError`, `ConfigError` or `UnreachableError` with the remedy.
        """
        name, content = f"probe-{secrets.token_hex(8)}", b"gistselect"
        try:
            self.put("probe", name, content)
            if self.listed("probe", fresh=True).get(name) != len(content) or self.get("probe", name) != content:
                raise ConfigError(f"--shards {self.url} does not list at once what was put there; use another store.")
            self.remove("probe", [name])
        except FileNotFoundError:
            raise ConfigError(
                f"--shards {self.url}: there is no such bucket; make it first, or mend the URL."
            ) from None

    def listed(self, folder: str, *, fresh: bool = False) -> Mapping[str, int]:
        """Bytes of each object of an artifact by name; unless `fresh`, as of a while ago."""
        seen = _seen(self.url)
        when, known = seen.get(folder, (0.0, {}))
        if fresh or not when or time.monotonic() - when > FRESH:
            place = self._place(folder)
            with self._answers(f"list {folder}") as files:
                files.invalidate_cache()
                try:
                    found = files.find(place, detail=True)
                except FileNotFoundError:
                    found = {}
            start = len(files._strip_protocol(place)) + 1
            known = {path[start:]: int(one["size"]) for path, one in found.items() if path[start:]}
            seen[folder] = time.monotonic(), known
        return known

    def has(self, folder: str, name: str) -> bool:
        """Whether an object is there; that it is, is believed for a while."""
        seen, place = _seen(self.url), f"{folder}/{name}"
        if place in seen and time.monotonic() - seen[place][0] <= FRESH:
            return True
        with self._answers(f"look for {folder}/{name}") as files:
            files.invalidate_cache()
            try:
                files.info(self._place(folder, name))
            except FileNotFoundError:
                return False
        seen[place] = time.monotonic(), {}
        return True

    def put(self, folder: str, name: str, content: bytes) -> None:
        """Make an object of these bytes."""
        with self._answers(f"put {folder}/{name}") as files:
            files.pipe_file(self._place(folder, name), content)
        _seen(self.url).setdefault(folder, (0.0, {}))[1][name] = len(content)

    def send(self, folder: str, name: str, path: Path) -> None:
        """Make an object of a file."""
        with self._answers(f"put {folder}/{name}") as files:
            files.put_file(str(path), self._place(folder, name))

    def get(self, folder: str, name: str) -> bytes:
        """The bytes of an object. Raises `FileNotFoundError`."""
        with self._answers(f"read {folder}/{name}") as files:
            return files.cat_file(self._place(folder, name))

    def fetch(self, folder: str, name: str, path: Path) -> None:
        """An object as a file, which appears whole. Raises `FileNotFoundError`."""
        with replacing(path) as part, self._answers(f"read {folder}/{name}") as files:
            files.get_file(self._place(folder, name), str(part))

    def remove(self, folder: str, names: Iterable[str]) -> None:
        """Take objects away, in this order."""
        for name in names:
            with self._answers(f"remove {folder}/{name}") as files, suppress(FileNotFoundError):
                files.rm_file(self._place(folder, name))
            _seen(self.url).get(folder, (0.0, {}))[1].pop(name, None)
            _seen(self.url).pop(f"{folder}/{name}", None)

    def _place(self, *names: str) -> str:
        return "/".join([self.url.rstrip("/"), *names])

    @contextmanager
    def _answers(self, what: str) -> Iterator[Any]:
        """The file system of the URL; what fails becomes a sentence, but for objects that are not there."""
        scheme = self.url.partition("://")[0]
        try:
            yield _file_system(self.url, os.getpid())
        except (GistSelectError, FileNotFoundError):
            raise
        except ImportError as error:
            remedy = f"pip install {_PACKAGES[scheme]}" if scheme in _PACKAGES else _brief(error)
            raise MissingDependencyError(f"--shards {scheme}://… needs a package that is not here: {remedy}.") from None
        except Exception as error:  # every store has errors of its own
            said = f"{type(error).__name__}: {_brief(error)}"
            if type(error).__name__ in _NO_CREDENTIALS:
                raise ConfigError(
                    f"--shards {self.url}: the store refuses to {what} ({said}). Give it credentials that may put, "
                    "list, read and remove objects there, in its own environment variables or files, on every node."
                ) from None
            if isinstance(error, ValueError) and "Protocol not known" in str(error):
                raise ConfigError(f"--shards {scheme}://… is of no kind that fsspec knows; see its list.") from None
            raise UnreachableError(
                f"{self.url} failed to {what} ({said}). Give the same command again: it continues where this stopped."
            ) from error


@dataclass(frozen=True, kw_only=True)
class ShardObject:
    """A shard of an artifact as an object, which may not be there yet."""

    bucket: Bucket
    folder: Path
    """Of the artifact; its name is the object's folder too."""
    index: int

    @property
    def name(self) -> str:
        """Among the files of the artifact."""
        return shard_name(self.index)

    def is_file(self) -> bool:
        """Whether it has been put, as far as the last listing knows."""
        return self.index in shards_in(self.bucket.listed(self.folder.name))

    def write(self, content: bytes) -> None:
        """Put it."""
        found = hashlib.sha256(content).hexdigest()
        self.bucket.put(self.folder.name, f"shard-{self.index:05d}-{len(content)}-{found}.parquet", content)

    def read(self, wanted: str | None) -> bytes:
        """Its bytes, which have the SHA-256 `wanted` if one is known.

        Raises `DamagedShardError` if it is missing or damaged; it is taken away then, so that it is made anew.
        """
        folder = self.folder.name
        for fresh in (False, True):
            found = shards_in(self.bucket.listed(folder, fresh=fresh)).get(self.index, {})
            if (name := found.get(wanted) if wanted else next(iter(found.values()), None)) is not None:
                with suppress(FileNotFoundError, ValueError):
                    return _proved(self.bucket, folder, name)
        damaged = [name for name in self.bucket.listed(folder) if name.startswith(f"shard-{self.index:05d}-")]
        self.bucket.remove(folder, [COMPLETE, *damaged])
        (self.folder / COMPLETE).unlink(missing_ok=True)
        raise DamagedShardError(
            f"{self.bucket.url}/{folder}: {self.name} is missing or damaged: it is not what was written. It was taken "
            "away, so that the command that made it makes it anew, and nothing else."
        )


@lru_cache(maxsize=2)
def _proved(bucket: Bucket, folder: str, name: str) -> bytes:
    """The bytes of a shard. Raises `ValueError` if they are not what its name says."""
    content = bucket.get(folder, name)
    found = _SHARD.fullmatch(name)
    if found is None or hashlib.sha256(content).hexdigest() != found[3]:
        raise ValueError(name)
    return content


def shards_in(listed: Mapping[str, int]) -> dict[int, dict[str, str]]:
    """Name of the object by shard and SHA-256, of all that are as long as they should be, in a fixed order."""
    shards: dict[int, dict[str, str]] = {}
    for name in sorted(listed):
        if (found := _SHARD.fullmatch(name)) and int(found[2]) == listed[name]:
            shards.setdefault(int(found[1]), {})[found[3]] = name
    return shards


def digests_of_shards(bucket: Bucket, folder: str) -> dict[str, str]:
    """SHA-256 of each shard by its name among the files of the artifact, as is listed now."""
    shards = shards_in(bucket.listed(folder, fresh=True))
    return {shard_name(index): next(iter(found)) for index, found in shards.items()}


def share(bucket: Bucket, folder: Path) -> None:
    """Put the files of a finished artifact, the mark that it is finished last."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    names = [path.relative_to(folder).as_posix() for path in files]
    known = read_json(folder / COMPLETE)["files"]
    for name, path in zip(names, files, strict=True):
        if name == INPUTS or (name in known and not _is_shard(name)):
            bucket.send(folder.name, name, path)
    bucket.put(folder.name, COMPLETE, (folder / COMPLETE).read_bytes())


def settle(bucket: Bucket, folder: Path, key: str) -> bool:
    """Whether an artifact is finished in the store; if so its files but for the shards are here afterwards.

    One that was finished in this folder alone is put into the store; if that lacks a shard of it, it counts for none.
    """
    if bucket.has(folder.name, COMPLETE):
        if not (folder / COMPLETE).is_file():
            _bring(bucket, folder, key)
        return True
    if not (folder / COMPLETE).is_file():
        return False
    known: dict[str, str] = read_json(folder / COMPLETE).get("files", {})
    there = digests_of_shards(bucket, folder.name)
    for name in filter(_is_shard, known):
        path = folder / name
        if there.get(name) == known[name]:
            continue
        if not path.is_file() or file_digest(path) != known[name]:
            (folder / COMPLETE).unlink()
            return False
        ShardObject(bucket=bucket, folder=folder, index=int(path.stem.removeprefix("shard-"))).write(path.read_bytes())
    share(bucket, folder)
    return True


def _bring(bucket: Bucket, folder: Path, key: str) -> None:
    """Take a copy of an artifact's files, the mark that it is whole last."""
    temporary = folder / f".{COMPLETE}"
    bucket.fetch(folder.name, INPUTS, folder / INPUTS)
    bucket.fetch(folder.name, COMPLETE, temporary)
    try:
        if key and digest(read_json(folder / INPUTS)) != key:
            raise ArtifactMismatchError(f"{bucket.url}/{folder.name} is the result of other inputs; remove it.")
        for name, wanted in read_json(temporary)["files"].items():
            if _is_shard(name):
                continue
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ArtifactMismatchError(f"{bucket.url}/{folder.name} names {name!r}, which is no file of it.")
            bucket.fetch(folder.name, name, folder / name)
            if file_digest(folder / name) != wanted:
                raise ArtifactMismatchError(
                    f"{bucket.url}/{folder.name}/{name} is damaged: it is not what was written; remove it and "
                    "run again."
                )
        temporary.replace(folder / COMPLETE)
    except FileNotFoundError as error:
        bucket.remove(folder.name, [COMPLETE])
        raise ArtifactMismatchError(f"{bucket.url}/{folder.name} lacks a file ({error}); run again.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _is_shard(name: str) -> bool:
    return name.startswith("shard-") and "/" not in name


@lru_cache(maxsize=4)
def _file_system(url: str, process: int) -> Any:
    """The store's client of this process; `process` keeps one that was forked from using its parent's."""
    import fsspec

    more = {"auto_mkdir": True} if url.partition("://")[0] in _LOCAL else {}
    return fsspec.core.url_to_fs(url, use_listings_cache=False, **more)[0]


@lru_cache(maxsize=4)
def _seen(url: str) -> Seen:
    """Listings of this process by artifact: when, and what."""
    return {}


def forget(bucket: Bucket | None) -> None:
    """List anew what is listed next."""
    if bucket is not None:
        _seen(bucket.url).clear()


def _brief(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
