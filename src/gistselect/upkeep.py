"""Commands that keep things in order: what this machine and a model can do, and room on the disk."""

from __future__ import annotations

import sys
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from gistselect.run.standalone_config import DoctorConfig
from gistselect.terminal import Terminal

SIGNS = {"ok": "ok  ", "note": "note", "bad": "BAD "}
STYLES = {"ok": "green", "note": "yellow", "bad": "bold red"}


def clean(
    folder: Path,
    *,
    keep: Literal["selection", "scores"],
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    yes: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Remove from a finished run's folder what its results no longer need, after saying what and how much.

    Links are left alone. What was removed is computed again if something needs it.

    Typical use:

        gistselect clean runs/math --keep scores --dry-run
        gistselect clean runs/math --keep selection --yes

    Parameters
    ----------
    folder:
        Run folder that holds a selection.
    keep:
        scores: another budget or selector needs no pass, warm-up and features go. selection: only the selected rows,
        the report and the small files beside them stay; scores and trained models go too.
    dry_run:
        Only say what would go.
    yes:
        Do not ask.
    """
    from gistselect.run.cleaning import cleaning_lines, find_removals, refuse_unasked, remove
    from gistselect.run.lock import locked

    say = Terminal().say
    find_removals(folder, keep)  # What is no run folder is refused before a lock is put there.
    with locked(folder, "refuse", say):
        cleaning = find_removals(folder, keep)
        asks = bool(cleaning.removals) and not dry_run and not yes
        for line in cleaning_lines(cleaning, done=False) if asks or dry_run or not cleaning.removals else []:
            say(line)
        if dry_run or not cleaning.removals:
            return
        if asks:
            if not sys.stdin.isatty():
                raise refuse_unasked(folder)
            if input("Remove them? [y/N] ").strip().lower() not in ("y", "yes"):
                say("Nothing was removed.")
                return
        remove(cleaning)
        for line in cleaning_lines(cleaning, done=True) if not asks else ["Removed."]:
            say(line)


def doctor(
    *,
    config: Annotated[DoctorConfig | None, Parameter(name="*")] = None,
    json: Annotated[bool, Parameter(negative="", help="Write the checks as one JSON document.")] = False,
) -> None:
    """Look at packages, device, disk and hub, and with --model at what a run would do with that model.

    Of a model: whether it loads, what its templates teach it to end a turn with, which batches give its own loss
    without one row moving another, and whether gradients of several rows at once are those of plain backward passes.
    Exit status 1 if something is bad.

    Typical use:

        gistselect doctor
        gistselect doctor --model Qwen/Qwen2.5-0.5B --template model --json
    """
    from gistselect.run.checkup import examine, is_healthy

    terminal = Terminal()
    checks = []
    for check in examine(config or DoctorConfig()):
        checks.append(check)
        if not json:
            if len(checks) == 1 or checks[-2].group != check.group:
                terminal.say(check.group, style="bold")
            line = f"  {SIGNS[check.status]} {check.name}: {check.found}"
            terminal.say(line, style=STYLES[check.status])
            if check.remedy:
                terminal.say(f"       {check.remedy}")
    if json:
        document = {"ok": is_healthy(checks), "checks": [check.as_dict() for check in checks]}
        print(dumps(document, indent=2))  # noqa: T201
    if not is_healthy(checks):
        sys.exit(1)


def register(app: App) -> None:
    """Give the command line these commands."""
    app.command(doctor)
    app.command(clean)
