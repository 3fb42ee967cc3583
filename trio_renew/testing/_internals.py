"""The only module of the kit that touches Trio's private names, and all process-wide state that a sweep borrows.

Invariants:

* Whatever `borrowed_state` and `without_gc` change is what it was when they are left, however they are left.
* One sweep at a time: two in different threads would draw from each other's seeded `random`.
* A Trio run that goes on beside the sweep, in a thread that was there before, draws its schedule as ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import random
import sys
import threading
from types import CoroutineType
from typing import TYPE_CHECKING, Any

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

# Trio has no public way to make its scheduler deterministic; this is the one that its own test support uses.
_trio_run: Any = importlib.import_module("trio._core._run")

_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def borrowed_state(caller: str) -> Generator[Callable[[int], None], None, None]:
    """Make Trio's schedule and `random` seedable; gives the function that seeds both.

    Raises:
      RuntimeError: Inside a Trio run, or while another sweep is going on in this process.
    """
    if trio.lowlevel.in_trio_run():
        raise RuntimeError(
            f"{caller} makes Trio runs of its own, so it cannot be called inside of one: call it from a plain "
            "(not async) test, or through trio.to_thread.run_sync"
        )
    if not _one_at_a_time.acquire(blocking=False):
        raise RuntimeError(f"{caller}: another sweep is going on in this process; one at a time")
    try:
        deterministic, drawn = _trio_run._ALLOW_DETERMINISTIC_SCHEDULING, _trio_run._r
        random_state = random.getstate()
        during = _Drawn(drawn)

        def seed_both(seed: int) -> None:
            during.ours.seed(seed)
            random.seed(seed)

        try:
            _trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
            _trio_run._r = during
            yield seed_both
        finally:
            _trio_run._ALLOW_DETERMINISTIC_SCHEDULING = deterministic
            _trio_run._r = drawn
            random.setstate(random_state)
    finally:
        _one_at_a_time.release()


class _Drawn:
    """What Trio draws its schedules from during a sweep: runs in threads that were there before keep what they had."""

    def __init__(self, outside: random.Random) -> None:
        self.ours = random.Random(0)
        self._outside = outside
        self._outsiders = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outside if threading.get_ident() in self._outsiders else self.ours, name)


class _Arranger(random.Random):
    """What Trio draws its schedule from, with an order that is not drawn."""

    def __init__(self, arrange: Callable[[list[trio.lowlevel.Task]], None]) -> None:
        super().__init__(0)
        self.shuffle: Any = arrange


@contextlib.contextmanager
def arranged_by(arrange: Callable[[list[trio.lowlevel.Task]], None]) -> Generator[None, None, None]:
    """Let a function put those who can go on into order, instead of the seed; Trio takes them from the end."""
    drawn = _trio_run._r
    _trio_run._r = _Arranger(arrange)
    try:
        yield
    finally:
        _trio_run._r = drawn


@contextlib.contextmanager
def without_gc() -> Generator[None, None, None]:
    """Keep the garbage collector out: where it strikes depends on the rest of the process, not on the scenario."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def living_tasks() -> list[trio.lowlevel.Task]:
    """All tasks of the current run, Trio's own included."""
    root = trio.lowlevel.current_root_task()
    found = [] if root is None else [root]
    for task in found:  # grows while it is walked
        for nursery in task.child_nurseries:
            found.extend(nursery.child_tasks)
    return found


def take_shields_down(tasks: list[trio.lowlevel.Task]) -> None:
    """Let a cancellation reach everybody, so that a run that is given up ends."""
    for task in tasks:
        inside: Any = task
        status = inside._cancel_status
        while status is not None:
            status._scope.shield = False
            status = status.parent


def throw_into(task: trio.lowlevel.Task, kind: type[BaseException]) -> None:
    """Raise something in a task that is about to leave a checkpoint, in place of what it would get there."""
    inside: Any = task
    if inside._next_send is not None:
        inside._next_send = outcome.Error(kind())


def bury(tasks: list[trio.lowlevel.Task]) -> None:
    """Close the tasks of a run that was torn down, innermost first, where nobody minds how they go."""
    context: Any = _trio_run.GLOBAL_RUN_CONTEXT
    told = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        _bury(tasks, context)
    finally:
        sys.unraisablehook = told


def _bury(tasks: list[trio.lowlevel.Task], context: Any) -> None:
    for task in reversed(tasks):
        inside: Any = task
        for nursery in inside.child_nurseries:
            nursery._children.clear()  # it would complain about them when it goes
        nested = _awaited_by(inside.coro)
        # It is to believe that its run goes on: then what it awaits suspends it once more. Outside of a run that would
        # raise, and who swallows everything would go on for ever.
        context.runner, context.task = inside._runner, task
        try:
            # It may answer with anything, and do so again.
            for _ in range(10):
                with contextlib.suppress(BaseException):
                    task.coro.close()
        finally:
            context.__dict__.clear()
        for coroutine in nested:
            if coroutine.cr_frame is not None:
                # There is no end to it. It must not go on when it is forgotten, so it never is.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(coroutine))


def _awaited_by(coroutine: Any) -> list[Any]:
    """Give the coroutines in which a task stands, outermost first."""
    found: list[Any] = []
    while isinstance(coroutine, CoroutineType):
        found.append(coroutine)
        coroutine = coroutine.cr_await
    return found


def outside_may_wake_it() -> bool:
    """Say whether something outside of the current run (a thread, a socket) may still wake one of its tasks."""
    # One task, Trio's own, always waits for the socket by which other threads wake the run.
    io = trio.lowlevel.current_statistics().io_statistics
    waiting = sum(getattr(io, name) for name in dir(io) if name.startswith("tasks_waiting"))
    root: Any = trio.lowlevel.current_root_task()
    return waiting > 1 or (root._runner.trio_token is not None and threading.active_count() > 1)
