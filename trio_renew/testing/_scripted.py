"""A source that does what a script says.

Invariants:

* ``_live`` holds the calls that have started and not ended, oldest first; ``running`` is its length.
* A call ends by one wait at most: it is woken by ``release``, by ``fail`` or by time, or it is cancelled. An error
  given by ``fail`` is looked at after every wait, so that it wins over whatever woke the call.
* What a step gives is made when the call ends, not when it starts: a `Token` counts from there.
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeGuard

import attrs
import trio

from .._values import AuthToken
from ._arguments import check_number

__all__ = ("Block", "ScriptExhausted", "ScriptedFetch", "Sleep", "Stubborn", "Token")


class ScriptExhausted(AssertionError):
    """A `ScriptedFetch` was called more often than its script has steps."""


def _check_seconds(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    name = f"{type(instance).__name__}({attribute.name}=...)"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: a number of seconds is needed, not {value!r}")
    if not value >= 0:
        raise ValueError(f"{name}: seconds must be at least 0, not {value!r}")


def _check_outcome(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, (Block, Sleep, Stubborn)):
        raise TypeError(
            f"{type(instance).__name__}(outcome=...): an outcome is a value, an exception or a Token, "
            f"not another {type(value).__name__}"
        )


@attrs.frozen
class Token:
    """A step or outcome: an `trio_renew.AuthToken` that is made at that moment.

    Args:
      text: The secret's text. It is not shown in the repr.
      seconds: Its lifetime, counted from the moment the call ends; None for a token that never expires.
    """

    text: str = attrs.field(repr=False)
    seconds: float | None = None


@attrs.frozen
class Block:
    """A step: wait until `ScriptedFetch.release` is called, then give the outcome.

    Args:
      outcome: A value, an exception or a `Token`.
    """

    outcome: object = attrs.field(default=None, validator=_check_outcome)


@attrs.frozen
class Sleep:
    """A step: take that long, then give the outcome.

    Args:
      seconds: How long, on Trio's clock.
      outcome: A value, an exception or a `Token`.
    """

    seconds: float = attrs.field(validator=_check_seconds)
    outcome: object = attrs.field(default=None, validator=_check_outcome)


@attrs.frozen
class Stubborn:
    """A step: wait to be cancelled, go on for that long all the same, then give the outcome.

    The call waits like a `Block` (so `ScriptedFetch.release` ends it too). When it is cancelled it does not leave:
    it goes on for `seconds` and then gives its outcome as if nothing had happened.

    Args:
      seconds: How long it goes on after the cancellation, on Trio's clock.
      outcome: A value, an exception or a `Token`.
    """

    seconds: float = attrs.field(validator=_check_seconds)
    outcome: object = attrs.field(default=None, validator=_check_outcome)


@attrs.define(eq=False)
class _Call:
    wake: trio.Event = attrs.Factory(trio.Event)
    blocked: bool = False
    error: BaseException | type[BaseException] | None = None


def _is_error_class(thing: object) -> TypeGuard[type[BaseException]]:
    return isinstance(thing, type) and issubclass(thing, BaseException)


def _give(outcome: object) -> object:
    if isinstance(outcome, Token):
        if outcome.seconds is None:
            return AuthToken(outcome.text)
        return AuthToken.expiring_in(outcome.text, outcome.seconds)
    if isinstance(outcome, BaseException):
        # The same instance may be raised by many calls: its traceback must not grow from call to call.
        raise outcome.with_traceback(None)
    if _is_error_class(outcome):
        raise outcome
    return outcome


class ScriptedFetch:
    """An async function that does what its script says, one step per call, and keeps count.

    Each call takes the next step: a value is returned, an exception (or exception class) is raised; `Token`,
    `Block`, `Sleep` and `Stubborn` say what they do. It takes any positional arguments and ignores them, so that it
    can stand in for a ``fetch``, a ``mint`` and a ``resolve(key)`` alike. It belongs to one Trio run: make it anew
    for each.

    Each call is at least one checkpoint, and is cancelled like any async function unless its step is `Stubborn`.

    Args:
      steps: What the first calls do, in order.
      then: What all later calls do. None (the default): a call too many raises `ScriptExhausted`.

    Attributes:
      calls: How many calls have started.
      most_running: How many calls were running at the same time, at most.
      cancelled: How many calls were cancelled, those that did not care included.
      starts: The Trio times at which the calls started.

    Example::

        fetch = ScriptedFetch("a", ValueError("down"), then=Token("b", 60.0))
        async with open_provider(fetch) as provider:
            ...
        assert fetch.calls == 1
    """

    def __init__(self, *steps: object, then: object = None) -> None:
        self._steps = deque(steps)
        self._length = len(steps)
        self._then = then
        self._live: list[_Call] = []
        self._started = trio.lowlevel.ParkingLot()
        self.calls: int = 0
        self.most_running: int = 0
        self.cancelled: int = 0
        self.starts: list[float] = []

    def __repr__(self) -> str:
        return f"<ScriptedFetch: {self.calls} calls, {self.running} running, {len(self._steps)} steps left>"

    @property
    def running(self) -> int:
        """How many calls are running now."""
        return len(self._live)

    async def __call__(self, *args: object) -> Any:
        """Do the next step of the script.

        Raises:
          ScriptExhausted: There is no next step, and no `then`.
        """
        call = _Call()
        self.calls += 1
        self.starts.append(trio.current_time())
        self._live.append(call)
        self.most_running = max(self.most_running, self.running)
        self._started.unpark_all()
        try:
            outcome = await self._do(self._next_step(), call)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self._live.remove(call)
        return _give(outcome if call.error is None else call.error)

    def _next_step(self) -> object:
        if self._steps:
            return self._steps.popleft()
        if self._then is None:
            return ScriptExhausted(
                f"call {self.calls} of a ScriptedFetch whose script has {self._length} steps and no `then`"
            )
        return self._then

    async def _do(self, step: object, call: _Call) -> object:
        if isinstance(step, Block):
            call.blocked = True
            await call.wake.wait()
            return step.outcome
        if isinstance(step, Sleep):
            with trio.move_on_after(step.seconds):
                await call.wake.wait()
            return step.outcome
        if isinstance(step, Stubborn):
            call.blocked = True
            try:
                await call.wake.wait()
            except trio.Cancelled:  # noqa: ASYNC103  # not to leave when told to is what this step is for
                self.cancelled += 1
                with trio.move_on_after(step.seconds, shield=True):
                    await call.wake.wait()
            return step.outcome
        await trio.lowlevel.checkpoint()
        return step

    async def called(self, n: int = 1) -> None:  # noqa: ASYNC910 - one of the two is
        """Wait until the n-th call has started. A checkpoint, also if it has; cancelling it changes nothing.

        Args:
          n: Which call, counted from 1.

        Raises:
          ValueError: `n` is below 1.
          TypeError: It is no whole number.
        """
        check_number("called(n)", n, 1)
        if self.calls >= n:
            await trio.lowlevel.checkpoint()
        while self.calls < n:
            await self._started.park()

    def release(self) -> None:
        """Let the call that waits at a `Block` (or `Stubborn`) go on; of several the oldest. Without one: nothing."""
        blocked = [call for call in self._live if call.blocked and not call.wake.is_set()]
        # One that was cancelled and has not left yet does not wait any more: it must not take another one's release.
        waiting = [call for call in blocked if call.wake.statistics().tasks_waiting]
        for call in (waiting or blocked)[:1]:
            call.wake.set()

    def fail(self, error: BaseException | type[BaseException]) -> None:
        """Make the running call raise now, whatever its step says; of several the oldest. Without one: nothing.

        Args:
          error: What it raises.

        Raises:
          TypeError: `error` is no exception.
        """
        given: object = error
        if not isinstance(given, BaseException) and not _is_error_class(given):
            raise TypeError(f"fail(error): an exception is needed, not {error!r}")
        for call in self._live:
            if call.error is None:
                call.error = error
                call.wake.set()
                return
