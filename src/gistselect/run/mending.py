"""A damaged shard of an object store costs its own work and no second command."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from gistselect.errors import ArtifactMismatchError, DamagedShardError
from gistselect.run.config import RunConfig
from gistselect.run.objects import forget
from gistselect.run.progress import Reporter

C = TypeVar("C", bound=RunConfig)
P = ParamSpec("P")
T = TypeVar("T")


def mending(command: Callable[Concatenate[C, Reporter, P], T]) -> Callable[Concatenate[C, Reporter, P], T]:
    """A command that begins again when it has taken a damaged shard away: it finds all else done, and makes that anew.

    Raises `ArtifactMismatchError` if the same shard is damaged a second time: its store keeps nothing.
    """

    @wraps(command)
    def again(config: C, reporter: Reporter, /, *arguments: P.args, **options: P.kwargs) -> T:
        met: set[str] = set()
        while True:
            try:
                return command(config, reporter, *arguments, **options)
            except DamagedShardError as error:
                if str(error) in met:
                    raise ArtifactMismatchError(
                        f"{error} It has been, by this command, and is damaged again: use another --shards."
                    ) from None
                met.add(str(error))
                reporter.warn(f"{error} That is done now.")
                # A worker may have taken it away; this process has listed it since.
                forget(config.bucket)

    return again
