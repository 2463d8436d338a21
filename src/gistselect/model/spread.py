"""A model over several cards of one process: whole layers on each, which run one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gistselect.errors import ModelError
from gistselect.model.config import ModelConfig

if TYPE_CHECKING:
    import torch

WEIGHTS_SHARE = 0.8
"""Of a card's free memory, what weights may take; activations, the adapter and at least some bases need the rest."""


def cards_of(config: ModelConfig, first: torch.device, *, quantized: bool = False) -> list[torch.device]:
    """The cards of a model, in order: so many as it is to have, from the first on; `quantized` says how it is stored.

    Raises `ModelError` if there are fewer, or what is asked for is not possible on several.
    """
    import torch

    if config.cards == 1:
        return [first]
    if first.type != "cuda":
        raise ModelError(f"--cards {config.cards}: only GPUs hold parts of a model, and the device is {first}.")
    if quantized or config.quantization != "none":
        raise ModelError(
            f"--cards {config.cards}: a quantized model is held by one card; leave --cards out, or give the model in "
            "full precision."
        )
    start = first.index or 0
    if start + config.cards > torch.cuda.device_count():
        raise ModelError(
            f"--cards {config.cards} from {first} on: torch sees {torch.cuda.device_count()} GPUs; use fewer, or look "
            "at CUDA_VISIBLE_DEVICES."
        )
    return [torch.device("cuda", start + index) for index in range(config.cards)]


def layer_places(skeleton: Any, cards: Sequence[torch.device], dtype: torch.dtype, path: str) -> dict[str, Any]:
    """Which card each part of a model goes to, as `from_pretrained` takes it: about as many bytes on each.

    `skeleton` is the model without weights (see `model_skeleton`). Raises `ModelError` if they do not hold it.
    """
    import torch
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    free = {card: int(WEIGHTS_SHARE * torch.cuda.mem_get_info(card)[0]) for card in cards}
    whole = list(getattr(skeleton, "_no_split_modules", None) or [])
    numbered: dict[int | str, int | str] = dict(enumerate(free.values()))
    balanced: Any = get_balanced_memory(skeleton, numbered, no_split_module_classes=whole, dtype=dtype)
    places: Any = infer_auto_device_map(skeleton, balanced, no_split_module_classes=whole, dtype=dtype)
    if left := [name for name, card in places.items() if not isinstance(card, int)]:
        needed = sum(one.numel() for one in skeleton.parameters()) * dtype.itemsize
        where = ", ".join(map(str, cards))
        raise ModelError(
            f"{path!r} takes {needed / 1e9:.1f} GB, and {WEIGHTS_SHARE:.0%} of what is free on {where} is "
            f"{sum(free.values()) / 1e9:.1f} GB ({left[0]!r} would not fit); use more --cards or a narrower --dtype."
        )
    return {name: str(cards[card]) for name, card in places.items()}


def weight_bytes(skeleton: Any, places: Mapping[str, torch.device], dtype: torch.dtype) -> dict[torch.device, float]:
    """Bytes that the weights of a model, here without any, take of each card; what is tied counts once."""
    found: dict[torch.device, float] = {}
    for name, value in skeleton.named_parameters():
        card = places[part_of(name, places)]
        found[card] = found.get(card, 0) + value.numel() * dtype.itemsize
    return found


def part_of(name: str, places: Mapping[str, Any]) -> str:
    """The part of a model, as `layer_places` names it, that a parameter of it or of an adapter on it belongs to."""
    name = name.removeprefix("base_model.model.")
    return max((part for part in places if not part or name == part or name.startswith(f"{part}.")), key=len)
