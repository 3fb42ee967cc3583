"""What OpenTelemetry gets to see: with its real SDK, in memory."""

from __future__ import annotations

import pytest
import trio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from trio_renew import (
    AuthToken,
    BreakerChanged,
    BreakerPolicy,
    Cleared,
    Closed,
    FetchAbandoned,
    FetchFailed,
    FetchStarted,
    FetchSucceeded,
    HalfOpen,
    Open,
    OwnerClosed,
    ServedExpired,
    StorageFailed,
    open_provider,
)
from trio_renew.integrations.otel import otel_observer


class Sink:
    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])
        self.tracer = self.tracers.get_tracer("test")
        self.observe = otel_observer(meter=self.meters.get_meter("test"), tracer=self.tracer)

    def points(self):
        data = self.reader.get_metrics_data()
        return {
            (metric.name, tuple(sorted(point.attributes.items()))): getattr(point, "value", None)
            if hasattr(point, "value")
            else point.sum
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }


@pytest.fixture
def sink():
    sink = Sink()
    yield sink
    sink.meters.shutdown()
    sink.tracers.shutdown()


NAME = ("name", "n")


@pytest.mark.parametrize(
    ("event", "points"),
    [
        (FetchStarted("initial", name="n"), {}),
        (Cleared(1, name="n"), {}),
        (OwnerClosed(name="n"), {}),
        (
            FetchSucceeded("initial", 1.5, 60.0, 1, name="n"),
            {
                ("trio_renew.fetches", (NAME, ("outcome", "succeeded"), ("reason", "initial"))): 1,
                ("trio_renew.fetch.duration", (NAME, ("outcome", "succeeded"), ("reason", "initial"))): 1.5,
                ("trio_renew.value.remaining", (NAME,)): 60.0,
            },
        ),
        (
            FetchFailed("aging", 0.5, ValueError("opaque"), None, None, name="n"),
            {
                ("trio_renew.fetches", (NAME, ("outcome", "failed"), ("reason", "aging"))): 1,
                ("trio_renew.fetch.duration", (NAME, ("outcome", "failed"), ("reason", "aging"))): 0.5,
            },
        ),
        (
            FetchAbandoned("forced", name="n"),
            {("trio_renew.fetches", (NAME, ("outcome", "abandoned"), ("reason", "forced"))): 1},
        ),
        (BreakerChanged(Closed(4), Open(5.0), name="n"), {("trio_renew.breaker.state", (NAME,)): 2}),
        (BreakerChanged(Open(5.0), HalfOpen(), name="n"), {("trio_renew.breaker.state", (NAME,)): 1}),
        (BreakerChanged(HalfOpen(), Closed(0), name="n"), {("trio_renew.breaker.state", (NAME,)): 0}),
        (ServedExpired(5.0, name="n"), {("trio_renew.served_expired", (NAME,)): 1}),
        (
            StorageFailed("set", OSError("opaque"), name="n"),
            {("trio_renew.storage.failures", (NAME, ("operation", "set"))): 1},
        ),
        (ServedExpired(5.0), {("trio_renew.served_expired", (("name", ""),)): 1}),
    ],
)
def test_metrics(sink, event, points):
    sink.observe(event)
    assert sink.points() == points


def test_a_success_is_a_span(sink):
    sink.observe(FetchSucceeded("aging", 1.5, 60.0, 7, name="n", key="opaque"))
    (span,) = sink.exporter.get_finished_spans()
    assert span.name == "trio_renew.fetch"
    assert span.parent is None
    assert span.end_time - span.start_time == 1_500_000_000
    assert dict(span.attributes) == {
        "trio_renew.name": "n",
        "trio_renew.reason": "aging",
        "trio_renew.outcome": "succeeded",
        "trio_renew.generation": 7,
    }
    assert span.status.status_code is StatusCode.UNSET
    assert "opaque" not in span.to_json()


def test_a_failure_is_a_span_without_a_text(sink):
    sink.observe(FetchFailed("aging", 0.5, ValueError("opaque"), 5.0, None))
    (span,) = sink.exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "builtins.ValueError"
    assert "opaque" not in span.to_json()


async def test_a_provider_tells_it(sink, autojump_clock):
    down = False

    async def mint() -> AuthToken:
        await trio.sleep(0.5)
        if down:
            raise ValueError("opaque")
        return AuthToken.expiring_in("opaque", 100.0)

    with sink.tracer.start_as_current_span("request"):
        async with open_provider(mint, observe=sink.observe, name="n", breaker=BreakerPolicy(threshold=1)) as provider:
            down = True
            await trio.sleep(200.0)
            with pytest.raises(ValueError):
                await provider.get()
    points = sink.points()
    assert points["trio_renew.fetches", (NAME, ("outcome", "succeeded"), ("reason", "initial"))] == 1
    assert points["trio_renew.fetches", (NAME, ("outcome", "failed"), ("reason", "expired"))] == 1
    assert points["trio_renew.breaker.state", (NAME,)] == 2
    spans = [span for span in sink.exporter.get_finished_spans() if span.name == "trio_renew.fetch"]
    assert [span.parent for span in spans] == [None, None]
    assert [round((span.end_time - span.start_time) / 1e9, 3) for span in spans] == [0.5, 0.5]


def test_by_default_it_goes_where_the_application_says():
    # Nothing is set up here, so nothing happens.
    otel_observer()(FetchSucceeded("aging", 1.5, 60.0, 7, name="n"))
