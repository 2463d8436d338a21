"""What every representation computes, reads, costs and is for, as it says of itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module

from gistselect.registry import names, resolve
from gistselect.representations.interface import Representation

READS = {"text": "text, no model", "hidden": "a forward pass", "gradient": "a backward pass"}


def drawn_anew(kind: type[Representation]) -> str:
    """Whether a selection's stability is measured, from what, or why not."""
    one = kind.model_construct()
    if not one.can_be_resampled:
        return f"not measured: {one.not_resampled}"
    if one.apart is None:
        return "measured, from what is kept of a row"
    each = {"queries": "query", "draws": "draw and group"}[one.apart]
    return f"measured, for 4 bytes more of a row for each {each} of a target"


def overview() -> list[dict[str, str]]:
    """A row for each registered representation."""
    found = []
    for name in names("representation"):
        kind: type[Representation] = resolve("representation", name)
        found.append({"name": name, "method": kind.title, "reads": READS[kind.reads], "stability": drawn_anew(kind)})
    return found


def described(name: str) -> Iterator[str]:
    """All about one representation, paragraph by paragraph.

    Raises `ConfigError` with the nearest name for an unknown one.
    """
    kind: type[Representation] = resolve("representation", name)
    yield f"{name}: {kind.title}, reads {READS[kind.reads]}"
    yield inspect.cleandoc(import_module(kind.__module__).__doc__ or kind.__doc__ or "")
    yield f"Score: {kind.definition}."
    yield f"A row without a score: {kind.unscored}."
    yield f"Stability of a selection: {drawn_anew(kind)}."
    options = [
        f"  {name}:{option}={field.default}: {' '.join((field.description or '').split())}"
        for option, field in kind.model_fields.items()
    ]
    yield "\n".join(["Options, with their defaults:", *options]) if options else "It has no options."
