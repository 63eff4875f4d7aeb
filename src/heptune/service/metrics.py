"""What the server did and does, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Receive, Scope, Send

from heptune.service.fleet import Fleet

# From a label of a short text to a long reply on a small machine, in seconds.
BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Requests by route and status, how long they took, and what the engines do."""

    def __init__(self, fleet: Fleet) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "heptune_requests", "Requests, by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "heptune_request_seconds",
            "From a request to the end of its answer.",
            ["route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_OfEngines(fleet))

    def text(self) -> bytes:
        """All of it, in the format that Prometheus reads."""
        return generate_latest(self.registry)


class Counted:
    """Counts requests and measures how long each takes, to the end of its answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through and looks on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), "none"

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "none")  # never what the client wrote
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - began)


class _OfEngines(Collector):
    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def collect(self) -> Iterable[Metric]:
        """One figure for each base in memory."""
        gauges = {
            "active": ("Replies that are being said or whose prompt is being read.", lambda e: len(e.active)),
            "waiting": ("Replies that wait for a place.", lambda e: len(e.waiting)),
            "slots_bytes": ("Keys and values of replies.", lambda e: e.cache_bytes),
            "kept_bytes": ("Keys and values of beginnings that are kept.", lambda e: e.kept.size_bytes),
        }
        counters = {
            "steps": "Steps.",
            "prompt_tokens": "Tokens of prompts.",
            "cached_tokens": "Tokens of prompts that were there already.",
            "said_tokens": "Tokens that were said.",
            "finished": "Replies that came to their end.",
            "cancelled": "Replies that nobody waited for any more.",
            "failed": "Replies that could not be made.",
        }
        engines = {str(number): engine for number, engine in enumerate(self.fleet.engines)}
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(f"heptune_{name}", text, labels=["engine"])
            for number, engine in engines.items():
                gauge.add_metric([number], value(engine))
            yield gauge
        for name, text in counters.items():
            counter = CounterMetricFamily(f"heptune_{name}", text, labels=["engine"])
            for number, engine in engines.items():
                counter.add_metric([number], getattr(engine.counts, name))
            yield counter
