"""What `/metrics` says, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from ragvl.prefix_cache.statistics import TierStatistics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PAIRS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server; each server has a registry of its own. Thread-safe.

    None of the labels holds what a client sent: a route is its template.

    Attributes:
        requests: answered, by route, method and status.
        request_seconds: from a request's headers to the end of its answer, by route.
        in_flight: requests that are being answered.
        refused: pairs and documents that found no room, by reason.
        queue_seconds: how long work waited for the model.
        pass_seconds: how long the model took for a pass, by its kind: score, warm, retrieve, ...
        pass_pairs: how many pairs were in one.
        pairs: scored.
        prompt_tokens: of these, by whether they were cached or computed.
        prefixes_built: documents whose prefix was computed.
        out_of_memory: passes that memory ran out in, and that were halved.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # when a counter was made: a line for each, of use to few
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = self._counter("requests", "Answers.", "route", "method", "status")
        self.request_seconds = self._histogram(
            "request_seconds",
            "From a request's headers to the end of its answer.",
            _SECONDS,
            "route",
        )
        self.in_flight = Gauge(
            "ragvl_requests_in_flight", "Requests being answered.", registry=self._registry
        )
        self.refused = self._counter("refused", "Requests that were refused.", "reason")
        self.queue_seconds = self._histogram("queue_seconds", "Waiting for the model.", _SECONDS)
        self.pass_seconds = self._histogram(
            "pass_seconds", "One pass of the model.", _SECONDS, "kind"
        )
        self.pass_pairs = self._histogram("pass_pairs", "Pairs in one pass.", _PAIRS)
        self.pairs = self._counter("pairs", "Pairs scored.")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.", "state")
        self.prefixes_built = self._counter("prefixes_built", "Prefixes computed.")
        self.out_of_memory = self._counter("out_of_memory", "Passes that memory ran out in.")

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Has `/metrics` say what `value` returns when it is asked.

        Args:
            name: of the gauge, without the prefix `ragvl_`.
            help_text: what it is.
            value: quick, and safe to call from any thread.
        """
        Gauge(f"ragvl_{name}", help_text, registry=self._registry).set_function(value)

    def watch_tiers(self, statistics: Callable[[], Mapping[str, TierStatistics]]) -> None:
        """Has `/metrics` say what the tiers of the prefix cache count; `statistics` reads it."""
        self._registry.register(_Tiers(statistics))

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"ragvl_{name}", help_text, labels, registry=self._registry)

    def _histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"ragvl_{name}", help_text, labels, buckets=buckets, registry=self._registry
        )


class _Tiers(Collector):
    """Figures of the prefix cache, by tier."""

    def __init__(self, statistics: Callable[[], Mapping[str, TierStatistics]]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        tiers = self._statistics()
        held = GaugeMetricFamily("ragvl_cache_bytes", "Bytes that a tier holds.", labels=["tier"])
        for tier, counted in tiers.items():
            held.add_metric([tier], counted.bytes)
        yield held
        for name, help_text in (
            ("hits", "Records found in a tier."),
            ("misses", "Records looked for in a tier in vain."),
            ("evictions", "Records removed from a tier to make room."),
            ("errors", "Damaged files and failures of a tier."),
        ):
            family = CounterMetricFamily(f"ragvl_cache_{name}", help_text, labels=["tier"])
            for tier, counted in tiers.items():
                family.add_metric([tier], getattr(counted, name))
            yield family
