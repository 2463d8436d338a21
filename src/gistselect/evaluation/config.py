"""How to evaluate; apart from the evaluation, so that reading a configuration loads no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from gistselect.linalg.intervals import DRAWS, LEVEL


class EvaluationConfig(BaseModel):
    """How to evaluate; what to evaluate is given beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    limit: int | None = Field(default=None, ge=1)
    """Most items of each group (subject, BBH task, language), a seeded sample; by default the published
    numbers (BBH 40, TyDiQA 200, otherwise all)."""
    template: str | None = None
    """How prompts become text: tulu (published), model (the tokenizer's chat template) or a Jinja file; by default
    as in the run, and tulu without one."""
    batch_size: int = Field(default=16, ge=1)
    """Prompts in one forward pass or generation."""
    max_length: int = Field(default=2048, ge=16)
    """Most tokens of prompt and answer; demonstrations that do not fit are left out, last first."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Bound on generated tokens; by default each protocol's own (BBH and GSM8K 512, TyDiQA 50)."""
    losses: bool = True
    """Also measure the loss of the reference answers."""
    exact_match: bool = False
    """Also generate answers to your own targets and compare them with the references."""
    level: float = Field(default=LEVEL, gt=0, lt=1)
    """Coverage of the intervals."""
    draws: int = Field(default=DRAWS, ge=100)
    """Draws of the bootstrap."""
    seed: int | None = Field(default=None, ge=0)
    """Seed of the samples of items and of the bootstrap; by default as in the run, and 0 without one."""

    def resolved(self, *, template: str = "tulu", seed: int = 0) -> EvaluationConfig:
        """The same with what was left open taken from a run, or from the defaults of an evaluation without one."""
        return self.model_copy(
            update={
                "template": template if self.template is None else self.template,
                "seed": seed if self.seed is None else self.seed,
            }
        )
