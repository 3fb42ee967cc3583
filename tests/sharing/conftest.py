"""Stores whose troubles are scripted, for the tests of sharing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HANG = "hang"


class Between:
    """A store between a provider and the real one: passes every call on, until it is told otherwise.

    ``trouble[method]`` is an exception (raised), ``"hang"`` (no answer), a number of seconds (of delay), or an async
    function that is awaited first with the call's arguments; what it returns, if not None, is the answer. ``calls``
    are the names of all calls.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self.trouble: dict[str, Exception | str | float | Callable[..., Awaitable[Any]]] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if not callable(real):
            return real

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            trouble = self.trouble.get(name)
            if trouble is not None:
                await trio.lowlevel.checkpoint()
            if isinstance(trouble, Exception):
                raise trouble
            if trouble == HANG:
                await trio.sleep_forever()
            if isinstance(trouble, float):
                await trio.sleep(trouble)
            answer = await trouble(*args) if callable(trouble) else None
            return await real(*args, **kwargs) if answer is None else answer

        return call


@pytest.fixture
def between() -> Callable[[Any], Between]:
    return Between
