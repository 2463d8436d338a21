"""The plan of a run: every stage with its key, before any work begins. All that can be checked without a model is."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistselect.errors import ConfigError
from gistselect.files import digest
from gistselect.model.config import ModelConfig
from gistselect.representations.interface import Reads
from gistselect.run import ingest, warmup
from gistselect.run.apart import lay_out_apart
from gistselect.run.cells import Checkpoint, Column, Keys, lay_out
from gistselect.run.choosing import refuse_unfit
from gistselect.run.comparing import Compare, plan_comparison
from gistselect.run.config import LIVE, STAGES, RunConfig, Stage
from gistselect.run.contamination import Judged, Overlaps, judged_by
from gistselect.run.features import Features
from gistselect.run.methods import Inputs, Method, arm_names, make_method, make_prefilter
from gistselect.run.models import RunModel, adapters_of
from gistselect.run.prefilter import Prefilter
from gistselect.run.reading import ReadPool, Tokenise
from gistselect.run.store import Store
from gistselect.run.targets import Target, load_tasks, queries
from gistselect.run.texts import TextPass
from gistselect.run.warmup import Given, WarmUp
from gistselect.selection.budget import no_tokens, parse_budget

if TYPE_CHECKING:
    from gistselect.data.pool import Pool
    from gistselect.model.loading import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of a run, in order; what is not needed is None."""

    last: Stage
    records: ReadPool
    tokens: Tokenise | None
    finetune_tokens: Tokenise | None
    """The pool as the model that is fine-tuned reads it; None if none is."""
    targets: tuple[Target, ...]
    prefilter: Prefilter | None
    """What chooses the rows that the dear methods read; None if they read all."""
    warmup: WarmUp | Given | None
    features: Features
    texts: TextPass
    overlaps: Overlaps
    methods: tuple[Method, ...]
    compare: Compare | None
    described: Mapping[str, Any]
    """Digests for the manifest."""

    @property
    def candidates(self) -> ingest.RecordRows | ingest.TokenRows:
        """The rows that every method of the run can use."""
        return self.tokens.rows if self.tokens else self.records.rows

    @property
    def tokenisings(self) -> tuple[Tokenise, ...]:
        """The pool as each of its models reads it."""
        found = (one for one in (self.tokens, self.finetune_tokens) if one is not None)
        return tuple({one.artifact.key: one for one in found}.values())

    def share_read(self, reads: Reads) -> float:
        """Which share of the usable rows a pass of that kind goes through."""
        return self.prefilter.part if self.prefilter and reads in self.features.kept else 1.0

    @property
    def passes(self) -> tuple[Features, ...]:
        """The stages with passes over the pool, in their order."""
        return (*([self.prefilter.features] if self.prefilter else []), self.features)

    def goes_to(self, stage: Stage) -> bool:
        """Whether the run reaches a stage."""
        return STAGES.index(stage) <= STAGES.index(self.last)


def make_plan(config: RunConfig, last: Stage, live: LanguageModel | None) -> Plan:
    """Check everything that can be checked without loading a model, and make every key.

    Raises `ConfigError`, `DataError` or `ModelError` with the remedy.
    """
    return _Planner(config, last, live).plan()


def make_plans(config: RunConfig, variants: Sequence[RunConfig], last: Stage) -> tuple[Plan, list[Plan]]:
    """The plan of a configuration, and of variants of it that differ in targets and selection alone.

    All share one store, and what is known of pool and models. Raises as `make_plan`.
    """
    planner = _Planner(config, last, None)
    return planner.plan(), [planner.varied(one).plan() for one in variants]


