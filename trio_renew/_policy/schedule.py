"""When a value is renewed, and how long it is served.

Invariants:

* Pure: instants come in, instants go out. The only thing asked of the world is the random share of ``jitter``.
* A due instant is never before the issue, and never after the expiry of a value that lives at all.
* The jitter is sampled once per value, and not at all for a value that never expires.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import random
from typing import Any, Literal, Protocol, cast, final

import attrs

from .._errors import RemoteFetchError
from .._values import check_seconds, is_async_function
from .backoff import Backoff

__all__ = ("RefreshPolicy", "due_at", "refresh_due_at", "sample_jitter", "soft_expiry", "tiered_refresh_before")

_logger = logging.getLogger("trio_renew")

Permanent = tuple[type[Exception], ...] | Callable[[BaseException], bool]


class Expiring(Protocol):
    """Anything that says when it ends."""

    @property
    def expires_at(self) -> float | None:
        """The instant in POSIX seconds; None: never."""
        ...


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, (int, float)) else f"an object of type {type(value).__name__}"


def _is_tuple(value: object) -> bool:
    return isinstance(value, tuple)


def _check_fraction(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{attribute.name} must be a fraction of the lifetime such as 0.8, not {_shown(value)}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{attribute.name} must be a fraction of the lifetime of at least 0, not {value!r}")


def _check_seconds(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    check_seconds(attribute.name, value)


def _check_grace(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    check_seconds(attribute.name, value, allow_inf=True)


def _check_ttl(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None:
        check_seconds(attribute.name, value, above=True)


def _check_before(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    _check_plain(attribute, value)
    if value is not None and not callable(value):
        check_seconds(attribute.name, value)


def _check_plain(attribute: attrs.Attribute[Any], value: Any) -> None:
    if is_async_function(value):
        raise TypeError(f"{attribute.name} must be no async function: it is called where nothing can be awaited")


def _check_jitter(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    _check_plain(attribute, value)
    if callable(value):
        return
    right = "a share of the lifetime from 0 to 1, or a function that gives one"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{attribute.name} must be {right}, not {_shown(value)}")
    if not 0 <= value <= 1:
        raise ValueError(f"{attribute.name} must be {right}, not {value!r}")


def _check_retry(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not isinstance(value, Backoff):
        raise TypeError(f"{attribute.name} must be a Backoff or None, not {_shown(value)}")


def _to_permanent(value: Permanent | type[Exception]) -> Permanent:
    # A type is callable too: as a predicate it would find everything permanent.
    return (value,) if isinstance(value, type) else value


def _check_permanent(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    right = "a tuple of exception types, or a function of the error that says whether it is permanent"
    if _is_tuple(value):
        for kind in value:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise TypeError(f"{attribute.name} must be {right}; {kind!r} is no exception type")
    elif not callable(value) or is_async_function(value):
        raise TypeError(f"{attribute.name} must be {right}, not {_shown(value)}")


def _check_range(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    right = "a pair of seconds, the shortest and the longest"
    if not _is_tuple(value) or len(value) != 2:
        raise TypeError(f"{attribute.name} must be {right}, not {_shown(value)}")
    low, high = (check_seconds(attribute.name, seconds) for seconds in value)
    if low > high:
        raise ValueError(f"{attribute.name} must be {right}, not {value!r}")


def _check_due(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value not in ("background", "one_waits"):
        raise ValueError(f'{attribute.name} must be "background" or "one_waits", not {value!r}')


@final
@attrs.frozen
class RefreshPolicy:
    """When a value is renewed, and what is served when that fails.

    Args:
      refresh_at: The fraction of its lifetime after which a value is due; above 1 counts as 1.
      refresh_floor: It is due at least this many seconds before its expiry, but not before half of its life.
      refresh_before: In the place of both: how many seconds before the expiry it is due, or a function that gives
        this for a lifetime, such as :func:`tiered_refresh_before`.
      jitter: A random share of the lifetime, up to this, by which a value is due earlier; or a function that gives
        the share (less than 0 counts as 0, more than 1 as 1). Sampled once per value.
      leeway: How many seconds before its expiry (at most a tenth of its lifetime) a value counts as expired: callers
        wait for a fetch then, and get the value nevertheless if that fails.
      ttl: The lifetime in seconds of values that carry no expiry; None: they never expire.
      min_interval: A background refresh starts at least this many seconds after the last start of a fetch.
      retry: How failures put off the next background refresh; None: they do not.
      serve_expired_for: For how many seconds past its expiry a value is served when a fetch fails; infinity is
        allowed.
      permanent: Exception types, or a function of the error, that say which failures trying again does not mend.
      permanent_ttl: For how long (from the first to the second number of seconds, at random) such a failure is
        remembered.
      due: ``"background"``: who finds a value due gets it, and it is renewed meanwhile. ``"one_waits"``: the first
        who finds it due waits for the new one.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range; NaN is everywhere, infinity where it is not said to be allowed.

    Example::

        open_provider(mint, policy=RefreshPolicy(refresh_at=0.5, serve_expired_for=60.0, permanent=(PermissionError,)))
    """

    refresh_at: float = attrs.field(default=0.8, validator=_check_fraction)
    refresh_floor: float = attrs.field(default=30.0, validator=_check_seconds)
    refresh_before: float | Callable[[float], float] | None = attrs.field(default=None, validator=_check_before)
    jitter: float | Callable[[], float] = attrs.field(default=0.05, validator=_check_jitter)
    leeway: float = attrs.field(default=10.0, validator=_check_seconds)
    ttl: float | None = attrs.field(default=None, validator=_check_ttl)
    min_interval: float = attrs.field(default=1.0, validator=_check_seconds)
    retry: Backoff | None = attrs.field(factory=Backoff, validator=_check_retry)
    serve_expired_for: float = attrs.field(default=0.0, validator=_check_grace)
    permanent: Permanent = attrs.field(default=(), converter=_to_permanent, validator=_check_permanent)
    permanent_ttl: tuple[float, float] = attrs.field(default=(1.0, 5.0), validator=_check_range)
    due: Literal["background", "one_waits"] = attrs.field(default="background", validator=_check_due)

    def is_permanent(self, error: BaseException) -> bool:
        """Say whether trying again would not mend this failure.

        An error of another process (:class:`~trio_renew.RemoteFetchError`) matches a type by the type's own name, not
        through its bases. A predicate gets the error itself; one that raises is logged and counts as no.
        """
        if _is_tuple(self.permanent):
            kinds = cast("tuple[type[Exception], ...]", self.permanent)
            if isinstance(error, kinds):
                return True
            names = (f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
            return isinstance(error, RemoteFetchError) and error.type_name in names
        try:
            return bool(cast("Callable[[BaseException], bool]", self.permanent)(error))
        except Exception as failure:
            # The names of the types only: the texts may carry secrets.
            _logger.error(
                "the predicate of RefreshPolicy(permanent=...) raised %s for %s; taken as a no",
                type(failure).__name__,
                type(error).__name__,
            )
            return False


def _clamped(share: float) -> float:
    # NaN is not above 0.
    return min(share, 1.0) if share > 0.0 else 0.0


def sample_jitter(policy: RefreshPolicy) -> float:
    """Give the share of the lifetime, from 0 to 1, by which one value is due earlier."""
    jitter = policy.jitter
    if not callable(jitter):
        return jitter * random()
    share: Any = jitter()
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise TypeError(f"the result of jitter must be a share of the lifetime from 0 to 1, not {_shown(share)}")
    return _clamped(share)


def due_at(policy: RefreshPolicy, issued_at: float, expires_at: float | None, sample: float) -> float | None:
    """Give the instant from which on a value is to be renewed; None: never.

    Args:
      policy: What says so.
      issued_at: From when on the value lives, in POSIX seconds.
      expires_at: Its expiry; None: never.
      sample: The share from :func:`sample_jitter`.

    Raises:
      TypeError: The function ``refresh_before`` gave no number.
      ValueError: The function ``refresh_before`` gave less than 0, NaN or infinity.
    """
    if expires_at is None:
        return None
    life = expires_at - issued_at
    if life <= 0.0:
        return issued_at
    sample = _clamped(sample)
    before = policy.refresh_before
    if before is None:
        floor = min(policy.refresh_floor, life / 2)
        due = min(issued_at + _clamped(min(policy.refresh_at, 2.0) - sample) * life, expires_at - floor)
    else:
        seconds = check_seconds("the result of refresh_before", before(life)) if callable(before) else before
        due = expires_at - seconds - sample * life
    return max(issued_at, due)


def refresh_due_at(policy: RefreshPolicy, issued_at: float, token: Expiring) -> float | None:
    """Give the instant from which on a token is to be renewed, with a jitter of its own; None: never."""
    expires_at = token.expires_at
    return None if expires_at is None else due_at(policy, issued_at, expires_at, sample_jitter(policy))


def soft_expiry(policy: RefreshPolicy, issued_at: float, expires_at: float | None) -> float | None:
    """Give the instant from which on callers wait for a fetch: ``leeway`` before the expiry; None: never.

    The leeway is at most a tenth of the lifetime.
    """
    if expires_at is None:
        return None
    return expires_at - min(policy.leeway, max(0.0, expires_at - issued_at) / 10)


def tiered_refresh_before(life: float) -> float:
    """Give how many seconds before its expiry a value of this lifetime is due, for ``refresh_before``.

    5 minutes for lives of up to 20 minutes, 15 minutes below 90 minutes, 60 minutes from 90 minutes on.

    Args:
      life: The lifetime in seconds.

    Example::

        RefreshPolicy(refresh_before=tiered_refresh_before)
    """
    if life <= 1200.0:
        return 300.0
    return 900.0 if life < 5400.0 else 3600.0
