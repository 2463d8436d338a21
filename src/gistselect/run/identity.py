"""What the model of a run is, for keys: known before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gistselect.model.config import ModelConfig
from gistselect.model.engine_config import EngineConfig

if TYPE_CHECKING:
    from gistselect.model.loading import LanguageModel


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Digests of the model and of how its numbers are held."""

    weights: dict[str, Any]
    """Weights, precision, kind of device and quantization: what losses and trainings depend on."""
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
        }
    else:
        from gistselect.model.live import live_adapter_digest

        weights = {
            "model": weights_digest(model.model),
            "live_adapter": live_adapter_digest(model.model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
        }
    basis = engine.stored_basis_dtype(weights["dtype"], weights["device"])
    return ModelIdentity(weights=weights, gradients={**weights, "basis_dtype": basis})
