"""Engines: who does the parts of a job. They know nothing of representations; the job's own work function does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from gistselect.errors import ConfigError, GistSelectError
from gistselect.run.crew import Advanced, Crew, Done, Failed, Joined, Left, Opened
from gistselect.run.jobs import Job
from gistselect.run.progress import Reporter, Step
from gistselect.run.scheduling import Assignment, Limits, Lost, Schedule
from gistselect.run.sources import Sources

SHOWN_LOST = 5
"""Lost parts that an error names."""
UNHURRIED = 7 * 24 * 3600.0
"""Seconds for a part of a job that takes its time."""
LOG_LINES = 15
"""Lines of a worker's log that it shows."""


class Engine(Protocol):
    """Brings a job to its end; what is done already is left alone."""

    @property
    def parallel(self) -> bool:
        """Whether several parts may be done at a time."""
        ...

    @property
    def elsewhere(self) -> bool:
        """Whether its workers may be on other machines, with devices that this one lacks."""
        ...

    def run(self, job: Job, name: str, reporter: Reporter) -> None:
        """Do every missing part and mark the outputs as done."""
        ...

    def close(self) -> None:
        """Let go of models and workers."""
        ...


class Inline:
    """One part after the other, in this process."""

    parallel = False
    elsewhere = False

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def run(self, job: Job, name: str, reporter: Reporter) -> None:
        """See `Engine`."""
        amounts = job.amounts
        with (
            reporter.step(name, total=sum(amounts), unit=job.unit, rows=job.n_rows) as step,
            self._sources.listening(step.advance),
        ):
            for index, amount in enumerate(amounts):
                if not job.pending(index):
                    step.find_done(amount)
                    continue
                end = step.done + amount
                job.do(index, self._sources)
                step.reach(end)
        job.complete()

    def close(self) -> None:
        """See `Engine`."""
        self._sources.close()


class Scheduled:
    """Parts pulled by workers as they get free; a part whose worker fails is done again elsewhere."""

    parallel = True

    def __init__(self, crew: Crew, limits: Limits, *, quarantine: bool) -> None:
        """With `quarantine` the rows of parts that fail every time are listed as lost, where the job allows that."""
        self._crew, self._limits, self._quarantine = crew, limits, quarantine
        self.elsewhere = crew.elsewhere

    def run(self, job: Job, name: str, reporter: Reporter) -> None:
        """See `Engine`. Raises `GistSelectError` that names the parts that failed every time, once all others are done;
        at once what the work itself found wrong with the user's input."""
        if job.needs_live_model:
            raise ConfigError("a model given as an object cannot leave its process; use --engine inline.")
        amounts = job.amounts
        missing = {index: float(amount) for index, amount in enumerate(amounts) if job.pending(index)}
        known = None if job.counts_parts else amounts
        total = None if known is None else sum(known)
        with reporter.step(name, total=total, unit=job.unit, rows=job.n_rows) as step:
            if known is not None:
                step.find_done(sum(amount for index, amount in enumerate(known) if index not in missing))
            limits = replace(self._limits, seconds=UNHURRIED) if job.takes_its_time else self._limits
            schedule = Schedule(missing, limits)
            if missing:
                carry_out(schedule, self._crew, job, _Picture(step, known), reporter)
        for one in schedule.lost:
            said = f"given up after {len(one.failures)} attempts, the last on {one.failures[-1].worker}: "
            said += _brief(one.failures[-1].text)
            if self._quarantine and job.give_up(one.index, said):
                reporter.warn(f"Quarantined: {job.describe(one.index)}, {said}")
            else:
                raise _lost_error(job, schedule.lost)
        job.complete()

    def close(self) -> None:
        """See `Engine`."""
        self._crew.close()


