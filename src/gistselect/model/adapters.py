"""LoRA adapters: attach a fresh one, load a stored one, and freeze a model for gradients."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gistselect.errors import ModelError
from gistselect.model.adapter_files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_digest,
    adapter_settings,
    adapter_tokenizer,
    locate_adapter,
    stored_shapes,
)

if TYPE_CHECKING:
    from gistselect.model.loading import LanguageModel

__all__ = ["AdapterConfig", "adapter_digest", "attach_adapter", "load_adapter"]

log = logging.getLogger(__name__)
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
ALL_LINEAR = "all-linear"
PATTERN = re.compile(r"[*+?()\[\]{}|^$\\]")
"""What the name of a layer never holds: with any of these, a target is a pattern of whole names."""


class AdapterConfig(BaseModel):
    """A LoRA adapter; the defaults are the published warm-up recipe (METHOD section 2)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rank: int = Field(default=128, ge=1)
    """Rank of the two factors."""
    alpha: float = Field(default=512, gt=0)
    """Scale of the update, divided by the rank (by its square root with `rslora`)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before the first factor, in training only."""
    target_modules: tuple[str, ...] | None = None
    """Linear layers that get an adapter: ends of their names, patterns of their whole names (`.*mlp.*_proj`), or
    `all-linear`; by default the attention projections q, k, v, o."""
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

    from gistselect.model.hush import hushed

    with hushed():
        from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.rank,
        lora_alpha=float(config.alpha),  # pyright: ignore[reportArgumentType]
        lora_dropout=config.dropout,
        target_modules=_targets(config.target_modules or attention_projections(language_model.model)),
        exclude_modules=_other_towers(language_model.model),
        use_rslora=config.rslora,
        use_dora=config.dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    devices = [language_model.device] if language_model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), hushed():
        torch.manual_seed(seed)
        try:
            model = get_peft_model(language_model.model, lora, autocast_adapter_dtype=False)
        except ValueError as error:
            raise ModelError(f"cannot attach the adapter: {error}") from error
    cast_adapter(model, torch.float32 if dtype == "float32" else language_model.dtype)
    return dataclasses.replace(language_model, model=model.eval())


def load_adapter(
    language_model: LanguageModel, reference: str | Path, dtype: Literal["model", "float32"] = "model"
) -> LanguageModel:
    """Put a stored PEFT adapter on the model, frozen; `reference` is its folder or a hub id.

    Names are advice, shapes are proof: another base name is a warning. Where the adapter brings embeddings of another
    size, the model takes that size; where it brings a tokenizer, that is the tokenizer of what is returned.
    Raises `ModelError` if this is not a LoRA adapter, or one of another model, or a weight of it is not finite.
    """
    import torch

    from gistselect.model.hush import hushed

    with hushed():
        from peft import PeftModel, get_peft_model_state_dict

    from gistselect.model.soundness import refuse_broken_weights

    folder = locate_adapter(reference)
    settings, shapes = adapter_settings(folder), stored_shapes(folder)
    tokenizer = adapter_tokenizer(folder)
    model = language_model.model
    _take_vocabulary(model, folder, shapes, 0 if tokenizer is None else len(tokenizer))
    for name, shape in shapes.items():
        _check_shape(model, folder, name, shape)
    _compare_names(str(settings.get("base_model_name_or_path") or ""), str(model.name_or_path or ""), folder)
    try:
        with hushed():
            adapted = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ModelError(f"PEFT cannot load the adapter {folder}: {error}") from error
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    if different := {name for name in expected.keys() ^ shapes.keys() if "lora_" in name}:
        raise ModelError(
            f"{folder / WEIGHTS_FILE} and {CONFIG_FILE} do not agree, e.g. on {min(different)!r}; "
            "save the adapter again."
        )
    cast_adapter(adapted, torch.float32 if dtype == "float32" else language_model.dtype)
    refuse_broken_weights(adapter_parameters(adapted).items(), str(folder))
    return dataclasses.replace(
        language_model,
        model=adapted.eval(),
        tokenizer=language_model.tokenizer if tokenizer is None else tokenizer,
    )


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


