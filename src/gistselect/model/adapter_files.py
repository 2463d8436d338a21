"""A stored PEFT adapter: where it is, what it holds, and which tokenizer came with it. Nothing is unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gistselect.errors import ModelError
from gistselect.model.loading import HUB_ID, TOKENIZER_FILES, files_digest, with_pad_token

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
CONFIG_FILE = "adapter_config.json"
WANTED = (CONFIG_FILE, WEIGHTS_FILE, PICKLED_WEIGHTS, *TOKENIZER_FILES, "*token*.json", "merges.txt", "*.jinja")
"""Files of an adapter on the hub that are fetched."""


def locate_adapter(reference: str | Path) -> Path:
    """The folder of an adapter: `reference` itself, or the local copy of a hub id.

    Raises `ModelError` that names the adapters below a folder that is none itself.
    """
    folder = Path(reference)
    if (folder / CONFIG_FILE).is_file():
        return folder
    if not folder.exists() and HUB_ID.fullmatch(str(reference)) and "/" in str(reference):
        return _downloaded(str(reference))
    if inside := sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}")):
        names = ", ".join(path.name for path in inside)
        raise ModelError(f"{folder} is no adapter itself but holds some ({names}); name one, such as {inside[-1]}.")
    if (folder / "config.json").is_file():
        raise ModelError(f"{folder} is a whole model, not an adapter: give it with --model.")
    raise ModelError(
        f"{folder / CONFIG_FILE} is missing: {str(folder)!r} is not a PEFT adapter folder, nor a hub id such as "
        "'owner/name'."
    )


def adapter_digest(reference: str | Path) -> str:
    """SHA-256 of an adapter's configuration and weights. Raises `ModelError` if one is missing."""
    folder = locate_adapter(reference)
    return files_digest([folder / CONFIG_FILE, _weights(folder)])


def adapter_settings(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises `ModelError` if it is not JSON, or not of a LoRA adapter."""
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder / CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{folder / CONFIG_FILE} holds no JSON object.")
    if settings.get("megatron_config"):
        # PEFT imports whatever module the configuration names beside it.
        raise ModelError(f"{folder} is an adapter for Megatron layers; only adapters of transformers models are read.")
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{folder} holds a {settings.get('peft_type')} adapter; only LORA adapters are supported.")
    if unsaid := [name for name in ("r", "lora_alpha") if settings.get(name) is None]:
        # PEFT would fill in its own defaults, and so another size of the update than the one that was trained.
        raise ModelError(f"{folder / CONFIG_FILE} does not say {' and '.join(unsaid)}; save the adapter again.")
    return settings


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of an adapter's tensors by their stored names. Raises `ModelError`."""
    from safetensors import SafetensorError, safe_open

    path = _weights(folder)
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def adapter_tokenizer(reference: str | Path) -> Any | None:
    """The tokenizer that an adapter was trained with, if it is stored beside it. Raises `ModelError`."""
    from transformers import AutoTokenizer

    folder = locate_adapter(reference)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return with_pad_token(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the tokenizer in the adapter's folder {folder}: {error}") from error


def _weights(folder: Path) -> Path:
    path, pickled = folder / WEIGHTS_FILE, folder / PICKLED_WEIGHTS
    if path.is_file():
        return path
    if pickled.is_file():
        raise ModelError(
            f'{pickled} is a pickle, which is not read; convert it once, in its folder: python -c "import torch, '
            f"safetensors.torch as s; w = torch.load('{PICKLED_WEIGHTS}', map_location='cpu', weights_only=True); "
            f"s.save_file({{k: v.contiguous() for k, v in w.items()}}, '{WEIGHTS_FILE}')\""
        )
    raise ModelError(f"{path} is missing: {str(folder)!r} is not a PEFT adapter folder.")


def _downloaded(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(WANTED)))
    except (OSError, ValueError) as error:
        raise ModelError(f"there is no adapter folder {hub_id!r}, and the hub has none for us: {error}") from error
    if not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"{hub_id!r} on the hub has no {CONFIG_FILE}: it is not a PEFT adapter.")
    return folder
