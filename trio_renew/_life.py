"""The life of a value: when it ends, when it is due, until when it is good.

Invariants:

* Pure but for the jitter that is drawn. Instants come in as numbers of the owner's clock.
* Nothing lives for ever by accident: a value without an expiry is a TypeError, unless a ttl says how long it lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ._errors import MintedTokenAlreadyExpired
from ._held import Held
from ._policy.schedule import due_at, sample_jitter, soft_expiry
from ._values import check_instant

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._policy.schedule import RefreshPolicy

__all__ = ("judge",)

T = TypeVar("T")


def judge(
    policy: RefreshPolicy,
    read_expires_at: Callable[[T], float | None] | None,
    value: T,
    issued_at: float,
    now: float,
    *,
    stored: bool = False,
    sample: float | None = None,
) -> Held[T]:
    """Read a value's life; a value that is not good any more is refused, unless it comes from storage.

    Args:
      policy: Says when it is due, and how long it lives where it does not say so itself.
      read_expires_at: Reads its expiry; None: its ``expires_at`` attribute.
      value: The value.
      issued_at: When its fetch started.
      now: When it arrived.
      stored: It comes from storage.
      sample: The jitter to use; None: one is drawn.

    Raises:
      MintedTokenAlreadyExpired: Its expiry has come.
      TypeError: It has no expiry, and nothing says how long it lives.
      ValueError: Its expiry is no instant.
    """
    expires_at = _expiry_of(policy, read_expires_at, value)
    by_ttl = expires_at is None
    if expires_at is None:
        if policy.ttl is None:
            return Held(value, issued_at)
        expires_at = issued_at + policy.ttl
    if now >= expires_at and not stored:
        raise MintedTokenAlreadyExpired(f"the fetch brought a value that expired {now - expires_at:g} s ago")
    due = due_at(policy, issued_at, expires_at, sample_jitter(policy) if sample is None else sample)
    if stored and by_ttl:
        # A lifetime that we gave it starts anew with each reading: renew it soon, or restarts prolong it for ever.
        due = issued_at
    good_until = soft_expiry(policy, issued_at, expires_at)
    return Held(value, issued_at, expires_at=expires_at, due_at=due, good_until=good_until, by_ttl=by_ttl)


def _expiry_of(policy: RefreshPolicy, read_expires_at: Callable[[T], float | None] | None, value: T) -> float | None:
    # Whether it has one only the value knows.
    given: Any = value
    expires_at: object
    if read_expires_at is not None:
        expires_at = read_expires_at(value)
    else:
        try:
            expires_at = given.expires_at
        except AttributeError:
            if policy.ttl is None:
                raise TypeError(
                    f"a {type(value).__name__} has no expires_at attribute: say how long it lives, by expires_at= "
                    "(a function of the value) or RefreshPolicy(ttl=...)"
                ) from None
            expires_at = None
    return check_instant("expires_at", expires_at)
