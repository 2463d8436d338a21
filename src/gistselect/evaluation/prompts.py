"""Items to prompts: which demonstrations fit the context, and whose reference does; all without a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.data.templates import load_template
from gistselect.data.tokens import encode
from gistselect.errors import DataError, ModelError
from gistselect.evaluation.catalog import TaskFacts, choose, require_lm_eval, task_facts
from gistselect.evaluation.harness import require_other_tasks
from gistselect.tasks import PROTOCOLS, sample_groups
from gistselect.types import Example, Record

if TYPE_CHECKING:
    from gistselect.data.templates import Template
    from gistselect.evaluation.config import EvaluationConfig
    from gistselect.model.config import ModelConfig
    from gistselect.tasks.files import Item

PASSAGE_TOKENS = 512
"""Published length to which TyDiQA's passages are cut."""
CHOICE_TOKENS = 8
"""Room kept in the context for a choice."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One item as it is asked, and as it is written to `prompts/<task>.jsonl`."""

    id: str
    group: str
    row: int
    """Position in the task."""
    prompt: str
    reference: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    n_shots: int = 0
    fewer: bool = False
    """Whether not all demonstrations fitted the context."""
    cut: bool = False
    """Whether the question alone did not fit; the start of the prompt is cut then."""


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """Records of which the answer fits the context, as examples; and those of which it does not."""

    rows: tuple[int, ...]
    """Position of each example among the records."""
    examples: tuple[Example, ...]
    groups: tuple[str, ...]
    excluded: dict[int, str]
    """Position of every other record, and why it has no loss."""

    @property
    def n_cut(self) -> int:
        """Examples of which only the start fits."""
        return sum(example.n_cut > 0 for example in self.examples)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A task as it is put to a model."""

    name: str
    facts: TaskFacts
    prompts: tuple[Prompt, ...]
    fitting: Fitting | None
    """References whose loss is measured; None if no loss is asked for."""
    answered: bool
    """Whether answers are generated or chosen."""
    max_new_tokens: int | None
    """Bound on generated tokens; None where nothing is generated."""

    @property
    def digest(self) -> str:
        """SHA-256 of every prompt and reference answer, in order."""
        return prompt_digest(self.prompts)


def prompt_digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of every prompt, reference answer and choice, in order."""
    content = hashlib.sha256()
    for one in prompts:
        content.update(json.dumps([one.prompt, one.reference, one.choices]).encode())
    return content.hexdigest()


def check_tasks(names: Sequence[str], data_dir: Path | None) -> None:
    """Everything about tasks that needs neither model nor network: names, files, their content.

    Raises `ConfigError` for a name that nobody knows, `DataError` for a missing or damaged file, or one without items,
    and `MissingDependencyError` without lm-eval.
    """
    require_lm_eval()
    chosen = choose(names)
    for name in chosen.protocols:
        if data_dir or name == "xqa_proxy":
            PROTOCOLS[name](data_dir).items(lambda text: text)
    for one in chosen.own:
        if not str(one.path).startswith("hf:"):
            one.queries()
    if chosen.others:
        require_other_tasks(chosen.others)


