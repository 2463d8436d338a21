"""A finished run, read from its folder alone: no model, no pool file and no target file is needed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gistselect.data.stored import normalised
from gistselect.errors import ArtifactMismatchError, ConfigError
from gistselect.files import read_json, read_json_lines, write_json_lines
from gistselect.report.facts import Query, Turn
from gistselect.run.choosing import SELECTION
from gistselect.run.comparing import COMPARISON
from gistselect.run.ingest import RecordRows
from gistselect.run.methods import Method
from gistselect.run.objects import Bucket
from gistselect.run.plan import Plan
from gistselect.run.remember import RUN_YAML, read_yaml
from gistselect.run.scoring import QUARANTINE, SCORES
from gistselect.run.stability import COLUMN as STABILITY
from gistselect.run.store import INPUTS, Artifact, Store, read_names, read_table
from gistselect.run.targets import Target
from gistselect.run.warmup import WarmUp

MANIFEST, QUERIES = "manifest.json", "queries.jsonl"


def described(plan: Plan, folder: Path) -> dict[str, Any]:
    """For manifest.json: which folders of the store hold what. Arms of a comparison that still stands are kept."""
    stages = {"records": plan.records.artifact, "tokens": plan.tokens and plan.tokens.artifact}
    if isinstance(plan.warmup, WarmUp):
        stages["warmup"] = plan.warmup.artifact
    arms: list[dict[str, Any]] = []
    if plan.compare is not None:
        arms = [{"name": arm.name, "seed": arm.seed, "artifact": arm.artifact.folder.name} for arm in plan.compare.arms]
    elif (folder / COMPARISON).exists() and (folder / MANIFEST).exists():
        arms = read_json(folder / MANIFEST).get("results", {}).get("arms", [])
    return {
        **{name: artifact.folder.name for name, artifact in stages.items() if artifact is not None},
        "methods": [_method(method, plan, folder) for method in plan.methods],
        "arms": arms,
    }


def _method(method: Method, plan: Plan, folder: Path) -> dict[str, Any]:
    chosen = {}
    if plan.goes_to("select"):
        selection = method.select.artifact
        chosen = {"selection": selection.folder.name, "overlap": plan.overlaps.of(selection).folder.name}
    return {
        "label": method.label,
        "folder": method.folder.relative_to(folder).as_posix(),
        "scores": method.score.artifact.folder.name,
        **chosen,
        "columns": [
            {
                "target": column.target,
                "entries": [[fit.artifact.folder.name, cell.features.folder.name] for fit, cell in column.entries],
            }
            for column in method.columns
        ],
    }


def write_queries(targets: Sequence[Target], folder: Path) -> None:
    """queries.jsonl: the examples that the run was made for, in the order of their features."""
    write_json_lines(
        folder / QUERIES,
        (
            {"target": target.queries.target, "group": group, **normalised(record), "prefix": record.prefix}
            for target in targets
            for record, group in zip(target.queries.records, target.queries.groups, strict=True)
        ),
    )


def turns_of(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Role and text of the turns of a chat row; calls and reasoning as text."""
    said = []
    for turn in row["messages"]:
        parts = [turn.get("reasoning_content", ""), turn.get("content", ""), *map(str, turn.get("tool_calls", ()))]
        said.append((str(turn["role"]), "\n".join(part for part in parts if part)))
    if row.get("prefix"):
        said[-1] = (said[-1][0], row["prefix"] + said[-1][1])
    return tuple(said)


