"""What goes wrong, as types.

Invariants:

* Whatever this library raises on its own account is a :class:`RenewError`. What a fetch raises stays what it is;
  a closed owner is ``trio.ClosedResourceError``, nothing there yet is ``trio.WouldBlock``, a bad argument is a
  ``TypeError`` or ``ValueError``.
* Each one can be pickled and copied: its ``args`` are what its type is called with.
"""

from __future__ import annotations

from ._redact import redact

__all__ = (
    "BreakerOpen",
    "BudgetExhausted",
    "CredentialError",
    "FetchTimeout",
    "JobLost",
    "MintedTokenAlreadyExpired",
    "ReentrantFetchError",
    "RemoteFetchError",
    "RenewError",
    "StoreError",
    "Unconfigured",
)


class RenewError(Exception):
    """The base of this library's own errors."""


class CredentialError(RenewError):
    """There is no good value, and none could be fetched at this moment."""


class BreakerOpen(CredentialError):
    """The source has failed too often: it is left alone for a while, and there is nothing to serve.

    The last failure is its ``__cause__``.

    Attributes:
      retry_at: The instant (POSIX seconds) from which on the source is tried again.
    """

    retry_at: float

    def __init__(self, retry_at: float) -> None:
        super().__init__(retry_at)
        self.retry_at = retry_at

    def __str__(self) -> str:
        return f"the source has failed too often and is left alone until {self.retry_at:.3f} (POSIX seconds)"


class BudgetExhausted(CredentialError):
    """The budget that is shared with others allows no fetch at this moment, and there is nothing to serve.

    Attributes:
      retry_at: The instant (POSIX seconds) at which a fetch may be allowed again.
    """

    retry_at: float

    def __init__(self, retry_at: float) -> None:
        super().__init__(retry_at)
        self.retry_at = retry_at

    def __str__(self) -> str:
        return f"the budget allows no fetch before {self.retry_at:.3f} (POSIX seconds)"


class Unconfigured(CredentialError):
    """Something that is needed was not given.

    Attributes:
      field: The name of what is missing.
    """

    field: str

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field

    def __str__(self) -> str:
        return f"{self.field} is not configured"


class MintedTokenAlreadyExpired(CredentialError):
    """What was fetched had expired when it arrived."""


class FetchTimeout(RenewError, TimeoutError):
    """A fetch took longer than its ``fetch_timeout``; also a :class:`TimeoutError`."""


class ReentrantFetchError(RenewError):
    """A fetch asked for the very value that it is to fetch: it would have waited for itself."""


class StoreError(RenewError):
    """A store cannot do its work: it is down, does not answer, or cannot hold the value."""


class JobLost(RenewError):
    """The store is well, but the one who worked for the others is gone, or its outcome is no longer kept."""


class RemoteFetchError(RenewError):
    """A fetch failed in another process, or under another store object: what is known of its error.

    Attributes:
      type_name: The type of the original, as ``module.qualname``, such as ``"builtins.ValueError"``.
      message: The first 500 characters of the original's text, without what looks like a credential in them.

    Raises:
      TypeError: ``type_name`` or ``message`` is no ``str``.
    """

    type_name: str
    message: str

    def __init__(self, type_name: str, message: str) -> None:
        for name, value in (("type_name", type_name), ("message", message)):
            if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"{name} must be a str, not an object of type {type(value).__name__}")
        message = redact(message)
        super().__init__(type_name, message)
        self.type_name = type_name
        self.message = message

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}" if self.message else self.type_name
