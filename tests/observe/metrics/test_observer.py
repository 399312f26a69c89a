import pytest

from gateway.execution.outcome import Usage
from gateway.observe.metrics.observer import Metrics
from gateway.routing.health import ProbeResult
from tests.observe.metrics.reading import Clock, key, of, outcome, page, read, samples, tried
from tests.routing.planning import serve, snapshot

HOUR = 3600.0
TWO = """\
models:
  - {id: m, route: [{name: a, base_url: "http://a"}, {name: b, base_url: "http://b"}]}
  - {id: other, base_url: "http://b"}
"""
ONE = """\
models:
  - {id: m, route: [{name: b, base_url: "http://b"}]}
  - {id: other, base_url: "http://b"}
"""
OTHER = 'models: [{id: other, base_url: "http://b"}]'


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> Metrics:
    return Metrics(clock)


def adopt(metrics: Metrics, models: str) -> None:
    metrics.adopted(snapshot(serve(models)))


def test_a_request_is_counted_where_it_was_answered(metrics: Metrics) -> None:
    metrics(outcome(tried("a")))
    metrics(outcome(tried("a")))
    metrics(outcome(tried("a"), status=400))
    assert read(metrics, "gateway_requests") == {
        of("a", "requests_total", status="2xx"): 2,
        of("a", "requests_total", status="4xx"): 1,
    }
    assert read(metrics, "gateway_attempts") == {of("a", "attempts_total", result="ok"): 3}


def test_a_model_that_is_not_configured_is_unknown(metrics: Metrics) -> None:
    for name in ("x", "y", "unknown"):
        metrics(outcome(model=name, model_id=None, status=404, failure="model_not_found"))
    nowhere = {"group": "none", "model": "unknown"}
    assert read(metrics, "gateway_requests") == {
        of("none", "requests_total", **nowhere, status="4xx"): 3,
        of("none", "requests_failed_total", **nowhere, status="4xx", failure="model_not_found"): 3,
    }


def test_a_request_that_nobody_answered_counts_for_its_model(metrics: Metrics) -> None:
    attempts = (tried("a", "connect_refused"), tried("b", "server_error", "remote", status=500))
    metrics(outcome(*attempts, served_model=None, status=502, failure="connect_refused"))
    assert read(metrics, "gateway_requests") == {
        of("none", "requests_total", "none", status="5xx"): 1,
        of("none", "requests_failed_total", "none", status="5xx", failure="connect_refused"): 1,
    }
    assert read(metrics, "gateway_attempts") == {
        of("a", "attempts_total", result="connect_refused"): 1,
        of("b", "attempts_total", "remote", result="server_error"): 1,
    }
    assert read(metrics, "gateway_fallbacks") == {}


def test_a_stream_that_broke_is_a_2xx_that_failed(metrics: Metrics) -> None:
    metrics(outcome(tried("a", "stalled"), stream=True, failure="stalled", first_content=10.0))
    assert read(metrics, "gateway_requests_") == {
        of("a", "requests_total", status="2xx"): 1,
        of("a", "requests_failed_total", status="2xx", failure="stalled"): 1,
    }


def test_a_fallback_tells_from_where_to_where_and_why(metrics: Metrics) -> None:
    attempts = (tried("a", "connect_refused"), tried("b", "server_error"), tried("c", group="remote", model="n"))
    metrics(outcome(*attempts, fallback=True))
    way = {"from_model": "m", "from_deployment": "a", "to_model": "n", "to_deployment": "c"}
    assert read(metrics, "gateway_fallbacks") == {
        key("gateway_fallbacks_total", **way, reason="connect_refused"): 1,
    }
    assert read(metrics, "gateway_requests") == {of("c", "requests_total", "remote", "n", status="2xx"): 1}


def test_rescues_are_counted_by_kind_and_result(metrics: Metrics) -> None:
    broken, cut = tried("a", "cut_answer"), tried("b", "stalled", rescue="continue")
    saved = outcome(broken, cut, tried("c", rescue="replay"), stream=True, lost=Usage(10, 5))
    soon = outcome(broken, tried("c", rescue="replay"), stream=True, lost=Usage(1, None))
    lost = outcome(broken, cut, stream=True, failure="cut_answer")
    for each in (saved, soon, lost):
        metrics(each)
    assert read(metrics, "gateway_rescues") == {
        of("b", "rescues_total", kind="continue", result="stalled"): 2,
        of("c", "rescues_total", kind="replay", result="rescued"): 2,
    }
    assert [each.rescue for each in (saved, soon, lost)] == ["replay", "replay", None]
    assert read(metrics, "gateway_lost") == {
        key("gateway_lost_tokens_total", model="m", kind="prompt"): 11,
        key("gateway_lost_tokens_total", model="m", kind="completion"): 5,
    }


def test_tokens_and_malformed_events_are_summed(metrics: Metrics) -> None:
    metrics(outcome(tried(), usage=Usage(100, 20, 64, 8), malformed_events=2))
    metrics(outcome(tried(), usage=Usage(7)))
    found = read(metrics)
    assert [found[of("a", f"{kind}_tokens_total")] for kind in ("prompt", "completion", "cached", "reasoning")] == [
        107,
        20,
        64,
        8,
    ]
    assert found[of("a", "malformed_events_total")] == 2


