"""Check that a start is light: no torch or transformers is loaded, and `import gistselect` takes a moment."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "datasets", "lm_eval")
MOST_SECONDS = 0.3
STARTS = {
    "import gistselect": ("import gistselect", MOST_SECONDS),
    "from gistselect import select, Selection": ("from gistselect import select, Selection", MOST_SECONDS),
    "gistselect --help": ("from gistselect.cli import main; main(['--help'])", None),
    "gistselect run --help": ("from gistselect.cli import main; main(['run', '--help'])", None),
}
"""Code of each start, and the most seconds of processor time that it may take."""
ATTEMPTS = 3


def start(code: str) -> tuple[list[str], float]:
    """Heavy packages that a fresh interpreter has loaded after running `code`, and its seconds of processor time.

    Processor time, since a machine that does other things too makes any start slow.
    """
    report = (
        f"import sys, time\nbegan = time.process_time()\n{code}\ntook = time.process_time() - began\n"
        f"print('loaded:', took, *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    _, seconds, *heavy = result.stdout.splitlines()[-1].split()
    return heavy, float(seconds)


def main() -> int:
    """0 if every start is light; the fastest of a few attempts counts."""
    failed = False
    for name, (code, most) in STARTS.items():
        attempts = [start(code) for _ in range(ATTEMPTS if most else 1)]
        heavy, seconds = attempts[0][0], min(seconds for _, seconds in attempts)
        slow = most is not None and seconds > most
        failed |= bool(heavy) or slow
        allowed = f", of {most} allowed" if most else ""
        print(f"{name}: {'loads ' + ', '.join(heavy) if heavy else 'light'}, {seconds:.3f} s{allowed}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
