import pytest

from gateway.observe.metrics.families import BUILD, LAG, RELOADS, Family
from gateway.observe.metrics.observer import Metrics
from gateway.observe.metrics.series import Histogram
from gateway.observe.metrics.text import head, labelled, line, slices, wants_openmetrics
from tests.observe.metrics.reading import FAMILIES, Clock, key, outcome, page, samples, tried

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ([], False),
        (["*/*"], False),
        (["text/plain"], False),
        (["text/html", "*/*"], False),
        (["application/openmetrics-text"], True),
        (["Application/OpenMetrics-Text; Version=1.0.0"], True),
        ([PROMETHEUS_2], True),
        ([PROMETHEUS_3], True),
        (["text/plain", "application/openmetrics-text"], True),
        (["text/plain;q=0.9, application/openmetrics-text;q=0.5"], False),
        (["application/openmetrics-text;q=0"], False),
        (["application/openmetrics-text;q=nonsense"], False),
        (["application/openmetrics-text;version=2.0.0"], False),
        (["application/openmetrics-text;version=1.0.x"], False),
    ],
)
def test_accept_chooses_the_format(accept: list[str], openmetrics: bool) -> None:  # noqa: FBT001 - an expectation
    assert wants_openmetrics(accept) is openmetrics


def test_of_a_long_accept_the_beginning_counts() -> None:
    """Each of its parts cost a microsecond: a head of four million held up the loop for seconds."""
    assert wants_openmetrics([PROMETHEUS_2, *[","] * 2000])
    assert not wants_openmetrics([*["," * 32_000] * 120, PROMETHEUS_2])


def test_both_formats_tell_the_same() -> None:
    metrics = Metrics(Clock())
    metrics(outcome(tried("a", "stalled"), tried("b", rescue="replay"), stream=True, first_content=3.0, fallback=True))
    metrics.lag.seen.observe(0.5)
    plain = samples(page(metrics.told()))
    assert len(plain) > 40
    assert samples(page(metrics.told(), openmetrics=True), openmetrics=True) == plain


def test_names_are_written_as_each_format_wants_them() -> None:
    tells = RELOADS.tells
    assert head(RELOADS, openmetrics=False).splitlines() == [
        f"# HELP gateway_config_reloads_total {tells}",
        "# TYPE gateway_config_reloads_total counter",
    ]
    assert head(RELOADS, openmetrics=True).splitlines() == [
        f"# HELP gateway_config_reloads {tells}",
        "# TYPE gateway_config_reloads counter",
    ]
    assert head(BUILD, openmetrics=False).endswith("# TYPE gateway_build_info gauge\n")
    assert head(BUILD, openmetrics=True).endswith("# TYPE gateway_build info\n")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_metric_keeps_prometheus_conventions(family: Family) -> None:
    assert family.name.startswith("gateway_")
    assert family.name.endswith("_total") is (family.kind == "counter")
    assert family.name.endswith("_info") is (family.kind == "info")
    assert bool(family.bounds) is (family.kind == "histogram")
    assert list(family.bounds) == sorted(set(family.bounds))
    assert family.tells.endswith(".")
    assert not set(family.tells) & set('\\"\n')
    assert not {"le", "quantile"} & set(family.labels)


def test_metrics_have_different_names() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)


def test_a_histogram_counts_a_bound_into_its_bucket() -> None:
    histogram = Histogram(LAG)
    for value in (0.0, 0.001, 0.0011, 2.5, 99.0):
        histogram.observe(value)
    found = samples(head(LAG, openmetrics=False) + histogram.text(LAG, ""))
    name = LAG.name
    assert found[key(f"{name}_bucket", le="0.001")] == 2
    assert found[key(f"{name}_bucket", le="0.0025")] == 3
    assert found[key(f"{name}_bucket", le="1.0")] == 3
    assert found[key(f"{name}_bucket", le="2.5")] == 4
    assert found[key(f"{name}_bucket", le="+Inf")] == found[key(f"{name}_count")] == 5
    assert found[key(f"{name}_sum")] == pytest.approx(101.5021)


def test_much_is_written_in_slices_that_begin_at_a_line() -> None:
    long = line(RELOADS, labelled(("result",), ("x" * 1000,)), 1)
    written = list(slices([(RELOADS, [long] * 1000), (BUILD, [""] * 5000)], b"end", openmetrics=False))
    assert 10 < len(written) < 40
    assert max(map(len, written)) < 80_000
    assert all(part.startswith((b"#", b"gateway_", b"end")) for part in written if part)
    assert b"".join(written).count(b"\n") == 1004
    assert written[-1].endswith(b"end")


def test_what_is_no_unicode_is_replaced() -> None:
    text = line(RELOADS, labelled(("result",), ("\ud800",)), 1)
    assert b"".join(slices([(RELOADS, [text])], b"", openmetrics=False)).endswith(b'{result="?"} 1\n')
