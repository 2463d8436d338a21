"""run.yaml: the options of a run folder, in a form that replays from anywhere and after the folder was moved."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

import yaml

from gistselect.errors import ConfigError
from gistselect.files import replacing
from gistselect.registry import names
from gistselect.run.config import LIVE, OF_THIS_CALL, RunConfig

RUN_YAML = "run.yaml"
HEADER = "# Every option of this run. Relative paths start at the folder of this file, which is the run folder.\n"
_PATHS = (
    "model",
    "finetune_model",
    "encoder",
    "pool",
    "target",
    "data_dir",
    "heldout",
    "decontaminate",
    "adapter",
    "checkpoints",
)
"""Options that may name files; a built-in target or a hub id is left as it is."""


def remember(config: RunConfig, name: str = RUN_YAML) -> None:
    """Write the options into the run folder, as run.yaml or under another name."""
    values = config.model_dump(mode="json", exclude_none=True, exclude=set(OF_THIS_CALL))
    values |= {option: _anchored(values[option], config.output) for option in _PATHS if option in values}
    values["output"] = "."
    if config.template not in ("tulu", "model"):
        values["template"] = _anchored(config.template, config.output)
    with replacing(config.output / name) as part:
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        part.write_text(HEADER + text, encoding="utf-8")


def remember_first(config: RunConfig, name: str = RUN_YAML) -> None:
    """Write the options into a run folder that has none yet; others' stay until a command has worked."""
    if not (config.output / name).exists():
        remember(config, name)


def recall(folder: Path) -> RunConfig:
    """The options of a run folder. Raises `ConfigError` if it has none, or they are not valid."""
    if not (folder / RUN_YAML).is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no {RUN_YAML}. Give the --output of a run.")
    return RunConfig.from_values(read_yaml(folder / RUN_YAML))


def read_yaml(path: Path) -> dict[str, Any]:
    """Options in a YAML file; those of a run folder with their paths resolved.

    Raises `ConfigError` if the file is missing or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of text, numbers, dates; of brackets without end
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict) or any(not isinstance(name, str) for name in values):
        raise ConfigError(f"{path} must be a mapping of option names to values.")
    if str(values.get("output")) == ".":
        options = [option for option in (*_PATHS, "template") if option in values]
        values |= {option: _resolved(values[option], path.parent) for option in options}
        values["output"] = str(path.parent)
    return values


def _anchored(value: Any, folder: Path) -> Any:
    """Paths inside the run folder relative to it, others absolute; what is no path as it is."""
    if isinstance(value, list):
        return [_anchored(one, folder) for one in value]
    if value == LIVE or value.startswith("hf:") or value in names("task"):
        return value
    path = Path(value)
    if not os.path.exists(path) and not glob.has_magic(value):  # False for a name that is too long, not an error
        return value
    absolute, root = path.absolute(), folder.absolute()
    return f"./{absolute.relative_to(root)}" if absolute.is_relative_to(root) else str(absolute)


def _resolved(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_resolved(one, folder) for one in value]
    return str(folder / value) if isinstance(value, str) and value.startswith("./") else value
