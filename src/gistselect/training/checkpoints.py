"""What a training leaves in its folder: checkpoints, moments, the curve, and the receipt that says whose they are.

All of it is safetensors and JSON, written whole. What Trainer pickles for a resume is read back only if it is, byte
for byte, what this training recorded when it wrote the checkpoint, and is removed when the training is done.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.errors import ArtifactMismatchError, ModelError
from gistselect.files import read_json, replacing, write_json

if TYPE_CHECKING:
    import torch

MOMENTS = "moments.safetensors"
"""Optimizer moments beside each checkpoint: `exp_avg/<parameter>` and `exp_avg_sq/<parameter>`, names as in
`model.named_parameters()`, shapes as the parameters; the number of steps is in the file's metadata."""
ADAPTER_CONFIG = "adapter_config.json"
CURVE = "curve.json"
RECEIPT = "training.json"
"""Written first with the training's digest, and last with its result."""
CHECKPOINTS = "checkpoint-*"
PICKLES = (".pt", ".pth", ".bin")
"""What Trainer keeps for a resume; removed when the training is done."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The weights at the end of an epoch."""

    path: Path
    """PEFT adapter folder, or a model folder after full fine-tuning."""
    epoch: int
    step: int
    mean_learning_rate: float
    """Over the steps of the epoch; LESS weights its checkpoints by it."""

    @property
    def moments(self) -> Path:
        return self.path / MOMENTS


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training left on disk."""

    checkpoints: tuple[Checkpoint, ...]
    curve: tuple[tuple[int, float, float], ...]
    """(step, loss, learning rate) of each optimizer step; the loss is the mean over its supervised tokens."""

    @property
    def adapter(self) -> Path:
        """Folder of the last checkpoint."""
        return self.checkpoints[-1].path


@dataclass(frozen=True, kw_only=True)
class Moments:
    """AdamW's moments by the name of their parameter, in float32, shaped as the parameters."""

    exp_avg: dict[str, torch.Tensor]
    exp_avg_sq: dict[str, torch.Tensor]
    step: int
    """Optimizer steps that they have seen."""


def save_moments(path: Path, model: torch.nn.Module, state: dict[Any, dict[str, Any]], step: int) -> None:
    """Write AdamW's moments by the name of their parameter.

    The optimizer keys its state by the parameters themselves, so no order of parameter groups enters.
    Raises `ModelError` if a trained parameter has no moments.
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "exp_avg" not in state.get(parameter, {}):
            raise ModelError(f"the optimizer holds no moments of {name!r} at step {step}.")
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}/{name}"] = state[parameter][moment].detach().cpu().contiguous()
    with replacing(path) as part:
        save_file(tensors, part, metadata={"step": str(step)})


def load_moments(path: Path) -> Moments:
    """What `save_moments` wrote. Raises `ArtifactMismatchError` if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step = int(file.metadata()["step"])
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise ArtifactMismatchError(
            f"{path} holds no optimizer moments ({error}); train the checkpoint again."
        ) from error

    def of(moment: str) -> dict[str, torch.Tensor]:
        prefix = f"{moment}/"
        return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}

    return Moments(exp_avg=of("exp_avg"), exp_avg_sq=of("exp_avg_sq"), step=step)


def resume_state(output: Path, digest: str) -> TrainingResult | None:
    """The finished training of this digest if `output` holds it; otherwise `output` is made ready.

    Raises `ArtifactMismatchError` if `output` holds another training, or checkpoints of another tool.
    """
    receipt = output / RECEIPT
    if not receipt.exists():
        if others := sorted(output.glob(CHECKPOINTS)):
            raise ArtifactMismatchError(
                f"{others[0]} was not written by this training: {output} has no {RECEIPT}; choose another folder."
            )
        write_json(receipt, {"digest": digest, "written": {}})
        return None
    stored = read_json(receipt)
    if stored.get("digest") != digest:
        raise ArtifactMismatchError(
            f"{output} holds another training (model, rows, options or seed); choose another folder or remove it."
        )
    return _stored_result(output, stored) if "checkpoints" in stored else None


def order_names(folder: Path) -> None:
    """Sort the layers in an adapter's configuration: PEFT keeps a set, whose order is another in every process."""
    path = folder / ADAPTER_CONFIG
    if path.is_file():
        settings = read_json(path)
        ordered = {key: sorted(value) if _is_names(value) else value for key, value in settings.items()}
        write_json(path, dict(sorted(ordered.items())))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def record(folder: Path) -> None:
    """Note in the receipt what a whole checkpoint holds; only what is noted is ever continued from."""
    receipt = folder.parent / RECEIPT
    stored = read_json(receipt)
    write_json(receipt, {**stored, "written": {**stored["written"], folder.name: _checksums(folder)}})


def last_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint; one that was cut off while it was written is removed.

    Raises `ArtifactMismatchError` if a file differs from what was noted: unpickling it could run anything.
    """
    written = read_json(output / RECEIPT)["written"]
    whole = []
    for folder in output.glob(CHECKPOINTS):
        if folder.name not in written:
            shutil.rmtree(folder)
            continue
        found, noted = _checksums(folder), written[folder.name]
        if changed := sorted(name for name in found.keys() | noted.keys() if found.get(name) != noted.get(name)):
            raise ArtifactMismatchError(
                f"{folder / changed[0]} is not as this training left it; remove {folder} and run again: the training "
                "continues from the checkpoint before."
            )
        whole.append(folder)
    return max(whole, key=step_of, default=None)


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path in the folder; the files are on the disk when it returns."""
    sums = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def step_of(folder: Path) -> int:
    """Optimizer steps behind a checkpoint folder."""
    return int(folder.name.rpartition("-")[2])


def finish(output: Path, digest: str, per_epoch: int) -> TrainingResult:
    """Collect what the training left, write the receipt, and remove what only a resume needs."""
    folders = sorted(output.glob(CHECKPOINTS), key=step_of)
    history = read_json(folders[-1] / "trainer_state.json")["log_history"]
    curve = [(log["step"], log["loss"], log["learning_rate"]) for log in history if "loss" in log]
    checkpoints = []
    for folder in folders:
        step = step_of(folder)
        rates = [rate for at, _, rate in curve if step - per_epoch < at <= step]
        facts = {"epoch": step // per_epoch, "step": step, "mean_learning_rate": sum(rates) / len(rates)}
        checkpoints.append({"path": folder.name, **facts})
    write_json(output / CURVE, curve)
    receipt = {"digest": digest, "checkpoints": checkpoints}
    write_json(output / RECEIPT, receipt)
    for path in output.glob(f"{CHECKPOINTS}/*"):
        if path.suffix in PICKLES:
            path.unlink()
    return _stored_result(output, receipt)


def _stored_result(output: Path, stored: dict[str, Any]) -> TrainingResult:
    for one in stored["checkpoints"]:
        if not (output / one["path"] / MOMENTS).is_file():
            raise ArtifactMismatchError(f"{output / one['path']} is missing or damaged; remove {output} and run again.")
    return TrainingResult(
        checkpoints=tuple(Checkpoint(**{**one, "path": output / one["path"]}) for one in stored["checkpoints"]),
        curve=tuple((step, loss, rate) for step, loss, rate in read_json(output / CURVE)),
    )
