"""Metrics and spans for OpenTelemetry (extra: ``trio_renew[otel]``).

Invariants:

* What is exported is what events say: names, reasons, durations, states and type names of errors. No value, no key,
  no text of an error.
* A span has no parent: a fetch is nobody's, though it may have begun while somebody's request was under way.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Status, StatusCode

from .._events import (
    BreakerChanged,
    FetchAbandoned,
    FetchFailed,
    FetchSucceeded,
    ServedExpired,
    StorageFailed,
)
from .._policy.breaker import Closed, HalfOpen

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

    from .._events import Event
    from .._policy.breaker import Breaker

__all__ = ("otel_observer",)

_SCOPE: Final = "trio_renew"


def _state(breaker: Breaker) -> int:
    if isinstance(breaker, Closed):
        return 0
    return 1 if isinstance(breaker, HalfOpen) else 2


def otel_observer(*, meter: Meter | None = None, tracer: Tracer | None = None) -> Callable[[Event], None]:
    """Make an ``observe=`` that exports what happens. One serves a whole application.

    Metrics, each with the owner's name as ``name``:

    ``trio_renew.fetches``
      Counter of ended fetches, by ``reason`` and ``outcome`` (``succeeded``, ``failed``, ``abandoned``).
    ``trio_renew.fetch.duration``
      Histogram of seconds, by the same but for abandoned ones.
    ``trio_renew.value.remaining``
      Gauge of the seconds that the held value has left, as of the last fetch. None for what never expires.
    ``trio_renew.breaker.state``
      Gauge: 0 closed, 1 half-open, 2 open.
    ``trio_renew.served_expired``
      Counter of values that were served past their end.
    ``trio_renew.storage.failures``
      Counter, by ``operation``.

    Each fetch that succeeded or failed is a span ``trio_renew.fetch`` without a parent.

    Args:
      meter: Where the metrics go; None: the meter of the global provider.
      tracer: Where the spans go; None: the tracer of the global provider.

    Example::

        open_provider(mint, observe=otel_observer(), name="billing-token")
    """
    meter = metrics.get_meter(_SCOPE) if meter is None else meter
    spans = trace.get_tracer(_SCOPE) if tracer is None else tracer
    fetches = meter.create_counter("trio_renew.fetches", "{fetch}", "Ended fetches")
    durations = meter.create_histogram("trio_renew.fetch.duration", "s", "How long fetches took")
    remaining = meter.create_gauge("trio_renew.value.remaining", "s", "Life of the held value at the last fetch")
    state = meter.create_gauge("trio_renew.breaker.state", "1", "0 closed, 1 half-open, 2 open")
    expired = meter.create_counter("trio_renew.served_expired", "{value}", "Values served past their end")
    failures = meter.create_counter("trio_renew.storage.failures", "{failure}", "Failed calls of storages and stores")

    def ended(event: FetchSucceeded | FetchFailed, attributes: dict[str, Any], outcome: str) -> None:
        """A fetch has ended: count it, and make the span of its time."""
        fetches.add(1, attributes)
        durations.record(event.duration, attributes)
        if event.remaining is not None:
            remaining.set(event.remaining, {"name": attributes["name"]})
        end = time.time_ns()
        begin = end - int(event.duration * 1e9)
        details: dict[str, Any] = {f"trio_renew.{key}": value for key, value in attributes.items()}
        if isinstance(event, FetchSucceeded):
            details["trio_renew.generation"] = event.generation
        else:
            details["error.type"] = f"{type(event.error).__module__}.{type(event.error).__qualname__}"
        span = spans.start_span("trio_renew.fetch", Context(), attributes=details, start_time=begin)
        if outcome == "failed":
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def observe(event: Event) -> None:
        """Turn one event into what OpenTelemetry counts and traces."""
        base = {"name": event.name or ""}
        if isinstance(event, FetchSucceeded):
            ended(event, {**base, "reason": event.reason, "outcome": "succeeded"}, "succeeded")
        elif isinstance(event, FetchFailed):
            ended(event, {**base, "reason": event.reason, "outcome": "failed"}, "failed")
        elif isinstance(event, FetchAbandoned):
            fetches.add(1, {**base, "reason": event.reason, "outcome": "abandoned"})
        elif isinstance(event, BreakerChanged):
            state.set(_state(event.new), base)
        elif isinstance(event, ServedExpired):
            expired.add(1, base)
        elif isinstance(event, StorageFailed):
            failures.add(1, {**base, "operation": event.operation})

    return observe
