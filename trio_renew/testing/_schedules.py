"""Schedules: one scenario, run under many orders of its tasks, or under all that there are.

Invariants:

* A run is fixed by its seed, or by its choices: who of those tasks that can go on goes first, each time that there are
  several. The same ones give the same run.
* All schedules are the leaves of one tree of choices; it is walked depth first, a run for each leaf.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from . import _internals
from ._arguments import check_functions, check_number
from ._report import SweepFailure, SweepReport
from ._runs import Run
from ._sweeps import arguments, raise_finding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.lowlevel import Task

__all__ = ("under_every_schedule", "under_schedules")

T = TypeVar("T")


def under_schedules(
    scenario: Callable[[], Awaitable[T]],
    check: Callable[..., object] | None = None,
    *,
    seeds: int | Iterable[int] = 100,
) -> SweepReport:
    """Run a scenario under many orders in which Trio may run its tasks.

    Trio runs the tasks that can go on in a random order. Each seed fixes one such order, and `random` with it.

    Args:
      scenario: An async function of no arguments, which makes what it uses anew for each run.
      check: What must hold after each run, sync or async; called in the same run when the scenario is over, with
        what that returned if it takes an argument.
      seeds: How many seeds to try, from 0 on, or which.

    Returns:
      How many schedules there were.

    Raises:
      SweepFailure: The scenario or the check raises something, or a run never ends. It names the seed.
      ValueError: There is no seed.
      KeyboardInterrupt, SystemExit: As raised by the scenario; a group that holds one leaves as it is.
      RuntimeError: Inside of a Trio run, or while another sweep is going on.

    Example::

        under_schedules(scenario)                 # seeds 0 to 99
        under_schedules(scenario, seeds=[17])     # just the one that failed
    """
    __tracebackhide__ = True
    check_functions(scenario=scenario, check=check)
    chosen: list[int]
    if isinstance(seeds, Iterable):
        chosen = list(seeds)
        for seed in chosen:
            check_number("seeds", seed)
    else:  # or nothing of the kind
        check_number("seeds", seeds, 1)
        chosen = list(range(seeds))
    if not chosen:
        raise ValueError("seeds: at least one is needed")
    with _internals.borrowed_state("under_schedules") as seed_all:
        for seed in chosen:
            run = Run(scenario, check)
            seed_all(seed)
            run.go()
            again = f"under_schedules({arguments(scenario, check)}, seeds=[{seed}])"
            raise_finding(run, when="a schedule of under_schedules fails", again=again, seed=seed)
    return SweepReport(len(chosen))


class _Choices:
    """The choices of one run: first those that are given, then always the first one there is.

    Attributes:
      made: Which choice was made each time.
      open: How many there were each time.
    """

    def __init__(self, run: Run, given: list[int]) -> None:
        self._run = run
        self._given = given
        self.made: list[int] = []
        self.open: list[int] = []

    def arrange(self, batch: list[Task]) -> None:
        """Put the tasks that can go on into the order in which Trio takes them: from the end."""
        theirs: list[Task] = []
        if not self._run.over:
            theirs = [task for task in batch if task in self._run.tasks]
        # Trio's own first. The others are numbered as they were started.
        order = [task for task in batch if task not in theirs]
        while theirs:
            order.append(theirs.pop(self._choose(len(theirs)) if len(theirs) > 1 else 0))
        batch[:] = reversed(order)

    def _choose(self, number: int) -> int:
        at = len(self.made)
        chosen = self._given[at] if at < len(self._given) else 0
        self.made.append(chosen)
        self.open.append(number)
        # One that is not there is found when the run is over: nothing may be raised in the middle of Trio.
        return min(chosen, number - 1)

    def could_be_made(self, expected: list[int]) -> bool:
        """Say whether there were all the choices that were given, the first ones among as many as expected."""
        within = all(chosen < number for chosen, number in zip(self.made, self.open, strict=True))
        return within and len(self.made) >= len(self._given) and self.open[: len(expected)] == expected

    def after(self) -> list[int] | None:
        """The choices of the schedule after this one; None: this was the last."""
        made = self.made.copy()
        while made:
            if made[-1] + 1 < self.open[len(made) - 1]:
                made[-1] += 1
                return made
            made.pop()
        return None


def under_every_schedule(
    scenario: Callable[[], Awaitable[T]],
    check: Callable[..., object] | None = None,
    *,
    only: Iterable[int] | None = None,
    limit: int = 10_000,
) -> SweepReport:
    """Run a small scenario under every order in which Trio may run its tasks.

    Each time that several tasks of the scenario can go on, each of their orders is tried, in combination with all that
    come after it. So their number grows fast: n tasks with k steps each have up to n! ** k orders. Two or three tasks
    that start, wait for each other and end are what it is for; `under_schedules` tries a sample of any scenario.

    Args:
      scenario: An async function of no arguments, which makes what it uses anew for each run.
      check: What must hold after each run, sync or async; called in the same run when the scenario is over, with
        what that returned if it takes an argument. Orders of its own are not tried.
      only: Repeat just the schedule with these choices, as a failure names them.
      limit: How many schedules there may be at most.

    Returns:
      How many schedules there were.

    Raises:
      SweepFailure: The scenario or the check raises something, or a run never ends; it names the choices. Or there
        are more schedules than `limit`.
      ValueError: The scenario has no choices as `only` gives them; or it does not repeat itself.
      KeyboardInterrupt, SystemExit: As raised by the scenario; a group that holds one leaves as it is.
      RuntimeError: Inside of a Trio run, or while another sweep is going on.

    Example::

        assert under_every_schedule(scenario).steps > 1
        under_every_schedule(scenario, only=[0, 1])     # just the one that failed
    """
    __tracebackhide__ = True
    check_functions(scenario=scenario, check=check)
    check_number("limit", limit, 1)
    given: list[int] | None = []
    if only is not None:
        given = list(only)
        for choice in given:
            check_number("only", choice, 0)
    named = arguments(scenario, check)
    expected: list[int] = []
    steps = 0
    with _internals.borrowed_state("under_every_schedule") as seed_all:
        while given is not None:
            if steps == limit:
                raise SweepFailure(
                    f"limit={limit} is reached: the scenario has more schedules. Make it smaller, or try a sample "
                    f"of them: under_schedules({named})"
                )
            run = Run(scenario, check)
            choices = _Choices(run, given)
            seed_all(0)
            with _internals.arranged_by(choices.arrange):
                run.go()
            could_be_made = choices.could_be_made(expected)
            if only is not None and not could_be_made:
                raise ValueError(f"only={given}: there are no such choices: it had {choices.open} to choose from")
            raise_finding(
                run,
                when="a schedule of under_every_schedule fails",
                again=f"under_every_schedule({named}, only={choices.made})",
                choices=tuple(choices.made),
            )
            if not could_be_made:
                raise ValueError(
                    f"under_every_schedule: the scenario does not repeat itself: it had {expected} to choose from, and "
                    f"then, with the same choices at first, {choices.open}. What it uses must be made in it, anew for "
                    "each run"
                )
            steps += 1
            given = choices.after() if only is None else None
            expected = choices.open[: len(given or ())]
    return SweepReport(steps)
