"""Embedding: cosines of mean hidden states of a text encoder, which knows nothing of the model that is trained.

Sentence embeddings as Reimers & Gurevych (arXiv 1908.10084, section 3) pool them: the mean of the last hidden states
over a text's tokens. Any model that transformers' `AutoModel` reads will do; prompts that some encoders want before a
text are not added. Loads no language model. Cost of a row: 2·p FLOP a token for an encoder of p parameters, at most
`tokens` tokens; 4·d bytes stored for width d, for all targets together. Use it as the semantic rival of BM25, or as a
prefilter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from gistselect.data.words import text_of
from gistselect.errors import DataError
from gistselect.linalg.bootstrap import Mixture, mean_of_cosines
from gistselect.model.config import ModelConfig
from gistselect.representations.interface import (
    Features,
    Fitted,
    FloatArray,
    Prepared,
    Reads,
    Representation,
    Scores,
    TextSource,
    mean_cosines,
)
from gistselect.representations.queries import Queries
from gistselect.types import Record

if TYPE_CHECKING:
    from gistselect.model.encoder import TextEncoder


class Embedding(Representation):
    """Mean over a group's queries of the cosine with the row's embedding."""

    encoder: str | None = None
    """Folder or hub id of the encoder."""
    encoder_revision: str | None = None
    """Branch, tag or commit of a hub encoder."""
    tokens: int = Field(default=512, ge=1)
    """Tokens at which a text is cut, if the encoder can read so many."""
    trust_code: bool = False
    """Run Python code that comes with the encoder; --trust-remote-code is of the language model alone."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and activations."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …"""

    name: ClassVar[str] = "embedding"
    title: ClassVar[str] = "Embedding"
    reads: ClassVar[Reads] = "text"
    definition: ClassVar[str] = (
        "mean over a group's queries of the cosine (-1 to 1, higher is nearer) of mean hidden states of a text encoder"
    )
    unscored: ClassVar[str] = "its embedding is zero or not finite; check the row's text, or use --dtype float32"
    has_points: ClassVar[bool] = True

    @model_validator(mode="after")
    def _has_an_encoder(self) -> Embedding:
        if not self.encoder:
            raise ValueError("name a text encoder, its folder or hub id: --encoder E, or embedding:encoder=E")
        return self

    @property
    def per_target(self) -> bool:
        return False

    @property
    def is_of_the_row_alone(self) -> bool:
        return True

    @property
    def source(self) -> ModelConfig:
        """The encoder as the model layer finds it."""
        folder = Path(self.encoder or "").expanduser()
        return ModelConfig(
            path=str(folder) if folder.is_dir() else self.encoder or "",
            revision=self.encoder_revision,
            dtype=self.dtype,
            device=self.device,
            trust_remote_code=self.trust_code,
        )

    @property
    def fit_inputs(self) -> dict[str, Any]:
        """The encoder itself, not where it lies: another one under the same name is another one."""
        from gistselect.model.encoder import encoder_digest
        from gistselect.model.loading import resolved_precision

        return {"encoder": encoder_digest(self.source), "tokens": self.tokens, **resolved_precision(self.source)}

    def fit(self, queries: Queries, at: TextSource, folder: Path, prepared: Prepared | None) -> Fitted:
        """Embeddings (n_query, d) of the queries.

        Raises `DataError` naming a query whose embedding is zero or not finite.
        """
        features = self._load().embed([text_of(record) for record in queries.records])
        lengths = np.linalg.norm(features, axis=1)
        if len(bad := np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))):
            raise DataError(
                f"the embedding of query {queries.records[bad[0]].id!r} is zero or not finite; check its text, or use "
                "--dtype float32."
            )
        return Fitted(groups=queries.group_names, arrays={"query_features": features, "group": queries.group_of})

    def _load(self) -> TextEncoder:
        from gistselect.model.encoder import TextEncoder

        return TextEncoder(self.source, self.tokens)

    def collector(self, fitted: Fitted | None, at: TextSource) -> _Collector:
        """Embeddings (n, d)."""
        return _Collector(self._load())

    def score(self, shard: Sequence[Features], fitted: Sequence[Fitted], weights: FloatArray) -> Scores:
        """Means of cosines."""
        (features,), (fit,) = shard, fitted
        return mean_cosines(features, fit)

    def resampled(self, fitted: Fitted, groups: NDArray[np.integer], counts: NDArray[np.intp]) -> Mixture:
        """Means of cosines; the space of the features knows nothing of the queries."""
        return mean_of_cosines(fitted.arrays["query_features"], groups, counts)


class _Collector:
    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    def take(self, records: Sequence[Record]) -> NDArray[np.floating]:
        """Embeddings (n, d) of the records."""
        return self._encoder.embed([text_of(record) for record in records])
