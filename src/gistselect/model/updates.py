"""A LoRA update that is put on a model for a moment: two adapters and none can then be read in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gistselect.model.adapter_files import WEIGHTS_FILE, adapter_settings

if TYPE_CHECKING:
    from gistselect.model.loading import LanguageModel

PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class LoraUpdate:
    """y = Wx + s·B(Ax) on some linear layers of a model."""

    factors: Mapping[str, tuple[Tensor, Tensor]]
    """A (r, in) and s·B (out, r) by the name of their layer in the plain model."""

    @classmethod
    def read(cls, folder: Path) -> LoraUpdate:
        """The update of a PEFT folder that `training.train` wrote."""
        from safetensors.torch import load_file

        settings, weights = adapter_settings(folder), load_file(folder / WEIGHTS_FILE)
        scale = settings["lora_alpha"] / settings["r"]
        layers = [name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")]
        return cls(
            factors={
                layer.removeprefix(PEFT_PREFIX): (
                    weights[f"{layer}.lora_A.weight"],
                    scale * weights[f"{layer}.lora_B.weight"],
                )
                for layer in layers
            }
        )

    def to(self, language_model: LanguageModel) -> LoraUpdate:
        """This update where its layers are and in the model's number format, as an adapter loaded for reading."""
        causal, dtype = language_model.causal, language_model.dtype
        places = {name: next(causal.get_submodule(name).parameters()).device for name in self.factors}
        return LoraUpdate(
            factors={
                name: (down.to(places[name], dtype), up.to(places[name], dtype))
                for name, (down, up) in self.factors.items()
            }
        )

    @contextmanager
    def on(self, causal: Any) -> Iterator[None]:
        """Within this context the plain model runs with the update; its weights are not touched."""
        with ExitStack() as stack:
            for name, (down, up) in self.factors.items():
                hook = causal.get_submodule(name).register_forward_hook(partial(_added, down, up))
                stack.callback(hook.remove)
            yield


def _added(down: Tensor, up: Tensor, _: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + ((inputs[0].to(down.dtype) @ down.T) @ up.T).to(output.dtype)
