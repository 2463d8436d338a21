"""gistselect: choose the few percent of an instruction-tuning pool that teach your task.

`select` runs the method and returns a `Selection`; the command line is `gistselect`. Importing the package loads
neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gistselect.api import load_selection, select
    from gistselect.errors import GistSelectError
    from gistselect.selected import Selection

_EXPORTS = {
    "select": "gistselect.api",
    "load_selection": "gistselect.api",
    "Selection": "gistselect.selected",
    "GistSelectError": "gistselect.errors",
}

__all__ = ["GistSelectError", "Selection", "__version__", "load_selection", "select"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'gistselect' has no attribute {name!r}")
