"""Write docs/options.md, the reference of every command and option, from the code; --check fails if it is stale."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cyclopts import App
from cyclopts.argument import Argument
from pydantic import BaseModel

from gistselect import registry
from gistselect.cli import app
from gistselect.representations.description import drawn_anew

REFERENCE = Path(__file__).parents[1] / "docs" / "options.md"
SAME_OPTIONS = "run"
"""The command whose options the stage commands share."""
TABLE = ("| option | default | |", "|---|---|---|")
HEAD = """\
# Options

Every command and option, written by `python tools/write_reference.py` from the code. In a YAML file (`--config`) an
option has underscores instead of hyphens, and a dot opens a level. `none` takes back an option that a run folder
remembers.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, *_representations()]
    shared = _options(app[SAME_OPTIONS])
    for name in app:
        if name.startswith("-"):
            continue
        command = app[name]
        summary, _, rest = inspect.cleandoc(command.help).partition("\n\n")
        parts.append(f"## `gistselect {name}`\n\n{' '.join(summary.split())}\n")
        options = _options(command)
        if name != SAME_OPTIONS and options == shared:
            parts.append(f"Takes the options of [`{SAME_OPTIONS}`](#gistselect-{SAME_OPTIONS}).\n")
            continue
        if rest.strip() and "Parameters\n---" not in rest:
            parts.append(_examples(rest))
        parts += options
    return "\n".join(parts)


def _examples(text: str) -> str:
    """The paragraphs of a command's help; indented ones as code."""
    blocks = []
    for block in text.strip().split("\n\n"):
        code = block.startswith("    ")
        blocks.append(f"```\n{inspect.cleandoc(block)}\n```" if code else " ".join(block.split()))
    return "\n\n".join(blocks) + "\n"


def _options(command: App) -> list[str]:
    """A table for each heading under which the command line lists options."""
    tables: dict[tuple[Any, str], list[str]] = {}
    for argument in command.assemble_argument_collection():
        if not _shown(argument):
            continue
        group = argument.parameter.group[0]
        line = f"| {_names(argument)} | {_default(argument)} | {_prose(argument.parameter.help or '')} |"
        tables.setdefault((_order(group.sort_key), group.name), []).append(line)
    return ["\n".join([f"### {name}\n", *TABLE, *lines, ""]) for (_, name), lines in sorted(tables.items())]


def _order(key: Any) -> int:
    return key if isinstance(key, int) else 0


def _shown(argument: Argument) -> bool:
    """Whether a person can type it: a configuration stands for its options."""
    kinds = [argument.hint, *get_args(argument.hint)]
    is_config = any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)
    return argument.parameter.show is not False and argument.name != "*" and not is_config


def _names(argument: Argument) -> str:
    names = [name for name in argument.names if "--no-" not in name and ".no-" not in name and ".empty-" not in name]
    choices = " \\| ".join(f"`{one}`" for one in _choices(argument.hint))
    return "<br>".join([*(f"`{name}`" for name in names), *([choices] if choices else [])])


def _choices(hint: Any) -> Iterator[str]:
    """The words that an option takes, if they are a closed list."""
    if get_origin(hint) is Literal:
        yield from map(str, get_args(hint))
        return
    for inner in get_args(hint):
        yield from _choices(inner)


def _default(argument: Argument) -> str:
    if argument.required:
        return "required"
    return _value(argument.field_info.default)


def _value(default: Any) -> str:
    """A default as people write it."""
    if default is None or default is inspect.Parameter.empty or default == ():
        return ""
    if isinstance(default, tuple):
        return f"`{' '.join(map(str, default))}`"
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{default}`"


def _prose(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _representations() -> Iterator[str]:
    """What each representation's score is, and the options that stand behind its name."""
    yield "## Representations\n"
    yield "`--representation NAME` or `NAME:option=value,option=value`.\n"
    for name in registry.names("representation"):
        kind = registry.resolve("representation", name)
        yield f"### `{name}`\n"
        yield f"{kind.title}. Reads: {kind.reads}. Score: {kind.definition}. Stability: {drawn_anew(kind)}.\n"
        lines = [
            f"| `{option}` | {_value(field.default)} | {_prose(field.description or '')} |"
            for option, field in kind.model_fields.items()
        ]
        if lines:
            yield "\n".join([*TABLE, *lines, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is not what would be written")
    arguments = parser.parse_args()
    text = reference()
    if not arguments.check:
        REFERENCE.write_text(text, encoding="utf-8")
    elif not REFERENCE.is_file() or REFERENCE.read_text(encoding="utf-8") != text:
        sys.exit(f"{REFERENCE} is stale; run 'python tools/write_reference.py'.")
