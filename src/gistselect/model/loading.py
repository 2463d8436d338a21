"""Models and tokenizers from a folder or the hub, as they are: nothing is resized, nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.errors import ModelError
from gistselect.model.config import ModelConfig, ModelSettings

if TYPE_CHECKING:
    import torch

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A causal language model with its tokenizer, on its device."""

    model: Any
    """A transformers causal language model, or a PEFT model around one."""
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype

    @property
    def causal(self) -> Any:
        """The transformers model, adapted or not."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model


def load_model(config: ModelConfig) -> LanguageModel:
    """Load model and tokenizer, in evaluation mode, every layer differentiable.

    Raises `ModelError` if files are missing, the model cannot be read or a weight is not finite,
    `MissingDependencyError` if it is quantized, by option or as stored, and bitsandbytes is not installed.
    """
    import torch
    from safetensors import SafetensorError

    from gistselect.model.hush import hushed
    from gistselect.model.quantized import compute_in, keep_differentiable, placement
    from gistselect.model.soundness import refuse_broken_weights
    from gistselect.model.spread import cards_of, layer_places

    tokenizer = load_tokenizer(config)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    stored = stored_quantization(config)
    cards = cards_of(config, device, quantized=stored is not None)
    placed = placement(config, stored, dtype, device)
    if len(cards) > 1:
        placed = {"device_map": layer_places(model_skeleton(config), cards, dtype, config.path)}
        device = cards[0]
    try:
        with hushed():
            model = _auto_class(config).from_pretrained(
                config.path, dtype=dtype, use_safetensors=True, **_source(config), **placed
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(f"cannot load the model {config.path!r}: {why_not(config.path, error)}") from error
    if not placed:
        model.to(device)  # pyright: ignore[reportArgumentType]
    model.eval()
    keep_differentiable(model)
    compute_in(model, dtype)
    _check_vocabulary(model, tokenizer, config.path)
    refuse_broken_weights(model.named_parameters(), config.path)
    return LanguageModel(model=model, tokenizer=tokenizer, device=torch.device(device), dtype=dtype)


def model_skeleton(config: ModelConfig) -> Any:
    """The model's modules with their names and shapes, but no weight. Raises `ModelError` if it is not there."""
    import torch
    from transformers import AutoConfig

    auto = _auto_class(config)
    try:
        settings = AutoConfig.from_pretrained(config.path, **_source(config))
        with torch.device("meta"):
            return auto.from_config(settings, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot read the layers of {config.path!r}: {why_not(config.path, error)}") from error


def load_tokenizer(config: ModelConfig, adapter: str | Path | None = None) -> Any:
    """Load the tokenizer alone: the one that came with the adapter, if one did. A missing pad token is replaced by an
    existing token: no vocabulary changes.

    Raises `ModelError` if the folder or its tokenizer is missing.
    """
    from transformers import AutoTokenizer

    from gistselect.model.adapter_files import adapter_tokenizer

    if adapter is not None and (own := adapter_tokenizer(adapter)) is not None:
        return own
    _check_files(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.path, **_source(config))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the tokenizer of {config.path!r}: {why_not(config.path, error)}") from error
    return with_pad_token(tokenizer)


def why_not(path: str, error: Exception) -> str:
    """What a person can do about a model that is not read: of a hub id, whether the hub was asked at all."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if Path(path).is_dir() or not isinstance(error, OSError):
        return str(error)
    if HF_HUB_OFFLINE:
        return (
            "there is no such folder, and of the hub's models only those in its cache can be read, since "
            "HF_HUB_OFFLINE is set; give a folder, or unset it."
        )
    return f"there is no such folder, and of the hub's model it is said: {error}"


def with_pad_token(tokenizer: Any) -> Any:
    """The tokenizer itself; a missing pad token is replaced by an existing token."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def stored_quantization(config: ModelConfig) -> dict[str, Any] | None:
    """The `quantization_config` that the model is stored with, or None for one in full precision."""
    return _settings(config).get("quantization_config")


def resolve_device(name: str) -> torch.device:
    """The device that `name` stands for. Raises `ModelError` if this machine has no such device."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:<number>.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; use 'auto' or 'cpu'.")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format that `name` stands for on a device."""
    import torch

    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def resolved_precision(config: ModelSettings) -> dict[str, str]:
    """What `auto` stands for on this machine: number format, and kind of device (`cpu`, `cuda`); loads no model.

    Both belong in the key of whatever a model computes. Raises `ModelError` if there is no such device.
    """
    device = resolve_device(config.device)
    return {"dtype": str(resolve_dtype(config.dtype, device)).removeprefix("torch."), "device": device.type}


def model_digest(config: ModelConfig) -> str:
    """SHA-256 that changes with the model: of its configuration, weight and code files, or of its hub commit."""
    _check_files(config)
    folder = Path(config.path)
    if not folder.is_dir():
        return hashlib.sha256(f"{config.path}@{_file(config, 'config.json').parent.name}".encode()).hexdigest()
    code = sorted(folder.glob("*.py")) if config.trust_remote_code else []
    return files_digest([folder / "config.json", *sorted(folder.glob("*.safetensors*")), *code])


def weights_digest(model: Any) -> str:
    """SHA-256 over names, types and values of the parameters of a live model."""
    import torch

    from gistselect.model.quantized import quantization_state

    digest = hashlib.sha256()
    for name, value in [*model.named_parameters(), *quantization_state(model)]:
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what decides the token ids of a text: vocabulary, rules, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    state = {
        "class": type(tokenizer).__name__,
        "rules": {key: value for key, value in rules.items() if key not in ("padding", "truncation")},
        "special": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "template": getattr(tokenizer, "chat_template", None),
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()


def files_digest(paths: list[Path]) -> str:
    """SHA-256 over the names and contents of files. A file that has not changed is read once a process."""
    digest = hashlib.sha256()
    for path in paths:
        state = path.stat()
        content = _content_digest(path.resolve(), state.st_size, state.st_mtime_ns, state.st_ino)
        digest.update(f"{path.name}\0{state.st_size}\0{content}\0".encode())
    return digest.hexdigest()


@cache
def _content_digest(path: Path, *state: int) -> str:
    """`state` makes a file that was written anew another one."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _source(config: ModelConfig) -> dict[str, Any]:
    return {"revision": config.revision or "main", "trust_remote_code": config.trust_remote_code}


def _check_files(config: ModelConfig) -> None:
    folder = Path(config.path)
    if not folder.is_dir():
        if folder.exists():
            raise ModelError(f"{config.path!r} is a file; give the model's folder or a hub id.")
        if not HUB_ID.fullmatch(config.path):
            raise ModelError(f"there is no model folder {config.path!r}, and it is not a hub id such as 'owner/name'.")
        return
    if (folder / "adapter_config.json").is_file():
        _refuse_adapter(folder)
    if not list(folder.glob("*.safetensors")) and list(folder.glob("pytorch_model*.bin")):
        raise ModelError(
            f"the weights in {config.path!r} are pickled (pytorch_model.bin), which is not read; convert them once: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder) writes model.safetensors."
        )
    needed = {
        "config.json": [folder / "config.json"],
        "weights (*.safetensors)": list(folder.glob("*.safetensors")),
        "a tokenizer (" + ", ".join(TOKENIZER_FILES) + ")": [folder / name for name in TOKENIZER_FILES],
    }
    for name, candidates in needed.items():
        if not any(path.is_file() for path in candidates):
            hint = "copy the tokenizer of the base model into it" if "tokenizer" in name else "save the whole model"
            raise ModelError(f"the model folder {config.path!r} lacks {name}; {hint} with save_pretrained.")
    _read(folder / "config.json")


def _refuse_adapter(folder: Path) -> None:
    """transformers takes a folder with an adapter for that adapter on its own base, whatever else is in it."""
    if (folder / "config.json").is_file():
        raise ModelError(
            f"{str(folder)!r} holds a model and an adapter_config.json; move the adapter's files to their own folder."
        )
    base = _read(folder / "adapter_config.json").get("base_model_name_or_path")
    raise ModelError(
        f"{str(folder)!r} is an adapter, not a model: give its base as the model (it names {base!r}) and this folder "
        "as the adapter (--adapter)."
    )


def _settings(config: ModelConfig) -> dict[str, Any]:
    """The model's config.json."""
    _check_files(config)
    return _read(_file(config, "config.json"))


def _read(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `ModelError` if the file is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} cannot be read: it holds no JSON object.")
    return found


def _auto_class(config: ModelConfig) -> Any:
    """What loads the model: a vision-language model is used as its language model."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    settings = _settings(config)
    kind = settings.get("model_type")
    if settings.get("is_encoder_decoder"):
        raise ModelError(
            f"{config.path!r} is an encoder-decoder ({kind!r}): its loss is of a second text, given the first. Only "
            "decoders, which read and write one text from left to right, are supported; use a causal language model."
        )
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or "auto_map" in settings:
        return AutoModelForCausalLM
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    raise ModelError(
        f"{config.path!r} is a {kind!r} model, which is no language model that this transformers release knows; use a "
        "causal language model, or a newer transformers."
    )


def _check_vocabulary(model: Any, tokenizer: Any, path: str) -> None:
    rows = model.get_input_embeddings().num_embeddings
    needed = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))
    if needed > rows:
        raise ModelError(
            f"the tokenizer in {path!r} has {needed} tokens, the model embeds {rows}; "
            "they do not belong together. Use the tokenizer that the model was trained with."
        )


def _file(config: ModelConfig, name: str) -> Path:
    """A file of the model: in its folder, or from the hub through the local cache. Raises `ModelError`."""
    if Path(config.path).is_dir():
        return Path(config.path) / name
    from transformers.utils.hub import cached_file

    try:
        return Path(str(cached_file(config.path, name, revision=config.revision or "main")))
    except OSError as error:
        raise ModelError(f"cannot find the model {config.path!r}, neither cached nor on the hub: {error}") from error
