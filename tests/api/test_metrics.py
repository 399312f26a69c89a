"""What the gateway tells Prometheus, over HTTP."""

from prometheus_client import CollectorRegistry, Gauge

from gateway import __version__
from gateway.execution.outcome import Usage
from tests.execution.support import CONTENT, DONE, FINISH, Running, ask, chain, running
from tests.fakes.client import get
from tests.fakes.upstream import Hang, Request, ScriptedUpstream, Send, Step, chunk, json_answer, sse, sse_head, status
from tests.observe.metrics.reading import FAMILIES, Samples, key, of, samples
from tests.running import Config, split, until

NAMES = ("prompt_tokens", "completion_tokens")
NOWHERE = "http://127.0.0.1:1"
USAGE = sse('{"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7}}')
STREAM: list[Step] = [Send(sse_head() + b"".join(map(chunk, (CONTENT, CONTENT, FINISH, USAGE, DONE))) + b"0\r\n\r\n")]
STATES = ("unknown", "up", "down", "loading")


def box(_: int, request: Request) -> list[Step]:
    return [Send(json_answer({}))] if request.target == "/health" else STREAM


async def scrape(gate: Running) -> Samples:
    answer = await gate.say(get("/metrics"))
    assert answer.status == 200
    return samples(answer.body.decode())


async def test_a_request_shows_in_every_way(config: Config) -> None:
    async with (
        ScriptedUpstream(box) as near,
        ScriptedUpstream(box) as far,
        running(
            config,
            {"m": {"near": near.url, "far": far.url}},
            local_deployment=split([near.url], "m"),
            remote_deployment=split([far.url], "m"),
            routing_parameter={"local_fraction": 0.75, "selection": "smooth"},
        ) as gate,
    ):
        for number in range(4):
            assert (await gate.say(ask(stream=True))).status == 200
            await gate.outcome(number + 1)
        found = await scrape(gate)
        assert found[of("near", "requests_total", status="2xx")] == 3
        assert found[of("far", "requests_total", "remote", status="2xx")] == 1
        assert found[of("near", "attempts_total", result="ok")] == 3
        assert found[of("near", "completion_tokens_total")] == 21
        assert found[of("near", "prompt_tokens_total")] == 33
        for name in ("request_duration_seconds", "time_to_first_token_seconds", "output_tokens_per_second"):
            assert found[of("near", f"{name}_count")] == 3
        assert found[of("near", "weight_configured_ratio")] == found[of("near", "weight_effective_ratio")] == 0.75
        assert found[of("far", "weight_configured_ratio", "remote")] == 0.25
        assert found[of("near", "weight_delivered_ratio")] == 0.75
        assert found[of("near", "attempts_in_flight")] == 0


async def test_a_count_of_an_upstream_that_cannot_be_is_as_none(config: Config) -> None:
    """A negative one used to make the counter go down, one of many digits made it deaf to the others."""
    told = [(-5, -7), (10**26, 10**26), (11, 7), (11, -7)]
    answers = [
        json_answer({"choices": [{"message": {"content": "a"}}], "usage": dict(zip(NAMES, counts, strict=True))})
        for counts in told
    ]
    async with (
        ScriptedUpstream(lambda number, _: [Send(answers[number])]) as box,
        running(config, {"m": chain(box.url)}) as gate,
    ):
        for number in range(len(told)):
            assert (await gate.say(ask())).status == 200
            await gate.outcome(number + 1)
        assert [each.usage for each in gate.outcomes] == [Usage(), Usage(), Usage(11, 7), Usage(11)]
        found = await scrape(gate)
        assert [found[of("a", f"{name}_total", "unlisted")] for name in NAMES] == [22, 7]


async def test_every_metric_is_there_and_no_other(config: Config) -> None:
    async with running(config, {"m": chain(NOWHERE)}) as gate:
        answer = await gate.say(get("/metrics"))
        told = [line.split()[2] for line in answer.body.decode().splitlines() if line.startswith("# TYPE gateway_")]
        assert sorted(told) == sorted(family.name for family in FAMILIES)


async def test_the_client_chooses_the_format(config: Config) -> None:
    async with running(config, {"m": chain(NOWHERE)}) as gate:
        plain = await gate.say(get("/metrics"))
        assert plain.head.get("content-type") == "text/plain; version=0.0.4; charset=utf-8"
        accept = [("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")]
        modern = await gate.say(get("/metrics", accept))
        assert modern.head.get("content-type") == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        names = {name.partition("{")[0] for name in samples(modern.body.decode(), openmetrics=True)}
        assert {"gateway_build_info", "process_cpu_seconds_total", "python_gc_collections_total"} <= names
        assert modern.body.endswith(b"\n# EOF\n")


async def test_a_head_request_has_no_body(config: Config) -> None:
    async with running(config, {"m": chain(NOWHERE)}) as gate, gate.client() as client:
        await client.send(get("/metrics").replace(b"GET", b"HEAD", 1))
        assert (await client.read_head()).status == 200
        await client.send(get("/health", [("connection", "close")]))
        assert (await client.read_answer()).json()["status"] == "ok"


async def test_what_is_under_way_is_told(config: Config) -> None:
    script = [Send(sse_head() + chunk(CONTENT)), Hang()]
    async with (
        ScriptedUpstream(script) as upstream,
        running(config, {"m": chain(upstream.url)}) as gate,
        gate.client() as client,
    ):
        await client.send(ask(stream=True))
        await client.read_head()
        found = await scrape(gate)
        assert found[of("a", "attempts_in_flight", "unlisted")] == 1
        assert found[key("gateway_upstream_connections")] == 1
        config.models(other=chain(upstream.url))
        await until(lambda: gate.gateway.manager.snapshot and gate.gateway.manager.snapshot.generation == 2)
        found = await scrape(gate)
        assert found[of("a", "attempts_in_flight", "unlisted")] == 1
        assert found[of("a", "attempts_in_flight", "unlisted", "other")] == 0
        assert of("a", "weight_effective_ratio", "unlisted") not in found


