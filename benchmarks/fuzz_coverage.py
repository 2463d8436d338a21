"""Coverage-guided fuzzing of readers, shapes, templates and masks with atheris (`pip install atheris`).

    python benchmarks/fuzz_coverage.py CORPUS_FOLDER -max_total_time=170 -max_len=4096

An input is a byte that names a kind of file, one that names a template, and the file. No failure but ours may come out
of it, every row is scored or rejected with a reason, and a supervised token always belongs to an answer: templates put
`Ж` around what is not one. A crash is written to the current folder. `tests/test_hostile.py` replays what was kept.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["gistselect.data"]):
        from replay import Replay

    replay = Replay(Path(tempfile.mkdtemp(prefix="fuzz-")))

    def one(content: bytes) -> Any:
        replay(content)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
