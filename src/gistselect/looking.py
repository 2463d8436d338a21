"""Commands that look: at a finished run's page, the reasons of a row and its spectrum, and at the methods there are."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from gistselect.errors import ConfigError
from gistselect.terminal import Terminal, print_table


def report(folder: Path, *others: Path, output: Path | None = None) -> None:
    """Write report.html of a finished run anew, and compare it with other runs if some are named.

    Typical use:

        gistselect report runs/math
        gistselect report runs/math runs/cheap --output both.html

    Parameters
    ----------
    folder:
        Run folder that holds a selection.
    others:
        Run folders to compare it with.
    output:
        Where the page goes; by default report.html in the run folder.
    """
    from gistselect.run.finished import FinishedRun
    from gistselect.run.reporting import write_report
    from gistselect.run.results import REPORT
    from gistselect.run.steady import steady

    with steady(folder):
        stays = not others and output is None and (folder / REPORT).is_file() and not FinishedRun.open(folder).methods
    if stays:
        said = f"The scores of {folder} are no longer stored, so its page stays as it was written: {folder / REPORT}"
        Terminal().say(said)
        return
    Terminal().say(str(write_report([folder, *others], output)))


def explain(folder: Path, *, id: str | None = None, row: int | None = None, whole: bool = False) -> None:
    """Say why a row of the pool was selected, rejected or quarantined.

    Typical use:

        gistselect explain runs/math --row 17
        gistselect explain runs/math --id alpaca-5

    Parameters
    ----------
    folder:
        Run folder that holds a selection.
    id:
        The row's id.
    row:
        The row's number in the pool, from 0.
    whole:
        Show all of its text.
    """
    from gistselect.run.reasons import explained
    from gistselect.run.steady import steady

    with steady(folder):
        lines = list(explained(folder, id=id, row=row, whole=whole))
    for line in lines:
        Terminal().say(line)


def spectrum(folder: Path) -> None:
    """Singular values of the query gradients of a run, and the rank that keeps 95 % of their variance.

    Parameters
    ----------
    folder:
        Run folder that holds scores.
    """
    from gistselect.files import read_json
    from gistselect.report.spectrum import draw_spectrum, leading_values, spectrum_table
    from gistselect.run.results import SPECTRUM, SUBSPACE_JSON
    from gistselect.run.steady import steady

    with steady(folder):
        if not (folder / SUBSPACE_JSON).is_file():
            raise ConfigError(
                f"{folder} holds no {SUBSPACE_JSON}; run 'gistselect score --output {folder}' with gist first."
            )
        described = read_json(folder / SUBSPACE_JSON)
    draw_spectrum(described, folder / SPECTRUM)
    print_table("Rank that keeps a share of the query-gradient variance", spectrum_table(described))
    Terminal().say("\n  ".join(["Largest singular values:", *leading_values(described)]))
    Terminal().say(f"plot: {folder / SPECTRUM}")


def methods(name: str | None = None) -> None:
    """Say which methods there are; of one, what it computes, its source and cost, and when to use it.

    Typical use:

        gistselect methods
        gistselect methods ekfac

    Parameters
    ----------
    name:
        A name as in --representation; by default all are listed.
    """
    from gistselect.representations.description import described, overview

    if name is None:
        print_table("Methods (--representation)", overview())
        Terminal().say("All about one of them: gistselect methods NAME")
        return
    Terminal().say("\n\n".join(described(name)))


def register(app: App) -> None:
    """Give the command line these commands."""
    app.command(report)
    app.command(explain)
    app.command(spectrum)
    app.command(methods)
