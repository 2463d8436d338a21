"""The command line. Heavy libraries are imported by the commands that need them, never for --help."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Literal, cast

import cyclopts
from cyclopts import App, Parameter
from pydantic import ValidationError

from gistselect import __version__, looking, planning, upkeep
from gistselect.bench.config import BenchConfig
from gistselect.errors import ConfigError, GistSelectError
from gistselect.loudness import spoken
from gistselect.run.config import RunConfig, Stage, explain
from gistselect.run.remember import RUN_YAML, read_yaml, recall
from gistselect.run.standalone_config import EvaluateConfig, TrainConfig
from gistselect.run.study_config import STUDY_YAML, StudyConfig
from gistselect.run.validate_config import VALIDATE_YAML, ValidateConfig
from gistselect.terminal import Terminal, print_table

EXAMPLES = """
Typical use:

    gistselect demo
    gistselect run --model Qwen/Qwen2.5-0.5B --pool data/train/processed \\
      --target gsm8k --data-dir data --output runs/a
    gistselect run --model ./model --pool pool.jsonl --target mine.jsonl \\
      --budget 500 --output runs/mine
    gistselect select --output runs/mine --budget 10%
    gistselect compare --model ./model --pool pool.jsonl --target mine.jsonl \\
      --heldout test.jsonl --representation gist bm25 --output studies/a
    gistselect spectrum runs/mine
"""

app = App(
    name="gistselect",
    version=__version__,
    help="Choose the few percent of an instruction-tuning pool that teach your task, and prove it.\n" + EXAMPLES,
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # else it ends without the words of `main`
)


def _run(config: RunConfig, until: Stage | None = None) -> None:
    from gistselect.run.pipeline import execute
    from gistselect.run.progress import Reporter

    execute(config, Reporter(), last=until)


@app.command
def run(*, config: RunConfig) -> None:
    """Select from a pool for a target: warm-up, gradients, scores, selection, and with --evaluate the proof.

    Every option can stand in a YAML file given with --config; flags come on top. Options that are not given are
    read from run.yaml in the output folder, if it is there; `none` takes one back.

    Typical use:

        gistselect run --model ./model --pool pool.jsonl --target mine.jsonl \\
          --budget 5% --output runs/mine
        gistselect run --pool pool.jsonl --target mine.jsonl \\
          --representation bm25 --output runs/cheap
        gistselect run --model ./model --pool pool.jsonl --target gsm8k \\
          --data-dir data --representation gist less bm25 --evaluate \\
          --output runs/all
    """
    _run(config)


@app.command
def warmup(*, config: RunConfig) -> None:
    """Stage 1: train the warm-up adapter on a random part of the pool."""
    _run(config, "warmup")


@app.command
def features(*, config: RunConfig) -> None:
    """Stage 2: task subspaces from the queries, and the pool's gradients projected into them."""
    _run(config, "features")


@app.command
def score(*, config: RunConfig) -> None:
    """Stage 3: score every pool row for every target."""
    _run(config, "score")


@app.command
def select(*, config: RunConfig) -> None:
    """Stage 4: write the best rows within the budget as a training file."""
    _run(config, "select")


@app.command
def train(
    *,
    run: Annotated[Path | None, Parameter(help="Run folder: fine-tune on its selection and baselines.")] = None,
    config: Annotated[TrainConfig | None, Parameter(name="*")] = None,
) -> None:
    """Stage 5: fine-tune on a run's selection (--run), or on any rows (--model, --data, --output).

    Typical use:

        gistselect train --run runs/math
        gistselect train --model ./model --data runs/math/selected.jsonl --output adapters/math --merge
    """
    if (run is None) == (config is None):
        raise ConfigError("give either --run FOLDER, or --model, --data and --output.")
    if run is not None:
        _run(recall(run), "train")
        return
    from gistselect.run.progress import Reporter
    from gistselect.run.standalone import train_on_rows

    train_on_rows(cast("TrainConfig", config), Reporter())


@app.command
def evaluate(
    *,
    run: Annotated[Path | None, Parameter(help="Run folder: compare its selection with its baselines.")] = None,
    config: Annotated[EvaluateConfig | None, Parameter(name="*")] = None,
) -> None:
    """Stage 6: compare a run's selection with its baselines (--run), or measure any model (--model, --tasks, --output).

    Typical use:

        gistselect evaluate --run runs/math
        gistselect evaluate --model ./model --adapter adapters/math --tasks gsm8k bbh --data-dir data --output results
    """
    if (run is None) == (config is None):
        raise ConfigError("give either --run FOLDER, or --model, --tasks and --output.")
    if run is not None:
        _run(recall(run), "evaluate")
        return
    from gistselect.run.progress import Reporter
    from gistselect.run.standalone import evaluate_model

    for line in evaluate_model(cast("EvaluateConfig", config), Reporter()):
        Terminal().say(line)


@app.command
def compare(*, config: StudyConfig) -> None:
    """Compare methods × selectors × budgets on every target: held-out loss after training, with intervals and costs.

    One pass over the pool serves all methods and targets, and the same rows are trained on once. The same command on
    the same folder continues. Writes study.md, study.csv, study.json and charts.

    Typical use:

        gistselect compare --model ./model --pool pool.jsonl --target gsm8k mmlu --data-dir data \\
          --representation gist less bm25 --budgets 1% 5% --output studies/a
        gistselect compare --model ./model --pool pool.jsonl --target mine.jsonl --heldout test.jsonl \\
          --representation gist --selectors top_k round_robin --baselines random length bm25 \\
          --train-seeds 0 1 2 --output studies/b
    """
    from gistselect.run.progress import Reporter
    from gistselect.run.study import run_study
    from gistselect.run.study_report import summary_rows

    print_table("Held-out results", summary_rows(run_study(config, Reporter()).described()))


