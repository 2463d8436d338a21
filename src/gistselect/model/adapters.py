"""LoRA adapters: attach a fresh one, load a stored one, and freeze a model for gradients."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gistselect.errors import ModelError
from gistselect.model.loading import files_digest

if TYPE_CHECKING:
    from gistselect.model.loading import LanguageModel

ATTENTION_PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("q_proj", "k_proj", "v_proj", "dense"),
    ("qkv_proj", "o_proj"),
    ("attention.query_key_value", "attention.dense"),
    ("self_attention.query_key_value", "self_attention.dense"),
    ("attn.c_attn", "attn.c_proj"),
)
"""Names of query, key, value and output projections, by family; the first set found in a model is taken."""
WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


class AdapterConfig(BaseModel):
    """A LoRA adapter; the defaults are the published warm-up recipe (METHOD section 2)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=128, ge=1)
    """Rank of the two factors."""
    alpha: float = Field(default=512, gt=0)
    """Scale of the update, divided by the rank (by its square root with `rslora`)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before the first factor, in training only."""
    target_modules: tuple[str, ...] | None = None
    """Names of the linear layers that get an adapter; by default the attention projections q, k, v, o."""
    rslora: bool = False
    """Rank-stabilised scale: alpha / sqrt(rank)."""
    dora: bool = False
    """Weight-decomposed LoRA (a magnitude vector per layer)."""


def attach_adapter(
    language_model: LanguageModel,
    config: AdapterConfig,
    seed: int,
    dtype: Literal["model", "float32"] = "model",
) -> LanguageModel:
    """Put a fresh adapter on the model: the first factor drawn from `seed`, the second zero; evaluation mode.

    `dtype`: "model" for gradients, "float32" for training. Raises `ModelError` without target modules.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules or attention_projections(language_model.model)),
        use_rslora=config.rslora,
        use_dora=config.dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[language_model.device] if language_model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            model = get_peft_model(language_model.model, lora, autocast_adapter_dtype=False)
        except ValueError as error:
            raise ModelError(f"cannot attach the adapter: {error}") from error
    cast_adapter(model, torch.float32 if dtype == "float32" else language_model.dtype)
    return dataclasses.replace(language_model, model=model.eval())


def load_adapter(
    language_model: LanguageModel, folder: str | Path, dtype: Literal["model", "float32"] = "model"
) -> LanguageModel:
    """Put a stored PEFT adapter on the model, frozen.

    Raises `ModelError` if the folder is not a LoRA adapter, or its shapes or base name are not of this model.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict

    folder = Path(folder)
    shapes = _stored_shapes(folder)
    _check_base(language_model.model, folder, shapes)
    model = PeftModel.from_pretrained(language_model.model, str(folder), autocast_adapter_dtype=False)
    if different := set(get_peft_model_state_dict(model)) ^ set(shapes):
        raise ModelError(
            f"{folder / WEIGHTS_FILE} and {CONFIG_FILE} do not agree, e.g. on {min(different)!r}; "
            "save the adapter again."
        )
    cast_adapter(model, torch.float32 if dtype == "float32" else language_model.dtype)
    return dataclasses.replace(language_model, model=model.eval())


def adapter_digest(folder: str | Path) -> str:
    """SHA-256 of an adapter's configuration and weights. Raises `ModelError` if one is missing."""
    paths = [Path(folder) / name for name in (CONFIG_FILE, WEIGHTS_FILE)]
    for path in paths:
        if not path.is_file():
            raise ModelError(f"{path} is missing: {str(folder)!r} is not a PEFT adapter folder.")
    return files_digest(paths)


def prepare_for_gradients(language_model: LanguageModel) -> None:
    """Evaluation mode, nothing trainable.

    Raises `ModelError` if a dropout layer stays active, or gradients cannot flow through a quantized one.
    """
    import torch

    from gistselect.model.quantized import keep_differentiable

    model = language_model.model
    keep_differentiable(model)
    model.eval()
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ModelError(f"dropout is on in {name!r} after model.eval(): gradients would be random.")


def attention_projections(model: Any) -> tuple[str, ...]:
    """Names of a model's query, key, value and output projections. Raises `ModelError` if none is known."""
    names = [name for name, _ in model.named_modules()]
    for family in ATTENTION_PROJECTIONS:
        if all(any(name.endswith(f".{leaf}") for name in names) for leaf in family):
            return family
    linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight")})
    raise ModelError(
        f"the attention projections of {type(model).__name__} are not known; "
        f"name the layers with target_modules. Layers with weights: {', '.join(linear)}."
    )


def adapter_parameters(model: Any) -> dict[str, Any]:
    """The adapter's parameters by name, in the model's order."""
    return {name: value for name, value in model.named_parameters() if "lora_" in name}


def cast_adapter(model: Any, dtype: Any) -> None:
    """Hold the adapter's parameters in `dtype`."""
    for value in adapter_parameters(model).values():
        value.data = value.data.to(dtype)


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    adapter_digest(folder)
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"{folder / WEIGHTS_FILE} cannot be read: {error}") from error


def _check_base(model: Any, folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{folder / CONFIG_FILE} is not JSON: {error}") from error
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} holds a {config.get('peft_type')} adapter; only LORA adapters are supported.")
    stored, loaded = (
        str(name or "").rstrip("/") for name in (config.get("base_model_name_or_path"), model.name_or_path)
    )
    if stored and loaded and Path(stored).name != Path(loaded).name:
        raise ModelError(
            f"the adapter {folder} was trained on {stored!r}, the model is {loaded!r}; load that "
            f"base, or correct base_model_name_or_path in {CONFIG_FILE} if both are the same weights."
        )
    for name, shape in shapes.items():
        _check_shape(model, folder, name, shape)


def _check_shape(model: Any, folder: Path, name: str, shape: tuple[int, ...]) -> None:
    path, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
    if factor not in ("A.weight", "B.weight"):
        return
    try:
        weight = model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(f"the adapter {folder} has weights for {path!r}, which this model does not have.") from error
    axis = 1 if factor == "A.weight" else 0
    sizes = {"A.weight": ("in_features", "nx"), "B.weight": ("out_features", "nf")}[factor]
    expected = next((getattr(weight, size) for size in sizes if hasattr(weight, size)), None)
    if expected is not None and shape[axis] != expected:
        raise ModelError(
            f"the adapter {folder} has {name} of shape {shape}, but {path!r} of this model needs "
            f"{expected} on axis {axis}; the adapter belongs to another model."
        )
