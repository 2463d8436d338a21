"""Which language model, and how it is held in memory; apart from the loading, so that reading it loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter
from pydantic import BaseModel, ConfigDict, Field

from gistselect.groups import MODEL


class ModelSettings(BaseModel):
    """How a language model is found and held in memory."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    revision: Annotated[str | None, Parameter(group=MODEL)] = None
    """Branch, tag or commit of a hub model."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Parameter(group=MODEL)] = "auto"
    """Number format of weights and activations; auto is bfloat16 on a GPU and float32 on a CPU."""
    device: Annotated[str, Parameter(group=MODEL)] = "auto"
    """cpu, cuda, cuda:1, …; auto takes the first GPU if there is one."""
    cards: Annotated[int, Parameter(group=MODEL)] = Field(default=1, ge=1)
    """GPUs that hold the model together where it does not fit on one. Whole layers lie on each and run one after the
    other: more room, not more speed. With --engine, a worker has as many GPUs."""
    quantization: Annotated[Literal["none", "8bit", "4bit"], Parameter(group=MODEL)] = "none"
    """Hold the base weights in 8 or 4 bits (needs bitsandbytes: the extra `quant`)."""
    trust_remote_code: Annotated[bool, Parameter(group=MODEL)] = False
    """Run Python code that comes with a hub model. Only for models whose code you have read."""


class ModelConfig(ModelSettings):
    """A language model."""

    path: str
    """A model folder, or the id of a model on the Hugging Face hub."""
