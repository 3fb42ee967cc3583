"""One resource that knows time, as its users see it. How it decides is in ``_renewing.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ._errors import Unconfigured
from ._owner import hosting, owning
from ._policy.breaker import BreakerPolicy
from ._policy.schedule import RefreshPolicy
from ._renewing import Renewing
from ._resource import RenewableResource
from ._user import check_async_function

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from typing import Literal

    from ._budget import Budget
    from ._events import Event
    from ._share import Share
    from .abc import Storage

__all__ = ("RefreshingProvider", "open_provider", "open_provider_with")

T = TypeVar("T")


class RefreshingProvider(Renewing[T], RenewableResource[T]):
    """A value that is renewed in the background before it expires. Made by :func:`open_provider`."""

    __slots__ = ()

    async def current_token(self) -> T:
        """Hand out the value; the same as :meth:`get`."""
        return await self.get()


@owning
async def open_provider_with(
    after_claim: Callable[[], Awaitable[object]] | None,
    mint: Callable[[], Awaitable[T]],
    *,
    policy: RefreshPolicy = RefreshPolicy(),
    breaker: BreakerPolicy | None = BreakerPolicy(),
    expires_at: Callable[[T], float | None] | None = None,
    eager: bool = True,
    keep_warm: float = 0.0,
    storage: Storage[Any] | None = None,
    share: Share | None = None,
    budget: Budget | None = None,
    fetch_timeout: float | None = 30.0,
    when_abandoned: Literal["finish", "cancel"] = "finish",
    observe: Callable[[Event], None] | None = None,
    clock: Callable[[], float] | None = None,
    name: str | None = None,
) -> AsyncGenerator[RefreshingProvider[T], None]:
    """Open a provider as :func:`trio_renew.open_provider` does, with a hook between claim and runner.

    Args:
      after_claim: Awaited between the claim of a fetch and the start of it: the window that production code crosses
        without a checkpoint. In the serving task when a caller needs the value, in the background task otherwise. A
        cancellation there releases the claim, and those who had joined decide again; so does an exception, which is
        the serving task's, or makes a background refresh a failed fetch.
      mint: As for ``open_provider``, like all that follow.
      policy: See there.
      breaker: See there.
      expires_at: See there.
      eager: See there.
      keep_warm: See there.
      storage: See there.
      share: See there.
      budget: See there.
      fetch_timeout: See there; counts from after the hook.
      when_abandoned: See there.
      observe: See there.
      clock: See there.
      name: See there.
    """
    if mint is None:
        raise Unconfigured("mint")
    check_async_function("mint", mint)
    if not isinstance(eager, bool):
        raise TypeError(f"eager must be a bool, got {type(eager).__name__}")
    provider: RefreshingProvider[T] = RefreshingProvider(
        mint,
        policy=policy,
        breaker=breaker,
        expires_at=expires_at,
        keep_warm=keep_warm,
        after_claim=after_claim,
        storage=storage,
        share=share,
        budget=budget,
        fetch_timeout=fetch_timeout,
        when_abandoned=when_abandoned,
        observe=observe,
        clock=clock,
        name=name,
    )
    async with hosting(provider._owner):
        provider._used(provider._clock.now())
        if eager:
            await provider._obtain("initial")
        yield provider  # noqa: ASYNC119 - @owning makes a context manager of it


@owning
async def open_provider(
    mint: Callable[[], Awaitable[T]],
    *,
    policy: RefreshPolicy = RefreshPolicy(),
    breaker: BreakerPolicy | None = BreakerPolicy(),
    expires_at: Callable[[T], float | None] | None = None,
    eager: bool = True,
    keep_warm: float = 0.0,
    storage: Storage[Any] | None = None,
    share: Share | None = None,
    budget: Budget | None = None,
    fetch_timeout: float | None = 30.0,
    when_abandoned: Literal["finish", "cancel"] = "finish",
    observe: Callable[[Event], None] | None = None,
    clock: Callable[[], float] | None = None,
    name: str | None = None,
) -> AsyncGenerator[RefreshingProvider[T], None]:
    """Keep a provider open around a body: a value with a lifetime, renewed in the background while it is still good.

    Entering mints once (``eager``), with the caller's cancellation; leaving is not a cancellation point: it cancels
    what is in flight and waits for it to unwind, and callers elsewhere get ``trio.ClosedResourceError`` at once. The
    body can still use the provider in its ``finally`` blocks. What the body raises leaves as itself, not in a group.

    Args:
      mint: An async function of no arguments that returns the value, or None for "completed, no value". It runs in a
        task of the provider's own nursery; what it raises goes to every caller of that fetch.
      policy: When a value is renewed, and what happens when that fails.
      breaker: When the source is left alone; None: never.
      expires_at: Reads a value's expiry, in POSIX seconds, None for never. By default its ``expires_at`` attribute.
      eager: Whether entering mints (or takes a good value from storage). If that fails, ``async with`` raises it.
      keep_warm: Renew a due value without being asked, while the last use is less than this many seconds ago; 0: only
        on use, infinity: always.
      storage: Where the value outlives the process (``get``, ``set``, ``clear``); read once, when first needed.
      share: The processes that fetch once for all of them, and how they agree; None: this one fetches for itself.
      budget: What each fetch spends of a limit that is shared with others; None: no limit.
      fetch_timeout: Seconds that one fetch may take, and each storage call by itself; None or infinity: no limit.
      when_abandoned: What becomes of a fetch when its last caller leaves: ``"finish"`` keeps its value, ``"cancel"``
        cancels it. Background refreshes have no callers to lose.
      observe: Told every :data:`Event`, synchronously; must be quick. What it raises is logged.
      clock: Returns the time in POSIX seconds. None: the wall clock, or the test clock's under ``MockClock``.
      name: For events, logs and task names.

    Yields:
      The :class:`RefreshingProvider`.

    Raises:
      Unconfigured: ``mint`` is None.
      TypeError: An argument has the wrong type; it is named.
      ValueError: An argument is out of range; it is named.
      MintedTokenAlreadyExpired: The first value is no longer good.
      Exception: What the first ``mint()`` raised.

    Example::

        async def mint() -> AuthToken:
            answer = await client.post(token_url, data=grant)
            return AuthToken.expiring_in(answer.json()["access_token"], answer.json()["expires_in"])

        async with open_provider(mint) as provider:
            token = await provider.get()
    """
    async with open_provider_with(
        None,
        mint,
        policy=policy,
        breaker=breaker,
        expires_at=expires_at,
        eager=eager,
        keep_warm=keep_warm,
        storage=storage,
        share=share,
        budget=budget,
        fetch_timeout=fetch_timeout,
        when_abandoned=when_abandoned,
        observe=observe,
        clock=clock,
        name=name,
    ) as provider:
        yield provider  # noqa: ASYNC119 - as above
