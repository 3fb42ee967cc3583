"""Mint functions for OAuth 2.0 token endpoints, over an ``AsyncClient`` of httpx2 or httpx.

Invariants:

* A token's life counts from the start of its request: what the answer took on its way only shortens it.
* Credentials are posted to the token endpoint and nowhere else: no redirect is followed, and the client's own
  ``auth`` is not used (it may be the very provider that this mints for).
* A refresh token that the server has rotated is written down before the access token is handed out, and neither
  cancellation nor a broken storage loses it.
* No error carries a credential.
"""

from __future__ import annotations

import base64
import email.utils
import logging
import math
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast
from urllib.parse import quote_plus

import trio

from .._clock import wall_now
from .._errors import CredentialError, FetchTimeout, Unconfigured
from .._redact import redact
from .._values import AuthToken, Secret, check_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ..abc import Storage

__all__ = ("TokenEndpointError", "TokenRequestRejected", "client_credentials", "refresh_token_grant")

_logger = logging.getLogger("trio_renew")

#: Seconds of a lifetime, about three centuries; more is something else.
_LONGEST = 1e10
#: What the server says of the request itself: the same one will not do better.
_REJECTIONS = frozenset(
    {
        "access_denied",
        "invalid_client",
        "invalid_grant",
        "invalid_request",
        "invalid_scope",
        "unauthorized_client",
        "unsupported_grant_type",
    }
)


