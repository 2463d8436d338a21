"""Speed of the gradient engine: `python benchmarks/engine.py --shape qwen2.5-1.5b --device cuda` (see --help)."""

from __future__ import annotations

from typing import Annotated

import cyclopts

from gistselect.bench.config import BenchConfig
from gistselect.bench.measure import bench, format_table

app = cyclopts.App(help=__doc__)


@app.default
def main(config: Annotated[BenchConfig | None, cyclopts.Parameter(name="*")] = None) -> None:
    """Measure all arms in one interleaved run and print the table."""
    print(format_table(bench(config or BenchConfig(), print)))


if __name__ == "__main__":
    app()
