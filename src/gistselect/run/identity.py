"""What the model of a run is, for keys: known before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from gistselect.model.config import ModelConfig
from gistselect.model.engine_config import EngineConfig

if TYPE_CHECKING:
    from gistselect.model.loading import LanguageModel


FIRST_SERIES = {"torch": "2.13", "transformers": "5.23", "peft": "0.21", "bitsandbytes": "0.50"}
"""Packages that hold a model's arithmetic, at the series that keys do not name: what was made before keys named any was
made with these. They never change."""


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Digests of the model and of how its numbers are held."""

    weights: dict[str, Any]
    """Weights, precision, kind of device, quantization and series of packages: what losses and trainings depend on."""
    gradients: dict[str, Any]
    """These, and the format of a basis: what fits and features depend on."""


def identify(model: ModelConfig | LanguageModel, engine: EngineConfig) -> ModelIdentity:
    """Digest a model without loading it. Raises `ModelError` if it is not there."""
    from gistselect.model.loading import model_digest, resolved_precision, weights_digest

    if isinstance(model, ModelConfig):
        weights = {
            "model": model_digest(model),
            "quantization": model.quantization,
            **resolved_precision(model),
            **package_series(quantized=model.quantization != "none"),
        }
    else:
        from gistselect.model.live import live_adapter_digest

        weights = {
            "model": weights_digest(model.model),
            "live_adapter": live_adapter_digest(model.model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            **package_series(quantized=False),
        }
    basis = engine.stored_basis_dtype(weights["dtype"], weights["device"])
    return ModelIdentity(weights=weights, gradients={**weights, "basis_dtype": basis})


def package_series(*, quantized: bool) -> dict[str, dict[str, str]]:
    """Series (major.minor) of the packages whose code a model's numbers go through, for keys.

    transformers has the models, peft the adapters, torch the kernels and the random numbers of a training, bitsandbytes
    the quantized weights. A release of a series mends faults; another series may compute otherwise, and shards of two
    of them do not belong into one artifact. What reads text alone goes through none of them, and tokens are known by
    the digest of their tokenizer.
    """
    found = {}
    for name, first in FIRST_SERIES.items():
        if name == "bitsandbytes" and not quantized:
            continue
        try:
            series = ".".join(version(name).split(".")[:2])
        except PackageNotFoundError:
            continue
        if series != first:
            found[name] = series
    return {"packages": found} if found else {}