class _Planner:
    """Resolves a configuration, each part once."""

    def __init__(self, config: RunConfig, last: Stage, live: LanguageModel | None) -> None:
        self.config, self.live = config, live
        self.prefilter: Prefilter | None = None
        """Once it is planned: one prefilter serves all targets of a study."""
        self.last: Stage = last
        self.store = Store(config.output / "artifacts", config.bucket)
        if self.store.bucket is not None:
            self.store.bucket.reach()
        self.trains = last in ("train", "evaluate")
        asked = {**config.representations, **(config.rivals if self.trains else {})}
        reads = {one.reads for one in asked.values()}
        self.needs_checkpoints = "gradient" in reads
        counts_tokens = parse_budget(config.budget).unit != "rows"
        if counts_tokens and config.model is None:
            raise ConfigError(no_tokens(config.budget))
        scores_with_model = counts_tokens or bool(reads & {"hidden", "gradient"})
        trains_itself = self.trains and config.finetune_model is None
        self._refuse(needs_model=scores_with_model or trains_itself, trains_itself=trains_itself)
        self.scorer = self._model(config.source) if scores_with_model or trains_itself else None
        self.trained = self._model(config.finetuned) if self.trains and not trains_itself else self.scorer
        shapes = cache(lambda: [list(one.values()) for one in adapters_of(config, live)])
        self.representations = {name: one.on_adapters(shapes) for name, one in asked.items()}

    def varied(self, config: RunConfig) -> _Planner:
        """The planner of a configuration that differs in what depends on no part made so far."""
        other = copy.copy(self)
        other.config = config
        return other

    def _refuse(self, *, needs_model: bool, trains_itself: bool) -> None:
        config = self.config
        config.refuse_idle_prefilter()
        if config.model == LIVE and self.live is None:
            raise ConfigError(
                f"{config.output} was made from a live model, which no file can name; call "
                "gistselect.select(model=...) with it again, or give --model FOLDER."
            )
        if self.live and trains_itself:
            raise ConfigError(
                "fine-tuning needs a model folder or hub id, not a live model; give finetune_model, or stop at "
                "--until select."
            )
        if needs_model and config.model is None:
            asked = {**config.representations, **(config.rivals if self.trains else {})}
            reading = [name for name, one in asked.items() if one.reads != "text"]
            if reading:
                raise ConfigError(
                    f"{', '.join(reading)} cannot do without a language model; give --model FOLDER or a hub id."
                )
            # 'gistselect evaluate --run' takes no model.
            command = f"gistselect run --output {shlex.quote(str(config.output))} --model FOLDER --evaluate"
            raise ConfigError(
                "what follows the selection trains a language model; give --model FOLDER or a hub id, as in: " + command
            )

    def _model(self, source: ModelConfig) -> RunModel:
        """The model of this configuration; a live one stands for the run's own."""
        config = self.config
        own = source.path == config.model
        return RunModel(
            model=self.live if self.live and own else source,
            engine=config.engine,
            template=config.template,
            max_length=config.max_length,
            omit_unshown=config.unshown == "omit",
            adapter=next(iter(config.adapter_folders), None) if own else None,
        )

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
        return self.scorer.tokenise(self.records, self.store) if self.scorer else None

    @cached_property
    def finetune_tokens(self) -> Tokenise | None:
        """The pool as the fine-tuned model reads it, which may be the scoring model."""
        if self.trained is None or self.trained is self.scorer:
            return self.tokens
        return self.trained.tokenise(self.records, self.store)

    @cached_property
    def texts(self) -> TextPass:
        config = self.config
        judged = judged_by(config.decontaminate, config.data_dir, config) if config.decontaminate else None
        passages = judged.passages if judged else None
        return TextPass.planned(self.store, self.records.rows, config.dedup, passages)

    @cached_property
    def warmup(self) -> WarmUp | Given | None:
        config = self.config
        if not self.needs_checkpoints:
            return None
        assert self.scorer is not None
        if self.live:
            live = Checkpoint(name="live", key=digest(self.scorer.identity.weights))
            return Given(checkpoints=(live,), adapters=(None,), weights=None)
        if folders := config.adapter_folders:
            return self._given(folders)
        assert self.tokens is not None
        epochs, weights = warmup.by_epoch(config.warmup_checkpoints, config.checkpoint_weights)
        artifact = self.store.artifact(
            "warmup",
            warmup.VERSION,
            **self.scorer.identity.weights,
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
        return Given(
            checkpoints=tuple(
                Checkpoint(name=f"checkpoint {number} ({folder.name})", key=warmup.given_key(folder, self.store))
                for number, folder in enumerate(folders, start=1)
            ),
            adapters=tuple(folders),
            weights=self.config.checkpoint_weights or None,
        )

    def _features(self, columns: tuple[Column, ...], kept: Collection[Reads] = ()) -> Features:
        """The passes that fill these columns; those that read one of `kept`, over what the prefilter left."""
        artifact = self.prefilter.artifact if self.prefilter else None
        return Features(
            columns=columns,
            model=self.scorer.config if self.scorer else None,
            engine_config=self.config.engine,
            records=self.records.artifact,
            tokens=self.tokens.artifact if self.tokens else None,
            warmup=self.warmup,
            kept={reads: artifact for reads in kept if artifact},
        )

    def plan(self) -> Plan:
        config = self.config
        refuse_unfit(config.selection, self.representations.values())
        # Targets come first: a misspelt one or an unreadable file must fail before the pool is read.
        tasks = load_tasks(config.target, config.data_dir, config.target_group, config.heldout, config)
        targets = queries(tasks, config.max_queries, config.seed, self.scorer.encoder if self.scorer else None)
        checkpoints = self.warmup.checkpoints if self.warmup else ()
        keys = Keys(
            records=self.records.artifact.key,
            tokens=self.tokens.artifact.key if self.tokens else None,
            model=self.scorer.identity.gradients if self.scorer else {},
            queries={target.queries.target: target.digest for target in targets},
        )
        asked = [target.queries for target in targets]
        inputs = Inputs(
            config=config,
            store=self.store,
            pool=self.pool,
            records=self.records,
            tokens=self.tokens,
            warmup=self.warmup,
            texts=self.texts,
        )
        if (narrowing := config.narrowing()) is not None:
            narrowed = [one for one in self.representations.values() if narrowing.narrows(one)]
            if self.prefilter is None and narrowed:
                columns = tuple(lay_out(self.store, narrowing.representation, asked, (), keys))
                titles = [one.title for one in narrowed]
                self.prefilter = make_prefilter(inputs, columns, self._features(columns), titles)
            if self.prefilter is not None:
                inputs = replace(inputs, prefilter=self.prefilter)
                keys = replace(keys, kept={one.reads: self.prefilter.artifact.key for one in narrowed})
        columns = {
            name: tuple(lay_out(self.store, one, asked, checkpoints, keys))
            for name, one in self.representations.items()
        }
        bounds = {"draws": config.stability_draws, "most": config.stability_columns, "seed": config.seed}
        apart = {
            name: lay_out_apart(self.store, one, asked, checkpoints, keys, **bounds)
            for name, one in self.representations.items()
        }
        filled = (column for own in (*columns.values(), *apart.values()) for column in own)
        features = self._features(tuple(filled), kept=keys.kept)
        methods = tuple(
            make_method(inputs, name, one, columns[name], apart[name], first=index == 0)
            for index, (name, one) in enumerate(self.representations.items())
        )
        compare = None
        if self.trains:
            assert self.trained is not None
            assert self.finetune_tokens is not None
            arms = arm_names(methods)
            compare = plan_comparison(
                config,
                store=self.store,
                tasks=tasks,
                scorer=self.scorer.name if self.scorer else None,
                trained=self.trained,
                tokens=self.finetune_tokens.rows,
                selections={arms[method.label]: method.select for method in methods},
                rivals=tuple(arms[name] for name in config.rivals),
                evaluate=self.last == "evaluate",
            )
        described = {"pool_digest": self.pool.digest}
        if self.scorer is not None:
            described |= {**self.scorer.text_inputs, **self.scorer.identity.gradients}
        if self.trained is not None and self.trained is not self.scorer:
            described |= {"finetune_model": {**self.trained.text_inputs, **self.trained.identity.weights}}
        return Plan(
            last=self.last,
            records=self.records,
            tokens=self.tokens,
            finetune_tokens=self.finetune_tokens if self.trains else None,
            targets=tuple(targets),
            prefilter=self.prefilter,
            warmup=self.warmup,
            features=features,
            texts=self.texts,
            overlaps=Overlaps(store=self.store, records=self.records.rows, judged=Judged(tasks=tuple(tasks))),
            methods=methods,
            compare=compare,
            described=described,
        )
