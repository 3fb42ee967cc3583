"""What all tests share."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import HealthCheck, settings

from trio_renew.testing._interrupts import Tracer
from trio_renew.testing._runs import current

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import FrameType

# Two busy processors must not turn a slow example into a failure; a failure must come back on the next run.
settings.register_profile(
    "trio_renew", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("trio_renew")


class Calm:
    """Interrupts come only while :meth:`broken`: what a scenario needs before is swept as an operation of its own.

    And of the lines that Trio protects, one per scheduling step is enough: where it keeps the interrupt for later, it
    is all the same at which of them it came.
    """

    def __init__(self) -> None:
        tracer: Any = getattr(sys.gettrace(), "__self__", None)
        self._tracer = tracer if isinstance(tracer, Tracer) else None
        self._protected_at = 0
        if self._tracer is not None:
            sys.settrace(None)

    @contextmanager
    def broken(self) -> Generator[None, None, None]:
        if self._tracer is None:  # the undisturbed run
            yield
            return
        sys.settrace(self._on_call)
        try:
            yield
        finally:
            sys.settrace(None)

    def _on_call(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        assert self._tracer is not None
        on_line = self._tracer.on_call(frame, event, argument)
        return self._on_protected_line if on_line and trio.lowlevel.currently_ki_protected() else on_line

    def _on_protected_line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        assert self._tracer is not None
        if event == "line":
            step, self._protected_at = self._protected_at, current.get().steps
            if step != self._protected_at or self._tracer.pending:
                self._tracer.on_line(frame, event, argument)
        return self._on_protected_line

    async def survive(self, call: Callable[[], Awaitable[object]], *expected: type[Exception]) -> None:
        """Do one thing and catch its interrupt, also one that Trio has kept for the next checkpoint."""
        try:
            try:
                with self.broken():
                    await call()
            finally:
                await trio.lowlevel.checkpoint()
        except (KeyboardInterrupt, *expected):
            pass
        except BaseExceptionGroup as group:
            if group.split((KeyboardInterrupt, *expected))[1] is not None:
                raise


@pytest.fixture
def calm() -> type[Calm]:
    """Make one at the beginning of a scenario for ``interrupt_at_every_line``."""
    return Calm
