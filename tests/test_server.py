"""The application as others embed it: real configuration files, simulated boxes, pytest-aiohttp's own clients."""

import asyncio
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from pytest_aiohttp import AiohttpClient

from gateway import __version__
from gateway.routing.failures import Cause, Failure
from gateway.routing.health import ProbeResult
from gateway.server import GATEWAY, Options, _Epoch, create_app
from gateway.simulator import Box
from tests.conftest import MakeBox, OpenDoor
from tests.fakes.connection import PATIENCE
from tests.running import Config, becomes, hold, split, until

Client = TestClient[web.Request, web.Application]
Serve = Callable[[], Awaitable[Client]]

FAST = {"interval": 0.02}


@pytest.fixture
async def serve(config: Config, make_box: MakeBox, aiohttp_client: AiohttpClient) -> Serve:  # noqa: ARG001 - see below
    """Serve the config folder to a client. Boxes are there first, and outlive the gateways, which look at them."""
    return lambda: aiohttp_client(create_app(Options(config.path, environ={})))


def test_a_clock_that_is_set_is_followed_and_its_jitter_is_not() -> None:
    wall, monotonic = [1_000.0], [50.0]
    epoch = _Epoch(lambda: wall[0], lambda: monotonic[0])
    assert epoch() == 950.0
    wall[0], monotonic[0] = 1_010.001, 60.0
    assert epoch() == 950.0
    wall[0] += 3_600
    assert epoch() == pytest.approx(4_550.001)
    wall[0] -= 7_200
    assert epoch() == pytest.approx(-2_649.999)