@dataclass(frozen=True, kw_only=True)
class FinishedMethod:
    """The results of one representation."""

    label: str
    title: str
    definition: str
    stability: Mapping[str, Any]
    """Facts of stage `stability`; empty if that was left out."""
    folder: Path
    place: str
    """Of `folder` within the run folder."""
    scores: Artifact
    selection: Artifact | None
    overlap: Artifact | None
    """Selected rows that share a passage with the targets. Both are None in runs of earlier versions."""
    columns: Mapping[str, tuple[tuple[Artifact, Artifact], ...]]
    """Target → fit and features at each checkpoint."""

    @property
    def score_file(self) -> Path:
        return self.folder / SCORES

    @property
    def selection_file(self) -> Path:
        return self.folder / SELECTION

    @property
    def stability_of_rows(self) -> dict[int, float]:
        """Share of the draws in which each selected pool row is selected; empty where that was not measured."""
        if STABILITY not in read_names(self.selection_file):
            return {}
        table = read_table(self.selection_file, ["row", STABILITY]).drop_null()
        return dict(zip(table["row"].to_pylist(), table[STABILITY].to_pylist(), strict=True))

    @property
    def quarantine_file(self) -> Path:
        return self.folder / QUARANTINE


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run that has selected."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> FinishedRun:
        """Raises `ConfigError` if the folder holds no selection."""
        run = cls(folder)
        if not (folder / MANIFEST).is_file() or not (folder / SELECTION).is_file():
            raise ConfigError(
                f"{folder} holds no selection; give the --output of a finished run, or run 'gistselect select "
                f"--output {folder}'."
            )
        if not {"results", "methods"} <= run.manifest.keys() or not (folder / QUERIES).is_file():
            raise ConfigError(
                f"{folder} was made by an older version; 'gistselect select --output {folder}' brings it up to date."
            )
        return run

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        return read_json(self.folder / MANIFEST)

    @property
    def results(self) -> Mapping[str, Any]:
        """What `described` wrote."""
        return self.manifest["results"]

    @cached_property
    def store(self) -> Store:
        """Where its artifacts are."""
        given = read_yaml(self.folder / RUN_YAML).get("shards") if (self.folder / RUN_YAML).is_file() else None
        return Store(self.folder / "artifacts", Bucket(given) if given else None)

    @cached_property
    def methods(self) -> tuple[FinishedMethod, ...]:
        """The representations whose results are there, the main one first."""
        found = [
            FinishedMethod(
                label=one["label"],
                title=self.manifest["methods"][one["label"]]["title"],
                definition=self.manifest["methods"][one["label"]]["score"],
                stability=self.manifest["methods"][one["label"]].get("stability", {}),
                folder=self.folder / one["folder"],
                place=one["folder"],
                scores=self.stored(one["scores"]),
                selection=self.stored(one["selection"]) if "selection" in one else None,
                overlap=self.stored(one["overlap"]) if "overlap" in one else None,
                columns={
                    column["target"]: tuple((self.stored(fit), self.stored(cell)) for fit, cell in column["entries"])
                    for column in one["columns"]
                },
            )
            for one in self.results["methods"]
        ]
        return tuple(one for one in found if one.selection_file.is_file() and one.score_file.is_file())

    @cached_property
    def comparison(self) -> Sequence[Mapping[str, Any]]:
        """What its selection was found to be worth, a metric each; nothing if that was not measured.

        Raises `ConfigError` for what an older version wrote.
        """
        path = self.folder / COMPARISON
        found = read_json(path) if path.is_file() else ()
        if not all("outcomes" in one for one in found):
            raise ConfigError(
                f"{path} is of an older version; 'gistselect evaluate --run {self.folder}' brings it up to date."
            )
        return found

    @property
    def records(self) -> RecordRows:
        """The pool's conversations."""
        return RecordRows(self.stored(self.results["records"]))

    @cached_property
    def queries(self) -> tuple[Query, ...]:
        """Every query of every target, in the order of their features."""
        return tuple(
            Query(id=row["id"], target=row["target"], group=row["group"], turns=turns_of(row))
            for row in read_json_lines(self.folder / QUERIES)
        )

    def stored(self, name: str) -> Artifact:
        """An artifact by its folder, which may have been cleaned away. Raises `ArtifactMismatchError` for no name."""
        folder = self.folder / "artifacts" / name
        if folder.parent != self.folder / "artifacts":
            raise ArtifactMismatchError(f"{self.folder / MANIFEST} names {name!r}, which is no result of this run.")
        if not (folder / INPUTS).is_file():
            return Artifact(folder=folder, key="", inputs="{}", bucket=self.store.bucket_of(name, {}))
        return self.store.existing(name)
