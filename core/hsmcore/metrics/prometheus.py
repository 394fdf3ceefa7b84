"""The metrics as a collector of prometheus_client, for an application's own registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from hsmcore.metrics.catalog import METRICS, Metric
from hsmcore.metrics.reading import BOUNDS, Buckets, Reading

_LE: Final = tuple(map(repr, BOUNDS))
_FAMILIES: Final[dict[str, Callable[..., Family]]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class ManagerCollector(Collector):
    """Reads the metrics at each scrape, in the thread of the scrape."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read

    def describe(self) -> Iterator[Family]:
        """Yield the names only, so that registration reads nothing."""
        for metric in METRICS:
            yield _family(metric)

    def collect(self) -> Iterator[Family]:
        """Yield the present values."""
        reading = self._read()
        for metric in METRICS:
            family = _family(metric, reading.labels)
            for labels, value in reading.samples.get(metric, ()):
                if isinstance(value, Buckets):
                    counts = [*zip(_LE, value.counts, strict=True), ("+Inf", value.total)]
                    family.add_metric(labels, counts, value.seconds)  # type: ignore[attr-defined]  # a histogram's
                else:
                    family.add_metric(labels, value)  # type: ignore[attr-defined]  # a counter's or a gauge's
            if family.samples:
                yield family


def _family(metric: Metric, first: tuple[str, ...] = ()) -> Family:
    return _FAMILIES[metric.kind](metric.name, metric.help, labels=first + metric.labels)
