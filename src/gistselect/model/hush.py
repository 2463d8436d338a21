"""What libraries say while they load a model, which is meant for their own developers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hushed() -> Iterator[None]:
    """Within this context models and adapters load without bars, and without a warning that nobody can act on."""
    from transformers.utils import logging as of_transformers

    bitsandbytes = logging.getLogger("bitsandbytes")
    level, had_bars = bitsandbytes.level, of_transformers.is_progress_bar_enabled()
    # It warns that a kernel for CPUs is missing whenever PEFT looks whether it is installed.
    bitsandbytes.setLevel(logging.ERROR)
    of_transformers.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # PEFT asks every model for an attribute that transformers has renamed.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            yield
    finally:
        bitsandbytes.setLevel(level)
        if had_bars:
            of_transformers.enable_progress_bar()
