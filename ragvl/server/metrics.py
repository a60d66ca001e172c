"""What `/metrics` says, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

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
        self._registry = CollectorRegistry()
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