def carry_out(schedule: Schedule, crew: Crew, job: Job, picture: _Picture, reporter: Reporter) -> None:
    """Bring a schedule to its end with a crew.

    Raises the error of a worker that found the user's input wrong, and `GistSelectError` if no worker is left.
    """
    for worker in crew.begin(job):
        schedule.join(worker)
    while not schedule.finished:
        picture.staff(len(schedule.workers))
        for worker in schedule.overdue(crew.now()):
            text = f"no answer within its time limit\n{crew.stop(worker)}"
            _failed(schedule, picture, reporter, Failed(worker=worker, cause="hung", text=text))
        for worker in schedule.free:
            if (assignment := schedule.take(worker, crew.now())) is not None:
                crew.give(worker, assignment)
        for event in crew.wait(schedule.deadline()) if not schedule.finished else ():
            match event:
                case Joined(worker=worker):
                    schedule.join(worker)
                case Left(worker=worker, text=text):
                    picture.forget(worker)
                    schedule.leave(worker, text)
                    reporter.warn(f"{worker} left; what it was at is done elsewhere. {len(schedule.workers)} remain.")
                case Opened(worker=worker):
                    schedule.started(worker, crew.now())
                case Advanced(worker=worker, amount=amount):
                    picture.advance(worker, schedule.running(worker), amount)
                case Done(worker=worker):
                    picture.done(worker, schedule.succeeded(worker, crew.now()))
                case Failed(error=error):
                    if error is not None:
                        raise error
                    _failed(schedule, picture, reporter, event)


def _failed(schedule: Schedule, picture: _Picture, reporter: Reporter, event: Failed) -> None:
    if schedule.running(event.worker) is None:
        return
    picture.forget(event.worker)
    lost = schedule.failed(event.worker, event.cause, event.text)
    what = "given up" if lost else "done again elsewhere"
    reporter.warn(f"{event.worker} failed ({event.cause}: {_brief(event.text)}); its part is {what}.")


class _Picture:
    """One step for all workers: parts that fail are taken back."""

    def __init__(self, step: Step, amounts: Sequence[int] | None) -> None:
        """Without amounts nothing is known of a part before it is done."""
        self._step, self._amounts = step, amounts
        self._running: dict[str, int] = {}

    def staff(self, n_workers: int) -> None:
        """So many workers take part now."""
        self._step.workers = n_workers

    def advance(self, worker: str, at: Assignment | None, amount: int) -> None:
        """A worker has read so much more of its part; never more than the part, of which some may be read again."""
        if at is not None:
            told = self._running.get(worker, 0)
            if self._amounts is not None:
                amount = min(amount, self._amounts[at.index] - told)
            self._running[worker] = told + amount
            self._step.advance(amount)

    def done(self, worker: str, index: int) -> None:
        """A part counts for what it was said to be, whatever its worker reported on the way."""
        reported = self._running.pop(worker, 0)
        if self._amounts is not None:
            self._step.advance(self._amounts[index] - reported)

    def forget(self, worker: str) -> None:
        """What a failed worker reported does not count."""
        if reported := self._running.pop(worker, 0):
            self._step.advance(-reported)


def _brief(text: str) -> str:
    """The first line of what is known of a failure."""
    return text.strip().partition("\n")[0]


def _lost_error(job: Job, lost: Sequence[Lost]) -> GistSelectError:
    named = [job.describe(one.index) for one in lost[:SHOWN_LOST]]
    more = f", and {len(lost) - SHOWN_LOST} more" if len(lost) > SHOWN_LOST else ""
    attempts = "; ".join(f"on {one.worker}: {one.cause}, {_brief(one.text)}" for one in lost[0].failures)
    log = "\n".join(lost[0].failures[-1].text.strip().splitlines()[-LOG_LINES:])
    return GistSelectError(
        f"{len(lost)} part{'s' * (len(lost) != 1)} failed every time: {'; '.join(named)}{more}. All else is done. "
        f"Attempts at the first: {attempts}. Give the same command to try again, mend or remove these rows, or add "
        f"--lost-shards quarantine to go on without them. The last words of its worker:\n{log}"
    )
