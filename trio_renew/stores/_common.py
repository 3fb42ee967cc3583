"""What the engines share: results, checks of what they are given, and how errors travel.

Invariants:

* Nothing here knows how an engine works, waits, or reads a clock.
* Every check names the argument, shows what was given, and changes nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

import attrs

from .._codecs import check_codec
from .._errors import RemoteFetchError, StoreError
from .._policy.capacity import AdaptiveConfig, RateLimitConfig
from .._user import check_function

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..abc import Codec, Priority

__all__ = (
    "CacheEntryInfo",
    "CacheStats",
    "DedupeStats",
    "Encoded",
    "JobInfo",
    "Options",
    "RateLimitStats",
    "ResourceInfo",
    "Stores",
    "check_capacity",
    "check_config",
    "check_error",
    "check_hash",
    "check_instant",
    "check_lease",
    "check_page",
    "check_priority",
    "check_scope",
    "check_tags",
    "check_text",
    "check_ttl",
    "check_value",
    "encoded",
    "error_type_name",
    "in_page",
)

C_co = TypeVar("C_co", covariant=True)
D_co = TypeVar("D_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)
A_co = TypeVar("A_co", covariant=True)


# ---------------------------------------------------------------------------------------------------------- results


@attrs.frozen
class Stores(Generic[C_co, D_co, R_co, A_co]):
    """What an engine opens: four stores that share a connection, a clock, and a lifetime.

    Attributes:
      cache: The :class:`~trio_renew.CacheStore`.
      dedupe: The :class:`~trio_renew.DedupeStore`.
      rate_limit: The :class:`~trio_renew.RateLimitStore`.
      adaptive: The :class:`~trio_renew.AdaptiveRateLimitStore`; it does not count what ``rate_limit`` counts.
    """

    cache: C_co
    dedupe: D_co
    rate_limit: R_co
    adaptive: A_co


@attrs.frozen
class CacheEntryInfo:
    """One live entry of a cache, for people and dashboards.

    Attributes:
      hash: Its key.
      expires_at: The instant at which it expires; 0.0: it never does.
      created_at: The instant at which it was stored; None where the engine does not know.
      last_accessed: The instant at which it was last read or stored; None where the engine does not know.
      size: The bytes of its encoding; None where it was not measured.
    """

    hash: str
    expires_at: float
    created_at: float | None = None
    last_accessed: float | None = None
    size: int | None = None


@attrs.frozen
class CacheStats:
    """What a cache holds.

    Attributes:
      total_items: How many entries it keeps, expired ones that are not yet removed included.
      expired: How many of them have expired.
      total_bytes: The bytes of their encodings; None where they are not measured.
      max_items: The bound on items; None: none.
      max_total_bytes: The bound on bytes; None: none.
    """

    total_items: int
    expired: int
    total_bytes: int | None
    max_items: int | None = None
    max_total_bytes: int | None = None

    @property
    def item_utilization(self) -> float | None:
        """The share of ``max_items`` that is used, from 0.0 to 1.0; None without a bound."""
        return None if self.max_items is None else self.total_items / self.max_items

    @property
    def memory_utilization(self) -> float | None:
        """The share of ``max_total_bytes`` that is used, from 0.0 to 1.0; None without a bound or a measure."""
        if self.max_total_bytes is None or self.total_bytes is None:
            return None
        return self.total_bytes / self.max_total_bytes


@attrs.frozen
class JobInfo:
    """One job of a dedupe store, for people and dashboards.

    Attributes:
      hash: What it works on.
      job_id: Its id.
      status: ``"pending"``, or how it was settled while its outcome is kept for those who joined.
      created_at: The instant at which it was registered.
      expires_at: The instant at which the owner loses it, or at which its outcome is no longer kept.
    """

    hash: str
    job_id: str
    status: Literal["pending", "completed", "failed"]
    created_at: float
    expires_at: float


@attrs.frozen
class DedupeStats:
    """What a dedupe store is busy with.

    Attributes:
      active_jobs: How many jobs have an owner now.
      total_jobs_processed: How many jobs this store object has registered since it was opened.
      expired_jobs: How many jobs have lost their owner and are not yet removed.
      oldest_job_age: The age of the oldest active job in seconds; 0.0 when there is none.
    """

    active_jobs: int
    total_jobs_processed: int
    expired_jobs: int
    oldest_job_age: float


@attrs.frozen
class ResourceInfo:
    """One resource of a rate limit for which something is counted or a cooldown runs.

    Attributes:
      resource: Its name.
      request_count: How many requests are in the window now, of either kind.
      limit: How many fit into it.
      window: Its length in seconds.
      cooldown_until: The instant until which it is refused; None: no cooldown.
    """

    resource: str
    request_count: int
    limit: int
    window: float
    cooldown_until: float | None = None


@attrs.frozen
class RateLimitStats:
    """What a rate limit counts.

    Attributes:
      total_resources: How many resources are tracked.
      active_resources: How many of them have a request in their window.
      rate_limited_resources: How many of them are full or in a cooldown.
      total_requests: How many requests are in all windows together.
    """

    total_resources: int
    active_resources: int
    rate_limited_resources: int
    total_requests: int


# ----------------------------------------------------------------------------------------------------------- checks


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value!r}")
    return value


def _finite(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    try:
        seconds = float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number that a float can be, and this one is too large") from None
    if not math.isfinite(seconds):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return seconds


def _instance(name: str, value: object, kind: type[Any]) -> None:
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(f"{name} must be {article} {kind.__name__}, not {value!r}")


def check_text(name: str, value: object) -> str:
    """Take a key, a resource, a tag or an id: a non-empty text that every engine can store."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {value!r}")
    if not value:
        raise ValueError(f"{name} must not be empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} must be text that UTF-8 can encode, not {value!r}") from None
    return value


