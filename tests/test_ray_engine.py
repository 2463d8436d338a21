"""Actors of a Ray cluster give what one process gives, to the byte, also when they die and nodes come and go."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from gistselect.errors import ConfigError
from gistselect.run import ingest as ingest_stage
from gistselect.run.engine import Inline, Scheduled
from gistselect.run.jobs import Job
from gistselect.run.progress import SilentReporter
from gistselect.run.scheduling import Limits
from gistselect.run.sources import Sources
from test_local_engine import SHARDS, marks, shards, text_pass
from tiny_runs import RecordingReporter, contents, run

ray = pytest.importorskip("ray")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_stage, "SHARD_ROWS", 12)


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Two nodes with one core each; where a server of S3 can be had, they know how to reach it."""
    from ray.cluster_utils import Cluster

    import gistselect

    if find_spec("moto") and find_spec("s3fs"):
        request.getfixturevalue("s3")

    paths = [str(Path(gistselect.__file__).parents[1]), str(Path(__file__).parent)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        one = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
        one.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        ray.init(address=one.address, logging_level="ERROR", log_to_driver=False)
        yield one
        ray.shutdown()
        one.shutdown()


@pytest.fixture
def engine(cluster: Any) -> Iterator[Scheduled]:
    from gistselect.run.cluster import RayCrew

    made = Scheduled(RayCrew(cluster.address, gpus=False), Limits(), quarantine=False)
    yield made
    made.close()


@pytest.fixture
def expected(tmp_path: Path, pool_file: Path) -> list[bytes]:
    """The shards as one process makes them."""
    job, _ = text_pass(tmp_path / "inline", pool_file)
    Inline(Sources()).run(job, "pass", SilentReporter())
    return shards(job)


@pytest.mark.parametrize("how", ["dies", "raises"])
def test_a_failed_actor_is_replaced(
    engine: Scheduled, tmp_path: Path, pool_file: Path, expected: list[bytes], how: str
) -> None:
    job, _ = text_pass(tmp_path / "ray", pool_file, how=how)
    reporter = RecordingReporter()
    engine.run(job, "pass", reporter)
    assert shards(job) == expected
    assert len(marks(job, "failed")) == 1
    assert len(marks(job, "at")) == SHARDS + 1, "nothing is done twice but the shard in flight"
    assert reporter.last["pass"].done == 50


@dataclass(frozen=True, kw_only=True)
class Cards(Job):
    """Writes which cards the process that does it has."""

    folder: Path
    unit: str = "rows"

    @property
    def amounts(self) -> list[int]:
        return [1]

    def pending(self, index: int) -> bool:
        return not (self.folder / "cards").exists()

    def do(self, index: int, sources: Sources) -> None:
        (self.folder / "cards").write_text(os.environ["CUDA_VISIBLE_DEVICES"])

    def describe(self, index: int) -> str:
        return "cards"

    def complete(self) -> None:
        pass


def test_an_actor_has_so_many_cards_of_one_node(cluster: Any, tmp_path: Path) -> None:
    """Ray believes a node that says how many GPUs it has: three are one actor with two, and one that stays idle."""
    from gistselect.run.cluster import RayCrew

    with pytest.raises(ConfigError, match=r"--cards 2: .*the nodes of the Ray cluster have 0, 0; use fewer"):
        RayCrew(cluster.address, gpus=True, cards=2)
    node = cluster.add_node(num_cpus=1, num_gpus=3, object_store_memory=80 * 2**20)
    try:
        crew = RayCrew(cluster.address, gpus=True, cards=2)
        job = Cards(folder=tmp_path)
        assert len(crew.begin(job)) == 1
        made = Scheduled(crew, Limits(), quarantine=False)
        made.run(job, "cards", SilentReporter())
        made.close()
    finally:
        cluster.remove_node(node)
    assert len(set((tmp_path / "cards").read_text().split(","))) == 2


def test_the_folder_of_an_actor_goes_with_it(tmp_path: Path) -> None:
    """Its process is killed, so that nothing of its own can clear up."""
    said = (
        "from gistselect.run.cluster import _fleeting; folder, alive = _fleeting(); print(folder, flush=True); input()"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", said], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as actor:
        assert actor.stdout is not None
        folder = Path(actor.stdout.readline().strip())
        (folder / "runs").mkdir()
        (folder / "runs" / "basis").write_bytes(b"gigabytes")
        assert folder.parent == tmp_path
        actor.kill()
    until = time.monotonic() + 10
    while folder.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_a_whole_run_is_the_same_to_the_byte(
    cluster: Any,
    config: dict[str, Any],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a folder that both nodes share, and with an object store and no folder that they have."""
    from gistselect.run import cluster as nodes

    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    alone = run(config, output=Path("alone"))
    assert contents(run(config, engine="ray", output=Path("ray"))) == contents(alone)
    url = request.getfixturevalue("s3")
    temporary = Path(tempfile.gettempdir())
    before = set(temporary.glob(f"{nodes.FLEETING}*"))
    monkeypatch.setattr(nodes, "os", SimpleNamespace(getcwd=lambda: str(tmp_path / "on no node")))
    apart = run(config, engine="ray", output=Path("apart"), shards=f"{url}/ray")
    assert contents(apart) == contents(alone)
    assert not list(apart.glob("artifacts/*/shard-*"))
    until = time.monotonic() + 20
    while left := set(temporary.glob(f"{nodes.FLEETING}*")) - before:
        assert time.monotonic() < until, f"actors left {left}"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_node_leaves_and_another_joins(
    cluster: Any, engine: Scheduled, tmp_path: Path, pool_file: Path, expected: list[bytes]
) -> None:
    """The node goes while its actor is at a shard; what that was at is done by those who remain."""
    from gistselect.run.cluster import RayCrew

    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()
    job, _ = text_pass(tmp_path / "ray", pool_file, how="hangs", row=27)
    reporter = RecordingReporter()

    class Meddling(RayCrew):
        """Takes the node of the actor that hangs away, once it does, and adds another."""

        meddled = False

        def wait(self, until: float | None) -> Any:
            busy = [worker for worker in self._running.values() if worker in self._nodes]
            if not self.meddled and marks(job, "failed") and len(self._running) == len(busy) == 1:
                (worker,) = busy
                node = next(one for one in cluster.list_all_nodes() if one.node_id == self._nodes[worker])
                if node is cluster.head_node:
                    pytest.skip("the shard that hangs went to the head, which cannot leave")
                self.meddled = True
                cluster.remove_node(node)
                cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
                while any(one["Alive"] and one["NodeID"] == node.node_id for one in ray.nodes()):
                    time.sleep(0.05)
                # At once: a little later Ray itself may have repeated the shard elsewhere, and nobody left.
                return self._look()
            return super().wait(until)

    engine._crew.__class__ = Meddling  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    started = time.monotonic()
    engine.run(job, "pass", reporter)
    assert time.monotonic() - started < 120
    assert shards(job) == expected
    assert [line for line in reporter.said if "left" in line]
    assert len(marks(job, "at")) == SHARDS + 1


@pytest.mark.slow
def test_the_node_that_a_command_starts_gives_the_same_bytes(config: dict[str, Any], tmp_path: Path) -> None:
    """One node, an actor a core: without --ray-address the command brings its own cluster, and takes it along."""
    alone = run(config, output=tmp_path / "alone")
    options = tmp_path / "options.yaml"
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
    options.write_text(yaml.safe_dump({**given, "output": str(tmp_path / "ray")}))
    small = "from gistselect.run import ingest; ingest.SHARD_ROWS = 12; from gistselect.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", small, "run", "--config", str(options), "--engine", "ray"],
        env={**os.environ, "RAY_memory_monitor_refresh_ms": "0", "RAY_object_store_memory": str(80 * 2**20)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "ray") == contents(alone)
