"""Check that `import gistselect` and `gistselect --help` load neither torch nor transformers."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "datasets", "lm_eval")
STARTS = {
    "import gistselect": "import gistselect",
    "gistselect --help": "from gistselect.cli import main; main(['--help'])",
    "gistselect run --help": "from gistselect.cli import main; main(['run', '--help'])",
}


def loaded_by(code: str) -> list[str]:
    """Heavy packages that a fresh interpreter has loaded after running `code`."""
    report = f"import sys\n{code}\nprint('loaded:', *(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].split()[1:]


if __name__ == "__main__":
    failed = False
    for name, code in STARTS.items():
        heavy = loaded_by(code)
        failed |= bool(heavy)
        print(f"{name}: {'loads ' + ', '.join(heavy) if heavy else 'light'}")
    sys.exit(failed)
