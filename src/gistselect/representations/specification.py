"""A representation by name, with options of its own: `less:dimension=1024,projection=sparse`."""

from __future__ import annotations

from pydantic import BaseModel

from gistselect import specification
from gistselect.representations.interface import Representation
from gistselect.specification import label

__all__ = ["label", "parse"]


def parse(text: str, defaults: BaseModel) -> Representation:
    """The representation that a specification names; see `gistselect.specification`."""
    return specification.parse("representation", text, defaults)
