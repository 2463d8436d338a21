"""The embedded default: a small real language model, pool and targets, and the configuration that runs them."""

from __future__ import annotations

from pathlib import Path

from gistselect.run.config import RunConfig


def demo_config(folder: Path, output: Path) -> RunConfig:
    """The whole method on the embedded data in `folder`, sized for two CPU cores.

    The recipe is the published one but for what a 3.7 M-parameter model on a CPU needs instead of 7 B on a GPU: a
    smaller adapter without dropout, a higher learning rate, shorter rows and small forward passes.
    """
    training = {"device_batch_size": 2, "adapter": {"rank": 16, "alpha": 32, "dropout": 0.0}}
    return RunConfig.from_values(
        {
            "model": str(folder / "model"),
            "pool": (str(folder / "data" / "train" / "processed"),),
            "target": ("gsm8k",),
            "data_dir": folder / "data",
            "output": output,
            "max_length": 512,
            "warmup": {**training, "learning_rate": 1e-3},
            "finetune": {**training, "learning_rate": 5e-3},
            "evaluate": True,
            "heldout_items": 100,
        }
    )
