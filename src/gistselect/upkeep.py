"""Commands that keep things in order: what this machine and a model can do, and room on the disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from gistselect.terminal import Terminal


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
    from gistselect.run.store import locked

    terminal = Terminal()

    def say(line: str) -> None:
        terminal.print(line, markup=False, highlight=False, soft_wrap=True)

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


def register(app: App) -> None:
    """Give the command line these commands."""
    app.command(clean)