class _Response(Protocol):
    @property
    def status_code(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def json(self) -> Any: ...


class _Client(Protocol):
    """What is used of an ``AsyncClient``."""

    @property
    def post(self) -> Callable[..., Awaitable[Any]]: ...


class TokenEndpointError(CredentialError):
    """The token endpoint has answered, but not with a token that can be used.

    Attributes:
      status: The HTTP status.
      error: The error code of the answer, such as ``"invalid_client"``; None when it has none.
      description: What the answer says about it, or what is wrong with it; bounded, without credentials.
      retry_after: Seconds after which the server wants to be asked again; None when it does not say.
    """

    status: int
    error: str | None
    description: str
    retry_after: float | None

    def __init__(self, status: int, error: str | None, description: str, retry_after: float | None = None) -> None:
        super().__init__(status, error, description, retry_after)
        self.status = status
        self.error = error
        self.description = description
        self.retry_after = retry_after

    def __str__(self) -> str:
        parts = [f"the token endpoint answered {self.status}", self.error, self.description]
        return ": ".join(part for part in parts if part)


class TokenRequestRejected(TokenEndpointError):
    """The server rejects the request itself (``invalid_client``, ``invalid_grant``, ...): trying again is of no use.

    For ``RefreshPolicy(permanent=(TokenRequestRejected,))``.
    """


class _Endpoint:
    """One token endpoint, and who asks it."""

    def __init__(
        self,
        client: _Client,
        token_url: str,
        client_id: str,
        client_secret: Secret | None,
        style: Literal["basic", "post"],
        parameters: Mapping[str, str],
        lifetime: float | None,
        clock: Callable[[], float] | None,
    ) -> None:
        if not callable(getattr(client, "post", None)):
            raise TypeError(f"client must be an AsyncClient of httpx2 or httpx, not {type(client).__name__}")
        for name, value in (("token_url", token_url), ("client_id", client_id)):
            _check_text(name, value)
        if style not in ("basic", "post"):
            raise ValueError(f'client_auth must be "basic" or "post", not {style!r}')
        if lifetime is not None:
            check_seconds("lifetime", lifetime, above=True, allow_inf=True)
        self._client = client
        self._url = token_url
        self._headers = {"Accept": "application/json"}
        self._form: dict[str, str | Secret] = {key: value for key, value in parameters.items() if value}
        self._secret = client_secret
        self._id = client_id
        self._style = style
        self._lifetime = lifetime
        self._clock = wall_now if clock is None else clock

    async def ask(self, form: dict[str, str | Secret]) -> tuple[AuthToken, Secret | None]:
        """Ask for a token; gives it, and the refresh token that came with it."""
        started = self._clock()
        # What is secret stays a Secret in every frame of ours: an error's traceback may be shown with its locals.
        response: _Response = await self._client.post(self._url, auth=None, follow_redirects=False, **self._proof(form))
        answer = _object(response)
        if response.status_code != 200:
            raise self._error(response, answer, form)
        return self._token(started, answer), answer.get("refresh_token")

    def _proof(self, form: dict[str, str | Secret]) -> dict[str, Any]:
        headers = dict(self._headers)
        fields = {**self._form, **form}
        if self._secret is None or self._style == "post":
            fields["client_id"] = self._id
            if self._secret is not None:
                fields["client_secret"] = self._secret
        else:
            headers["Authorization"] = _basic(self._id, self._secret)
        return {"headers": headers, "data": {key: _revealed(value) for key, value in fields.items()}}

    def _token(self, started: float, answer: dict[str, Any]) -> AuthToken:
        secret: Secret | None = answer.get("access_token")
        if secret is None:
            raise TokenEndpointError(200, None, "there is no access_token in the answer")
        kind = answer.get("token_type", "bearer")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise TokenEndpointError(200, None, "its token_type is not bearer")
        seconds = self._seconds(answer.get("expires_in"))
        return AuthToken(secret, None if seconds == math.inf else started + seconds)

    def _seconds(self, given: object) -> float:
        if given is None:
            if self._lifetime is None:
                raise TokenEndpointError(
                    200, None, "there is no expires_in in the answer: say how long a token lives, by lifetime="
                )
            return self._lifetime
        try:
            # Some servers send a text.
            seconds = check_seconds("expires_in", float(given) if isinstance(given, str) else given, minimum=-_LONGEST)
        except (TypeError, ValueError):
            seconds = math.inf
        if seconds > _LONGEST:
            raise TokenEndpointError(200, None, "its expires_in is no number of seconds")
        return seconds

    def _error(self, response: _Response, answer: dict[str, Any], form: dict[str, str | Secret]) -> TokenEndpointError:
        code = answer.get("error")
        code = redact(code)[:100] if isinstance(code, str) and code else None
        said = answer.get("error_description")
        # It may repeat what we have sent, and it is a local of the frame that raises.
        answer.clear()
        secrets = [value for value in (self._secret, *form.values()) if isinstance(value, Secret)]
        text = redact(said, map(_revealed, secrets)) if isinstance(said, str) else ""
        status = response.status_code
        kind = TokenRequestRejected if code in _REJECTIONS and 400 <= status < 500 else TokenEndpointError
        return kind(status, code, text, self._retry_after(response.headers.get("Retry-After")))

    def _retry_after(self, given: str | None) -> float | None:
        if given is None:
            return None
        try:
            seconds = float(given)
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(given).timestamp() - self._clock()
            except ValueError:
                return None
        return max(0.0, seconds) if math.isfinite(seconds) else None


def _object(response: _Response) -> dict[str, Any]:
    """Read an answer; its tokens are Secrets, and left out where they are no texts."""
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        fields = cast("dict[str, Any]", answer)
        for name in ("access_token", "refresh_token", "id_token"):
            text = fields.pop(name, None)
            if isinstance(text, str) and text:
                fields[name] = Secret(text)
        return fields
    if response.status_code == 200:
        raise TokenEndpointError(200, None, "the answer is no JSON object")
    return {}


def _basic(client_id: str, secret: Secret) -> str:
    pair = f"{quote_plus(client_id)}:{quote_plus(secret.reveal())}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _revealed(value: str | Secret) -> str:
    return value.reveal() if isinstance(value, Secret) else value


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not of type {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must not be empty")


def _to_secret(value: Any) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise TypeError(f"client_secret must be a Secret or a str, not of type {type(value).__name__}")
    return Secret(value)


def client_credentials(
    client: _Client,
    token_url: str,
    client_id: str,
    client_secret: Secret | str,
    *,
    scope: str | None = None,
    parameters: Mapping[str, str] | None = None,
    client_auth: Literal["basic", "post"] = "basic",
    lifetime: float | None = None,
    clock: Callable[[], float] | None = None,
) -> Callable[[], Awaitable[AuthToken]]:
    """Make a mint function for the client-credentials grant.

    Each call is one request to the token endpoint, and can be cancelled at any time. It raises
    :class:`TokenRequestRejected` when the server rejects the request itself, :class:`TokenEndpointError` for any other
    answer that is no token, and what the client raises when there is no answer.

    Args:
      client: An ``AsyncClient`` of httpx2 or httpx. Its own ``auth`` is not used.
      token_url: The token endpoint.
      client_id: Who asks.
      client_secret: The proof.
      scope: What is asked for, separated by spaces.
      parameters: Further fields of the form, such as ``{"audience": ...}``.
      client_auth: Whether id and secret go into a Basic header, or into the form.
      lifetime: How many seconds a token lives that comes without ``expires_in``; infinity: for ever. None: such an
        answer is an error, for nothing should live for ever by accident.
      clock: Returns the time in POSIX seconds; give the provider's, if it has one of its own.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: ``client_auth`` or ``lifetime`` is out of range.

    Example::

        mint = client_credentials(client, "https://id.example.com/token", "app", secret, scope="items.read")
        async with open_provider(mint, policy=RefreshPolicy(permanent=(TokenRequestRejected,))) as provider:
            ...
    """
    client_secret = _to_secret(client_secret)
    fields = {**(parameters or {}), "scope": scope or ""}
    endpoint = _Endpoint(client, token_url, client_id, client_secret, client_auth, fields, lifetime, clock)

    async def mint() -> AuthToken:
        """Ask the endpoint for a token by the client's own credentials."""
        token, _ = await endpoint.ask({"grant_type": "client_credentials"})
        return token

    return mint


def refresh_token_grant(
    client: _Client,
    token_url: str,
    client_id: str,
    client_secret: Secret | str | None = None,
    *,
    tokens: Storage[str],
    scope: str | None = None,
    parameters: Mapping[str, str] | None = None,
    client_auth: Literal["basic", "post"] = "basic",
    lifetime: float | None = None,
    patience: float = 10.0,
    clock: Callable[[], float] | None = None,
) -> Callable[[], Awaitable[AuthToken]]:
    """Make a mint function for the refresh-token grant, safe for servers that rotate refresh tokens.

    A rotating server gives a new refresh token with each answer and may revoke all of them when an old one comes
    back, so that a lost answer is a lost login. Therefore a request that has begun is not cancelled: it takes at most
    ``patience`` seconds, and what it brings is written to ``tokens`` before the access token is handed out. When
    writing fails, that is logged, the new token is kept in memory, and written at the next call. Calls run one at a
    time. ``invalid_grant`` is looked into before it is raised: if ``tokens`` holds another refresh token by then (of
    another process), that one is tried.

    It raises what :func:`client_credentials` does, :class:`~trio_renew.Unconfigured` when ``tokens`` is empty, and
    :class:`~trio_renew.FetchTimeout` when the request takes longer than ``patience``.

    Args:
      client: An ``AsyncClient`` of httpx2 or httpx. Its own ``auth`` is not used.
      token_url: The token endpoint.
      client_id: Who asks.
      client_secret: The proof; None for a public client.
      tokens: Where the refresh token is kept, as a text.
      scope: What is asked for, separated by spaces.
      parameters: Further fields of the form.
      client_auth: Whether id and secret go into a Basic header, or into the form.
      lifetime: How many seconds a token lives that comes without ``expires_in``; infinity: for ever; None: such an
        answer is an error.
      patience: How many seconds one request may take.
      clock: Returns the time in POSIX seconds; give the provider's, if it has one of its own.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: ``client_auth``, ``lifetime`` or ``patience`` is out of range.

    Example::

        tokens = FileStorage("refresh-token.json", encrypted(JsonCodec(), key))
        mint = refresh_token_grant(client, "https://id.example.com/token", "app", tokens=tokens)
        async with open_provider(mint) as provider:
            ...
    """
    client_secret = None if client_secret is None else _to_secret(client_secret)
    fields = {**(parameters or {}), "scope": scope or ""}
    endpoint = _Endpoint(client, token_url, client_id, client_secret, client_auth, fields, lifetime, clock)
    for method in ("get", "set"):
        if not callable(getattr(tokens, method, None)):
            raise TypeError(f"tokens must be a Storage, and {type(tokens).__name__} has no {method}")
    return _Rotation(endpoint, tokens, check_seconds("patience", patience, above=True)).mint


class _Rotation:
    """The refresh token's way from answer to answer."""

    def __init__(self, endpoint: _Endpoint, tokens: Storage[str], patience: float) -> None:
        self._endpoint = endpoint
        self._tokens = tokens
        self._patience = patience
        self._lock = trio.Lock()
        #: A refresh token that could not be written yet: newer than what is stored.
        self._unwritten: Secret | None = None

    async def mint(self) -> AuthToken:
        """Redeem the refresh token; one at a time, as each may be good for one use only."""
        async with self._lock:
            used = await self._current()
            try:
                return await self._redeem(used)
            except TokenRequestRejected as rejection:
                if rejection.error != "invalid_grant" or self._unwritten is not None:
                    raise
                rejected = rejection
            other = await self._current()
            if other == used:
                try:
                    raise rejected
                finally:
                    del rejected  # it holds this frame
            return await self._redeem(other)

    async def _current(self) -> Secret:
        if self._unwritten is not None:
            return self._unwritten  # noqa: ASYNC910 - whoever calls it makes the checkpoint
        stored = await self._tokens.get()
        if stored is None:
            raise Unconfigured("refresh token")
        return Secret(stored)

    async def _redeem(self, used: Secret) -> AuthToken:
        token, rotated = await self._ask(used)
        # No checkpoint in between: what has been given to us is ours to keep.
        if rotated is not None and rotated != used:
            self._unwritten = rotated
        if self._unwritten is not None:
            await self._write(self._unwritten)
        return token

    async def _ask(self, used: Secret) -> tuple[AuthToken, Secret | None]:
        with trio.move_on_after(self._patience, shield=True):
            return await self._endpoint.ask({"grant_type": "refresh_token", "refresh_token": used})
        raise FetchTimeout(f"the token endpoint took longer than {self._patience:g} s")

    async def _write(self, token: Secret) -> None:  # noqa: ASYNC910 - the storage's own
        try:
            with trio.fail_after(self._patience, shield=True):
                await self._tokens.set(token.reveal())
        except Exception as error:
            _logger.error("the new refresh token could not be written, and is kept in memory: %s", type(error).__name__)
        else:
            self._unwritten = None
