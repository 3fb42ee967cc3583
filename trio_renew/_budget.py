"""A budget for fetches that many share: so many per window, and waiting callers before background work.

Invariants:

* One fetch spends one :meth:`acquire`, or none where it is refused.
* A store that cannot be asked lets the fetch through: it limits fetches, it does not forbid them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import attrs

from ._ask import StoreDown, check_methods, check_name

if TYPE_CHECKING:
    from ._ask import Ask
    from .abc import AdaptiveRateLimitStore, Priority

__all__ = ("Budget", "spend")


def _check_store(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_methods(attribute.name, "an AdaptiveRateLimitStore", value, "acquire", "get_wait_time")


def _check_resource(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_name(attribute.name, value)


@final
@attrs.frozen(eq=False)
class Budget:
    """How many fetches a source may see, from all who spend of the same store and resource.

    Each fetch spends one: as a ``"user"`` where a caller waits for it (opening and ``refresh()`` too), as
    ``"background"`` where it renews what is still good. A background refresh that is refused is put off until it may
    be allowed; a caller that is refused gets :class:`~trio_renew.BudgetExhausted`, or the expired value where
    ``serve_expired_for`` or ``leeway`` allows it. A refusal is no failure of the source: neither the breaker nor the
    backoff moves. A value that another process has fetched (see :class:`Share`) costs nothing.

    When the store cannot be asked (each call has 5 s, and half of what is left of ``fetch_timeout``), the fetch goes
    through, and ``StorageFailed`` says so.

    Args:
      adaptive_store: The limit, such as the ``adaptive`` of a store engine.
      resource: Its name in that store, a non-empty text: who uses the same one shares it.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: ``resource`` is empty.

    Example::

        async with open_redis_stores("redis://localhost") as stores:
            budget = Budget(stores.adaptive, "auth.example.com")
            async with open_provider(mint, budget=budget) as provider:
                ...
    """

    adaptive_store: AdaptiveRateLimitStore = attrs.field(validator=_check_store)
    resource: str = attrs.field(validator=_check_resource)


async def spend(budget: Budget, priority: Priority, ask: Ask) -> float | None:
    """Spend one fetch; gives None, or where it is refused the seconds until one may be allowed."""
    try:
        if await ask(budget.adaptive_store, "acquire", budget.resource, priority):
            return None
        wait: float = await ask(budget.adaptive_store, "get_wait_time", budget.resource, priority)
    except StoreDown:
        return None  # noqa: ASYNC910 - a store that is down may not even have been asked
    return max(0.0, wait)
