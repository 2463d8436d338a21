"""Progress that people and programs can read.

People see a live bar on a terminal and a line with the time of day every few seconds elsewhere, in notebooks too;
programs read `events.jsonl` in the run folder (`run/events.py`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gistselect.run.events import EVENTS, Events
from gistselect.terminal import Terminal

LINE_INTERVAL = 5.0
"""Seconds between progress lines where there is no terminal, and between events of one step."""
WORTH_A_LINE = 1.0
"""Seconds after which the end of a step is told."""

Loudness = Literal["quiet", "normal", "verbose"]
"""`quiet`: only what went wrong; `verbose`: also how things are done, and every stage as it begins."""
LOUDNESS: ContextVar[Loudness] = ContextVar("loudness", default="normal")
"""How much reporters say that are not told themselves: what `--quiet` and `--verbose` set."""


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s` or `2 h 7 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Step:
    """One long piece of work; `advance` is called as it gets done."""

    def __init__(
        self,
        name: str,
        total: int | None,
        unit: str,
        *,
        rows: int | None = None,
        tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        shown: Callable[[Step], None] = lambda _: None,
    ) -> None:
        """`rows` and `tokens` are what the `total` units come to; `shown` is called whenever more is done."""
        self.name, self.total, self.unit = name, total, unit
        self.rows, self.tokens = rows, tokens
        self.done = 0
        self.found_done = 0
        """Part of `done` that an earlier run did."""
        self.workers: int | None = None
        """Who works at it; None if this process alone does."""
        self._clock, self._shown = clock, shown
        self.started = clock()

    @property
    def seconds(self) -> float:
        """Seconds since the step began."""
        return self._clock() - self.started

    @property
    def rate(self) -> float:
        """Units a second since the step began, without what was found done."""
        return (self.done - self.found_done) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None while nothing tells."""
        return (self.total - self.done) / self.rate if self.total and self.rate > 0 else None

    def rates(self) -> dict[str, float]:
        """Units a second by unit, with rows and tokens where it is known what the units come to."""
        found = {self.unit: self.rate}
        for unit, amount in (("tokens", self.tokens), ("rows", self.rows)):
            if amount is not None and self.total:
                found.setdefault(unit, self.rate * amount / self.total)
        return found

    def advance(self, amount: int) -> None:
        self.done += amount
        self._shown(self)

    def find_done(self, amount: int) -> None:
        """Count work of an earlier run, which says nothing of the time this one takes."""
        self.found_done += amount
        self.advance(amount)

    def reach(self, done: int, *_: object) -> None:
        """As `advance`, from the amount done so far; further arguments of a progress callback are ignored."""
        self.advance(done - self.done)

    def facts(self) -> dict[str, Any]:
        """For `events.jsonl`."""
        per_second = {f"{unit}_per_s": rate for unit, rate in self.rates().items()} if self.rate else {}
        return {
            "step": self.name,
            "done": self.done,
            "total": self.total,
            "unit": self.unit,
            "found_done": self.found_done or None,
            "seconds": self.seconds,
            "seconds_left": self.seconds_left,
            **per_second,
            "workers": self.workers,
            "device_memory_bytes": device_memory(),
        }

    def sentence(self) -> str:
        """What is done, at what rate, and how long the rest takes."""
        amount = f"{self.done:,} {self.unit}"
        if self.total:
            amount = f"{self.done:,} of {self.total:,} {self.unit} ({self.done / self.total:.0%})"
        return f"{self.name}: {amount}, {self.speed()}"

    def speed(self) -> str:
        """Rates, time left, workers and device memory, as far as there are any."""
        parts = [f"{rate:,.1f} {unit}/s" for unit, rate in self.rates().items()]
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        if self.workers is not None:
            parts.append(f"{self.workers} worker{'s' * (self.workers != 1)}")
        if (memory := device_memory()) is not None:
            parts.append(f"{memory / 1e9:.1f} GB on the device")
        return ", ".join(parts)


