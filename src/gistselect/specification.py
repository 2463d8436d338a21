"""`less:dimension=1024,projection=sparse`: an extension by name, with options of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from gistselect.errors import ConfigError
from gistselect.files import digest
from gistselect.registry import resolve

_FORM = re.compile(r"(?P<name>[a-z][a-z0-9_]*)(?::(?P<options>[^\x00-\x1f\x7f]+))?")
"""A value may be a path: anything printable but a comma, which ends it."""
LONGEST_LABEL = 100


def label(specification: str) -> str:
    """A name for files and tables: `less:dimension=1024` becomes `less-dimension-1024`.

    Of a path or a hub id only the last part is taken, so that a folder's place names nothing.
    """
    short = re.sub(r"=[^,]*?([^/\\,]+)[/\\]*(?=,|$)", r"=\1", specification)
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", short)
    if len(plain) > LONGEST_LABEL:
        plain = f"{plain[:LONGEST_LABEL]}-{digest(specification)[:8]}"
    return plain.rstrip("-.")


def parse(kind: str, specification: str, defaults: BaseModel | None = None) -> Any:
    """The extension of that kind that a specification names: a model whose fields are its options.

    Options that the specification leaves open are taken from the fields of the same name of `defaults`, if it has
    them. Raises `ConfigError` for an unknown name or option, with the nearest or the allowed ones.
    """
    match = _FORM.fullmatch(specification)
    if match is None:
        raise ConfigError(
            f"{kind} {specification!r} is not understood; write a name, or a name with options such as "
            "less:dimension=1024,nonzeros=8."
        )
    model: type[BaseModel] = resolve(kind, match["name"])
    given = _options(match["options"] or "", kind)
    known = model.model_fields
    shared = {} if defaults is None else {n: getattr(defaults, n) for n in known if n in type(defaults).model_fields}
    if unknown := given.keys() - known.keys():
        name = min(unknown)
        remedy = getattr(model, "former", {}).get(name) or f"its options: {', '.join(known) or 'none'}"
        raise ConfigError(f"{kind} {match['name']!r} has no option {name!r}; {remedy}.")
    try:
        return model.model_validate({**shared, **given})
    except ValidationError as error:
        problem = error.errors()[0]
        option = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{kind} {specification!r}: {f'{option} ' * bool(option)}{message}.") from None


def _options(text: str, kind: str) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"{part!r} in a {kind}'s options is not name=value.")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    """A number as a number, so that rank=10 is a count and rank=0.9 a share; none as None; the rest as text."""
    if text == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