async def test_health_and_breakers_are_told(config: Config) -> None:
    def bad(_: int, request: Request) -> list[Step]:
        return [Send(status(503 if request.target == "/health" else 401, "No"))]

    async with (
        ScriptedUpstream(box) as good,
        ScriptedUpstream(bad) as down,
        running(config, {"m": chain(down.url, good.url)}) as gate,
    ):
        assert (await gate.say(ask(stream=True))).status == 200
        found = await scrape(gate)
        for state in ("closed", "open", "half_open"):
            assert found[of("a", "breaker_state", "unlisted", state=state)] == (state == "open")
        assert found[of("b", "breaker_state", "unlisted", state="closed")] == 1
        assert key("gateway_endpoint_up", endpoint=down.url) not in found
        config.routing(health_check=3600)
        await until(lambda: gate.gateway.manager.snapshot and gate.gateway.manager.snapshot.down)
        await until(lambda: gate.gateway.manager.health(good.url).state == "up")
        found = await scrape(gate)
        for url, now in ((down.url, "down"), (good.url, "up")):
            assert found[key("gateway_endpoint_up", endpoint=url)] == (now == "up")
            for state in STATES:
                assert found[key("gateway_endpoint_state", endpoint=url, state=state)] == (state == now)
        assert found[key("gateway_probes_total", endpoint=down.url, result="server_error")] == 1
        assert found[key("gateway_probes_total", endpoint=good.url, result="ok")] == 1
        assert found[of("a", "weight_effective_ratio", "unlisted")] == 0


async def test_reloads_are_told(config: Config) -> None:
    async with running(config, {"m": chain(NOWHERE)}) as gate:
        state = gate.gateway.state
        found = await scrape(gate)
        assert found[key("gateway_config_generation")] == found[key("gateway_config_last_reload_successful")] == 1
        assert found[key("gateway_config_last_reload_timestamp_seconds")] == state.accepted
        config.save("models.yaml", "models: 1\n")
        await until(lambda: state.rejected)
        found = await scrape(gate)
        assert (found[key("gateway_config_generation")], found[key("gateway_config_last_reload_successful")]) == (1, 0)
        assert found[key("gateway_config_last_reload_timestamp_seconds")] == state.rejected
        assert found[key("gateway_config_last_reload_success_timestamp_seconds")] == state.accepted
        assert found[key("gateway_config_reloads_total", result="rejected")] == 1
        gate.gateway.reloader.request()
        await until(lambda: len(config.records("config.rejected")) == 2)
        assert (await scrape(gate))[key("gateway_config_reloads_total", result="rejected")] == 1
        rejected = state.rejected
        config.models(m=chain(NOWHERE))
        await until(lambda: state.rejected is None)
        found = await scrape(gate)
        assert (found[key("gateway_config_generation")], found[key("gateway_config_last_reload_successful")]) == (1, 1)
        assert found[key("gateway_config_last_reload_timestamp_seconds")] == rejected
        config.models(m=chain(NOWHERE), more=chain(NOWHERE))
        await until(lambda: state.accepted and rejected and state.accepted > rejected)
        found = await scrape(gate)
        assert (found[key("gateway_config_generation")], found[key("gateway_config_last_reload_successful")]) == (2, 1)
        assert found[key("gateway_config_last_reload_timestamp_seconds")] == state.accepted
        assert found[key("gateway_config_reloads_total", result="accepted")] == 2


async def test_without_a_configuration_it_says_so(config: Config) -> None:
    config.save("models.yaml", "models: 1\n")
    async with running(config) as gate:
        found = await scrape(gate)
        assert (found[key("gateway_config_generation")], found[key("gateway_config_last_reload_successful")]) == (0, 0)
        assert key("gateway_config_last_reload_success_timestamp_seconds") not in found
        assert found[key("gateway_build_info", version=__version__)] == 1
        assert found[key("gateway_log_records_dropped_total")] == found[key("gateway_ledger_rows_dropped_total")] == 0
        await gate.say(ask("nowhere"))
        found = await scrape(gate)
        assert found[of("none", "requests_total", "none", "unknown", status="5xx")] == 1


async def test_what_is_registered_beside_is_told_too(config: Config) -> None:
    async with running(config, {"m": chain(NOWHERE)}) as gate:
        registry: CollectorRegistry = gate.gateway.metrics.registry
        Gauge("mine", "Of whoever embeds the gateway.", registry=registry).set(3)
        assert (await scrape(gate))[key("mine")] == 3


async def test_many_deployments_are_told_whole(config: Config) -> None:
    async with running(config, {f"m{number}": chain(NOWHERE, f"{NOWHERE}/b") for number in range(300)}) as gate:
        found = await scrape(gate)
        told = [name for name in found if name.startswith("gateway_weight_effective_ratio{")]
        assert len(told) == 600
        assert found[of("b", "breaker_state", "unlisted", "m299", state="closed")] == 1


async def test_the_loop_is_watched_while_it_serves(config: Config) -> None:
    async with running(config, {"m": chain(NOWHERE)}) as gate:

        async def watched() -> bool:
            return (await scrape(gate))[key("gateway_event_loop_lag_seconds_count")] > 0

        await until(watched)
        lag = gate.gateway.metrics.lag
    assert lag._timer is not None
    assert lag._timer.cancelled()
