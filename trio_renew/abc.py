"""What a user may implement: protocols only, and the frozen results that they return.

No class here has to be inherited from: an object with these methods is one. All durations are seconds, all instants
are POSIX seconds (the scale of ``time.time()``), both ``float``. A thing with deadline d is good while ``now < d``.

Rules for every ``async`` method of a store: it is at least one checkpoint; cancelled, it has happened wholly or not
at all; bad arguments are a ``TypeError`` or ``ValueError`` and change nothing; a store that cannot do its work raises
:class:`~trio_renew.StoreError`; a closed one raises :class:`trio.ClosedResourceError`, and so does whoever waits in
it when it closes. ``trio_renew.testing`` has the suites that check this for an implementation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, runtime_checkable

from ._store_protocols import (
    AdaptiveRateLimitStatus,
    AdaptiveRateLimitStore,
    CacheStore,
    DedupeStore,
    Priority,
    RateLimitStatus,
    RateLimitStore,
    Registration,
)

if TYPE_CHECKING:
    from ._values import Lease

__all__ = (
    "AdaptiveRateLimitStatus",
    "AdaptiveRateLimitStore",
    "Bus",
    "CacheStore",
    "Codec",
    "CredentialProvider",
    "DedupeStore",
    "Listener",
    "Priority",
    "RateLimitStatus",
    "RateLimitStore",
    "Registration",
    "Renewable",
    "Storage",
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class Renewable(Protocol[T]):
    """A value that is fetched, kept, handed out, and fetched again when it is no longer good.

    :func:`~trio_renew.open_resource` and :func:`~trio_renew.open_provider` give one. Write a function against this
    protocol when it needs no more than these three methods.

    Example::

        async def call(resource: Renewable[AuthToken]) -> Response:
            token = await resource.get()
            response = await send(token)
            if response.status == 401:
                token = await resource.refresh(stale=token)
                response = await send(token)
            return response
    """

    async def get(self) -> T:
        """Hand out the value, fetching it first where there is no good one.

        At least one checkpoint. Cancelling it takes only this caller away.

        Raises:
          Exception: what the fetch raised, as it is.
          trio.ClosedResourceError: the owner is closed.
        """
        ...

    async def refresh(self, stale: T | Lease[T] | None = None) -> T:
        """Fetch now and replace the value, unless it is another one than ``stale`` already.

        At least one checkpoint. Cancelling it takes only this caller away.

        Args:
          stale: The value (or the lease) that was found to be no good; when the one held is another one and good,
            it is returned without a fetch. None: fetch in any case.

        Raises:
          Exception: what the fetch raised, as it is.
          trio.ClosedResourceError: the owner is closed.
        """
        ...

    async def clear(self) -> None:
        """Forget the value; what is being fetched at this moment is not kept either.

        At least one checkpoint; the value is forgotten also when the caller is cancelled.

        Raises:
          trio.ClosedResourceError: the owner is closed.
        """
        ...


@runtime_checkable
class CredentialProvider(Protocol[T_co]):
    """Where a credential comes from: what a client of a service needs, and nothing about how it is renewed.

    :func:`~trio_renew.open_provider` gives one; :func:`~trio_renew.static_provider` makes one of a fixed token.

    Example::

        async def headers(provider: CredentialProvider[AuthToken]) -> dict[str, str]:
            token = await provider.current_token()
            return {"Authorization": f"Bearer {token.secret.reveal()}"}
    """

    async def current_token(self) -> T_co:
        """Hand out a credential that is good at this moment; the same as :meth:`get`."""
        ...

    async def get(self) -> T_co:
        """Hand out a credential that is good at this moment, waiting for one where there is none.

        At least one checkpoint. Cancelling it takes only this caller away.

        Raises:
          Exception: what minting raised, as it is.
          trio.ClosedResourceError: the owner is closed.
        """
        ...

    def get_nowait(self) -> T_co:
        """Hand out a credential that is good at this moment, without a checkpoint.

        Raises:
          trio.WouldBlock: there is no good one.
          trio.ClosedResourceError: the owner is closed.
        """
        ...


@runtime_checkable
class Storage(Protocol[T]):
    """Where one value outlives the process.

    What :meth:`set` has stored when it returns, a later :meth:`get` gives, also after a crash. One slot has one
    writer. Each call is bounded by the owner's ``fetch_timeout`` and may be cancelled; a call that fails is reported
    (``StorageFailed``) and never loses a good value.

    Example::

        class EnvironmentStorage:
            async def get(self) -> str | None:
                await trio.lowlevel.checkpoint()
                return os.environ.get("TOKEN")

            async def set(self, value: str) -> None:
                await trio.lowlevel.checkpoint()
                os.environ["TOKEN"] = value

            async def clear(self) -> None:
                await trio.lowlevel.checkpoint()
                os.environ.pop("TOKEN", None)
    """

    async def get(self) -> T | None:
        """Read the value; None when there is none. May raise any ``Exception``: a failed read."""
        ...

    async def set(self, value: T, /) -> None:
        """Replace the value. Cancelled or failing, the old value or the new one is there, never a half of one."""
        ...

    async def clear(self) -> None:
        """Forget the value; no error when there is none."""
        ...


@runtime_checkable
class Codec(Protocol[T]):
    """How a value becomes bytes, and again a value. Synchronous, without side effects.

    Example::

        class TextCodec:
            def encode(self, value: str) -> bytes:
                return value.encode()

            def decode(self, data: bytes) -> str:
                return data.decode()
    """

    def encode(self, value: T, /) -> bytes:
        """Give the bytes of a value.

        Raises:
          Exception: it cannot carry this value (``TypeError`` or ``ValueError`` by custom).
        """
        ...

    def decode(self, data: bytes, /) -> T:
        """Give the value of the bytes.

        Raises:
          Exception: the bytes are no such value.
        """
        ...


@runtime_checkable
class Listener(Protocol):
    """What a :class:`Bus` calls: a cache or pool that takes part. All methods are synchronous and do not raise."""

    @property
    def name(self) -> str:
        """The name that the caches and pools which belong together share."""
        ...

    def invalidated(self, what: Literal["key", "tag", "all"], key: object) -> None:
        """Hear that somebody else of this name dropped a key, a tag, or (``key`` is None) everything."""
        ...

    def missed(self) -> None:
        """Hear that invalidations may have been lost: whatever is held may be out of date."""
        ...

    def failed(self, error: Exception) -> None:
        """Hear that the bus has lost its connection, or cannot make one. Told once per outage."""
        ...


@runtime_checkable
class Bus(Protocol):
    """Carries invalidations between the caches and pools of one name, in this process and in others.

    A message carries keys, never values. A listener does not hear what it has published itself; its siblings on the
    same bus object do. An outage is told to each listener once (:meth:`Listener.failed`), also to those that join
    during it; when it is over, what may have been lost is replayed, or told as :meth:`Listener.missed`.
    """

    def attach(self, listener: Listener) -> None:
        """Let a listener take part from now on."""
        ...

    def detach(self, listener: Listener) -> None:
        """Let a listener hear nothing any more; no error when it does not take part."""
        ...

    def publish(self, sender: Listener, what: Literal["key", "tag", "all"], key: object) -> None:
        """Tell all others of the sender's name. Neither waits nor raises: what cannot be sent now is sent later."""
        ...
