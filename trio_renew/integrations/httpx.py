"""Requests that carry the credential of a provider, for httpx2 and httpx (extra: ``trio_renew[httpx]``).

Invariants:

* A request is sent at most twice: once more after a 401, with a renewed credential.
* Nothing is locked while a request is under way: requests do not wait for each other, and those that meet a 401 at
  the same time share one renewal, because the provider is told which credential was rejected.
* A 401 counts only when the request that it answers carried the credential (a redirect to another origin does not).
* An API that rejects new credentials too does not make every request renew: see ``pause``.
"""

from __future__ import annotations

from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import trio

from .._values import AuthToken, Lease, Secret, check_seconds

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import ModuleType

    import httpx2

    from ..abc import CredentialProvider

__all__ = ("bearer_auth",)

T = TypeVar("T")


class _Headers(Protocol):
    def get(self, key: str, default: Any = None) -> Any: ...
    def __setitem__(self, key: str, value: str) -> None: ...


class _Request(Protocol):
    @property
    def headers(self) -> _Headers: ...
    @property
    def content(self) -> bytes: ...


class _Response(Protocol):
    @property
    def status_code(self) -> int: ...
    @property
    def request(self) -> _Request: ...


def _bearer(value: object) -> str:
    if isinstance(value, AuthToken):
        value = value.secret
    if isinstance(value, Secret):
        value = value.reveal()
    if not isinstance(value, str):
        raise TypeError(
            f"the provider gave an object of type {type(value).__name__}, of which no bearer token can be made:"
            " say how, by render="
        )
    return f"Bearer {value}"


class _Flow:
    """What both libraries' adapters do; ``not_read`` is the error of a body that is streamed."""

    def __init__(
        self,
        provider: CredentialProvider[Any],
        header: str,
        render: Callable[[Any], str],
        pause: float,
        not_read: type[Exception],
    ) -> None:
        self._provider = provider
        self._header = header
        self._render = render
        self._pause = pause
        self._not_read = not_read
        self._refused: Secret | None = None
        self._refused_until = -inf

    def __repr__(self) -> str:
        return f"<bearer_auth of {self._provider!r}>"

    async def run(self, request: Any) -> AsyncGenerator[Any, Any]:  # noqa: ASYNC900, ASYNC911 - what httpx asks for
        """Send a request with the value, and once more with a fresh one where that is rejected."""
        lease = getattr(self._provider, "lease", None)
        # A lease is compared by its generation, whatever the value is.
        held: Any = await (self._provider.get() if lease is None else lease())
        sent = self._write(request, held)
        response = yield request
        if sent is None or not self._rejected(response, sent):
            return  # noqa: ASYNC911 - as above
        refresh = getattr(self._provider, "refresh", None)
        if refresh is None or (sent == self._refused and trio.current_time() < self._refused_until):
            return  # noqa: ASYNC911 - as above
        fresh = await refresh(stale=held)
        if not self._can_be_sent_again(request):
            return
        sent = self._write(request, fresh)
        if sent is None:
            return
        response = yield request
        if self._rejected(response, sent):
            self._refused = sent
            self._refused_until = trio.current_time() + self._pause

    def _write(self, request: _Request, held: object) -> Secret | None:
        # A Secret, because a traceback may show the locals of the frames that hold it.
        value: Any = held.value if isinstance(held, Lease) else held  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if value is None:
            return None
        text = self._render(value)
        request.headers[self._header] = text
        return Secret(text)

    def _rejected(self, response: _Response, sent: Secret) -> bool:
        return response.status_code == 401 and Secret(response.request.headers.get(self._header, "")) == sent

    def _can_be_sent_again(self, request: _Request) -> bool:
        try:
            _ = request.content
        except self._not_read:
            return False
        return True


@cache
def _adapter(base: type[Any]) -> type[Any]:
    class RenewingAuth(base):  # type: ignore[misc]
        """The flow, as one of the two httpx modules wants it."""

        def __init__(self, flow: _Flow) -> None:
            self._flow = flow

        def __repr__(self) -> str:
            return repr(self._flow)

        def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
            return self._flow.run(request)

        def sync_auth_flow(self, request: Any) -> Any:
            raise RuntimeError("a provider lives in Trio: use it with an AsyncClient, not with a Client")

    return RenewingAuth


@overload
def bearer_auth(
    provider: CredentialProvider[T],
    *,
    header: str = "Authorization",
    render: Callable[[T], str] | None = None,
    pause: float = 10.0,
    module: None = None,
) -> httpx2.Auth: ...


@overload
def bearer_auth(
    provider: CredentialProvider[T],
    *,
    header: str = "Authorization",
    render: Callable[[T], str] | None = None,
    pause: float = 10.0,
    module: ModuleType,
) -> Any: ...


def bearer_auth(
    provider: CredentialProvider[T],
    *,
    header: str = "Authorization",
    render: Callable[[T], str] | None = None,
    pause: float = 10.0,
    module: ModuleType | None = None,
) -> Any:
    """Make an ``auth=`` for an ``AsyncClient`` that sends a provider's credential with each request.

    A request that is answered with 401 has the provider renew what was rejected (``refresh(stale=...)``), and is sent
    once more. A body that is streamed cannot be sent again: then the renewal is for the next request, and the caller
    gets the 401. A provider without ``refresh`` (``static_provider``) is not asked to. A value of None sends the
    request without a credential.

    What ``get`` and ``refresh`` of the provider raise leaves the request as itself.

    Args:
      provider: Where the credential comes from, such as that of ``open_provider``.
      header: The header that carries it. httpx hides ``Authorization`` in a repr, others not.
      render: Makes the header's text of a value. None: ``Bearer`` and the text of an AuthToken, a Secret or a str.
      pause: When a credential that has just been renewed is rejected too, renewing is of no use: for this many
        seconds further rejections of it are handed out as they are.
      module: ``httpx2`` or ``httpx``, whichever the client is from. None: httpx2.

    Raises:
      ImportError: ``module`` is None and httpx2 is not installed.
      TypeError: An argument has the wrong type, or ``module`` has no ``Auth``.
      ValueError: ``pause`` is negative or NaN.

    Example::

        async with open_provider(mint) as provider, httpx2.AsyncClient(auth=bearer_auth(provider)) as client:
            await client.get("https://api.example.com/items")
    """
    if not callable(getattr(provider, "get", None)):
        raise TypeError(f"provider must have an async get, and {type(provider).__name__} has none")
    library: Any = _httpx2() if module is None else module
    if not isinstance(getattr(library, "Auth", None), type):
        raise TypeError(f"module must be httpx2 or httpx, not {module!r}")
    check_seconds("pause", pause, allow_inf=True)
    return _adapter(library.Auth)(_Flow(provider, header, render or _bearer, pause, library.RequestNotRead))


def _httpx2() -> ModuleType:
    try:
        import httpx2
    except ImportError as error:
        raise ImportError("bearer_auth() needs the package httpx2: pip install 'trio_renew[httpx]'") from error
    return httpx2
