"""What a sweep disturbs."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from . import _runs

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

__all__ = ("victim",)


def _run_of_a_sweep() -> _runs.Run | None:
    if not trio.lowlevel.in_trio_run():  # the scope will say what is wrong
        return None
    try:
        return _runs.current.get()
    except LookupError:
        return None


@final
class _Victim:
    __slots__ = ("_run", "_scope")

    def __init__(self) -> None:
        self._run: _runs.Run | None = None
        self._scope = trio.CancelScope()

    @trio.lowlevel.enable_ki_protection
    def __enter__(self) -> trio.CancelScope:
        run = self._run = _run_of_a_sweep()
        if run is not None:
            run.announce_victim()
        scope = self._scope.__enter__()
        if run is not None:
            run.enter_victim(scope)
        return scope

    @trio.lowlevel.enable_ki_protection
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool:
        if self._run is not None:
            self._run.leave_victim()
        return self._scope.__exit__(kind, error, traceback)


def victim() -> AbstractContextManager[trio.CancelScope, bool]:
    """Mark what a sweep cancels, as a context manager that gives its `trio.CancelScope`.

    A scenario without one is cancelled as a whole. Outside of a sweep it is a plain cancel scope, so a scenario can
    also be run by itself.

    Raises:
      RuntimeError: It is the second one in this run of a sweep.

    Example::

        async def scenario():
            async with open_provider(fetch) as provider:
                with victim():
                    await provider.get()
                await provider.get()      # must work, whatever was cancelled above
    """
    return _Victim()
