"""`python -m gistselect`; under torchrun the first process is the command, and the others train with it."""

from __future__ import annotations

import sys

from gistselect import cli
from gistselect.errors import GistSelectError
from gistselect.loudness import spoken
from gistselect.terminal import Terminal
from gistselect.training import ranks


def main() -> None:
    """Entry point; see `cli.main`."""
    if ranks.n_processes() == 1:
        cli.main()
        return
    try:
        if ranks.is_first():
            with ranks.leading():
                cli.main()
        else:
            from gistselect.training.train import carry_out

            with spoken(quiet=True, verbose=False):
                ranks.follow(carry_out)
    except GistSelectError as error:  # of the processes among each other; those of a command are said by it
        Terminal(stderr=True).say(f"gistselect: {error}", style="bold red")
        sys.exit(2)


if __name__ == "__main__":
    main()
