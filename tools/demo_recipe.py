"""What decides the weights of the demo model, apart from the corpus and the versions of the libraries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Corpus, tokenizer, shape and training of the demo model; one recipe and corpus, one order of rows."""

    seed: int = 20_260
    vocabulary: int = 4_096
    tokenizer_characters: int = 16_000_000
    """Text the tokenizer is fitted on: a prefix of the eligible rows in training order."""
    hidden_size: int = 256
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 4
    max_positions: int = 2_048
    tokens: int = 6_500_000
    """All rows of every source but p3 are read once; p3, by far the largest, fills up to this many tokens."""
    rows_per_step: int = 20
    """Accumulated one row at a time: rows of unlike length in one forward pass would be half padding."""
    learning_rate: float = 2e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    validation_share: float = 0.01
    """Share of the distinct first user messages kept for validation."""
