"""The values that travel through the house: secrets, tokens, leases; and how arguments are checked.

Invariants:

* The text of a :class:`Secret` leaves it through :meth:`Secret.reveal` alone. It is kept in a closure, so that no
  attribute of the object holds it, and every function here turns a text into a Secret before anything can fail.
* A message about a bad argument names the argument; it shows numbers, and of anything else the type only: the value
  may be a secret that was passed in the wrong place.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import math
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar, final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ("AuthToken", "Lease", "Secret", "check_instant", "check_seconds", "is_async_function")

T_co = TypeVar("T_co", covariant=True)

#: An instant beyond this (the year 5138) is a number of milliseconds.
_LATEST = 1e11


def _shown(value: object) -> str:
    """Show a bad argument in an error message: a number as it is, anything else by its type."""
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        # The text of a very long integer is refused by Python itself.
        return repr(value) if abs(value) < 10**30 else "a very large int"
    return f"an object of type {type(value).__name__}"


def check_instant(name: str, value: object) -> float | None:
    """Check an instant in POSIX seconds and give it as a float; None stays None.

    Args:
      name: The field that is named in the error.
      value: What was given.

    Raises:
      ValueError: it is no finite number of seconds, or so large that it must be milliseconds.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = "; use its .timestamp()" if hasattr(value, "timestamp") else ""
        # The contract of this library: whatever is wrong with an instant, it is a ValueError.
        raise ValueError(f"{name} must be a number of POSIX seconds or None, not {_shown(value)}{hint}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {_shown(value)}; None stands for never")
    if abs(value) > _LATEST:
        raise ValueError(f"{name} must be in POSIX seconds, but {_shown(value)} looks like milliseconds")
    return float(value)


def is_async_function(function: object) -> bool:
    """Say whether calling this makes a coroutine, as far as that can be seen."""
    if not callable(function):
        return False
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def check_seconds(
    name: str, value: object, *, minimum: float = 0.0, above: bool = False, allow_inf: bool = False
) -> float:
    """Check a duration in seconds and give it as a float.

    Args:
      name: The argument that is named in the error.
      value: What was given.
      minimum: The least that is allowed.
      above: Whether it must be more than that.
      allow_inf: Whether infinity is allowed.

    Raises:
      TypeError: it is no number.
      ValueError: it is NaN, out of range, or infinite where that is not allowed.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {_shown(value)}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf if value > 0 else -math.inf
    if not (seconds > minimum if above else seconds >= minimum) or (seconds == math.inf and not allow_inf):
        bounds = f"{'more than' if above else 'at least'} {minimum:g}"
        if minimum == -math.inf:
            bounds = "a number"
        if not allow_inf:
            bounds += " and finite"
        raise ValueError(f"{name} must be {bounds} (seconds), not {_shown(value)}")
    return seconds


@final
class Secret:
    """A text that does not show itself.

    ``repr``, ``str`` and ``format`` give ``Secret <REDACTED>``, whatever the format. Pickling it is a ``TypeError``,
    and so is ``json.dumps``; ``json.dumps(..., default=str)`` writes the redacted form. ``==`` compares in constant
    time; there is no order, and no hash (a hash would tell something about the text). Copies are the object itself.

    Args:
      value: The text; it may be empty.

    Raises:
      TypeError: it is no ``str``.

    Example::

        secret = Secret(answer["access_token"])
        headers["Authorization"] = f"Bearer {secret.reveal()}"
    """

    __slots__ = ("_text",)
    __hash__: ClassVar[None]  # type: ignore[assignment]

    _text: Callable[[], str]

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a Secret is made from a str, not {_shown(value)}")
        text = str.__str__(value)
        object.__setattr__(self, "_text", lambda: text)

    def reveal(self) -> str:
        """Give the text."""
        return self._text()

    def fingerprint(self) -> str:
        """Give the first 8 hexadecimal digits of the text's SHA-256: to tell two secrets apart in a log.

        Not for short or guessable texts: whoever sees it can try out guesses.
        """
        return hashlib.sha256(self._bytes()).hexdigest()[:8]

    def _bytes(self) -> bytes:
        # A text with lone surrogates is as good as any other.
        return self._text().encode("utf-8", "surrogatepass")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._bytes(), other._bytes())

    def __repr__(self) -> str:
        return "Secret <REDACTED>"

    __str__ = __repr__

    def __format__(self, format_spec: str) -> str:
        return "Secret <REDACTED>"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled: its text would leave the process; pickle what reveal() gives")


def _as_secret(value: Secret | str) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"secret must be a Secret or a str, not {_shown(value)}")
    return Secret(value)


@final
@attrs.frozen(init=False)
class AuthToken:
    """A credential and when it ends.

    Compared by its fields; not hashable, because its secret is not.

    Attributes:
      secret: The credential.
      expires_at: The instant (POSIX seconds) from which on it is no longer good; None: it never expires.

    Raises:
      TypeError: ``secret`` is neither a Secret nor a ``str``.
      ValueError: ``expires_at`` is no finite number of POSIX seconds. The secret is not shown.

    Example::

        token = AuthToken("abc", 1_767_225_600.0)
        token.secret.reveal()  # "abc"
    """

    secret: Secret
    expires_at: float | None
    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __init__(self, secret: Secret | str, expires_at: float | None = None) -> None:
        # Secret first: should the expiry be refused, then what a traceback shows of this frame is whole and redacted.
        secret = _as_secret(secret)
        object.__setattr__(self, "secret", secret)
        object.__setattr__(self, "expires_at", None)
        object.__setattr__(self, "expires_at", check_instant("expires_at", expires_at))

    @classmethod
    def expiring_in(cls, secret: Secret | str, seconds: float, *, now: float | None = None) -> AuthToken:
        """Make a token that lives for some seconds from now on.

        Args:
          secret: The credential.
          seconds: How long it lives, such as the ``expires_in`` of an OAuth 2.0 answer. One that is not positive
            makes an expired token.
          now: From when on, in POSIX seconds. None: from now, by the clock that providers without a ``clock`` of
            their own go by (under a test clock Trio's, otherwise the wall clock).

        Raises:
          TypeError: ``secret`` or ``seconds`` has the wrong type.
          ValueError: ``seconds`` or ``now`` is no finite number, or looks like milliseconds.

        Example::

            AuthToken.expiring_in(answer["access_token"], answer["expires_in"])
        """
        secret = _as_secret(secret)
        lifetime = check_seconds("seconds", seconds, minimum=-math.inf)
        start = check_instant("now", now)
        if start is None:
            from ._clock import wall_now  # not above: this module needs no Trio

            start = wall_now()
        if abs(start + lifetime) > _LATEST:
            raise ValueError(f"seconds must be a lifetime in seconds, but {_shown(seconds)} looks like milliseconds")
        return cls(secret, start + lifetime)


def _shown_value(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, (Secret, AuthToken)) else f"<{type(value).__name__}>"


@final
@attrs.frozen
class Lease(Generic[T_co]):
    """A value with what its owner knows about it.

    Give it to ``refresh(stale=...)`` when the value was rejected: it is compared by its generation, so values need
    not be comparable. Its ``repr`` shows the type of a value only.

    Attributes:
      value: The value.
      generation: A number of the owner that grows with each value kept and with each ``clear()``.
      issued_at: The instant (POSIX seconds) from which its life counts.
      expires_at: The instant from which on it is no longer good; None: it never expires.
    """

    value: T_co = attrs.field(repr=_shown_value)
    generation: int
    issued_at: float
    expires_at: float | None
