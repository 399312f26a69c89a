"""The demo, as a newcomer meets it: what it prints is taken at its word."""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import get_args

import pytest
from aiohttp import ClientPayloadError, ClientSession
from msgspec import convert
from msgspec.structs import fields
from pytest_aiohttp.plugin import AiohttpServer

import gateway
from gateway.api.body import Limits
from gateway.cli import main
from gateway.config.load import parse
from gateway.config.sources import ConfigFiles, read
from gateway.demo import CHAOS, CHAOS_BOXES, Chaos, chaos_told, demo, write_config
from gateway.lifecycle import CannotListenError, CannotServeError, Listen
from gateway.server import Options
from gateway.simulator import STATE, create_simulator
from gateway.simulator.faults import AnyFault, Cut, Fault, named
from tests.conftest import OpenDoor
from tests.running import START_PATIENCE, Process, until, whole_lines
from tests.shell import Curl, commands

DOCS = (Path(gateway.__file__).parents[1] / "docs" / "demo.md").read_text()
VALUES = ("openai", "llamacpp", "reset")
URLS = ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3")


def edit(file: Path, old: str, new: str) -> None:
    """Edit in place, as a careless editor does."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


async def hurry(routing: Curl) -> None:
    """Let the demo's boxes answer at once; their pace is for people."""
    endpoints = {each["endpoint"] for model in (await routing.run())["models"] for each in model["deployments"]}
    for endpoint in endpoints:
        await Curl(f"{endpoint}/simulator", {}, '{"first_token": 0, "token_rate": 0}').run()


async def test_what_the_demo_prints_works() -> None:
    async with Process("demo", "--port", "0") as gateway:
        await gateway.said(r"Stop it with Ctrl-C", "stdout")
        told = commands(gateway.stdout)
        [chat, streamed, routing, stats, take_down] = [Curl.of(words) for words in told if words[0] == "curl"]
        [log] = [Path(words[2]) for words in told if words[:2] == ["tail", "-F"]]
        [[edited]] = [words for words in told if len(words) == 1]

        await hurry(routing)
        answers = [await chat.run() for _ in range(5)]
        boxes = [answer["system_fingerprint"] for answer in answers]
        assert (len([name for name in boxes if name.startswith("local-")]), boxes.count("remote")) == (3, 2)
        assert all(f"I am {name}." in str(answer) for name, answer in zip(boxes, answers, strict=True))
        assert (await streamed.run()).endswith("data: [DONE]\n\n")
        total = (await stats.run())["total"]
        assert (total["requests"], total["cost_unknown"]) == (6, 0)
        assert total["cost_usd"] > 0
        assert total["avoided_usd"] > 0

        file = Path(edited)
        edit(file, "local_fraction: 0.6", "local_fraction: 1.0")

        async def weights() -> dict[str, float]:
            model = next(m for m in (await routing.run())["models"] if m["id"] == "demo-chat")
            return {d["name"]: d["effective_weight"] for d in model["deployments"]}

        async def all_local() -> bool:
            return await weights() == {"local-a": 0.5, "local-b": 0.5, "remote": 0}

        await until(all_local)
        assert (await routing.run())["reload"]["warnings"] == []
        await take_down.run()

        async def sibling_takes_over() -> bool:
            return await weights() == {"local-a": 0, "local-b": 1, "remote": 0}

        await until(sibling_takes_over)
        assert (await chat.run())["system_fingerprint"] == "local-b"

        await until(lambda: [record["event"] for record in whole_lines(log)].count("request") == 7)
        events = {record["event"] for record in whole_lines(log)}
        assert {"gateway.started", "config.reloaded", "health.changed"} < events

        gateway.send_signal(signal.SIGINT)
        assert await gateway.ended() == 0
    assert gateway.stderr == "stopped\n"
    assert not file.parent.exists()


TIMED = {"late", "trickle"}
"""What the gateway's own clocks end; here nobody waits."""


async def at_once(_: float) -> None:
    """Pass the time."""


async def reaction(curl: Curl) -> tuple[int, str, bytes]:
    """Do what curl would, to whatever end; give status, deployment and body."""
    body = b""
    async with (
        ClientSession() as session,
        session.post(curl.url, headers=curl.headers, data=curl.data) as answer,
    ):
        with suppress(ClientPayloadError):
            async for chunk in answer.content.iter_any():
                body += chunk
        return answer.status, answer.headers["x-gateway-deployment"], body