def device_memory() -> int | None:
    """Bytes that this process holds on its GPU; None if it uses none."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.memory_reserved())


class Reporter:
    """Where a run speaks to its user. Data set text never becomes markup."""

    def __init__(
        self,
        console: Terminal | None = None,
        *,
        loudness: Loudness | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or _console()
        self.loudness = loudness or LOUDNESS.get()
        self._clock = clock
        self._events: Events | None = None
        self._stage: str | None = None

    def say(self, text: str) -> None:
        """What a user may want to know."""
        if self.loudness != "quiet":
            self._print(text)

    def warn(self, text: str) -> None:
        """What went wrong, and was not the end of it: said also to those who want it quiet."""
        self._print(text)

    def _print(self, text: str) -> None:
        self.console.say(text)

    @contextmanager
    def recording(self, folder: Path) -> Iterator[None]:
        """Within this context everything that is done is noted in the folder's `events.jsonl`."""
        before, self._events = self._events, Events(folder / EVENTS)
        outer, self._stage = self._stage, None
        try:
            self._note("run begins", pid=os.getpid())
            with self._noted_end("run"):
                yield
        finally:
            self._events.close()
            self._events, self._stage = before, outer

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within this context steps belong to this stage."""
        outer, self._stage = self._stage, name
        started = self._clock()
        self._note("stage begins")
        if self.loudness == "verbose":
            self._print(f"{_time_of_day()} stage {name}")
        try:
            with self._noted_end("stage", lambda: {"seconds": self._clock() - started}):
                yield
        finally:
            self._stage = outer

    @contextmanager
    def step(
        self, name: str, total: int | None, unit: str, *, rows: int | None = None, tokens: int | None = None
    ) -> Iterator[Step]:
        """Report on work of `total` units (None: unknown) while the block runs, and its time and rate at the end.

        `rows` and `tokens` are what the units come to, if they are something else.
        """
        with ExitStack() as stack:
            watchers = [_Every(LINE_INTERVAL, self._clock, lambda step: self._note("progress", **step.facts()))]
            display: Callable[[Step], None] = lambda _: None  # noqa: E731
            if self.loudness != "quiet" and self.console.is_terminal:
                display = stack.enter_context(_bar(self.console, name, total))
            elif self.loudness != "quiet":
                line = _Every(
                    LINE_INTERVAL, self._clock, lambda step: self._print(f"{_time_of_day()} {step.sentence()}")
                )
                watchers.append(line)

            def shown(step: Step) -> None:
                display(step)
                for watcher in watchers:
                    watcher(step)

            step = Step(name, total, unit, rows=rows, tokens=tokens, clock=self._clock, shown=shown)
            self._note("step begins", **step.facts())
            with self._noted_end("step", step.facts):
                yield step
        if (worked := step.done - step.found_done) and step.seconds >= WORTH_A_LINE:
            rates = ", ".join(f"{rate:,.1f} {unit}/s" for unit, rate in step.rates().items())
            self.say(f"  {name}: {worked:,} {unit} in {duration(step.seconds)} ({rates})")

    @contextmanager
    def steps(self, unit: str) -> Iterator[Callable[[int, int, str], None]]:
        """A callback (done, total, name) that reports every name as a step of its own."""
        with ExitStack() as stack:
            current: Step | None = None

            def report(done: int, total: int, name: str) -> None:
                nonlocal current
                if current is None or current.name != name:
                    stack.close()
                    current = stack.enter_context(self.step(name, total, unit))
                current.reach(done)

            yield report

    def _note(self, event: str, **facts: Any) -> None:
        if self._events is not None:
            self._events.write(event, stage=self._stage, **facts)

    @contextmanager
    def _noted_end(self, what: str, facts: Callable[[], dict[str, Any]] = dict) -> Iterator[None]:
        """Note how the block ended; of an error its kind alone, since its words may quote a row."""
        try:
            yield
        except BaseException as error:
            self._note(f"{what} fails", **facts(), error=type(error).__name__)
            raise
        self._note(f"{what} ends", **facts())


class SilentReporter(Reporter):
    """For the Python API with `progress=False`, and for tests."""

    def __init__(self) -> None:
        super().__init__(Terminal(quiet=True))


class _Every:
    """Tells of a step, at most once in some seconds, while it is between its beginning and its end."""

    def __init__(self, interval: float, clock: Callable[[], float], tell: Callable[[Step], None]) -> None:
        self._interval, self._clock, self._tell = interval, clock, tell
        self._next = clock() + interval

    def __call__(self, step: Step) -> None:
        now = self._clock()
        if now >= self._next and step.done not in (step.total, step.found_done):
            self._next = now + self._interval
            self._tell(step)


@contextmanager
def _bar(console: Console, name: str, total: int | None) -> Iterator[Callable[[Step], None]]:
    """A live bar; what it yields draws a step's state."""
    columns = (
        TextColumn("  {task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[speed]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(name, total=total, speed="")
        yield lambda step: bars.update(bar, completed=step.done, speed=step.speed())


def _console() -> Terminal:
    """Standard error; in a notebook its plain output, where standard error looks like a failure."""
    if "ipykernel" in sys.modules:
        return Terminal(file=sys.stdout, force_jupyter=False, force_terminal=False)
    return Terminal(stderr=True)


def _time_of_day() -> str:
    return time.strftime("%H:%M:%S")
