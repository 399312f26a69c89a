"""A gateway that serves while its configuration is edited, and while a box is killed."""

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.test_utils import TestServer

import gateway
from gateway.simulator import Box, create_simulator
from tests.fakes.connection import arrived
from tests.running import Config, Process, becomes, split, until

ROUNDS = 10
GOOD_PER_ROUND = 4
BAD = (
    "models:\n- id: chat\n  rout: {number}\n",
    "models:\n- id: chat\n  route: [{number}\n",
    "models:\n- id: chat\n  base_url: ftp://{number}\n",
)
BAD_LINE = 3


@dataclass(frozen=True, slots=True)
class Served:
    """An answer: the generation and the deployment that its head names, and the boxes that its body names."""

    generation: int
    deployment: str
    boxes: frozenset[str]


@dataclass(slots=True)
class Load:
    """Clients that ask without a pause, every second one for streams. `failed` is what they must never see."""

    url: str
    served: list[Served] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def running(self, clients: int, *, streams: bool = True) -> AsyncIterator[None]:
        """Ask until left; requests that are under way then are read to their end."""
        stop = asyncio.Event()
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._client(session, stop, stream=streams and number % 2 == 1))
            try:
                yield
            finally:
                stop.set()

    async def _client(self, session: aiohttp.ClientSession, stop: asyncio.Event, *, stream: bool) -> None:
        while not stop.is_set():
            try:
                self.served.append(await self._ask(session, stream=stream))
            except (aiohttp.ClientError, AssertionError) as error:
                self.failed.append(f"{type(error).__name__}: {error}")

    async def _ask(self, session: aiohttp.ClientSession, *, stream: bool) -> Served:
        body = {"model": "chat", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
        async with session.post(f"{self.url}/v1/chat/completions", json=body) as answer:
            text = await answer.text()
            assert answer.status == 200, text
            assert not stream or text.endswith("data: [DONE]\n\n"), text
            events = text.split("\n\n")[:-2] if stream else [text]
            boxes = frozenset(json.loads(event.removeprefix("data: "))["system_fingerprint"] for event in events)
            headers = answer.headers
            return Served(int(headers["x-gateway-generation"]), headers["x-gateway-deployment"], boxes)


def sockets(process: Process) -> int:
    """How many sockets a process has open (Linux)."""
    count = 0
    for path in Path(f"/proc/{process.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since the folder was read
            count += path.readlink().name.startswith("socket:")
    return count


def save(config: Config, urls: Sequence[str], number: int) -> None:
    """Save the number-th configuration: one box out of two, under a name that no other configuration gives."""
    even = number % 2 == 0
    config.models(chat={f"{'even' if even else 'odd'}-{number}": urls[0 if even else 1]})


async def test_nothing_fails_while_the_configuration_is_saved_over_and_over(config: Config) -> None:
    servers = [TestServer(create_simulator(Box(name, token_rate=100))) for name in ("even", "odd")]
    for server in servers:
        await server.start_server(shutdown_timeout=0.1)
    urls = [str(server.make_url("")) for server in servers]
    config.routing()
    save(config, urls, 0)
    dice = random.Random(2)  # noqa: S311 - for pauses
    async with Process("serve", "--config-dir", str(config.path), "--port", "0") as process:
        load = Load(await process.url())
        before = sockets(process)
        async with load.running(8):
            for turn in range(ROUNDS):
                for number in range(turn * GOOD_PER_ROUND + 1, (turn + 1) * GOOD_PER_ROUND + 1):
                    save(config, urls, number)
                    await asyncio.sleep(dice.uniform(0, 0.06))
                await until(lambda: any(s.deployment.endswith(f"-{number}") for s in load.served))  # noqa: B023 - now
                config.save("models.yaml", BAD[turn % len(BAD)].format(number=turn))
                await until(lambda: len(config.records("config.rejected")) == turn + 1)  # noqa: B023 - it is called now
        await arrived()
        for server in servers:
            await server.close()
        await until(lambda: sockets(process) <= before)
        process.send_signal(signal.SIGTERM)
        assert await process.ended() == 0

    assert load.failed == []
    possible = {1: ["even-0"]} | {
        record["generation"]: [told.split("/")[1].split(":")[0] for told in record["deployments_added"]]
        for record in config.records("config.reloaded")
    }
    assert [s for s in load.served if [s.deployment] != possible[s.generation]] == []
    assert [s for s in load.served if s.boxes != {s.deployment.split("-")[0]}] == []
    assert len(possible) > ROUNDS
    rejected = config.records("config.rejected")
    assert [[fault["line"] for fault in record["faults"]] for record in rejected] == [[BAD_LINE]] * ROUNDS
    requests = config.records("request")
    assert len(requests) == len(load.served)
    assert {(record["status"], record.get("failure"), len(record["attempts"])) for record in requests} == {
        (200, None, 1)
    }


@asynccontextmanager
async def box_process(name: str, first_token: float) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run a box in a process of its own; give the process and its URL."""
    environ = os.environ | {"PYTHONPATH": str(Path(gateway.__file__).parents[1])}
    script = Path(__file__).with_name("box.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), name, str(first_token), stdout=asyncio.subprocess.PIPE, env=environ
    )
    assert process.stdout is not None
    try:
        yield process, f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_box_that_is_killed_under_load_is_noticed_by_nobody(config: Config) -> None:
    async with (
        box_process("first", 0.02) as (victim, first),
        box_process("second", 0.02) as (_, second),
    ):
        config.models(chat={"first": first, "second": second})
        config.routing(local_deployment=split([first, second], "chat"), health_check=0.2)
        async with Process("serve", "--config-dir", str(config.path), "--port", "0") as process:
            load = Load(await process.url())
            async with load.running(16, streams=False), aiohttp.ClientSession() as session:
                await until(lambda: len(load.served) > 50)
                victim.send_signal(signal.SIGKILL)

                async def health() -> dict[str, Any]:
                    async with session.get(f"{load.url}/routing") as answer:
                        [model] = (await answer.json())["models"]
                        return {each["name"]: each["health"]["state"] for each in model["deployments"]}

                await becomes(health, {"first": "down", "second": "up"})
                seen = len(load.served)
                await until(lambda: len(load.served) > seen + 50)
            process.send_signal(signal.SIGTERM)
            assert await process.ended() == 0

    assert load.failed == []
    assert {served.deployment for served in load.served[seen + 16 :]} == {"second"}
    requests = config.records("request")
    assert len(requests) == len(load.served)
    fallen = [record for record in requests if record["fallback"]]
    assert fallen
    for record in fallen:
        *failed, answered = record["attempts"]
        assert (answered["deployment"], answered["status"]) == ("second", 200)
        assert {(attempt["deployment"], "failure" in attempt) for attempt in failed} == {("first", True)}
    [down] = [record for record in config.records("health.changed") if record["now"] == "down"]
    assert down["endpoint"] == first
