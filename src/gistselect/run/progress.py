"""Progress that people can read: a live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from gistselect.terminal import Terminal

LINE_INTERVAL = 5.0
"""Seconds between progress lines where there is no terminal."""
WORTH_A_LINE = 1.0
"""Seconds after which the end of a step is told."""


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

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.found_done = 0
        """Part of `done` that an earlier run did."""
        self.started = time.monotonic()

    @property
    def rate(self) -> float:
        """Units a second since the step began, without what was found done."""
        return (self.done - self.found_done) / max(time.monotonic() - self.started, 1e-9)

    def advance(self, amount: int) -> None:
        self.done += amount

    def find_done(self, amount: int) -> None:
        """Count work of an earlier run, which says nothing of the time this one takes."""
        self.found_done += amount
        self.advance(amount)

    def reach(self, done: int, *_: object) -> None:
        """As `advance`, from the amount done so far; further arguments of a progress callback are ignored."""
        self.advance(done - self.done)


class _LineStep(Step):
    def __init__(self, name: str, total: int | None, unit: str, console: Console) -> None:
        super().__init__(name, total, unit)
        self._console = console
        self._next_line = self.started + LINE_INTERVAL

    def advance(self, amount: int) -> None:
        super().advance(amount)
        now = time.monotonic()
        if now < self._next_line or self.done == self.total or self.done == self.found_done:
            return
        self._next_line = now + LINE_INTERVAL
        line = f"  {self.name}: {self.done:,} {self.unit}, {self.rate:,.1f}/s"
        if self.total:
            left = duration((self.total - self.done) / max(self.rate, 1e-9))
            line = f"  {self.name}: {self.done:,} of {self.total:,} {self.unit}, {self.rate:,.1f}/s, {left} left"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _BarStep(Step):
    def __init__(self, name: str, total: int | None, unit: str, bars: Progress) -> None:
        super().__init__(name, total, unit)
        self._bars = bars
        self._bar = bars.add_task(name, total=total, unit=unit, rate="")

    def advance(self, amount: int) -> None:
        super().advance(amount)
        self._bars.update(self._bar, completed=self.done, rate=f"{self.rate:,.1f} {self.unit}/s")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields["rate"]))


class Reporter:
    """Where a run speaks to its user. Data set text never becomes markup."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Terminal(stderr=True)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, name: str, total: int | None, unit: str) -> Iterator[Step]:
        """Report on work of `total` units (None: unknown) while the block runs, and its time and rate at the end."""
        if self.console.is_terminal:
            columns = (
                TextColumn("  {task.description}", markup=False),
                BarColumn(),
                _Rate(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as bars:
                step: Step = _BarStep(name, total, unit, bars)
                yield step
        else:
            step = _LineStep(name, total, unit, self.console)
            yield step
        elapsed = time.monotonic() - step.started
        if (worked := step.done - step.found_done) and elapsed >= WORTH_A_LINE:
            self.say(f"  {name}: {worked:,} {unit} in {duration(elapsed)} ({step.rate:,.1f} {unit}/s)")

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


class SilentReporter(Reporter):
    """For the Python API with `progress=False`, and for tests."""

    def __init__(self) -> None:
        super().__init__(Terminal(quiet=True))