@app.command
def validate(*, config: ValidateConfig) -> None:
    """How far scores can be trusted: do they predict losses, do the best rows matter, are planted rows found?

    The same command on the same folder continues. Writes validation.md, validation.json and charts.

    Typical use:

        gistselect validate --model ./model --pool pool.jsonl --target gsm8k --data-dir data \\
          --representation gist less bm25 --output trust/a
        gistselect validate --model ./model --pool pool.jsonl --target gsm8k --data-dir data \\
          --measures lds --subsets 50 --validation-rows 1000 --output trust/b
    """
    from gistselect.run.progress import Reporter
    from gistselect.run.validating import trust_rows
    from gistselect.run.validating import validate as measure

    print_table("How far the scores can be trusted", trust_rows(measure(config, Reporter())))


@app.command
def export(
    folder: Path,
    *,
    to: Literal["trl", "axolotl", "llamafactory"],
    output: Path,
    model: str | None = None,
) -> None:
    """Write a run's selection in the format of a training tool, with a ready configuration file.

    Parameters
    ----------
    folder:
        Run folder that holds a selection.
    to:
        The tool.
    output:
        Folder for the data and the configuration.
    model:
        Folder or hub id of the model to train; by default the run's --finetune-model, or else the one that scored.
    """
    from gistselect.run.standalone import export_selection

    for path in export_selection(folder, to, output, model):
        Terminal().say(str(path))


@app.command
def demo(*, output: Path = Path("runs/demo")) -> None:
    """The whole method on an embedded pool, target and language model; minutes on a laptop.

    Parameters
    ----------
    output:
        Run folder.
    """
    from gistselect.demo import demo_config

    with as_file(files("gistselect.demo")) as folder:
        _run(demo_config(folder, output))


@app.command
def bench(*, config: Annotated[BenchConfig | None, Parameter(name="*")] = None) -> None:
    """Time the gradient engine against the published loop and against plain backward passes, in one interleaved run."""
    from gistselect.bench.measure import bench, format_table
    from gistselect.run.progress import Reporter

    table = format_table(bench(config or BenchConfig(), Reporter().say))
    Terminal().say(table)


_ENGINE = re.compile(r"^--engine(?=$|=)")
"""`--engine local` beside `--engine.batch-tokens 4096`, which the parser takes for one option and its fields."""


app.meta.suppress_keyboard_interrupt = False
looking.register(app)
upkeep.register(app)
planning.register(app)


@app.meta.default
def _with_config(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(help="YAML file of options; flags come on top.")] = None,
    quiet: Annotated[bool, Parameter(negative="", help="Say only what went wrong.")] = False,
    verbose: Annotated[
        bool, Parameter(negative="", help="Also say how things are done, and what libraries warn of.")
    ] = False,
) -> None:
    tokens = tuple(_ENGINE.sub("--engine-kind", token) for token in tokens)
    stored = _stored_config(tokens) if config is None else None
    source = stored if stored is not None and stored.is_file() else config
    app.config = ()
    if source is not None and tokens:
        # Below the command's name: at the top level cyclopts drops keys that are also commands, such as warmup.
        app.config = (cyclopts.config.Dict({tokens[0]: read_yaml(source)}, source=str(source)),)
    try:
        with spoken(quiet=quiet, verbose=verbose):
            app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except (GistSelectError, cyclopts.CycloptsError) as error:
        if stored is not None and source is not None:
            error.add_note(f"Options that were not given are those of {stored}.")
        elif stored is not None and isinstance(error, cyclopts.MissingArgumentError):
            error.add_note(f"There is no {stored} from which it could be taken.")
        raise
    finally:
        app.config = ()


def _stored_config(tokens: Sequence[str]) -> Path | None:
    """Where the options of the output folder lie once the command has been run there; None if it takes none."""
    stages = dict.fromkeys(("run", "plan", "warmup", "features", "score", "select"), RUN_YAML)
    name = {**stages, "compare": STUDY_YAML, "validate": VALIDATE_YAML}.get(tokens[0]) if tokens else None
    if name is None:
        return None
    for token, value in zip(tokens, [*tokens[1:], ""], strict=True):
        folder = (
            value if token == "--output" else token.removeprefix("--output=") if token.startswith("--output=") else None
        )
        if folder:
            return Path(folder) / name
    return None


def _told(error: Exception) -> str:
    """An error as a sentence; what is wrong with options is said as everywhere else."""
    if isinstance(error, cyclopts.ValidationError) and isinstance(error.__cause__, ValidationError):
        return explain(error.__cause__, tuple(RunConfig.model_fields), as_flags=True)
    return str(error)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors that the user can act on are one message and exit status 2, never a traceback.

    SIGTERM, as schedulers send it, ends the command as Ctrl-C does: status 130, and what is finished is kept.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app.meta(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (GistSelectError, cyclopts.CycloptsError) as error:
        message = "\n".join([f"gistselect: {_told(error)}", *getattr(error, "__notes__", ())])
        Terminal(stderr=True).say(message, style="bold red")
        sys.exit(2)
    except KeyboardInterrupt:
        said = "\nInterrupted. Finished stages and shards are kept; the same command continues where this one stopped."
        Terminal(stderr=True).say(said)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)
