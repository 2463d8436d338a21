"""Headings under which the command line lists options; each option names its own beside its type."""

from __future__ import annotations

from cyclopts import Group, Parameter

MODEL = Group("Model", sort_key=1)
DATA = Group("Pool and target", sort_key=2)
METHOD = Group("Method", sort_key=3)
WARMUP = Group("Warm-up", sort_key=4)
ENGINE = Group("Engine", sort_key=5)
EVALUATION = Group("Evaluation", sort_key=6)
RUN = Group("Run", sort_key=7)


def many(group: Group) -> Parameter:
    """A list on the command line: `--pool a b c`."""
    return Parameter(consume_multiple=True, negative="", group=group)
