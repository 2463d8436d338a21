"""Every registered name leads to something, and a misspelt one to the nearest name."""

from __future__ import annotations

import pytest

from gistselect.errors import ConfigError
from gistselect.registry import REGISTRY, names, resolve


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in REGISTRY for name in names(kind)])
def test_every_entry_resolves(kind: str, name: str) -> None:
    assert callable(resolve(kind, name))


def test_misspelt_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'tydiqa'"):
        resolve("task", "tydiqq")
