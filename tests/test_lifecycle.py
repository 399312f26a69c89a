"""Real processes and real signals."""

import asyncio
import json
import os
import resource
import signal
from collections.abc import AsyncIterator

import pytest

from gateway.lifecycle import raise_file_limit
from gateway.simulator import Box
from tests.conftest import MakeBox
from tests.fakes.client import RawClient, get, post
from tests.fakes.connection import Cut
from tests.fakes.upstream import (
    Hang,
    Pause,
    ScriptedUpstream,
    Send,
    chunk,
    last_chunk,
    sse,
    sse_head,
)
from tests.running import Config, Process, becomes, hold, until

FIRST = '{"choices": [{"delta": {"content": "one"}}]}'
STREAM = post("/v1/chat/completions", {"model": "m", "stream": True})
CUT_STREAM = [Send(sse_head() + chunk(sse(FIRST))), Hang()]


@pytest.fixture
def serve(config: Config) -> list[str]:
    """The arguments that serve the config folder."""
    return ["serve", "--config-dir", str(config.path), "--port", "0"]


@pytest.fixture
async def held(config: Config) -> AsyncIterator[tuple[ScriptedUpstream, asyncio.Event]]:
    """An upstream that sends the rest of its stream when the event says so."""
    go_on = asyncio.Event()
    steps = [Send(sse_head() + chunk(sse(FIRST))), Pause(go_on), Send(chunk(sse("[DONE]")) + last_chunk())]
    async with ScriptedUpstream(steps) as upstream:
        config.models(m={"box": upstream.url})
        config.routing()
        yield upstream, go_on


async def begin(client: RawClient) -> None:
    """Ask for a stream and read its first event."""
    await client.send(STREAM)
    assert (await client.read_head()).status == 200
    assert await client.read_chunk() == sse(FIRST)


async def refused(url: str) -> bool:
    """Tell whether new connections are refused."""
    try:
        async with RawClient(url):
            return False
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it waited in the queue when that closed
        return True


async def test_sigterm_lets_requests_in_flight_end(
    serve: list[str], config: Config, held: tuple[ScriptedUpstream, asyncio.Event]
) -> None:
    _, go_on = held
    async with Process(*serve) as gateway:
        url = await gateway.url()
        async with RawClient(url) as stream, RawClient(url) as balancer:
            await begin(stream)

            async def unready() -> bool:
                await balancer.send(get("/health/ready"))
                answer = await balancer.read_answer()
                assert answer.head.get("connection") == (None if answer.status == 200 else "close")
                return answer.status == 503 and answer.json() == {"status": "draining"}

            assert not await unready()
            gateway.send_signal(signal.SIGTERM)
            await until(unready)
            assert (await balancer.read_to_end(), balancer.ended) == (b"", "fin")
            await until(lambda: refused(url))

            go_on.set()
            assert await stream.read_chunk() == sse("[DONE]")
            assert await stream.read_chunk() == b""
        assert await gateway.ended() == 0
    started, request, stopped = config.records()
    assert (started["event"], started["urls"]) == ("gateway.started", [url])
    assert (request["event"], request["status"], request.get("failure")) == ("request", 200, None)
    assert (stopped["event"], stopped["cut"]) == ("gateway.stopped", 0)


async def test_at_the_deadline_requests_are_cut(serve: list[str], config: Config) -> None:
    async with ScriptedUpstream(CUT_STREAM) as upstream:
        config.models(m={"box": upstream.url})
        config.routing()
        async with (
            Process(*serve, "--drain-timeout", "0.1") as gateway,
            RawClient(await gateway.url()) as client,
        ):
            await begin(client)
            gateway.send_signal(signal.SIGTERM)
            with pytest.raises(Cut):
                await client.read_chunk()
            assert await gateway.ended() == 0
            await upstream.closed_by_peer()
    assert [record["cut"] for record in config.records("gateway.stopped")] == [1]
    [request] = config.records("request")
    assert (request["status"], request["failure"], request["attempts"][0]["failure"]) == (200, "cut", "cut")


