"""The engine that a configuration asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gistselect.errors import ConfigError
from gistselect.run.config import LIVE, RunConfig
from gistselect.run.engine import Engine, Inline, Scheduled
from gistselect.run.scheduling import Limits
from gistselect.run.sources import Sources

if TYPE_CHECKING:
    from gistselect.model.loading import LanguageModel


@contextmanager
def opened(config: RunConfig, live: LanguageModel | None) -> Iterator[tuple[Engine, Sources]]:
    """The engine that a configuration asks for, and this process's own sources; both are closed after the block.

    A single device that nobody named is used in this process. Raises `ConfigError` for devices that are not there, or
    a live model that would have to leave this process.
    """
    sources = Sources(live)
    engine = _engine(config, sources)
    try:
        yield engine, sources
    finally:
        engine.close()
        sources.close()


def _engine(config: RunConfig, sources: Sources) -> Engine:
    if config.engine_kind == "inline":
        return Inline(sources)
    if config.model == LIVE:
        raise ConfigError("a model given as an object cannot leave its process; leave out --engine.")
    bucket = config.bucket
    if bucket is not None and bucket.is_of_one_process:
        raise ConfigError(f"--shards {bucket.url} is seen by this process alone; use another, or --engine inline.")
    limits = Limits(attempts=config.shard_attempts, seconds=config.shard_time_limit)
    quarantine = config.lost_shards == "quarantine"
    gpus = config.device in ("auto", "cuda")
    if config.engine_kind == "ray":
        from gistselect.run.cluster import RayCrew

        crew = RayCrew(config.ray_address, gpus=gpus, cards=config.cards_of_a_worker, apart=bucket is not None)
        return Scheduled(crew, limits, quarantine=quarantine)
    from gistselect.run.local import LocalCrew, devices

    names = devices(config.devices, cuda=gpus, cards=config.cards_of_a_worker)
    if len(names) == 1 and config.devices == "auto":
        return Inline(sources)
    return Scheduled(LocalCrew(names), limits, quarantine=quarantine)
