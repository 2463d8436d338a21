"""Build the package as it is published, install it outside the checkout, and use it there.

    python tools/check_wheel.py

The source archive and, from it, the wheel are built with `python -m build`; the wheel goes into a fresh virtual
environment, which borrows the heavy packages of this one, so that all takes less than a minute or two. There, in an
empty folder: the version, the doctor, a run without a model on the embedded rows, and the start of the demo.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = (
    "gistselect/py.typed",
    "gistselect/report/page.html.jinja",
    "gistselect/report/page.js",
    "gistselect/report/page.css",
    "gistselect/demo/model/model.safetensors",
    "gistselect/demo/data/train/",
    "gistselect/evaluation/tasks/",
    ".data/data/share/gistselect/constraints.txt",
    ".dist-info/licenses/LICENSE",
)
"""Parts of the names of what the wheel must hold beside the code."""
DEMO_SECONDS = 120


def main() -> int:
    """0 if the package works; raises with what a command said otherwise."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gistselect-wheel-") as name:
        folder = Path(name)
        wheel = build(folder)
        commands = install(wheel, folder / "environment")
        empty = folder / "elsewhere"
        empty.mkdir()
        use(commands, empty)
    print(f"the wheel works outside the checkout ({time.monotonic() - started:.0f} s)")
    return 0


def build(folder: Path) -> Path:
    """The wheel, from the source archive, with what it must hold and no test."""
    copy = folder / "source"  # What a build leaves beside the sources must not stay in the checkout.
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    )
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(copy)], folder)
    (wheel,) = folder.glob("dist/gistselect-*-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for part in SHIPPED:
        assert any(part in name for name in names), f"{wheel.name} lacks {part}"
    assert not [name for name in names if name.startswith(("tests", "tools", "benchmarks"))]
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """The folder of the commands of a fresh environment with the wheel; other packages are those of this one."""
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    commands = folder / ("Scripts" if os.name == "nt" else "bin")
    run([str(commands / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], folder)
    # After the installation: pip must not take this environment's own gistselect for one to be replaced.
    places = [sysconfig.get_paths()[name] for name in ("purelib", "platlib")]
    own = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})["purelib"]
    (Path(own) / "borrowed.pth").write_text("\n".join(dict.fromkeys(places)), encoding="utf-8")
    return commands


def use(commands: Path, folder: Path) -> None:
    """What a person does first."""
    python, command = str(commands / "python"), str(commands / "gistselect")
    where = run([python, "-c", "import gistselect; print(gistselect.__version__, gistselect.__file__)"], folder).split()
    assert where[1].startswith(str(commands.parent)), f"imported from {where[1]}"
    assert run([command, "--version"], folder).strip() == where[0]
    said = run([command, "doctor"], folder)
    assert "needed packages: all" in said or "tested versions" in said, said
    print(f"gistselect {where[0]}: version and doctor")
    data = Path(where[1]).parent / "demo" / "data"
    pool, target = str(data / "train"), "gsm8k"
    options = [
        "--pool",
        pool,
        "--target",
        target,
        "--data-dir",
        str(data),
        "--representation",
        "bm25",
        "--budget",
        "20",
    ]
    run([command, "run", *options, "--output", "cheap"], folder)
    assert len((folder / "cheap" / "selected.jsonl").read_bytes().splitlines()) == 20
    assert (folder / "cheap" / "report.html").is_file()
    print("a run without a model: 20 rows and their page")
    start_demo(command, folder)
    print("the demo: pool read and tokenised, warm-up begun, stopped on request")


def start_demo(command: str, folder: Path) -> None:
    """Begin the demo, and ask it to stop once its warm-up trains."""
    process = subprocess.Popen(
        [command, "demo", "--output", "demo"], cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + DEMO_SECONDS
    while process.poll() is None and not list(folder.glob("demo/artifacts/warmup-*/training")):
        assert time.monotonic() < deadline, f"no warm-up within {DEMO_SECONDS} s"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEMO_SECONDS)
    assert process.returncode == 130, said
    assert list(folder.glob("demo/artifacts/tokens-*/complete.json"))


def run(command: Sequence[str], folder: Path) -> str:
    """Standard output of a command that works."""
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def environment() -> dict[str, str]:
    """Variables of a shell that knows nothing of the checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


if __name__ == "__main__":
    sys.exit(main())