@pytest.mark.exhaustive
@pytest.mark.parametrize("chaos", [pytest.param(each, id=each.name) for each in CHAOS if each.name not in TIMED])
async def test_what_the_chaos_tells_comes_true(
    tmp_path: Path, aiohttp_server: AiohttpServer, door: OpenDoor, chaos: Chaos
) -> None:
    servers = [await aiohttp_server(create_simulator(box, sleep=at_once)) for box in CHAOS_BOXES]
    urls = [str(server.make_url("")) for server in servers]
    write_config(tmp_path, urls, tmp_path / "output.log", chaos=True)
    for clock in ("\ntimeout: 2", "first_token: 3", "idle: 3"):  # none of them is to run out
        edit(tmp_path / "routing.yaml", clock, f"{clock}0")
    url = (await door(Options(tmp_path, environ={}))).urls[0]
    curls = [Curl.of(words) for words in commands(chaos_told(url, urls[0]))]
    [curl] = [curl for curl in curls if f'"chaos-{chaos.name}"' in (curl.data or "")]

    status, deployment, body = await reaction(curl)
    finished = b'"finish_reason":"stop"' in body
    assert (status, finished, deployment) == {
        "elsewhere": (200, True, "healthy"),
        "whole": (200, True, "faulty"),
        "refused": (400, False, "faulty"),
        "rescued": (200, True, "faulty"),
    }[chaos.ends]
    assert (b'"error"' in body) == (not finished)
    assert servers[0].app is not None
    assert servers[0].app[STATE].faults_by_kind.total() > 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_tells_of_a_rescue_as_the_chaos_says(
    tmp_path: Path, aiohttp_server: AiohttpServer, door: OpenDoor
) -> None:
    servers = [await aiohttp_server(create_simulator(box, sleep=at_once)) for box in CHAOS_BOXES]
    urls = [str(server.make_url("")) for server in servers]
    write_config(tmp_path, urls, tmp_path / "output.log", chaos=True)
    told = chaos_told((await door(Options(tmp_path, environ={}))).urls[0], urls[0])
    [option] = re.findall(r"the stream is one \(curl (-\w) shows it\)", told)
    [command] = [words for words in commands(told) if '"chaos-cut"' in words[-1]]
    pipe = asyncio.subprocess.PIPE
    curl = await asyncio.create_subprocess_exec(*command, option, stdout=pipe, stderr=pipe)
    said, _ = await curl.communicate()
    assert said.decode().split("data: [DONE]")[1].split() == [
        *("x-gateway-rescue:", "continue"),
        *("x-gateway-deployment:", "healthy"),
        *("x-gateway-attempts:", "2"),
    ]


def test_each_kind_of_fault_is_tried_and_told_of() -> None:
    tried = {type(fault) for _, fault in (named(f"demo-chat+{chaos.fault}") for chaos in CHAOS)}
    assert tried == set(get_args(AnyFault))
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| ", DOCS.partition("| kind |")[2].replace("| |", "|  |"), re.MULTILINE)
    shared = {field.name for field in fields(Fault)}
    assert {kind: set(re.findall(r"`(\w+)` ", told + " ")) - {*VALUES} for kind, told in rows} == {
        str(kind.__struct_config__.tag): {field.name for field in fields(kind)} - shared for kind in get_args(AnyFault)
    }


def test_what_the_docs_say_to_a_box_is_understood() -> None:
    controls = re.findall(r"/simulator -d '(.*)'", DOCS)
    faults = [json.loads(control).get("fault", []) for control in controls]
    assert len(convert([each if isinstance(each, list) else [each] for each in faults], list[list[AnyFault]])) == 5
    assert named(re.findall(r'provider_model_id: "(.*?)"', DOCS)[0]) == ("demo-chat", Cut(tokens=40))


async def test_the_chaos_is_told_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serving = asyncio.create_task(demo(Listen(port=0), Limits(), tmp_path, chaos=True))
    told = ""

    def ready() -> bool:
        nonlocal told
        told += capsys.readouterr().out
        return told.endswith("Stop it with Ctrl-C.\n\n")

    await until(ready)
    curls = [Curl.of(words) for words in commands(told) if words[0] == "curl"]
    assert len(curls) == 5 + len(CHAOS) + 2
    faulty, healed = [await curl.run() for curl in curls[-2:]]
    assert ([fault["left"] for fault in faulty["faults"]], healed["faults"], healed["deterministic"]) == (
        [10],
        [],
        True,
    )
    os.kill(os.getpid(), signal.SIGTERM)
    await serving


