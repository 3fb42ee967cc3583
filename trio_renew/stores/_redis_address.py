"""Where a Redis or Valkey server is, and how one talks to it: from a URL, or from a client of the user's.

Invariants:

* Neither a text nor an error of ours shows a password, or a URL that may hold one.
* Over TLS the host is checked, unless the URL says otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import attrs
from coredis import Redis
from coredis.connection import TCPLocation, UnixDomainSocketLocation
from coredis.pool import ConnectionPool, SentinelConnectionPool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyio.abc import ByteStream

__all__ = ("Address", "address_of")


@attrs.frozen
class Address:
    """Where a server is, and how one talks to it. Its text shows no password."""

    location: TCPLocation | UnixDomainSocketLocation = attrs.field(repr=str)
    tls: Any = attrs.field(repr=False)
    settings: Mapping[str, Any] = attrs.field(repr=False)

    async def connect(self) -> ByteStream:
        """Make a connection to a server that answers.

        Raises:
          Exception: It cannot be made.
        """
        stream = await self._open()
        try:
            # A handshake of coredis that is cut off is logged with a long traceback. A server that hangs hangs here;
            # the answer may well be that one has to say who one is.
            await stream.send(b"PING\r\n")
            while not (await stream.receive()).endswith(b"\n"):
                pass
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise
        return stream

    async def _open(self) -> ByteStream:
        if isinstance(self.location, UnixDomainSocketLocation):
            return await anyio.connect_unix(self.location.path)
        host, port = self.location.host, self.location.port
        if self.tls is None:
            return await anyio.connect_tcp(host, port)
        return await anyio.connect_tcp(host, port, tls=True, ssl_context=self.tls, tls_standard_compatible=False)


# Of a client's settings those that say who talks to which database; the others are about its own pool.
_SETTINGS = ("username", "password", "credential_provider", "db", "client_name", "noevict", "notouch")
_SCHEMES = {"redis": "redis", "rediss": "rediss", "unix": "unix", "valkey": "redis", "valkeys": "rediss"}


def address_of(url_or_client: object) -> Address:
    """Take a URL, or the address and the settings of a client.

    Raises:
      TypeError: It is neither.
      ValueError: The URL is none for a server. It is not shown: it may hold a password.
    """
    if isinstance(url_or_client, str):
        pool = _pool_of(url_or_client)
        wrong: Exception = ValueError("url_or_client must name a host or a socket")
    elif isinstance(url_or_client, Redis):
        pool = url_or_client.connection_pool
        wrong = TypeError(f"url_or_client must be a client of one server, and {pool!r} is not the pool of one")
    else:
        raise TypeError(f"url_or_client must be a URL or a coredis.Redis client, not {url_or_client!r}")
    location = pool.location
    if isinstance(pool, SentinelConnectionPool) or not isinstance(location, TCPLocation | UnixDomainSocketLocation):
        raise wrong
    given: dict[str, Any] = dict(pool.connection_kwargs)
    return Address(location, given.get("ssl_context"), {name: given[name] for name in _SETTINGS if name in given})


def _pool_of(url: str) -> ConnectionPool[Any]:
    scheme, found, rest = url.partition("://")
    known = _SCHEMES.get(scheme)
    if not found or known is None:
        raise ValueError(f"url_or_client must start with redis://, rediss:// or unix://, not {scheme[:20]!r}")
    if known == "rediss" and "ssl_check_hostname=" not in rest and "ssl_cert_reqs=none" not in rest:
        # coredis would take any certificate that a known authority has signed, for whichever host.
        rest += ("&" if "?" in rest else "?") + "ssl_check_hostname=true"
    try:
        return ConnectionPool.from_url(f"{known}://{rest}", decode_components=True)
    except Exception as error:
        # The text of the error may quote the URL; its chain too.
        kind = type(error).__name__
    raise ValueError(f"url_or_client is no URL of a server ({kind}); right is redis://user:password@host:6379/0")
