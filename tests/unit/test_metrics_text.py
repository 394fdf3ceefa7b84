"""The text of a reading: the same as prometheus_client's; and the buckets: exact sums of the engines' own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from tests.support.scrapes import Scrape

from hsmcore._native import Histogram
from hsmcore.metrics.catalog import METRICS
from hsmcore.metrics.prometheus import ManagerCollector
from hsmcore.metrics.reading import BOUNDS, Buckets, Reading, TimeSlice
from hsmcore.metrics.text import OPENMETRICS, TEXT, content_type, encode

TIMES = st.one_of(st.integers(0, 1 << 36), st.sampled_from([int(bound * 1e9) + d for bound in BOUNDS for d in (0, 1)]))
LABEL = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


def buckets(times):
    histogram = Histogram()
    for ns in times:
        histogram.add(ns)
    return Buckets.of(histogram.octaves(), histogram.sum)


@st.composite
def readings(draw):
    reading = Reading()
    for metric in draw(st.lists(st.sampled_from(METRICS), unique=True)):
        rows = draw(st.lists(st.tuples(*[LABEL] * len(metric.labels)), unique=True, max_size=3))
        for labels in rows:
            if metric.kind == "histogram":
                reading.add(metric, buckets(draw(st.lists(TIMES, max_size=5))), *labels)
            else:
                reading.add(metric, draw(st.one_of(st.integers(0, 1 << 53), st.floats(0, 1e15))), *labels)
    return reading


@given(st.lists(TIMES, max_size=40))
def test_each_bucket_counts_exactly_what_is_not_longer_than_its_bound(times):
    found = buckets(times)
    assert found.counts == [sum(ns <= round(bound * 1e9) for ns in times) for bound in BOUNDS]
    assert found.total == len(times)
    assert found.seconds == sum(times) / 1e9


@given(readings())
def test_both_formats_are_prometheus_client_s(reading):
    registry = CollectorRegistry()
    registry.register(ManagerCollector(lambda: reading))
    theirs = Scrape(generate_latest(registry))
    ours = Scrape(encode(reading, TEXT, TimeSlice()))
    assert (ours.samples, ours.kinds) == (theirs.samples, theirs.kinds)
    theirs = Scrape(generate_openmetrics(registry), parse_openmetrics)
    ours = Scrape(encode(reading, OPENMETRICS, TimeSlice()), parse_openmetrics)
    assert (ours.samples, ours.kinds) == (theirs.samples, theirs.kinds)


def test_registering_reads_nothing_and_scraping_does():
    reads = []

    def read():
        reads.append(1)
        return Reading()

    registry = CollectorRegistry()
    registry.register(ManagerCollector(read))
    assert reads == []
    assert generate_latest(registry) == b""
    assert reads == [1]


def test_the_accept_header_decides():
    assert content_type(None) == content_type("*/*") == content_type("text/plain") == TEXT
    prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    assert content_type(prometheus) == OPENMETRICS
    assert content_type("application/openmetrics-text; q=0, text/plain") == TEXT


def test_names_follow_the_conventions():
    for metric in METRICS:
        assert metric.name.startswith("hsmcore_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert (metric.kind == "histogram") <= metric.name.endswith("_seconds")
        assert metric.help.endswith(".")
    assert len({metric.name for metric in METRICS}) == len(METRICS)