@pytest.mark.usefixtures("watched")
async def test_a_second_signal_cuts_at_once(serve: list[str], config: Config) -> None:
    async with ScriptedUpstream(CUT_STREAM) as upstream:
        config.models(m={"box": upstream.url})
        config.routing()
        async with Process(*serve, "--drain-timeout", "600") as gateway:
            url = await gateway.url()
            async with RawClient(url) as client:
                await begin(client)
                gateway.send_signal(signal.SIGINT)
                await until(lambda: refused(url))
                gateway.send_signal(signal.SIGINT)
                with pytest.raises(Cut):
                    await client.read_chunk()
                assert await gateway.ended() == 0
    assert [record["cut"] for record in config.records("gateway.stopped")] == [1]


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_before_it_serves_is_obeyed(serve: list[str], config: Config, number: int) -> None:
    """A strategy holds it in its first build."""
    fifo = config.waiting_strategy()
    config.models(m={"box": "http://localhost:9"})
    config.routing(routing_strategy="waiting:Waiting")
    async with Process(*serve, cwd=fifo.parent) as gateway:
        file = await hold(fifo)
        gateway.send_signal(number)
        assert await gateway.ended() == 0
        os.close(file)
    assert (gateway.stderr, config.records()) == ("", [])


async def test_a_build_that_hangs_does_not_hold_a_stop(serve: list[str], config: Config) -> None:
    fifo = config.waiting_strategy()
    config.models(m={"box": "http://localhost:9"})
    config.routing()
    async with Process(*serve, cwd=fifo.parent) as gateway:
        await gateway.url()
        config.routing(routing_strategy="waiting:Waiting")
        file = await hold(fifo)
        gateway.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0
        os.close(file)
    assert config.records()[-1]["event"] == "gateway.stopped"


async def test_sighup_reads_the_configuration_again(serve: list[str], config: Config, make_box: MakeBox) -> None:
    config.models(m={"box": await make_box(Box("box"))})
    config.routing()
    async with Process(*serve) as gateway:
        await gateway.url()
        config.save("models.yaml", "models: 1\n")
        await until(lambda: len(config.records("config.rejected")) == 1)
        gateway.send_signal(signal.SIGHUP)
        await until(lambda: len(config.records("config.rejected")) == 2)
        gateway.send_signal(signal.SIGINT)
        assert await gateway.ended() == 0
    assert config.records()[-1]["event"] == "gateway.stopped"


@pytest.mark.usefixtures("watched")
async def test_a_bad_configuration_at_the_start_is_told_and_mended_live(
    serve: list[str], config: Config, make_box: MakeBox
) -> None:
    config.save("models.yaml", "models:\n- id: m\n  base_ulr: http://box\n")
    config.routing(timeout="soon")
    async with Process(*serve) as gateway:
        url = await gateway.url()
        faults = gateway.stderr.splitlines()
        models, routing = config.path / "models.yaml", config.path / "routing.yaml"
        assert f"{models}:3:3: models[0].base_ulr: unknown key 'base_ulr', did you mean 'base_url'?" in faults
        assert any(line.startswith(f"{routing}:5:13: timeout: found 'soon', expected ") for line in faults)
        assert f"gateway: on {url} without a configuration: it answers 503 until the faults are fixed" in faults
        async with RawClient(url) as client:

            async def ready() -> tuple[int, object]:
                await client.send(get("/health/ready"))
                answer = await client.read_answer()
                return answer.status, answer.json()

            assert await ready() == (503, {"status": "no_configuration"})
            await client.send(post("/v1/chat/completions", {"model": "m"}))
            answer = await client.read_answer()
            assert (answer.status, answer.json()["error"]["code"]) == (503, "no_configuration")

            config.routing()
            config.models(m={"box": await make_box(Box("box"))})
            await becomes(ready, (200, {"status": "ready"}))
            await client.send(post("/v1/chat/completions", {"model": "m"}))
            assert (await client.read_answer()).status == 200
        gateway.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0
    told = [json.loads(line) for line in gateway.stderr.splitlines() if line.startswith("{")]
    assert [record["event"] for record in told][:2] == ["config.rejected", "gateway.started"]
    assert [record["generation"] for record in config.records("config.reloaded")] == [1]


@pytest.mark.usefixtures("watched")
async def test_aiohttp_without_its_c_parser_is_refused(serve: list[str], config: Config) -> None:
    config.models(m={"box": "http://localhost:9"})
    async with Process(*serve, environ={"AIOHTTP_NO_EXTENSIONS": "1"}) as gateway:
        assert await gateway.ended() == 1
    [line] = gateway.stderr.splitlines()
    assert line.startswith("gateway: aiohttp runs without its C parser")


def test_the_limit_of_open_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = min(hard, 4096) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, hard))
    try:
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
