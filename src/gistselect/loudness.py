"""`--quiet` and `--verbose`: how much a command says, for all commands in one place."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from gistselect.errors import ConfigError
from gistselect.run.progress import LOUDNESS
from gistselect.terminal import Terminal


@contextmanager
def spoken(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Within this context commands say as much as was asked for.

    What libraries warn their own developers of is shown with `verbose` alone, and so is what our modules log.
    Raises `ConfigError` for both at once.
    """
    if quiet and verbose:
        raise ConfigError("give --quiet or --verbose, not both.")
    log, handler = logging.getLogger("gistselect"), _Lines(logging.INFO if verbose else logging.WARNING)
    level = log.level
    before = LOUDNESS.set("quiet" if quiet else "verbose" if verbose else "normal")
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            if verbose:
                log.setLevel(logging.INFO)
            else:
                for kind in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
                    warnings.filterwarnings("ignore", category=kind)
            yield
    finally:
        LOUDNESS.reset(before)
        log.removeHandler(handler)
        log.setLevel(level)


class _Lines(logging.Handler):
    """Log records as text that a terminal shows and never obeys."""

    def emit(self, record: logging.LogRecord) -> None:
        Terminal(stderr=True).say(record.getMessage())
