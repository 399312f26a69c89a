"""Accepting, and not being able to; out of file descriptors from end to end."""

import asyncio
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.listener import Listener
from gateway.simulator import Box
from tests.conftest import MakeBox
from tests.fakes.client import Answer, RawClient, get, post
from tests.running import Config, Process, until
from tests.starving import starved

ASK = post("/v1/chat/completions", {"model": "m"})
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prlimit and /proc")

Told = list[tuple[str, Mapping[str, object]]]


def listener(told: Told, calm: float = 0.0) -> Listener:
    return Listener(asyncio.Protocol, lambda _: True, lambda event, fields: told.append((event, fields)), calm)


async def fail(listener: Listener) -> None:
    """Let accepting fail: a socket that is shut down listens no more, and is readable."""
    listener.sockets[0].shutdown(socket.SHUT_RDWR)
    await until(lambda: not listener._accepts)


def mend(listener: Listener) -> str:
    """Let the socket listen again; say where: shut down, it has lost its port."""
    listener.sockets[0].listen()
    return f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


@linux
async def test_accepting_rests_when_it_fails_and_goes_on_by_itself() -> None:
    told: Told = []
    listening = listener(told)
    await listening.bind("127.0.0.1", 0)
    listening.start()
    await fail(listening)
    async with RawClient(mend(listening)):
        await until(lambda: len(told) == 2)
    assert told == [("connections.unaccepted", {"reason": "invalid argument"}), ("connections.accepted", {})]
    listening.close()


@linux
async def test_failures_that_follow_each_other_are_told_once() -> None:
    told: Told = []
    listening = listener(told, calm=float("inf"))
    await listening.bind("127.0.0.1", 0)
    listening.start()
    for _ in range(3):
        await fail(listening)
        async with RawClient(mend(listening)):
            listening.resume()
            await until(lambda: not listening._arriving)
    assert [event for event, _ in told] == ["connections.unaccepted"]
    await fail(listening)
    listening.close()


async def test_a_rest_for_those_that_are_arriving_ends_with_them() -> None:
    made: list[asyncio.Protocol] = []

    def make() -> asyncio.Protocol:
        made.append(asyncio.Protocol())
        return made[-1]

    listening = Listener(make, lambda arriving: not arriving, lambda *_: None)
    await listening.bind("127.0.0.1", 0)
    listening.start()
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with RawClient(url), RawClient(url), RawClient(url):
        await until(lambda: len(made) == 3)
    listening.close()


async def test_each_address_of_a_name_is_taken() -> None:
    listening = listener([])
    await listening.bind("localhost", 0)
    found = {bound.getsockname()[0] for bound in listening.sockets}
    assert found <= {"127.0.0.1", "::1"}
    assert len(found) == len(listening.sockets) > 0
    listening.close()
    assert listening.sockets == []


NOT_OURS = (socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("2001:db8::1", 0, 0, 0))
NO_FAMILY = (socket.AF_APPLETALK, socket.SOCK_STREAM, 0, "", ("", 0))
OURS = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))


@pytest.mark.parametrize("other", [NOT_OURS, NO_FAMILY])
async def test_an_address_of_a_name_that_the_machine_does_not_have_is_left_out(
    monkeypatch: pytest.MonkeyPatch, other: object
) -> None:
    found = [other, OURS]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    listening = listener([])
    await listening.bind("name", 0)
    assert [bound.getsockname()[0] for bound in listening.sockets] == ["127.0.0.1"]
    listening.close()
    found.remove(OURS)
    with pytest.raises(OSError, match=r"(?i)address"):
        await listening.bind("name", 0)
    assert listening.sockets == []


async def ask(client: RawClient, request: bytes) -> Answer:
    await client.send(request)
    return await client.read_answer()


async def routing(client: RawClient) -> Any:
    return (await ask(client, get("/routing"))).json()


