"""`python -m gistselect`; under torchrun the first process is the command, and the others train with it."""

from __future__ import annotations

from gistselect import cli
from gistselect.terminal import quiet_libraries
from gistselect.training import ranks


def main() -> None:
    """Entry point; see `cli.main`."""
    if ranks.n_processes() == 1:
        cli.main()
    elif ranks.is_first():
        with ranks.leading():
            cli.main()
    else:
        from gistselect.training.train import carry_out

        quiet_libraries()
        ranks.follow(carry_out)


if __name__ == "__main__":
    main()