def context_length(config: ModelConfig) -> int | None:
    """Most tokens that the model has positions for, from its configuration alone; None if it does not say.

    Raises `ModelError` if the configuration cannot be read.
    """
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(
            config.path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the configuration of {config.path!r}: {error}") from error
    return context_of(found)


def context_of(model_config: Any) -> int | None:
    """Most tokens that a transformers configuration has positions for; None if it does not say."""
    return getattr(model_config.get_text_config(), "max_position_embeddings", None)


def read_questions(
    names: Sequence[str], data_dir: Path | None, *, config: EvaluationConfig, tokenizer: Any, context: int | None
) -> list[Questions]:
    """The protocols and own targets among the names, read, sampled and made into prompts.

    Needs no model: call it before a training to know that its evaluation will work. Raises `ConfigError` for an
    unknown template and `DataError` for a missing or damaged file, or a task without any item that fits the context.
    """
    chosen = choose(names)
    config = config.resolved()
    seed = config.seed or 0
    max_length = min(config.max_length, context or config.max_length)
    template = load_template(str(config.template), tokenizer)
    writer = _Writer(template=template, tokenizer=tokenizer, config=config, max_length=max_length)
    found = []
    for name in chosen.protocols:
        facts = task_facts(name)
        items = PROTOCOLS[name](data_dir).items(_passage_cut(tokenizer))
        if not items:
            raise DataError(f"{name}: there is no item to evaluate in {data_dir}.")
        found.append(writer.protocol(name, facts, sample_groups(items, config.limit or facts.limit, seed)))
    for own in chosen.own:
        records = sample_groups(own.queries(), config.limit, seed)
        found.append(writer.own_target(own.name, task_facts(own.name), records))
    return found


def fit(task: str, records: Sequence[Record], *, template: Template, tokenizer: Any, max_length: int) -> Fitting:
    """Examples of the records, without those whose answer lies wholly beyond `max_length` tokens.

    What is left out depends on nothing but the arguments: it is the same for every model with this tokenizer.
    Raises `DataError` if nothing is left.
    """
    rows, examples, excluded = [], [], {}
    for row, one in enumerate(encode(records, template, tokenizer, max_length)):
        if isinstance(one, Example):
            rows.append(row)
            examples.append(one)
        else:
            excluded[row] = one.reason
    if not examples:
        first = next(iter(excluded.values()), "it has no items")
        raise DataError(f"{task}: none of its {len(records)} held-out items has a loss; the first: {first}.")
    return Fitting(
        rows=tuple(rows),
        examples=tuple(examples),
        groups=tuple(records[row].group for row in rows),
        excluded=excluded,
    )


def _passage_cut(tokenizer: Any) -> Callable[[str], str]:
    def cut(text: str) -> str:
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoding["offset_mapping"]
        return text if len(offsets) <= PASSAGE_TOKENS else text[: offsets[PASSAGE_TOKENS - 1][1]]

    return cut


@dataclass(frozen=True, kw_only=True)
class _Writer:
    template: Template
    tokenizer: Any
    config: EvaluationConfig
    max_length: int

    def protocol(self, name: str, facts: TaskFacts, items: Sequence[Item]) -> Questions:
        new_tokens = self._bound(facts)
        prompts = [self._fitted(item, row, new_tokens or CHOICE_TOKENS) for row, item in enumerate(items)]
        records = [item.record(one.n_shots, one.row) for item, one in zip(items, prompts, strict=True)]
        return Questions(
            name=name,
            facts=facts,
            prompts=tuple(prompts),
            fitting=self._fit(name, records) if self.config.losses else None,
            answered=True,
            max_new_tokens=new_tokens,
        )

    def own_target(self, name: str, facts: TaskFacts, records: Sequence[Record]) -> Questions:
        prompts = []
        for row, record in enumerate(records):
            prompt, reference = self._split(record)
            prompts.append(
                Prompt(
                    id=record.id,
                    group=record.group,
                    row=row,
                    prompt=prompt,
                    reference=reference,
                    answers=(reference,),
                )
            )
        return Questions(
            name=name,
            facts=facts,
            prompts=tuple(prompts),
            fitting=self._fit(name, records),
            answered=self.config.exact_match,
            max_new_tokens=self._bound(facts) if self.config.exact_match else None,
        )

    def _fit(self, name: str, records: Sequence[Record]) -> Fitting:
        return fit(name, records, template=self.template, tokenizer=self.tokenizer, max_length=self.max_length)

    def _bound(self, facts: TaskFacts) -> int | None:
        """Most tokens to generate: the protocol's, the user's, and never more than half the context."""
        if facts.max_new_tokens is None:
            return None
        return min(facts.max_new_tokens, self.config.max_new_tokens or self.max_length, self.max_length // 2)

    def _split(self, record: Record) -> tuple[str, str]:
        """The text before the last supervised span, and the span. Raises `DataError` naming the record."""
        try:
            rendered = self.template.render(record)
        except DataError as error:
            raise DataError(f"item {record.id!r} cannot be asked: {error}.") from None
        start, end = rendered.supervised[-1]
        return rendered.text[:start], rendered.text[start:end]

    def _fitted(self, item: Item, row: int, room: int) -> Prompt:
        """The prompt of an item with as many demonstrations as leave `room` tokens of the context."""
        n_shots = len(item.shots)
        while True:
            prompt, reference = self._split(item.record(n_shots, row))
            prompt = prompt.removesuffix(item.lead)
            fits = len(self.tokenizer(prompt, verbose=False)["input_ids"]) + room <= self.max_length
            if fits or n_shots == 0:
                break
            n_shots -= 1
        return Prompt(
            id=item.id,
            group=item.group,
            row=row,
            prompt=prompt,
            reference=reference,
            answers=item.answers,
            choices=item.choices,
            n_shots=n_shots,
            fewer=n_shots < len(item.shots),
            cut=not fits,
        )
