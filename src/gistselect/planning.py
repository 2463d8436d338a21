"""The command that looks at a job before it: `gistselect plan`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

from cyclopts import App, Parameter

from gistselect.run.config import RunConfig
from gistselect.terminal import Terminal


def plan(
    *,
    config: RunConfig,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
    calibration: Annotated[float | None, Parameter(name="--calibration")] = None,
) -> None:
    """Look at a whole job without doing it: the pool, the targets, one example as the model sees it, and the time.

    Takes the options of 'run'. The pool is read and tokenised in the run folder, where 'run' finds it done. Each kind
    of work that is left is then timed on a few batches, for about 20 seconds in all beside loading the models.

    Typical use:

        gistselect plan --model ./model --pool pool.jsonl --target mine.jsonl \\
          --output runs/mine
        gistselect plan --output runs/mine --evaluate --json > plan.json

    Parameters
    ----------
    json_:
        Print one JSON document (docs/plan.md) instead of text.
    calibration:
        Seconds for measuring; 0 takes the rates that an earlier plan measured in this folder.
    """
    from gistselect.run.calibration import SECONDS
    from gistselect.run.plan_lines import plan_lines
    from gistselect.run.planning import plan_run
    from gistselect.run.progress import Reporter

    document = plan_run(config, Reporter(), seconds=SECONDS if calibration is None else calibration)
    if json_:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n")
        return
    for line in plan_lines(document):
        Terminal().say(line)


def register(app: App) -> None:
    """Give the command line this command."""
    app.command(plan)
