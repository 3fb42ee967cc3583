"""One run of a scenario, watched step by step.

Invariants:

* ``tasks`` are the living tasks of the scenario: the main one, its descendants, and system tasks started since;
  never Trio's own, nor what runs beside the scenario.
* ``count`` is the number of steps that these made while the victim was open. Until a scenario has opened a victim of
  its own, the victim is the whole scenario.
* A run is struck at most once, just before step ``at`` (0: at the entry of the victim).
* ``error`` is the first thing that went wrong; ``endless`` says why a run was given up, and then nothing else counts.
* No hook of the probe raises: Trio would switch the probe off.
"""

from __future__ import annotations

import inspect
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from . import _internals, _places
from ._report import TwoVictims

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: How many steps an undisturbed run may take: what needs more is taken not to end.
MOST_STEPS = 500_000
#: For how many real seconds a run in which nobody can go on waits for threads and sockets.
PATIENCE = 5.0
# How often a run is told to end, and how many steps it may take each time, before it is torn down.
_TELLINGS = 30
_STEPS_TO_END = 200

#: The run that is going on, for whoever is in it.
current: trio.lowlevel.RunVar[Run] = trio.lowlevel.RunVar("trio_renew.testing.run")


class NotAsync(TypeError):
    """The scenario is no async function: a mistake of the test, which leaves a sweep as itself."""


class _TornDown(BaseException):
    """What is raised in tasks that do not answer to cancellation, and then by the clock, when nothing else helps."""


def leaves(error: BaseException) -> list[BaseException]:
    """What is in a group, and in the groups in it; an error by itself is all of it."""
    group: Any = error
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in group.exceptions for leaf in leaves(inner)]


def leaves_as_itself(error: BaseException) -> bool:
    """Say whether an error is (or holds) what nobody but the user may deal with."""
    return any(isinstance(inner, (KeyboardInterrupt, SystemExit)) for inner in leaves(error))


def nothing_but(kind: type[BaseException], error: BaseException) -> bool:
    """Say whether an error is of this kind, or a group of nothing else."""
    return all(isinstance(inner, kind) for inner in leaves(error))


def takes_an_argument(function: Callable[..., object]) -> bool:
    """Say whether a function can be called with one positional argument."""
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError):
        return False
    return True