def shared_weights(model: Any) -> set[int]:
    """Identities of the parameters that more than one module holds, such as tied embeddings.

    An update for one of these modules must not be written into them: it would change the others too.
    """
    holders = Counter(id(value) for module in model.modules() for value in module._parameters.values())
    return {key for key, number in holders.items() if number > 1 and key != id(None)}


def untie_adapted(model: Any) -> None:
    """Give every adapted layer a weight of its own, so that merging changes no other layer with it."""
    import torch
    from peft.tuners.lora import LoraLayer

    shared = shared_weights(model)
    for module in model.modules():
        if isinstance(module, LoraLayer) and id(getattr(module.get_base_layer(), "weight", None)) in shared:
            layer: Any = module.get_base_layer()
            layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
            model.get_base_model().config.tie_word_embeddings = False


def adapter_parameters(model: Any) -> dict[str, Any]:
    """The adapter's parameters by name, in the model's order."""
    return {name: value for name, value in model.named_parameters() if "lora_" in name}


def cast_adapter(model: Any, dtype: Any) -> None:
    """Hold the adapter's parameters in `dtype`."""
    for value in adapter_parameters(model).values():
        value.data = value.data.to(dtype)


def lora_targets(config: AdapterConfig, model: Any) -> list[str] | str:
    """The adapter's layers in a model, as one value: ends of names, a pattern of whole names, or `all-linear`.

    Where the model has other towers beside the language model, a pattern leaves them out.
    """
    targets = _targets(config.target_modules or attention_projections(model))
    others = _other_towers(model)
    if others is None or targets == ALL_LINEAR:
        return targets
    if isinstance(targets, list):
        targets = "|".join(rf"(?:.*\.)?{re.escape(name)}" for name in targets)
    return rf"(?!(?:{others})$)(?:{targets})"


def _targets(names: Sequence[str]) -> list[str] | str:
    """Target modules as PEFT takes them: ends of names, or one pattern of whole names."""
    if list(names) == [ALL_LINEAR]:
        return ALL_LINEAR
    if not any(PATTERN.search(name) for name in names):
        return list(names)
    return "|".join(f"(?:{name})" if PATTERN.search(name) else rf"(?:(?:.*\.)?{re.escape(name)})" for name in names)


def _other_towers(model: Any) -> str | None:
    """Pattern of the modules beside a language model, such as a vision tower: text gives them no gradient."""
    import torch

    names = {id(module): name for name, module in model.named_modules()}
    kept = [
        names.get(id(part), "") for part in (model.get_decoder(), model.get_output_embeddings()) if part is not None
    ]
    if not all(kept):
        return None
    inside = re.compile("|".join(rf"{re.escape(name)}(?:\..*)?" for name in kept))
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return None if all(inside.fullmatch(name) for name in linear) else rf"(?!(?:{inside.pattern})$).*"


def _take_vocabulary(model: Any, folder: Path, shapes: dict[str, tuple[int, ...]], n_tokens: int) -> None:
    """Give the embeddings the size of those that the adapter brings, and prove that they hold its tokenizer."""
    held = model.get_input_embeddings().num_embeddings
    name = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    brought = next((shape[0] for key, shape in shapes.items() if key.endswith(f"{name}.weight")), held)
    if brought != held:
        model.resize_token_embeddings(brought, mean_resizing=False)
    if n_tokens > brought:
        raise ModelError(
            f"the adapter {folder} comes with a tokenizer of {n_tokens} tokens, but the model embeds {brought} and the "
            "adapter brings no embeddings for the rest; give the model that it was trained on, resized."
        )


def _compare_names(stored: str, loaded: str, folder: Path) -> None:
    stored, loaded = stored.rstrip("/"), loaded.rstrip("/")
    if stored and loaded and Path(stored).name != Path(loaded).name:
        log.warning(
            "the adapter %s says that it was trained on %r, the model is %r. Its shapes fit; make sure that both are "
            "the same weights.",
            folder,
            stored,
            loaded,
        )


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