def check_hash(value: object) -> str:
    """Take a key."""
    return check_text("hash", value)


def check_scope(value: object) -> str:
    """Take the prefix of a ``clear``; None is the empty one, which means everything."""
    return "" if value is None or value == "" else check_text("scope", value)


def check_value(value: object) -> None:
    """Refuse None as a cached value: ``get`` could not tell it from nothing."""
    if value is None:
        raise TypeError("value must not be None, which get() gives for an absent entry")


def check_ttl(value: object) -> float:
    """Take a time to live: > 0 seconds, 0 for ever, < 0 expired at once."""
    return _finite("ttl", value)


def check_tags(value: object) -> tuple[str, ...]:
    """Take tags: each once, in the order given."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"tags must be an iterable of str, not {value!r}")
    tags = cast("Iterable[object]", value)
    return tuple(dict.fromkeys(check_text("tags", tag) for tag in tags))


def check_error(value: object) -> BaseException:
    """Take the error of a ``fail``."""
    if not isinstance(value, BaseException):
        raise TypeError(f"error must be an exception, not {value!r}")
    return value


def check_priority(value: object) -> Priority:
    """Take a priority."""
    if value == "user":
        return "user"
    if value == "background":
        return "background"
    raise ValueError(f"priority must be 'user' or 'background', not {value!r}")


def check_lease(value: object) -> float:
    """Take a lease: finite, greater than 0 seconds."""
    lease = _finite("lease", value)
    if lease <= 0:
        raise ValueError(f"lease must be greater than 0, not {value!r}")
    return lease


def check_instant(name: str, value: object) -> float:
    """Take an instant in POSIX seconds."""
    instant = _finite(name, value)
    if abs(instant) > 1e11:
        raise ValueError(f"{name} must be in POSIX seconds, and {value!r} looks like milliseconds")
    return instant


def check_config(value: object) -> RateLimitConfig:
    """Take the config of one resource."""
    if not isinstance(value, RateLimitConfig):
        raise TypeError(f"config must be a RateLimitConfig, not {value!r}")
    return value


def check_page(offset: object, limit: object) -> tuple[int, int]:
    """Take the bounds of a listing."""
    return min(_whole("offset", offset, 0), sys.maxsize), min(_whole("limit", limit, 0), sys.maxsize)


def in_page(items: Iterable[Any], offset: int, limit: int) -> list[Any]:
    """Give that part of a listing."""
    return list(items)[offset : offset + limit]


def check_capacity(name: str, value: object) -> int | None:
    """Take a bound on items or bytes: a whole number >= 1, or None for no bound."""
    return None if value is None else _whole(name, value, 1)


@attrs.frozen(kw_only=True)
class Options:
    """The options of an engine, checked. Engines leave out what they do not have."""

    codec: Codec[Any]
    max_items: int | None = None
    max_entry_size_bytes: int | None = None
    max_total_bytes: int | None = None
    lease: float = 10.0
    default_config: RateLimitConfig = RateLimitConfig()
    resource_configs: Mapping[str, RateLimitConfig] = attrs.field(factory=dict[str, RateLimitConfig])
    adaptive_config: AdaptiveConfig = AdaptiveConfig()
    clock: Callable[[], float] | None = None

    def __attrs_post_init__(self) -> None:
        check_codec("codec", self.codec)
        for name in ("max_items", "max_entry_size_bytes", "max_total_bytes"):
            check_capacity(name, getattr(self, name))
        check_lease(self.lease)
        _instance("default_config", self.default_config, RateLimitConfig)
        _instance("resource_configs", self.resource_configs, Mapping)
        for resource, config in self.resource_configs.items():
            check_text("resource_configs", resource)
            _instance(f"resource_configs[{resource!r}]", config, RateLimitConfig)
        _instance("adaptive_config", self.adaptive_config, AdaptiveConfig)
        check_function("clock", self.clock, "a function that returns POSIX seconds")


# ------------------------------------------------------------------------------------------------------------ values


class Encoded(bytes):
    """The bytes of a value, which may be a secret: a traceback that shows the locals of our frames does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    __str__ = __repr__


def encoded(codec: Codec[Any], hash: str, value: object) -> Encoded:
    """Encode a value.

    Raises:
      StoreError: The codec cannot do it, or gives no bytes.
    """
    cause: Exception | None = None
    try:
        data: object = codec.encode(value)
        if isinstance(data, (bytes, bytearray)):
            return Encoded(data)
        problem = f"it gave {type(data).__name__} instead of bytes"
    except Exception as error:
        problem, cause = type(error).__name__, error
    data = value = None
    try:
        raise StoreError(f"the codec cannot encode the value of {hash!r}: {problem}") from cause
    finally:
        # No circle of an error, its traceback, and this frame.
        del cause


# ----------------------------------------------------------------------------------------------------------- errors


def error_type_name(error: BaseException) -> str:
    """Name the type of an error as it travels: ``module.qualname``; one that has travelled already keeps its name."""
    if isinstance(error, RemoteFetchError):
        return error.type_name
    return f"{type(error).__module__}.{type(error).__qualname__}"
