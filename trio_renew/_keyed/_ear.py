"""A member's part on the bus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ._roster import Message

if TYPE_CHECKING:
    from ._member import Member
    from ._roster import What

__all__ = ("Ear",)


def _names_itself(key: object) -> bool:
    """Whether a key that has travelled can be the key of anything: NaN, for one, differs from itself."""
    if isinstance(key, tuple):
        return all(map(_names_itself, cast("tuple[object, ...]", key)))
    return bool(key == key)


class Ear:
    """What the bus calls; see :class:`~trio_renew.Listener`."""

    __slots__ = ("_member",)

    def __init__(self, member: Member[Any]) -> None:
        self._member = member

    @property
    def name(self) -> str:
        """The name that belongs together."""
        return self._member._owner.name or ""

    def invalidated(self, what: What, key: object) -> None:
        """Somebody else has dropped something."""
        try:
            hash(key)
            exact = _names_itself(key)
        except Exception:
            # Not hashable, or nested too deeply: whatever it is, it is not lost.
            exact = False
        if not exact:
            what, key = "all", None
        self._member._hear(Message(what, key, False))

    def missed(self) -> None:
        """Somebody else may have dropped anything."""
        self._member._hear(Message("all", None, False))

    def failed(self, error: Exception) -> None:
        """The bus is out of order."""
        self._member._bus_failed(error)