async def test_a_start_that_is_cancelled_gives_the_programs_logging_back(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler used to stay, in front of a log that nobody wrote."""
    fifo = config.waiting_strategy()
    monkeypatch.syspath_prepend(fifo.parent)
    config.models(m={"box": "http://localhost:9"})
    config.routing(routing_strategy="waiting:Waiting")
    handlers = [*logging.getLogger().handlers]
    starting = asyncio.create_task(create_app(Options(config.path, environ={}))[GATEWAY].start())
    file = await hold(fifo)
    assert logging.getLogger().handlers != handlers
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert logging.getLogger().handlers == handlers
    os.close(file)
    await until(lambda: hasattr(sys.modules.get("waiting"), "Waiting"))


@pytest.fixture
async def boxes(make_box: MakeBox, config: Config) -> dict[str, str]:
    """Start two local boxes and a remote one, and register a model on them."""
    urls = {name: await make_box(Box(name)) for name in ("local-a", "local-b", "remote")}
    config.models(chat=urls)
    return urls


def share(config: Config, boxes: Mapping[str, str], fraction: float = 0.6, **fields: object) -> None:
    """Write routing.yaml: `fraction` of the traffic for the two local boxes."""
    config.routing(
        routing_parameter={"local_fraction": fraction, "selection": "smooth"},
        local_deployment=split([boxes["local-a"], boxes["local-b"]], "chat"),
        remote_deployment=split([boxes["remote"]], "chat"),
        **fields,
    )


async def routing(client: Client) -> Any:
    async with client.get("/routing") as answer:
        return await answer.json()


async def weights(client: Client) -> dict[str, float]:
    deployments = (await routing(client))["models"][0]["deployments"]
    return {deployment["name"]: deployment["effective_weight"] for deployment in deployments}


async def ask(client: Client, model: str = "chat") -> str:
    """Ask once; give the deployment that answered."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    async with client.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return answer.headers["x-gateway-deployment"]


async def written(client: Client) -> None:
    """Wait until the log holds what was recorded."""
    app = client.app
    assert app is not None
    app[GATEWAY].feed.settle()
    assert await asyncio.to_thread(app[GATEWAY].sink.flush, PATIENCE)


async def reaches(client: Client, generation: int) -> None:
    async def current() -> object:
        return (await routing(client))["generation"]

    await becomes(current, generation)


async def test_health_becomes_weights_and_recovers(serve: Serve, config: Config, boxes: dict[str, str]) -> None:
    share(config, boxes, health_check=FAST)
    client = await serve()

    async def heal(box: str, *, healthy: bool) -> None:
        await client.session.post(f"{boxes[box]}/simulator", json={"healthy": healthy})

    async def are(**expected: float) -> None:
        named = {name.replace("_", "-"): weight for name, weight in expected.items()}
        await becomes(lambda: weights(client), named)

    await are(local_a=0.3, local_b=0.3, remote=0.4)
    await heal("local-a", healthy=False)
    await are(local_a=0, local_b=0.6, remote=0.4)
    assert [await ask(client) for _ in range(10)].count("local-b") == 6
    await heal("local-b", healthy=False)
    await are(local_a=0, local_b=0, remote=1)
    assert {await ask(client) for _ in range(10)} == {"remote"}

    async with client.get("/health") as answer:
        down = sorted([boxes["local-a"], boxes["local-b"]])
        assert (answer.status, await answer.json()) == (
            200,
            {"status": "degraded", "down": down, "version": __version__},
        )
    await heal("local-a", healthy=True)
    await are(local_a=0.6, local_b=0, remote=0.4)
    await heal("local-b", healthy=True)
    await are(local_a=0.3, local_b=0.3, remote=0.4)
    assert (await routing(client))["generation"] == 1

    await written(client)
    changes = [(r["level"], r["endpoint"], r["now"], r.get("reason")) for r in config.records("health.changed")]
    assert changes[-4:] == [
        ("warning", boxes["local-a"], "down", "status 503"),
        ("warning", boxes["local-b"], "down", "status 503"),
        ("info", boxes["local-a"], "up", None),
        ("info", boxes["local-b"], "up", None),
    ]
    assert sorted(endpoint for _, endpoint, now, _ in changes[:-4] if now == "up") == sorted(boxes.values())


async def test_a_strategy_that_cannot_follow_a_health_change_is_told(
    serve: Serve,
    config: Config,
    boxes: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "fussy.py").write_text(
        "class Fussy:\n    def assign(self, local, remote):\n        return {local[0]: 1, local[1]: 1}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    groups = {
        "local_deployment": split([boxes["local-a"], boxes["local-b"]], "chat"),
        "remote_deployment": split([boxes["remote"]], "chat"),
    }
    config.routing(routing_strategy="fussy:Fussy", health_check=FAST, **groups)
    client = await serve()
    await client.session.post(f"{boxes['local-b']}/simulator", json={"healthy": False})
    await until(lambda: [r for r in config.records("health.changed") if r["now"] == "down"])
    [problem] = [r["problem"] for r in config.records("health.changed") if r["now"] == "down"]
    assert re.fullmatch(r".*Fussy\.assign .*raised IndexError: tuple index out of range", problem)
    assert await weights(client) == {"local-a": 0.5, "local-b": 0.5, "remote": 0}

    # the next configuration is one that this strategy cannot weigh with local-b down
    config.routing(routing_strategy="fussy:Fussy", health_check=FAST, timeout=3, **groups)
    await reaches(client, 2)

    def warnings() -> list[dict[str, Any]]:
        return [each for each in config.records("config.warning") if each["path"] == "routing_strategy"]

    await until(warnings)
    [told] = warnings()
    assert told["file"] == str(config.path / "routing.yaml")
    assert told["message"].startswith(f"{problem}; ")
    assert await weights(client) == {"local-a": 0.5, "local-b": 0.5, "remote": 0}
    assert config.records("config.rejected") == []


async def test_an_accepted_reload_tells_what_changed(serve: Serve, config: Config, boxes: dict[str, str]) -> None:
    share(config, boxes)
    client = await serve()
    share(config, boxes, 0.8, timeout=5)
    await reaches(client, 2)
    await written(client)
    [record] = config.records("config.reloaded")
    assert record["generation"] == 2
    assert record["hash"] == (await routing(client))["hash"]
    assert record["weights"] == ["chat/local-a: 0.3 -> 0.4", "chat/local-b: 0.3 -> 0.4", "chat/remote: 0.4 -> 0.2"]
    assert record["settings"] == [
        f"timeout: {PATIENCE:g} -> 5",
        "routing_parameter.local_fraction: 0.6 -> 0.8",
    ]


async def test_bad_contents_are_rejected_once_each_and_change_nothing(
    serve: Serve, config: Config, boxes: dict[str, str]
) -> None:
    share(config, boxes)
    client = await serve()
    good = (config.path / "routing.yaml").read_text()
    bad = [good.replace('"routing_parameter"', '"routing_paramter"'), good.replace("0.6", "-0.6")]
    for count, text in enumerate(bad, 1):
        config.save("routing.yaml", text)
        await until(lambda: len(config.records("config.rejected")) == count)  # noqa: B023 - it is called in this turn
        config.save("routing.yaml", text)  # the same content under another inode
        assert await ask(client) in boxes

    state = await routing(client)
    assert (state["generation"], await weights(client)) == (1, {"local-a": 0.3, "local-b": 0.3, "remote": 0.4})
    [fault] = state["reload"]["faults"]
    assert (fault["file"], fault["path"]) == (
        str(config.path / "routing.yaml"),
        "routing_parameter.local_fraction",
    )
    assert good.splitlines()[fault["line"] - 1].strip().startswith('"local_fraction"')
    assert state["reload"]["rejected_at"] >= state["reload"]["accepted_at"]

    share(config, boxes, 0.5)
    await reaches(client, 2)
    state = (await routing(client))["reload"]
    assert (state["faults"], state["rejected_at"]) == ([], None)
    await written(client)
    rejected = config.records("config.rejected")
    assert [(record["level"], record["generation"], len(record["faults"])) for record in rejected] == [
        ("error", 1, 1),
        ("error", 1, 1),
    ]
    assert rejected[0]["faults"][0]["message"] == "unknown key 'routing_paramter', did you mean 'routing_parameter'?"
    assert rejected[1]["faults"] == [fault]


async def test_a_save_that_changes_nothing_but_warnings_tells_of_the_new_ones(
    serve: Serve, config: Config, boxes: dict[str, str]
) -> None:
    """They stood in /routing alone."""
    share(config, boxes)
    client = await serve()
    good, digest = (config.path / "routing.yaml").read_text(), (await routing(client))["hash"]
    (config.path.parent / ".env").write_text("KEY: value\n")
    await until(lambda: bool(config.records("config.warning")))
    config.save("routing.yaml", f"# another content\n{good}")

    async def is_read() -> bool:
        return bool((await routing(client))["hash"] != digest)

    await until(is_read)
    (config.path / "deployment.yaml").write_text("")
    await until(lambda: len(config.records("config.warning")) > 1)
    one, other = config.records("config.warning")
    assert (one["file"], one["line"], other["file"]) == (
        str(config.path.parent / ".env"),
        1,
        str(config.path / "deployment.yaml"),
    )
    assert not config.records("config.reloaded")


async def test_a_bad_save_that_is_put_back_is_told_once_and_one_that_changes_nothing_never(
    serve: Serve, config: Config, boxes: dict[str, str]
) -> None:
    """The log used to end with the rejection."""
    share(config, boxes)
    client = await serve()
    good = (config.path / "routing.yaml").read_text()
    for count in (1, 2):
        config.save("routing.yaml", good.replace("0.6", "-0.6"))
        await until(lambda: len(config.records("config.rejected")) == count)  # noqa: B023 - it is called in this turn
        config.save("routing.yaml", f"# mended {count} times\n{good}")
        await until(lambda: len(config.records("config.unchanged")) == count)  # noqa: B023 - as above
    digest = (await routing(client))["hash"]
    config.save("routing.yaml", good)

    async def read() -> bool:
        return bool((await routing(client))["hash"] != digest)

    await until(read)
    await written(client)
    told = [record for record in config.records() if record["event"].startswith("config.")]
    assert [record["event"] for record in told] == ["config.rejected", "config.unchanged"] * 2
    assert (told[-1]["level"], told[-1]["generation"], told[-1]["hash"]) == ("info", 1, digest)


async def test_the_log_moves_live_and_loses_no_line(
    serve: Serve, config: Config, boxes: dict[str, str], tmp_path: Path
) -> None:
    share(config, boxes)
    client = await serve()
    moved = tmp_path / "logs" / "moved.log"
    share(config, boxes, logging={"output": str(moved)})
    asked = 0
    while (await routing(client))["generation"] == 1 or asked < 20:
        await ask(client)
        asked += 1
    await ask(client)
    await written(client)
    old, new = config.records("request"), config.records("request", moved)
    assert len(old) + len(new) == asked + 1
    assert len(new) > 0
    assert config.records("config.reloaded") == []
    [record] = config.records("config.reloaded", moved)
    assert record["settings"] == [f"logging.output: {config.log} -> {moved}"]


async def test_the_level_changes_live(serve: Serve, config: Config, boxes: dict[str, str]) -> None:
    share(config, boxes)
    client = await serve()
    await ask(client)
    share(config, boxes, logging={"level": "warning"})
    await reaches(client, 2)
    await ask(client)
    share(config, boxes)
    await reaches(client, 3)
    await ask(client)
    await written(client)
    assert len(config.records("request")) == 2
    assert [record["generation"] for record in config.records("config.reloaded")] == [3]


async def test_an_output_that_cannot_be_opened_is_a_fault(
    serve: Serve, config: Config, boxes: dict[str, str], tmp_path: Path
) -> None:
    share(config, boxes)
    client = await serve()
    share(config, boxes, 0.9, logging={"output": str(tmp_path)})
    await until(lambda: config.records("config.rejected"))
    state = await routing(client)
    [fault] = state["reload"]["faults"]
    assert (fault["path"], fault["message"]) == ("logging.output", f"cannot log there: {tmp_path}: is a folder")
    assert fault["line"] > 0
    assert (state["generation"], (await weights(client))["remote"]) == (1, 0.4)
    await ask(client)
    await written(client)
    assert len(config.records("request")) == 1


async def test_lines_for_a_full_disk_are_dropped_and_counted(
    serve: Serve, config: Config, boxes: dict[str, str]
) -> None:
    share(config, boxes, logging={"output": "/dev/full"})
    client = await serve()
    app = client.app
    assert app is not None
    await until(lambda: app[GATEWAY].sink._failing)
    for number in range(12_000):
        app[GATEWAY].log.info("filler", number=number)
    assert await ask(client) in boxes
    dropped = (await routing(client))["log"]["dropped"]
    assert dropped > 1_000
    share(config, boxes)
    await reaches(client, 2)
    await until(lambda: config.records("log.dropped"))
    await written(client)
    [told] = config.records("log.dropped")
    assert told["count"] >= dropped
    assert len(config.records("filler")) + len(config.records("request")) + told["count"] >= 12_001


async def test_warnings_are_logged_and_shown(serve: Serve, config: Config, boxes: dict[str, str]) -> None:
    config.models(chat={**boxes, "cloud": "${CLOUD_URL}"})
    share(config, boxes)
    client = await serve()
    await written(client)
    [record] = config.records("config.warning")
    [warning] = (await routing(client))["reload"]["warnings"]
    assert record["message"] == warning["message"]
    assert warning["message"].startswith("CLOUD_URL is not set")
    [inactive] = (await routing(client))["models"][0]["inactive"]
    assert inactive == {"name": "cloud", "group": "unlisted", "waits_for": "CLOUD_URL"}


async def test_what_the_reloader_notices_is_logged(serve: Serve, config: Config, boxes: dict[str, str]) -> None:
    share(config, boxes)
    client = await serve()
    app = client.app
    assert app is not None
    app[GATEWAY]._notice("reload.polling", {"reason": "no more watches"})
    await written(client)
    assert [record["reason"] for record in config.records("reload.polling")] == ["no more watches"]


async def test_a_last_probe_leaves_no_slow_start_behind(door: OpenDoor, config: Config, boxes: dict[str, str]) -> None:
    """It used to begin one that nobody ended: probes were stopped after slow starts."""
    share(config, boxes, health_check=60)
    opened = await door(Options(config.path, environ={}))
    gateway = opened.gateway
    manager, changes = gateway.manager, gateway.changes
    prober = changes.prober
    assert manager.snapshot is not None
    back, other = manager.snapshot.deployments[:2]
    while (opens := manager.failed(back, Failure(Cause.SERVER_ERROR), time.monotonic())) is None:
        pass
    closes = manager.succeeded(back, time.monotonic())
    assert closes is not None
    for change in (opens, closes):
        changes.follow(change)
    assert changes._ramp is not None
    stop = prober.close

    async def closed() -> None:
        changes.probed(other.endpoint.identity, ProbeResult("status 500"))
        await stop()

    prober.close = closed  # type: ignore[method-assign] # a probe ends in the last moment
    await opened.close(PATIENCE)
    assert "slow start" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_starts_and_stops_are_logged(door: OpenDoor, config: Config, boxes: dict[str, str]) -> None:
    share(config, boxes)
    opened = await door(Options(config.path, environ={}))
    await opened.close(1)
    started, *_, stopped = config.records()
    assert (started["event"], stopped["event"], stopped["cut"]) == ("gateway.started", "gateway.stopped", 0)
    assert started | {"generation": 1, "models": 1, "deployments": 3, "urls": list(opened.urls)} == started
    assert (started["version"], started["config"]) == (__version__, str(config.path))


async def test_an_aiohttp_that_is_not_known_is_asked_the_plain_way_and_that_is_told(
    door: OpenDoor, config: Config, boxes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    share(config, boxes)
    monkeypatch.setattr(aiohttp, "__version__", "3.15.0")
    opened = await door(Options(config.path, environ={}, transport="direct"))
    await opened.close(1)
    (told,) = config.records("transport.untested")
    assert (told["level"], told["aiohttp"], told["transport"]) == ("warning", "3.15.0", "session")


def test_options_show_no_environment() -> None:
    assert "canary" not in repr(Options(environ={"KEY": "canary"}))


@pytest.fixture
def hasty(config: Config, boxes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> web.Application:
    """An application that tidies memory as soon as nobody asks."""
    monkeypatch.setattr("gateway.server._QUIET_SECONDS", 0.0)
    share(config, boxes)
    return create_app(Options(config.path, environ={}))


async def test_memory_is_tidied_with_each_build_and_thoroughly_once_nobody_asks(
    hasty: web.Application, aiohttp_client: AiohttpClient, config: Config, boxes: dict[str, str]
) -> None:
    gateway = hasty[GATEWAY]
    tidied: list[tuple[bool, bool]] = []
    loop = threading.get_ident()

    def tidy(*, idle: bool) -> None:
        tidied.append((idle, threading.get_ident() == loop))

    gateway.tidy = tidy
    gateway.others = 1
    client = await aiohttp_client(hasty)
    await ask(client)
    share(config, boxes, fraction=0.8)
    await reaches(client, 2)
    assert tidied == [(False, False)] * 2
    gateway.others -= 1
    await until(lambda: len(tidied) > 2)
    assert tidied[2:] == [(True, True)]


@pytest.mark.parametrize("saved", ["routing_strategy: nonsense\n", ""])
async def test_memory_is_tidied_after_a_build_that_changes_nothing(
    hasty: web.Application, aiohttp_client: AiohttpClient, config: Config, saved: str
) -> None:
    """What it hid from the collector used to stay hidden until the next change."""
    gateway = hasty[GATEWAY]
    tidied: list[bool] = []
    gateway.tidy = lambda *, idle: tidied.append(idle)
    await aiohttp_client(hasty)
    await until(lambda: tidied.count(True) == 1)
    text = (config.path / "routing.yaml").read_text(encoding="utf-8")
    config.save("routing.yaml", saved or f"{text}\n# nothing else\n")
    await until(lambda: tidied.count(True) == 2)
    assert tidied == [False, True] * 2


async def test_memory_is_tidied_while_somebody_watches_the_page(
    hasty: web.Application, aiohttp_client: AiohttpClient, config: Config, boxes: dict[str, str]
) -> None:
    """A page that was left open used to put it off for as long."""
    gateway = hasty[GATEWAY]
    client = await aiohttp_client(hasty)
    async with client.get("/events"):
        await until(lambda: gateway.events.viewers)
        tidied: list[bool] = []
        gateway.tidy = lambda *, idle: tidied.append(idle)
        share(config, boxes, fraction=0.8)
        await reaches(client, 2)
        await until(lambda: True in tidied)