class Run:
    """One run of a scenario and its check.

    Args:
      scenario: An async function of no arguments.
      check: Called with what the scenario returned, if it takes an argument; sync or async; or None.
      at: The step, or None for an undisturbed run.
      whole: The whole scenario is the victim. An undisturbed run finds out by itself.
      most: How many steps of all tasks it may take.
    """

    def __init__(
        self,
        scenario: Callable[[], Awaitable[object]],
        check: Callable[..., object] | None,
        *,
        at: int | None = None,
        whole: bool = True,
        most: int = MOST_STEPS,
    ) -> None:
        self.scenario = scenario
        self.check = check
        self.at = at
        self.whole = whole
        self.most = most
        self.steps = 0
        self.count = 0
        self.open = False
        self.over = False
        self.struck = False
        self.place: str | None = None
        #: The victim's, while there is one.
        self.scope = trio.CancelScope()
        self.error: BaseException | None = None
        self.source = ""
        self.endless: str | None = None
        self.tasks: set[trio.lowlevel.Task] = set()
        self.beside: trio.Nursery | None = None
        self._victims = 0
        self._victim_task: trio.lowlevel.Task | None = None
        self._outer = trio.CancelScope()
        self._main_task: trio.lowlevel.Task | None = None
        self._tellings = 0
        self._left_behind: list[trio.lowlevel.Task] = []
        self._stuck_since = 0.0
        self._clock = trio.testing.MockClock(autojump_threshold=0)

    def go(self) -> None:
        """Make the run. What comes of it is in `error` and `endless`; what leaves as itself does so."""
        with _internals.without_gc():
            try:
                self.launch()
            except BaseException as error:  # noqa: ASYNC103  # outside of Trio nobody is cancelled
                if leaves_as_itself(error):
                    raise
                self.note(error, "the run")
        if self.error is not None and self.is_the_users(self.error):
            leaving, self.error = self.error, None
            raise leaving

    def is_the_users(self, error: BaseException) -> bool:
        """Say whether what went wrong is for nobody but the user, and leaves the sweep as it is."""
        return leaves_as_itself(error)

    def launch(self) -> None:
        """Run Trio."""
        try:
            trio.run(self._main, clock=self._clock, instruments=[_Probe(self)])
        finally:
            # Only a run that was torn down leaves any. For them time goes on.
            vars(self._clock).pop("current_time", None)
            _internals.bury([*self._left_behind, *self.tasks])
            self._left_behind.clear()
            self.tasks.clear()

    async def _main(self) -> None:
        current.set(self)
        self._main_task = trio.lowlevel.current_task()
        self.tasks.add(self._main_task)
        with self._outer:
            result = await self._guard(self.play(), "the scenario")
            # What is still there of it, and a victim of the check, are left in peace.
            self.over, self.open = True, False
            if self.error is None and self.check is not None:
                await self._guard(self._look(self.check, result), "the check")

    async def _guard(self, part: Awaitable[object], source: str) -> object:
        try:
            return await part
        except BaseException as error:  # noqa: ASYNC103  # kept, to be raised when the run is over
            # Once the run is being ended, by the kit or by Trio, what comes up belongs to its ending.
            if self._outer.cancel_called or nothing_but(trio.Cancelled, error):
                raise
            self.note(error, source)
            return None  # noqa: ASYNC104, ASYNC910

    async def play(self) -> object:
        """Run the scenario, with whatever belongs around it."""
        if not self.whole:
            return await self._start()
        with trio.CancelScope() as scope:
            self._open(scope, _places.of_function(self.scenario))
            try:
                return await self._start()
            finally:
                self.open = False
        return None

    async def _start(self) -> object:
        started = self.scenario()
        if not inspect.isawaitable(started):
            raise NotAsync(f"scenario: an async function of no arguments is needed, not {self.scenario!r}")
        return await started

    async def _look(self, check: Callable[..., object], result: object) -> None:  # noqa: ASYNC910 - the check's own
        seen = check(result) if takes_an_argument(check) else check()
        if inspect.isawaitable(seen):
            await seen

    def note(self, error: BaseException, source: str) -> None:
        """Something went wrong; the first thing counts."""
        if self.error is None:
            self.error = error
            self.source = source

    def fail(self, error: BaseException, source: str) -> None:
        """Something beside the scenario went wrong: note it, and end the run."""
        self.note(error, source)
        self._outer.cancel()

    # The victim

    def announce_victim(self) -> None:
        """A scenario is about to open a victim of its own; or its check is, for which it is a plain scope."""
        self._victims += 1
        if self._victims > 1:
            raise TwoVictims("a scenario has one victim(): this is the second one in this run")

    def enter_victim(self, scope: trio.CancelScope) -> None:
        """It has opened it."""
        if self.over:
            return
        if self.at is None:
            self.whole = False
        if not self.whole:
            self._open(scope, _places.of_caller())

    def leave_victim(self) -> None:
        """It closes it."""
        if not self.whole:
            self.open = False

    def _open(self, scope: trio.CancelScope, place: str | None) -> None:
        self.scope = scope
        self._victim_task = trio.lowlevel.current_task()
        self.count = 0
        self.open = True
        if self.at == 0:
            self._struck_at(place)

    def step(self) -> None:
        """A task of the scenario is about to make a step while the victim is open."""
        self.count += 1
        if self.count == self.at:
            assert self._victim_task is not None
            self._struck_at(_places.of_task(self._victim_task))

    def _struck_at(self, place: str | None) -> None:
        self.struck = True
        self.place = place or _places.of_function(self.scenario)
        self.strike()

    def strike(self) -> None:
        """What is done at the step: the victim is cancelled."""
        self.scope.cancel()

    # A run that does not end

    def stuck(self, rounds: int) -> None:
        """Nothing has happened for some rounds of Trio's loop: find out whether anything can."""
        statistics = trio.lowlevel.current_statistics()
        if statistics.tasks_runnable or (statistics.seconds_to_next_deadline < float("inf") and rounds < 100):
            return
        now = time.monotonic()
        if rounds == _Probe.PATIENT_ROUNDS:
            self._stuck_since = now
        if now - self._stuck_since < PATIENCE and self.endless is None and _internals.outside_may_wake_it():
            time.sleep(0.001)
            return
        self.give_up("it never ends: nobody can go on")

    def give_up(self, why: str) -> None:
        """End a run that does not end by itself, by stronger means each time that it is told to."""
        tasks = _internals.living_tasks()
        if self.endless is None:
            theirs = self.tasks if self.beside is None else self.tasks | self.beside.child_tasks
            # Who stands nowhere but in Trio or here only waits for the others.
            places = [(task, _places.of_task(task)) for task in tasks if task in theirs]
            standing = [f"    {self._name(task)} at {place}" for task, place in places if place is not None]
            self.endless = "\n".join([why, *standing[:10]])
        self._tellings += 1
        self.most = self.steps + _STEPS_TO_END
        _internals.take_shields_down(tasks)
        self._outer.cancel()
        if self._tellings > _TELLINGS:
            for task in self.tasks:
                _internals.throw_into(task, _TornDown)
        if self._tellings > 2 * _TELLINGS:
            self._left_behind = tasks
            vars(self._clock).setdefault("current_time", partial(_tear_down, self._clock.current_time))

    def _name(self, task: trio.lowlevel.Task) -> str:
        return _places.name_of(self.scenario) if task is self._main_task else task.name