@pytest.mark.usefixtures("watched")
async def test_a_taken_port_gives_way_to_a_free_one(tmp_path: Path) -> None:
    folder = tmp_path / "a $folder: #1"
    async with Process("demo", "--port", "0") as first:
        taken = (await first.said(r"http://127\.0\.0\.1:(\d+),", "stdout"))[1]
        async with Process("demo", "--port", taken, "--dir", str(folder)) as second:
            await second.said(r"Stop it with Ctrl-C", "stdout")
            first_line = f"cannot listen on 127.0.0.1:{taken}: address already in use; taking a free port"
            assert second.stdout.splitlines()[0] == first_line
            for curl in [Curl.of(words) for words in commands(second.stdout) if words[0] == "curl"]:
                await curl.run()
            second.send_signal(signal.SIGTERM)
            assert await second.ended() == 0
        first.send_signal(signal.SIGTERM)
        assert await first.ended() == 0
    assert sorted(path.name for path in folder.iterdir()) == ["ledger.db", "models.yaml", "output.log", "routing.yaml"]


@contextmanager
def inherited(handler: signal.Handlers) -> Iterator[None]:
    """Let what is started meanwhile do this at the end of its terminal."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_it_ends_with_its_terminal() -> None:
    terminal, other = os.openpty()
    ends = shlex.quote(os.ttyname(other))
    demo = f"exec {shlex.quote(sys.executable)} -m gateway demo --port 0 <>{ends} >&0 2>&0"  # opened by a new session
    with inherited(signal.SIG_DFL):
        process = await asyncio.create_subprocess_exec("sh", "-c", demo, start_new_session=True)
    try:
        async with asyncio.timeout(START_PATIENCE):
            said = b""
            while not said.endswith(b"Ctrl-C.\r\n\r\n"):
                said += await asyncio.to_thread(os.read, terminal, 65_536)
            os.close(other)  # not before the demo has it: a terminal that nobody holds cannot be read
            os.close(terminal)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()


@pytest.mark.usefixtures("watched")
async def test_with_nohup_it_outlives_its_terminal() -> None:
    with inherited(signal.SIG_IGN):
        async with Process("demo", "--port", "0") as gateway:
            url = (await gateway.said(r"http://127\.0\.0\.1:\d+", "stdout"))[0]
            gateway.send_signal(signal.SIGHUP)
            for _ in range(3):  # a door that is about to close may let one in
                assert (await Curl.of(["curl", "-s", f"{url}/routing"]).run())["generation"] == 1
            gateway.send_signal(signal.SIGTERM)
            assert await gateway.ended() == 0


async def test_an_address_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotListenError, match=r"192\.0\.2\.1:8080"):
        await demo(Listen("192.0.2.1"), Limits(), tmp_path)


@pytest.mark.parametrize(
    ("name", "chaos"), [("new", False), ("new", True), ('\U0001f680 \u00e9 #1 100% ${X} {0} "', False)]
)
def test_a_demos_configuration_is_valid_and_may_be_written_again(tmp_path: Path, name: str, *, chaos: bool) -> None:
    folder = tmp_path / name
    for _ in range(2):
        write_config(folder, URLS, folder / "output.log", chaos=chaos)
    files = ConfigFiles.of(folder, {})
    loaded = parse(read(files), files, {})
    assert (loaded.faults, loaded.notices) == ((), ())
    assert loaded.routing is not None
    assert loaded.routing.logging.output == str(folder / "output.log")
    assert loaded.routing.ledger.url is not None
    assert loaded.routing.ledger.url.path == str(folder / "ledger.db")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("file", "cannot write {}/file: file exists, give --dir another folder"),
        ("file/below", "cannot write {}/file/below: not a directory, give --dir another folder"),
        ("folder", "cannot write {}/folder/models.yaml: is a directory, give --dir another folder"),
        ("q?x", "found the folder '{}/q?x', expected one without ? and control characters"),
        ("\udcff", "found the folder '{}/\\udcff', expected one without ? and control characters"),
    ],
)
def test_a_folder_that_cannot_hold_a_demo_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "models.yaml").mkdir(parents=True)
    assert main(("demo", "--port", "0", "--dir", str(tmp_path / name))) == 1
    assert capfd.readouterr() == ("", f"gateway: {told.format(tmp_path)}\n")


@pytest.mark.parametrize("name", ["models.yaml", "routing.yaml"])
def test_somebody_elses_configuration_is_left_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """`gateway demo --dir config` used to write over what was there."""
    (tmp_path / name).write_text("models: []\n")
    assert main(("demo", "--port", "0", "--dir", str(tmp_path))) == 1
    assert capfd.readouterr() == ("", f"gateway: {tmp_path / name} is not a demo's, give --dir another folder\n")
    assert contents(tmp_path) == {name: "models: []\n"}
    with pytest.raises(CannotServeError):
        write_config(tmp_path, URLS, tmp_path / "output.log")
