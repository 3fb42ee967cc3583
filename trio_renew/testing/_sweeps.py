"""Sweeps: one scenario, run again and again, disturbed at another step each time.

Invariants:

* The first run is undisturbed. It says what the victim is, how many steps there are, and how long a run may take.
* Every run starts from the same seed, so the k-th step is the same step in each run up to the disturbance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from . import _internals, _places
from ._arguments import check_functions, check_number
from ._report import MisusedVictim, SweepFailure, SweepReport, TwoVictims
from ._runs import ActingRun, NotAsync, Run, leaves

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ("cancel_at_every_checkpoint", "do_at_every_checkpoint")

T = TypeVar("T")

#: How many steps more than many times the undisturbed ones a run may take; some wait for timeouts, step by step.
SPARE_STEPS = 50_000


def steps_allowed(undisturbed: Run) -> int:
    """How many steps a run may take, given how many the undisturbed one took."""
    return SPARE_STEPS + 20 * undisturbed.steps


def _summary(error: BaseException) -> str:
    found = leaves(error)
    inner = found[0] if len(found) == 1 else error
    first_line = str(inner).partition("\n")[0][:300]
    return type(inner).__name__ + (f": {first_line}" if first_line else "")


def raise_finding(
    run: Run,
    *,
    when: str,
    again: str,
    seed: int = 0,
    step: int | None = None,
    choices: tuple[int, ...] | None = None,
) -> None:
    """Raise what went wrong in a run, if anything did.

    Args:
      run: The run, which is over.
      when: Where in the sweep that was, for the message.
      again: The call that repeats just this one.
      seed: The run's seed.
      step: The step at which it was disturbed.
      choices: The run's schedule, where it is not given by the seed.
    """
    __tracebackhide__ = True
    cause, run.error = run.error, None
    if run.endless is not None:
        what, cause = run.endless, None
    elif cause is not None:
        what = f"{run.source} raised {_summary(cause)}"
    else:
        return
    if isinstance(cause, NotAsync):
        raise cause
    lines = [f"{when} (seed {seed}): {what}" if choices is None else f"{when}: {what}"]
    if run.struck:
        lines.append(f"  disturbed at {run.place}")
    lines.append(f"  just this one again: {again}")
    misused = cause is not None and any(isinstance(leaf, TwoVictims) for leaf in leaves(cause))
    kind = MisusedVictim if misused else SweepFailure
    try:
        raise kind("\n".join(lines), step=step, seed=seed, place=run.place, choices=choices) from cause
    finally:
        del cause


def _sweep(
    caller: str, functions: str, make: Callable[..., Run], *, only: int | None, limit: int, seed: int
) -> SweepReport:
    __tracebackhide__ = True
    if only is not None:
        check_number("only", only, 0)
    check_number("limit", limit, 1)
    check_number("seed", seed)
    seeded = f", seed={seed}" if seed else ""

    with _internals.borrowed_state(caller) as seed_all:

        def run_at(step: int | None, **options: object) -> Run:
            __tracebackhide__ = True
            run = make(at=step, **options)
            seed_all(seed)
            run.go()
            undisturbed = step is None or not run.struck
            raise_finding(
                run,
                when="the scenario fails undisturbed" if undisturbed else f"step {step} of {caller} fails",
                again=f"{caller}({functions}{'' if undisturbed else f', only={step}'}{seeded})",
                seed=seed,
                step=None if undisturbed else step,
            )
            return run

        first = run_at(None)
        if not first.count:
            raise ValueError(
                f"{caller}: nothing was tested, because no task makes a step while the victim is open "
                f"({_places.of_function(first.scenario)})"
            )
        options = {"whole": first.whole, "most": steps_allowed(first)}
        if only is not None:
            if only > first.count or not run_at(only, **options).struck:
                raise ValueError(f"only={only}: the scenario has {first.count} steps")
            return SweepReport(first.count)
        step = 0
        while run_at(step, **options).struck:
            if step > limit:
                steps = max(first.count, step)
                raise SweepFailure(
                    f"limit={limit} is reached: the scenario has {steps} steps or more", step=step, seed=seed
                )
            step += 1
        if step <= 1:
            raise ValueError(
                f"{caller}: nothing was tested, because the scenario does not repeat itself: undisturbed it had "
                f"{first.count} steps, and then none. What it uses must be made in it, anew for each run"
            )
        return SweepReport(step - 1)


def cancel_at_every_checkpoint(
    scenario: Callable[[], Awaitable[T]],
    check: Callable[..., object] | None = None,
    *,
    only: int | None = None,
    limit: int = 1000,
    seed: int = 0,
) -> SweepReport:
    """Cancel a scenario's victim at each of its steps, and see that everything else still holds.

    The scenario is run once undisturbed. Then it is run again and again: the scope of `victim` (without one, the
    whole scenario) is cancelled when it is entered, then just before the 1st, 2nd, 3rd ... scheduling step that any
    task of the scenario makes while it is open, until a run is left undisturbed. Every run is a `trio.run` of its
    own under an autojumping `trio.testing.MockClock`, with the same seeded schedule, so a failure comes back. What
    the scenario uses must therefore be made in it, anew for each run.

    This is an ordinary function, for ordinary tests: inside of Trio it can only be called in a thread.

    Args:
      scenario: An async function of no arguments.
      check: What must hold after each run, sync or async; called in the same run when the scenario is over, with
        what that returned (None if it was cancelled) if it takes an argument.
      only: Repeat just this step (0: at the entry of the victim).
      limit: How many steps there may be at most.
      seed: Seeds Trio's schedule and `random`.

    Returns:
      How many steps there were.

    Raises:
      SweepFailure: The scenario or the check raises something (a `trio.fail_after` that strikes included), a run
        never ends, or there are more steps than `limit`. It names the step and the call that repeats just this one.
      ValueError: Nobody makes a step while the victim is open, so nothing was tested; or `only` is beyond the last.
      KeyboardInterrupt, SystemExit: As raised by the scenario; a group that holds one leaves as it is.
      RuntimeError: Inside of a Trio run, or while another sweep is going on.

    Example::

        async def scenario():
            lock = trio.Lock()
            with victim():
                async with lock:
                    await trio.sleep(1)
            with trio.fail_after(1):
                await lock.acquire()

        assert cancel_at_every_checkpoint(scenario).steps >= 2
    """
    __tracebackhide__ = True
    check_functions(scenario=scenario, check=check)

    def make(**options: object) -> Run:
        return Run(scenario, check, **options)  # type: ignore[arg-type]

    return _sweep("cancel_at_every_checkpoint", arguments(scenario, check), make, only=only, limit=limit, seed=seed)


def do_at_every_checkpoint(
    scenario: Callable[[], Awaitable[T]],
    action: Callable[[], object],
    check: Callable[..., object] | None = None,
    *,
    only: int | None = None,
    limit: int = 1000,
    seed: int = 0,
) -> SweepReport:
    """Do something at each step of a scenario: `cancel_at_every_checkpoint` with an action in place of its cancelling.

    Args:
      scenario: An async function of no arguments.
      action: What is done: a function of no arguments, called just before the step, in nobody's task; or an async
        one, run from that step on in a task beside the scenario. That task is over before the check; it is
        cancelled when the scenario fails. What it raises is a failure like the scenario's own.
      check: As there.
      only: As there.
      limit: As there.
      seed: As there.

    Returns:
      How many steps there were.

    Raises:
      SweepFailure: As there, and when the action raises something.
      ValueError: As there.
      KeyboardInterrupt, SystemExit: As there.
      RuntimeError: As there.

    Example::

        async def scenario():
            nonlocal fetch
            fetch = ScriptedFetch(Sleep(1.0, "a"), then="b")
            async with open_resource(fetch) as resource:
                with contextlib.suppress(OSError):
                    await resource.get()
                assert await resource.get() in ("a", "b")

        do_at_every_checkpoint(scenario, lambda: fetch.fail(OSError("gone")))
    """
    __tracebackhide__ = True
    check_functions(scenario=scenario, action=action, check=check)

    def make(**options: object) -> Run:
        return ActingRun(scenario, check, action, **options)

    return _sweep("do_at_every_checkpoint", arguments(scenario, action, check), make, only=only, limit=limit, seed=seed)


def arguments(*functions: object) -> str:
    """How the functions of a call are written in it."""
    return ", ".join(_places.name_of(function) for function in functions if function is not None)
