"""Progress that is told as the amount done so far, for those who count what is new."""

from __future__ import annotations

from collections.abc import Callable


def increments(advance: Callable[[int], None]) -> Callable[..., None]:
    """A progress callback: hears the amount done so far and hands on what is new of it; ignores further arguments."""
    told = 0

    def reach(done: int, *_: object) -> None:
        nonlocal told
        advance(done - told)
        told = done

    return reach
