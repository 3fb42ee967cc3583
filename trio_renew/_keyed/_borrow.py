"""The time for which somebody has a value of a pool.

Invariants:

* Having claimed the value and being in its scope are one step; leaving the scope and giving it back are one, too.
* The scope is cancelled by the value's end only, so a block that it has ended is told why.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Generic, TypeVar

import trio
from trio.lowlevel import enable_ki_protection

from ._resident import Phase

if TYPE_CHECKING:
    from collections.abc import Hashable
    from types import TracebackType

    from ._pool import ProviderPool
    from ._resident import Resident

__all__ = ("Borrow",)

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class Borrow(AbstractAsyncContextManager[V], Generic[K, V]):
    """The time for which somebody has a value: what :meth:`ProviderPool.borrow` returns, for one ``async with``."""

    __slots__ = ("_key", "_pool", "_resident", "_scope")

    def __init__(self, pool: ProviderPool[K, V], key: K) -> None:
        self._pool = pool
        self._key = key
        self._resident: Resident[K, V] | None = None
        self._scope: trio.CancelScope | None = None

    @enable_ki_protection
    async def __aenter__(self) -> V:
        if self._scope is not None:
            raise RuntimeError("a borrow is for one async with: call borrow() for each")
        self._scope = trio.CancelScope()
        try:
            self._resident = resident = await self._pool._obtain(self._key, self)
        except BaseException:
            self._scope = None
            raise
        self._scope.__enter__()
        return resident.value

    @enable_ki_protection
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        scope, resident = self._scope, self._resident
        assert scope is not None
        assert resident is not None
        self._resident = None
        try:
            absorbed = scope.__exit__(kind, error, traceback)
        finally:
            resident.give_back(self)
        if error is None or not absorbed:
            return False  # noqa: ASYNC910 - leaving is none
        # The block was cancelled by us: its value is of no use any more.
        if resident.phase is Phase.CRASHED:
            await resident.gone.wait()  # noqa: ASYNC102 - the block ended by our own cancellation
            if resident.error is not None:
                resident.raise_error()
        raise trio.ClosedResourceError(f"{self._pool!r} is closed") from None

    def _cancel(self) -> None:
        assert self._scope is not None
        self._scope.cancel()