def histogram(metrics: Metrics, name: str) -> tuple[float, float, str | None]:
    """Give a histogram's count, its sum, and the bound of the bucket that its one value is in."""
    found = read(metrics, f"gateway_{name}")
    buckets = [name.partition("le=")[2].partition(",")[0] for name in found if "_bucket" in name]
    count, total = found.get(of("a", f"{name}_count"), 0), found.get(of("a", f"{name}_sum"), 0)
    return count, total, min(buckets, key=float, default=None)


def test_times_are_in_seconds(metrics: Metrics) -> None:
    metrics(outcome(tried(), stream=True, first_content=500.0, duration=2500.0, usage=Usage(1, 41)))
    assert histogram(metrics, "time_to_first_token_seconds") == (1, 0.5, "0.5")
    assert histogram(metrics, "request_duration_seconds") == (1, 2.5, "2.5")
    assert histogram(metrics, "output_tokens_per_second") == (1, 20, "20.0")


def test_an_answer_in_one_piece_has_no_first_token(metrics: Metrics) -> None:
    metrics(outcome(tried(), first_content=1990.0, usage=Usage(1, 41)))
    assert histogram(metrics, "time_to_first_token_seconds") == (0, 0, None)
    assert histogram(metrics, "request_duration_seconds") == (1, 2, "2.5")
    assert histogram(metrics, "output_tokens_per_second") == (1, 20.5, "30.0")


@pytest.mark.parametrize(
    ("usage", "content"), [(None, 5.0), (Usage(3), 5.0), (Usage(3, 0), None), (Usage(3, 1), 5.0), (Usage(3, 9), 2000.0)]
)
def test_what_has_no_speed_is_not_counted_as_slow(metrics: Metrics, usage: Usage | None, content: float | None) -> None:
    metrics(outcome(tried(), stream=True, first_content=content, usage=usage))
    assert histogram(metrics, "output_tokens_per_second") == (0, 0, None)
    assert histogram(metrics, "request_duration_seconds")[0] == 1


def test_what_is_configured_is_told_before_it_is_used(metrics: Metrics) -> None:
    adopt(metrics, TWO)
    found = samples(page(metrics.told()))
    assert found[of("a", "requests_total", "unlisted", status="2xx")] == 0
    assert found[of("b", "attempts_total", "unlisted", result="ok")] == 0
    assert found[of("a", "completion_tokens_total", "unlisted")] == 0
    assert not [name for name in found if "deployment=none" in name or ("_bucket" in name and "lag" not in name)]


def test_probes_are_counted_by_what_they_found(metrics: Metrics) -> None:
    found = [None, None, "timeout", "connect_refused", "status 503", "status 599"]
    for reason in found:
        metrics.probed("http://a", ProbeResult(reason))
    metrics.probed("http://a", ProbeResult("loading", loading=True))
    results = {"ok": 2, "timeout": 1, "connect_refused": 1, "server_error": 2, "loading": 1}
    assert read(metrics, "gateway_probes") == {
        key("gateway_probes_total", endpoint="http://a", result=result): count for result, count in results.items()
    }


def test_reloads_are_counted_by_result(metrics: Metrics) -> None:
    adopt(metrics, TWO)
    metrics.rejected()
    adopt(metrics, ONE)
    assert read(metrics, "gateway_config_reloads") == {
        key("gateway_config_reloads_total", result="accepted"): 2,
        key("gateway_config_reloads_total", result="rejected"): 1,
    }


def busy(metrics: Metrics) -> None:
    """Count something of everything that TWO configures."""
    first, second = tried("a", "stalled", "unlisted"), tried("b", group="unlisted")
    metrics(outcome(first, second, fallback=True))
    metrics(outcome(tried("a", group="unlisted")))
    metrics(outcome(failure="no_deployment", status=503))
    metrics.probed("http://a", ProbeResult())


def about(metrics: Metrics, *words: str) -> dict[str, float]:
    """Give what names all of these, zeros left out."""
    return {name: value for name, value in read(metrics).items() if all(word in name for word in words)}


def test_counters_outlive_a_reload(metrics: Metrics) -> None:
    adopt(metrics, TWO)
    busy(metrics)
    before = about(metrics, "_total", "model")
    adopt(metrics, TWO.replace("models:", "# changed\nmodels:"))
    assert before
    assert about(metrics, "_total", "model") == before


def test_what_is_removed_goes_away_after_an_hour(metrics: Metrics, clock: Clock) -> None:
    adopt(metrics, TWO)
    busy(metrics)
    adopt(metrics, ONE)
    clock.now += HOUR - 1
    assert about(metrics, "deployment=a,")
    assert about(metrics, "from_deployment=a,")
    assert about(metrics, "endpoint=http://a")
    clock.now += 1
    assert about(metrics, "deployment=a,") == {}
    assert about(metrics, "from_deployment=a,") == {}
    assert about(metrics, "endpoint=http://a") == {}
    assert about(metrics, "deployment=b,", "requests_total")
    assert about(metrics, "deployment=none,", "model=m", "requests_total")


