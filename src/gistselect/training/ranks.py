"""Trainings that several processes share, as torchrun starts them: the first is the command, the others only train.

Between trainings every process is an ordinary one: what torchrun put into its environment is hidden, no process group
exists, and the others wait at torchrun's key-value store for the first to say what comes next.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from gistselect.errors import ConfigError, GistSelectError, ModelError

if TYPE_CHECKING:
    from gistselect.model.config import ModelConfig

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells a process of the others; of these, libraries conclude that whatever they do is done by all."""
WAITING = timedelta(days=30)
"""How long the others wait for the next training: the first may score a pool in between."""
TRAIN, END = b"train", b"end"


def n_processes() -> int:
    """Processes that torchrun has started with this one; 1 without it. Loads no library."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that is the command. Loads no library."""
    return os.environ.get("RANK", "0") == "0"


class Ranks:
    """The processes of one torchrun, seen from one of them."""

    def __init__(self) -> None:
        """Take what the environment says of them out of it. Raises `ConfigError` if it is not whole."""
        import torch
        from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

        if missing := [name for name in VARIABLES if name not in os.environ]:
            raise ConfigError(f"WORLD_SIZE is set, but not {', '.join(missing)}; start several processes by torchrun.")
        self._environment = {name: os.environ[name] for name in VARIABLES}
        self._hide()
        self.rank, self.size = int(self._environment["RANK"]), int(self._environment["WORLD_SIZE"])
        self.local_rank = int(self._environment["LOCAL_RANK"])
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
        # torchrun's own process holds the store, and keeps it when it starts the others again.
        held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = TCPStore(
            self._environment["MASTER_ADDR"],
            int(self._environment["MASTER_PORT"]),
            is_master=self.rank == 0 and not held,
            timeout=WAITING,
            wait_for_workers=False,
        )
        self._store = PrefixStore(f"gistselect/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._number = 0

    def lead(self, work: Callable[[Any, Ranks], None], task: Any) -> None:
        """Have all processes do `work(task, ranks)` together; this is the first of them."""
        self._store.set(str(self._number), TRAIN.decode())
        with self._group():
            self._told(task)
            work(task, self)

    def follow(self, work: Callable[[Any, Ranks], None]) -> None:
        """Do what the first process says until it says that there is no more."""
        while True:
            self._store.wait([str(self._number)], WAITING)
            if self._store.get(str(self._number)) == END:
                return
            with self._group():
                try:
                    work(self._told(None), self)
                except GistSelectError:
                    continue  # the first process has it too, and says it

    def end(self) -> None:
        """Let the others go."""
        self._store.set(str(self._number), END.decode())

    def agree(self, error: GistSelectError | None) -> None:
        """Go on only if no process has met an error. Raises its own, or `ModelError` with another's."""
        import torch.distributed as dist

        met: list[str | None] = [None] * self.size
        dist.all_gather_object(met, None if error is None else str(error))
        if error is not None:
            raise error
        if failed := [f"process {rank} of {self.size}: {text}" for rank, text in enumerate(met) if text is not None]:
            raise ModelError(failed[0])

    def placed(self, model: ModelConfig) -> ModelConfig:
        """The model on this process's own device. Raises `ConfigError` for one that all processes would share."""
        from gistselect.model.loading import resolve_device

        if model.cards > 1:
            raise ConfigError(
                f"--cards {model.cards}: of {self.size} processes each trains on its own card; train in one process."
            )
        device = resolve_device(model.device)
        if device.type != "cuda":
            return model
        if device.index is not None:
            raise ConfigError(f"--device {model.device}: of {self.size} processes each takes its own; leave it out.")
        return model.model_copy(update={"device": f"cuda:{self.local_rank}"})

    def _told(self, task: Any) -> Any:
        import torch.distributed as dist

        held = [task]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    @contextmanager
    def _group(self) -> Iterator[None]:
        """All processes as libraries expect them, for one training. An error that is not ours ends this process, and
        so the others: nothing is waited for."""
        import torch
        import torch.distributed as dist
        from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

        os.environ.update(self._environment)
        _forget()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore(f"training/{self._number}", self._store),
            rank=self.rank,
            world_size=self.size,
        )
        self._number += 1
        try:
            yield
        except GistSelectError:
            dist.destroy_process_group()
            raise
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise GistSelectError(
                f"the training lost one of its {self.size} processes ({str(error).splitlines()[0]}). Give the same "
                "command again: it continues at the last whole epoch."
            ) from error
        else:
            dist.destroy_process_group()
        finally:
            _forget()
            self._hide()

    @staticmethod
    def _hide() -> None:
        for name in VARIABLES:
            os.environ.pop(name, None)


_RANKS: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


def current() -> Ranks | None:
    """The processes that train together; None if this one trains alone.

    Raises `ConfigError` if there are several and nobody has said who leads.
    """
    ranks = _RANKS.get()
    if ranks is None and n_processes() > 1:
        raise ConfigError(
            f"this is one of {n_processes()} processes, of which each would do the whole work; start them by "
            "'torchrun … -m gistselect …', where the others help to train and nothing else."
        )
    return ranks


@contextmanager
def leading() -> Iterator[None]:
    """This process is the command, and others train with it. After an error they are ended by torchrun."""
    ranks = Ranks()
    token = _RANKS.set(ranks)
    try:
        yield
    finally:
        _RANKS.reset(token)
    ranks.end()


def follow(work: Callable[[Any, Ranks], None]) -> None:
    """This process trains with the first one until that has ended."""
    # Blocked in a library's call, a handler of Python's would never come to its turn.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    Ranks().follow(work)


def filled(order: Sequence[int], multiple: int, filler: int) -> list[int]:
    """An order of rows with `filler` at its end, up to a multiple: every process gets equally many batches, and no row
    is read twice for that."""
    return [*order, *[filler] * (-len(order) % multiple)]


def _forget() -> None:
    """Have accelerate look at its surroundings again; it keeps what it saw first."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