def _tear_down(read: Callable[[], float]) -> float:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        raise _TornDown from None  # in the middle of Trio: a task might swallow it, and go on for ever
    return read()


class _Probe(trio.abc.Instrument):
    """Trio's view of a run. Small on purpose: each of these is called very often."""

    #: Rounds of Trio's loop without a step: one more than an autojump needs.
    PATIENT_ROUNDS = 3

    def __init__(self, run: Run) -> None:
        self._run = run
        self._rounds = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        run = self._run
        nursery = task.parent_nursery
        if not run.tasks or nursery is None or nursery is run.beside:
            return
        if nursery.parent_task in run.tasks or nursery.parent_task is trio.lowlevel.current_root_task():
            run.tasks.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._run.tasks.discard(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        run = self._run
        self._rounds = 0
        run.steps += 1
        if run.open and task in run.tasks:
            run.step()
        if run.steps > run.most:
            run.give_up(f"it never ends: it has made {run.steps} steps")

    def before_io_wait(self, timeout: float) -> None:
        self._rounds += 1
        if self._rounds >= self.PATIENT_ROUNDS:
            self._run.stuck(self._rounds)


class ActingRun(Run):
    """A run whose strike is a function of the user's, in place of a cancellation."""

    def __init__(
        self,
        scenario: Callable[[], Awaitable[object]],
        check: Callable[..., object] | None,
        action: Callable[[], object],
        **options: Any,
    ) -> None:
        super().__init__(scenario, check, **options)
        self._action = action

    async def play(self) -> object:
        """Run the scenario with a nursery around it, which is over when both are."""
        result: object = None
        async with trio.open_nursery() as self.beside:
            result = await self._guard(super().play(), "the scenario")
            if self.error is not None:
                self.beside.cancel_scope.cancel()
        return result

    def strike(self) -> None:
        """What is done at the step: the action is called, and started if it is async."""
        try:
            done = self._action()
        except BaseException as error:  # noqa: ASYNC103  # it goes where the scenario's errors go
            self.fail(error, "the action")
            return  # noqa: ASYNC104
        if inspect.isawaitable(done):
            assert self.beside is not None
            self.beside.start_soon(self._await, done, name="action")

    async def _await(self, action: Awaitable[object]) -> None:  # noqa: ASYNC910 - the action's own
        try:
            await action
        except BaseException as error:  # noqa: ASYNC103  # the same
            if nothing_but(trio.Cancelled, error):
                raise
            self.fail(error, "the action")
