"""What others wrote is data: nothing of it is run, obeyed by a terminal, followed out of its folder, or given away."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import socket
import tarfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from gistselect import cli
from gistselect.data import json_files
from gistselect.data.pool import open_pool
from gistselect.errors import ConfigError, DataError, GistSelectError
from gistselect.model.adapters import AdapterConfig, attach_adapter
from gistselect.model.config import ModelConfig
from gistselect.model.loading import load_model
from gistselect.run.remember import read_yaml
from gistselect.terminal import Terminal, printable
from gistselect.training import checkpoints
from tiny_runs import contents, row, run, write_rows

CODES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Trap:
    """Unpickling it leaves a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sprung,)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """The file that exists once a trap was unpickled."""
    return tmp_path / "sprung"


@pytest.fixture
def trap(sprung: Path) -> bytes:
    return pickle.dumps(Trap(sprung))


def attempt(values: dict[str, Any], **changes: Any) -> str:
    """What a run says if it is refused; any other failure is a defect."""
    try:
        run(values, **changes)
    except GistSelectError as error:
        return str(error)
    return ""


# Pickles.


def test_the_trap_works(trap: bytes, sprung: Path) -> None:
    pickle.loads(trap)
    assert sprung.exists()


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet", "a.csv", "a.tsv", "a.ndjson", "a.pkl", "a.pt", "a.npy"]
)
def test_no_pool_or_target_is_unpickled(
    config: dict[str, Any], tmp_path: Path, name: str, trap: bytes, sprung: Path
) -> None:
    folder = tmp_path / "pool"
    folder.mkdir()
    path = folder / name
    path.write_bytes(gzip.compress(trap) if name.endswith(".gz") else trap)
    for source in (path, folder):
        assert attempt(config, pool=(str(source),), until="ingest")
        assert attempt(config, target=(str(source),), until="ingest")
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["a.pkl", "a.pickle", "a.pt", "a.bin", "a.tar", "data.py"])
def test_no_hub_data_set_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, trap: bytes, sprung: Path
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    if name.endswith(".tar"):
        with tarfile.open(folder / name, "w") as archive:
            for inside in ("0.pickle", "0.pkl", "0.pyd", "0.pth", "0.npy"):
                described = tarfile.TarInfo(inside)
                described.size = len(trap)
                archive.addfile(described, io.BytesIO(trap))
    else:
        (folder / name).write_bytes(trap)
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: x\n  data_files: {name}\n---\n")
    if name == "data.py":
        (folder / name).write_text(f"open({str(sprung)!r}, 'w')")
    try:
        rows = list(open_pool([f"hf:{folder}"]).rows())
    except DataError:
        rows = []
    assert not any(hasattr(one, "messages") for one in rows)
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "spiece.model", "training_args.bin"])
def test_no_model_is_unpickled(
    config: dict[str, Any], tiny_model: Path, tmp_path: Path, name: str, trap: bytes, sprung: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model.iterdir():
        if name != "pytorch_model.bin" or file.suffix != ".safetensors":
            (model / file.name).write_bytes(file.read_bytes())
    (model / name).write_bytes(trap)
    said = attempt(config, model=str(model), until="warmup")
    assert bool(said) == (name in ("pytorch_model.bin", "model.safetensors"))
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors", "optimizer.pt", "spiece.model"])
def test_no_adapter_is_unpickled(
    config: dict[str, Any], tiny_model: Path, tmp_path: Path, name: str, trap: bytes, sprung: Path
) -> None:
    folder = tmp_path / "adapter"
    attach_adapter(load_model(ModelConfig(path=str(tiny_model))), AdapterConfig(rank=2), 0).model.save_pretrained(
        folder
    )
    if name == "adapter_model.bin":
        (folder / "adapter_model.safetensors").unlink()
    (folder / name).write_bytes(trap)
    said = attempt(config, adapter=str(folder), representation=("gist",), until="features")
    assert bool(said) == (name != "optimizer.pt")
    assert not sprung.exists()


def test_nothing_in_a_run_folder_is_unpickled(config: dict[str, Any], trap: bytes, sprung: Path) -> None:
    output = run(config)
    files = [path for path in output.rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) > 30
    for path in files:
        whole = path.read_bytes()
        path.unlink()
        path.write_bytes(trap)
        attempt(config, budget=7)
        attempt(config)
        assert not sprung.exists(), path
        path.write_bytes(whole)


def test_a_forged_checkpoint_is_not_unpickled(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, trap: bytes, sprung: Path
) -> None:
    """Also not if the receipt of the training vouches for it: whoever can write one can write both."""
    record = checkpoints.record

    def then_stop(folder: Path) -> None:
        record(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gistselect.training.trainer.record", then_stop)
        with pytest.raises(KeyboardInterrupt):
            run(config, warmup_checkpoints=(2,))
    (folder,) = config["output"].glob("artifacts/warmup-*/training/checkpoint-*")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(trap)
        record(folder)
        said = attempt(config, warmup_checkpoints=(2,))
        assert not sprung.exists(), name
        assert name == "training_args.bin" or "remove" in said, said
        if name != "training_args.bin":
            (folder / name).write_bytes(whole)
            record(folder)


# Code.


def test_code_that_comes_with_a_model_runs_only_by_the_flag(
    config: dict[str, Any], tiny_model: Path, tmp_path: Path, sprung: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "evil.py").write_text(f"open({str(sprung)!r}, 'w')\nclass Evil: pass\n")
    for name, autos in (
        ("config.json", ["AutoConfig", "AutoModelForCausalLM"]),
        ("tokenizer_config.json", ["AutoTokenizer"]),
    ):
        described = json.loads((model / name).read_text())
        described["auto_map"] = {
            auto: ["evil.Evil", None] if auto == "AutoTokenizer" else "evil.Evil" for auto in autos
        }
        (model / name).write_text(json.dumps(described))
    attempt(config, model=str(model), until="warmup")
    assert not sprung.exists()


def test_yaml_builds_no_objects(tmp_path: Path, sprung: Path) -> None:
    path = tmp_path / "run.yaml"
    for text in (
        f"pool: !!python/object/apply:pathlib.Path.touch [{sprung}]",
        f"pool: !!python/object/apply:os.system ['touch {sprung}']",
        "pool: !!python/name:os.system",
        "pool: !!python/module:os",
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is not YAML"):
            read_yaml(path)
    assert not sprung.exists()


def test_a_chat_template_has_no_way_out(config: dict[str, Any], tmp_path: Path, sprung: Path) -> None:
    template = tmp_path / "evil.jinja"
    for expression in (
        "''.__class__.__mro__[1].__subclasses__()",
        "messages.__init__.__globals__",
        "cycler.__init__.__globals__.os.system('touch " + str(sprung) + "')",
    ):
        template.write_text("{{ " + expression + " }}{% for m in messages %}{{ m.content }}{% endfor %}")
        assert "refuses the conversation" in attempt(config, template=str(template), until="ingest")
    assert not sprung.exists()


# Places.


def test_links_do_not_lead_out_of_their_folder(tmp_path: Path) -> None:
    outside = write_rows(tmp_path / "secret.jsonl", [row("q", "a")])
    folder = tmp_path / "pool"
    folder.mkdir()
    write_rows(folder / "a.jsonl", [row("q", "a")])
    (folder / "b.jsonl").symlink_to("a.jsonl")
    (folder / "c.jsonl").symlink_to(outside)
    (folder / "deep").symlink_to(tmp_path)
    for source in (folder, f"{folder}/*.jsonl", f"{folder}/**/*.jsonl"):
        with pytest.raises(DataError, match="a link that leads out of"):
            open_pool([source])
    (folder / "c.jsonl").unlink()
    (folder / "b.jsonl").unlink()
    assert len(open_pool([folder]).files) == 1
    assert len(open_pool([folder / "deep" / "secret.jsonl"]).files) == 1


def test_the_hubs_cache_is_a_folder_of_links(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "datasets--x" / "blobs", tmp_path / "datasets--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    write_rows(blobs / "0123", [row("q", "a")])
    (snapshot / "train.jsonl").symlink_to("../../blobs/0123")
    assert len(list(open_pool([snapshot]).rows())) == 1


def test_links_in_a_run_folder_are_replaced_and_never_written_through(config: dict[str, Any], tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    config["output"].mkdir()
    names = ("selected.jsonl", "selection.parquet", "scores.parquet", "manifest.json", "quarantine.jsonl")

    def link() -> None:
        for name in names:
            (config["output"] / name).unlink(missing_ok=True)
            (config["output"] / name).symlink_to(victim)

    link()
    with pytest.raises(ConfigError, match="no run has put it there"):
        run(config)
    for name in names:
        (config["output"] / name).unlink(missing_ok=True)
    made = contents(run(config))
    link()
    assert contents(run(config)) == made
    assert victim.read_text() == "mine"
    assert not any((config["output"] / name).is_symlink() for name in names)


def test_a_line_that_no_memory_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "LONGEST_LINE", 1000)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row("q", "a")).encode() + b"\n" + b"0" * 100_000))
    with pytest.raises(DataError, match="line 2: the line is longer than"):
        list(open_pool([path]).rows())


# Terminals.


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert printable("a\x1b[2J\x9b\u202e\ud800\tb\n") == "a\\x1b[2J\\x9b\\u202e\\ud800\tb\n"
    screen = io.StringIO()
    Terminal(file=screen, width=200).say("größer " + CODES)
    assert screen.getvalue() == "größer \\x1b]0;owned\\x1b[2J\\x9b31m\\u202e\n"


def test_no_text_becomes_a_picture_or_a_style() -> None:
    """`hf:folder:train: 30 rows` was shown with a tram in it."""
    screen = io.StringIO()
    terminal = Terminal(file=screen, width=20, force_terminal=True, color_system="standard")
    for said in (text := "hf:folder:train: [bold]30[/] rows :smile:", Text(text)):
        terminal.say(said)
    assert screen.getvalue() == f"{text}\n" * 2


def test_no_id_name_group_or_error_reaches_the_terminal_as_a_code(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ("pool " + CODES.replace("/", ""))
    folder.mkdir()
    rows = [row(f"{CODES} {i}?", f"{i} {CODES}", id=f"{CODES}{i}", dataset=f"{CODES}{i % 2}") for i in range(20)]
    broken = [
        {"messages": [{"role": CODES, "content": CODES}], "id": CODES},
        {CODES: CODES},
        row("q", "a", **{CODES: 1}),
    ]
    write_rows(folder / f"{CODES}.jsonl", [*rows, *broken])
    target = write_rows(tmp_path / f"target{CODES}.jsonl", [row("q", CODES, group=CODES), row("r", "s", group="b")])
    for extra in (
        [],
        ["--strict"],
        ["--target", str(target) + CODES],
        ["--representation", CODES],
    ):
        arguments = ["--pool", str(folder), "--target", str(target), "--representation", "bm25", "--budget", "5"]
        arguments += ["--output", str(tmp_path / f"out{CODES}"), *extra]
        with pytest.raises(SystemExit) if extra else nullcontext():
            cli.main(["run", *arguments])
        said = capsys.readouterr()
        assert said.err
        assert not OBEYED.search(said.out + said.err)


# Secrets, and the network.


def test_secrets_are_in_no_file_and_no_message(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "hf_" + "s3cr3t" * 5
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secret)
    from gistselect.run.config import RunConfig
    from gistselect.run.pipeline import execute
    from gistselect.run.progress import Reporter

    execute(RunConfig.from_values(config), Reporter())
    attempt(config, model="owner/absent")
    said = capsys.readouterr()
    assert secret not in said.out + said.err
    for path in config["output"].rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_local_files_need_no_network(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        tried.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: tried.append(a) or [])
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    run(config, representation=("gist", "less:dimension=64", "rds", "bm25"))
    assert tried == []
    assert os.environ.get("HF_HUB_OFFLINE") is None