def test_a_removed_model_goes_away_with_all_it_had(metrics: Metrics, clock: Clock) -> None:
    adopt(metrics, TWO)
    busy(metrics)
    metrics(outcome(model_id=None, model="x", status=404))
    adopt(metrics, OTHER)
    clock.now += HOUR
    assert about(metrics, "model=m") == {}
    assert about(metrics, "model=unknown", "requests_total")


def test_what_comes_back_within_the_hour_goes_on(metrics: Metrics, clock: Clock) -> None:
    adopt(metrics, TWO)
    busy(metrics)
    before = about(metrics, "_total", "model")
    adopt(metrics, ONE)
    clock.now += HOUR - 1
    adopt(metrics, TWO)
    clock.now += 2 * HOUR
    assert about(metrics, "_total", "model") == before


def test_what_comes_back_later_starts_anew(metrics: Metrics, clock: Clock) -> None:
    adopt(metrics, TWO)
    busy(metrics)
    adopt(metrics, ONE)
    clock.now += HOUR
    adopt(metrics, TWO)
    assert about(metrics, "deployment=a,") == {}
    metrics(outcome(tried("a", group="unlisted")))
    assert about(metrics, "deployment=a,", "requests_total") == {of("a", "requests_total", "unlisted", status="2xx"): 1}


def test_a_second_removal_does_not_make_the_hour_longer(metrics: Metrics, clock: Clock) -> None:
    adopt(metrics, TWO)
    busy(metrics)
    adopt(metrics, ONE)
    clock.now += HOUR / 2
    adopt(metrics, OTHER)
    clock.now += HOUR / 2
    assert about(metrics, "deployment=a,") == {}
    assert about(metrics, "deployment=b,", "requests_total")


def test_a_request_that_ends_after_its_deployment_is_gone_is_kept_for_an_hour(metrics: Metrics, clock: Clock) -> None:
    adopt(metrics, ONE)
    clock.now += HOUR
    metrics(outcome(tried("a", group="unlisted")))
    assert about(metrics, "deployment=a,", "requests_total")
    clock.now += HOUR
    assert about(metrics, "deployment=a,", "requests_total") == {}


def test_a_deployment_that_changes_groups_is_tracked_as_what_it_is_now(metrics: Metrics, clock: Clock) -> None:
    adopt(metrics, TWO)
    metrics(outcome(tried("a", group="local")))
    a, rest = ("m", "a", "unlisted"), [("m", "b", "unlisted"), ("other", "b:80", "unlisted")]
    assert metrics.tracked()[a] == 'model="m",deployment="a",group="unlisted"'
    assert list(metrics.tracked()) == [("m", "a", "local"), a, *rest]
    adopt(metrics, ONE)
    assert sorted(metrics.tracked()) == [("m", "a", "local"), a, *rest]
    clock.now += HOUR
    metrics.adopted(snapshot(serve(ONE)))
    assert list(metrics.tracked()) == rest


def test_unknown_models_are_kept_without_a_configuration(metrics: Metrics, clock: Clock) -> None:
    metrics(outcome(model_id=None, status=503, failure="no_configuration"))
    clock.now += 2 * HOUR
    assert about(metrics, "model=unknown", "requests_total")


def test_a_label_may_hold_anything(metrics: Metrics) -> None:
    odd = 'a"b\\c\nd é'
    metrics(outcome(tried(odd, model=odd)))
    assert read(metrics, "gateway_requests") == {of(odd, "requests_total", model=odd, status="2xx"): 1}


def test_series_made_beforehand_are_told_once_their_configuration_is_in_force(metrics: Metrics) -> None:
    adopt(metrics, ONE)
    metrics(outcome(tried("b")))
    new = snapshot(serve(TWO))
    metrics.prepare(new.catalogue)
    metrics(outcome(tried("a")))
    assert of("b", "requests_total", status="2xx") in read(metrics, "gateway_requests")
    metrics.adopted(new)
    assert read(metrics, "gateway_requests")[of("a", "requests_total", status="2xx")] == 1
    assert read(metrics, "gateway_requests")[of("b", "requests_total", status="2xx")] == 1


def test_series_made_for_a_configuration_that_another_overtook_are_made_anew(metrics: Metrics, clock: Clock) -> None:
    adopt(metrics, TWO)
    new = snapshot(serve(ONE))
    metrics.prepare(new.catalogue)
    ready = metrics._ready
    adopt(metrics, OTHER)
    metrics._ready = ready
    metrics.adopted(new)
    assert {key[:2] for key in metrics.tracked()} == {("m", "a"), ("m", "b"), ("other", "b:80")}
    clock.now += HOUR
    read(metrics, "gateway_requests")
    assert {key[:2] for key in metrics.tracked()} == {("m", "b"), ("other", "b:80")}
