"""The plan of a run: every stage with its key, before any work begins. All that can be checked without a model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.errors import ConfigError
from gistselect.files import digest
from gistselect.model.config import ModelConfig
from gistselect.representations.interface import Representation
from gistselect.run import agreement, choosing, ingest, scoring, warmup
from gistselect.run.agreement import Agreement
from gistselect.run.cells import Checkpoint, Column, Keys, lay_out
from gistselect.run.choosing import Select
from gistselect.run.comparing import Compare, plan_comparison
from gistselect.run.config import LIVE, STAGES, RunConfig, Stage
from gistselect.run.features import Features
from gistselect.run.identity import ModelIdentity, identify
from gistselect.run.ingest import ReadPool, Tokenise
from gistselect.run.scoring import Score
from gistselect.run.store import Store
from gistselect.run.targets import Encoder, Target, load_tasks, queries
from gistselect.run.warmup import Given, WarmUp

if TYPE_CHECKING:
    from gistselect.data.pool import Pool
    from gistselect.model.loading import LanguageModel

METHODS = "methods"
"""Folder of the results of all methods but the first."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One representation of the run, with its stages and the folder of its results."""

    label: str
    representation: Representation
    columns: tuple[Column, ...]
    score: Score
    agreement: Agreement | None
    select: Select
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of a run, in order; what is not needed is None."""

    last: Stage
    records: ReadPool
    tokens: Tokenise | None
    targets: tuple[Target, ...]
    warmup: WarmUp | Given | None
    features: Features
    methods: tuple[Method, ...]
    compare: Compare | None
    described: Mapping[str, Any]
    """Digests for the manifest."""

    @property
    def candidates(self) -> ingest.RecordRows | ingest.TokenRows:
        """The rows that every method of the run can use."""
        return self.tokens.rows if self.tokens else self.records.rows

    def goes_to(self, stage: Stage) -> bool:
        """Whether the run reaches a stage."""
        return STAGES.index(stage) <= STAGES.index(self.last)


def make_plan(config: RunConfig, last: Stage, live: LanguageModel | None) -> Plan:
    """Check everything that can be checked without loading a model, and make every key.

    Raises `ConfigError`, `DataError` or `ModelError` with the remedy.
    """
    return _Planner(config, last, live).plan()


class _Planner:
    """Resolves a configuration, each part once."""

    def __init__(self, config: RunConfig, last: Stage, live: LanguageModel | None) -> None:
        self.config, self.live = config, live
        self.last: Stage = last
        self.store = Store(config.output / "artifacts")
        self.representations = config.representations
        reads = {one.reads for one in self.representations.values()}
        self.trains = last in ("train", "evaluate")
        self.needs_tokens = self.trains or bool(reads & {"hidden", "gradient"})
        self.needs_checkpoints = "gradient" in reads
        self._refuse()

    def _refuse(self) -> None:
        config = self.config
        if config.model == LIVE and self.live is None:
            raise ConfigError(
                f"{config.output} was made from a live model, which no file can name; call "
                "gistselect.select(model=...) with it again, or give --model FOLDER."
            )
        if self.live and self.trains:
            raise ConfigError(
                "fine-tuning needs a model folder or hub id, not a live model; or stop at --until select."
            )
        if self.needs_tokens and config.model is None:
            names = ", ".join(config.representation)
            raise ConfigError(f"--representation {names} needs a language model; give --model FOLDER or a hub id.")

    @cached_property
    def model(self) -> ModelConfig | None:
        """The model as a worker can load it; None for a live one, or where none is needed."""
        return None if self.live or not self.needs_tokens else self.config.source

    @cached_property
    def identity(self) -> ModelIdentity | None:
        if not self.needs_tokens:
            return None
        return identify(self.live or self.config.source, self.config.engine)

    @cached_property
    def encoder(self) -> Encoder | None:
        if not self.needs_tokens:
            return None
        from gistselect.data.templates import load_template
        from gistselect.model.loading import load_tokenizer

        given = next(iter(self.config.adapter_folders), None)
        tokenizer = self.live.tokenizer if self.live else load_tokenizer(self.config.source, given)
        template = load_template(self.config.template, tokenizer)
        return Encoder(template=template, tokenizer=tokenizer, max_length=self.config.max_length)

    @cached_property
    def text_inputs(self) -> dict[str, Any]:
        """What token ids depend on, beside the rows."""
        from gistselect.model.loading import tokenizer_digest

        assert self.encoder is not None
        return {
            "tokenizer": tokenizer_digest(self.encoder.tokenizer),
            "template": self.encoder.template.digest,
            "max_length": self.encoder.max_length,
        }

    @cached_property
    def pool(self) -> Pool:
        from gistselect.data.pool import open_pool

        return open_pool(self.config.pool, self.config, exclude=self.config.output)

    @cached_property
    def records(self) -> ReadPool:
        artifact = self.store.artifact("records", ingest.RECORDS_VERSION, pool=self.pool.digest)
        return ReadPool(pool=self.pool, artifact=artifact)

    @cached_property
    def tokens(self) -> Tokenise | None:
        if self.encoder is None:
            return None
        artifact = self.store.artifact(
            "tokens", ingest.TOKENS_VERSION, **self.text_inputs, records=self.records.artifact.key
        )
        return Tokenise(
            records=self.records,
            tokenizer=self.encoder.tokenizer,
            template=self.encoder.template,
            max_length=self.encoder.max_length,
            artifact=artifact,
        )

    @cached_property
    def warmup(self) -> WarmUp | Given | None:
        config = self.config
        if not self.needs_checkpoints:
            return None
        assert self.identity is not None
        if self.live:
            live = Checkpoint(name="live", key=digest(self.identity.weights))
            return Given(checkpoints=(live,), adapters=(None,), weights=None)
        if folders := config.adapter_folders:
            return self._given(folders)
        assert self.tokens is not None
        epochs, weights = warmup.by_epoch(config.warmup_checkpoints, config.checkpoint_weights)
        artifact = self.store.artifact(
            "warmup",
            warmup.VERSION,
            **self.identity.weights,
            tokens=self.tokens.artifact.key,
            training=config.warmup.model_dump(mode="json"),
            share=config.warmup_share,
            last_epoch=epochs[-1],
            seed=config.seed,
        )
        return WarmUp(
            model=config.source,
            tokens=self.tokens.rows,
            training=config.warmup,
            share=config.warmup_share,
            epochs=epochs,
            weights=weights,
            seed=config.seed,
            artifact=artifact,
        )

    def _given(self, folders: Sequence[Path]) -> Given:
        from gistselect.model.adapters import adapter_digest

        return Given(
            checkpoints=tuple(
                Checkpoint(name=f"checkpoint {number} ({folder.name})", key=adapter_digest(folder))
                for number, folder in enumerate(folders, start=1)
            ),
            adapters=tuple(folders),
            weights=self.config.checkpoint_weights or None,
        )

    def plan(self) -> Plan:
        config = self.config
        # Targets come first: a misspelt one or an unreadable file must fail before the pool is read.
        tasks = load_tasks(config.target, config.data_dir, config.target_group, config.heldout)
        targets = queries(tasks, config.max_queries, config.seed, self.encoder)
        checkpoints = self.warmup.checkpoints if self.warmup else ()
        keys = Keys(
            records=self.records.artifact.key,
            tokens=self.tokens.artifact.key if self.tokens else None,
            model=self.identity.gradients if self.identity else {},
            queries={target.queries.target: target.digest for target in targets},
        )
        columns = {
            name: tuple(lay_out(self.store, one, [target.queries for target in targets], checkpoints, keys))
            for name, one in self.representations.items()
        }
        features = Features(
            columns=tuple(column for own in columns.values() for column in own),
            model=self.model,
            engine_config=config.engine,
            records=self.records.artifact,
            tokens=self.tokens.artifact if self.tokens else None,
            warmup=self.warmup,
        )
        methods = tuple(self._method(name, columns[name], first=index == 0) for index, name in enumerate(columns))
        compare = None
        if self.trains:
            assert self.encoder is not None
            assert self.identity is not None
            assert self.tokens is not None
            compare = plan_comparison(
                config,
                store=self.store,
                tasks=tasks,
                encoder=self.encoder,
                model_inputs=self.identity.weights,
                tokens=self.tokens.rows,
                selections={
                    method.representation.title if len(methods) == 1 else _arm(method): method.select
                    for method in methods
                },
                evaluate=self.last == "evaluate",
            )
        described = {"pool_digest": self.pool.digest}
        if self.identity is not None:
            described |= {**self.text_inputs, **self.identity.gradients}
        return Plan(
            last=self.last,
            records=self.records,
            tokens=self.tokens,
            targets=tuple(targets),
            warmup=self.warmup,
            features=features,
            methods=methods,
            compare=compare,
            described=described,
        )

    def _method(self, name: str, columns: tuple[Column, ...], *, first: bool) -> Method:
        config, representation = self.config, self.representations[name]
        candidates = self.tokens.rows if self.tokens else self.records.rows
        score = Score(
            label=name,
            representation=representation,
            columns=columns,
            rows=candidates,
            warmup=self.warmup if representation.reads == "gradient" else None,
            strict=config.strict,
            seed=config.seed,
            artifact=self.store.artifact(
                "scores",
                scoring.VERSION,
                representation=representation.name,
                representation_version=representation.version,
                options=representation.score_inputs,
                rows=candidates.artifact.key,
                columns=[
                    [column.target, *([fit.artifact.key, cell.features.key] for fit, cell in column.entries)]
                    for column in columns
                ],
                weights=self.warmup.weight_rule if self.warmup and representation.reads == "gradient" else None,
                seed=config.seed,
            ),
        )
        select = Select(
            score=score,
            records=self.records.rows,
            pool=self.pool,
            budget=config.budget,
            selector="top_k",
            output_format=config.output_format,
            artifact=self.store.artifact(
                "selection",
                choosing.VERSION,
                scores=score.artifact.key,
                budget=str(config.budget),
                selector="top_k",
                output_format=config.output_format,
            ),
        )
        return Method(
            label=name,
            representation=representation,
            columns=columns,
            score=score,
            agreement=self._agreement(representation, columns),
            select=select,
            folder=config.output if first else config.output / METHODS / name,
        )

    def _agreement(self, representation: Representation, columns: tuple[Column, ...]) -> Agreement | None:
        if not representation.is_approximate:
            return None
        assert self.tokens is not None
        return Agreement(
            columns=columns,
            rows=self.tokens.rows,
            seed=self.config.seed,
            artifact=self.store.artifact(
                "agreement",
                agreement.VERSION,
                columns=[[fit.artifact.key, cell.features.key] for column in columns for fit, cell in column.entries],
                seed=self.config.seed,
            ),
        )


def _arm(method: Method) -> str:
    return method.representation.title if method.label == method.representation.name else method.label