@linux
async def test_without_descriptors_connections_wait_and_are_served_when_there_are_some(config: Config) -> None:
    """A server of uvloop's own closed them and said nothing."""
    config.models(m={"box": "http://127.0.0.1:9"})
    config.routing()
    async with Process("serve", "--config-dir", str(config.path), "--port", "0") as gateway, AsyncExitStack() as stack:
        url = await gateway.url()
        client = await stack.enter_async_context(RawClient(url))
        assert (await ask(client, get("/health"))).status == 200
        await until(lambda: config.records("gateway.started"))
        with starved(gateway.process.pid):
            waiting = [await stack.enter_async_context(RawClient(url)) for _ in range(5)]
            for each in waiting:
                await each.send(get("/health"))
            await until(lambda: config.records("connections.unaccepted"))
            assert (await ask(client, get("/health"))).status == 200
            await client.close()
            assert (await waiting[0].read_answer()).status == 200
            assert [each.raw for each in waiting[1:]] == [b""] * 4
        for each in waiting[1:]:
            assert (await each.read_answer()).status == 200
    assert [record["reason"] for record in config.records("connections.unaccepted")] == ["too many open files"]


@linux
async def test_without_a_descriptor_for_an_upstream_nobody_is_blamed(config: Config, make_box: MakeBox) -> None:
    config.models(m={"one": await make_box(Box("one")), "two": await make_box(Box("two"))})
    config.routing(timeout=5, health_check=0.05)
    async with (
        Process("serve", "--config-dir", str(config.path), "--port", "0") as gateway,
        RawClient(await gateway.url()) as client,
    ):
        await until(lambda: len(config.records("health.changed")) == 2)
        with starved(gateway.process.pid):

            async def refused() -> bool:  # a probe's descriptor may be free for a moment
                answer = await ask(client, ASK)
                if answer.status == 200:
                    return False
                assert (answer.status, answer.head.values("retry-after")) == (503, ["1"])
                assert answer.json()["error"]["code"] == "gateway_exhausted"
                return True

            await until(refused)
            [model] = (await routing(client))["models"]
        assert [deployment["health"]["state"] for deployment in model["deployments"]] == ["up", "up"]
        assert [deployment["breaker"]["state"] for deployment in model["deployments"]] == ["closed", "closed"]
        assert (await ask(client, ASK)).status == 200
        gateway.send_signal(signal.SIGTERM)
        assert await gateway.ended() == 0
    assert len(config.records("health.changed")) == 2
    assert config.records("breaker.changed") == []
    attempts = [attempt for record in config.records("request") for attempt in record["attempts"]]
    assert {attempt.get("detail") for attempt in attempts} == {"EMFILE", None}


@linux
async def test_without_descriptors_the_configuration_and_the_log_stay_and_recover(
    config: Config, make_box: MakeBox, tmp_path: Path
) -> None:
    config.models(m={"box": await make_box(Box("box"))})
    config.routing()
    async with (
        Process("serve", "--config-dir", str(config.path), "--port", "0") as gateway,
        RawClient(await gateway.url()) as client,
    ):
        assert (await ask(client, ASK)).status == 200
        await until(lambda: config.records("request"))
        with starved(gateway.process.pid):
            config.models(n={"box": "http://127.0.0.1:9"})
            await until(lambda: config.records("config.rejected"))
            assert (await routing(client))["generation"] == 1
            config.log.rename(tmp_path / "old.log")
            answer = await ask(client, post("/v1/chat/completions", {"model": "n"}))
            assert answer.json()["error"]["code"] == "model_not_found"
        await until(lambda: config.log.exists() and config.records("config.reloaded"))
        assert (await routing(client))["generation"] == 2
    told = [*config.records(log=tmp_path / "old.log"), *config.records()]
    events = [record["event"] for record in told]
    assert [event for event in events if event != "connections.unaccepted"] == [
        "gateway.started",
        "request",
        "config.rejected",
        "request",
        "config.reloaded",
    ]
    faults = told[events.index("config.rejected")]["faults"]
    assert {fault["message"] for fault in faults} == {"cannot be read: too many open files"}
