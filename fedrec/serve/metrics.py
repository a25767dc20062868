"""The figures of the service, for Prometheus. Several processes write into one folder and are added up."""

from __future__ import annotations

import os
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["MULTIPROCESS", "Metrics"]

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""Where processes meet; prometheus_client reads it when it is imported."""
Mode = Literal["max", "livesum", "mostrecent"]
SECONDS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """What is counted. No label holds an id, a word or a name but a merchant's public one."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by route and status.", "route", "status")
        self.seconds = Histogram(
            "request_seconds", "From the head of a request to its answer.", ["route"],
            namespace="fedrec", registry=self._registry, buckets=SECONDS,
        )  # fmt: skip
        self.answers = self._counter("answers", "Lists by what made them.", "merchant", "source")
        self.fallbacks = self._counter("fallbacks", "Lists that fell back on popularity, or on nothing.", "merchant")
        self.feedback = self._counter("feedback_events", "Feedback events by whether they were new.", "merchant", "result")
        self.swaps = self._counter("swaps", "Changes on disk that were loaded, or could not be.", "merchant", "result")
        when = "When a version was loaded last; the newest one answers."
        self.loaded = self._newest("model_loaded_timestamp_seconds", when, "merchant", "model")
        self.data = self._newest("data_timestamp_seconds", "When the newest of the loaded files was written.", "merchant")
        self.failing = self._newest("swap_failing", "1 while what is on disk cannot be loaded.", "merchant", mode="mostrecent")
        alarm = "1 where a figure of drift is over its threshold in the settings."
        self.drift_alarm = self._newest("drift_alarm", alarm, "merchant", "figure", mode="mostrecent")
        self.drift = self._newest("drift", "The figures, where the settings say so.", "merchant", "figure", mode="mostrecent")
        self.drift_measured = self._newest("drift_measured_timestamp_seconds", "When drift was measured last.", "merchant")
        self.waiting = self._newest("waiting", "Requests that wait for the thread that ranks.", mode="livesum")

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, namespace="fedrec", registry=self._registry)

    def _newest(self, name: str, what: str, *labels: str, mode: Mode = "max") -> Gauge:
        return Gauge(name, what, labels, namespace="fedrec", registry=self._registry, multiprocess_mode=mode)

    def text(self) -> bytes:
        """In Prometheus' format; of all processes, where there are several."""
        if MULTIPROCESS not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)
